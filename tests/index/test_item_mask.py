"""Item masks: bits and counts equal those of the sets they stand for; few items are listed."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from twofold.index.item_mask import MAX_SPARE, POOL_SHARE, from_mask, from_rows, full_mask

ITEMS = 2000


@given(seed=st.integers(0, 10**6), items=st.integers(0, 70), share=st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_bits_and_counts_are_those_of_the_sets_they_stand_for(seed: int, items: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    one, other = (rng.random(items) < share for _ in range(2))
    left, right = from_mask(one), from_mask(other)
    for found, expected in (
        (left, one),
        (left.intersection(right), one & other),
        (left.difference(right), one & ~other),
        (left.without_rows(np.flatnonzero(other)), one & ~other),
        (from_rows(np.flatnonzero(one), items=items), one),
        (full_mask(items), np.ones(items, bool)),
    ):
        assert found.mask.tolist() == expected.tolist()
        assert found.count == expected.sum()
        assert found.contains(np.arange(items)).tolist() == expected.tolist()
        assert not found.contains(np.array([[-1]])).any()
        if found.pool is None:
            assert found.count > items * POOL_SHARE
        else:
            assert set(np.flatnonzero(expected)) <= set(found.pool.rows)


def test_few_rows_are_listed_and_keep_their_list_until_too_many_of_them_are_gone() -> None:
    few = from_rows(np.arange(0, ITEMS, 10), items=ITEMS * 2)
    assert few.pool is not None
    assert few.pool.rows.tolist() == list(range(0, ITEMS, 10))
    assert few.without_rows(np.array([10])).pool is few.pool
    many = from_rows(np.arange(2 * MAX_SPARE), items=20 * MAX_SPARE)
    fewer = many.without_rows(np.arange(MAX_SPARE + 1))
    assert fewer.pool is not None
    assert fewer.pool.rows.tolist() == list(range(MAX_SPARE + 1, 2 * MAX_SPARE))


def test_an_intersection_keeps_the_smaller_list() -> None:
    small, large = from_rows(np.arange(3), items=100), from_rows(np.arange(10), items=100)
    assert small.intersection(large).pool is small.pool
    assert large.intersection(full_mask(100)).pool is large.pool
