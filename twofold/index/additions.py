"""Additions to the scores of some items of each query, such as those that a user saw before.

An index answers inner products. An addition is known for few items of a query: these are left out of its search, scored
apart, and merged with what was found, so that the result is that of a search over the sums.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float32, Int64

from twofold.index.score_kinds import Score, pair_scores
from twofold.ragged import Ragged
from twofold.topk import NOT_ALLOWED, Additions, TopK, best_of


def keep_additions(added: Additions, excluded: Ragged, is_allowed: Bool[np.ndarray, "_"]) -> Additions:
    """Returns the additions to items that are allowed and that their query does not exclude."""
    kept = is_allowed & ~excluded.contains(added.rows.lines, added.rows.values)
    return Additions(added.rows.where(kept), added.values[kept])


def merge_additions(
    found: TopK,
    added: Additions,
    vectors_of: Callable[[Int64[np.ndarray, "_"]], Float32[np.ndarray, "_ dim"]],
    queries: Float32[np.ndarray, "queries dim"],
    *,
    score: Score,
    rank: Int64[np.ndarray, "items"],
) -> TopK:
    """Merges what was found without the items of `added` with these items, by score plus addition.

    `vectors_of` returns the vectors of item rows. `rank` breaks ties: see `tie_order`.
    """
    k, best = found.item_rows.shape[1], []
    for query, (first, end) in enumerate(pairwise(added.rows.offsets)):  # the vectors of one query stay in the cache
        rows = added.rows.values[first:end]
        scores = np.asarray(pair_scores(vectors_of(rows), queries[query], score) + added.values[first:end], np.float32)
        if len(rows) > k:
            is_best = scores >= np.partition(scores, len(rows) - k)[len(rows) - k]
            rows, scores = rows[is_best], scores[is_best]
        best.append((rows, scores))
    shape = (len(queries), max((len(rows) for rows, _ in best), default=0))
    own_rows, own_scores = np.full(shape, -1), np.full(shape, NOT_ALLOWED)
    for query, (rows, scores) in enumerate(best):
        own_rows[query, : len(rows)], own_scores[query, : len(rows)] = rows, scores
    all_rows, all_scores = np.hstack([found.item_rows, own_rows]), np.hstack([found.scores, own_scores])
    return best_of(all_rows, all_scores, k, rank=rank)
