"""Features section of a recipe: the inputs of the user tower and of the item tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, assert_never

from pydantic import Field, model_validator

from twofold.recipe.id_rows import IdRows
from twofold.recipe.section import Name, Section

Dim = Annotated[int, Field(ge=1, le=1024)]
Expansion = Annotated[int, Field(ge=0, le=1024)]


class Vectors(Section):
    """Precomputed item vectors, such as embeddings of images or audio: a list column of the items table, or a file of
    `data.vectors`.
    """

    pca: int | None = Field(default=None, ge=1, le=4096)
    """Number of principal components to keep, fitted on the items of the training window. `null` means no PCA."""


# --- user features ----------------------------------------------------------------------------------------------------


class HistoryFeature(Section):
    """Pooled vectors of the items of the user's most recent events, strictly before the request."""

    kind: Literal["history"]
    events: Literal["positives", "negatives"]
    """Events that enter: those of `prepare.positive` or of `prepare.negative`."""
    max_length: int = Field(default=100, ge=1, le=10_000)
    """Maximum number of events; the most recent are kept."""
    vectors: str | None = None
    """Name of one of `features.vectors`. `null` means a trained embedding of the item ids."""
    share_item_embedding: bool = False
    """`true`: uses the item tower's embedding table of ids; `false`: trains a separate table."""
    pool: Literal["mean", "windows", "concat"] = "mean"
    """Pooling: `mean` of all; `windows`, the last item beside the means of the last 3, 10, 30 and 100; or `concat`, all
    vectors side by side, newest last.
    """

    @model_validator(mode="after")
    def _one_source(self) -> HistoryFeature:
        if self.vectors is not None and self.share_item_embedding:
            raise ValueError(
                f"vectors: {self.vectors} is read in place of the embedding table of ids: delete vectors or "
                f"share_item_embedding"
            )
        return self


class SequenceFeature(Section):
    """Causal transformer over the items of the user's most recent positives in their order, strictly before the request
    (SASRec, Kang & McAuley, ICDM 2018). One pass trains all positions of a user's sequence.
    """

    kind: Literal["sequence"]
    max_length: int = Field(default=200, ge=1, le=10_000)
    """Maximum number of positives; the most recent are kept."""
    share_item_embedding: bool = True
    """`true`: uses the item tower's embedding table of ids; `false`: trains a separate table."""
    num_layers: int = Field(default=2, ge=1, le=64)
    """Number of transformer layers."""
    num_heads: int = Field(default=2, ge=1, le=64)
    """Number of attention heads; retriever.dim must be a multiple of twice this number."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Dropout rate of the input vectors and of each layer's residual update."""
    time_bias: bool = False
    """Adds an attention bias that depends on the time between events, and between the last events and the request. A
    history that is sent with a request has no timestamps and counts as just seen. Training examples that are not events
    of the sequence itself cost one more pass each.
    """


class ClusterFeature(Section):
    """Shares of the user's most recent events in each cluster of items (k-means on the training window)."""

    kind: Literal["clusters"]
    events: Literal["positives", "negatives"]
    """Events that enter: those of `prepare.positive` or of `prepare.negative`."""
    vectors: str
    """Name of one of `features.vectors`, which are clustered."""
    max_length: int = Field(default=100, ge=1, le=10_000)
    """Maximum number of events; the most recent are kept."""
    num_clusters: int = Field(default=18, ge=2, le=4096)
    """Number of clusters."""

    @property
    def clusters_key(self) -> str:
        """Name of the clusters that the feature reads; two features may read the same ones."""
        return f"{self.vectors}.{self.num_clusters}"


class TimeFeature(Section):
    """Embedding of the hour of day or day of week of the request, in the time zone `prepare.time_zone`."""

    kind: Literal["time"]
    part: Literal["hour", "weekday"]
    """Part of the timestamp: hour of day (0 to 23), or day of week."""
    dim: Dim = 8
    """Width of the embedding."""


class ProfileFeature(Section):
    """List column of the users table, used unchanged as a vector; NULL becomes zeros."""

    kind: Literal["profile"]
    column: str
    """Name of the list column."""
    length: int = Field(ge=2, le=4096)
    """Length of every list."""


# --- item features ----------------------------------------------------------------------------------------------------


class BagFeature(Section):
    """Mean of the trained embeddings of the values in a list column, or in a text with separators, such as tags or
    genres.
    """

    kind: Literal["bag"]
    column: str
    """Name of the column of the items table."""
    sep: str | None = Field(default=None, min_length=1, max_length=8)
    """Separator of the values of a text: `"|"` for pop|rock, `">"` for Home > Kitchen. Spaces around a value are
    removed. `null` means that the column holds lists.
    """
    dim: Dim = 16
    """Width of the embeddings."""


class AgeFeature(Section):
    """Age of the item at the request: log(1 + days since `uploaded_at`), standardized on the training examples."""

    kind: Literal["age"]
    hidden_dim: Expansion = 0
    """Width of a hidden layer with ReLU for this number alone; 0 means the number enters unchanged."""


class PopularityFeature(Section):
    """Popularity of the item: log(1 + its positives in the training window), standardized. It is the same at every
    request; where ages are known, a counter tells more.
    """

    kind: Literal["popularity"]
    hidden_dim: Expansion = 0
    """Width of a hidden layer with ReLU for this number alone; 0 means the number enters unchanged."""


class VectorFeature(Section):
    """Precomputed vector of the item, used unchanged."""

    kind: Literal["vector"]
    vectors: str
    """Name of one of `features.vectors`."""


# --- features of either tower -----------------------------------------------------------------------------------------


class IdFeature(Section):
    """Trained embedding of each item id, or user id. Ids outside the training window share one `unknown` embedding. A
    user tower with an id feature treats a history sent with a request as that of an unknown user.
    """

    kind: Literal["id"]
    unknown_rate: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training examples in which the item is treated as new: its id, and category and list values that no
    other item has, are replaced by `unknown`, which trains these embeddings, so that new items can be found. 0 means
    the `unknown` embeddings stay zero.
    """
    num_buckets: int | None = Field(default=None, ge=1)
    """Number of rows of the table: the n-th known id, in rising order, has row n modulo this number, so that several
    ids share a row. `null` means a row for each id.
    """


class CategoryFeature(Section):
    """Trained embedding of each value of a column of the users or items table. Values outside the training window share
    one.
    """

    kind: Literal["category"]
    column: str
    """Name of the column."""
    dim: Dim = 16
    """Width of the embeddings."""


class NumberFeature(Section):
    """Number column of the users or items table, standardized on the training window; NULL becomes the mean."""

    kind: Literal["number"]
    column: str
    """Name of the column."""
    scale: Literal["standard", "log"]
    """`log` takes log(1 + x) first: for numbers of 0 or more that span orders of magnitude, such as lengths."""
    hidden_dim: Expansion = 0
    """Width of a hidden layer with ReLU for this number alone; 0 means the number enters unchanged."""


class CounterFeature(Section):
    """Rate or mean of `prepare.counters` over the completed hours before the request, smoothed and standardized.

    The value is (sum + smoothing · prior) / (events + smoothing), where the prior is the rate of the training window.
    """

    kind: Literal["counter"]
    key: str
    """Key of `prepare.counters`: user_id, item_id, or another column."""
    statistic: str
    """Name of the rate or mean; or `events`, which is log(1 + number of events), without smoothing."""
    hours: int | None = Field(default=None, ge=1, le=24 * 3660)
    """Number of completed hours that are counted, such as 24, 72 or 168. `null` means all before the request."""
    smoothing: float = Field(default=20.0, gt=0)
    """Number of events that the prior counts as. 20 is a guess, not measured."""
    hidden_dim: Expansion = 0
    """Width of a hidden layer with ReLU for this number alone; 0 means the number enters unchanged."""


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
    IdFeature
    | CategoryFeature
    | BagFeature
    | NumberFeature
    | AgeFeature
    | PopularityFeature
    | VectorFeature
    | CounterFeature,
    Field(discriminator="kind"),
]


_OF_A_COLUMN = (CategoryFeature, BagFeature, NumberFeature, ProfileFeature)


class Features(Section):
    """Inputs of each tower."""

    vectors: Mapping[Name, Vectors] = {}
    """Precomputed item vectors by name, for the key `vectors` of a feature."""
    user: tuple[UserFeature, ...] = Field(min_length=1)
    """Features of the user tower. Without an id, it serves new users as well as known ones."""
    item: tuple[ItemFeature, ...] = Field(min_length=1)
    """Features of the item tower."""
    item_ids: IdRows | None = None
    """Items with a row of their own in every table of item ids, of histories too. `null` means all of training."""
    user_ids: IdRows | None = None
    """Users with a row of their own in the table of {kind: id}. `null` means all of training."""

    @model_validator(mode="after")
    def _no_duplicates(self) -> Features:
        for tower in ("user", "item"):
            by_name: dict[str, UserFeature | ItemFeature] = {}
            for feature in getattr(self, tower):
                other = by_name.setdefault(name := feature_name(feature), feature)
                if other is not feature:
                    raise ValueError(_same_name(tower, name, other, feature))
        return self

    @model_validator(mode="after")
    def _shared_embedding_exists(self) -> Features:
        has_id = any(isinstance(feature, IdFeature) for feature in self.item)
        for feature in self.user:
            if isinstance(feature, HistoryFeature | SequenceFeature) and feature.share_item_embedding and not has_id:
                raise ValueError(
                    f"{feature_name(feature)} shares the embedding of the item tower's id, and that tower reads none: "
                    f"add {{kind: id}} to features.item, or write share_item_embedding: false"
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


def _same_name(tower: str, name: str, first: UserFeature | ItemFeature, second: UserFeature | ItemFeature) -> str:
    """Returns the message for two features of one name, and the way out if one of them is named by its column."""
    if first.kind == second.kind:
        return f"the {tower} tower reads {name!r} twice; delete one"
    column = next((each.column for each in (second, first) if isinstance(each, _OF_A_COLUMN)), None)
    way_out = f", or rename the column, as data.columns: {{{column}_of_log: {column}}}" if column is not None else ""
    return (
        f"the {tower} tower has two features called {name!r}, of kind: {first.kind} and of kind: {second.kind}; delete "
        f"one{way_out}"
    )


def reads_time(feature: UserFeature | ItemFeature) -> bool:
    """Returns whether the value depends on the time of the request, beyond the events before it."""
    return isinstance(feature, TimeFeature | AgeFeature | CounterFeature) or (
        isinstance(feature, SequenceFeature) and feature.time_bias
    )


def history_length(feature: UserFeature, events: Literal["positives", "negatives"]) -> int:
    """Returns how many of a user's most recent positives or negatives a feature reads; 0 if none."""
    if isinstance(feature, HistoryFeature | ClusterFeature):
        return feature.max_length if feature.events == events else 0
    return feature.max_length if isinstance(feature, SequenceFeature) and events == "positives" else 0


def feature_name(feature: UserFeature | ItemFeature) -> str:
    """Returns the name of a feature in arrays, in the drawing of the model and in the ONNX graph."""
    match feature:
        case HistoryFeature():
            parts = [feature.events, "" if feature.pool == "mean" else feature.pool, feature.vectors or ""]
            return "_".join(part for part in parts if part)
        case SequenceFeature():
            return "positives_sequence"
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
        case IdFeature() | AgeFeature() | PopularityFeature():
            return feature.kind
        case _:
            assert_never(feature)
