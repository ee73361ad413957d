"""The running top k against the whole row, sorted; and what it holds in memory."""

import tracemalloc

import numpy as np
import pytest

from twofold.errors import RequestError
from twofold.evaluate import scores as ranking
from twofold.evaluate.scores import Products, rank_products, rank_rows, users_at_once
from twofold.ragged import Ragged
from twofold.topk import exclude, tie_order, top_k


def whole_numbers(seed, *, users, items, dim=3):
    """Vectors whose products are whole numbers: many ties, and the same bits in blocks of any shape."""
    rng = np.random.default_rng(seed)
    queries, factors = (rng.integers(-2, 3, (lines, dim)).astype(np.float32) for lines in (users, items))
    return Products(queries, factors)


def random_lists(seed, *, users, items, longest):
    rng = np.random.default_rng(seed)
    lists = [rng.choice(items, rng.integers(0, longest + 1), replace=False) for _ in range(users)]
    return Ragged(np.concatenate(lists), np.cumsum([0] + [len(each) for each in lists]))


@pytest.mark.parametrize("case", range(200))
def test_blocks_of_items_give_what_the_whole_row_gives(case, monkeypatch):
    rng = np.random.default_rng(case)
    users, items, k = int(rng.integers(1, 9)), int(rng.integers(1, 60)), int(rng.integers(1, 12))
    monkeypatch.setattr(ranking, "_ITEMS", int(rng.integers(1, 9)))
    monkeypatch.setattr(ranking, "_first_items", lambda k: k + case % 3)
    monkeypatch.setattr(ranking, "_CELLS", int(rng.integers(1, 30)))
    products = whole_numbers(case, users=users, items=items)
    excluded = random_lists(case, users=users, items=items, longest=min(items, 5))
    scores = products(slice(0, users))
    exclude(scores, excluded)
    expected = top_k(scores, k).item_rows
    assert (rank_products(products, slice(0, users), k, excluded=excluded) == expected).all()
    assert (rank_rows(products(slice(0, users)), k, excluded=excluded) == expected).all()


def test_a_model_that_says_the_same_of_everything_gives_the_fixed_shuffle():
    products = Products(np.ones((3, 2), np.float32), np.ones((20_000, 2), np.float32))
    nothing = Ragged(np.zeros(0, np.int64), np.zeros(4, np.int64))
    answers = rank_products(products, slice(0, 3), 5, excluded=nothing)
    assert answers.tolist() == [tie_order(20_000)[1][::-1][:5].tolist()] * 3


def test_scores_that_rise_with_the_row_are_merged_before_they_fill_the_memory():
    factors = np.arange(30_000, dtype=np.float32)[:, None]
    products = Products(np.array([[1], [-1]], np.float32), factors)
    nothing = Ragged(np.zeros(0, np.int64), np.zeros(3, np.int64))
    answers = rank_products(products, slice(0, 2), 3, excluded=nothing)
    assert answers.tolist() == [[29_999, 29_998, 29_997], [0, 1, 2]]


def test_who_excludes_nearly_everything_has_a_short_list():
    products = whole_numbers(0, users=1, items=40)
    excluded = Ragged(np.delete(np.arange(40), 17), np.array([0, 39]))
    assert rank_products(products, slice(0, 1), 3, excluded=excluded).tolist() == [[17, -1, -1]]


def peak_bytes(items):
    products = whole_numbers(1, users=256, items=items, dim=8)
    excluded = random_lists(1, users=256, items=items, longest=20)
    tie_order(items)  # kept for all callers
    tracemalloc.start()
    for users in users_at_once(256):
        rank_products(products, users, 50, excluded=excluded.part(users))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_catalogue():
    assert peak_bytes(160_000) < 1.1 * peak_bytes(20_000)


@pytest.mark.parametrize("side", ["user", "item"])
def test_vectors_that_are_no_numbers_are_refused(side):
    vectors = {"user": np.ones((2, 4), np.float32), "item": np.ones((3, 4), np.float32)}
    vectors[side][1, 2] = np.nan
    with pytest.raises(RequestError, match=rf"the {side} vector of line 1 holds NaN .*train\.learning_rate"):
        Products(vectors["user"], vectors["item"])


def test_scores_of_pairs_are_those_of_the_rows():
    products = whole_numbers(2, users=4, items=9)
    lines, item_rows = np.array([3, 0, 0]), np.array([8, 8, 1])
    assert (products.pairs(lines, item_rows) == products(slice(0, 4))[lines, item_rows]).all()
