"""Every metric against an independent reference on random cases, and against arithmetic on hand tables."""

from itertools import permutations
from math import log2

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from twofold.errors import RequestError
from twofold.evaluate.metrics import (
    IMPRESSION_METRICS,
    best_metrics,
    chance_metrics,
    impression_metrics,
    pooled_auc,
    ranking_metrics,
)

CASES = 200


def lists(seed, *, ties):
    """CASES ragged lists of 2 to 40 candidates that hold both classes."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 41, CASES)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    scores = rng.random(offsets[-1]).astype(np.float32)
    if ties:
        scores = np.round(scores, 1)
    labels = rng.random(offsets[-1]) < 0.3
    labels[offsets[:-1]], labels[offsets[:-1] + 1] = True, False
    return scores, labels, offsets


def mind_ndcg(labels, scores, k):
    """Computes NDCG as the evaluation script of the MIND competition does (dcg_score, ndcg_score)."""

    def dcg(gains):
        return sum((2**gain - 1) / log2(rank + 2) for rank, gain in enumerate(gains[:k]))

    ordered = [label for _, label in sorted(zip(scores, labels, strict=True), key=lambda pair: -pair[0])]
    return dcg(ordered) / dcg(sorted(labels, reverse=True))


def mind_mrr(labels, scores):
    ordered = [label for _, label in sorted(zip(scores, labels, strict=True), key=lambda pair: -pair[0])]
    return sum(label / (rank + 1) for rank, label in enumerate(ordered)) / sum(labels)


def naive_map(labels, scores, k):
    ordered = [label for _, label in sorted(zip(scores, labels, strict=True), key=lambda pair: -pair[0])]
    return sum(sum(ordered[: r + 1]) / (r + 1) for r in range(min(k, len(ordered))) if ordered[r]) / sum(labels)


def naive_recall(labels, scores, k):
    ordered = [label for _, label in sorted(zip(scores, labels, strict=True), key=lambda pair: -pair[0])]
    return sum(ordered[:k]) / sum(labels)


def test_impression_metrics_equal_the_naive_formulas():
    scores, labels, offsets = lists(0, ties=False)
    ours = impression_metrics(scores, labels, ties=np.arange(len(scores)), offsets=offsets)
    for line in range(CASES):
        part = slice(offsets[line], offsets[line + 1])
        score, label = scores[part].tolist(), labels[part].astype(int).tolist()
        expected = {
            "auc": roc_auc_score(label, score),
            "ndcg@5": mind_ndcg(label, score, 5),
            "ndcg@10": mind_ndcg(label, score, 10),
            "mrr": mind_mrr(label, score),
            "map": average_precision_score(label, score),
            "map@10": naive_map(label, score, 10),
            **{f"recall@{k}": naive_recall(label, score, k) for k in (5, 10, 50, 100)},
        }
        assert {name: ours[name][line] for name in ours} == pytest.approx(expected)


def test_auc_and_map_equal_scikit_learn_under_ties():
    scores, labels, offsets = lists(1, ties=True)
    ours = impression_metrics(scores, labels, ties=np.arange(len(scores)), offsets=offsets)
    for line in range(CASES):
        part = slice(offsets[line], offsets[line + 1])
        assert ours["auc"][line] == pytest.approx(roc_auc_score(labels[part], scores[part]))
        assert ours["map"][line] == pytest.approx(average_precision_score(labels[part], scores[part]))
    assert pooled_auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))


def rankings(seed):
    """CASES random rankings of 50 out of 60 items, and 1 to 30 relevant items each."""
    rng = np.random.default_rng(seed)
    ranking = np.stack([rng.permutation(60)[:50] for _ in range(CASES)])
    relevant = [rng.choice(60, rng.integers(1, 31), replace=False) for _ in range(CASES)]
    values = ranking_metrics(
        np.stack([np.isin(ranking[q], relevant[q]) for q in range(CASES)]),
        np.array([len(each) for each in relevant]),
        ks=(1, 5, 10, 20, 50),
    )
    return ranking.tolist(), [set(each.tolist()) for each in relevant], values


def naive_top_k(ranking, relevant, k):
    """The metrics of the first k of a ranked list, from the ranks of what is relevant in it."""
    found = [rank for rank, item in enumerate(ranking[:k], start=1) if item in relevant]
    wanted = len(relevant)
    return {
        "recall": len(found) / wanted,
        "hit_rate": float(bool(found)),
        "ndcg": sum(1 / log2(r + 1) for r in found) / sum(1 / log2(r + 1) for r in range(1, min(k, wanted) + 1)),
        "mrr": 1 / found[0] if found else 0,
        "map": sum(number / rank for number, rank in enumerate(found, start=1)) / wanted,
    }


def test_ranking_metrics_equal_the_naive_formulas():
    ranking, relevant, values = rankings(2)
    for name, value in values.items():
        metric, k = name.split("@")[0], int(name.split("@")[1])
        for query in range(CASES):
            assert value[query] == pytest.approx(naive_top_k(ranking[query], relevant[query], k)[metric]), name


@pytest.mark.slow  # ranx compiles for half a minute
@pytest.mark.filterwarnings("ignore:unsafe cast")
def test_ranking_metrics_equal_ranx():
    ranx = pytest.importorskip("ranx")
    ranking, relevant, values = rankings(3)
    qrels = ranx.Qrels({f"q{q}": {f"i{i}": 1 for i in relevant[q]} for q in range(CASES)})
    run = ranx.Run({f"q{q}": {f"i{i}": float(50 - r) for r, i in enumerate(ranking[q])} for q in range(CASES)})
    ranx.evaluate(qrels, run, list(values))
    for metric, value in values.items():
        theirs = [run.scores[metric][f"q{q}"] for q in range(CASES)]
        np.testing.assert_allclose(value, theirs, rtol=1e-6, err_msg=metric)


def test_a_hand_table():
    """Ranks 1 and 3 of 4 hit; three items are relevant."""
    values = ranking_metrics(np.array([[True, False, True, False]]), np.array([3]), ks=(1, 2, 4))
    ideal = 1 + 1 / log2(3) + 1 / log2(4)
    expected = {
        "recall@1": 1 / 3,
        "recall@4": 2 / 3,
        "hit_rate@1": 1,
        "ndcg@2": 1 / (1 + 1 / log2(3)),
        "ndcg@4": (1 + 1 / log2(4)) / ideal,
        "mrr@4": 1,
        "map@2": 1 / 3,
        "map@4": (1 + 2 / 3) / 3,
    }
    assert {name: values[name][0] for name in expected} == pytest.approx(expected)


def test_who_has_nothing_to_find_has_no_number():
    values = ranking_metrics(np.zeros((2, 5), bool), np.array([0, 3]), ks=(1, 5))
    for value in values.values():
        assert np.isnan(value[0])
        assert value[1] == 0


def test_a_list_shorter_than_k_is_refused():
    with pytest.raises(
        RequestError, match=r"a metric @10 cannot be computed from a list of 5 items: choose k from 1 to 5"
    ):
        ranking_metrics(np.zeros((2, 5), bool), np.array([1, 1]), ks=(1, 10))


def test_single_classes_one_candidate_and_empty_lists_have_no_number():
    labels = np.array([True, True, False, False, True])  # two positives, two negatives, one alone, nothing
    offsets = np.array([0, 2, 4, 5, 5])
    values = impression_metrics(np.zeros(5, np.float32), labels, ties=np.arange(5), offsets=offsets)
    assert set(values) == set(IMPRESSION_METRICS)
    assert all(np.isnan(value).all() for value in values.values())
    sizes, positives = np.array([2, 2, 1, 0]), np.array([2, 0, 1, 0])
    for bound in (chance_metrics(sizes, positives), best_metrics(sizes, positives)):
        assert all(np.isnan(value).all() for value in bound.values())


def test_equal_scores_are_ordered_by_the_tie_rule_alone():
    labels, offsets = np.array([True, False, False]), np.array([0, 3])
    first, last = (
        impression_metrics(np.zeros(3, np.float32), labels, ties=np.array(ties), offsets=offsets)["mrr"][0]
        for ties in ([2, 1, 0], [0, 1, 2])
    )
    assert (first, last) == (1, pytest.approx(1 / 3))


@pytest.mark.parametrize(("candidates", "positives"), [(2, 1), (3, 2), (5, 1), (6, 3), (7, 6)])
def test_chance_is_the_mean_over_all_orders_and_best_their_maximum(candidates, positives):
    orders = dict.fromkeys(permutations([True] * positives + [False] * (candidates - positives)))
    labels = np.array(list(orders)).reshape(-1)
    count = len(orders)
    values = impression_metrics(
        np.tile(np.arange(candidates, 0, -1, dtype=np.float32), count),
        labels,
        ties=np.zeros(len(labels), np.int64),
        offsets=np.arange(0, len(labels) + 1, candidates),
    )
    chance = chance_metrics(np.array([candidates]), np.array([positives]))
    best = best_metrics(np.array([candidates]), np.array([positives]))
    for name in IMPRESSION_METRICS:
        assert chance[name][0] == pytest.approx(values[name].mean()), name
        assert best[name][0] == pytest.approx(values[name].max()), name


def test_chance_counts_the_cut_of_lists_longer_than_ten():
    rng = np.random.default_rng(3)
    candidates, positives, draws = 120, 50, 4_000
    labels = rng.permuted(np.tile(np.arange(candidates) < positives, (draws, 1)), axis=1).reshape(-1)
    values = impression_metrics(
        np.tile(np.arange(candidates, 0, -1, dtype=np.float32), draws),
        labels,
        ties=np.zeros(len(labels), np.int64),
        offsets=np.arange(0, len(labels) + 1, candidates),
    )
    chance = chance_metrics(np.array([candidates]), np.array([positives]))
    for name in IMPRESSION_METRICS:
        error = values[name].std() / draws**0.5
        assert abs(chance[name][0] - values[name].mean()) < 5 * error, name
