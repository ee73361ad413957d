"""Baselines with fitted parameters: item-kNN, EASE and iALS, each alone and with a recency prior.

A `fit_…` function learns from `Interactions` and returns a frozen `Peer`, which scores every item for any user of the
data set, in blocks of users. Popularity, scaled to a millionth, decides among items whose score is 0, and so orders the
list of a user without any positive.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Protocol, runtime_checkable

import numpy as np
import scipy.linalg
import scipy.sparse
from jaxtyping import Float32, Int64

from twofold.dataset.histories import search_slices
from twofold.errors import RequestError
from twofold.least_squares import Factors, LeastSquares, factorize
from twofold.ragged import chunks
from twofold.tables import DAY_MS
from twofold.topk import Products

EASE_MAX_ITEMS: Final = 20_000  # a matrix of 1.6 GB, and a minute of 2 cores for each inverse
IALS_MAX_POSITIVES: Final = 20_000_000  # minutes of 2 cores
IALS_ITERATIONS: Final = 15
CHUNK_ELEMENTS: Final = 2**24  # pairs of likes that a thread of item-kNN adds up at once
_THREADS: Final = 2
_CHUNK_LIKES: Final = 2**22  # weights gathered at once


@dataclass(frozen=True)
class Interactions:
    """Positive events from which baselines learn: user, item and UTC time in ms. Any order; pairs may repeat."""

    user_rows: Int64[np.ndarray, "length"]
    item_rows: Int64[np.ndarray, "length"]
    at: Int64[np.ndarray, "length"]
    until: Int64[np.ndarray, "users"]
    """Time of each user's request, UTC ms: the last days before it count for `Recency`."""
    num_users: int
    num_items: int

    @cached_property
    def likes(self) -> scipy.sparse.csr_matrix:
        """Matrix users × items: 1 if the user liked the item, any number of times."""
        ones = np.ones(len(self.user_rows), np.float32)
        shape = (self.num_users, self.num_items)
        likes = scipy.sparse.csr_matrix((ones, (self.user_rows, self.item_rows)), shape=shape)
        likes.data[:] = 1  # repeated pairs were summed
        return likes

    @cached_property
    def tie_breaker(self) -> Float32[np.ndarray, "items"]:
        """Number of users who like each item, scaled to at most a millionth."""
        count = np.asarray(self.likes.sum(axis=0), np.float32).reshape(-1)
        return np.asarray(np.float32(1e-6) * count / max(float(count.max(initial=0)), 1.0), np.float32)


@runtime_checkable
class Peer(Protocol):
    """A fitted baseline."""

    def scores(self, user_rows: Int64[np.ndarray, "queries"]) -> Float32[np.ndarray, "queries items"]:
        """Returns the scores of all items for these users; the caller may overwrite the array."""
        ...

    def pair_scores(
        self, user_rows: Int64[np.ndarray, "pairs"], item_rows: Int64[np.ndarray, "pairs"]
    ) -> Float32[np.ndarray, "pairs"]:
        """Returns the scores of pairs of user and item."""
        ...


@dataclass(frozen=True)
class ItemWeights:
    """A peer that adds up, for an item, the weights of the items that the user likes: item-kNN and EASE.

    Sums are divided by the root of the user's number of likes: this leaves the order as it is, and brings the scores of
    users with many and with few likes in proportion to a recency prior, as where the peer is served (`ItemSums`).
    """

    positives: Interactions
    weights: scipy.sparse.csr_matrix | Float32[np.ndarray, "items items"]
    """Entry [j, i] is what a like of item j adds to the score of item i."""

    def scores(self, user_rows: Int64[np.ndarray, "queries"]) -> Float32[np.ndarray, "queries items"]:
        """Returns the scores of all items for these users; the caller may overwrite the array."""
        likes = self.positives.likes[user_rows]
        scores = likes @ self.weights
        dense: Float32[np.ndarray, "queries items"] = scores.toarray() if scipy.sparse.issparse(scores) else scores
        dense /= _roots(likes)[:, None]
        dense += self.positives.tie_breaker
        return dense

    def pair_scores(
        self, user_rows: Int64[np.ndarray, "pairs"], item_rows: Int64[np.ndarray, "pairs"]
    ) -> Float32[np.ndarray, "pairs"]:
        """Returns the scores of pairs of user and item."""
        scores: Float32[np.ndarray, "pairs"] = self.positives.tie_breaker[item_rows]
        longest = int(np.diff(self.positives.likes.indptr).max(initial=1))
        for part in chunks(len(user_rows), max(1, _CHUNK_LIKES // max(longest, 1))):
            likes = self.positives.likes[user_rows[part]]
            pair = np.repeat(np.arange(part.stop - part.start), np.diff(likes.indptr))
            added = np.asarray(self.weights[likes.indices, item_rows[part][pair]]).reshape(-1)
            sums = np.bincount(pair, added, minlength=part.stop - part.start).astype(np.float32)
            scores[part] += sums / _roots(likes)
        return scores


def _roots(likes: scipy.sparse.csr_matrix) -> Float32[np.ndarray, "queries"]:
    """Returns the root of the number of distinct items that each user likes, at least 1."""
    return np.sqrt(np.maximum(np.diff(likes.indptr), 1), dtype=np.float32)


@dataclass(frozen=True)
class Ials:
    """A peer whose score is the inner product of a user vector and an item vector.

    To score another history, solve its vector with `FoldIn`.
    """

    positives: Interactions
    factors: Factors

    def scores(self, user_rows: Int64[np.ndarray, "queries"]) -> Float32[np.ndarray, "queries items"]:
        """Returns the scores of all items for these users; the caller may overwrite the array."""
        scores: Float32[np.ndarray, "queries items"] = (
            self.factors.user_vectors[user_rows] @ self.factors.item_vectors.T
        )
        scores += self.positives.tie_breaker
        return scores

    def pair_scores(
        self, user_rows: Int64[np.ndarray, "pairs"], item_rows: Int64[np.ndarray, "pairs"]
    ) -> Float32[np.ndarray, "pairs"]:
        """Returns the scores of pairs of user and item."""
        scores = Products(self.factors.user_vectors, self.factors.item_vectors).pairs(user_rows, item_rows)
        scores += self.positives.tie_breaker[item_rows]
        return scores


@dataclass(frozen=True)
class Recency:
    """A peer that scores an item by log(1 + its positives in the `days` days before the user's request)."""

    positives: Interactions
    days: int

    @cached_property
    def _by_time(self) -> tuple[Int64[np.ndarray, "length"], Int64[np.ndarray, "length"]]:
        order = np.argsort(self.positives.at, kind="stable")
        return self.positives.at[order], self.positives.item_rows[order]

    @cached_property
    def _by_item(self) -> tuple[Int64[np.ndarray, "length"], Int64[np.ndarray, "_"]]:
        """Times of the positives, those of one item together and in order, and where each item's begin."""
        order = np.lexsort((self.positives.at, self.positives.item_rows))
        items = np.arange(self.positives.num_items + 1)
        return self.positives.at[order], np.searchsorted(self.positives.item_rows[order], items).astype(np.int64)

    def scores(self, user_rows: Int64[np.ndarray, "queries"]) -> Float32[np.ndarray, "queries items"]:
        """Returns the scores of all items for these users; the caller may overwrite the array."""
        (at, item_rows), num_items = self._by_time, self.positives.num_items
        until, query_of = np.unique(self.positives.until[user_rows], return_inverse=True)
        low, high = (np.searchsorted(at, each) for each in (until - self.days * DAY_MS, until))
        counts = np.zeros(num_items, np.int64)
        scores = np.empty((len(until), num_items), np.float32)
        before_low = before_high = int(low[0]) if len(low) else 0
        for row in range(len(until)):  # the window only moves forward, so each positive enters and leaves once
            np.add.at(counts, item_rows[before_high : high[row]], 1)
            np.subtract.at(counts, item_rows[before_low : low[row]], 1)
            before_low, before_high = low[row], high[row]
            np.log1p(counts, out=scores[row], dtype=np.float32, casting="same_kind")
        return scores[query_of]

    def pair_scores(
        self, user_rows: Int64[np.ndarray, "pairs"], item_rows: Int64[np.ndarray, "pairs"]
    ) -> Float32[np.ndarray, "pairs"]:
        """Returns the scores of pairs of user and item."""
        (at, offsets), until = self._by_item, self.positives.until[user_rows]
        first, end = offsets[item_rows], offsets[item_rows + 1]
        low, high = (search_slices(at, first, end, each) for each in (until - self.days * DAY_MS, until))
        return np.log1p(high - low).astype(np.float32)


@dataclass(frozen=True)
class WithRecency:
    """A peer's scores plus `weight` times those of the recency prior. The weight is in units of the peer's score."""

    peer: Peer
    recency: Recency
    weight: float

    def scores(self, user_rows: Int64[np.ndarray, "queries"]) -> Float32[np.ndarray, "queries items"]:
        """Returns the scores of all items for these users; the caller may overwrite the array."""
        scores = self.recency.scores(user_rows)
        scores *= np.float32(self.weight)
        scores += self.peer.scores(user_rows)
        return scores

    def pair_scores(
        self, user_rows: Int64[np.ndarray, "pairs"], item_rows: Int64[np.ndarray, "pairs"]
    ) -> Float32[np.ndarray, "pairs"]:
        """Returns the scores of pairs of user and item."""
        recency = np.float32(self.weight) * self.recency.pair_scores(user_rows, item_rows)
        return self.peer.pair_scores(user_rows, item_rows) + recency


@dataclass(frozen=True)
class PeerScores:
    """A peer's scores of the users of a window, as a `ScoreBlock`."""

    peer: Peer
    user_rows: Int64[np.ndarray, "users"]

    def __call__(self, users: slice) -> Float32[np.ndarray, "queries items"]:
        """Returns the scores of a slice of the window's users for all items."""
        return self.peer.scores(self.user_rows[users])

    def pairs(
        self, users: Int64[np.ndarray, "pairs"], item_rows: Int64[np.ndarray, "pairs"]
    ) -> Float32[np.ndarray, "pairs"]:
        """Returns the score of each pair of a user of the window and an item."""
        return self.peer.pair_scores(self.user_rows[users], item_rows)


def fit_item_knn(
    positives: Interactions,
    *,
    shrink: float = 10.0,
    neighbors: int = 500,
    activity: float = 0.0,
    popularity: float = 0.5,
    asymmetry: float = 0.0,
) -> ItemWeights:
    """Computes what a like of each of the nearest `neighbors` of an item, and of all equally near, adds to its score.

    sim(i, j) = Σ v_u / (c_i^(popularity - asymmetry) · c_j^(popularity + asymmetry) + shrink) for the scored item i and
    the liked item j, summed over the users u who like both; c is the number of users that like an item. v_u falls with
    the number d_u of items that the user likes, as d_u^-activity, and has a mean of 1 over all positives. The defaults
    are the shrunk cosine (Sarwar et al. 2001; shrinkage as in Bell and Koren 2007). Activity and popularity are the two
    damping constants of random walks on the graph of users and items (Christoffel et al., RecSys 2015, RP3β), and
    asymmetry is that of the asymmetric cosine (Aiolli, RecSys 2013, section 3.1).
    """
    likes, items = positives.likes, positives.num_items
    count = np.asarray(likes.sum(axis=0), np.float32).reshape(-1)
    powers = (popularity - asymmetry, popularity + asymmetry)
    scored, liked = (np.maximum(count, 1) ** np.float32(power) for power in powers)
    weighted, transposed = _damp_active_users(likes, activity), likes.T.tocsr()
    cost = np.concatenate([[0], np.cumsum(transposed @ np.diff(likes.indptr))])  # at least the pairs that a row holds
    cuts = np.searchsorted(cost, np.arange(CHUNK_ELEMENTS, cost[-1], CHUNK_ELEMENTS))
    bounds = np.unique([0, *cuts, items])

    def nearest(first: int, end: int) -> scipy.sparse.csr_matrix:
        near = transposed[first:end] @ weighted
        row = np.repeat(np.arange(first, end), np.diff(near.indptr))
        near.data /= scored[row] * liked[near.indices] + np.float32(shrink)
        near.data[row == near.indices] = 0
        _keep_largest(near, neighbors)
        return near

    with ThreadPoolExecutor(_THREADS) as pool:  # SciPy and NumPy leave the other thread free
        parts = list(pool.map(nearest, bounds[:-1].tolist(), bounds[1:].tolist()))
    return ItemWeights(positives, scipy.sparse.vstack(parts).T.tocsr())


def _keep_largest(rows: scipy.sparse.csr_matrix, most: int) -> None:
    """Drops from each row the values that are smaller than its `most` largest, and zeros."""
    for low, high in itertools.pairwise(rows.indptr):
        if high - low > most:
            values = rows.data[low:high]
            values[values < np.partition(values, -most)[-most]] = 0
    rows.eliminate_zeros()


def _damp_active_users(likes: scipy.sparse.csr_matrix, activity: float) -> scipy.sparse.csr_matrix:
    """Returns the likes with the weights of their users: see `fit_item_knn`."""
    sizes = np.diff(likes.indptr).astype(np.float32)
    weights = np.where(sizes > 0, np.maximum(sizes, 1) ** np.float32(-activity), 0)
    weights *= np.float32(sizes.sum() / max(float(sizes @ weights), 1e-30))
    return (scipy.sparse.diags(weights) @ likes).astype(np.float32)


def fit_ease(positives: Interactions, *, l2: float = 500.0) -> ItemWeights:
    """Fits EASE (Steck, WWW 2019, eq. 8): B = I - P / diag(P) with P = (XᵀX + l2·I)⁻¹; a user's scores are x·B.

    The cost is cubic in the number of items with a positive; RequestError above `EASE_MAX_ITEMS` items.
    """
    likes, items = positives.likes, positives.num_items
    if items > EASE_MAX_ITEMS:
        raise RequestError(
            f"EASE inverts a matrix of items × items, so it is limited to {EASE_MAX_ITEMS:,} items, not {items:,}. "
            "Leave it out, and compare with item-kNN."
        )
    weights = np.zeros((items, items), np.float32)
    liked = np.flatnonzero(np.asarray(likes.sum(axis=0)).reshape(-1))  # all other rows and columns of B are 0
    if not len(liked):
        return ItemWeights(positives, weights)
    part = likes[:, liked]
    gram = (part.T @ part).toarray() + np.float32(l2) * np.eye(len(liked), dtype=np.float32)
    factor = scipy.linalg.cholesky(gram, lower=True, overwrite_a=True, check_finite=False)
    inverse, info = scipy.linalg.lapack.get_lapack_funcs("potri", (factor,))(factor, lower=True, overwrite_c=True)
    assert info == 0, "XᵀX + l2·I is positive definite for l2 > 0"
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    inverse /= -np.diag(inverse)
    np.fill_diagonal(inverse, 0)
    weights[np.ix_(liked, liked)] = inverse
    return ItemWeights(positives, weights)


def fit_ials(
    positives: Interactions,
    *,
    dim: int = 128,
    alpha: float = 40.0,
    regularization: float = 300.0,
    power: float = 0.0,
    iterations: int = IALS_ITERATIONS,
) -> Ials:
    """Fits iALS by `twofold.least_squares`; the confidence of a liked pair is 1 + alpha.

    RequestError above `IALS_MAX_POSITIVES`.
    """
    if len(positives.user_rows) > IALS_MAX_POSITIVES:
        raise RequestError(
            f"iALS as a baseline is limited to {IALS_MAX_POSITIVES:,} positives, not {len(positives.user_rows):,}. "
            "Train it as a retriever instead: kind: ials."
        )
    return Ials(positives, factorize(positives.likes, LeastSquares(dim, alpha, regularization, power, iterations)))
