"""What the towers read, fitted once on the training window and applied anywhere: one code path for training and
serving.

Every trained table has row 0 for *none*: padding, an unknown value and a cold item alike. It is the zero vector and
stays it, because nothing in the training window could teach it better. Arrays with a line a user have one line more,
the last, which row -1 finds: nobody, for requests of users whom the log does not hold.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, assert_never

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float32, Int32, Int64, Integer, Shaped

from twofold.dataset.column_encoders import (
    Scale,
    bag_rows,
    clock_rows,
    fit_scale,
    log_days,
    moments,
    numbers,
    profiles,
    shares,
    value_rows,
)
from twofold.dataset.counters import Counters, load_counters
from twofold.dataset.examples import BATCH_ROWS, Examples
from twofold.dataset.histories import Histories, as_sequence, id_rows, seconds_until
from twofold.dataset.npy import map_array
from twofold.dataset.vocabulary import Vocabulary, build_vocabulary
from twofold.ragged import chunks
from twofold.recipe.features import (
    AgeFeature,
    BagFeature,
    CategoryFeature,
    ClusterFeature,
    CounterFeature,
    Features,
    HistoryFeature,
    IdFeature,
    ItemFeature,
    NumberFeature,
    ProfileFeature,
    SequenceFeature,
    TimeFeature,
    UserFeature,
    VectorFeature,
    feature_name,
)
from twofold.tables import HOUR_MS

ATTRIBUTES = (CategoryFeature, NumberFeature, ProfileFeature)
"""What reads a column of the users table that the recipe names."""
_OF_USERS = (IdFeature, *ATTRIBUTES)

Inputs = Mapping[str, np.ndarray]
"""One array a feature, by `feature_name`; the first dimension is the batch."""


@dataclass(frozen=True)
class FeatureState:
    """Everything fitted: enough, with the recipe's features, to turn a request into a tower's inputs.

    Vocabularies and scales go by `TOWER.NAME`: a column of both tables may be read by both towers.
    """

    features: Features
    utc_offset_h: int
    num_known_items: int
    vocabularies: Mapping[str, Vocabulary]
    scales: Mapping[str, Scale]

    def history_length(self, of: Literal["positives", "negatives"], *, sequences: bool = True) -> int:
        """How many events of this kind the user tower reads, in sequences or beside them; 0 if it does not."""
        kinds = HistoryFeature | ClusterFeature | SequenceFeature if sequences else HistoryFeature | ClusterFeature
        return max((f.max_length for f in self.features.user if isinstance(f, kinds) and f.events == of), default=0)

    def reads_times(self, of: Literal["positives", "negatives"]) -> bool:
        """Whether the user tower reads when the events of this kind were."""
        return any(isinstance(f, SequenceFeature) and f.events == of and f.time_bias for f in self.features.user)

    def reading(self, features: Features) -> "FeatureState":
        """The same of some of the features."""
        return replace(self, features=features)


@dataclass(frozen=True)
class ItemArrays:
    """The features of all catalogue items, one line an item row: those that the moment does not change, and what the
    others are computed from.
    """

    inputs: Inputs
    uploaded_at: Int64[np.ndarray, "items"] | None
    counters: Mapping[str, Counters]


@dataclass(frozen=True)
class UserArrays:
    """What the user tower reads besides histories: attributes a user row, counters, and the cluster of each item by
    table row.
    """

    attributes: Inputs
    counters: Mapping[str, Counters]
    clusters: Mapping[str, Int32[np.ndarray, "_"]]


@dataclass(frozen=True)
class Queries:
    """Who asks and when, and what they met before, as table rows (item row + 1), newest last, 0 where there is none.

    A history may be longer than a feature reads: the newest count. User row -1 is nobody of the log.
    """

    user_rows: Int64[np.ndarray, "batch"]
    at: Int64[np.ndarray, "batch"]
    positives: Int32[np.ndarray, "batch length"]
    negatives: Int32[np.ndarray, "batch length2"]
    at_is_known: Bool[np.ndarray, "batch"] | None = None
    """Where false (estimated times), hour and weekday are *none*. Default: known."""
    positives_at: Int64[np.ndarray, "batch length"] | None = None
    negatives_at: Int64[np.ndarray, "batch length2"] | None = None
    """When these events were, anything where there is none. Default: at the moment asked for."""


# --- fitted -----------------------------------------------------------------------------------------------------------


def fit_features(
    features: Features, *, items: pa.Table, users: pa.Table, train: Examples, num_known_items: int, utc_offset_h: int
) -> FeatureState:
    """Fits vocabularies and scales on the training window: its items and users, and its rows for what time changes.

    `items` is in row order, `users` are those of the training window alone.
    """
    vocabularies: dict[str, Vocabulary] = {}
    scales: dict[str, Scale] = {}
    known_items = items.slice(0, num_known_items)
    towers: tuple[tuple[str, pa.Table, tuple[UserFeature | ItemFeature, ...]], ...] = (
        ("user", users, features.user),
        ("item", known_items, features.item),
    )
    for tower, table, side in towers:
        for feature in side:
            key = f"{tower}.{feature_name(feature)}"
            match feature:
                case CategoryFeature(column=column):
                    vocabularies[key] = build_vocabulary(table[column], table[column])
                case BagFeature(column=column):
                    values = pc.list_flatten(table[column].combine_chunks())
                    vocabularies[key] = build_vocabulary(values, values)
                case NumberFeature(column=column, scale=scale):
                    scales[key] = fit_scale([numbers(table[column], is_log=scale == "log")])
                case AgeFeature():
                    scales[key] = fit_scale(_ages(moments(items["uploaded_at"]), train))
                case CounterFeature():
                    values = train.counted[feature_name(feature)]
                    scales[key] = fit_scale(values[block] for block in chunks(len(values), BATCH_ROWS))
                case HistoryFeature() | SequenceFeature() | ClusterFeature() | TimeFeature() | ProfileFeature():
                    pass
                case IdFeature() if tower == "user":
                    vocabularies[key] = build_vocabulary(table["user_id"], table["user_id"])
                case IdFeature() | VectorFeature():
                    pass
                case _:
                    assert_never(feature)
    return FeatureState(features, utc_offset_h, num_known_items, vocabularies, scales)


def counter_values(
    side: tuple[UserFeature | ItemFeature, ...],
    counters: Mapping[str, Counters],
    *,
    rows: Int64[np.ndarray, "batch"],
    at: Int64[np.ndarray, "batch"],
) -> Inputs:
    """What a tower's counters say of these users or items at these moments, not yet standardised."""
    return {
        feature_name(feature): counters[feature.key].values(
            rows, at, of=feature.statistic, hours=feature.hours, alpha=feature.smoothing
        )
        for feature in side
        if isinstance(feature, CounterFeature)
    }


# --- the item's side --------------------------------------------------------------------------------------------------


def item_arrays(
    state: FeatureState, items: pa.Table, *, vectors: Mapping[str, np.ndarray], counters: Mapping[str, Counters]
) -> ItemArrays:
    """The catalogue as arrays; `items` is in row order, and so are lines of `vectors` and `counters`."""
    inputs: dict[str, np.ndarray] = {}
    uploaded_at = None
    for feature in state.features.item:
        name = feature_name(feature)
        match feature:
            case IdFeature():
                inputs[name] = id_rows(np.arange(1, len(items) + 1, dtype=np.int32), state.num_known_items)
            case CategoryFeature() | NumberFeature():
                inputs[name] = _attribute(feature, items, state, tower="item")
            case BagFeature(column=column):
                inputs[name] = bag_rows(items[column], state.vocabularies[f"item.{name}"])
            case VectorFeature(vectors=of):
                inputs[name] = vectors[of]
            case AgeFeature():
                uploaded_at = moments(items["uploaded_at"])
            case CounterFeature():
                pass
            case _:
                assert_never(feature)
    return ItemArrays(inputs, uploaded_at, counters)


def item_inputs(
    state: FeatureState,
    items: ItemArrays,
    *,
    item_rows: Int64[np.ndarray, "batch"],
    at: Int64[np.ndarray, "batch"],
    counts: Inputs | None = None,
) -> Inputs:
    """What the item tower reads of these items at these moments (UTC milliseconds).

    `counts` is what `counted` says of them, where that is known already.
    """
    inputs = {name: values.take(item_rows, axis=0) for name, values in items.inputs.items()}
    if items.uploaded_at is not None:
        inputs["age"] = state.scales["item.age"].apply(log_days(items.uploaded_at[item_rows], at))
    if counts is None:
        counts = counter_values(state.features.item, items.counters, rows=item_rows, at=at)
    for feature in state.features.item:
        if isinstance(feature, CounterFeature):
            name = feature_name(feature)
            inputs[name] = state.scales[f"item.{name}"].apply(counts[name])
    return inputs


# --- the user's side --------------------------------------------------------------------------------------------------


def queries_at(
    state: FeatureState,
    positives: Histories,
    negatives: Histories,
    *,
    user_rows: Int64[np.ndarray, "batch"],
    at: Int64[np.ndarray, "batch"],
) -> Queries:
    """Users of the log who ask at these moments, knowing their events strictly before."""
    liked, disliked = positives.before(user_rows, at), negatives.before(user_rows, at)
    n, m = state.history_length("positives"), state.history_length("negatives")
    return Queries(
        user_rows=user_rows,
        at=at,
        positives=positives.last(user_rows, liked, n=n),
        negatives=negatives.last(user_rows, disliked, n=m),
        positives_at=positives.last_at(user_rows, liked, n=n) if state.reads_times("positives") else None,
        negatives_at=negatives.last_at(user_rows, disliked, n=m) if state.reads_times("negatives") else None,
    )


def user_inputs(
    state: FeatureState,
    users: UserArrays,
    queries: Queries,
    counts: Inputs | None = None,
    *,
    sequences: Inputs | None = None,
) -> Inputs:
    """What the user tower reads of a request. Histories are padded on the left, sequences on the right.

    `counts` is what `counted` says of the users at these moments, and `sequences` what `sequence_inputs` makes of many
    requests of one user, where they are known already.
    """
    if counts is None:
        counts = counter_values(state.features.user, users.counters, rows=queries.user_rows, at=queries.at)
    inputs: dict[str, np.ndarray] = {}
    for feature in state.features.user:
        name = feature_name(feature)
        match feature:
            case HistoryFeature(events=of, max_length=last, vectors=over):
                history = _newest(queries, of, last)
                inputs[name] = id_rows(history, state.num_known_items) if over is None else history
            case SequenceFeature(events=of, max_length=last):
                if sequences is None:
                    rows = id_rows(_newest(queries, of, last), state.num_known_items)
                    inputs |= as_sequence(name, rows, _seconds_ago(queries, of, last) if feature.time_bias else None)
            case ClusterFeature(events=of, max_length=last, num_clusters=k):
                inputs[name] = shares(users.clusters[cluster_key(feature)].take(_newest(queries, of, last)), k)
            case TimeFeature(part=of):
                hours = clock_rows(of, queries.at + state.utc_offset_h * HOUR_MS)
                inputs[name] = hours if queries.at_is_known is None else hours * queries.at_is_known
            case IdFeature() | CategoryFeature() | NumberFeature() | ProfileFeature():
                inputs[name] = users.attributes[name][queries.user_rows]
            case CounterFeature():
                inputs[name] = state.scales[f"user.{name}"].apply(counts[name])
            case _:
                assert_never(feature)
    return {**inputs, **(sequences or {})}


def cluster_key(feature: ClusterFeature) -> str:
    """The name of the clusters that a feature reads; two features may read the same."""
    return f"{feature.vectors}.{feature.num_clusters}"


def _newest(queries: Queries, of: Literal["positives", "negatives"], last: int) -> Int32[np.ndarray, "batch last"]:
    return _last(queries.positives if of == "positives" else queries.negatives, last)


def _seconds_ago(queries: Queries, of: Literal["positives", "negatives"], last: int) -> Int64[np.ndarray, "batch last"]:
    """Seconds from each of the newest until the request."""
    at = queries.positives_at if of == "positives" else queries.negatives_at
    return seconds_until(queries.at, np.repeat(queries.at[:, None], last, axis=1) if at is None else _last(at, last))


def _last(history: Integer[np.ndarray, "batch length"], n: int) -> Integer[np.ndarray, "batch n"]:
    if history.shape[1] < n:
        return np.pad(history, ((0, 0), (n - history.shape[1], 0)))
    return history[:, history.shape[1] - n :]


def _attribute(
    feature: IdFeature | CategoryFeature | NumberFeature | ProfileFeature,
    table: pa.Table,
    state: FeatureState,
    *,
    tower: str,
) -> Shaped[np.ndarray, "lines *width"]:
    key = f"{tower}.{feature_name(feature)}"
    match feature:
        case IdFeature():
            return value_rows(table[f"{tower}_id"], state.vocabularies[key])
        case CategoryFeature(column=column):
            return value_rows(table[column], state.vocabularies[key])
        case NumberFeature(column=column, scale=scale):
            return state.scales[key].apply(numbers(table[column], is_log=scale == "log"))
        case ProfileFeature(column=column, length=length):
            return profiles(table[column], length, name=column)


def _ages(uploaded_at: Int64[np.ndarray, "items"], rows: Examples) -> Iterator[Float32[np.ndarray, "_"]]:
    for block in chunks(len(rows), BATCH_ROWS):
        yield log_days(uploaded_at[rows.item_rows[block]], rows.at[block])


# --- on disk ----------------------------------------------------------------------------------------------------------


def save_features(state: FeatureState, folder: Path) -> None:
    """Writes `features.json` and a Parquet file a vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, vocabulary in state.vocabularies.items():
        vocabulary.save(folder / f"vocabulary.{name}.parquet")
    saved = {
        "features": state.features.model_dump(mode="json"),
        "utc_offset_h": state.utc_offset_h,
        "num_known_items": state.num_known_items,
        "vocabularies": sorted(state.vocabularies),
        "scales": {name: asdict(scale) for name, scale in sorted(state.scales.items())},
    }
    (folder / "features.json").write_text(json.dumps(saved, indent=1) + "\n")


def load_features(folder: Path) -> FeatureState:
    """Reads what `save_features` wrote."""
    saved = json.loads((folder / "features.json").read_text())
    return FeatureState(
        Features.model_validate(saved["features"]),
        saved["utc_offset_h"],
        saved["num_known_items"],
        {name: Vocabulary.load(folder / f"vocabulary.{name}.parquet") for name in saved["vocabularies"]},
        {name: Scale(scale["mean"], scale["std"]) for name, scale in saved["scales"].items()},
    )


def save_user_attributes(state: FeatureState, users: pa.Table, folder: Path) -> None:
    """Writes the columns that the user tower reads, a line a user, and nobody's; `users` is in row order."""
    for feature in state.features.user:
        if isinstance(feature, _OF_USERS):
            values = _attribute(feature, users, state, tower="user")
            nobody = np.zeros((1, *values.shape[1:]), values.dtype)
            np.save(folder / "user_arrays" / f"{feature_name(feature)}.npy", np.concatenate([values, nobody]))


def load_user_arrays(features: Features, folder: Path) -> UserArrays:
    """Maps what a dataset/ folder, or a bundle, holds of users."""
    arrays = folder / "user_arrays"
    attributes = [feature_name(f) for f in features.user if isinstance(f, _OF_USERS)]
    clusters = [cluster_key(f) for f in features.user if isinstance(f, ClusterFeature)]
    return UserArrays(
        {name: map_array(arrays / f"{name}.npy") for name in attributes},
        load_counters_of(features.user, folder),
        {key: map_array(arrays / f"clusters.{key}.npy") for key in clusters},
    )


def load_counters_of(side: tuple[UserFeature | ItemFeature, ...], folder: Path) -> dict[str, Counters]:
    """Maps the counters that a tower reads, by key."""
    return {f.key: load_counters(folder / "counters" / f.key) for f in side if isinstance(f, CounterFeature)}


def feature_names(state: FeatureState) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the user tower's and the item tower's inputs, in the recipe's order."""
    user, item = (
        tuple(feature_name(feature) for feature in side) for side in (state.features.user, state.features.item)
    )
    timed = (f"{feature_name(f)}.ages" for f in state.features.user if isinstance(f, SequenceFeature) and f.time_bias)
    return (*user, *timed), item
