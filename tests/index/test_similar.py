"""Similar items are those with the largest cosines, however long the vectors are."""

import numpy as np
import pytest

from tests.index.test_live import ITEMS, live_index, table
from twofold.index.item_index import build_index
from twofold.index.item_mask import from_mask
from twofold.index.live import LiveIndex
from twofold.index.score_kinds import Score
from twofold.index.similar import search_similar
from twofold.ragged import Ragged


def vectors_of_any_length(items: int, dim: int = 8) -> np.ndarray:
    draw = np.random.default_rng(1)
    return draw.standard_normal((items, dim), np.float32) * draw.lognormal(sigma=2, size=(items, 1)).astype(np.float32)


def by_hand(vectors: np.ndarray, row: int, allowed: np.ndarray) -> list[int]:
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1)[:, None]
    cosines = np.where(allowed, unit @ unit[row], -np.inf)
    cosines[row] = -np.inf
    return np.argsort(-cosines)[: int(allowed.sum() - allowed[row])].tolist()


def itself(row: int) -> Ragged:
    return Ragged(np.array([row]), np.array([0, 1]))


def test_the_most_similar_items_of_an_index_of_products_have_the_largest_cosines() -> None:
    vectors = vectors_of_any_length(2_000)
    index, everything = build_index(vectors, score="dot"), np.ones(2_000, bool)
    for row in range(20):
        found = search_similar(index, vectors[[row]], 50, allowed=None, excluded=itself(row))
        assert found.item_rows[0].tolist() == by_hand(vectors, row, everything)[:50]
        assert (found.counts[0], found.is_exact) == (50, True)
        longest = np.argsort(-np.linalg.norm(vectors, axis=1))[:50]
        assert len(np.intersect1d(found.item_rows[0], longest)) < 10  # 26 by inner products


def test_only_allowed_items_are_found_and_the_rest_of_the_list_is_not_counted() -> None:
    vectors = vectors_of_any_length(300)
    allowed = np.arange(300) % 100 == 0
    found = search_similar(
        build_index(vectors, score="dot"), vectors[[5]], 9, allowed=from_mask(allowed), excluded=itself(5)
    )
    assert found.item_rows[0, :3].tolist() == by_hand(vectors, 5, allowed)
    assert found.counts.tolist() == [3]


def test_equal_directions_tie_and_a_vector_of_length_zero_is_similar_to_none() -> None:
    vectors = np.tile(np.float32([[1, 0]]), (6, 1)) * np.float32([[1], [2], [4], [8], [16], [0]])
    index = build_index(vectors, score="dot")
    found = search_similar(index, vectors[[0]], 5, allowed=None, excluded=itself(0))
    assert found.scores[0].tolist() == [1, 1, 1, 1, 0]
    assert found.item_rows[0, -1] == 5
    assert search_similar(index, vectors[[5]], 5, allowed=None, excluded=itself(5)).scores[0].tolist() == [0] * 5


@pytest.mark.parametrize("score", ["dot", "cosine", "negative_distance"])
def test_similar_items_follow_the_changes_of_a_live_index(score: Score) -> None:
    vectors = vectors_of_any_length(ITEMS, dim=2)
    vectors = vectors / np.linalg.norm(vectors, axis=1)[:, None] if score == "cosine" else vectors
    live = live_index(vectors, score=score)

    def similar(k: int = 3, where: str | None = None, item: int = 100) -> list[int]:
        found = live.now.similar(live.now.row_of(item), k, where=where)
        return live.now.ids_of(found.item_rows[0, : found.counts[0]]).to_pylist()

    before = similar()
    assert 100 not in similar(ITEMS + 9)
    twin = vectors[:1] if score != "dot" else vectors[:1] * 1e-3
    live.upsert(table([7], [3]), twin)
    assert similar() == [7, *before[:2]]
    assert similar(item=7) == [100, *before[:2]]
    live.upsert(table([before[0]], [3]), -vectors[:1])
    assert similar(ITEMS)[-1] == before[0] or score == "negative_distance"
    live.upsert(table([100], [50]), vectors[:1])  # the item itself is updated, and is still left out
    assert similar() == [7, *before[1:3]]
    live.set_withdrawn([7])
    assert 7 not in similar(ITEMS)
    young = similar(ITEMS, where="age_days < 10")
    assert 0 < len(young) < 12


def test_an_index_with_lists_is_read_whole_for_cosines() -> None:
    vectors = vectors_of_any_length(3_000)
    live: LiveIndex = live_index(vectors, max_flat=1_000)
    assert live.now.built.index.ivf is not None
    assert live.now.similar(4, 20).item_rows[0].tolist() == by_hand(vectors, 4, np.ones(3_000, bool))[:20]
