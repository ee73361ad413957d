"""Retriever section of a recipe: the model that finds candidates, and how it scores them."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from twofold.recipe.features import CategoryFeature, Features, HistoryFeature, IdFeature, SequenceFeature
from twofold.recipe.section import Section

# --- scores -----------------------------------------------------------------------------------------------------------


LARGEST_SCALE = 100.0
"""Largest factor of the cosine in the loss if the temperature is learned, as in CLIP."""


class Cosine(Section):
    """Cosine similarity: both vectors are normalized to length 1. The served score is the cosine itself."""

    kind: Literal["cosine"]
    temperature: float = Field(default=0.1, gt=0)
    """Divides the cosine in the loss; a smaller value makes the softmax sharper. On the shipped log, 0.05 loses 0.035
    of recall@100 against 0.1, and 0.2 loses 0.007.
    """
    learn_temperature: bool = False
    """`true`: trains the temperature with the weights, from `temperature` on and not below 0.01 (CLIP, Radford et al.,
    ICML 2021, section 2.4).
    """


class Dot(Section):
    """Inner product. An item with a long vector scores higher for all users, so the model can store popularity."""

    kind: Literal["dot"]


class NegativeDistance(Section):
    """Negative squared distance, -‖user - item‖². An item with a long vector scores lower for all users."""

    kind: Literal["negative_distance"]


Score = Annotated[Cosine | Dot | NegativeDistance, Field(discriminator="kind")]


# --- models -----------------------------------------------------------------------------------------------------------


class TwoTower(Section):
    """Two-tower model: a user encoder and an item encoder with separate features, whose output vectors are compared."""

    kind: Literal["two_tower", "best"]
    """`best` also fits item-kNN, EASE and iALS, each alone and with a recency prior, and serves what is best on the
    validation window: the towers, one of these, or a weighted sum of the scores of towers, item-kNN, EASE, iALS and
    recent popularity. The weights of the sum are fitted on the window, and models that gain nothing are left out; the
    vectors of a sum are those of its parts, one after the other. The exact scores of item-kNN may be added to the best
    of these and, with `index.include_seen`, how often the user saw an item lately. The report says what is served. The
    user features must hold a history of positives.
    """
    dim: int = Field(default=64, ge=1, le=4096)
    """Width of the id embeddings and of the output vectors of both towers."""
    hidden: tuple[Annotated[int, Field(ge=1, le=8192)], ...] = ()
    """Widths of the hidden layers (with ReLU) of both towers. An empty list means one linear layer."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout rate of the hidden layers."""
    output_norm: Literal["none", "l2", "batch_norm"] = "none"
    """Normalization of the output vectors before they are compared: `l2` scales each to length 1, `batch_norm`
    standardizes each component over a batch. The cosine score always applies `l2`.
    """
    score: Score = Cosine(kind="cosine")
    """Similarity of a user vector and an item vector, in training, evaluation, the index and serving."""
    ensemble: int = Field(default=1, ge=1, le=16)
    """Number of pairs of towers that are trained one after the other, with consecutive seeds, and whose scores are
    added. The stored vectors become as many times wider. On Amazon Toys, two pairs gain a fifth of NDCG@10. Runs with
    `train.seed` 0 and 1 share pairs: with two pairs, compare runs of seeds 0, 2 and 4.
    """
    start_from: Literal["ials"] | None = None
    """`ials`: the embeddings of item ids and of histories of positives begin as item vectors of iALS, fitted on the
    positives of the training window with the hyperparameters that `kind: best` chooses. On seven of nine logs the
    towers alone then find more on validation, in fewer epochs; with the peers added, what is served gains on three of
    them and loses on three. It costs where nearly all that users want is new: towers then learn the ids that they know
    instead of the attributes. `null` means that the embeddings begin at random.
    """
    separate_towers_by: str | None = None
    """Column of the items, such as language: each of its values gets a pair of towers of its own, trained on the
    examples of its items only, and the best items of all pairs are ranked together. The stored vectors become as many
    times wider as the column has values. Each value needs at least one batch of examples; items with a value that is
    new after training use the towers of the value with the most items. `null` means one pair of towers.
    """
    route_users: bool = False
    """`true`: users are recommended items of their own value of `separate_towers_by` alone, as from a model for each
    language. Their value is that of the column of the same name of the users, which features.user must read as a
    category, so that requests tell it; a user without a known value is recommended items of all values.
    """

    @model_validator(mode="after")
    def _score_is_a_product(self) -> TwoTower:
        adds_up = {"separate_towers_by": self.separate_towers_by is not None, "ensemble": self.ensemble > 1}
        for field, is_set in adds_up.items():
            if is_set and isinstance(self.score, NegativeDistance):
                raise ValueError(
                    f"{field}: {getattr(self, field)} needs a score that is a product of vectors, and "
                    f"negative_distance is not one. Write score: {{kind: cosine}} or {{kind: dot}}, or delete {field}"
                )
        return self

    @model_validator(mode="after")
    def _start_has_constants(self) -> TwoTower:
        if self.start_from is not None and self.kind != "best":
            raise ValueError(
                f"start_from: {self.start_from} needs the hyperparameters of iALS, which only kind: best chooses. "
                f"Write kind: best, or delete start_from"
            )
        return self

    @model_validator(mode="after")
    def _routes_have_towers(self) -> TwoTower:
        if self.route_users and (self.separate_towers_by is None or not isinstance(self.score, Cosine)):
            raise ValueError(
                "route_users chooses among separate towers by a score of at most 1: write separate_towers_by: language "
                "and score: {kind: cosine}, or delete route_users"
            )
        if self.route_users and self.kind == "best":
            raise ValueError(
                "route_users: true needs kind: two_tower, because kind: best may serve item-kNN, EASE or iALS, which "
                "know no routes. Write kind: two_tower, or delete route_users"
            )
        return self

    @model_validator(mode="after")
    def _dropout_has_layers(self) -> TwoTower:
        if self.dropout > 0 and not self.hidden:
            raise ValueError("dropout acts on hidden layers, and there are none: write hidden: [128] or delete dropout")
        return self

    @property
    def most(self) -> float:
        """Largest logit that the score can give in the loss."""
        match self.score:
            case Cosine(temperature=temperature, learn_temperature=learn):
                return LARGEST_SCALE if learn else 1 / temperature
            case NegativeDistance():
                return 0.0
            case Dot():
                return 1.0 if self.output_norm == "l2" else math.inf


class Ials(Section):
    """Implicit alternating least squares (iALS; Hu, Koren, Volinsky, ICDM 2008). Item vectors are solved from the
    positives of the training window; the vector of a user is solved from the user's positives so far. Items without a
    training positive score 0.

    It reads no other features: `features` must be {user: [{kind: history, events: positives}], item: [{kind: id}]}.
    Of `train` it reads only the seed, `refit` and, for the metric that it logs, `best_epoch_by`.
    """

    kind: Literal["ials"]
    dim: int = Field(default=64, ge=1, le=1024)
    """Width of the vectors. The cost of each user and item grows with its cube."""
    regularization: float = Field(default=300.0, gt=0)
    """L2 penalty on every vector, not scaled by the size of the log; with `frequency_power`, the mean of the penalties.
    On the validation day of the shipped log, 10, 300 and 400 gave a recall@100 of .335, .383 and .379.
    """
    frequency_power: float = Field(default=0.0, ge=0, le=1)
    """The penalty of a user or an item grows with its number of positives to this power. On sparse logs of a shop, 1 is
    far better than 0; on the shipped log, 0 is best.
    """
    alpha: float = Field(default=40.0, gt=0)
    """Confidence of a positive: it has weight 1 + alpha · weight in the loss, where all other pairs have weight 1."""
    iterations: int = Field(default=15, ge=1, le=1000)
    """Number of alternations: each solves all users, then all items."""


Retriever = Annotated[TwoTower | Ials, Field(discriminator="kind")]


def check_reads(retriever: Ials, features: Features) -> None:
    """Raises ValueError if the recipe has features that iALS cannot read."""
    match features.user, features.item:
        case [HistoryFeature(events="positives", vectors=None, pool="mean")], [IdFeature()]:
            return
    raise ValueError(
        f"a retriever of kind {retriever.kind} reads the positive history and item ids, and no other feature: write "
        f"features: {{user: [{{kind: history, events: positives, max_length: 500}}], item: [{{kind: id}}]}}, or choose "
        f"kind: two_tower"
    )


def check_best(retriever: TwoTower, features: Features) -> None:
    """Raises ValueError if peers shall be served and the recipe has no history for them to read."""
    has_history = any(
        isinstance(each, HistoryFeature) and each.events == "positives" and each.vectors is None and each.pool == "mean"
        for each in features.user
    )
    if retriever.kind == "best" and not has_history:
        raise ValueError(
            "retriever.kind: best may serve item-kNN, EASE or iALS, which read the positive history: add to "
            "features.user {kind: history, events: positives, max_length: 100}, or choose kind: two_tower"
        )


def check_routes(retriever: TwoTower, features: Features) -> None:
    """Raises ValueError if users shall be routed by a column that their tower does not read."""
    column = retriever.separate_towers_by
    is_read = any(isinstance(each, CategoryFeature) and each.column == column for each in features.user)
    if retriever.route_users and not is_read:
        raise ValueError(
            f"retriever.route_users reads the {column} of a user, which no request tells: add to features.user {{kind: "
            f"category, column: {column}}}, or delete route_users"
        )


def check_heads(retriever: TwoTower, features: Features) -> None:
    """Raises ValueError if the attention heads of a sequence cannot divide its vectors into pairs of numbers."""
    for feature in features.user:
        if isinstance(feature, SequenceFeature) and retriever.dim % (2 * feature.num_heads):
            raise ValueError(
                f"a sequence with num_heads: {feature.num_heads} needs a retriever.dim that is a multiple of "
                f"{2 * feature.num_heads}, and it is {retriever.dim}"
            )
