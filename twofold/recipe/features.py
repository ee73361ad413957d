"""Parts of a recipe: what each tower reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, assert_never

from pydantic import Field, model_validator

from twofold.recipe.section import Section, is_unasked

Dim = Annotated[int, Field(ge=1, le=1024)]
Expansion = Annotated[int, Field(ge=0, le=1024)]


class Vectors(Section):
    """Vectors of items that were made elsewhere, of their pictures or sounds: a list column, or a file of
    `data.vectors`.
    """

    pca: int | None = Field(default=None, ge=1, le=4096)
    """Reduced to so many components, fitted on the items of the training window."""


# --- the user's -------------------------------------------------------------------------------------------------------


class HistoryFeature(Section):
    """The user's last events of one kind, strictly before the moment asked for, as vectors of their items."""

    kind: Literal["history"]
    events: Literal["positives", "negatives"]
    """Which events: those of the positive or of the negative rule."""
    max_length: int = Field(default=100, ge=1, le=10_000)
    """How many of them, the newest."""
    vectors: str | None = None
    """One of `features.vectors`; default: vectors of the items' ids, trained."""
    share_item_embedding: bool = False
    """true: reads the embedding table of the item tower's id feature; false: trains a table of its own."""
    pool: Literal["mean", "windows", "concat"] = "mean"
    """One mean; the last item and the means of the last 3, 10, 30, 100; or all, newest last, side by side."""

    @model_validator(mode="after")
    def _one_source(self) -> HistoryFeature:
        if self.vectors is not None and self.share_item_embedding:
            raise ValueError(
                f"vectors: {self.vectors} is read in place of the embedding table of ids: delete vectors or "
                f"share_item_embedding"
            )
        return self


class SequenceFeature(Section):
    """The user's last events of one kind, strictly before the moment asked for, read in their order by a causal
    transformer; all of a user's moments are learnt from in one pass.
    """

    kind: Literal["sequence"]
    events: Literal["positives", "negatives"]
    """Which events: those of the positive or of the negative rule."""
    max_length: int = Field(default=200, ge=1, le=10_000)
    """How many of them, the newest."""
    share_item_embedding: bool = True
    """true: reads the embedding table of the item tower's id feature; false: trains a table of its own."""
    num_layers: int = Field(default=2, ge=1, le=64)
    """Layers."""
    num_heads: int = Field(default=2, ge=1, le=64)
    """Of attention; retriever.dim must be a multiple of twice as many."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Share of what each layer adds, and of what it reads first, that a training step leaves out."""
    time_bias: bool = Field(default=False, exclude_if=is_unasked)
    """Attention reads how long ago each event was when the next one came, and when the request comes: a posted history,
    which has no times, counts as met then. Rows that are learnt from and are no event of the sequence itself (those of
    other kinds) cost a pass each.
    """


class ClusterFeature(Section):
    """Which share of the user's last events fell into each of num_clusters clusters of items (k-means on items of
    the training window).
    """

    kind: Literal["clusters"]
    events: Literal["positives", "negatives"]
    """Which events: those of the positive or of the negative rule."""
    vectors: str
    """One of `features.vectors`."""
    max_length: int = Field(default=100, ge=1, le=10_000)
    """How many of them, the newest."""
    num_clusters: int = Field(default=18, ge=2, le=4096)
    """Clusters."""


class TimeFeature(Section):
    """Hour of day or day of week of the request, in the time zone of `prepare.utc_offset_h`, as an embedding."""

    kind: Literal["time"]
    part: Literal["hour", "weekday"]
    """0 to 23, or Monday to Sunday."""
    dim: Dim = 8


class ProfileFeature(Section):
    """A list of numbers that the users table holds of every user, as it is; NULL is zeros."""

    kind: Literal["profile"]
    column: str
    length: int = Field(ge=2, le=4096)
    """How many numbers each list holds."""


# --- the item's -------------------------------------------------------------------------------------------------------


class BagFeature(Section):
    """The mean of the trained vectors of a list column's values: tags, genres."""

    kind: Literal["bag"]
    column: str
    dim: Dim = 16


class AgeFeature(Section):
    """log(1 + days) between `uploaded_at` of the item and the moment asked for, standardised on the training rows."""

    kind: Literal["age"]
    hidden_dim: Expansion = 0
    """Width of a layer with ReLU of its own in between; 0: the number as it is."""


class VectorFeature(Section):
    """The item's own vector, one of `features.vectors`, as it is."""

    kind: Literal["vector"]
    vectors: str


# --- either's ---------------------------------------------------------------------------------------------------------


class IdFeature(Section):
    """One trained vector an item, or a user. Those that the training window does not hold share one `unknown` row. A
    user tower with it answers a posted history as it answers for an unknown user.
    """

    kind: Literal["id"]
    unknown_rate: float = Field(default=0.0, ge=0, lt=1)
    """Share of the rows of a training step that are read as the `unknown` one, whose vector is then trained: what cold
    items are found by. 0: it is zero.
    """


class CategoryFeature(Section):
    """One trained vector a value of a column of the users or items table. Values the training window does not hold
    share one.
    """

    kind: Literal["category"]
    column: str
    dim: Dim = 16


class NumberFeature(Section):
    """A column of the users or items table, standardised on the training window (`log`: after log(1 + x)); NULL becomes
    the mean.
    """

    kind: Literal["number"]
    column: str
    scale: Literal["standard", "log"]
    """`log` for what spans orders of magnitude, as lengths do."""
    hidden_dim: Expansion = 0
    """Width of a layer with ReLU of its own in between; 0: the number as it is."""


class CounterFeature(Section):
    """A rate or mean of `prepare.counters` over the hours before the current one, smoothed, standardised.

    (sum + smoothing · prior) / (events + smoothing), prior being the rate of the whole training window.
    """

    kind: Literal["counter"]
    key: str
    """The key: user_id, item_id, or another column of `prepare.counters`."""
    statistic: str
    """The rate or mean; or `events`: log(1 + how many), which has no prior."""
    hours: int | None = Field(default=None, ge=1, le=24 * 3660)
    """Completed hours that count: 24, 72 (3 days), 168 (7), 360 (15). Default: all before."""
    smoothing: float = Field(default=20.0, gt=0)
    """How many events the prior weighs. A guess, not measured."""
    hidden_dim: Expansion = 0
    """Width of a layer with ReLU of its own in between; 0: the number as it is."""


UserFeature = Annotated[
    HistoryFeature
    | SequenceFeature
    | ClusterFeature
    | TimeFeature
    | ProfileFeature
    | IdFeature
    | CategoryFeature
    | NumberFeature
    | CounterFeature,
    Field(discriminator="kind"),
]
ItemFeature = Annotated[
    IdFeature | CategoryFeature | BagFeature | NumberFeature | AgeFeature | VectorFeature | CounterFeature,
    Field(discriminator="kind"),
]


class Features(Section):
    """What each tower reads."""

    vectors: Mapping[str, Vectors] = {}
    """Vectors of items by name, for the key `vectors` of a feature."""
    user: tuple[UserFeature, ...] = Field(min_length=1)
    """The user tower's. Without an id it serves users it never saw as well as the others."""
    item: tuple[ItemFeature, ...] = Field(min_length=1)
    """The item tower's."""

    @model_validator(mode="after")
    def _no_twins(self) -> Features:
        for tower in ("user", "item"):
            names = [feature_name(feature) for feature in getattr(self, tower)]
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"the {tower} tower reads {name!r} twice; delete one")
        return self

    @model_validator(mode="after")
    def _shared_table(self) -> Features:
        has_id = any(isinstance(feature, IdFeature) for feature in self.item)
        for feature in self.user:
            if isinstance(feature, HistoryFeature | SequenceFeature) and feature.share_item_embedding and not has_id:
                raise ValueError(
                    f"{feature_name(feature)} shares the table of the item tower's id, and that tower reads none: add "
                    f"{{kind: id}} to features.item, or write share_item_embedding: false"
                )
        return self

    @model_validator(mode="after")
    def _known_vectors(self) -> Features:
        for feature in (*self.user, *self.item):
            match feature:
                case HistoryFeature(vectors=str(name)) | ClusterFeature(vectors=name) | VectorFeature(vectors=name):
                    if name not in self.vectors:
                        raise ValueError(
                            f"{feature_name(feature)} reads the vectors {name!r}, which features.vectors does not "
                            f"list (it lists: {', '.join(self.vectors) or 'none'})"
                        )
        return self


def with_features(features: Features, user: tuple[UserFeature, ...], item: tuple[ItemFeature, ...]) -> Features:
    """These and further ones, each once; ValueError where two of one name are not alike."""
    sides: dict[str, tuple[UserFeature | ItemFeature, ...]] = {}
    for tower, old, new in (("user", features.user, user), ("item", features.item, item)):
        of_name = {feature_name(feature): feature for feature in old}
        for feature in new:
            if of_name.setdefault(feature_name(feature), feature) != feature:
                raise ValueError(
                    f"the {tower}'s {feature_name(feature)} is asked for twice, and not alike: write it in "
                    f"ranker.features as it stands in features.{tower}"
                )
        sides[tower] = tuple(of_name.values())
    return Features.model_validate({"vectors": features.vectors, **sides})


def reads_time(feature: UserFeature) -> bool:
    """Whether the moment of the request changes what is read, beside which events are known by then."""
    return isinstance(feature, TimeFeature | CounterFeature) or (
        isinstance(feature, SequenceFeature) and feature.time_bias
    )


def feature_name(feature: UserFeature | ItemFeature) -> str:
    """The name a feature goes by in arrays, in the drawing of the model and in the served graph."""
    match feature:
        case HistoryFeature():
            parts = [feature.events, "" if feature.pool == "mean" else feature.pool, feature.vectors or ""]
            return "_".join(part for part in parts if part)
        case SequenceFeature():
            return f"{feature.events}_sequence"
        case ClusterFeature():
            return f"{feature.events}_clusters_{feature.vectors}"
        case TimeFeature():
            return feature.part
        case VectorFeature():
            return feature.vectors
        case CategoryFeature() | BagFeature() | NumberFeature() | ProfileFeature():
            return feature.column
        case CounterFeature():
            return f"{feature.key}_{feature.statistic}_{'life' if feature.hours is None else f'{feature.hours}h'}"
        case IdFeature() | AgeFeature():
            return feature.kind
        case _:
            assert_never(feature)
