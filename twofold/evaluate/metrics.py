"""Ranking metrics per user: recall, hit rate, NDCG, MRR, MAP and AUC. Means over users are taken elsewhere.

Every top-k metric of the catalogue is a function of `hits` and `num_relevant`. Impressions are ragged lists, one list
per user, delimited by `offsets`. No function loops over users. NaN means that a metric is undefined for a user.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from twofold.errors import RequestError

KS: Final = (1, 5, 10, 20, 50, 100, 200, 500)
IMPRESSION_RECALLS: Final = (5, 10, 50, 100)
IMPRESSION_METRICS: Final = (
    *("auc", "ndcg@5", "ndcg@10", "mrr", "map", "map@10"),
    *(f"recall@{k}" for k in IMPRESSION_RECALLS),
)
_DEPTH: Final = 10  # the largest k of NDCG and MAP on impressions


def ranking_metrics(
    hits: Bool[np.ndarray, "queries k"], num_relevant: Int64[np.ndarray, "queries"], *, ks: Sequence[int] = KS
) -> dict[str, Float64[np.ndarray, "queries"]]:
    """Computes recall, hit_rate, ndcg, mrr and map @ every k of `ks`, per query; NaN if no item is relevant.

    `hits[q, r]` says whether the item at rank r + 1 is relevant, `num_relevant[q]` is the number of relevant items.
    `map@k` divides by `num_relevant`, as trec_eval and ranx do (not by min(num_relevant, k)), so a user with more
    than k relevant items cannot reach 1. NDCG is binary, with log2 (Järvelin and Kekäläinen 2002); its ideal list
    contains min(num_relevant, k) items.

    Two relevant items, one of them found at rank 2:

    >>> one = ranking_metrics(np.array([[False, True, False]]), np.array([2]), ks=(1, 3))
    >>> {name: round(float(value[0]), 3) for name, value in one.items() if name.endswith("@3")}
    {'recall@3': 0.5, 'hit_rate@3': 1.0, 'ndcg@3': 0.387, 'mrr@3': 0.5, 'map@3': 0.25}

    At k = 1 nothing is found; a query without a relevant item has NaN instead of 0:

    >>> float(one["recall@1"][0])
    0.0
    >>> float(ranking_metrics(np.array([[False]]), np.array([0]), ks=(1,))["recall@1"][0])
    nan
    """
    depth = hits.shape[1]
    if max(ks) > depth or min(ks) < 1:
        wrong = max(ks) if max(ks) > depth else min(ks)
        raise RequestError(
            f"a metric @{wrong} cannot be computed from a list of {depth} items: choose k from 1 to {depth}"
        )
    query, position = np.nonzero(hits)
    return metrics_of_ranks(query, position + 1, num_relevant, ks=ks)


def metrics_of_ranks(
    query: Int64[np.ndarray, "pairs"],
    rank: Int64[np.ndarray, "pairs"],
    num_relevant: Int64[np.ndarray, "queries"],
    *,
    ks: Sequence[int] = KS,
) -> dict[str, Float64[np.ndarray, "queries"]]:
    """Computes `ranking_metrics` from the query and the rank of each hit, sorted by query and rank.

    Only few ranks of a list are hits, so this form is the faster one and computes all metrics.
    """
    queries = len(num_relevant)
    count = np.bincount(query, minlength=queries)
    assert (count <= num_relevant).all(), "more hits than relevant items: a list contains an item twice"
    found = np.arange(1, len(query) + 1) - np.repeat(np.cumsum(count) - count, count)  # the query's hits so far
    relevant = np.where(num_relevant > 0, num_relevant, np.nan)
    first = np.full(queries, np.inf)
    first[query[found == 1]] = rank[found == 1]
    gain, precision = 1 / np.log2(rank + 1), found / rank
    values = {}
    for k in ks:
        within = rank <= k
        own = query[within]
        values[f"recall@{k}"] = np.bincount(own, minlength=queries) / relevant
        values[f"hit_rate@{k}"] = np.where(num_relevant > 0, first <= k, np.nan)
        values[f"ndcg@{k}"] = np.bincount(own, gain[within], minlength=queries) / _ideal_gain(num_relevant, k=k)
        values[f"mrr@{k}"] = np.where(first <= k, 1 / first, 0 * relevant)
        values[f"map@{k}"] = np.bincount(own, precision[within], minlength=queries) / relevant
    return values


def _ideal_gain(num_relevant: Int64[np.ndarray, "queries"], *, k: int) -> Float64[np.ndarray, "queries"]:
    """Returns the DCG@k of a list that begins with all relevant items; NaN if no item is relevant."""
    best = np.concatenate([[np.nan], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])
    return best[np.minimum(num_relevant, k)]


@dataclass(frozen=True)
class _Ranked:
    """Ragged lists, each sorted by falling score.

    `first` and `last` are the ranks where an entry's group of equal scores begins and ends.
    """

    user: Int64[np.ndarray, "length"]
    label: Bool[np.ndarray, "length"]
    rank: Int64[np.ndarray, "length"]
    first: Int64[np.ndarray, "length"]
    last: Int64[np.ndarray, "length"]


def impression_metrics(
    scores: Float32[np.ndarray, "length"],
    labels: Bool[np.ndarray, "length"],
    *,
    ties: Int64[np.ndarray, "length"],
    offsets: Int64[np.ndarray, "_"],
) -> dict[str, Float64[np.ndarray, "users"]]:
    """Computes IMPRESSION_METRICS of each list `offsets[u]:offsets[u + 1]`; NaN for a list with a single class.

    AUC counts a tie as one half. NDCG and MRR are those of the MIND evaluation (Wu et al., ACL 2020): gain 2^y - 1,
    and MRR = Σ(y / rank) / Σy, over *all* positives. `map` is scikit-learn's average precision (tied scores are one
    threshold); `map@10` and `recall@k` are the top-k metrics of `ranking_metrics`. Where order matters, the larger of
    `ties` goes first among equal scores.

    Three candidates, the positive second:

    >>> lists = {"ties": np.arange(3), "offsets": np.array([0, 3])}
    >>> score, label = np.array([0.9, 0.5, 0.1], np.float32), np.array([False, True, False])
    >>> found = impression_metrics(score, label, **lists)
    >>> {name: round(float(found[name][0]), 3) for name in ("auc", "ndcg@5", "mrr", "map", "map@10", "recall@5")}
    {'auc': 0.5, 'ndcg@5': 0.631, 'mrr': 0.5, 'map': 0.5, 'map@10': 0.5, 'recall@5': 1.0}

    Equal scores contain no information, which gives an AUC of one half:

    >>> float(impression_metrics(np.zeros(3, np.float32), label, **lists)["auc"][0])
    0.5
    """
    ranked = _rank_lists(scores, labels, ties=ties, offsets=offsets)
    positives = _sum(ranked.user, ranked.label, len(offsets) - 1).astype(np.int64)
    mixed = (positives > 0) & (positives < np.diff(offsets))
    values = _metrics_of_lists(ranked, offsets, positives, np.where(mixed, positives, np.nan))
    return {name: np.where(mixed, value, np.nan) for name, value in values.items()}


def _metrics_of_lists(
    ranked: _Ranked,
    offsets: Int64[np.ndarray, "_"],
    positives: Int64[np.ndarray, "users"],
    divisor: Float64[np.ndarray, "users"],
) -> dict[str, Float64[np.ndarray, "users"]]:
    """Computes IMPRESSION_METRICS; `divisor` is the number of positives, NaN for a list with a single class."""
    users, user = len(positives), ranked.user
    at_k = metrics_of_ranks(
        user[ranked.label], ranked.rank[ranked.label], positives, ks=(5, _DEPTH, *IMPRESSION_RECALLS[2:])
    )
    above = np.cumsum(ranked.label) - np.concatenate([[0], np.cumsum(positives)])[user]  # positives so far in the list
    above_group = above[offsets[user] + ranked.last - 1]
    return {
        "auc": _auc(ranked, offsets),
        "ndcg@5": at_k["ndcg@5"],
        "ndcg@10": at_k["ndcg@10"],
        "mrr": _sum(user, ranked.label / ranked.rank, users) / divisor,
        "map": _sum(user, ranked.label * above_group / ranked.last, users) / divisor,
        "map@10": at_k["map@10"],
        **{f"recall@{k}": at_k[f"recall@{k}"] for k in IMPRESSION_RECALLS},
    }


def pooled_auc(scores: Float32[np.ndarray, "length"], labels: Bool[np.ndarray, "length"]) -> float:
    """Returns one AUC over all pairs of all users; ties count one half, NaN for a single class.

    A pooled AUC also rewards knowing which users like many items, which improves no user's ranking.

    >>> pooled_auc(np.array([0.1, 0.4, 0.4, 0.8], np.float32), np.array([False, True, False, True]))
    0.875
    """
    offsets = np.array([0, len(scores)])
    ranked = _rank_lists(scores, labels, ties=np.zeros(len(scores), np.int64), offsets=offsets)
    return float(_auc(ranked, offsets)[0])


def chance_metrics(
    num_candidates: Int64[np.ndarray, "users"], num_positives: Int64[np.ndarray, "users"]
) -> dict[str, Float64[np.ndarray, "users"]]:
    """Returns the exact expectation of a random order on each list, for every metric of IMPRESSION_METRICS.

    With n candidates, p positives and H_m = 1 + 1/2 + … + 1/m: a rank has a positive with probability p/n, hence
    NDCG@k = p/n · Σ_{r≤min(k,n)} 1/log2(r+1) / ideal and MRR = H_n / n. The expected precision at a rank r with
    a positive is (1 + (r-1)(p-1)/(n-1)) / r, hence MAP@k = (H_m + (p-1)/(n-1) · (m - H_m)) / n with m =
    min(k, n). Recall@k is min(k, n) / n.

    One positive among two, first or second with equal probability:

    >>> found = chance_metrics(np.array([2]), np.array([1]))
    >>> {name: round(float(found[name][0]), 3) for name in ("auc", "ndcg@5", "mrr", "map", "map@10", "recall@5")}
    {'auc': 0.5, 'ndcg@5': 0.815, 'mrr': 0.75, 'map': 0.75, 'map@10': 0.75, 'recall@5': 1.0}
    """
    n, p = num_candidates, num_positives
    longest = int(max(n.max(initial=1), _DEPTH))
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, longest + 1))])
    discount = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, longest + 2)))])
    mixed = (p > 0) & (p < n)
    size = np.where(mixed, n, 2)  # single-class lists become NaN below; 2 keeps the formulas finite
    follow = (p - 1) / (size - 1)

    def mean_precision(m: Int64[np.ndarray, "users"]) -> Float64[np.ndarray, "users"]:
        return (harmonic[m] + follow * (m - harmonic[m])) / size

    values = {
        "auc": np.full(len(n), 0.5),
        "ndcg@5": p / size * discount[np.minimum(n, 5)] / _ideal_gain(p, k=5),
        "ndcg@10": p / size * discount[np.minimum(n, 10)] / _ideal_gain(p, k=10),
        "mrr": harmonic[n] / size,
        "map": mean_precision(n),
        "map@10": mean_precision(np.minimum(n, _DEPTH)),
        **{f"recall@{k}": np.minimum(n, k) / size for k in IMPRESSION_RECALLS},
    }
    return {name: np.where(mixed, value, np.nan) for name, value in values.items()}


def best_metrics(
    num_candidates: Int64[np.ndarray, "users"], num_positives: Int64[np.ndarray, "users"]
) -> dict[str, Float64[np.ndarray, "users"]]:
    """Returns the metrics of a perfect order: 1, but with p positives H_p / p for MRR, min(p, 10) / p for map@10 and
    min(p, k) / p for recall@k.

    >>> {name: float(value[0]) for name, value in best_metrics(np.array([3]), np.array([2])).items() if value[0] < 1}
    {'mrr': 0.75}
    """
    p = np.maximum(num_positives, 1)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, p.max(initial=1) + 1))])
    limits = {"mrr": harmonic[p] / p, "map@10": np.minimum(p, _DEPTH) / p}
    limits |= {f"recall@{k}": np.minimum(p, k) / p for k in IMPRESSION_RECALLS}
    mixed = (num_positives > 0) & (num_positives < num_candidates)
    return {name: np.where(mixed, limits.get(name, 1.0), np.nan) for name in IMPRESSION_METRICS}


def _rank_lists(
    scores: Float32[np.ndarray, "length"],
    labels: Bool[np.ndarray, "length"],
    *,
    ties: Int64[np.ndarray, "length"],
    offsets: Int64[np.ndarray, "_"],
) -> _Ranked:
    assert offsets[0] == 0, "offsets begin at 0"
    assert offsets[-1] == len(scores), "offsets end at the last score"
    user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((-ties, -scores, user))
    score, rank = scores[order], np.arange(len(scores)) - offsets[user] + 1
    is_first = np.ones(len(scores), bool)
    is_first[1:] = (score[1:] != score[:-1]) | (user[1:] != user[:-1])
    group = np.cumsum(is_first) - 1
    starts = np.flatnonzero(is_first)
    ends = np.append(starts[1:], len(scores))[: len(starts)]
    return _Ranked(user, labels[order], rank, rank[starts][group], rank[ends - 1][group])


def _auc(ranked: _Ranked, offsets: Int64[np.ndarray, "_"]) -> Float64[np.ndarray, "users"]:
    """Computes AUC from the sum of the positives' mid-ranks (Mann and Whitney 1947)."""
    users = len(offsets) - 1
    positives = _sum(ranked.user, ranked.label, users)
    negatives = np.diff(offsets) - positives
    mid_ranks = _sum(ranked.user, ranked.label * (ranked.first + ranked.last) / 2, users)
    lost = mid_ranks - positives * (positives + 1) / 2  # pairs in which the negative ranks higher
    pairs = np.where(positives * negatives > 0, positives * negatives, np.nan)
    return 1 - lost / pairs


def _sum(
    user: Int64[np.ndarray, "length"], values: Bool[np.ndarray, "length"] | Float64[np.ndarray, "length"], users: int
) -> Float64[np.ndarray, "users"]:
    return np.bincount(user, weights=values, minlength=users).astype(np.float64)
