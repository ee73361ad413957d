"""FAISS's scan over the caller's own array: the scores that NumPy computes."""

import numpy as np
import pytest

from twofold.index.scan import scan
from twofold.index.score_kinds import Score, pair_scores

draw = np.random.default_rng(0)
VECTORS, QUERIES = draw.standard_normal((300, 6), np.float32), draw.standard_normal((3, 6), np.float32)


@pytest.mark.parametrize("score", ["dot", "cosine", "negative_distance"])
@pytest.mark.parametrize("lines", [1, 3])
def test_the_best_are_those_of_sorting_all(score: Score, lines: int) -> None:
    found, best = scan(VECTORS, QUERIES[:lines], 5, score=score)
    for line in range(lines):
        scores = pair_scores(VECTORS, QUERIES[line], score)
        order = np.argsort(-scores)[:5]
        assert best[line].tolist() == order.tolist()
        np.testing.assert_allclose(found[line], scores[order], rtol=1e-5, atol=1e-5)


def test_where_there_are_fewer_the_rest_is_nobody() -> None:
    found, best = scan(VECTORS[8:9], QUERIES[:1], 3, score="negative_distance")
    assert best.tolist() == [[0, -1, -1]]
    assert np.isneginf(found[0, 1:]).all()
    found, best = scan(VECTORS[:0], QUERIES[:1], 2, score="dot")
    assert best.tolist() == [[-1, -1]]
    assert np.isneginf(found).all()


def test_a_mapped_file_is_searched_in_place(tmp_path) -> None:
    np.save(tmp_path / "vectors.npy", VECTORS)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    assert scan(np.asarray(mapped), QUERIES, 4, score="dot")[1].tolist() == (
        scan(VECTORS, QUERIES, 4, score="dot")[1].tolist()
    )
