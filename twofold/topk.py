"""Top-k of a score matrix: the k best allowed items, with one rule for ties, masks and NaN.

A score and an item row are packed into one 64-bit key, so that keys never tie: the upper half is the score's bits in
an order-preserving form, the lower half the rank of the item in a fixed shuffle. Selecting the largest keys then
*is* the answer, and a model that gives every item the same score gets a random list, not the catalogue's first page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float32, Int64, Integer, Shaped

from twofold.errors import RequestError
from twofold.ragged import Ragged, chunks

MAX_K: Final = 1_000
"""Largest number of items of a list of one request."""
NOT_ALLOWED = np.float32(-np.inf)
"""Score of an item that must not be returned: the list is shorter without it."""

_CHUNK_PAIRS = 2**16  # pairs of vectors gathered at a time
_MOST_REPEATED = 1024  # vectors that several items share: each has a score for each query in memory


@dataclass(frozen=True)
class TopK:
    """The best items of each query, by falling score; after the last allowed item, rows are -1 and scores -inf."""

    item_rows: Int64[np.ndarray, "queries k"]
    scores: Float32[np.ndarray, "queries k"]
    counts: Int64[np.ndarray, "queries"]
    """Number of items that each query has, at most k."""


@lru_cache(maxsize=8)
def tie_order(items: int) -> tuple[Int64[np.ndarray, "items"], Int64[np.ndarray, "items"]]:
    """Returns the fixed shuffle that breaks ties: (rank of each item row, item row of each rank).

    >>> rank, row = tie_order(5)
    >>> bool((row[rank] == np.arange(5)).all())
    True
    """
    # splitmix64 (Steele, Lea, Flood 2014), written out so that the order never changes with a NumPy version.
    x = np.arange(1, items + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    row = np.argsort(x ^ (x >> np.uint64(31)), kind="stable").astype(np.int64)
    rank = np.empty(items, np.int64)
    rank[row] = np.arange(items)
    rank.flags.writeable = row.flags.writeable = False
    return rank, row


def sortable_keys(scores: Float32[np.ndarray, "queries items"]) -> Int64[np.ndarray, "queries items"]:
    """Packs each score and its item's tie rank into one integer: a larger key is better, and no two are equal."""
    return packed_keys(scores, tie_order(scores.shape[1])[0])


def packed_keys(scores: Float32[np.ndarray, "*batch"], ranks: Int64[np.ndarray, "..."]) -> Int64[np.ndarray, "*batch"]:
    """Packs scores in any order, with the tie rank of each score's item, as `sortable_keys` does."""
    bits = np.ascontiguousarray(scores + np.float32(0.0)).view(np.int32)  # + 0 turns -0.0 into 0.0
    bits ^= (bits >> 31) & np.int32(0x7FFFFFFF)  # negative floats fall as their bits rise: flip them
    return (bits.astype(np.int64) << 32) | ranks


def packed_scores(keys: Int64[np.ndarray, "*batch"]) -> Float32[np.ndarray, "*batch"]:
    """Returns the scores that keys were packed from."""
    bits = (keys >> 32).astype(np.int32)
    return (bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))).view(np.float32)


def top_k(
    scores: Float32[np.ndarray, "queries items"],
    k: int,
    *,
    allowed: Bool[np.ndarray, "#queries items"] | None = None,
) -> TopK:
    """Returns the k highest scores of each query among the allowed items; score -inf means not allowed.

    The keys of all pairs are in memory: callers pass chunks of queries (`ragged.chunks`).

    >>> top_k(np.array([[0.1, 0.9, 0.5]], np.float32), 2).item_rows
    array([[1, 2]])
    >>> few = top_k(np.array([[0.1, 0.9, 0.5]], np.float32), 3, allowed=np.array([[True, False, True]]))
    >>> few.item_rows, few.counts
    (array([[ 2,  0, -1]]), array([2]))
    """
    if k < 1:
        raise RequestError(f"k must be at least 1, not {k}")
    queries, items = scores.shape
    if np.isnan(scores).any():
        query = int(np.flatnonzero(np.isnan(scores).any(axis=1))[0])
        raise RequestError(f"scores hold NaN (first in query {query}): the model has diverged; lower the learning rate")
    if allowed is not None:
        scores = np.where(allowed, scores, NOT_ALLOWED)
    kept = min(k, items)
    keys = sortable_keys(scores)
    if kept < items:
        keys.partition(items - kept, axis=1)
        keys = keys[:, items - kept :]
    keys = np.sort(keys, axis=1)[:, ::-1]
    _, row_of_rank = tie_order(items)
    item_rows = np.full((queries, k), -1, np.int64)
    item_rows[:, :kept] = row_of_rank[keys & 0xFFFFFFFF]
    best = np.full((queries, k), NOT_ALLOWED, np.float32)
    best[:, :kept] = packed_scores(keys)
    missing = np.isneginf(best)
    item_rows[missing] = -1
    return TopK(item_rows, best, (~missing).sum(axis=1))


def best_of(
    item_rows: Int64[np.ndarray, "queries _"],
    scores: Float32[np.ndarray, "queries _"],
    k: int,
    *,
    rank: Int64[np.ndarray, "items"],
) -> TopK:
    """Returns the k best of each query's candidates, in which row -1 with score -inf means none; `rank` breaks ties."""
    order = np.lexsort((rank[item_rows], scores), axis=-1)[:, ::-1][:, :k]
    rows = np.take_along_axis(item_rows, order, axis=1)
    return TopK(rows, np.take_along_axis(scores, order, axis=1), (rows >= 0).sum(axis=1))


def lowest_score(dtype: np.dtype[Any]) -> np.float32 | int:
    """Returns the score of an item that must not be returned, in an array of floats or of integers."""
    return NOT_ALLOWED if dtype.kind == "f" else int(np.iinfo(dtype).min)


def exclude(scores: Shaped[np.ndarray, "queries items"], excluded: Ragged) -> None:
    """Writes the lowest score, in place, at each query's own excluded item rows: items already seen."""
    scores[excluded.lines, excluded.values] = lowest_score(scores.dtype)


@dataclass(frozen=True)
class Additions:
    """Numbers added to the scores of some items of each user. The item rows of a user are distinct and rise."""

    rows: Ragged
    values: Float32[np.ndarray, "length"]
    """Number for each of the item rows."""

    def of(self, users: Int64[np.ndarray, "_"]) -> "Additions":
        """Returns those of the chosen users, in the given order."""
        taken = Ragged(np.arange(len(self.values)), self.rows.offsets).of(users)
        return Additions(Ragged(self.rows.values[taken.values], taken.offsets), self.values[taken.values])

    def scaled(self, factor: float) -> "Additions":
        """Returns the numbers times a factor, for the same items."""
        return Additions(self.rows, np.float32(factor) * self.values)

    def pairs(
        self, users: Int64[np.ndarray, "pairs"], item_rows: Int64[np.ndarray, "pairs"], *, num_items: int
    ) -> Float32[np.ndarray, "pairs"]:
        """Returns the number of each pair; 0 where there is none."""
        if not len(self.values):
            return np.zeros(len(users), np.float32)
        keys, pairs = self.rows.lines * num_items + self.rows.values, users * num_items + item_rows
        place = np.minimum(np.searchsorted(keys, pairs), len(keys) - 1)
        return np.where(keys[place] == pairs, self.values[place], np.float32(0))

    def lists(
        self, item_rows: Integer[np.ndarray, "queries length"], *, num_items: int
    ) -> Float32[np.ndarray, "queries length"]:
        """Returns the number of each item in the list of each user; 0 where there is none."""
        users = np.repeat(np.arange(len(item_rows)), item_rows.shape[1])
        return self.pairs(users, item_rows.ravel().astype(np.int64), num_items=num_items).reshape(item_rows.shape)


def with_additions(
    queries: Float32[np.ndarray, "queries _"],
    factors: Float32[np.ndarray, "queries length _"],
    added: Float32[np.ndarray, "queries length"],
) -> tuple[Float32[np.ndarray, "queries _"], Float32[np.ndarray, "queries length _"]]:
    """Returns vectors of queries and of their items whose products are larger by `added`: each has one more number."""
    one = np.ones((len(queries), 1), np.float32)
    return np.concatenate([queries, one], axis=1), np.concatenate([factors, added[:, :, None]], axis=2)


def concatenate_additions(parts: Sequence[Additions]) -> Additions:
    """Returns the additions of several groups of users, one group after another."""
    sizes = np.concatenate([part.rows.sizes for part in parts])
    rows = Ragged(np.concatenate([part.rows.values for part in parts]), np.concatenate([[0], np.cumsum(sizes)]))
    return Additions(rows, np.concatenate([part.values for part in parts]))


def sum_additions(*parts: Additions) -> Additions:
    """Returns the sums of several additions to the same users' scores, in which an item may occur more than once.

    >>> once = Additions(Ragged(np.array([4, 2, 4]), np.array([0, 3])), np.array([1, 2, 3], np.float32))
    >>> found = sum_additions(once)
    >>> found.rows.values.tolist(), found.values.tolist()
    ([2, 4], [2.0, 4.0])
    """
    lines, rows, values = (
        np.concatenate(each)
        for each in zip(*((part.rows.lines, part.rows.values, part.values) for part in parts), strict=True)
    )
    width = int(rows.max(initial=0)) + 1
    keys, place = np.unique(lines * width + rows, return_inverse=True)
    offsets = np.searchsorted(keys, width * np.arange(len(parts[0].rows.offsets)))
    return Additions(Ragged(keys % width, offsets), np.bincount(place, values).astype(np.float32))


@dataclass(frozen=True)
class Repeated:
    """Items whose vector another item has too, such as new items of one category.

    Some processors round the same sum otherwise in another column of a product, and that would decide the order of
    such items. So each vector is scored once, as that of its first item.
    """

    item_rows: Int64[np.ndarray, "_"]
    """Rising."""
    firsts: Int64[np.ndarray, "_"]
    """The first item row of each vector; if there are many, of those that most items have."""
    vector: Int64[np.ndarray, "_"]
    """Index in `firsts` of each item."""

    def level(
        self, scores: Float32[np.ndarray, "queries _"], items: slice, shared: Float32[np.ndarray, "queries _"]
    ) -> None:
        """Overwrites the scores of a block of items where they are repeated; `shared` are those of `firsts`."""
        low, high = np.searchsorted(self.item_rows, (items.start, items.stop))
        if low < high:
            scores[:, self.item_rows[low:high] - items.start] = shared[:, self.vector[low:high]]


def find_repeated(vectors: Float32[np.ndarray, "items dim"]) -> Repeated:
    """Finds the items whose vectors are equal, bit for bit.

    >>> found = find_repeated(np.float32([[1, 2], [3, 4], [1, 2], [1, 3], [1, 2]]))
    >>> found.item_rows.tolist(), found.firsts.tolist(), found.vector.tolist()
    ([0, 2, 4], [0], [0, 0, 0])
    """
    words = np.ascontiguousarray(vectors).view(np.uint32)
    factors = np.random.default_rng(0).integers(2**63, size=words.shape[1], dtype=np.uint64)
    keys = np.empty(len(words), np.uint64)
    for part in chunks(len(words), max(1, _CHUNK_PAIRS // max(1, words.shape[1]))):
        keys[part] = (words[part] * factors).sum(axis=1, dtype=np.uint64)
    _, first, key, count = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    most = np.argsort(-count, kind="stable")[:_MOST_REPEATED]
    most = most[count[most] > 1]
    place = np.full(len(first), -1)
    place[most] = np.arange(len(most))
    rows = np.flatnonzero(place[key] >= 0)
    rows = rows[(words[rows] == words[first[key[rows]]]).all(axis=1)]  # two keys may be equal by chance
    return Repeated(rows, first[most], place[key[rows]])


@dataclass(frozen=True)
class Products:
    """Scores that are inner products of query vectors and item vectors, with additions for some pairs if there are any.

    RequestError if a vector contains NaN or infinity.
    """

    queries: Float32[np.ndarray, "users dim"]
    items: Float32[np.ndarray, "items dim"]
    added: Additions | None = None

    def __post_init__(self) -> None:
        for name, vectors in (("user", self.queries), ("item", self.items)):
            sums = vectors.sum(axis=1)
            if not np.isfinite(sums).all():
                row = int(np.argmin(np.isfinite(sums)))
                raise RequestError(
                    f"{name} vector {row} contains NaN or infinity: the model has diverged. Lower "
                    f"train.learning_rate, or look for NaN in the {name}s' features."
                )

    def __call__(self, users: slice | Int64[np.ndarray, "_"]) -> Float32[np.ndarray, "queries items"]:
        """Returns the scores of these users for all items."""
        scores: Float32[np.ndarray, "queries items"] = self.queries[users] @ self.items.T
        self.repeated.level(scores, slice(0, len(self.items)), scores[:, self.repeated.firsts])
        if self.added is not None:
            added = self.added.of(np.arange(len(self.queries))[users])
            scores[added.rows.lines, added.rows.values] += added.values
        return scores

    @cached_property
    def repeated(self) -> Repeated:
        """Items that share a vector."""
        return find_repeated(self.items)

    def of(self, users: Int64[np.ndarray, "_"]) -> "Products":
        """Returns the scores of the chosen users, in the given order."""
        return Products(self.queries[users], self.items, None if self.added is None else self.added.of(users))

    def pairs(
        self, users: Int64[np.ndarray, "pairs"], item_rows: Int64[np.ndarray, "pairs"]
    ) -> Float32[np.ndarray, "pairs"]:
        """Returns the score of each pair."""
        scores = np.empty(len(users), np.float32)
        for part in chunks(len(users), _CHUNK_PAIRS):
            scores[part] = np.vecdot(self.queries[users[part]], self.items[item_rows[part]])
        if self.added is not None:
            scores += self.added.pairs(users, item_rows, num_items=len(self.items))
        return scores
