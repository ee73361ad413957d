"""Batch order of an epoch: the examples of each batch, as a function of the seed alone."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64

from twofold.dataset.sequences import sequence_order


@dataclass(frozen=True)
class Order:
    """Training examples and how they are divided into batches of one size.

    Examples that do not fill a batch wait for the next epoch's shuffle. If all examples fit in one batch, that batch is
    used as it is.
    """

    indices: Int64[np.ndarray, "examples"]
    """Indices of the training examples."""
    batch_size: int
    groups: Int32[np.ndarray, "examples"] | None = None
    """Group of each example: no batch mixes two groups, and each group must fill a batch. `None` means one group."""
    max_run: int = 1
    """Maximum number of a user's examples that stay together, in the order of time, so that a sequence encoder reads
    them in one pass.
    """
    user_rows: Int64[np.ndarray, "examples"] | None = None
    """User row of each example, in ascending order; needed if `max_run` is above 1."""
    micro_batch_size: int | None = None
    """Number of a batch's examples that are encoded at once. `None` means the whole batch."""
    is_shuffled: bool = True
    """False: the batches of one group follow one another, in the order of the groups."""

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        if self.groups is None:
            return max(len(self.indices) // self.batch_size, 1)
        return int((np.bincount(self.groups) // self.batch_size).sum())

    def batches(self, seed: tuple[int, int]) -> Int64[np.ndarray, "_ batch"]:
        """Returns the positions in `indices` of every batch of the epoch with `seed` = (run, epoch).

        A resumed run sees the batches that the killed one would have seen.

        >>> order = Order(np.arange(7), 2, groups=np.array([0, 1, 0, 1, 0, 1, 0], np.int32))
        >>> np.sort(order.batches((0, 0)) % 2, axis=0).tolist()
        [[0, 0], [0, 0], [1, 1]]
        """
        draw = np.random.default_rng(seed)
        if self.max_run > 1:
            assert self.user_rows is not None
            positions = sequence_order(self.user_rows, max_run=self.max_run, batch_size=self.batch_size, draw=draw)
        else:
            positions = draw.permutation(len(self.indices))
        if self.groups is None:
            size = min(self.batch_size, len(positions))
            return positions[: len(self) * size].reshape(-1, size)
        positions = positions[np.argsort(self.groups[positions], kind="stable")]
        counts = np.bincount(self.groups)
        first = np.concatenate(
            [
                end - count + np.arange(count // self.batch_size) * self.batch_size
                for end, count in zip(np.cumsum(counts), counts, strict=True)
            ]
        )
        first = draw.permutation(first) if self.is_shuffled else first
        return positions[first[:, None] + np.arange(self.batch_size)]
