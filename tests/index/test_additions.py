"""Additions to the scores of some items: a search with them is a search over the sums, whatever else it leaves out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.index.oracle import ragged, unit_vectors
from tests.index.test_live import live_index, table
from twofold.index.item_index import build_index
from twofold.index.score_kinds import Score, pair_scores
from twofold.index.search import search
from twofold.ragged import Ragged
from twofold.topk import Additions, Products, concatenate_additions, exclude, top_k


def random_additions(rng: np.random.Generator, *, queries: int, items: int, longest: int) -> Additions:
    lists = [
        np.sort(rng.choice(items, rng.integers(0, min(longest, items) + 1), replace=False)) for _ in range(queries)
    ]
    rows = ragged([each.tolist() for each in lists])
    return Additions(rows, rng.integers(-2, 4, len(rows.values)).astype(np.float32))


def sums(vectors: np.ndarray, queries: np.ndarray, score: Score, added: Additions) -> np.ndarray:
    scores = np.stack([pair_scores(vectors, query, score) for query in queries])
    scores[added.rows.lines, added.rows.values] += added.values
    return scores


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    items=st.integers(1, 120),
    num_queries=st.integers(1, 5),
    k=st.integers(1, 30),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    score=st.sampled_from(["dot", "negative_distance"]),
)
def test_a_search_with_additions_is_one_over_the_sums(
    seed: int, items: int, num_queries: int, k: int, share: float, score: Score
) -> None:
    rng = np.random.default_rng(seed)
    index = build_index(rng.integers(-2, 3, (items, 3)).astype(np.float32), score=score)
    queries = rng.integers(-1, 2, (num_queries, 3)).astype(np.float32)
    added = random_additions(rng, queries=num_queries, items=items, longest=12)
    allowed = rng.random(items) < share
    excluded = ragged([rng.integers(0, items, rng.integers(0, 9)).tolist() for _ in range(num_queries)])
    found = search(index, queries, k, allowed=allowed, excluded=excluded, added=added)
    scores = sums(index.vectors, queries, score, added)
    exclude(scores, excluded)
    expected = top_k(scores, k, allowed=allowed[None])
    assert found.item_rows.tolist() == expected.item_rows.tolist()
    assert found.scores.tolist() == expected.scores.tolist()
    assert found.counts.tolist() == expected.counts.tolist()


def test_an_index_of_lists_finds_an_item_that_only_its_addition_brings_up() -> None:
    vectors = unit_vectors(4000, 8)
    index, queries = build_index(vectors, max_flat=1000), unit_vectors(20, 8, seed=1)
    assert index.ivf is not None
    worst = (queries @ vectors.T).argmin(axis=1)
    added = Additions(Ragged(worst, np.arange(21)), np.full(20, 10, np.float32))
    found = search(index, queries, 5, added=added)
    assert found.item_rows[:, 0].tolist() == worst.tolist()
    plain = search(index, queries, 4)
    assert found.item_rows[:, 1:].tolist() == plain.item_rows.tolist()


def test_a_live_index_adds_to_the_items_as_they_are_now() -> None:
    vectors = np.float32([[3, 0], [2, 0], [1, 0], [0, 0]])
    live, query = live_index(vectors), np.float32([[1, 0]])
    added = Additions(Ragged(np.array([1, 2, 3]), np.array([0, 3])), np.float32([2, 4, 2.5]))

    def best(k: int = 4, **restrict: object) -> list[tuple[int, float]]:
        found = live.now.search(query, k, added=added, **restrict)
        ids = live.now.ids_of(found.item_rows[0, : found.counts[0]]).to_pylist()
        return list(zip(ids, found.scores[0].tolist(), strict=False))

    assert best() == [(102, 5.0), (101, 4.0), (100, 3.0), (103, 2.5)]
    assert best(2) == [(102, 5.0), (101, 4.0)]
    assert best(excluded=Ragged(np.array([2]), np.array([0, 1]))) == [(101, 4.0), (100, 3.0), (103, 2.5)]
    assert best(where="age_days < 2") == [(101, 4.0), (100, 3.0)]
    live.upsert(table([103], [3]), np.float32([[9, 0]]))
    assert best() == [(103, 11.5), (102, 5.0), (101, 4.0), (100, 3.0)]
    live.set_withdrawn([102])
    assert best() == [(103, 11.5), (101, 4.0), (100, 3.0)]


@pytest.mark.parametrize("seed", range(5))
def test_products_with_additions_are_the_same_as_rows_as_pairs_and_in_parts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    queries, items = rng.normal(size=(9, 3)).astype(np.float32), rng.normal(size=(30, 3)).astype(np.float32)
    added = random_additions(rng, queries=9, items=30, longest=6)
    products, expected = Products(queries, items, added), queries @ items.T
    expected[added.rows.lines, added.rows.values] += added.values
    np.testing.assert_allclose(products(slice(2, 7)), expected[2:7], rtol=1e-5)
    chosen = np.array([8, 0, 3])
    np.testing.assert_allclose(products.of(chosen)(slice(0, 3)), expected[chosen], rtol=1e-5)
    users, rows = (each.ravel() for each in np.indices(expected.shape))
    np.testing.assert_allclose(products.pairs(users, rows), expected.ravel(), rtol=1e-4, atol=1e-5)
    halves = [added.of(np.arange(0, 4)), added.of(np.arange(4, 9))]
    joined = concatenate_additions(halves)
    assert joined.rows.values.tolist() == added.rows.values.tolist()
    assert joined.rows.offsets.tolist() == added.rows.offsets.tolist()
    assert joined.values.tolist() == added.values.tolist()
