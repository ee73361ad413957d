"""What each user met, as slices of one array: a history of any length costs two offsets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, Int32, Int64, Integer, Shaped

from twofold.dataset.npy import map_array

SECOND_MS: Final = 1000


@dataclass(frozen=True)
class Histories:
    """Item rows of all users one after another, each user's oldest first: user u owns `[offsets[u], offsets[u + 1])`.

    The arrays may be memory-mapped.
    """

    item_rows: Int32[np.ndarray, "events"]
    at: Int64[np.ndarray, "events"]
    offsets: Int64[np.ndarray, "offsets"]

    def before(
        self, user_rows: Int64[np.ndarray, "queries"], at: Int64[np.ndarray, "queries"]
    ) -> Int64[np.ndarray, "queries"]:
        """How many of a user's events lie strictly before `at`: what a query at that moment may know."""
        first = self.offsets[user_rows]
        return np.asarray(search_slices(self.at, first, self.offsets[user_rows + 1], at) - first)

    def last(
        self, user_rows: Int64[np.ndarray, "queries"], counts: Integer[np.ndarray, "queries"], *, n: int
    ) -> Int32[np.ndarray, "queries n"]:
        """The last n of each user's first `counts` events as table rows, item row + 1, newest last; 0 where there are
        fewer.
        """
        taken = _ending_at(self.item_rows, self.offsets[user_rows] + counts, n)
        taken += 1
        # What reaches into the neighbour before is multiplied away: choosing takes five times as long.
        taken *= _windows(np.repeat([False, True], n), np.minimum(counts, n), n)
        return taken

    def last_at(
        self, user_rows: Int64[np.ndarray, "queries"], counts: Integer[np.ndarray, "queries"], *, n: int
    ) -> Int64[np.ndarray, "queries n"]:
        """When the events that `last` gives were; anything where it gives 0."""
        return _ending_at(self.at, self.offsets[user_rows] + counts, n)

    def only(self, keep: Bool[np.ndarray, "events"]) -> "Histories":
        """The same users with the events where `keep` holds."""
        kept = np.concatenate([[0], np.cumsum(keep)])
        return Histories(self.item_rows[keep], self.at[keep], kept[self.offsets].astype(np.int64))

    def slices(
        self, user_rows: Int64[np.ndarray, "queries"], counts: Int64[np.ndarray, "queries"]
    ) -> tuple[Int32[np.ndarray, "taken"], Int64[np.ndarray, "queries+1"]]:
        """Each user's first `counts` item rows, one after another, and where each user's part begins."""
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        shift = np.repeat(self.offsets[user_rows] - offsets[:-1], counts)
        return self.item_rows[np.arange(offsets[-1]) + shift], offsets

    def save(self, folder: Path, name: str) -> None:
        """Writes three arrays that `load_histories` maps."""
        for part in ("item_rows", "at", "offsets"):
            np.save(folder / f"{name}.{part}.npy", getattr(self, part))


def load_histories(folder: Path, name: str) -> Histories:
    """Maps what `save` wrote; nothing is read until it is used."""
    item_rows, at, offsets = (map_array(folder / f"{name}.{part}.npy") for part in ("item_rows", "at", "offsets"))
    return Histories(item_rows, at, np.asarray(offsets))


def id_rows(table_rows: Int32[np.ndarray, "*shape"], num_known_items: int) -> Int32[np.ndarray, "*shape"]:
    """Rows of a table of trained vectors, which cold items have none in.

    >>> id_rows(np.array([0, 1, 5, 6], np.int32), num_known_items=5).tolist()
    [0, 1, 5, 0]
    """
    return table_rows * (table_rows <= num_known_items)


def as_sequence(
    name: str, rows: Int32[np.ndarray, "batch length"], ages: Integer[np.ndarray, "batch length"] | None = None
) -> dict[str, Int32[np.ndarray, "batch length"]]:
    """What a sequence encoder reads: each line's rows that are not 0 in their order, and then zeros, so that a cold
    item leaves no hole; their ages as `NAME.ages`.

    >>> as_sequence("liked", np.array([[0, 7, 0, 5]], np.int32), np.array([[9, 60, 30, 1]]))
    {'liked': array([[7, 5, 0, 0]], dtype=int32), 'liked.ages': array([[60,  1,  0,  0]], dtype=int32)}
    """
    order = np.argsort(rows == 0, axis=1, kind="stable")
    parts = {name: rows} if ages is None else {name: rows, f"{name}.ages": (ages * (rows != 0)).astype(np.int32)}
    return {part: np.take_along_axis(values, order, axis=1) for part, values in parts.items()}


def seconds_until(
    at: Int64[np.ndarray, "lines"], since: Int64[np.ndarray, "lines length"]
) -> Int64[np.ndarray, "lines length"]:
    """From each of a line's moments to the line's own (milliseconds), in whole seconds of the clock: differences of
    them are those of any other moment's.
    """
    return np.asarray((at // SECOND_MS)[:, None] - since // SECOND_MS)


def search_slices(
    values: Integer[np.ndarray, "values"],
    first: Int64[np.ndarray, "queries"],
    end: Int64[np.ndarray, "queries"],
    limit: Int64[np.ndarray, "queries"],
) -> Int64[np.ndarray, "queries"]:
    """In each slice `[first, end)` of values that rise within it: the place of the first value that is not below
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
) -> Integer[np.ndarray, "queries n"]:
    """`values[end - n : end]` a line; what lies before the first value may be anything."""
    if len(values) < n:
        values, end = np.concatenate([np.zeros(n, values.dtype), values]), end + n
    taken = _windows(values, np.maximum(end - n, 0), n)
    early = np.flatnonzero(end < n)  # lines of the first user, whose slice would begin before the array
    if len(early):
        taken[early] = _windows(np.concatenate([np.zeros(n, values.dtype), values[:n]]), end[early], n)
    return taken


def _windows(
    values: Shaped[np.ndarray, "values"], first: Integer[np.ndarray, "lines"], n: int
) -> Shaped[np.ndarray, "lines n"]:
    """`values[first : first + n]` a line.

    NumPy is told that n values are one, and copies a line at once: eight times as fast as an index an element.
    """
    if n == 0:
        return np.zeros((len(first), 0), values.dtype)
    whole = np.ndarray(len(values) - n + 1, f"V{values.itemsize * n}", buffer=values, strides=values.strides)
    lines: np.ndarray = whole[first]
    return lines.view(values.dtype).reshape(-1, n)
