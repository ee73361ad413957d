"""Inputs of the towers: a batch of users or items as arrays, computed with the fitted features.

Arrays with one row per user have one row more at the end, which row -1 reads: a user who is not in the log.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, assert_never

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int32, Int64, Integer, Shaped

from twofold.dataset.column_encoders import (
    bag_rows,
    clock_rows,
    log_days,
    numbers,
    popularity,
    profiles,
    shares,
    timestamps,
    value_lists,
    value_rows,
)
from twofold.dataset.counters import Counters, load_tower_counters
from twofold.dataset.features import FeatureState, single_from
from twofold.dataset.histories import Histories, as_sequence, seconds_until
from twofold.dataset.npy import map_array
from twofold.digest import file_stem
from twofold.local_time import local_ms
from twofold.ragged import Ragged
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
    PopularityFeature,
    ProfileFeature,
    SequenceFeature,
    TimeFeature,
    UserFeature,
    VectorFeature,
    feature_name,
)

ATTRIBUTES = (CategoryFeature, NumberFeature, ProfileFeature)
"""Kinds of features that read a column of the users table that the recipe names."""
_STORED_PER_USER = (IdFeature, *ATTRIBUTES)

Inputs = Mapping[str, np.ndarray]
"""One array per feature, by `feature_name`; the first dimension is the batch."""
LIKED: Final = "positives of known items"
"""Further input beside the feature `positives` where items share rows: rows of the items themselves, for peers."""


@dataclass(frozen=True)
class ItemArrays:
    """Item features of the whole catalogue, one row per item row: inputs that do not depend on the time, and the arrays
    from which the others are computed.

    `bags` are table rows of each item's list of values, padded in a batch alone: one list may have thousands of values.
    """

    inputs: Inputs
    bags: Mapping[str, Ragged]
    uploaded_at: Int64[np.ndarray, "items"] | None
    counters: Mapping[str, Counters]


@dataclass(frozen=True)
class UserArrays:
    """Arrays that the user tower reads besides histories: attributes per user row, counters, and the cluster of each
    item by table row.
    """

    attributes: Inputs
    counters: Mapping[str, Counters]
    clusters: Mapping[str, Int32[np.ndarray, "_"]]


@dataclass(frozen=True)
class Queries:
    """Users at request times, with the items they have seen as table rows (item row + 1), newest last, padded with 0.

    A history may be longer than a feature reads: the newest events count. User row -1 is a user who is not in the log.
    """

    user_rows: Int64[np.ndarray, "batch"]
    at: Int64[np.ndarray, "batch"]
    positives: Int32[np.ndarray, "batch _"]
    negatives: Int32[np.ndarray, "batch _"]
    at_is_known: Bool[np.ndarray, "batch"] | None = None
    """False where the time is estimated: hour and weekday are then *none*. `None` means all times are known."""
    positives_at: Int64[np.ndarray, "batch _"] | None = None
    """Times of the positives, any number where there is padding. `None` means the time of the request."""


# --- counters ---------------------------------------------------------------------------------------------------------


def counter_values(
    side: tuple[UserFeature | ItemFeature, ...],
    counters: Mapping[str, Counters],
    *,
    rows: Int64[np.ndarray, "batch"],
    at: Int64[np.ndarray, "batch"],
) -> Inputs:
    """Returns the counter features of a tower for these users or items at these times, not yet standardized."""
    return {
        feature_name(feature): counters[feature.key].values(
            rows, at, statistic=feature.statistic, hours=feature.hours, smoothing=feature.smoothing
        )
        for feature in side
        if isinstance(feature, CounterFeature)
    }


# --- items ------------------------------------------------------------------------------------------------------------


def item_arrays(
    state: FeatureState, items: pa.Table, *, vectors: Mapping[str, np.ndarray], counters: Mapping[str, Counters]
) -> ItemArrays:
    """Computes the arrays of the catalogue; `items`, `vectors` and `counters` are in the order of the item rows."""
    inputs: dict[str, np.ndarray] = {}
    bags: dict[str, Ragged] = {}
    uploaded_at = None
    for feature in state.features.item:
        name = feature_name(feature)
        match feature:
            case IdFeature():
                inputs[name] = state.id_table("item", feature).rows(np.arange(1, len(items) + 1, dtype=np.int32))
            case CategoryFeature() | NumberFeature():
                inputs[name] = _attribute(feature, items, state, tower="item")
            case BagFeature(column=column, sep=sep):
                bags[name] = bag_rows(value_lists(items[column], sep), state.vocabularies[f"item.{name}"])
            case VectorFeature(vectors=vectors_name):
                inputs[name] = vectors[vectors_name]
            case PopularityFeature():
                inputs[name] = state.scales[f"item.{name}"].apply(popularity(items))
            case AgeFeature():
                uploaded_at = timestamps(items["uploaded_at"])
            case CounterFeature():
                pass
            case _:
                assert_never(feature)
    return ItemArrays(inputs, bags, uploaded_at, counters)


def item_inputs(
    state: FeatureState,
    items: ItemArrays,
    *,
    item_rows: Int64[np.ndarray, "batch"],
    at: Int64[np.ndarray, "batch"],
    counts: Inputs | None = None,
    is_new: Bool[np.ndarray, "batch"] | None = None,
) -> Inputs:
    """Returns the inputs of the item tower for these items at these times (UTC milliseconds).

    `counts` are the results of `counter_values`; `None` means they are computed here. Items that `is_new` marks are
    described as if they were new: without all that is fitted or counted on the item alone, which is its id, values of
    categories and lists that no other item has, and counters of itself or of such a value. `None` marks none.
    """
    inputs = {name: values.take(item_rows, axis=0) for name, values in items.inputs.items()}
    inputs |= {name: lists.of(item_rows).padded() for name, lists in items.bags.items()}
    if is_new is not None:
        inputs |= _as_new(state, inputs, is_new)
    if items.uploaded_at is not None:
        inputs["age"] = state.scales["item.age"].apply(log_days(items.uploaded_at[item_rows], at))
    if counts is None:
        counts = _counts_of_items(state, items, rows=item_rows, at=at, is_new=is_new)
    for feature in state.features.item:
        if isinstance(feature, CounterFeature):
            name = feature_name(feature)
            inputs[name] = state.scales[f"item.{name}"].apply(counts[name])
    return inputs


def _as_new(state: FeatureState, inputs: Inputs, is_new: Bool[np.ndarray, "batch"]) -> dict[str, np.ndarray]:
    """Returns the embedding rows of a batch, those of new items without what is fitted on the item alone."""
    masked = {}
    for feature in state.features.item:
        first, name = single_from(state, "item", feature), feature_name(feature)
        if first is not None:
            rows = inputs[name]
            is_masked = is_new.reshape(-1, *[1] * (rows.ndim - 1)) & (rows >= first)
            masked[name] = np.where(is_masked, 0, rows).astype(rows.dtype)
    return masked


def _counts_of_items(
    state: FeatureState,
    items: ItemArrays,
    *,
    rows: Int64[np.ndarray, "batch"],
    at: Int64[np.ndarray, "batch"],
    is_new: Bool[np.ndarray, "batch"] | None,
) -> Inputs:
    """Returns the counter features of items; those that count a new item alone have counted nothing."""
    side = state.features.item
    counts = counter_values(side, items.counters, rows=rows, at=at)
    if is_new is None or not counts:
        return counts
    nothing = counter_values(side, items.counters, rows=np.full_like(rows, -1), at=at)
    key_of = {feature_name(feature): feature.key for feature in side if isinstance(feature, CounterFeature)}
    return {
        name: np.where(is_new & items.counters[key_of[name]].is_single[rows], nothing[name], values)
        for name, values in counts.items()
    }


# --- users ------------------------------------------------------------------------------------------------------------


def queries_at(
    state: FeatureState,
    positives: Histories,
    negatives: Histories,
    *,
    user_rows: Int64[np.ndarray, "batch"],
    at: Int64[np.ndarray, "batch"],
) -> Queries:
    """Returns queries of users of the log at these times, with their events strictly before."""
    liked, disliked = positives.before(user_rows, at), negatives.before(user_rows, at)
    n, m = state.history_length("positives"), state.history_length("negatives")
    return Queries(
        user_rows=user_rows,
        at=at,
        positives=positives.last(user_rows, liked, n=n),
        negatives=negatives.last(user_rows, disliked, n=m),
        positives_at=positives.last_at(user_rows, liked, n=n) if state.reads_times else None,
    )


def user_inputs(
    state: FeatureState,
    users: UserArrays,
    queries: Queries,
    counts: Inputs | None = None,
    *,
    sequences: Inputs | None = None,
) -> Inputs:
    """Returns the inputs of the user tower. Histories are padded on the left, sequences on the right.

    `counts` are the results of `counter_values`, `sequences` those of `sequence_inputs` for many examples of one user;
    `None` means they are computed here.
    """
    if counts is None:
        counts = counter_values(state.features.user, users.counters, rows=queries.user_rows, at=queries.at)
    inputs: dict[str, np.ndarray] = {}
    for feature in state.features.user:
        name = feature_name(feature)
        match feature:
            case HistoryFeature(events=events, max_length=length):
                inputs |= _history_inputs(state, feature, _newest(queries, events, length))
            case SequenceFeature(max_length=length):
                if sequences is None:
                    rows = state.id_table("user", feature).rows(_newest(queries, "positives", length))
                    ages = _seconds_ago(queries, length) if feature.time_bias else None
                    inputs |= as_sequence(name, rows, ages)
            case ClusterFeature(events=events, max_length=length, num_clusters=k):
                inputs[name] = shares(users.clusters[feature.clusters_key].take(_newest(queries, events, length)), k)
            case TimeFeature(part=part):
                times = clock_rows(part, local_ms(queries.at, state.time_zone))
                inputs[name] = times if queries.at_is_known is None else times * queries.at_is_known
            case IdFeature() | CategoryFeature() | NumberFeature() | ProfileFeature():
                inputs[name] = users.attributes[name][queries.user_rows]
            case CounterFeature():
                inputs[name] = state.scales[f"user.{name}"].apply(counts[name])
            case _:
                assert_never(feature)
    return {**inputs, **(sequences or {})}


def _history_inputs(state: FeatureState, feature: HistoryFeature, history: Int32[np.ndarray, "batch _"]) -> Inputs:
    name, table = feature_name(feature), state.id_table("user", feature)
    if feature.vectors is not None:
        return {name: history}
    own = {LIKED: history * (history <= table.num_known)} if name == "positives" and not table.is_plain else {}
    return {name: table.rows(history), **own}


def save_user_attributes(state: FeatureState, users: pa.Table, folder: Path) -> None:
    """Writes the columns that the user tower reads, one row per user row, and a last row of zeros for an unknown user.

    `users` is in the order of the user rows.
    """
    for feature in state.features.user:
        if isinstance(feature, _STORED_PER_USER):
            values = _attribute(feature, users, state, tower="user")
            unknown = np.zeros((1, *values.shape[1:]), values.dtype)
            np.save(
                folder / "user_arrays" / f"{file_stem(feature_name(feature))}.npy", np.concatenate([values, unknown])
            )


def load_user_arrays(features: Features, folder: Path) -> UserArrays:
    """Maps the user arrays of a dataset/ folder or of a bundle."""
    arrays = folder / "user_arrays"
    attributes = [feature_name(f) for f in features.user if isinstance(f, _STORED_PER_USER)]
    clusters = [f.clusters_key for f in features.user if isinstance(f, ClusterFeature)]
    return UserArrays(
        {name: map_array(arrays / f"{file_stem(name)}.npy") for name in attributes},
        load_tower_counters(features.user, folder),
        {key: map_array(arrays / f"clusters.{key}.npy") for key in clusters},
    )


def _newest(queries: Queries, events: Literal["positives", "negatives"], n: int) -> Int32[np.ndarray, "batch _"]:
    return _last(queries.positives if events == "positives" else queries.negatives, n)


def _seconds_ago(queries: Queries, n: int) -> Int64[np.ndarray, "batch _"]:
    """Returns the seconds from each of the newest positives until the request."""
    at = queries.positives_at
    return seconds_until(queries.at, np.repeat(queries.at[:, None], n, axis=1) if at is None else _last(at, n))


def _last(history: Integer[np.ndarray, "batch _"], n: int) -> Integer[np.ndarray, "batch _"]:
    if history.shape[1] < n:
        return np.pad(history, ((0, 0), (n - history.shape[1], 0)))
    return history[:, history.shape[1] - n :]


def _attribute(
    feature: IdFeature | CategoryFeature | NumberFeature | ProfileFeature,
    table: pa.Table,
    state: FeatureState,
    *,
    tower: str,
) -> Shaped[np.ndarray, "_ ..."]:
    key = f"{tower}.{feature_name(feature)}"
    match feature:
        case IdFeature():
            return state.id_table("user", feature).rows(value_rows(table["user_id"], state.vocabularies[key]))
        case CategoryFeature(column=column):
            return value_rows(table[column], state.vocabularies[key])
        case NumberFeature(column=column, scale=scale):
            return state.scales[key].apply(numbers(table[column], is_log=scale == "log", name=column))
        case ProfileFeature(column=column, length=length):
            return profiles(table[column], length, name=column)
