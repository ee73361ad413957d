"""Bit mask over the items that a query may return, with the number of its items and, where they are few, their rows."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Int64, Integer, UInt8

# Masks up to this share of the items list their rows; measured faster than a bitmap up to 1/2.
POOL_SHARE: Final = 1 / 8
MAX_SPARE: Final = 256  # rows of a pool that are no longer in its mask: scored in vain, then dropped


@dataclass(frozen=True)
class Pool:
    """Rows that include all items of a mask, in ascending order; with their vectors in one block where cached."""

    rows: Int64[np.ndarray, "_"]
    vectors: Float32[np.ndarray, "_ dim"] | None = None

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.rows)


@dataclass(frozen=True)
class ItemMask:
    """A set of items: `bits` holds eight items a byte, lowest bit first; `count` of the `items` bits are set.

    `pool` lists the rows where they are few. Up to `MAX_SPARE` of its rows may be outside the mask: `bits` decide.
    """

    bits: UInt8[np.ndarray, "_"]
    items: int
    count: int
    pool: Pool | None

    def contains(self, item_rows: Int64[np.ndarray, "*items"]) -> Bool[np.ndarray, "*items"]:
        """Returns whether each item is in the mask; row -1, which means no item, is not.

        >>> from_rows(np.array([1, 8]), items=9).contains(np.array([[8, 0], [-1, 1]])).tolist()
        [[True, False], [False, True]]
        """
        if self.items == 0:
            return np.zeros(item_rows.shape, bool)
        is_set = (self.bits[item_rows >> 3] >> (item_rows & 7).astype(np.uint8) & 1).view(bool)
        return np.asarray(is_set & (item_rows >= 0))

    @property
    def mask(self) -> Bool[np.ndarray, "items"]:
        """One truth value per item."""
        return np.unpackbits(self.bits, count=self.items, bitorder="little").view(bool)

    def without_rows(self, item_rows: Integer[np.ndarray, "_"]) -> "ItemMask":
        """Returns this mask without the given rows."""
        return self.difference(from_rows(item_rows, items=self.items))

    def difference(self, other: "ItemMask") -> "ItemMask":
        """Returns the items of this mask that are not in the other."""
        return _mask_of(self.bits & ~other.bits, self.items, self.pool)

    def intersection(self, other: "ItemMask") -> "ItemMask":
        """Returns the items that are in both masks."""
        pools = [each.pool for each in (self, other) if each.pool is not None]
        return _mask_of(self.bits & other.bits, self.items, min(pools, key=len, default=None))

    def with_vectors(self, vectors: Float32[np.ndarray, "items dim"]) -> "ItemMask":
        """Returns the mask with its pool's vectors copied into one block; unchanged if the mask has no pool."""
        if self.pool is None:
            return self
        return ItemMask(self.bits, self.items, self.count, Pool(self.pool.rows, vectors[self.pool.rows]))

    @property
    def nbytes(self) -> int:
        """Memory in bytes, with rows and vectors of the pool."""
        if self.pool is None:
            return self.bits.nbytes
        vector_bytes = 0 if self.pool.vectors is None else self.pool.vectors.nbytes
        return self.bits.nbytes + self.pool.rows.nbytes + vector_bytes


def from_mask(mask: Bool[np.ndarray, "items"]) -> ItemMask:
    """Returns the items whose truth value is true."""
    return _mask_of(np.packbits(mask, bitorder="little"), len(mask), None)


def from_rows(item_rows: Integer[np.ndarray, "_"], *, items: int) -> ItemMask:
    """Returns a mask over `items` items that contains the given rows."""
    mask = np.zeros(items, bool)
    mask[item_rows] = True
    return from_mask(mask)


def full_mask(items: int) -> ItemMask:
    """Returns a mask that contains all items."""
    return from_mask(np.ones(items, bool))


def _mask_of(bits: UInt8[np.ndarray, "_"], items: int, pool: Pool | None) -> ItemMask:
    count = int(np.bitwise_count(bits).sum(dtype=np.int64))
    if pool is not None and len(pool) - count > MAX_SPARE:
        pool = None
    if pool is None and count <= items * POOL_SHARE:
        pool = Pool(np.flatnonzero(np.unpackbits(bits, count=items, bitorder="little")))
    return ItemMask(bits, items, count, pool)
