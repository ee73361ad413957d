"""Scores in NumPy: pair by pair, and as the products that FAISS searches."""

import numpy as np
import pytest

from twofold.index.score_kinds import Score, items_as_products, pair_scores, queries_as_products

draw = np.random.default_rng(0)
VECTORS, QUERIES = draw.standard_normal((1000, 64), np.float32), draw.standard_normal((5, 64), np.float32)


@pytest.mark.parametrize("score", ["dot", "negative_distance"])
def test_a_pair_has_the_same_score_alone_and_among_many(score: Score) -> None:
    together = pair_scores(VECTORS, QUERIES[0], score)
    alone = [float(pair_scores(VECTORS[[row]], QUERIES[0], score)[0]) for row in range(0, 1000, 7)]
    assert alone == together[::7].tolist()


def test_scores_are_what_their_names_say() -> None:
    user, item = np.float32([1, 2]), np.float32([3, -1])
    assert pair_scores(item, user, "dot") == 1 * 3 - 2 * 1
    assert pair_scores(item, user, "negative_distance") == -(2**2) - 3**2


@pytest.mark.parametrize("score", ["dot", "cosine", "negative_distance"])
def test_products_are_the_scores_up_to_rounding(score: Score) -> None:
    products = queries_as_products(QUERIES, score) @ items_as_products(VECTORS, score).T
    expected = np.stack([pair_scores(VECTORS, query, score) for query in QUERIES])
    np.testing.assert_allclose(products, expected, atol=1e-4)
