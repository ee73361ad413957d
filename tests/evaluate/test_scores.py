"""The running top k against the whole row, sorted, and its memory; what a ranker may change in two stages."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from twofold import topk as topk_module
from twofold.errors import RequestError
from twofold.evaluate import scores as ranking
from twofold.evaluate.catalogue import evaluate_catalogue
from twofold.evaluate.impressions import evaluate_impressions
from twofold.evaluate.scores import rank_in_two_stages, rank_products, rank_rows, user_chunks
from twofold.evaluate.window import EvaluationWindow
from twofold.ragged import Ragged
from twofold.topk import Additions, Products, exclude, find_repeated, tie_order, top_k


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
    monkeypatch.setattr(ranking, "CHUNK_ITEMS", int(rng.integers(1, 9)))
    monkeypatch.setattr(ranking, "_first_items", lambda k: k + case % 3)
    monkeypatch.setattr(ranking, "CHUNK_ELEMENTS", int(rng.integers(1, 30)))
    products = whole_numbers(case, users=users, items=items)
    excluded = random_lists(case, users=users, items=items, longest=min(items, 5))
    scores = products(slice(0, users))
    exclude(scores, excluded)
    expected = top_k(scores, k).item_rows
    assert (rank_products(products, slice(0, users), k, excluded=excluded) == expected).all()
    assert (rank_rows(products(slice(0, users)), k, excluded=excluded) == expected).all()


@pytest.mark.parametrize("case", range(40))
def test_additions_count_in_every_block(case, monkeypatch):
    rng = np.random.default_rng(case)
    users, items, k = int(rng.integers(1, 9)), int(rng.integers(1, 60)), int(rng.integers(1, 12))
    monkeypatch.setattr(ranking, "CHUNK_ITEMS", int(rng.integers(1, 9)))
    monkeypatch.setattr(ranking, "_first_items", lambda k: k + case % 3)
    plain = whole_numbers(case, users=users, items=items)
    rows = random_lists(case, users=users, items=items, longest=min(items, 5))
    rows = Ragged(np.concatenate([np.sort(rows.of(np.array([user])).values) for user in range(users)]), rows.offsets)
    products = replace(plain, added=Additions(rows, rng.integers(-3, 4, len(rows.values)).astype(np.float32)))
    excluded = random_lists(case + 1, users=users, items=items, longest=min(items, 5))
    scores = products(slice(0, users))
    exclude(scores, excluded)
    assert (rank_products(products, slice(0, users), k, excluded=excluded) == top_k(scores, k).item_rows).all()


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
    for users in user_chunks(256):
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
    with pytest.raises(RequestError, match=rf"{side} vector 1 contains NaN .*train\.learning_rate"):
        Products(vectors["user"], vectors["item"])


def test_scores_of_pairs_are_those_of_the_rows():
    products = whole_numbers(2, users=4, items=9)
    lines, item_rows = np.array([3, 0, 0]), np.array([8, 8, 1])
    assert (products.pairs(lines, item_rows) == products(slice(0, 4))[lines, item_rows]).all()


USERS, ITEMS, DIM, TOP = 40, 90, 6, 12


def lists(lines):
    sizes = [len(line) for line in lines]
    values = np.concatenate([np.asarray(line, np.int64) for line in lines])
    return Ragged(values, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


@pytest.fixture
def window():
    draw = np.random.default_rng(0)
    rows = [draw.permutation(ITEMS) for _ in range(USERS)]
    candidates = [sorted(row[5:20].tolist()) for row in rows]
    relevant = [sorted(row[5:8].tolist()) for row in rows]
    labels = [item in liked for own, liked in zip(candidates, relevant, strict=True) for item in own]
    return EvaluationWindow(
        name="test",
        user_rows=np.arange(USERS),
        query_at=np.zeros(USERS, np.int64),
        seen=lists([sorted(row[:5].tolist()) for row in rows]),
        relevant=lists(relevant),
        candidates=lists(candidates),
        labels=np.array(labels),
        num_items=ITEMS,
        is_cold=np.zeros(ITEMS, bool),
        track="time_free",
    )


@pytest.fixture
def retrieved():
    draw = np.random.default_rng(1)
    return Products(*(draw.standard_normal((count, DIM)).astype(np.float32) for count in (USERS, ITEMS)))


def by_place(lines, item_rows, places):
    return -places[..., 0].astype(np.float32)


def by_item(lines, item_rows, places):
    return item_rows.astype(np.float32)


def stages(window, retrieved, score_pairs, top=TOP):
    return rank_in_two_stages(retrieved, score_pairs, seen=window.seen, top=top)


def test_a_ranker_that_repeats_the_retriever_changes_nothing(window, retrieved):
    alone = evaluate_catalogue(window, retrieved)
    both = evaluate_catalogue(window, stages(window, retrieved, by_place))
    np.testing.assert_array_equal(both.ranks, alone.ranks)


def test_the_candidates_stand_first_in_the_rankers_order_and_the_others_behind_in_the_retrievers(window, retrieved):
    both = stages(window, retrieved, by_item)
    allowed = np.ones((USERS, ITEMS), bool)
    allowed[window.seen.lines, window.seen.values] = False
    order = top_k(retrieved(slice(0, USERS)), ITEMS, allowed=allowed).item_rows
    found = top_k(both(slice(0, USERS)), ITEMS, allowed=allowed).item_rows
    for line in range(USERS):
        candidates = order[line, :TOP].tolist()
        assert found[line].tolist() == [*sorted(candidates, reverse=True), *order[line, TOP:].tolist()]


def test_recall_at_the_number_of_candidates_is_the_retrievers_whatever_the_ranker_says(window, retrieved):
    noise = np.random.default_rng(2)

    def at_random(lines, item_rows, places):
        return noise.standard_normal(item_rows.shape).astype(np.float32)

    alone = evaluate_catalogue(window, retrieved, ks=(TOP,))
    both = evaluate_catalogue(window, stages(window, retrieved, at_random), ks=(TOP,))
    np.testing.assert_array_equal(both.values[f"catalogue/recall@{TOP}"], alone.values[f"catalogue/recall@{TOP}"])


def test_equal_scores_are_ordered_by_the_hash_of_the_item_and_not_by_the_retriever(window, retrieved):
    def undecided(lines, item_rows, places):
        return np.zeros(item_rows.shape, np.float32)

    all_items = stages(window, retrieved, undecided, top=ITEMS)
    allowed = np.ones((USERS, ITEMS), bool)
    allowed[window.seen.lines, window.seen.values] = False
    expected = top_k(np.zeros((USERS, ITEMS), np.float32), ITEMS, allowed=allowed).item_rows
    np.testing.assert_array_equal(all_items.ranked, expected)


def test_impressions_are_ordered_by_the_ranker_which_is_told_where_the_retriever_placed_them(window, retrieved):
    pairs = []

    def noted(lines, item_rows, places):
        if item_rows.shape[1] == 1:
            pairs.extend(zip(lines.tolist(), item_rows[:, 0].tolist(), places[:, 0, 0].tolist(), strict=True))
        return item_rows.astype(np.float32)

    both = stages(window, retrieved, noted)
    judged = evaluate_impressions(window, both)
    expected = evaluate_impressions(
        window, lambda users: np.tile(np.arange(ITEMS, dtype=np.float32), (USERS, 1))[users]
    )
    np.testing.assert_array_equal(judged.values["impressions/auc"], expected.values["impressions/auc"])
    assert len(pairs) == len(window.candidates.values)
    for line, item, place in pairs:
        found = both.found[line].tolist()
        assert place == (found.index(item) if item in found else TOP)


def test_fewer_candidates_than_are_asked_for(window, retrieved):
    """All but three items are seen: three are ranked, and no more are made up."""
    seen = lists([np.setdiff1d(np.arange(ITEMS), [line, line + 1, line + 2]) for line in range(USERS)])
    both = rank_in_two_stages(retrieved, by_item, seen=seen, top=TOP)
    for line in range(USERS):
        assert both.ranked[line].tolist() == [line + 2, line + 1, line, *[-1] * (TOP - 3)]


@pytest.mark.parametrize("items", [60, 300, 1000])
def test_items_with_one_vector_tie_in_every_column_and_block(items, monkeypatch):
    """OpenBLAS for Haswell and Zen rounds the same sum otherwise in another column."""
    monkeypatch.setattr(ranking, "CHUNK_ITEMS", 70)
    rng = np.random.default_rng(items)
    vectors, which = rng.normal(size=(5, 64)).astype(np.float32), rng.integers(0, 5, items)
    products = Products(rng.normal(size=(40, 64)).astype(np.float32), vectors[which])
    scores, rank = products(slice(0, 40)), tie_order(items)[0]
    nothing = Ragged(np.empty(0, np.int64), np.zeros(41, np.int64))
    answers = rank_products(products, slice(0, 40), items, excluded=nothing)
    for query in range(40):
        assert len(np.unique(scores[query])) == 5
        values = {number: scores[query, which == number][0] for number in range(5)}
        expected = sorted(range(items), key=lambda item: (-values[which[item]], -rank[item]))
        assert answers[query].tolist() == expected


def test_of_many_repeated_vectors_those_of_most_items_are_scored_once(monkeypatch):
    monkeypatch.setattr(topk_module, "_MOST_REPEATED", 1)
    vectors = np.float32([[1, 0], [2, 0], [1, 0], [2, 0], [2, 0], [3, 0]])
    found = find_repeated(vectors)
    assert (found.item_rows.tolist(), found.firsts.tolist(), found.vector.tolist()) == ([1, 3, 4], [1], [0, 0, 0])
    assert Products(np.float32([[1, 1]]), vectors)(slice(0, 1)).tolist() == [[1, 2, 1, 2, 2, 3]]
