"""Every line once an epoch but for the remainders, groups never mixed, and the same order for the same seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.dataset.batch_order import Order


@given(st.integers(1, 40), st.integers(2, 50), st.integers(0, 5))
def test_batches_are_full_and_hold_every_line_at_most_once(lines, batch_size, epoch):
    order = Order(np.arange(lines) * 3, batch_size)
    batches = order.batches((7, epoch))
    assert batches.shape == ((1, lines) if lines < batch_size else (lines // batch_size, batch_size))
    assert len(order) == len(batches)
    assert len(np.unique(batches)) == batches.size


@given(st.lists(st.integers(4, 20), min_size=2, max_size=5), st.integers(2, 4), st.integers(0, 5))
def test_a_batch_is_of_one_group_and_no_group_loses_more_than_a_remainder(counts, batch_size, epoch):
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int32)
    order = Order(np.arange(len(groups)), batch_size, groups)
    batches = order.batches((0, epoch))
    assert len(order) == len(batches) == sum(count // batch_size for count in counts)
    assert (groups[batches] == groups[batches[:, :1]]).all()
    assert len(np.unique(batches)) == batches.size
    used = np.bincount(groups[batches[:, 0]]) * batch_size
    assert used.tolist() == [count - count % batch_size for count in counts]


def test_the_order_of_batches_mixes_the_groups_and_what_waits_changes():
    groups = np.repeat(np.arange(2, dtype=np.int32), 103)
    order = Order(np.arange(206), 10, groups)
    first = groups[order.batches((0, 0))[:, 0]]
    assert first.tolist() != sorted(first)
    epochs = [set(order.batches((0, epoch)).ravel().tolist()) for epoch in range(8)]
    assert len(epochs[0] | epochs[1]) > 200
    assert set.union(*epochs) == set(range(206))
    np.testing.assert_array_equal(order.batches((0, 3)), order.batches((0, 3)))


@pytest.mark.parametrize("seed", [(0, 0), (5, 2)])
def test_without_groups_the_order_is_a_shuffle_cut_up(seed):
    expected = np.random.default_rng(seed).permutation(7)[:6].reshape(2, 3)
    np.testing.assert_array_equal(Order(np.arange(7), 3).batches(seed), expected)
