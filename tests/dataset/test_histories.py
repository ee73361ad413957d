import numpy as np
import pytest

from twofold.dataset.histories import Histories, load_histories

# user 0 met 5, 6, 7 at 10, 20, 20; user 1 met nothing; user 2 met 8 at 30
WORLD = Histories(
    np.array([5, 6, 7, 8], np.int32), np.array([10, 20, 20, 30], np.int64), np.array([0, 3, 3, 4], np.int64)
)


def test_before_is_strict():
    users = np.array([0, 0, 0, 0, 1, 2])
    at = np.array([10, 11, 20, 21, 99, 30])
    assert WORLD.before(users, at).tolist() == [0, 1, 1, 3, 0, 0]


def test_before_equals_a_naive_count():
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 9, size=40)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    at = np.concatenate([np.sort(rng.integers(0, 20, size=n)) for n in lengths]).astype(np.int64)
    histories = Histories(np.zeros(len(at), np.int32), at, offsets)
    users, moments = rng.integers(0, 40, size=500), rng.integers(-1, 22, size=500)
    naive = [(at[offsets[u] : offsets[u + 1]] < t).sum() for u, t in zip(users, moments, strict=True)]
    assert histories.before(users, moments).tolist() == naive


def test_last_is_right_aligned_and_never_reaches_into_a_neighbor():
    taken = WORLD.last(np.array([0, 0, 1, 2]), np.array([3, 1, 0, 1]), n=2)
    assert taken.tolist() == [[7, 8], [0, 6], [0, 0], [0, 9]]


@pytest.mark.parametrize("n", [0, 1, 4, 50])
def test_last_equals_a_naive_slice(n):
    rng = np.random.default_rng(n)
    lengths = rng.integers(0, 9, size=6)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = rng.integers(0, 99, size=offsets[-1]).astype(np.int32)
    histories = Histories(items, rng.integers(0, 2**40, size=len(items)), offsets)
    users = rng.integers(0, 6, size=200)
    counts = rng.integers(0, lengths[users] + 1)
    both = histories.last(users, counts, n=n), histories.last_at(users, counts, n=n)
    for user, count, taken, taken_at in zip(users, counts, *both, strict=True):
        part = slice(offsets[user] + max(count - n, 0), offsets[user] + count)
        newest = (items[part] + 1).tolist()
        assert taken.tolist() == [0] * (n - len(newest)) + newest
        assert taken_at[n - len(newest) :].tolist() == histories.at[part].tolist()


def test_slices_and_parts():
    items, offsets = WORLD.slices(np.array([2, 0]), np.array([1, 2]))
    assert items.tolist() == [8, 5, 6]
    assert offsets.tolist() == [0, 1, 3]
    part = WORLD.only(np.array([True, False, True, False]))
    assert part.item_rows.tolist() == [5, 7]
    assert part.offsets.tolist() == [0, 2, 2, 2]


def test_saved_and_mapped_equal(tmp_path):
    WORLD.save(tmp_path, "events")
    loaded = load_histories(tmp_path, "events")
    assert loaded.item_rows.tolist() == WORLD.item_rows.tolist()
    WORLD.only(np.zeros(4, bool)).save(tmp_path, "none")
    assert load_histories(tmp_path, "none").last(np.array([0]), np.array([0]), n=1).tolist() == [[0]]
