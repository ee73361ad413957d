"""Hits and counts to numbers per user. No averages here: a mean over users belongs to whoever knows who was skipped.

Rankings of a catalogue arrive as `hits` and `num_relevant`, and every top-k metric is a function of these two.
Impressions arrive as ragged lists, one list a user, cut by `offsets`; nothing here loops over users. NaN means: this
user has no such number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from twofold.errors import RequestError

KS: Final = (1, 5, 10, 20, 50, 100, 200, 500)
IMPRESSION_METRICS: Final = ("auc", "ndcg@5", "ndcg@10", "mrr", "map", "map@10")
_DEPTH: Final = 10  # the deepest cut among IMPRESSION_METRICS


def ranking_metrics(
    hits: Bool[np.ndarray, "queries k"], num_relevant: Int64[np.ndarray, "queries"], *, ks: Sequence[int] = KS
) -> dict[str, Float64[np.ndarray, "queries"]]:
    """recall, hit_rate, ndcg, mrr and map @ every k of `ks`, per query; NaN where nothing is relevant.

    `hits[q, r]` says whether the answer at rank r + 1 is relevant, `num_relevant[q]` how many there are to be found.
    `map@k` divides by `num_relevant`, as trec_eval and ranx do (not by min(num_relevant, k)), so a user with more
    than k relevant items cannot reach 1. Binary NDCG of Järvelin and Kekäläinen 2002 with log2; its ideal list holds
    min(num_relevant, k) items.

    Two relevant items, one of them found, at rank 2:

    >>> one = ranking_metrics(np.array([[False, True, False]]), np.array([2]), ks=(1, 3))
    >>> {name: round(float(value[0]), 3) for name, value in one.items() if name.endswith("@3")}
    {'recall@3': 0.5, 'hit_rate@3': 1.0, 'ndcg@3': 0.387, 'mrr@3': 0.5, 'map@3': 0.25}

    At k = 1 nothing is found yet; and who has nothing to find is not a zero but a NaN:

    >>> float(one["recall@1"][0])
    0.0
    >>> float(ranking_metrics(np.array([[False]]), np.array([0]), ks=(1,))["recall@1"][0])
    nan
    """
    depth = hits.shape[1]
    if max(ks) > depth or min(ks) < 1:
        wrong = max(ks) if max(ks) > depth else min(ks)
        raise RequestError(f"a metric @{wrong} cannot be read from a list of {depth} items: choose k from 1 to {depth}")
    line, place = np.nonzero(hits)
    return metrics_of_ranks(line, place + 1, num_relevant, ks=ks)


def metrics_of_ranks(
    line: Int64[np.ndarray, "found"],
    rank: Int64[np.ndarray, "found"],
    num_relevant: Int64[np.ndarray, "queries"],
    *,
    ks: Sequence[int] = KS,
) -> dict[str, Float64[np.ndarray, "queries"]]:
    """`ranking_metrics` of hits that are written as the query and the rank of each, in the order of query and rank.

    Few of a list's places are hits, so this is where all metrics are computed.
    """
    queries = len(num_relevant)
    count = np.bincount(line, minlength=queries)
    assert (count <= num_relevant).all(), "more hits than relevant items: an item stands in a list twice"
    found = np.arange(1, len(line) + 1) - np.repeat(np.cumsum(count) - count, count)  # hits of the query up to this one
    relevant = np.where(num_relevant > 0, num_relevant, np.nan)
    first = np.full(queries, np.inf)
    first[line[found == 1]] = rank[found == 1]
    gain, precision = 1 / np.log2(rank + 1), found / rank
    values = {}
    for k in ks:
        within = rank <= k
        own = line[within]
        values[f"recall@{k}"] = np.bincount(own, minlength=queries) / relevant
        values[f"hit_rate@{k}"] = np.where(num_relevant > 0, first <= k, np.nan)
        values[f"ndcg@{k}"] = np.bincount(own, gain[within], minlength=queries) / ideal_gain(num_relevant, k=k)
        values[f"mrr@{k}"] = np.where(first <= k, 1 / first, 0 * relevant)
        values[f"map@{k}"] = np.bincount(own, precision[within], minlength=queries) / relevant
    return values


def ideal_gain(num_relevant: Int64[np.ndarray, "queries"], *, k: int) -> Float64[np.ndarray, "queries"]:
    """DCG@k of a list that opens with all that is relevant; NaN where nothing is."""
    best = np.concatenate([[np.nan], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])
    ideal: Float64[np.ndarray, " queries"] = best[np.minimum(num_relevant, k)]
    return ideal


@dataclass(frozen=True)
class _Ranked:
    """Ragged lists, each by falling score.

    `first` and `last` are the ranks where an entry's group of equal scores begins and ends.
    """

    line: Int64[np.ndarray, "length"]
    label: Bool[np.ndarray, "length"]
    rank: Int64[np.ndarray, "length"]
    first: Int64[np.ndarray, "length"]
    last: Int64[np.ndarray, "length"]


def impression_metrics(
    scores: Float32[np.ndarray, "length"],
    labels: Bool[np.ndarray, "length"],
    *,
    ties: Int64[np.ndarray, "length"],
    offsets: Int64[np.ndarray, "offsets"],
) -> dict[str, Float64[np.ndarray, "users"]]:
    """The metrics of IMPRESSION_METRICS of each list `offsets[u]:offsets[u + 1]`; NaN where it has a single class.

    AUC counts a tie as one half. NDCG and MRR are those of the MIND evaluation (Wu et al., ACL 2020): gain 2^y - 1,
    and MRR = Σ(y / rank) / Σy, over *all* positives. `map` is scikit-learn's average precision (tied scores are one
    threshold); `map@10` is the top-k metric of `ranking_metrics`. Where order matters among equal scores the larger
    of `ties` goes first.

    Three candidates, the positive second:

    >>> lists = {"ties": np.arange(3), "offsets": np.array([0, 3])}
    >>> score, label = np.array([0.9, 0.5, 0.1], np.float32), np.array([False, True, False])
    >>> {name: round(float(value[0]), 3) for name, value in impression_metrics(score, label, **lists).items()}
    {'auc': 0.5, 'ndcg@5': 0.631, 'ndcg@10': 0.631, 'mrr': 0.5, 'map': 0.5, 'map@10': 0.5}

    The same score for all of them says nothing, and AUC says so:

    >>> float(impression_metrics(np.zeros(3, np.float32), label, **lists)["auc"][0])
    0.5
    """
    users = len(offsets) - 1
    ranked = _rank_lists(scores, labels, ties=ties, offsets=offsets)
    positives, line = _sum(ranked.line, ranked.label, users).astype(np.int64), ranked.line
    hits = np.zeros((users, _DEPTH), bool)
    top = ranked.rank <= _DEPTH
    hits[line[top], ranked.rank[top] - 1] = ranked.label[top]
    cut = ranking_metrics(hits, positives, ks=(5, _DEPTH))
    mixed = (positives > 0) & (positives < np.diff(offsets))
    count = np.where(mixed, positives, np.nan)
    above = np.cumsum(ranked.label) - np.concatenate([[0], np.cumsum(positives)])[line]  # positives so far in the list
    above_group = above[offsets[line] + ranked.last - 1]
    values = {
        "auc": _auc(ranked, offsets),
        "ndcg@5": cut["ndcg@5"],
        "ndcg@10": cut["ndcg@10"],
        "mrr": _sum(line, ranked.label / ranked.rank, users) / count,
        "map": _sum(line, ranked.label * above_group / ranked.last, users) / count,
        "map@10": cut["map@10"],
    }
    return {name: np.where(mixed, value, np.nan) for name, value in values.items()}


def pooled_auc(scores: Float32[np.ndarray, "length"], labels: Bool[np.ndarray, "length"]) -> float:
    """One AUC over all pairs of all users; ties count one half, NaN for a single class.

    It also rewards knowing which users like much, which helps nobody's ranking.

    >>> pooled_auc(np.array([0.1, 0.4, 0.4, 0.8], np.float32), np.array([False, True, False, True]))
    0.875
    """
    offsets = np.array([0, len(scores)])
    ranked = _rank_lists(scores, labels, ties=np.zeros(len(scores), np.int64), offsets=offsets)
    return float(_auc(ranked, offsets)[0])


def chance_metrics(
    num_candidates: Int64[np.ndarray, "users"], num_positives: Int64[np.ndarray, "users"]
) -> dict[str, Float64[np.ndarray, "users"]]:
    """What a random order is expected to reach on each list, exactly, for every metric of IMPRESSION_METRICS.

    With n candidates, p positives and H_m = 1 + 1/2 + … + 1/m: a rank holds a positive with probability p/n, hence
    NDCG@k = p/n · Σ_{r≤min(k,n)} 1/log2(r+1) / ideal and MRR = H_n / n. The precision at a rank r that holds a
    positive is expected to be (1 + (r-1)(p-1)/(n-1)) / r, hence MAP@k = (H_m + (p-1)/(n-1) · (m - H_m)) / n with m =
    min(k, n).

    One positive among two: first or second, equally likely.

    >>> {name: round(float(value[0]), 3) for name, value in chance_metrics(np.array([2]), np.array([1])).items()}
    {'auc': 0.5, 'ndcg@5': 0.815, 'ndcg@10': 0.815, 'mrr': 0.75, 'map': 0.75, 'map@10': 0.75}
    """
    n, p = num_candidates, num_positives
    longest = int(max(n.max(initial=1), _DEPTH))
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, longest + 1))])
    discount = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, longest + 2)))])
    mixed = (p > 0) & (p < n)
    size = np.where(mixed, n, 2)  # single-class lists are NaN below; 2 keeps the formulas finite
    follow = (p - 1) / (size - 1)

    def mean_precision(m: Int64[np.ndarray, "users"]) -> Float64[np.ndarray, "users"]:
        precision: Float64[np.ndarray, " users"] = (harmonic[m] + follow * (m - harmonic[m])) / size
        return precision

    values = {
        "auc": np.full(len(n), 0.5),
        "ndcg@5": p / size * discount[np.minimum(n, 5)] / ideal_gain(p, k=5),
        "ndcg@10": p / size * discount[np.minimum(n, 10)] / ideal_gain(p, k=10),
        "mrr": harmonic[n] / size,
        "map": mean_precision(n),
        "map@10": mean_precision(np.minimum(n, _DEPTH)),
    }
    return {name: np.where(mixed, value, np.nan) for name, value in values.items()}


def best_metrics(
    num_candidates: Int64[np.ndarray, "users"], num_positives: Int64[np.ndarray, "users"]
) -> dict[str, Float64[np.ndarray, "users"]]:
    """What a perfect order reaches: 1, but H_p / p for MRR and min(p, 10) / p for map@10 where there are p positives.

    >>> {name: float(value[0]) for name, value in best_metrics(np.array([3]), np.array([2])).items() if value[0] < 1}
    {'mrr': 0.75}
    """
    p = np.maximum(num_positives, 1)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, p.max(initial=1) + 1))])
    limits = {"mrr": harmonic[p] / p, "map@10": np.minimum(p, _DEPTH) / p}
    mixed = (num_positives > 0) & (num_positives < num_candidates)
    return {name: np.where(mixed, limits.get(name, 1.0), np.nan) for name in IMPRESSION_METRICS}


def _rank_lists(
    scores: Float32[np.ndarray, "length"],
    labels: Bool[np.ndarray, "length"],
    *,
    ties: Int64[np.ndarray, "length"],
    offsets: Int64[np.ndarray, "offsets"],
) -> _Ranked:
    assert offsets[0] == 0, "offsets begin at 0"
    assert offsets[-1] == len(scores), "offsets end at the last score"
    line = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((-ties, -scores, line))
    score, rank = scores[order], np.arange(len(scores)) - offsets[line] + 1
    opens = np.ones(len(scores), bool)
    opens[1:] = (score[1:] != score[:-1]) | (line[1:] != line[:-1])
    group = np.cumsum(opens) - 1
    starts = np.flatnonzero(opens)
    ends = np.append(starts[1:], len(scores))[: len(starts)]
    return _Ranked(line, labels[order], rank, rank[starts][group], rank[ends - 1][group])


def _auc(ranked: _Ranked, offsets: Int64[np.ndarray, "offsets"]) -> Float64[np.ndarray, "users"]:
    """Mann and Whitney 1947: from the sum of the positives' mid-ranks."""
    users = len(offsets) - 1
    positives = _sum(ranked.line, ranked.label, users)
    negatives = np.diff(offsets) - positives
    mid_ranks = _sum(ranked.line, ranked.label * (ranked.first + ranked.last) / 2, users)
    lost = mid_ranks - positives * (positives + 1) / 2  # pairs in which the negative stands above
    pairs = np.where(positives * negatives > 0, positives * negatives, np.nan)
    area: Float64[np.ndarray, " users"] = 1 - lost / pairs
    return area


def _sum(
    line: Int64[np.ndarray, "length"], what: Bool[np.ndarray, "length"] | Float64[np.ndarray, "length"], users: int
) -> Float64[np.ndarray, "users"]:
    sums: Float64[np.ndarray, " users"] = np.bincount(line, weights=what, minlength=users).astype(np.float64)
    return sums
