"""Two stages as one thing: what the ranker may change, and what it may not."""

import numpy as np
import pytest

from twofold.evaluate.catalogue import EvaluationWindow, evaluate_catalogue, evaluate_impressions
from twofold.evaluate.scores import Products
from twofold.evaluate.two_stages import rank_in_two_stages
from twofold.ragged import Ragged
from twofold.topk import top_k

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
    return -places.astype(np.float32)


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
    asked = []

    def noted(lines, item_rows, places):
        if item_rows.shape[1] == 1:
            asked.extend(zip(lines.tolist(), item_rows[:, 0].tolist(), places[:, 0].tolist(), strict=True))
        return item_rows.astype(np.float32)

    both = stages(window, retrieved, noted)
    judged = evaluate_impressions(window, both)
    expected = evaluate_impressions(
        window, lambda users: np.tile(np.arange(ITEMS, dtype=np.float32), (USERS, 1))[users]
    )
    np.testing.assert_array_equal(judged.values["impressions/auc"], expected.values["impressions/auc"])
    assert len(asked) == len(window.candidates.values)
    for line, item, place in asked:
        found = both.found[line].tolist()
        assert place == (found.index(item) if item in found else TOP)


def test_fewer_candidates_than_are_asked_for(window, retrieved):
    """All but three items are seen: three are ranked, and no more are made up."""
    seen = lists([np.setdiff1d(np.arange(ITEMS), [line, line + 1, line + 2]) for line in range(USERS)])
    both = rank_in_two_stages(retrieved, by_item, seen=seen, top=TOP)
    for line in range(USERS):
        assert both.ranked[line].tolist() == [line + 2, line + 1, line, *[-1] * (TOP - 3)]
