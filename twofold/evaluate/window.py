"""A window of the log → the users to judge and what they did: the same for every retriever and every baseline."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from twofold.dataset.dataset import Dataset
from twofold.dataset.vocabulary import Vocabulary
from twofold.evaluate.baselines import Interactions
from twofold.evaluate.catalogue import EvaluationWindow
from twofold.evaluate.evaluate_window import EvaluationOptions
from twofold.evaluate.slices import Slicing
from twofold.evaluate.watched import Watched, fit_gain, gains
from twofold.ragged import Ragged
from twofold.recipe.features import CategoryFeature, reads_time
from twofold.tables import DAY_MS, SPLITS, Split

_ACTIVITY: Final = (1, 10, 50, 200)  # items met before the request
_AGES: Final = (1, 3, 7, 30)  # days since an item's first event
_TENTHS: Final = 10
_MOST_VALUES: Final = 12  # nobody reads a hundred lines


def evaluation_window(dataset: Dataset, split: Split) -> EvaluationWindow:
    """Every user of the window, asked once, at their first impression in it.

    What is *seen* are all events strictly before that moment, of every kind and window, so the ranking is of items
    that are new to the user; positives of the window on items already seen do not count as relevant.
    """
    rows, num_items = dataset.rows[split], len(dataset.items)
    users, first = np.unique(rows.user_rows, return_index=True)
    query_at = np.asarray(rows.at)[first]
    line = np.searchsorted(users, rows.user_rows)
    counts = dataset.events.before(users, query_at)
    seen_items, _ = dataset.events.slices(users, counts)
    seen = np.unique(np.repeat(np.arange(len(users)), counts) * num_items + seen_items)
    candidates, place = np.unique(line * num_items + rows.item_rows, return_inverse=True)
    labels = np.zeros(len(candidates), bool)
    labels[place[rows.label]] = True
    relevant = np.setdiff1d(candidates[labels], seen, assume_unique=True)
    return EvaluationWindow(
        name=split,
        user_rows=users,
        query_at=query_at,
        seen=_ragged(seen, len(users), num_items),
        relevant=_ragged(relevant, len(users), num_items),
        candidates=_ragged(candidates, len(users), num_items),
        labels=labels,
        num_items=num_items,
        is_cold=np.arange(num_items) >= dataset.items.num_known,
        track="query_time" if any(map(reads_time, dataset.features.features.user)) else "time_free",
    )


def positives_before(dataset: Dataset, window: EvaluationWindow, *, first_at: int | None) -> Interactions:
    """All positive events that the log held when the judged window began, at `first_at`: the baselines may learn them.

    Where users have windows of their own (None), it is what each judged user did before, and all that others did.
    """
    positives = dataset.positives
    until = np.full(len(dataset.users), np.iinfo(np.int64).max if first_at is None else first_at)
    if first_at is None:
        until[window.user_rows] = window.query_at
    owner = np.repeat(np.arange(len(dataset.users)), np.diff(positives.offsets))
    keep = np.flatnonzero(np.asarray(positives.at) < until[owner])
    return Interactions(
        user_rows=owner[keep],
        item_rows=np.asarray(positives.item_rows)[keep].astype(np.int64),
        at=np.asarray(positives.at)[keep],
        num_users=len(dataset.users),
        num_items=len(dataset.items),
    )


def details_of(
    dataset: Dataset,
    window: EvaluationWindow,
    *,
    tables: Sequence[pa.Table],
    with_target: bool,
    utc_offset_h: int,
    columns: Sequence[str] = (),
) -> EvaluationOptions:
    """What else to ask of a window: slices by what the features call a category and by `columns`, watch time, days.

    See `slicings_of` for `tables`, `watched_rows` for `with_target`.
    """
    features = dataset.features.features
    read = [each.column for each in (*features.user, *features.item) if isinstance(each, CategoryFeature)]
    return EvaluationOptions(
        slicings=slicings_of(dataset, window, tables=tables, columns=read, declared=columns),
        groups=dict(_item_groups(dataset, tables, columns)),
        watched=watched_rows(dataset, window, with_target=with_target),
        to_find=digest_of_relevant(dataset, window),
        utc_offset_h=utc_offset_h,
    )


def watched_rows(dataset: Dataset, window: EvaluationWindow, *, with_target: bool) -> Watched | None:
    """The window's impressions of known watch time and length, their gain fitted on training; None if there are none.

    `with_target`: the model's score is a number that it was taught, the rows' `target`.
    """
    rows, train = dataset.rows[_split_of(window)], dataset.rows["train"]
    known, learned = (
        np.isfinite(part.watch_s) & np.isfinite(part.length_s) & (part.length_s > 0) for part in (rows, train)
    )
    if not known.any():
        return None
    line = np.searchsorted(window.user_rows, rows.user_rows[known])  # rows are sorted by user
    offsets = np.searchsorted(line, np.arange(len(window.user_rows) + 1)).astype(np.int64)
    watch, length = np.asarray(rows.watch_s[known]), np.asarray(rows.length_s[known])
    scale = fit_gain(np.asarray(train.watch_s[learned]), np.asarray(train.length_s[learned]))
    target = np.asarray(rows.target[known]) if with_target else None
    return Watched(Ragged(rows.item_rows[known], offsets), watch, length, gains(scale, watch, length), target)


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


def digest_of_relevant(dataset: Dataset, window: EvaluationWindow) -> str:
    """SHA-256 of the pairs to be found, by ids: equal for runs that ask the same, however they number their rows."""
    pairs = pa.table(
        {
            "user_id": dataset.users.ids.take(pa.array(window.user_rows[window.relevant.lines])).cast(pa.string()),
            "item_id": dataset.items.ids.take(pa.array(window.relevant.values)).cast(pa.string()),
        }
    ).sort_by([("user_id", "ascending"), ("item_id", "ascending")])
    digest = hashlib.sha256()
    for column in pairs.columns:
        digest.update("\n".join(column.to_pylist()).encode())
    return digest.hexdigest()


def _split_of(window: EvaluationWindow) -> Split:
    return next(split for split in SPLITS if split == window.name)


def _by_popularity(dataset: Dataset, window: EvaluationWindow) -> Slicing:
    """Tenths of the known items, by training events: the first holds the least popular."""
    events = np.bincount(dataset.rows["train"].item_rows, minlength=window.num_items)
    known = np.flatnonzero(~window.is_cold)
    tenth = np.full(window.num_items, _TENTHS)
    tenth[known[np.argsort(events[known], kind="stable")]] = np.arange(len(known)) * _TENTHS // max(len(known), 1)
    names = (*(f"tenth {number + 1} of items" for number in range(_TENTHS)), "cold: no training event")
    return Slicing("item popularity", tenth[window.relevant.values], names)


def _by_length(dataset: Dataset, items: Int64[np.ndarray, "pairs"]) -> list[Slicing]:
    length = np.full(len(dataset.items), np.nan, np.float32)
    for rows in dataset.rows.values():
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


def _item_groups(
    dataset: Dataset, tables: Sequence[pa.Table], columns: Sequence[str]
) -> Iterator[tuple[str, Int64[np.ndarray, "items"]]]:
    """The columns that items have, with a number for the value of each item row, -1 where it is not known."""
    for table in tables:
        if "item_id" in table.column_names:
            for column in dict.fromkeys(columns):
                if column in table.column_names:
                    yield column, _values_of(table, column, dataset.items, key="item_id")[0]


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


def _ragged(keys: Int64[np.ndarray, "pairs"], users: int, num_items: int) -> Ragged:
    """Sorted keys user · N + item → one list a user."""
    return Ragged(keys % num_items, np.searchsorted(keys // num_items, np.arange(users + 1)).astype(np.int64))
