"""Training examples in blocks of consecutive rows of the file, so that memory does not grow with the log.

Rows are in the order of users and time, and so are histories: a block and its users' histories are consecutive parts of
their files, which are read ahead while the block before is trained on, and leave memory afterwards.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from jaxtyping import Int64, Integer

from twofold.dataset.examples import Examples
from twofold.dataset.npy import read_ahead, release

BLOCK_ROWS: Final = 2**20
"""Rows of a block: 59 MB of records, and about as much of histories."""
BATCHES_A_BLOCK: Final = 128
"""Rows of a block for each row of a batch, at least: a batch is drawn from a small part of a block."""


@dataclass(frozen=True)
class ExampleBlocks:
    """Training examples of a loss, in blocks of at most `block_rows` consecutive rows."""

    rows: Examples
    """Rows of the training window."""
    kind: Literal["events", "positive events", "events with a target"] = "events"
    block_rows: int = BLOCK_ROWS

    def __len__(self) -> int:
        """Returns the number of blocks, at least 1."""
        return max(-(-len(self.rows) // self.block_rows), 1)

    def part(self, number: int) -> slice:
        """Returns the rows of a block."""
        return slice(number * self.block_rows, min((number + 1) * self.block_rows, len(self.rows)))

    def indices(self, number: int) -> Int64[np.ndarray, "examples"]:
        """Returns the row indices of the training examples of a block, ascending."""
        part = self.part(number)
        match self.kind:
            case "events":
                return np.arange(part.start, part.stop)
            case "positive events":
                kept = np.flatnonzero(self.rows.label[part])
            case "events with a target":
                kept = np.flatnonzero(np.isfinite(self.rows.target[part]))
        return np.asarray(part.start + kept)

    def __iter__(self) -> Iterator[Int64[np.ndarray, "examples"]]:
        """Yields the row indices of each block, in the order of the file."""
        read_ahead(self.rows.records, self.part(0))
        for number in range(len(self)):
            if number + 1 < len(self):
                read_ahead(self.rows.records, self.part(number + 1))
            yield self.indices(number)
            release(self.rows.records, self.part(number))


@dataclass(frozen=True)
class Groups:
    """Groups of training examples, computed from the rows whenever they are needed."""

    of: Callable[[Int64[np.ndarray, "examples"]], Int64[np.ndarray, "examples"]]
    """Function from row indices to the group of each."""
    counts: Int64[np.ndarray, "_"]
    """Number of training examples of each group."""

    def __len__(self) -> int:
        """Returns the number of groups."""
        return len(self.counts)

    def renamed(self, new: Int64[np.ndarray, "_"]) -> "Groups":
        """Returns the groups under new numbers, which several may share."""
        counts = np.zeros(int(new.max(initial=-1)) + 1, np.int64)
        np.add.at(counts, new, self.counts)
        return Groups(lambda indices: new[self.of(indices)], counts)


def number_groups(
    examples: Iterable[Int64[np.ndarray, "_"]], key_of: Callable[[Int64[np.ndarray, "_"]], Int64[np.ndarray, "_"]]
) -> Groups:
    """Numbers the distinct keys of the examples 0, 1, 2, … in ascending order."""
    keys, counts = count_keys(map(key_of, examples))
    return Groups(lambda indices: np.searchsorted(keys, key_of(indices)), counts)


def count_keys(
    parts: Iterable[Integer[np.ndarray, "_"]],
) -> tuple[Int64[np.ndarray, "_"], Int64[np.ndarray, "_"]]:
    """Returns the distinct keys of all parts, ascending, and how often each occurs.

    Counts of several parts wait until they are as many as those already merged, so that the merges together cost a few
    sorts of the result.

    >>> keys, counts = count_keys([np.array([3, 1, 3]), np.array([2, 3])])
    >>> keys.tolist(), counts.tolist()
    ([1, 2, 3], [1, 1, 3])
    """
    merged = np.zeros(0, np.int64), np.zeros(0, np.int64)
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    for part in parts:
        keys, counts = np.unique(part, return_counts=True)
        waiting.append((keys.astype(np.int64), counts.astype(np.int64)))
        if sum(len(each) for each, _ in waiting) >= len(merged[0]):
            merged, waiting = _merged([merged, *waiting]), []
    return _merged([merged, *waiting])


def _merged(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Int64[np.ndarray, "_"], Int64[np.ndarray, "_"]]:
    keys, index = np.unique(np.concatenate([each for each, _ in parts]), return_inverse=True)
    counts = np.zeros(len(keys), np.int64)
    np.add.at(counts, index, np.concatenate([each for _, each in parts]))
    return keys, counts
