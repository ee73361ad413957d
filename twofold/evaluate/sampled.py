"""The papers' protocol: each positive against a hundred sampled items. For comparing with papers, and for nothing else.

It can order two models otherwise than the catalogue does (Krichene and Rendle, KDD 2020), so its names begin with
`sampled/` and stand in no report of ours.
"""

from typing import Final

import numpy as np
from jaxtyping import Int64

from twofold.errors import RequestError
from twofold.evaluate.metrics import ranking_metrics
from twofold.evaluate.protocols import JudgedWindow, PerUser, scores_of_lists
from twofold.evaluate.ranking import ScoreBlock
from twofold.topk import Ragged, tie_order

KS: Final = (1, 5, 10)


def draw_negatives(window: JudgedWindow, count: int, *, seed: int) -> Int64[np.ndarray, "pairs count"]:
    """For every pair of `window.relevant`, items that its user neither saw nor liked; each as likely, with replacement.

    RequestError where a user has no such item.
    """
    items, relevant = window.num_items, window.relevant
    taken = [lists.lines * items + lists.values for lists in (window.seen, relevant)]
    forbidden = np.unique(np.concatenate(taken))
    full = np.bincount(forbidden // items, minlength=len(relevant.sizes)) == items
    if (full & (relevant.sizes > 0)).any():
        line = int(np.flatnonzero(full & (relevant.sizes > 0))[0])
        raise RequestError(
            f"user row {window.user_rows[line]} has seen or liked all {items} items: there is no negative to draw. "
            "Judge by the catalogue instead."
        )
    rng = np.random.default_rng(seed)
    own = np.repeat(relevant.lines[:, None], count, axis=1)
    drawn = rng.integers(0, items, own.shape)
    while (wrong := np.isin(own * items + drawn, forbidden)).any():
        drawn[wrong] = rng.integers(0, items, int(wrong.sum()))
    return drawn


def judge_sampled(
    window: JudgedWindow, score_block: ScoreBlock, negatives: Int64[np.ndarray, "pairs count"]
) -> PerUser:
    """Hit rate, NDCG and MRR of each positive among itself and its line of negatives; a user's value is the mean.

    `negatives` are drawn (`draw_negatives`) or published with a data set; the positive itself among them does not
    compete.
    """
    pairs, count = negatives.shape
    relevant = window.relevant
    if pairs != len(relevant.values):
        raise RequestError(
            f"negatives of {pairs} positives were given, but window {window.name!r} has {len(relevant.values)}: one "
            "line for each, in the order of window.relevant"
        )
    candidates = np.concatenate([relevant.values[:, None], negatives], axis=1)
    lists = Ragged(candidates.reshape(-1), relevant.offsets * (count + 1))
    scores = scores_of_lists(window, score_block, lists).reshape(pairs, count + 1)
    ties = tie_order(window.num_items)[0][candidates]
    above = (scores > scores[:, :1]) | ((scores == scores[:, :1]) & (ties > ties[:, :1]))
    hits = np.zeros((pairs, max(KS)), bool)
    rank = above.sum(axis=1)
    found = np.flatnonzero(rank < max(KS))
    hits[found, rank[found]] = True
    wanted = np.where(relevant.sizes > 0, relevant.sizes, np.nan)
    values = {}
    for name, value in ranking_metrics(hits, np.ones(pairs, np.int64), ks=KS).items():
        if name.startswith(("hit_rate", "ndcg", "mrr")):
            values[f"sampled/{name}"] = np.bincount(relevant.lines, value, minlength=len(wanted)) / wanted
    judged = int((relevant.sizes > 0).sum())
    return PerUser(values, judged, {"no positive on an item not seen before": len(wanted) - judged})
