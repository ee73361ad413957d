"""Additions to the scores of some items of each query, such as those that a user met before.

An index answers inner products. An addition is known for few items of a query: these are left out of its search, scored
apart, and merged with what was found, so that the result is that of a search over the sums.
"""

import numpy as np
from jaxtyping import Bool, Float32, Int64

from twofold.index.exact import keep_where
from twofold.index.score_kinds import Score, pair_scores
from twofold.ragged import Ragged
from twofold.topk import NOT_ALLOWED, Additions, TopK, best_of


def keep_additions(added: Additions, excluded: Ragged, is_allowed: Bool[np.ndarray, "_"]) -> Additions:
    """Returns the additions to items that are allowed and that their query does not exclude."""
    width = int(max(added.rows.values.max(initial=0), excluded.values.max(initial=0))) + 1
    is_excluded = np.isin(added.rows.lines * width + added.rows.values, excluded.lines * width + excluded.values)
    kept = is_allowed & ~is_excluded
    return Additions(keep_where(added.rows, added.rows.values, kept), added.values[kept])


def merge_additions(
    found: TopK,
    added: Additions,
    vectors: Float32[np.ndarray, "pairs dim"],
    queries: Float32[np.ndarray, "queries dim"],
    *,
    score: Score,
    rank: Int64[np.ndarray, "items"],
) -> TopK:
    """Merges what was found without the items of `added` with these items, by score plus addition.

    `vectors` are those of the items, in their order. `rank` breaks ties: see `tie_order`.
    """
    lines, rows, k = added.rows.lines, added.rows.values, found.item_rows.shape[1]
    scores = np.asarray(pair_scores(vectors, queries[lines], score) + added.values, np.float32)
    places = np.arange(len(rows)) - np.repeat(added.rows.offsets[:-1], added.rows.sizes)
    shape = (len(queries), int(added.rows.sizes.max(initial=0)))
    own_rows, own_scores = np.full(shape, -1), np.full(shape, NOT_ALLOWED)
    own_rows[lines, places], own_scores[lines, places] = rows, scores
    all_rows, all_scores = np.hstack([found.item_rows, own_rows]), np.hstack([found.scores, own_scores])
    return best_of(all_rows, all_scores, k, rank=rank)
