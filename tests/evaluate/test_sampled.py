"""Each positive among sampled items, against a loop."""

from math import log2

import numpy as np
import pytest

from tests.evaluate.test_protocols import lines, random_scores, random_window, scorer, window
from twofold.errors import RequestError
from twofold.evaluate.sampled import draw_negatives, judge_sampled
from twofold.topk import tie_order


def test_negatives_were_neither_seen_nor_liked_and_the_seed_decides():
    judged = random_window(0)
    drawn = draw_negatives(judged, 20, seed=1)
    assert drawn.shape == (len(judged.relevant.values), 20)
    for user, own in zip(judged.relevant.lines, drawn, strict=True):
        assert not set(own) & (set(lines(judged.seen)[user]) | set(lines(judged.relevant)[user]))
    assert (drawn == draw_negatives(judged, 20, seed=1)).all()
    assert (drawn != draw_negatives(judged, 20, seed=2)).any()


@pytest.mark.parametrize("ties", [False, True])
def test_a_positive_is_judged_among_its_own_negatives(ties):
    judged = random_window(1)
    scores = random_scores(judged, ties=ties)
    negatives = draw_negatives(judged, 15, seed=0)
    ours = judge_sampled(judged, scorer(scores), negatives)
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
    assert judge_sampled(judged, best_first, np.array([[2, 3]])).values["sampled/hit_rate@1"].tolist() == [1]


def test_who_has_met_everything_has_no_negative():
    judged = window(seen=[[0, 1]], relevant=[[2]], num_items=3)
    with pytest.raises(RequestError, match="user row 100 has seen or liked all 3 items: there is no negative to draw"):
        draw_negatives(judged, 5, seed=0)


def test_negatives_of_another_split_are_refused():
    judged = window(seen=[[]], relevant=[[2]], num_items=4)
    with pytest.raises(RequestError, match=r"negatives of 2 positives were given, but window 'test' has 1: one line"):
        judge_sampled(judged, scorer(np.ones((1, 4), np.float32)), np.zeros((2, 3), np.int64))
