"""Train section of a recipe: the loss, its negatives and the optimization of the retriever."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from twofold.recipe.retriever import NegativeDistance, TwoTower
from twofold.recipe.section import Section

# --- losses -----------------------------------------------------------------------------------------------------------


class InBatchSoftmax(Section):
    """Softmax cross-entropy of each positive against the items of the other positives in its batch. The same item, and
    other positives of the same user, are masked.
    """

    kind: Literal["in_batch_softmax"]
    log_q: Literal["classic", "corrected", "none"] = "classic"
    """logQ correction of the popularity bias of in-batch negatives: `classic` corrects all columns (Yi et al., RecSys
    2019), `corrected` only the negatives (Khrylchenko et al., RecSys 2025).
    """
    uniform_negatives: int = Field(default=512, ge=0, le=1_000_000)
    """Number of items drawn uniformly from the training window that are added to the negatives of every batch (mixed
    negative sampling).
    """


class SampledSoftmax(Section):
    """Softmax cross-entropy of each positive against items drawn uniformly from the training window; all positives of
    a batch share them.
    """

    kind: Literal["sampled_softmax"]
    negatives: int = Field(default=2048, ge=1, le=1_000_000)
    """Number of negatives drawn for each batch."""


class FullSoftmax(Section):
    """Softmax cross-entropy of each positive against all items of the training window; for up to about 100,000."""

    kind: Literal["full_softmax"]
    logit_adjustment: float = Field(default=0.0, ge=0, le=2)
    """Factor of the logit adjustment (Menon et al., ICLR 2021): in training, this times the log of an item's share of
    the positives is added to its score, so that the served score favors rare items. 0 suits ranking among all items;
    1 suits ranking among negatives that are drawn by popularity.
    """


class Bpr(Section):
    """Bayesian personalized ranking: each positive should score higher than items drawn uniformly from the training
    window (Rendle et al., UAI 2009).
    """

    kind: Literal["bpr"]
    negatives: int = Field(default=64, ge=1, le=1_000_000)
    """Number of negatives drawn for each batch; all its positives share them."""


class Bce(Section):
    """Binary cross-entropy of each example: positives against the logged events that are not positive."""

    kind: Literal["bce"]
    gamma: float = Field(default=0.0, ge=0, le=10)
    """Exponent of the focal loss (Lin et al., ICCV 2017), which gives less weight to examples that are already
    predicted well. 0 means plain cross-entropy.
    """


class Regression(Section):
    """Regression of `prepare.target` by the score. Examples whose target is NULL are left out."""

    kind: Literal["regression"]
    error: Literal["huber", "mse"] = "huber"
    """Huber loss (squared up to an error of 1, linear beyond), or mean squared error."""


Loss = Annotated[
    InBatchSoftmax | SampledSoftmax | FullSoftmax | Bpr | Bce | Regression,
    Field(discriminator="kind"),
]


# --- the whole --------------------------------------------------------------------------------------------------------


class Adversary(Section):
    """Adversarial removal of the item length from item vectors (Ganin & Lempitsky, ICML 2015): a small network predicts
    log length_s from the vector, and its reversed gradient trains the item tower to make that prediction fail.
    """

    max_lambda: float = Field(default=1.0, ge=0, le=100)
    """Final weight of the reversed gradient; it rises from 0 as 2 / (1 + exp(-10 p)) - 1 over the share p of the
    training. In a synthetic log where likes favor short items, .4 lowered the share of the length's variance that a
    new probe explains from .7 to under .25, and .7 also removed the users' taste.
    """


class HardNegatives(Section):
    """Hard negatives: items that the current model ranks high for a user and that are not positives of that user,
    drawn in every step for each example (Huang et al., KDD 2020, section 6.1). They are mined again in every epoch, at
    the time of the user's newest training example.

    With logQ correction or sampled negatives they are weighted so that the ranks [skip, top) count twice in the softmax
    over all items; with log_q: none and in bpr they are not weighted.
    """

    skip: int = Field(default=100, ge=0, le=100_000)
    """Number of best ranks left out: the user would like many of these items and has not seen them yet."""
    top: int = Field(default=500, ge=1, le=100_000)
    """Rank at which the pool of hard negatives ends. Positives of the user are not counted as ranks."""
    easy_per_hard: int = Field(default=100, ge=0, le=1_000_000)
    """Number of the loss's own negatives for each hard one. 0 means hard negatives only, as many as the loss would
    draw; the vectors then collapse.
    """

    @model_validator(mode="after")
    def _some_ranks(self) -> HardNegatives:
        if self.skip >= self.top:
            raise ValueError(f"skip is {self.skip} and top is {self.top}: no rank is left. Write a top above skip")
        return self


class Train(Section):
    """Training of the retriever: loss, negatives, and an optimizer whose learning rate warms up and then falls as a
    cosine. The weights of the best epoch on the validation window are used.
    """

    loss: Loss = InBatchSoftmax(kind="in_batch_softmax")
    """Loss to minimize. Each example is weighted by its `prepare.weight` over the mean weight."""
    adversary: Adversary | None = None
    """Removes the item length from the item vectors. `null` means no adversary."""
    hard_negatives: HardNegatives | None = None
    """Negatives from the model's own ranking, in addition to those of the loss. `null` means none."""
    epochs: int = Field(default=4, ge=1, le=10_000)
    """Number of passes over the training examples: the positives, or all events for bce and regression."""
    best_epoch_by: Literal["recall", "ndcg", "auc"] = "recall"
    """Metric of the validation window whose best epoch is kept: `recall` or `ndcg` over the catalogue, the two that the
    report decides by, or `auc` of the items that users were shown, for a model that orders shown items. They can
    disagree: NDCG of the first ten items may rise for epochs after recall among a hundred has fallen, and with bce an
    epoch that orders shown items better often finds less in the catalogue.
    """
    batch_size: int = Field(default=1024, ge=1, le=1_000_000)
    """Number of examples in a step. 1 is stochastic gradient descent in its first sense; losses in which the items of a
    batch compete need 2.
    """
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimizer: `adamw`, or `sgd`, plain stochastic gradient descent without momentum, which needs a learning rate of
    its own, hundreds of times as large.
    """
    micro_batch_size: int | None = Field(default=None, ge=1, le=1_000_000)
    """Number of examples encoded at a time, for batches that do not fit in memory. The gradient is that of the whole
    batch, and each example is encoded twice. `null` means the whole batch at once.
    """
    group_by: tuple[str, ...] = ()
    """Columns of the items, or of the users where the items have no such column: all examples of a batch share one
    value of each, so that in-batch negatives are, for example, of the same language. `user.language` is the column of
    the users where both have it. Negatives that the loss draws are of any value. Values with fewer examples than a
    batch are batched together.
    """
    shuffle_batches: bool = True
    """`false`: an epoch takes all batches of one group of `group_by` after the other, in the order of their values, as
    from a log that is sorted and not shuffled.
    """
    group_by_time: Literal["auto", "none", "hour", "day"] = "auto"
    """Span of time that the examples of a batch share (UTC), so that an item stands as a negative with the age, the
    counters and the popularity that it had when the query was made. Spans with fewer examples than 4 batches are joined
    with the next ones. `auto` means `day` if items compete in the loss, their features hold an age or a counter, and
    `group_by` is empty; else it means `none`. On the shipped log, days and `uniform_negatives` together gain .043 of
    recall@100.
    """
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak learning rate, reached after 5 % of the steps, or after the first epoch if there is `patience`."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """Decoupled weight decay (AdamW; Loshchilov & Hutter, ICLR 2019): every step also multiplies matrices, embedding
    tables included, by 1 - learning rate · weight_decay. Small logs with long trainings need it.
    """
    max_grad_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient of a step; longer gradients are scaled down to it. `null` means no clipping."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number type of the products of vectors in in_batch_softmax and full_softmax; all else is float32. `auto` means
    bfloat16 where the device multiplies it in hardware, so another processor may train other weights. The report states
    the type that was used.
    """
    patience: int | None = Field(default=None, ge=1)
    """Number of epochs in a row without a better validation metric after which training stops; the best epoch is kept.
    The learning rate then stays at its peak, because the last epoch is not known in advance. `null` means that all
    `epochs` are trained while the learning rate falls as a cosine.
    """
    refit: bool = False
    """`true`: trains twice. The first fit chooses the number of epochs, and with `retriever.kind: best` what is served,
    on the validation window; the second trains so many epochs with that window among its examples, as the baselines of
    the report do. Only the second is evaluated on the test window and served.
    """
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the initial weights, of all random draws and of the order of the batches."""

    @model_validator(mode="after")
    def _parts_of_a_batch(self) -> Train:
        if self.micro_batch_size is not None and self.micro_batch_size >= self.batch_size:
            raise ValueError(
                f"micro_batch_size is {self.micro_batch_size} and batch_size is {self.batch_size}: a micro-batch must "
                f"be smaller. Raise batch_size, or delete micro_batch_size"
            )
        return self

    @model_validator(mode="after")
    def _order_has_groups(self) -> Train:
        if not self.shuffle_batches and not self.group_by:
            raise ValueError(
                "shuffle_batches: false keeps the order of groups, and group_by names none: write group_by: "
                "[language], or delete shuffle_batches"
            )
        return self

    @model_validator(mode="after")
    def _batch_has_other_items(self) -> Train:
        if self.batch_size == 1 and isinstance(self.loss, InBatchSoftmax):
            raise ValueError(
                "batch_size is 1, and in_batch_softmax compares the items of a batch: write 2 or more, or choose kind: "
                "sampled_softmax, full_softmax, bpr, bce or regression"
            )
        return self

    @model_validator(mode="after")
    def _loss_draws_negatives(self) -> Train:
        if self.hard_negatives is not None and not isinstance(self.loss, InBatchSoftmax | SampledSoftmax | Bpr):
            why = "has all items as negatives" if isinstance(self.loss, FullSoftmax) else "has no drawn negatives"
            raise ValueError(
                f"hard_negatives are added to drawn negatives, and a loss of kind {self.loss.kind} {why}: choose kind: "
                f"in_batch_softmax, sampled_softmax or bpr, or delete hard_negatives"
            )
        return self


def check_objective(retriever: TwoTower, train: Train, *, has_target: bool) -> None:
    """Raises ValueError if the score cannot express what the loss trains, or if a required part is missing."""
    loss, column = train.loss, retriever.separate_towers_by
    for name in ("group_by", "adversary", "hard_negatives"):
        if column is not None and getattr(train, name):
            raise ValueError(
                f"retriever.separate_towers_by: {column} trains pairs of towers separately, and train.{name} needs one "
                f"pair of towers for all examples. Delete one of the two"
            )
    if retriever.output_norm == "batch_norm" and train.micro_batch_size is not None:
        raise ValueError(
            "retriever.output_norm: batch_norm standardizes over the examples encoded together, so "
            "train.micro_batch_size would change the model. Write output_norm: l2 or none, or delete micro_batch_size"
        )
    if retriever.output_norm == "batch_norm" and train.batch_size == 1:
        raise ValueError(
            "retriever.output_norm: batch_norm standardizes over a batch, and train.batch_size is 1: write 2 or more, "
            "or output_norm: none"
        )
    if isinstance(loss, Regression) and not has_target:
        raise ValueError(
            "train.loss is a regression of prepare.target, which the recipe does not define: write there the number to "
            "predict, such as LEAST(watch_s / length_s, 1), or choose kind: bce"
        )
    if isinstance(loss, Bce | Regression) and isinstance(retriever.score, NegativeDistance):
        raise ValueError(
            f"retriever.score is never above 0, so train.loss {loss.kind} cannot predict a positive. Write score: "
            f"{{kind: dot}}, or choose kind: in_batch_softmax or bpr"
        )


def objective_warnings(retriever: TwoTower, train: Train) -> tuple[str, ...]:
    """Returns what a combination of score and loss costs, where it can be trained but not well."""
    if not isinstance(train.loss, Bce) or retriever.most > 1:
        return ()
    return (
        f"retriever.score is at most {retriever.most:.2g} in the loss, so bce never predicts a probability above "
        f"{1 / (1 + math.exp(-retriever.most)):.2f}: the scores are an order, not probabilities, and learn little once "
        f"positives are near. For more, write score: {{kind: cosine, temperature: 0.1}}, or kind: dot without "
        f"output_norm: l2",
    )
