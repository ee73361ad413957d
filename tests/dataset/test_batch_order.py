"""Every line once an epoch but for the remainders, groups never mixed, and the same order for the same seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.dataset.batch_order import Order
from twofold.dataset.example_blocks import ExampleBlocks, Groups
from twofold.dataset.examples import ROW, Examples


def order_of(lines, batch_size, *, groups=None, block_rows=2**20, **changes):
    """Returns the order of every third row, in the groups of these rows."""
    records = np.zeros(3 * lines, ROW)
    records["label"][::3] = True
    records["user_rows"] = np.arange(3 * lines) // 12
    examples = ExampleBlocks(Examples(records, {}), "positive events", block_rows)
    numbered = None if groups is None else Groups(lambda indices: groups[indices // 3], np.bincount(groups))
    return Order(examples, lines, batch_size, numbered, **changes)


def batches_of(order, seed):
    return np.concatenate([made.indices for made in order.epoch(seed)])


@given(st.integers(1, 40), st.integers(2, 50), st.integers(0, 5), st.sampled_from([2**20, 60, 10]), st.booleans())
def test_batches_are_full_and_hold_every_line_at_most_once(lines, batch_size, epoch, block_rows, has_runs):
    block_rows = 2**20 if lines < batch_size else block_rows
    order = order_of(lines, batch_size, block_rows=block_rows, max_run=3 if has_runs else 1)
    batches = batches_of(order, (7, epoch))
    assert batches.shape == ((1, lines) if lines < batch_size else (lines // batch_size, batch_size))
    assert len(order) == len(batches)
    assert len(np.unique(batches)) == batches.size
    assert (batches % 3 == 0).all()


@given(
    st.lists(st.integers(4, 20), min_size=2, max_size=5),
    st.integers(2, 4),
    st.integers(0, 5),
    st.sampled_from([2**20, 20]),
)
def test_a_batch_is_of_one_group_and_no_group_loses_more_than_a_remainder(counts, batch_size, epoch, block_rows):
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    order = order_of(len(groups), batch_size, groups=groups, block_rows=block_rows)
    made = list(order.epoch((0, epoch)))
    batches, stated = (np.concatenate([getattr(each, name) for each in made]) for name in ("indices", "groups"))
    assert len(order) == len(batches) == sum(count // batch_size for count in counts)
    assert (groups[batches // 3] == stated[:, None]).all()
    assert len(np.unique(batches)) == batches.size
    used = np.bincount(stated, minlength=len(counts)) * batch_size
    assert used.tolist() == [count - count % batch_size for count in counts]


def test_the_order_of_batches_mixes_the_groups_and_what_waits_changes():
    groups = np.repeat(np.arange(2), 103)
    order = order_of(206, 10, groups=groups)
    (first,) = order.epoch((0, 0))
    assert first.groups.tolist() != sorted(first.groups)
    epochs = [set(batches_of(order, (0, epoch)).ravel().tolist()) for epoch in range(8)]
    assert len(epochs[0] | epochs[1]) > 200
    assert set.union(*epochs) == set(range(0, 618, 3))
    np.testing.assert_array_equal(batches_of(order, (0, 3)), batches_of(order, (0, 3)))


@pytest.mark.parametrize("seed", [(0, 0), (5, 2)])
def test_without_groups_the_order_of_one_block_is_a_shuffle_cut_up(seed):
    expected = 3 * np.random.default_rng(seed).permutation(7)[:6].reshape(2, 3)
    np.testing.assert_array_equal(batches_of(order_of(7, 3), seed), expected)


def test_batches_without_a_shuffle_follow_the_groups():
    groups = np.tile(np.arange(4), 10)
    (made,) = order_of(40, 5, groups=groups, is_shuffled=False).epoch((0, 0))
    assert made.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_batch_is_made_of_its_block_and_of_what_earlier_blocks_left():
    order = order_of(1000, 7, groups=np.tile(np.arange(5), 200), block_rows=300)
    made = list(order.epoch((0, 0)))
    assert sorted(each.block for each in made) == list(range(10))
    assert [each.block for each in made] != list(range(10))
    assert [each.following for each in made] == [*(each.block for each in made[1:]), None]
    assert [each.block for each in order.epoch((0, 1))] != [each.block for each in made]
    left: set[int] = set()
    for each in made:
        block = set(range(300 * each.block, 300 * each.block + 300, 3))
        assert set(each.indices.ravel().tolist()) <= block | left
        left = (block | left) - set(each.indices.ravel().tolist())
        assert len(left) <= 5 * 6
        assert len(each.indices) >= 9  # 100 lines in batches of 7, without more than six of each group
