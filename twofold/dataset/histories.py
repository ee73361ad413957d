"""What each user met, as slices of one array: a history of any length costs two offsets."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int32, Int64


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
        first, end = self.offsets[user_rows], self.offsets[user_rows + 1]
        # A binary search in every user's slice at once: 2 log2(longest) passes of NumPy instead of a Python loop.
        low, high = first.copy(), end.copy()
        while (open_ := low < high).any():
            middle = (low + high) // 2
            earlier = open_ & (self.at[np.minimum(middle, len(self.at) - 1)] < at)
            low = np.where(earlier, middle + 1, low)
            high = np.where(open_ & ~earlier, middle, high)
        return np.asarray(low - first)

    def last(
        self, user_rows: Int64[np.ndarray, "queries"], counts: Int64[np.ndarray, "queries"], *, n: int
    ) -> Int64[np.ndarray, "queries n"]:
        """The last n of each user's first `counts` item rows, right-aligned; -1 where there are fewer."""
        first = self.offsets[user_rows]
        take = first[:, None] + counts[:, None] - n + np.arange(n)  # (queries, n)
        inside = take >= first[:, None]
        if len(self.item_rows) == 0:
            return np.full(take.shape, -1, np.int64)
        gathered = self.item_rows[np.where(inside, take, 0)]
        return np.where(inside, gathered, -1).astype(np.int64)

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


def map_array(path: Path) -> np.ndarray:
    """A saved array, memory-mapped; an empty one is read, since nothing of length zero can be mapped."""
    try:
        return np.asanyarray(np.load(path, mmap_mode="r"))
    except ValueError:
        return np.asanyarray(np.load(path))
