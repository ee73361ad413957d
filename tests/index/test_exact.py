"""What may be among the best by the product is never missed, and little else is looked at."""

import numpy as np
import pytest

from twofold.index.exact import candidates_above_threshold, products
from twofold.index.score_kinds import Score, pair_scores

draw = np.random.default_rng(0)
VECTORS, QUERIES = draw.standard_normal((5000, 6), np.float32), draw.standard_normal((4, 6), np.float32)
EXACT = np.zeros(4, np.float32)


@pytest.mark.parametrize("score", ["dot", "negative_distance"])
def test_products_are_the_scores_up_to_rounding(score: Score) -> None:
    squares = np.vecdot(VECTORS, VECTORS) if score == "negative_distance" else None
    expected = np.stack([pair_scores(VECTORS, query, score) for query in QUERIES])
    np.testing.assert_allclose(products(VECTORS, QUERIES, squares), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [1, 10, 100, 4999, 5000, 9000])
def test_the_best_are_among_those_that_reach_the_bound_and_few_others_are(k: int) -> None:
    scores = products(VECTORS, QUERIES, None)
    lines, items = candidates_above_threshold(scores, k, EXACT)
    for line in range(4):
        reached = items[lines == line]
        assert set(np.argsort(-scores[line])[:k]) <= set(reached)
        assert len(reached) <= max(1.3 * k, k + 10)


def test_what_rounding_could_lift_among_the_best_is_looked_at() -> None:
    scores = np.float32([[5.0, 4.9, 4.0, 4.79]])
    _, items = candidates_above_threshold(scores, 1, np.float32([0.1]))
    assert items.tolist() == [0, 1]  # 5.0 may be 4.9, 4.9 may be 5.0; 4.79 is less than 4.9, whatever it is


def test_what_is_not_allowed_is_never_looked_at() -> None:
    scores = np.full((2, 100), -np.inf, np.float32)
    scores[1, 7] = -3e38
    lines, items = candidates_above_threshold(scores, 5, EXACT[:2])
    assert (lines.tolist(), items.tolist()) == ([1], [7])
    assert [part.tolist() for part in candidates_above_threshold(scores[:, :0], 5, EXACT[:2])] == [[], []]
