"""Ragged arrays, and ranges cut into chunks."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, Integer, Shaped


def chunks(length: int, size: int) -> list[slice]:
    """Returns consecutive slices of at most `size` that cover `range(length)`.

    >>> chunks(5, 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return [slice(first, min(first + size, length)) for first in range(0, length, size)]


@dataclass(frozen=True)
class Ragged:
    """Lists of different lengths, end to end: list i is `values[offsets[i]:offsets[i + 1]]`."""

    values: Shaped[np.ndarray, "length"]
    offsets: Integer[np.ndarray, "_"]

    @property
    def sizes(self) -> Integer[np.ndarray, "_"]:
        """Length of each list."""
        return np.diff(self.offsets)

    @property
    def lines(self) -> Int64[np.ndarray, "length"]:
        """Index of the list that each value belongs to."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.sizes)

    def joined(self, other: "Ragged") -> "Ragged":
        """Returns each list followed by that of another array with as many lists.

        >>> Ragged(np.array([7, 8]), np.array([0, 2, 2])).joined(Ragged(np.array([9]), np.array([0, 1, 1]))).values
        array([7, 8, 9])
        """
        order = np.argsort(np.concatenate([self.lines, other.lines]), kind="stable")
        return Ragged(np.concatenate([self.values, other.values])[order], self.offsets + other.offsets)

    def contains(
        self, lists: Integer[np.ndarray, "*pairs"], values: Integer[np.ndarray, "*pairs"]
    ) -> Bool[np.ndarray, "*pairs"]:
        """Returns whether each value, of 0 or more, is in its list.

        >>> Ragged(np.array([7, 8, 9]), np.array([0, 2, 3])).contains(np.array([0, 1, 1]), np.array([8, 8, 9])).tolist()
        [True, False, True]
        """
        width = int(max(self.values.max(initial=0), values.max(initial=0))) + 1
        return np.isin(lists * width + values, self.lines * width + self.values)

    def where(self, keep: Bool[np.ndarray, "_"], values: Integer[np.ndarray, "_"] | None = None) -> "Ragged":
        """Returns the lists with the values for which `keep` is true, after `values` have replaced them, if given."""
        own = self.values if values is None else values
        if keep.all():
            return Ragged(own, self.offsets)
        return Ragged(own[keep], np.concatenate([[0], np.cumsum(keep)])[self.offsets])

    def part(self, lists: slice) -> "Ragged":
        """Returns the lists of a slice."""
        first, end = self.offsets[lists.start], self.offsets[lists.stop]
        return Ragged(self.values[first:end], self.offsets[lists.start : lists.stop + 1] - first)

    def of(self, lists: Int64[np.ndarray, "_"]) -> "Ragged":
        """Returns the chosen lists, in the given order.

        >>> Ragged(np.array([7, 8, 9]), np.array([0, 2, 3])).of(np.array([1, 0])).values.tolist()
        [9, 7, 8]
        """
        sizes = self.offsets[lists + 1] - self.offsets[lists]  # not those of all lists, which may be a catalogue's
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        taken = np.arange(offsets[-1]) + np.repeat(self.offsets[lists] - offsets[:-1], sizes)
        return Ragged(self.values[taken], offsets)

    def padded(self) -> Shaped[np.ndarray, "_ length"]:
        """Returns one row per list, padded on the right with 0 to the length of the longest, at least 1.

        >>> Ragged(np.array([7, 8, 9]), np.array([0, 2, 2, 3])).padded().tolist()
        [[7, 8], [0, 0], [9, 0]]
        """
        rows = np.zeros((len(self.offsets) - 1, max(int(self.sizes.max(initial=0)), 1)), self.values.dtype)
        rows[self.lines, np.arange(len(self.values)) - np.repeat(self.offsets[:-1], self.sizes)] = self.values
        return rows
