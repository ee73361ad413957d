"""Parts of a recipe: the retriever, how it compares, and what it is taught by."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from twofold.recipe.features import Features, HistoryFeature, IdFeature, SequenceFeature
from twofold.recipe.section import Section

# --- scores -----------------------------------------------------------------------------------------------------------


class Cosine(Section):
    """The cosine of the two vectors, which are made of length 1. It is also the served score."""

    kind: Literal["cosine"]
    temperature: float = Field(default=0.1, gt=0)
    """Divides the cosine in the loss: smaller is sharper. Measured on the shipped log: .05 loses .035 recall@100, .2
    loses .007.
    """


class Dot(Section):
    """The inner product: a long item vector is a bonus, whoever asks."""

    kind: Literal["dot"]


class NegativeDistance(Section):
    """-‖user - item‖²: a long item vector is a penalty."""

    kind: Literal["negative_distance"]


Score = Annotated[Cosine | Dot | NegativeDistance, Field(discriminator="kind")]


# --- model ------------------------------------------------------------------------------------------------------------


class TwoTower(Section):
    """Two encoders that never see one another's features; their outputs are compared."""

    kind: Literal["two_tower"]
    dim: int = Field(default=64, ge=1, le=4096)
    """Width of the id embeddings and of both towers' outputs."""
    hidden: tuple[Annotated[int, Field(ge=1, le=8192)], ...] = ()
    """Widths of the hidden layers of both towers; none means one linear layer."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the hidden layers' outputs that a training step leaves out."""
    norm: Literal["none", "layer"] = "none"
    """Hidden layers are normalised before their ReLU."""
    output_norm: Literal["none", "l2", "batch_norm"] = "none"
    """What becomes of the outputs before they are compared: length 1, or every number standardised over a batch."""
    score: Score = Cosine(kind="cosine")
    """How they are compared: in training, in the report, in the index and in what is served."""
    separate_towers_by: str | None = None
    """A column of the items: each of its values gets towers of its own, taught by the rows of its items alone; the
    best items of all are then ranked together. Vectors are as many times as wide. Every value must fill a batch; items
    of a value that is new after training lie with the value of the most items.
    """

    @model_validator(mode="after")
    def _joined_by_products(self) -> TwoTower:
        if self.separate_towers_by is not None and isinstance(self.score, NegativeDistance):
            raise ValueError(
                f"towers per {self.separate_towers_by} are asked as one through the products of their vectors, and a "
                f"negative distance is none. Write score: {{kind: cosine}} or {{kind: dot}}, or delete "
                f"separate_towers_by"
            )
        return self

    @model_validator(mode="after")
    def _hidden_to_act_on(self) -> TwoTower:
        for name, asked in (("dropout", self.dropout > 0), ("norm", self.norm != "none")):
            if asked and not self.hidden:
                raise ValueError(f"{name} acts on hidden layers, and there are none: write hidden: [128] or delete it")
        return self

    @property
    def most(self) -> float:
        """The largest logit that the score can give."""
        match self.score:
            case Cosine(temperature=temperature):
                return 1 / temperature
            case NegativeDistance():
                return 0.0
            case Dot():
                return 1.0 if self.output_norm == "l2" else math.inf


class Ials(Section):
    """Weighted alternating least squares (Hu, Koren, Volinsky, ICDM 2008): a vector an item, solved from who liked
    what; a user asks with the vector solved from the positives so far, and items without training positives score 0.

    Reads nothing else: `features` must be {user: [{kind: history, events: positives}], item: [{kind: id}]}. Of `train`
    it reads the seed.
    """

    kind: Literal["ials"]
    dim: int = Field(default=64, ge=1, le=1024)
    """Width of the vectors; solving takes the cube of it for every user and item."""
    regularization: float = Field(default=300.0, gt=0)
    """Weight of the squared length of every vector in the loss, whatever the size of the log: 10, 300 and 400 gave
    recall@100 .335, .383 and .379 on the validation day of the shipped one.
    """
    alpha: float = Field(default=40.0, gt=0)
    """Confidence of a positive: it counts 1 + alpha · weight in the loss; what was not liked counts 1."""
    iterations: int = Field(default=15, ge=1, le=1000)
    """Half-steps for users, and for items."""


Retriever = Annotated[TwoTower | Ials, Field(discriminator="kind")]


# --- losses -----------------------------------------------------------------------------------------------------------


class InBatchSoftmax(Section):
    """Each positive against the items of the other positives of its batch; the same item, and the same user's other
    positives, do not compete.
    """

    kind: Literal["in_batch_softmax"]
    log_q: Literal["classic", "corrected", "none"] = "classic"
    """Correction for popular items standing in more batches: for every column (Yi et al., RecSys 2019), for the
    negatives alone (Khrylchenko et al., RecSys 2025), or none.
    """
    uniform_negatives: int = Field(default=0, ge=0, le=1_000_000)
    """Items of the training window, each as likely, that compete in every batch beside its own: mixed negatives."""


class SampledSoftmax(Section):
    """Each positive against items drawn at random from those of the training window, the same ones for a whole
    batch.
    """

    kind: Literal["sampled_softmax"]
    negatives: int = Field(default=2048, ge=1, le=1_000_000)
    """How many."""


class FullSoftmax(Section):
    """Each positive against all items of the training window: up to about 100,000 of them."""

    kind: Literal["full_softmax"]
    logit_adjustment: float = Field(default=0.0, ge=0, le=2)
    """In training, so many times the log of an item's share of the positives is added to its score (logit adjustment,
    Menon et al., ICLR 2021): what is popular needs no score of its own for it, so the score served leans to the tail.
    1 orders as negatives drawn by popularity ask for; 0 as the catalogue does.
    """


class Bpr(Section):
    """Each positive is to score higher than items drawn at random from those of the training window (Rendle et al.,
    UAI 2009).
    """

    kind: Literal["bpr"]
    negatives: int = Field(default=64, ge=1, le=1_000_000)
    """How many, the same ones for a whole batch."""


class Bce(Section):
    """Every row by itself: is it positive? Binary cross-entropy on positives and negatives as they were logged."""

    kind: Literal["bce"]
    gamma: float = Field(default=0.0, ge=0, le=10)
    """Focal loss (Lin et al., ICCV 2017): how much less a row counts that is nearly right. 0: plain cross-entropy."""


class Regression(Section):
    """Every row by itself: the score is to be `prepare.target`. Rows where that is NULL are left out."""

    kind: Literal["regression"]
    error: Literal["huber", "mse"] = "huber"
    """Squared up to 1 and linear beyond, or squared."""


Loss = Annotated[
    InBatchSoftmax | SampledSoftmax | FullSoftmax | Bpr | Bce | Regression,
    Field(discriminator="kind"),
]


class Adversary(Section):
    """A small network that guesses log length_s from the item's vector, behind a reversed gradient: what it finds, the
    item tower unlearns (Ganin & Lempitsky, ICML 2015).
    """

    max_lambda: float = Field(default=1.0, ge=0, le=100)
    """Strength of the reversed gradient, reached from 0 as 2 / (1 + exp(-10 p)) - 1 over the training. In a world where
    likes lean to short items, .4 took what a fresh probe explains of the length from .7 to under .25; .7 took the
    taste with it.
    """


class HardNegatives(Section):
    """Items that the model itself ranks high for a user who did not like them, drawn at every step for each row by
    itself; the retriever's user asks at the moment of its newest training row (Huang et al., KDD 2020, section 6.1).

    With logQ, or against a sample, they are weighed so that the ranks [skip, top) count twice in the softmax over all
    items; with log_q: none, and in bpr, as they come.
    """

    skip: int = Field(default=100, ge=0, le=100_000)
    """The best ranks, left out: they hold what the user would like and did not meet yet."""
    top: int = Field(default=500, ge=1, le=100_000)
    """The rank where they end. A user's positives have no rank."""
    easy_per_hard: int = Field(default=100, ge=0, le=1_000_000)
    """Of the loss's own negatives, so many to a hard one. 0: hard ones alone, as many as the loss has others; vectors
    collapse.
    """
    refresh_every: int = Field(default=1, ge=1, le=10_000)
    """Epochs until they are mined anew."""

    @model_validator(mode="after")
    def _some_ranks(self) -> HardNegatives:
        if self.skip >= self.top:
            raise ValueError(f"skip is {self.skip} and top is {self.top}: no rank is left. Write a top above skip")
        return self


class Train(Section):
    """The loss; Adam; warm-up and cosine; the best epoch on validation is kept."""

    loss: Loss = InBatchSoftmax(kind="in_batch_softmax")
    """What every step lowers. A row's `prepare.weight`, over the mean of all, is how much it counts."""
    adversary: Adversary | None = None
    """Unlearns the length of items."""
    hard_negatives: HardNegatives | None = None
    """Negatives of the model's own ranking, beside those of the loss."""
    epochs: int = Field(default=4, ge=1, le=10_000)
    """Passes over the rows that the loss learns from: positives, or all for bce and regression."""
    batch_size: int = Field(default=1024, ge=2, le=1_000_000)
    """Rows a step."""
    micro_batch_size: int | None = Field(default=None, ge=1, le=1_000_000)
    """Rows that are encoded at once, so that a batch need not fit in memory: its gradient stays the same, each row is
    encoded twice. null: all.
    """
    group_by: tuple[str, ...] = ()
    """Columns of the items, or of the users where items have none of the name: all rows of a batch have one value of
    each, so that negatives are of the same language, or city; those drawn from the catalogue are of any. The order of
    batches is shuffled. Values of fewer rows than a batch stand together.
    """
    learning_rate: float = Field(default=2e-3, gt=0)
    """The peak, reached after 5 % of the steps."""
    max_grad_norm: float | None = Field(default=None, gt=0)
    """The most that all gradients of a step may measure as one vector; longer ones are scaled down to it."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type in which in_batch_softmax and full_softmax multiply vectors; everything else is float32. auto: bfloat16 if
    the device multiplies it in hardware, so another processor may train other weights. The report states which it was.
    """
    patience: int | None = Field(default=None, ge=1)
    """Epochs in a row without a better validation, after which training ends early; null: none does."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of initial weights, of what is drawn at random, and of the order of the batches."""

    @model_validator(mode="after")
    def _parts_of_a_batch(self) -> Train:
        if self.micro_batch_size is not None and self.micro_batch_size >= self.batch_size:
            raise ValueError(
                f"micro_batch_size is {self.micro_batch_size} and batch_size is {self.batch_size}: there are no parts. "
                f"Raise batch_size, or delete micro_batch_size"
            )
        return self

    @model_validator(mode="after")
    def _hard_for_whom(self) -> Train:
        if self.hard_negatives is not None and not isinstance(self.loss, InBatchSoftmax | SampledSoftmax | Bpr):
            why = "has all items as negatives" if isinstance(self.loss, FullSoftmax) else "has rows instead"
            raise ValueError(
                f"hard_negatives compete beside drawn ones, and a loss of kind {self.loss.kind} {why}: choose kind: "
                f"in_batch_softmax, sampled_softmax or bpr, or delete hard_negatives"
            )
        return self


def check_reads(asked: Ials, features: Features) -> None:
    """ValueError if features are asked for that the solver does not read."""
    match features.user, features.item:
        case [HistoryFeature(events="positives", vectors=None, pool="mean")], [IdFeature()]:
            return
    raise ValueError(
        f"retriever of kind {asked.kind} reads who liked what, and no other feature: write features: {{user: [{{kind: "
        f"history, events: positives, max_length: 500}}], item: [{{kind: id}}]}}, or choose kind: two_tower"
    )


def check_heads(retriever: TwoTower, features: Features) -> None:
    """ValueError if the heads of a sequence cannot share out the width of its vectors in pairs."""
    for feature in features.user:
        if isinstance(feature, SequenceFeature) and retriever.dim % (2 * feature.num_heads):
            raise ValueError(
                f"{feature.num_heads} heads of a sequence need a retriever.dim that is a multiple of "
                f"{2 * feature.num_heads}, and it is {retriever.dim}"
            )


def check_objective(retriever: TwoTower, train: Train, *, has_target: bool) -> None:
    """ValueError where this score cannot express what this loss wants, or where there is nothing to learn."""
    loss = train.loss
    for name in ("group_by", "adversary", "hard_negatives"):
        if retriever.separate_towers_by is not None and getattr(train, name):
            raise ValueError(
                f"retriever.separate_towers_by: {retriever.separate_towers_by} trains towers apart, and train.{name} "
                f"is of one pair of towers for all rows. Delete one of the two"
            )
    if retriever.output_norm == "batch_norm" and train.micro_batch_size is not None:
        raise ValueError(
            "retriever.output_norm: batch_norm standardises over what is encoded at once, so that "
            "train.micro_batch_size would change the model. Write output_norm: l2 or none, or delete micro_batch_size"
        )
    if isinstance(loss, Regression) and not has_target:
        raise ValueError(
            "train.loss is a regression of prepare.target, which the recipe does not give: write there the number to "
            "learn, such as LEAST(watch_s / length_s, 1), or choose kind: bce"
        )
    if isinstance(loss, Bce | Regression) and isinstance(retriever.score, NegativeDistance):
        raise ValueError(
            f"retriever.score is never above 0, so train.loss of kind {loss.kind} cannot say yes. Write score: {{kind: "
            f"dot}}, or choose kind: in_batch_softmax or bpr"
        )
    if isinstance(loss, Bce) and retriever.most <= 1:
        raise ValueError(
            f"retriever.score is at most {retriever.most:.2g} in the loss, so that bce never exceeds a probability of "
            f"{1 / (1 + math.exp(-retriever.most)):.2f}. Write score: {{kind: cosine, temperature: 0.1}}, or kind: dot "
            f"without output_norm: l2"
        )
