"""Slices: recall over groups of users and of items."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int64

from twofold.dataset.dataset import Dataset
from twofold.dataset.vocabulary import Vocabulary
from twofold.evaluate.results import FEW_USERS, SliceLine, SliceSection
from twofold.evaluate.significance import estimates, holm, json_number, mean_intervals
from twofold.evaluate.window import EvaluationWindow
from twofold.ragged import Ragged
from twofold.tables import DAY_MS

_ACTIVITY: Final = (1, 10, 50, 200)  # items seen before the request
_AGES: Final = (1, 3, 7, 30)  # days since an item's first event
_TENTHS: Final = 10
_MAX_GROUPS: Final = 12  # more groups make a table too long to read


@dataclass(frozen=True)
class Slicing:
    """A grouping of the relevant pairs: entry i is the group of pair i of `window.relevant`, -1 for none.

    A property of users gives all pairs of a user the same group.
    """

    name: str
    group: Int64[np.ndarray, "pairs"]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        assert self.group.max(initial=-1) < len(self.names), f"slicing {self.name}: a group without a name"


def slice_recall(
    ranks: Int64[np.ndarray, "pairs"], relevant: Ragged, slicing: Slicing, *, k: int
) -> Float64[np.ndarray, "users _"]:
    """Returns recall@k per user and group: the share of the user's relevant items of the group among the first k.

    The ranking is of the whole catalogue: a slice selects relevant items, never candidates. NaN if the user has no
    relevant item in the group.
    """
    shape = (len(relevant.sizes), len(slicing.names))
    cell = relevant.lines * shape[1] + slicing.group
    has_group = slicing.group >= 0
    relevant_items = np.bincount(cell[has_group], minlength=shape[0] * shape[1]).reshape(shape)
    hits = np.bincount(cell[has_group & (ranks > 0) & (ranks <= k)], minlength=shape[0] * shape[1]).reshape(shape)
    return hits / np.where(relevant_items > 0, relevant_items, np.nan)


def evaluate_slices(
    ranks: Int64[np.ndarray, "pairs"],
    base_ranks: Int64[np.ndarray, "pairs"],
    *,
    relevant: Ragged,
    slicings: Sequence[Slicing],
    k: int,
    base: str,
) -> SliceSection:
    """Compares a model with the one named `base` on every group, by recall@k.

    Empty groups are left out, and so are slicings of which a single group has pairs: that group is the whole window.
    Groups of fewer than 100 users are marked and not tested; the p-values of the others are corrected by Holm.
    """
    if not (slicings := [each for each in slicings if len(np.unique(each.group[each.group >= 0])) > 1]):
        return SliceSection(f"recall@{k}", base, ())
    ours, theirs = (
        np.concatenate([slice_recall(each, relevant, slicing, k=k) for slicing in slicings], axis=1)
        for each in (ranks, base_ranks)
    )
    gaps = mean_intervals(ours - theirs)
    model, other, gap = (estimates(each) for each in (mean_intervals(ours), mean_intervals(theirs), gaps))
    users = (~np.isnan(ours)).sum(axis=0)
    p_values = holm(np.where(users < FEW_USERS, np.nan, gaps.p_value))
    names = ((each.name, name) for each in slicings for name in each.names)
    lines = tuple(
        SliceLine(
            by,
            name,
            int(users[at]),
            model[at],
            other[at],
            gap[at],
            json_number(p_values[at]),
            is_small=bool(users[at] < FEW_USERS),
        )
        for at, (by, name) in enumerate(names)
        if users[at]
    )
    return SliceSection(f"recall@{k}", base, lines)


def slicings_of(
    dataset: Dataset,
    window: EvaluationWindow,
    *,
    tables: Sequence[pa.Table],
    columns: Sequence[str],
    declared: Sequence[str] = (),
) -> tuple[Slicing, ...]:
    """Groups relevant pairs by the user's activity, by the item's popularity, age and length, and by columns of both.

    `columns` count if they have 2 to 12 values; `declared` ones always, the rarest of more than 12 values as one group.
    `tables` contain user_id or item_id and the columns, rows in any order. Where users and items have a column of the
    same name, such as language, the users' is named user.language. Users without an event before the request and items
    without a training event are groups of their own: the cold ones.
    """
    items, users = window.relevant.values, window.relevant.lines
    num_seen = window.seen.sizes[users]
    activity = _ranges("items seen", np.array(_ACTIVITY), cold="cold: none seen")
    first_at = np.full(window.num_items, np.iinfo(np.int64).max)
    np.minimum.at(first_at, dataset.events.item_rows, dataset.events.at)
    age = (window.query_at[users] - first_at[items]) // DAY_MS
    slicings = [
        Slicing("user activity", np.searchsorted(_ACTIVITY, num_seen, side="right"), activity),
        Slicing("item age, days", np.searchsorted(_AGES, age, side="right"), _ranges("days", np.array(_AGES))),
        _by_popularity(dataset, window),
        *_by_length(dataset, items),
    ]
    for table in tables:
        for column in (name for name in dict.fromkeys([*columns, *declared]) if name in table.column_names):
            is_items = "item_id" in table.column_names
            ids, rows = (dataset.items, items) if is_items else (dataset.users, window.user_rows[users])
            of_pairs = _by_column(table, column, ids, rows=rows, key="item_id" if is_items else "user_id")
            if not is_items and sum(column in each.column_names for each in tables) > 1:
                of_pairs = [replace(each, name=f"user.{column}") for each in of_pairs]
            slicings += [each for each in of_pairs if len(each.names) <= _MAX_GROUPS or column in declared]
    return tuple(_limit_groups(each) for each in slicings)


def _by_popularity(dataset: Dataset, window: EvaluationWindow) -> Slicing:
    """Groups known items into tenths by number of training events, the least popular first."""
    events = np.bincount(dataset.examples["train"].item_rows, minlength=window.num_items)
    known = np.flatnonzero(~window.is_cold)
    tenth = np.full(window.num_items, _TENTHS)
    tenth[known[np.argsort(events[known], kind="stable")]] = np.arange(len(known)) * _TENTHS // max(len(known), 1)
    names = (*(f"tenth {number + 1} of items" for number in range(_TENTHS)), "cold: no training event")
    return Slicing("item popularity", tenth[window.relevant.values], names)


def _by_length(dataset: Dataset, items: Int64[np.ndarray, "pairs"]) -> list[Slicing]:
    length = np.full(len(dataset.items), np.nan, np.float32)
    for rows in dataset.examples.values():
        known = np.isfinite(rows.length_s)
        length[rows.item_rows[known]] = rows.length_s[known]
    of_pairs = length[items]
    known_pairs = np.isfinite(of_pairs)
    if not known_pairs.any():
        return []
    edges = np.unique(np.quantile(of_pairs[known_pairs], np.arange(1, _TENTHS) / _TENTHS))
    group = np.where(known_pairs, np.searchsorted(edges, of_pairs, side="right"), -1)
    return [Slicing("item length, s", group, _ranges("s", edges))]


def _by_column(
    table: pa.Table, column: str, ids: Vocabulary, *, rows: Int64[np.ndarray, "pairs"], key: str
) -> list[Slicing]:
    """Returns the groups of a column; none if it has a single value."""
    if pa.types.is_nested(table.schema.field(column).type):
        return []
    group, names = _values_of(table, column, ids, key=key)
    return [Slicing(column, group[rows], names)] if len(names) > 1 else []


def _limit_groups(slicing: Slicing) -> Slicing:
    """Keeps the largest groups and joins the others into one if there are more than `_MAX_GROUPS`."""
    group, names = slicing.group, slicing.names
    if len(names) <= _MAX_GROUPS:
        return slicing
    common = np.argsort(-np.bincount(group[group >= 0], minlength=len(names)), kind="stable")[: _MAX_GROUPS - 1]
    new_group = np.full(len(names) + 1, len(common))
    new_group[common], new_group[-1] = np.arange(len(common)), -1  # index -1, an unknown group, stays -1
    return Slicing(slicing.name, new_group[group], (*(names[each] for each in common), "other values"))


def item_groups(
    dataset: Dataset, tables: Sequence[pa.Table], columns: Sequence[str]
) -> dict[str, Int64[np.ndarray, "items"]]:
    """Returns, for each of the `columns` that items have, the number of every item's value; -1 where it is unknown."""
    return {
        column: _values_of(table, column, dataset.items, key="item_id")[0]
        for table in tables
        if "item_id" in table.column_names
        for column in dict.fromkeys(columns)
        if column in table.column_names
    }


def _values_of(
    table: pa.Table, column: str, ids: Vocabulary, *, key: str
) -> tuple[Int64[np.ndarray, "_"], tuple[str, ...]]:
    """Returns the number of each id's value, -1 if it is unknown, and the values."""
    coded = table[column].cast(pa.string()).combine_chunks().dictionary_encode()
    group = np.full(len(ids), -1, np.int64)
    rows = ids.rows_of(table[key])
    is_known = rows >= 0
    group[rows[is_known]] = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)[is_known]
    return group, tuple(coded.dictionary.to_pylist())


def _ranges(unit: str, edges: np.ndarray, *, cold: str | None = None) -> tuple[str, ...]:
    """Returns names of the ranges between edges, as `np.searchsorted(edges, value, side="right")` numbers them."""
    shown = [f"{float(f'{edge:.4g}'):,g}" for edge in edges.tolist()]
    middle = (f"{first} to {end} {unit}" for first, end in zip(shown, shown[1:], strict=False))
    return (cold or f"below {shown[0]} {unit}", *middle, f"from {shown[-1]} {unit}")
