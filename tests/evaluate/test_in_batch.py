"""Ranks within batches equal those of a loop, and correspond to ranks in the catalogue."""

import numpy as np
import pytest

from tests.evaluate.windows import lines, random_scores, random_window, scorer, window
from twofold.evaluate import in_batch as in_batch_module
from twofold.evaluate import window as window_module
from twofold.evaluate.catalogue import evaluate_catalogue
from twofold.evaluate.in_batch import catalogue_name, evaluate_in_batch
from twofold.topk import tie_order


def naive_in_batch(judged, scores, batch_size, seed):
    """Rank of every relevant pair in its batch, one comparison at a time."""
    rank, _ = tie_order(judged.num_items)
    pairs = [(user, item) for user, items in enumerate(lines(judged.relevant)) for item in items.tolist()]
    order = np.random.default_rng(seed).permutation(len(pairs)).tolist()
    size = min(batch_size, len(pairs))
    ranks = {}
    for first in range(0, len(pairs), size):
        start = min(first, len(pairs) - size)
        columns = [pairs[place][1] for place in order[start : start + size]]
        for place in order[first : first + size]:
            user, own = pairs[place]
            others = [item for item in columns if item not in judged.relevant.part(slice(user, user + 1)).values]
            key = (scores[user, own], rank[own])
            ranks[user, own] = 1 + sum((scores[user, item], rank[item]) > key for item in others)
    return ranks


@pytest.mark.parametrize("batch_size", [8, 10_000])
def test_in_batch_ranks_equal_a_loop(batch_size, monkeypatch):
    judged = random_window(2)
    scores = random_scores(judged, ties=True)
    for module in (window_module, in_batch_module):
        monkeypatch.setattr(module, "CHUNK_ELEMENTS", 3 * judged.num_items)
    result = evaluate_in_batch(judged, scorer(scores), batch_size=batch_size, seed=4)
    ranks = naive_in_batch(judged, scores, batch_size, seed=4)
    assert (result.pairs, result.batch_size) == (len(ranks), min(batch_size, len(ranks)))
    for k in result.ranks:
        for user in range(len(judged.user_rows)):
            own = [rank <= k for (whose, _), rank in ranks.items() if whose == user]
            value = result.per_user.values[f"in_batch/hit_rate@{k}"][user]
            assert value == pytest.approx(np.mean(own)) if own else np.isnan(value)


def test_the_catalogue_hit_rate_of_the_pairs_is_recall_at_the_rank_the_batch_stands_for():
    judged = random_window(3)
    model = scorer(random_scores(judged, ties=True))
    result = evaluate_in_batch(judged, model, batch_size=16, seed=0)
    for k, rank in result.ranks.items():
        assert rank == k * judged.num_items / 16
        if round(rank) <= judged.num_items:
            recall = evaluate_catalogue(judged, model, ks=(round(rank),)).mean(f"catalogue/recall@{round(rank)}")
            assert result.per_user.mean(catalogue_name(rank)) == pytest.approx(recall)


def test_a_random_model_hits_alike_in_the_batch_and_at_the_rank_it_stands_for():
    rng = np.random.default_rng(5)
    users, num_items, batch_size = 4000, 400, 100
    judged = window(seen=[[]] * users, relevant=rng.integers(0, num_items, (users, 1)).tolist(), num_items=num_items)
    result = evaluate_in_batch(judged, scorer(random_scores(judged)), batch_size=batch_size, seed=0)
    for k, rank in result.ranks.items():
        share = k / batch_size
        error = (share * (1 - share) / users) ** 0.5
        assert result.per_user.mean(f"in_batch/hit_rate@{k}") == pytest.approx(share, abs=4 * error + 0.01 * share)
        assert result.per_user.mean(catalogue_name(rank)) == pytest.approx(share, abs=4 * error)


def test_the_users_other_positives_and_the_own_item_elsewhere_do_not_compete():
    judged = window(seen=[[], []], relevant=[[0, 1], [0]], num_items=2)
    all_in_one = evaluate_in_batch(judged, scorer(np.array([[1, 2], [1, 2]], np.float32)), batch_size=3, seed=0)
    # User 0 likes both columns, so nothing competes; for user 1 item 1 does, and wins.
    assert all_in_one.per_user.values["in_batch/hit_rate@1"].tolist() == [1, 0]
