import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from twofold.errors import RequestError
from twofold.ragged import Ragged, chunks
from twofold.topk import exclude, tie_order, top_k

SCORES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 12)),
    elements=st.sampled_from([-np.inf, -2.5, -0.0, 0.0, 1e-30, 0.25, 3.0]),  # few values, so many ties
)


@settings(deadline=None)
@given(SCORES, st.integers(1, 15))
def test_equals_a_full_sort_with_the_fixed_tie_order(scores, k):
    found = top_k(scores, k)
    rank, _ = tie_order(scores.shape[1])
    for line, row in enumerate(scores):
        best = sorted(np.flatnonzero(row > -np.inf), key=lambda item: (-row[item], -rank[item]))[:k]
        assert found.counts[line] == len(best)
        assert found.item_rows[line, : len(best)].tolist() == best
        assert found.scores[line, : len(best)].tolist() == row[best].tolist()
        assert (found.item_rows[line, len(best) :] == -1).all()


def test_a_constant_model_does_not_get_the_first_page_of_the_catalogue():
    found = top_k(np.zeros((1, 1000), np.float32), 10).item_rows[0]
    assert found.tolist() != list(range(10))
    assert found.tolist() == top_k(np.zeros((1, 1000), np.float32), 10).item_rows[0].tolist()


def test_batch_equals_single():
    scores = np.random.default_rng(0).normal(size=(7, 50)).astype(np.float32)
    together = top_k(scores, 5).item_rows
    assert [top_k(line[None], 5).item_rows[0].tolist() for line in scores] == together.tolist()


def test_allowed_and_excluded_never_appear():
    scores = np.ones((2, 6), np.float32)
    exclude(scores, Ragged(np.array([0, 1, 5]), np.array([0, 2, 3])))
    found = top_k(scores, 6, allowed=np.array([[True, True, True, True, False, True]]))
    assert sorted(found.item_rows[0][: found.counts[0]]) == [2, 3, 5]
    assert sorted(found.item_rows[1][: found.counts[1]]) == [0, 1, 2, 3]


def test_nan_and_k_of_nothing_are_refused():
    with pytest.raises(RequestError, match="NaN .first in query 1.*diverged"):
        top_k(np.array([[0.0], [np.nan]], np.float32), 1)
    with pytest.raises(RequestError, match="k must be at least 1, not 0"):
        top_k(np.zeros((1, 1), np.float32), 0)


def test_blocks_cover_everything_once():
    assert [number for part in chunks(10, 3) for number in range(10)[part]] == list(range(10))
    assert chunks(0, 3) == []
