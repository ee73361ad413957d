"""Which lines make up the batches of an epoch, and in which order: a function of the seed alone."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64

from twofold.dataset.sequences import sequence_order


@dataclass(frozen=True)
class Order:
    """Lines to learn from, cut into batches of one size.

    Lines that do not fill a batch wait for the next epoch's shuffle; if all of them fit in one batch, that batch is
    used as it is.
    """

    lines: Int64[np.ndarray, "lines"]
    batch_size: int
    groups: Int32[np.ndarray, "lines"] | None = None
    """A number a line: no batch mixes two of them, and each must fill a batch. The order of the batches mixes them."""
    together: int = 1
    """Up to so many lines of one user, in the order of time, stay together: a sequence encoder reads them in one pass.
    """
    user_rows: Int64[np.ndarray, "lines"] | None = None
    """Read where lines stay together; they rise."""
    at_once: int | None = None
    """Lines of a batch that are encoded at once; None: all."""

    def __len__(self) -> int:
        """Batches in an epoch."""
        if self.groups is None:
            return max(len(self.lines) // self.batch_size, 1)
        return int((np.bincount(self.groups) // self.batch_size).sum())

    def batches(self, seed: tuple[int, int]) -> Int64[np.ndarray, "batches batch"]:
        """Places in `lines` for every batch of the epoch that `seed` = (run, epoch) names.

        A resumed run sees the batches that the killed one would have seen.

        >>> order = Order(np.arange(7), 2, groups=np.array([0, 1, 0, 1, 0, 1, 0], np.int32))
        >>> np.sort(order.batches((0, 0)) % 2, axis=0).tolist()
        [[0, 0], [0, 0], [1, 1]]
        """
        draw = np.random.default_rng(seed)
        if self.together > 1:
            assert self.user_rows is not None
            places = sequence_order(self.user_rows, most=self.together, batch_size=self.batch_size, draw=draw)
        else:
            places = draw.permutation(len(self.lines))
        if self.groups is None:
            size = min(self.batch_size, len(places))
            return places[: len(self) * size].reshape(-1, size)
        places = places[np.argsort(self.groups[places], kind="stable")]
        counts = np.bincount(self.groups)
        first = np.concatenate(
            [
                end - count + np.arange(count // self.batch_size) * self.batch_size
                for end, count in zip(np.cumsum(counts), counts, strict=True)
            ]
        )
        return places[draw.permutation(first)[:, None] + np.arange(self.batch_size)]
