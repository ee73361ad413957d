"""Baselines that every report contains: random, popularity, item-kNN, EASE and iALS, from positives before the window.

Each function returns the `ScoreBlock` of a window's users. Popularity decides among items whose score is 0, and so for
an item-kNN, EASE or iALS user without any positive.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

import numpy as np
import scipy.linalg
import scipy.sparse
from jaxtyping import Float32, Int64

from twofold.dataset.dataset import Dataset
from twofold.errors import RequestError
from twofold.evaluate.scores import ScoreBlock
from twofold.evaluate.window import SEED, EvaluationWindow
from twofold.ragged import chunks
from twofold.tables import DAY_MS
from twofold.topk import Products, top_k

EASE_MAX_ITEMS: Final = 20_000  # a matrix of 1.6 GB and minutes of 2 cores; 7,502 items take 8 s
IALS_MAX_POSITIVES: Final = 20_000_000  # minutes of 2 cores
CHUNK_ELEMENTS: Final = 2**23  # pairs of items that item-kNN compares at once
_RECENT_DAYS: Final = 2


@dataclass(frozen=True)
class Interactions:
    """Positive events before the window: user, item and UTC time in ms. Any order; pairs may repeat."""

    user_rows: Int64[np.ndarray, "length"]
    item_rows: Int64[np.ndarray, "length"]
    at: Int64[np.ndarray, "length"]
    num_users: int
    num_items: int


def random_scores(num_items: int, *, seed: int = 0) -> ScoreBlock:
    """Returns uniform random scores. A user's scores depend only on the seed and on the user's index."""

    def score_block(users: slice) -> Float32[np.ndarray, "queries items"]:
        rows = [
            np.random.default_rng((seed, user)).random(num_items, np.float32) for user in range(users.start, users.stop)
        ]
        return np.stack(rows)

    return score_block


def popularity(positives: Interactions) -> ScoreBlock:
    """Returns the number of positives of each item, the same list for every user."""
    return _same_for_all(_counts(positives.item_rows, positives.num_items))


def recent_popularity(positives: Interactions, *, end: int, days: int) -> ScoreBlock:
    """Returns the number of positives of each item in the `days` days before `end`, the window's start (UTC ms)."""
    recent = (positives.at >= end - days * DAY_MS) & (positives.at < end)
    return _same_for_all(_counts(positives.item_rows[recent], positives.num_items))


def item_knn(
    positives: Interactions, user_rows: Int64[np.ndarray, "users"], *, shrink: float = 10.0, neighbours: int = 500
) -> ScoreBlock:
    """Sums the shrunk cosines of an item with a user's positives, for each item's nearest `neighbours` only.

    cos(i, j) = c_ij / (√(c_i c_j) + shrink), c being the number of users that like one or both (Sarwar et al. 2001;
    shrinkage as in Bell and Koren 2007). `user_rows` are those of the window's users. The defaults were the best
    compromise of recall@100 and ndcg@10 among shrink 0..100 and 50..1000 neighbours on the validation day of
    KuaiRand-Pure.
    """
    likes = _likes(positives)
    count = np.asarray(likes.sum(axis=0), np.float32).reshape(-1)
    transposed = likes.T.tocsr()
    width = min(neighbours, positives.num_items)
    parts = []
    for items in chunks(positives.num_items, max(1, CHUNK_ELEMENTS // positives.num_items)):
        both = (transposed[items] @ likes).toarray()  # (block, items)
        cosine = both / (np.sqrt(count[items, None] * count) + np.float32(shrink) + np.float32(1e-9))
        cosine[np.arange(len(cosine)), np.arange(items.start, items.stop)] = 0
        best = top_k(cosine, width)
        shape = (len(cosine), positives.num_items)
        offsets = np.arange(0, best.item_rows.size + 1, width)
        part = scipy.sparse.csr_matrix((best.scores.reshape(-1), best.item_rows.reshape(-1), offsets), shape=shape)
        part.eliminate_zeros()
        parts.append(part)
    near = scipy.sparse.vstack(parts).T.tocsr()  # near[j, i] > 0: j is among the nearest of i
    return _from_history(likes, user_rows, near)


def ease(positives: Interactions, user_rows: Int64[np.ndarray, "users"], *, l2: float = 500.0) -> ScoreBlock:
    """Fits EASE (Steck, WWW 2019, eq. 8): B = I - P / diag(P) with P = (XᵀX + l2·I)⁻¹; a user's scores are x·B.

    The cost is cubic in the number of items; RequestError above `EASE_MAX_ITEMS`. On the validation day of
    KuaiRand-Pure l2 = 100, 200, 400, 500, 800 gave recall@100 .344, .354, .365, .365, .367.
    """
    items = positives.num_items
    if items > EASE_MAX_ITEMS:
        raise RequestError(
            f"EASE inverts a matrix of items × items, so it is limited to {EASE_MAX_ITEMS:,} items, not {items:,}. "
            "Leave it out, and compare with item-kNN."
        )
    likes = _likes(positives)
    gram = (likes.T @ likes).toarray() + np.float32(l2) * np.eye(items, dtype=np.float32)
    factor = scipy.linalg.cholesky(gram, lower=True, overwrite_a=True, check_finite=False)
    inverse, info = scipy.linalg.lapack.get_lapack_funcs("potri", (factor,))(factor, lower=True, overwrite_c=True)
    assert info == 0, "XᵀX + l2·I is positive definite for l2 > 0"
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return _from_history(likes, user_rows, weights)


def ials(positives: Interactions, user_rows: Int64[np.ndarray, "users"], *, seed: int = 0) -> Products:
    """Fits weighted alternating least squares (Hu, Koren, Volinsky, ICDM 2008) with the library `implicit`.

    64 dimensions, 15 iterations, and the alpha and regularization that were best on the validation day of
    KuaiRand-Pure. ImportError without the library; RequestError above `IALS_MAX_POSITIVES`.
    """
    from implicit.cpu.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    if len(positives.user_rows) > IALS_MAX_POSITIVES:
        raise RequestError(
            f"iALS as a baseline is limited to {IALS_MAX_POSITIVES:,} positives, not {len(positives.user_rows):,}. "
            "Train it as a retriever instead: kind: ials."
        )
    confidence = _likes(positives)
    tie_breaker = _tie_breaker(confidence)
    confidence.data += np.float32(40)
    with threadpool_limits(limits=1, user_api="blas"):  # each thread solves whole users
        als = AlternatingLeastSquares(
            factors=64, regularization=300, alpha=1.0, iterations=15, use_cg=False, random_state=seed
        )
        als.fit(confidence, show_progress=False)
    ones = np.ones((len(user_rows), 1), np.float32)
    return Products(np.hstack([als.user_factors[user_rows], ones]), np.hstack([als.item_factors, tie_breaker[:, None]]))


def popularity_of_own(
    positives: Interactions, user_rows: Int64[np.ndarray, "users"], group: Int64[np.ndarray, "items"]
) -> ScoreBlock:
    """Ranks by popularity, the items of the group that a user likes most before all others; `group` -1 is unknown.

    Ties between groups go to the lower number. Users who like nothing of a known group get plain popularity.
    """
    count = _counts(positives.item_rows, positives.num_items)
    share = count / max(float(count.max(initial=0)), 1.0)
    known = group[positives.item_rows] >= 0
    shape = (positives.num_users, int(group.max(initial=0)) + 1)
    pairs = (positives.user_rows[known], group[positives.item_rows[known]])
    likes = scipy.sparse.csr_matrix((np.ones(len(pairs[0]), np.float32), pairs), shape=shape)
    own = np.asarray(likes[user_rows].argmax(axis=1)).reshape(-1)
    own[np.diff(likes[user_rows].indptr) == 0] = -2

    def score_block(users: slice) -> Float32[np.ndarray, "queries items"]:
        return np.asarray(share + (group == own[users, None]), np.float32)

    return score_block


def _from_history(
    likes: scipy.sparse.csr_matrix, user_rows: Int64[np.ndarray, "users"], weights: scipy.sparse.csr_matrix | np.ndarray
) -> ScoreBlock:
    """Returns the scores likes × weights, plus a popularity that is too small to outrank them."""
    tie_breaker = _tie_breaker(likes)

    def score_block(users: slice) -> Float32[np.ndarray, "queries items"]:
        scores = likes[user_rows[users]] @ weights
        dense: Float32[np.ndarray, "queries items"] = scores.toarray() if scipy.sparse.issparse(scores) else scores
        dense += tie_breaker
        return dense

    return score_block


def _tie_breaker(likes: scipy.sparse.csr_matrix) -> Float32[np.ndarray, "items"]:
    """Returns popularity scaled to at most a millionth."""
    count = np.asarray(likes.sum(axis=0), np.float32).reshape(-1)
    return np.asarray(np.float32(1e-6) * count / max(float(count.max(initial=0)), 1.0), np.float32)


def _likes(positives: Interactions) -> scipy.sparse.csr_matrix:
    """Returns the matrix users × items: 1 if the user liked the item, any number of times."""
    ones = np.ones(len(positives.user_rows), np.float32)
    shape = (positives.num_users, positives.num_items)
    likes = scipy.sparse.csr_matrix((ones, (positives.user_rows, positives.item_rows)), shape=shape)
    likes.data[:] = 1  # repeated pairs were summed
    return likes


def _counts(item_rows: Int64[np.ndarray, "length"], num_items: int) -> Float32[np.ndarray, "items"]:
    counts: Float32[np.ndarray, " items"] = np.bincount(item_rows, minlength=num_items).astype(np.float32)
    return counts


def _same_for_all(scores: Float32[np.ndarray, "items"]) -> ScoreBlock:
    return lambda users: np.tile(scores, (users.stop - users.start, 1))


def baseline_scores(
    window: EvaluationWindow, positives: Interactions, groups: Mapping[str, Int64[np.ndarray, "items"]]
) -> tuple[dict[str, ScoreBlock], tuple[str, ...]]:
    """Returns the baselines of a report, one also per grouping of items, and those left out, with the reasons."""
    recent = recent_popularity(positives, end=int(window.query_at.min()), days=_RECENT_DAYS)
    rows = {
        "random": random_scores(window.num_items, seed=SEED),
        "popularity": popularity(positives),
        f"popularity, last {_RECENT_DAYS} days": recent,
        **{f"popularity, own {by}": popularity_of_own(positives, window.user_rows, g) for by, g in groups.items()},
        "item-kNN": item_knn(positives, window.user_rows),
    }
    left_out = []
    if window.num_items > EASE_MAX_ITEMS:
        left_out.append(f"EASE: its cost is cubic in the number of items, so it is limited to {EASE_MAX_ITEMS:,} items")
    else:
        rows["EASE"] = ease(positives, window.user_rows)
    if find_spec("implicit") is None:
        left_out.append("iALS: the library implicit is not installed, pip install 'twofold[train]'")
    elif len(positives.user_rows) > IALS_MAX_POSITIVES:
        left_out.append(f"iALS: as a baseline it is limited to {IALS_MAX_POSITIVES:,} positives")
    else:
        rows["iALS"] = ials(positives, window.user_rows, seed=SEED)
    return rows, tuple(left_out)


def positives_before(dataset: Dataset, window: EvaluationWindow, *, first_at: int | None) -> Interactions:
    """Returns the positives from which baselines may learn: all events before the window began at `first_at`.

    `None` means that users have windows of their own: then they are the events of each of the window's users before the
    request, and all events of other users.
    """
    positives = dataset.positives
    until = np.full(len(dataset.users), np.iinfo(np.int64).max if first_at is None else first_at)
    if first_at is None:
        until[window.user_rows] = window.query_at
    owner = np.repeat(np.arange(len(dataset.users)), np.diff(positives.offsets))
    keep = np.flatnonzero(np.asarray(positives.at) < until[owner])
    return Interactions(
        user_rows=owner[keep],
        item_rows=np.asarray(positives.item_rows)[keep].astype(np.int64),
        at=np.asarray(positives.at)[keep],
        num_users=len(dataset.users),
        num_items=len(dataset.items),
    )
