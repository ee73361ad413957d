"""Exact search: no item that can be among the best is missed, few others are scored again, ties are broken once."""

import numpy as np
import pytest

from twofold.index.exact import candidates_above_threshold, rescore_and_sort, score_matrix
from twofold.index.score_kinds import Score, pair_scores
from twofold.ragged import Ragged
from twofold.topk import tie_order

draw = np.random.default_rng(0)
VECTORS, QUERIES = draw.standard_normal((5000, 6), np.float32), draw.standard_normal((4, 6), np.float32)
EXACT = np.zeros(4, np.float32)


@pytest.mark.parametrize("score", ["dot", "negative_distance"])
def test_products_are_the_scores_up_to_rounding(score: Score) -> None:
    squares = np.vecdot(VECTORS, VECTORS) if score == "negative_distance" else None
    expected = np.stack([pair_scores(VECTORS, query, score) for query in QUERIES])
    np.testing.assert_allclose(score_matrix(QUERIES @ VECTORS.T, QUERIES, squares), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [1, 10, 100, 4999, 5000, 9000])
def test_the_best_reach_the_threshold_and_few_others_do(k: int) -> None:
    scores = score_matrix(QUERIES @ VECTORS.T, QUERIES, None)
    query_of, items = candidates_above_threshold(scores, k, EXACT)
    for query in range(4):
        reached = items[query_of == query]
        assert set(np.argsort(-scores[query])[:k]) <= set(reached)
        assert len(reached) <= max(1.3 * k, k + 10)


def test_an_item_that_rounding_could_lift_among_the_best_is_a_candidate() -> None:
    scores = np.float32([[5.0, 4.9, 4.0, 4.79]])
    _, items = candidates_above_threshold(scores, 1, np.float32([0.1]))
    assert items.tolist() == [0, 1]  # 5.0 may be 4.9, 4.9 may be 5.0; 4.79 is less than 4.9, however it is rounded


def test_an_item_that_is_not_allowed_is_never_a_candidate() -> None:
    scores = np.full((2, 100), -np.inf, np.float32)
    scores[1, 7] = -3e38
    query_of, items = candidates_above_threshold(scores, 5, EXACT[:2])
    assert (query_of.tolist(), items.tolist()) == ([1], [7])
    assert [part.tolist() for part in candidates_above_threshold(scores[:, :0], 5, EXACT[:2])] == [[], []]


def test_the_best_come_first_and_equal_scores_in_the_fixed_order() -> None:
    vectors = np.float32([[1, 0], [2, 0], [1, 0], [1, 5]])
    rank, _ = tie_order(4)
    equal = sorted([0, 2, 3], key=lambda row: -rank[row])
    query_of, rows = np.array([0, 0, 0, 0, 2, 2]), np.array([0, 1, 2, 3, 3, 1])
    best = rescore_and_sort(vectors, np.float32([[1, 0]] * 3), query_of=query_of, rows=rows, k=5, score="dot")
    assert best.item_rows.tolist() == [[1, *equal, -1], [-1] * 5, [1, 3, -1, -1, -1]]
    assert best.scores[:, :2].tolist() == [[2, 1], [-np.inf, -np.inf], [2, 1]]
    assert best.counts.tolist() == [4, 0, 2]
    assert rescore_and_sort(
        vectors, np.float32([[1, 0]]), query_of=query_of[:4], rows=rows[:4], k=2, score="dot"
    ).item_rows.tolist() == [[1, equal[0]]]


def test_values_are_replaced_and_kept_where_true() -> None:
    ragged = Ragged(np.array([5, 6, 7]), np.array([0, 2, 2, 3]))
    kept = ragged.where(np.array([False, True, True]), np.array([50, 60, 70]))
    assert (kept.values.tolist(), kept.offsets.tolist()) == ([60, 70], [0, 1, 1, 2])
