"""Who may answer: one bit an item, counted, and kept for the filters that are asked again.

A filter is compiled once (milliseconds at a million items); asked again it is found in microseconds. Where it leaves
few items, their vectors are kept beside it, end to end: a scan of 50,000 of a million takes 0.5 ms so, 3.7 ms where it
must pick them out of the whole, and 10 ms with a bitmap over everything (64 dimensions, one thread). So a hot filter,
a language say, is searched exactly, and faster than an approximate index could.
"""

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import Final

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int64, Integer, UInt8

from twofold.index.filters import compile_filter

FEW: Final = 1 / 8  # of all items: up to here the eligible rows are listed; picking them beats a bitmap up to a half
MOST_SPARE: Final = 256  # rows of a pool that are not eligible: fetched in vain and dropped
CACHE_BYTES: Final = 2**27  # a process: ten languages of a million items at 64 dimensions


@dataclass(frozen=True)
class Pool:
    """Item rows that include all eligible ones, rising, and their vectors end to end where they are kept."""

    rows: Int64[np.ndarray, "pool"]
    vectors: Float32[np.ndarray, "pool dim"] | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)


@dataclass(frozen=True)
class ItemMask:
    """The items that may be answered: `bits`, eight items a byte, the lowest first; `count` of `items` are set.

    `pool` lists them where they are few. It may hold up to `MOST_SPARE` others too: `bits` decide.
    """

    bits: UInt8[np.ndarray, "bytes"]
    items: int
    count: int
    pool: Pool | None

    def holds(self, item_rows: Int64[np.ndarray, "*rows"]) -> Bool[np.ndarray, "*rows"]:
        """Whether each item may be answered; row -1, which is none, may not.

        >>> from_rows(np.array([1, 8]), items=9).holds(np.array([[8, 0], [-1, 1]])).tolist()
        [[True, False], [False, True]]
        """
        if self.items == 0:
            return np.zeros(item_rows.shape, bool)
        is_set = (self.bits[item_rows >> 3] >> (item_rows & 7).astype(np.uint8) & 1).view(bool)
        return np.asarray(is_set & (item_rows >= 0))

    @property
    def mask(self) -> Bool[np.ndarray, "items"]:
        """One truth value an item."""
        return np.unpackbits(self.bits, count=self.items, bitorder="little").view(bool)

    def without(self, item_rows: Integer[np.ndarray, "gone"]) -> "ItemMask":
        """Those but these rows."""
        return self.minus(from_rows(item_rows, items=self.items))

    def minus(self, gone: "ItemMask") -> "ItemMask":
        """Those that are not among `gone`."""
        return _counted(self.bits & ~gone.bits, self.items, self.pool)

    def both(self, other: "ItemMask") -> "ItemMask":
        """Those that are eligible in both."""
        pools = [each.pool for each in (self, other) if each.pool is not None]
        return _counted(self.bits & other.bits, self.items, min(pools, key=len, default=None))

    def with_vectors(self, vectors: Float32[np.ndarray, "items dim"]) -> "ItemMask":
        """The same, with its pool's vectors copied end to end; the same as it is where they are not few."""
        if self.pool is None:
            return self
        return ItemMask(self.bits, self.items, self.count, Pool(self.pool.rows, vectors[self.pool.rows]))

    @property
    def nbytes(self) -> int:
        """Memory it holds."""
        if self.pool is None:
            return self.bits.nbytes
        kept = 0 if self.pool.vectors is None else self.pool.vectors.nbytes
        return self.bits.nbytes + self.pool.rows.nbytes + kept


def from_mask(mask: Bool[np.ndarray, "items"]) -> ItemMask:
    """The items whose truth value is true."""
    return _counted(np.packbits(mask, bitorder="little"), len(mask), None)


def from_rows(item_rows: Integer[np.ndarray, "chosen"], *, items: int) -> ItemMask:
    """These rows of `items`, each once."""
    mask = np.zeros(items, bool)
    mask[item_rows] = True
    return from_mask(mask)


def full_mask(items: int) -> ItemMask:
    """All of them."""
    return from_mask(np.ones(items, bool))


def _counted(bits: UInt8[np.ndarray, "bytes"], items: int, pool: Pool | None) -> ItemMask:
    count = int(np.bitwise_count(bits).sum(dtype=np.int64))
    if pool is not None and len(pool) - count > MOST_SPARE:
        pool = None
    if pool is None and count <= items * FEW:
        pool = Pool(np.flatnonzero(np.unpackbits(bits, count=items, bitorder="little")))
    return ItemMask(bits, items, count, pool)


class Filters:
    """The filters of one table of items, each compiled once; threads may share it.

    `vectors` are those of the items, in the order of the table: with them, filters that leave few keep their block.
    The least recently asked are forgotten beyond `most_bytes`.
    """

    def __init__(
        self,
        attributes: pa.Table,
        vectors: Float32[np.ndarray, "items dim"] | None = None,
        *,
        most_bytes: int = CACHE_BYTES,
    ) -> None:
        """Compiles nothing yet."""
        assert vectors is None or len(vectors) == len(attributes)
        self._attributes, self._vectors, self._most_bytes = attributes, vectors, most_bytes
        self._known: OrderedDict[str, ItemMask] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def eligible(self, text: str) -> ItemMask:
        """The items where a condition in SQL holds; RequestError as of `compile_filter`."""
        with self._lock:
            if text in self._known:
                self._known.move_to_end(text)
                return self._known[text]
        # Not under the lock: others need not wait for it, and two who compile the same find the same.
        found = from_mask(compile_filter(text, self._attributes))
        if self._vectors is not None:
            found = found.with_vectors(self._vectors)
        with self._lock:
            self._forget(text)
            self._known[text] = found
            self._bytes += found.nbytes
            while self._bytes > self._most_bytes and self._known:
                self._forget(next(iter(self._known)))
        return found

    def _forget(self, text: str) -> None:
        dropped = self._known.pop(text, None)
        self._bytes -= 0 if dropped is None else dropped.nbytes

    def __contains__(self, text: str) -> bool:
        """Whether it is kept: then it is found at once."""
        return text in self._known

    def __len__(self) -> int:
        """How many filters are kept."""
        return len(self._known)
