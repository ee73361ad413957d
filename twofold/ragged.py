"""Ragged arrays, and ranges cut into chunks."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Integer, Shaped


def chunks(length: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` that cover `range(length)`.

    >>> chunks(5, 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return [slice(first, min(first + size, length)) for first in range(0, length, size)]


@dataclass(frozen=True)
class Ragged:
    """One list a line, end to end: line i is `values[offsets[i]:offsets[i + 1]]`."""

    values: Shaped[np.ndarray, "length"]
    offsets: Integer[np.ndarray, "offsets"]

    @property
    def sizes(self) -> Integer[np.ndarray, "lines"]:
        """Length of each line."""
        return np.diff(self.offsets)

    @property
    def lines(self) -> Int64[np.ndarray, "length"]:
        """The line that each value stands in."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.sizes)

    def part(self, lines: slice) -> "Ragged":
        """The lines of a slice, as a Ragged of their own."""
        first, end = self.offsets[lines.start], self.offsets[lines.stop]
        return Ragged(self.values[first:end], self.offsets[lines.start : lines.stop + 1] - first)

    def of(self, lines: Int64[np.ndarray, "chosen"]) -> "Ragged":
        """These lines, in this order.

        >>> Ragged(np.array([7, 8, 9]), np.array([0, 2, 3])).of(np.array([1, 0])).values.tolist()
        [9, 7, 8]
        """
        sizes = self.sizes[lines]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        taken = np.arange(offsets[-1]) + np.repeat(self.offsets[lines] - offsets[:-1], sizes)
        return Ragged(self.values[taken], offsets)
