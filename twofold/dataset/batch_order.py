"""Batch order of an epoch: the examples of each batch, as a function of the seed alone."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from twofold.dataset.example_blocks import ExampleBlocks, Groups
from twofold.dataset.sequences import sequence_order


@dataclass(frozen=True)
class BlockBatches:
    """Batches of an epoch that are made while one block of the file is in memory."""

    block: int
    """Number of the block."""
    following: int | None
    """Number of the next block of the epoch; `None` means that this is the last one."""
    indices: Int64[np.ndarray, "_ batch"]
    """Row indices of the examples of each batch."""
    groups: Int64[np.ndarray, "_"]


@dataclass(frozen=True)
class Order:
    """Training examples and how they are divided into batches of one size.

    Blocks of the file follow one another in an order that is drawn for each epoch, and the examples of a block are
    shuffled. Those that do not fill a batch are shuffled with the next block, and at the end of an epoch wait for the
    next one. If all examples fit in one batch, that batch is used as it is.
    """

    examples: ExampleBlocks
    num_examples: int
    batch_size: int
    groups: Groups | None = None
    """Groups of the examples: no batch mixes two groups, and each group must fill a batch. `None` means one group."""
    max_run: int = 1
    """Maximum number of a user's examples that stay together, in the order of time, so that a sequence encoder reads
    them in one pass.
    """
    micro_batch_size: int | None = None
    """Number of a batch's examples that are encoded at once. `None` means the whole batch."""
    is_shuffled: bool = True
    """False: the batches of one group follow one another, in the order of the groups; there must be one block."""

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        if self.groups is None:
            return max(self.num_examples // self.batch_size, 1)
        return int((self.groups.counts // self.batch_size).sum())

    @property
    def batch_examples(self) -> int:
        """Number of examples of each batch: a log of fewer examples than `batch_size` is one batch."""
        return min(self.batch_size, self.num_examples)

    def epoch(self, seed: tuple[int, int]) -> Iterator[BlockBatches]:
        """Yields the batches of each block of the epoch with `seed` = (run, epoch).

        A resumed run sees the batches that the killed one would have seen. It draws those before its place again, and
        reads their records, but not their histories.
        """
        draw = np.random.default_rng(seed)
        numbers = draw.permutation(len(self.examples)).tolist() if len(self.examples) > 1 else [0]
        rest = np.zeros(0, np.int64)
        for number, following in zip(numbers, [*numbers[1:], None], strict=True):
            pool = np.sort(np.concatenate([rest, self.examples.indices(number)]))
            indices, groups, rest = self._batches(pool, draw)
            yield BlockBatches(number, following, indices, groups)

    def _batches(
        self, pool: Int64[np.ndarray, "examples"], draw: np.random.Generator
    ) -> tuple[Int64[np.ndarray, "_ batch"], Int64[np.ndarray, "_"], Int64[np.ndarray, "_"]]:
        """Returns full batches of examples, the group of each batch, and the examples that are left."""
        if self.max_run > 1:
            user_rows = np.asarray(self.examples.rows.user_rows[pool])
            positions = sequence_order(user_rows, max_run=self.max_run, batch_size=self.batch_size, draw=draw)
        else:
            positions = draw.permutation(len(pool))
        size = self.batch_examples
        codes = np.zeros(1, np.int64)
        if self.groups is not None:
            codes = self.groups.of(pool)
            positions = positions[np.argsort(codes[positions], kind="stable")]
        counts = np.array([len(pool)]) if self.groups is None else np.bincount(codes)
        begins, full = np.cumsum(counts) - counts, counts // size
        first = np.repeat(begins, full) + _ranges(full) * size
        left = pool[positions[_ranges(counts) >= np.repeat(full * size, counts)]]
        if self.groups is None:
            groups = np.zeros(len(first), np.int64)
        else:
            first = draw.permutation(first) if self.is_shuffled else first
            groups = codes[positions[first]]
        return pool[positions[first[:, None] + np.arange(size)]], groups, left


def _ranges(counts: Int64[np.ndarray, "_"]) -> Int64[np.ndarray, "_"]:
    """Returns 0, 1, … below each count, one after another.

    >>> _ranges(np.array([2, 0, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    return np.asarray(np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts))
