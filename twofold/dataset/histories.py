"""Histories of all users as slices of one array: a history of any length costs two offsets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, Integer, Shaped

from twofold.dataset.npy import map_array
from twofold.ragged import Ragged
from twofold.rule_counts import Meetings

SECOND_MS: Final = 1000


@dataclass(frozen=True)
class Histories:
    """Item rows of all users one after another, each user's oldest first: user u owns `[offsets[u], offsets[u + 1])`.

    The arrays may be memory-mapped.
    """

    item_rows: Int32[np.ndarray, "events"]
    at: Int64[np.ndarray, "events"]
    offsets: Int64[np.ndarray, "_"]

    def before(
        self, user_rows: Int64[np.ndarray, "queries"], at: Int64[np.ndarray, "queries"]
    ) -> Int64[np.ndarray, "queries"]:
        """Counts each user's events strictly before `at`: those that a query at that time may use."""
        first = self.offsets[user_rows]
        return np.asarray(search_slices(self.at, first, self.offsets[user_rows + 1], at) - first)

    def last(
        self, user_rows: Int64[np.ndarray, "queries"], counts: Integer[np.ndarray, "queries"], *, n: int
    ) -> Int32[np.ndarray, "queries _"]:
        """Returns the last n of each user's first `counts` events as table rows (item row + 1), newest last, padded
        with 0 on the left.
        """
        taken = _ending_at(self.item_rows, self.offsets[user_rows] + counts, n)
        taken += 1
        # Values of the user before are multiplied by 0: np.where takes five times as long.
        taken *= _windows(np.repeat([False, True], n), np.minimum(counts, n), n)
        return taken

    def last_before(
        self, user_rows: Int64[np.ndarray, "queries"], at: Int64[np.ndarray, "queries"], *, n: int
    ) -> Int32[np.ndarray, "queries _"]:
        """Returns the last n of each user's events strictly before `at`, as `last` does."""
        return self.last(user_rows, self.before(user_rows, at), n=n)

    def last_at(
        self, user_rows: Int64[np.ndarray, "queries"], counts: Integer[np.ndarray, "queries"], *, n: int
    ) -> Int64[np.ndarray, "queries _"]:
        """Returns the times of the events that `last` returns; any value where `last` returns 0."""
        return _ending_at(self.at, self.offsets[user_rows] + counts, n)

    def only(self, keep: Bool[np.ndarray, "events"]) -> "Histories":
        """Returns the histories of the same users, with only the events where `keep` is true."""
        kept = np.concatenate([[0], np.cumsum(keep)])
        return Histories(self.item_rows[keep], self.at[keep], kept[self.offsets].astype(np.int64))

    def slices(
        self, user_rows: Int64[np.ndarray, "queries"], counts: Int64[np.ndarray, "queries"]
    ) -> tuple[Int32[np.ndarray, "_"], Int64[np.ndarray, "queries+1"]]:
        """Returns each user's first `counts` item rows, one user after another, and the offsets of the users."""
        positions, offsets = self._positions(user_rows, counts)
        return self.item_rows[positions], offsets

    def _positions(
        self, user_rows: Int64[np.ndarray, "queries"], counts: Int64[np.ndarray, "queries"]
    ) -> tuple[Int64[np.ndarray, "_"], Int64[np.ndarray, "queries+1"]]:
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        shift = np.repeat(self.offsets[user_rows] - offsets[:-1], counts)
        return np.arange(offsets[-1]) + shift, offsets

    def meetings(self, user_rows: Int64[np.ndarray, "queries"], at: Int64[np.ndarray, "queries"]) -> Meetings:
        """Returns each user's events strictly before `at`."""
        positions, offsets = self._positions(user_rows, self.before(user_rows, at))
        return Meetings(Ragged(self.item_rows[positions], offsets), self.at[positions], at)

    def save(self, folder: Path, name: str) -> None:
        """Writes three arrays that `load_histories` maps."""
        for part in ("item_rows", "at", "offsets"):
            np.save(folder / f"{name}.{part}.npy", getattr(self, part))


def load_histories(folder: Path, name: str) -> Histories:
    """Maps the arrays that `Histories.save` wrote; nothing is read until it is used."""
    item_rows, at, offsets = (
        map_array(folder / f"{name}.{part}.npy", is_read_at_random=True) for part in ("item_rows", "at", "offsets")
    )
    return Histories(item_rows, at, np.asarray(offsets))


def as_sequence(
    name: str, rows: Int32[np.ndarray, "batch length"], ages: Integer[np.ndarray, "batch length"] | None = None
) -> dict[str, Int32[np.ndarray, "batch length"]]:
    """Returns the inputs of a sequence encoder: each example's nonzero rows in their order, then zeros, so that a cold
    item leaves no hole. Their ages are stored under `NAME.ages`.

    >>> as_sequence("liked", np.array([[0, 7, 0, 5]], np.int32), np.array([[9, 60, 30, 1]]))
    {'liked': array([[7, 5, 0, 0]], dtype=int32), 'liked.ages': array([[60,  1,  0,  0]], dtype=int32)}
    """
    order = np.argsort(rows == 0, axis=1, kind="stable")
    parts = {name: rows} if ages is None else {name: rows, f"{name}.ages": (ages * (rows != 0)).astype(np.int32)}
    return {part: np.take_along_axis(values, order, axis=1) for part, values in parts.items()}


def seconds_until(
    at: Int64[np.ndarray, "batch"], since: Int64[np.ndarray, "batch length"]
) -> Int64[np.ndarray, "batch length"]:
    """Returns the seconds from each event of an example to the example's own time (both in milliseconds).

    Both times are rounded down to whole seconds first, so that the differences between ages do not depend on `at`.
    """
    return np.asarray((at // SECOND_MS)[:, None] - since // SECOND_MS)


def search_slices(
    values: Integer[np.ndarray, "_"],
    first: Int64[np.ndarray, "queries"],
    end: Int64[np.ndarray, "queries"],
    limit: Int64[np.ndarray, "queries"],
) -> Int64[np.ndarray, "queries"]:
    """Returns, for each slice `[first, end)` of ascending values, the position of the first value that is not below
    `limit`, or `end`.

    A binary search in every slice at once: 2 log2(longest) passes of NumPy instead of a Python loop.
    """
    low, high = first.copy(), end.copy()
    while (open_ := low < high).any():
        middle = (low + high) // 2
        below = open_ & (values[np.minimum(middle, len(values) - 1)] < limit)
        low = np.where(below, middle + 1, low)
        high = np.where(open_ & ~below, middle, high)
    return low


def _ending_at(
    values: Integer[np.ndarray, "events"], end: Int64[np.ndarray, "queries"], n: int
) -> Integer[np.ndarray, "queries _"]:
    """Returns `values[end - n : end]` per query; positions before the first value may hold any number."""
    if len(values) < n:
        values, end = np.concatenate([np.zeros(n, values.dtype), values]), end + n
    taken = _windows(values, np.maximum(end - n, 0), n)
    early = np.flatnonzero(end < n)  # queries of the first user, whose slice would begin before the array
    if len(early):
        taken[early] = _windows(np.concatenate([np.zeros(n, values.dtype), values[:n]]), end[early], n)
    return taken


def _windows(
    values: Shaped[np.ndarray, "_"], first: Integer[np.ndarray, "queries"], n: int
) -> Shaped[np.ndarray, "queries _"]:
    """Returns `values[first : first + n]` per query.

    n values are declared as one element, so that NumPy copies a row at once: eight times as fast as indexing values.
    """
    if n == 0:
        return np.zeros((len(first), 0), values.dtype)
    whole = np.ndarray(len(values) - n + 1, f"V{values.itemsize * n}", buffer=values, strides=values.strides)
    rows: np.ndarray = whole[first]
    return rows.view(values.dtype).reshape(-1, n)


def count_items(table_rows: Int32[np.ndarray, "batch length"]) -> tuple[Ragged, Float32[np.ndarray, "_"]]:
    """Returns the distinct item rows of each history, in rising order, and how often each occurs in it.

    `table_rows` are item rows + 1, padded with 0.

    >>> rows, counts = count_items(np.array([[0, 3, 1, 3]], np.int32))
    >>> rows.values.tolist(), counts.tolist()
    ([0, 2], [1.0, 2.0])
    """
    lines, places = np.nonzero(table_rows)
    width = int(table_rows.max(initial=0)) + 1
    keys, counts = np.unique(lines * width + table_rows[lines, places], return_counts=True)
    offsets = np.searchsorted(keys // width, np.arange(len(table_rows) + 1))
    return Ragged(keys % width - 1, offsets), counts.astype(np.float32)
