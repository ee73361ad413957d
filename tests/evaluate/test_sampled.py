"""Each positive among sampled items, against a loop."""

from math import log2

import numpy as np
import pyarrow as pa
import pytest

from tests.evaluate.windows import lines, random_scores, random_window, scorer, window
from twofold.dataset.vocabulary import build_vocabulary
from twofold.errors import DataError, RequestError
from twofold.evaluate.sampled import Negatives, draw_negatives, evaluate_sampled, published_negatives
from twofold.topk import tie_order


def test_negatives_were_neither_seen_nor_liked_and_the_seed_decides():
    judged = random_window(0)
    drawn = draw_negatives(judged, 20, seed=1)
    assert drawn.shape == (len(judged.relevant.values), 20)
    for user, own in zip(judged.relevant.lines, drawn, strict=True):
        assert not set(own) & (set(lines(judged.seen)[user]) | set(lines(judged.relevant)[user]))
        assert len(set(own)) == 20
    assert (drawn == draw_negatives(judged, 20, seed=1)).all()
    assert (drawn != draw_negatives(judged, 20, seed=2)).any()


@pytest.mark.parametrize("ties", [False, True])
def test_a_positive_is_judged_among_its_own_negatives(ties):
    judged = random_window(1)
    scores = random_scores(judged, ties=ties)
    negatives = draw_negatives(judged, 15, seed=0)
    ours = evaluate_sampled(judged, scorer(scores), negatives)
    order = tie_order(judged.num_items)[0]
    expected = {name: [[] for _ in judged.user_rows] for name in ("hit_rate@5", "ndcg@10", "mrr@10")}
    for user, item, own in zip(judged.relevant.lines, judged.relevant.values, negatives, strict=True):
        score = scores[user]
        rank = 1 + sum((score[other], order[other]) > (score[item], order[item]) for other in own)
        expected["hit_rate@5"][user].append(rank <= 5)
        expected["ndcg@10"][user].append(1 / log2(rank + 1) if rank <= 10 else 0)
        expected["mrr@10"][user].append(1 / rank if rank <= 10 else 0)
    for name, per_user in expected.items():
        means = [np.mean(each) if each else np.nan for each in per_user]
        np.testing.assert_allclose(ours.values[f"sampled/{name}"], means)


def test_a_positive_among_its_own_negatives_does_not_compete():
    judged = window(seen=[[]], relevant=[[2]], num_items=4)
    best_first = scorer(np.array([[4, 3, 2, 1]], np.float32))
    assert evaluate_sampled(judged, best_first, np.array([[2, 3]])).values["sampled/hit_rate@1"].tolist() == [1]


def test_every_rank_counts_in_mrr_and_the_first_ten_in_mrr_at_10():
    judged = window(seen=[[]], relevant=[[0]], num_items=21)
    last_but_four = scorer(np.array([[4.5, *range(1, 21)]], np.float32))
    ours = evaluate_sampled(judged, last_but_four, np.arange(1, 21)[None]).values
    assert ours["sampled/mrr"].tolist() == [1 / 17]
    assert ours["sampled/mrr@10"].tolist() == [0]


def test_drawn_by_popularity_one_after_the_other():
    """Two of three items with weights 1, 2 and 5 are drawn in turn: {a, b} comes as a then b, or as b then a."""
    weights = np.array([0.0, 1, 2, 5, 0])
    users = 40_000
    judged = window(seen=[[]] * users, relevant=[[0]] * users, num_items=5)
    drawn = draw_negatives(judged, 2, seed=0, weights=weights)
    pairs = {
        (1, 2): 1 / 8 * 2 / 7 + 2 / 8 * 1 / 6,
        (1, 3): 1 / 8 * 5 / 7 + 5 / 8 * 1 / 3,
        (2, 3): 2 / 8 * 5 / 6 + 5 / 8 * 2 / 3,
    }
    assert sum(pairs.values()) == pytest.approx(1)
    for pair, chance in pairs.items():
        deviation = (chance * (1 - chance) / users) ** 0.5
        assert (drawn == pair).all(axis=1).mean() == pytest.approx(chance, abs=4 * deviation)


def test_each_item_is_as_likely_without_weights():
    judged = window(seen=[[1]] * 30_000, relevant=[[0]] * 30_000, num_items=6)
    share = np.bincount(draw_negatives(judged, 1, seed=0)[:, 0], minlength=6) / 30_000
    np.testing.assert_allclose(share, [0, 0, 1 / 4, 1 / 4, 1 / 4, 1 / 4], atol=4 * (3 / 16 / 30_000) ** 0.5)


@pytest.mark.parametrize(("weights", "left"), [(None, 3), (np.array([9.0, 9, 9, 1, 1, 0]), 2)])
def test_who_has_too_few_items_left_has_no_negatives(weights, left):
    judged = window(seen=[[0, 1]], relevant=[[2]], num_items=6)
    draw_negatives(judged, left, seed=0, weights=weights)
    with pytest.raises(
        RequestError, match=f"user row 100 has {left} items left to draw 4 negatives from: .*Set a smaller count"
    ):
        draw_negatives(judged, 4, seed=0, weights=weights)


def published(lists):
    return pa.table({"user_id": list(lists), "item_id": pa.array(list(lists.values()), pa.list_(pa.string()))})


VOCABULARIES = {
    "users": build_vocabulary(pa.array(range(103)), pa.array(range(103))),
    "items": build_vocabulary(pa.array(list("abcd")), pa.array(list("abcd"))),
}


def test_published_negatives_are_those_of_the_positives_user_in_any_order():
    judged = window(seen=[[], [], []], relevant=[[0, 3], [], [2]], num_items=4)
    table = published({102: ["b", "a"], 7: ["zz"], 101: ["a"], 100: ["c", "b"]})
    assert published_negatives(judged, table, **VOCABULARIES).tolist() == [[2, 1], [2, 1], [1, 0]]


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({100: ["a", "b"], 102: ["a"]}, "has 1 items for user 102 and 2 for user 100: all evaluated users"),
        ({100: ["a"], 101: ["b"]}, "has 0 items for user 102 and 1 for user 100: .* belong to another split"),
        ({100: ["zz"], 102: ["a"]}, r"item zz of data\.published_negatives is in no event and not in the items table"),
    ],
)
def test_published_negatives_that_do_not_fit_are_refused(lists, message):
    judged = window(seen=[[], [], []], relevant=[[0], [], [2]], num_items=4)
    with pytest.raises(DataError, match=message):
        published_negatives(judged, published(lists), **VOCABULARIES)


@pytest.mark.parametrize("columns", [{"user_id": [100], "item_id": ["a"]}, {"user_id": [100], "item": [["a"]]}])
def test_a_file_without_lists_of_items_is_no_file_of_negatives(columns):
    judged = window(seen=[[]], relevant=[[0]], num_items=4)
    with pytest.raises(
        DataError, match=r"data\.published_negatives needs one row per user with the columns user_id and"
    ):
        published_negatives(judged, pa.table(columns), **VOCABULARIES)


def test_what_a_positive_is_judged_among_in_words():
    items = np.zeros((1, 100), np.int64)
    assert Negatives("popularity", 3, items).description(includes_seen=False) == (
        "itself and 100 other items unseen by its user, drawn by popularity without replacement, seed 3"
    )
    assert "100 other items, drawn" in Negatives("popularity", 3, items).description(includes_seen=True)
    assert "drawn uniformly" in Negatives("uniform", 0, items).description(includes_seen=False)
    assert (
        Negatives("published", None, items).description(includes_seen=False)
        == "itself and the 100 items published for its user"
    )


def test_negatives_of_another_split_are_refused():
    judged = window(seen=[[]], relevant=[[2]], num_items=4)
    with pytest.raises(RequestError, match=r"negatives for 2 positives, but window 'test' has 1: one row"):
        evaluate_sampled(judged, scorer(np.ones((1, 4), np.float32)), np.zeros((2, 3), np.int64))
