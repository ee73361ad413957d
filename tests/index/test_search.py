"""Exact search equals scoring everything, under filters, exclusions and ties, alone or in a batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.index.oracle import ragged, score_everything, unit_vectors
from twofold.errors import RequestError
from twofold.index.item_index import Index, build_index
from twofold.index.score_kinds import Score
from twofold.index.search import search
from twofold.topk import tie_order


@pytest.fixture(scope="module")
def index() -> Index:
    return build_index(unit_vectors(500, 8))


queries = unit_vectors(40, 8, seed=1)


@pytest.mark.parametrize("k", [1, 20, 484, 485, 500, 600])
def test_results_are_those_of_scoring_everything(index: Index, k: int) -> None:
    found, expected = search(index, queries, k), score_everything(index, queries, k)
    assert found.item_rows.tolist() == expected.item_rows.tolist()
    assert found.scores.tolist() == expected.scores.tolist()
    assert found.counts.tolist() == [min(k, 500)] * 40
    assert found.is_exact


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    items=st.integers(1, 200),
    num_queries=st.integers(1, 6),
    k=st.integers(1, 40),
    share=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    levels=st.sampled_from([1, 2, 50]),
    score=st.sampled_from(["dot", "negative_distance"]),
)
def test_filter_and_exclusions_hold_and_nothing_eligible_is_missed(
    seed: int, items: int, num_queries: int, k: int, share: float, levels: int, score: Score
) -> None:
    rng = np.random.default_rng(seed)
    # Few levels: many equal vectors, so that ties reach far beyond k.
    index = build_index(rng.integers(-levels, levels + 1, (items, 3)).astype(np.float32), score=score)
    vectors = rng.integers(-1, 2, (num_queries, 3)).astype(np.float32)
    allowed = rng.random(items) < share
    excluded = ragged([rng.integers(0, items, rng.integers(0, 30)).tolist() for _ in range(num_queries)])
    found = search(index, vectors, k, allowed=allowed, excluded=excluded)
    expected = score_everything(index, vectors, k, allowed=allowed, excluded=excluded)
    assert found.item_rows.tolist() == expected.item_rows.tolist()
    eligible = [set(np.flatnonzero(allowed)) - set(excluded.of(np.array([row])).values) for row in range(num_queries)]
    assert found.counts.tolist() == [min(k, len(items)) for items in eligible]


def test_equal_items_are_ranked_by_the_fixed_shuffle_and_not_in_catalogue_order() -> None:
    index = build_index(np.tile(np.float32([1, 0]), (300, 1)))
    _, row_of_rank = tie_order(300)
    expected = row_of_rank[::-1][:5].tolist()
    assert search(index, np.float32([[1, 0]]), 5).item_rows.tolist() == [expected]
    assert search(index, np.float32([[1, 0]] * 3), 5).item_rows.tolist() == [expected] * 3


@pytest.mark.parametrize("score", ["cosine", "negative_distance"])
def test_a_query_has_the_same_result_alone_and_in_a_batch(index: Index, score: Score) -> None:
    index = build_index(index.vectors, score=score)
    many = unit_vectors(3000, 8, seed=2)  # more than one chunk
    allowed = np.arange(500) % 3 > 0
    excluded = ragged([[row % 500] for row in range(3000)])
    together = search(index, many, 10, allowed=allowed, excluded=excluded)
    for row in range(0, 3000, 97):
        alone = search(index, many[[row]], 10, allowed=allowed, excluded=ragged([[row % 500]]))
        assert alone.item_rows.tolist() == together.item_rows[[row]].tolist()
        assert alone.scores.tolist() == together.scores[[row]].tolist()


def test_a_query_that_excludes_most_items_has_its_results() -> None:
    index = build_index(unit_vectors(350, 4))
    lists = [[], list(range(340)), [3]]
    found = search(index, unit_vectors(3, 4, seed=3), 20, excluded=ragged(lists))
    assert found.counts.tolist() == [20, 10, 20]
    assert sorted(found.item_rows[1][:10].tolist()) == list(range(340, 350))


def test_a_short_list_is_counted_and_ends_in_minus_one(index: Index) -> None:
    allowed = np.zeros(500, bool)
    allowed[[7, 9]] = True
    for count in (1, 3):
        found = search(index, queries[:count], 4, allowed=allowed, excluded=ragged([[9]] * count))
        assert found.item_rows.tolist() == [[7, -1, -1, -1]] * count
        assert found.counts.tolist() == [1] * count
        assert np.isneginf(found.scores[:, 1:]).all()
        nothing = search(index, queries[:count], 4, allowed=np.zeros(500, bool))
        assert nothing.counts.tolist() == [0] * count


def test_no_queries_have_no_results(index: Index) -> None:
    assert search(index, queries[:0], 5).item_rows.shape == (0, 5)


def test_the_nearest_are_not_the_longest() -> None:
    index = build_index(np.float32([[1, 0], [9, 0], [2, 2]]), score="negative_distance")
    found = search(index, np.float32([[1, 1]]), 3)
    assert found.item_rows.tolist() == [[0, 2, 1]]
    assert found.scores.tolist() == [[-1, -2, -(8**2) - 1]]
    assert search(build_index(index.vectors, score="dot"), np.float32([[1, 1]]), 1).item_rows.tolist() == [[1]]


@pytest.mark.parametrize(
    ("vectors", "k", "message"),
    [
        (np.zeros((1, 8), np.float32), 0, "k must be at least 1, not 0"),
        (np.zeros((1, 5), np.float32), 3, "5 dimensions, the index has 8"),
        (np.full((2, 8), np.nan, np.float32), 3, "query vector 0 holds NaN"),
    ],
)
def test_an_invalid_query_is_refused(index: Index, vectors: np.ndarray, k: int, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        search(index, vectors, k)
