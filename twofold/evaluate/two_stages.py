"""A retriever and what orders its best items anew, judged as one thing by every protocol."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float32, Int64

from twofold.evaluate.scores import Products, rank_products, users_at_once
from twofold.ragged import Ragged, chunks
from twofold.topk import tie_order

ScorePairs = Callable[
    [Int64[np.ndarray, "queries"], Int64[np.ndarray, "queries length"], Int64[np.ndarray, "queries length"]],
    Float32[np.ndarray, "queries length"],
]
"""Scores of the second stage: lines of the window, item rows of each, and where the first stage places them, from 0; as
many as it was asked for where it did not find them."""

FIRST_STAGE: Final = "retriever alone"
"""The row of a report that both stages are compared with."""
_PAIRS: Final = 2**15  # scored at once


@dataclass(frozen=True)
class TwoStages:
    """A ScoreBlock: the candidates above everything else, in the ranker's order; then all others, in the retriever's.

    So whatever the ranker says, the items it was given stay the first ones: recall at their number is the retriever's.
    """

    retrieved: Products
    found: Int64[np.ndarray, "users top"]
    """Each user's best unseen items by falling score of the retriever, -1 where fewer are left."""
    ranked: Int64[np.ndarray, "users top"]
    """The same as the ranker orders them."""
    score_pairs: ScorePairs

    def __call__(self, users: slice) -> Float32[np.ndarray, "queries items"]:
        """Scores whose order is that of both stages; their size means nothing."""
        scores, chosen = self.retrieved(users), self.ranked[users]
        above = 1 + np.abs(scores).max(initial=0)
        line, place = np.nonzero(chosen >= 0)
        scores[line, chosen[line, place]] = above * (1 + chosen.shape[1] - place)
        return scores

    def pairs(
        self, lines: Int64[np.ndarray, "pairs"], item_rows: Int64[np.ndarray, "pairs"]
    ) -> Float32[np.ndarray, "pairs"]:
        """What the ranker says of pairs, found by the retriever or not: impressions are ordered by it alone."""
        return score_impressions(self.found, self.score_pairs, lines, item_rows)


def score_impressions(
    found: Int64[np.ndarray, "users top"],
    score_pairs: ScorePairs,
    lines: Int64[np.ndarray, "pairs"],
    item_rows: Int64[np.ndarray, "pairs"],
) -> Float32[np.ndarray, "pairs"]:
    """What the second stage says of single pairs, whether the first has `found` the item or not."""
    scores = np.empty(len(lines), np.float32)
    for part in chunks(len(lines), _PAIRS):
        asked = item_rows[part, None]
        is_it = found[lines[part]] == asked
        places = np.where(is_it.any(axis=1), is_it.argmax(axis=1), found.shape[1])
        scores[part] = score_pairs(lines[part], asked, places[:, None])[:, 0]
    return scores


def find_best(retrieved: Products, *, seen: Ragged, top: int) -> Int64[np.ndarray, "users top"]:
    """Every user's `top` best items that are not `seen`, exactly; -1 where fewer are left."""
    users = len(retrieved.queries)
    found = np.empty((users, min(top, len(retrieved.factors))), np.int64)
    for part in users_at_once(users):
        found[part] = rank_products(retrieved, part, found.shape[1], excluded=seen.part(part))
    return found


def rank_in_two_stages(retrieved: Products, score_pairs: ScorePairs, *, seen: Ragged, top: int) -> TwoStages:
    """Finds every user's `top` best items that are not `seen`, exactly, and has the second stage order them.

    Equal scores of the second stage keep the fixed order of ties.
    """
    found, (rank, _) = find_best(retrieved, seen=seen, top=top), tie_order(len(retrieved.factors))
    ranked = np.empty_like(found)
    for part in users_at_once(len(found)):
        there = np.maximum(found[part], 0)
        places = np.tile(np.arange(there.shape[1]), (len(there), 1))
        scores = score_pairs(np.arange(part.start, part.stop), there, places)
        order = np.lexsort((-rank[there], np.where(found[part] >= 0, -scores, np.inf)))
        ranked[part] = np.take_along_axis(found[part], order, axis=1)
    return TwoStages(retrieved, found, ranked, score_pairs)
