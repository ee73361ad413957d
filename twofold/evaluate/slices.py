"""Slices: recall over groups of users and of items, and over the days of a window."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int64

from twofold.dataset.dataset import Dataset
from twofold.dataset.vocabulary import Vocabulary
from twofold.evaluate.results import FEW_USERS, Day, DaySection, SliceLine, SliceSection
from twofold.evaluate.significance import bootstrap, estimates, holm, json_number, paired_p_values
from twofold.evaluate.window import EvaluationWindow
from twofold.ragged import Ragged
from twofold.tables import DAY_MS, HOUR_MS

_ACTIVITY: Final = (1, 10, 50, 200)  # items met before the request
_AGES: Final = (1, 3, 7, 30)  # days since an item's first event
_TENTHS: Final = 10
_MOST_VALUES: Final = 12  # nobody reads a hundred lines


@dataclass(frozen=True)
class Slicing:
    """One way to cut what there was to find into groups: entry i is the group of pair i of `window.relevant`.

    -1 belongs to no group. A property of users gives all pairs of a user one group.
    """

    name: str
    group: Int64[np.ndarray, "pairs"]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        assert self.group.max(initial=-1) < len(self.names), f"slicing {self.name}: a group without a name"


def slice_recall(
    ranks: Int64[np.ndarray, "pairs"], relevant: Ragged, slicing: Slicing, *, k: int
) -> Float64[np.ndarray, "users groups"]:
    """Of what a user was to find in each group, the share that stands among the first k; NaN where there was nothing.

    The ranking is of the whole catalogue: a slice cuts what was to be found, never the candidates.
    """
    shape = (len(relevant.sizes), len(slicing.names))
    cell = relevant.lines * shape[1] + slicing.group
    kept = slicing.group >= 0
    wanted = np.bincount(cell[kept], minlength=shape[0] * shape[1]).reshape(shape)
    found = np.bincount(cell[kept & (ranks > 0) & (ranks <= k)], minlength=shape[0] * shape[1]).reshape(shape)
    recall: Float64[np.ndarray, "users groups"] = found / np.where(wanted > 0, wanted, np.nan)
    return recall


def evaluate_slices(
    ranks: Int64[np.ndarray, "pairs"],
    base_ranks: Int64[np.ndarray, "pairs"],
    *,
    relevant: Ragged,
    slicings: Sequence[Slicing],
    k: int,
    base: str,
) -> SliceSection:
    """One model against the one called `base` on every group, by recall@k; p-values after Holm over all of them.

    A group that nobody falls into is left out, and one of fewer than 100 users is marked.
    """
    parts = [
        (each, slice_recall(ranks, relevant, each, k=k), slice_recall(base_ranks, relevant, each, k=k))
        for each in slicings
    ]
    if not parts:
        return SliceSection(f"recall@{k}", base, ())
    ours, theirs = (np.concatenate([part[place] for part in parts], axis=1) for place in (1, 2))
    ours_e, theirs_e, gap = (estimates(bootstrap(values)) for values in (ours, theirs, ours - theirs))
    p_values = holm(paired_p_values(ours - theirs))
    names = [(each.name, name) for each in slicings for name in each.names]
    users = (~np.isnan(ours)).sum(axis=0)
    lines = tuple(
        SliceLine(
            by,
            name,
            int(users[at]),
            ours_e[at],
            theirs_e[at],
            gap[at],
            json_number(p_values[at]),
            bool(users[at] < FEW_USERS),
        )
        for at, (by, name) in enumerate(names)
        if users[at]
    )
    return SliceSection(f"recall@{k}", base, lines)


def evaluate_days(
    values: Mapping[str, Float64[np.ndarray, "users"]],
    query_at: Int64[np.ndarray, "users"],
    *,
    metric: str,
    utc_offset_h: int = 0,
) -> DaySection:
    """Rows on each day of the window, a user counting on the day it is asked; mean and spread over days, and whether
    the order of the rows is another on some day. Days on which nobody is judged are left out.
    """
    day = (query_at + utc_offset_h * HOUR_MS) // DAY_MS
    judged = ~np.isnan(np.stack(list(values.values()))).any(axis=0)
    days = []
    for each in np.unique(day[judged]):
        users = judged & (day == each)
        means = {name: float(value[users].mean()) for name, value in values.items()}
        days.append(Day(str(np.datetime64(int(each), "D")), int(users.sum()), means))
    table = np.array([list(each.values.values()) for each in days]).reshape(len(days), len(values))
    orders = {tuple(np.argsort(-line, kind="stable").tolist()) for line in table}
    spread = table.std(axis=0, ddof=1) if len(days) > 1 else np.full(len(values), np.nan)
    return DaySection(
        metric=metric,
        days=tuple(days),
        mean=dict(zip(values, table.mean(axis=0).tolist() if len(days) else [], strict=False)),
        std={name: json_number(value) for name, value in zip(values, spread, strict=True)},
        order_changes=len(orders) > 1,
    )


def slicings_of(
    dataset: Dataset,
    window: EvaluationWindow,
    *,
    tables: Sequence[pa.Table],
    columns: Sequence[str],
    declared: Sequence[str] = (),
) -> tuple[Slicing, ...]:
    """Groups by activity, popularity, age and length; by those of the `columns` that have 2 to 12 values; and by what
    is `declared`, the less common of more than 12 values as one group.

    `tables` hold user_id or item_id and the columns, lines in any order. Users without an event before the request
    and items without a training event are groups of their own: the cold ones.
    """
    items, users = window.relevant.values, window.relevant.lines
    met = window.seen.sizes[users]
    activity = _ranges("items met", np.array(_ACTIVITY), cold="cold: none met")
    first_at = np.full(window.num_items, np.iinfo(np.int64).max)
    np.minimum.at(first_at, dataset.events.item_rows, dataset.events.at)
    age = (window.query_at[users] - first_at[items]) // DAY_MS
    found = [
        Slicing("user activity", np.searchsorted(_ACTIVITY, met, side="right"), activity),
        Slicing("item age, days", np.searchsorted(_AGES, age, side="right"), _ranges("days", np.array(_AGES))),
        _by_popularity(dataset, window),
        *_by_length(dataset, items),
    ]
    for table in tables:
        for column in (name for name in dict.fromkeys([*columns, *declared]) if name in table.column_names):
            of_items = "item_id" in table.column_names
            ids, rows = (dataset.items, items) if of_items else (dataset.users, window.user_rows[users])
            of_pairs = _by_column(table, column, ids, rows=rows, key="item_id" if of_items else "user_id")
            found += [each for each in of_pairs if len(each.names) <= _MOST_VALUES or column in declared]
    return tuple(_fewer(each) for each in found)


def _by_popularity(dataset: Dataset, window: EvaluationWindow) -> Slicing:
    """Tenths of the known items, by training events: the first holds the least popular."""
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
    """The groups of a column; none where it has a single value."""
    if pa.types.is_nested(table.schema.field(column).type):
        return []
    group, names = _values_of(table, column, ids, key=key)
    return [Slicing(column, group[rows], names)] if len(names) > 1 else []


def _fewer(slicing: Slicing) -> Slicing:
    """The commonest groups, and the others as one, where there are more than anybody reads."""
    group, names = slicing.group, slicing.names
    if len(names) <= _MOST_VALUES:
        return slicing
    common = np.argsort(-np.bincount(group[group >= 0], minlength=len(names)), kind="stable")[: _MOST_VALUES - 1]
    place = np.full(len(names) + 1, len(common))
    place[common], place[-1] = np.arange(len(common)), -1  # the last is found by -1, which is not known
    return Slicing(slicing.name, place[group], (*(names[each] for each in common), "other values"))


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
) -> tuple[Int64[np.ndarray, "ids"], tuple[str, ...]]:
    """The number of each row's value, -1 where it is not known, and the values."""
    coded = table[column].cast(pa.string()).combine_chunks().dictionary_encode()
    group = np.full(len(ids), -1, np.int64)
    line = ids.rows_of(table[key])
    there = line >= 0
    group[line[there]] = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)[there]
    return group, tuple(coded.dictionary.to_pylist())


def _ranges(unit: str, edges: np.ndarray, *, cold: str | None = None) -> tuple[str, ...]:
    """Names of the ranges between edges, as `np.searchsorted(edges, value, side="right")` numbers them."""
    shown = [f"{float(f'{edge:.4g}'):,g}" for edge in edges.tolist()]
    middle = (f"{first} to {end} {unit}" for first, end in zip(shown, shown[1:], strict=False))
    return (cold or f"below {shown[0]} {unit}", *middle, f"from {shown[-1]} {unit}")
