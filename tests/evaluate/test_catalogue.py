"""Who is judged, against what, and what is left out; each protocol against a loop that does it the slow way."""

import numpy as np
import pytest

from tests.evaluate.test_metrics import naive_top_k
from twofold.errors import DataError, RequestError
from twofold.evaluate import catalogue as protocols
from twofold.evaluate.catalogue import (
    EvaluationWindow,
    bounds_of_impressions,
    catalogue_name,
    evaluate_catalogue,
    evaluate_filtered,
    evaluate_impressions,
    evaluate_in_batch,
)
from twofold.evaluate.metrics import impression_metrics
from twofold.evaluate.scores import Products
from twofold.ragged import Ragged
from twofold.topk import tie_order


def ragged(lists):
    offsets = np.cumsum([0] + [len(each) for each in lists])
    return Ragged(np.concatenate([np.asarray(each, np.int64) for each in [*lists, []]]), offsets)


def window(*, seen, relevant, candidates=None, positives=None, num_items, name="test"):
    """A window in which user u has the given lists; candidates default to the relevant items."""
    candidates = relevant if candidates is None else candidates
    positives = relevant if positives is None else positives
    labels = [np.isin(shown, liked) for shown, liked in zip(candidates, positives, strict=True)]
    return EvaluationWindow(
        name=name,
        user_rows=np.arange(len(seen)) + 100,
        query_at=np.zeros(len(seen), np.int64),
        seen=ragged(seen),
        relevant=ragged(relevant),
        candidates=ragged(candidates),
        labels=np.concatenate([*labels, np.zeros(0, bool)]),
        num_items=num_items,
        is_cold=np.zeros(num_items, bool),
        track="time_free",
    )


def random_window(seed, *, users=40, num_items=30):
    """Users with some, one or no relevant items, and impressions of one or both classes."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(num_items) for _ in range(users)]
    cuts = rng.integers(0, 6, users)
    return window(
        seen=[order[:5] for order in orders],
        relevant=[order[5 : 5 + cut] for order, cut in zip(orders, cuts, strict=True)],
        candidates=[order[3 : 5 + cut + 4] for order, cut in zip(orders, cuts, strict=True)],
        num_items=num_items,
    )


def scorer(scores):
    """A model whose answers are written down; every call hands out a copy, which may be overwritten."""
    return lambda users: scores[users].copy()


def random_scores(judged, seed=0, *, ties=False):
    scores = np.random.default_rng(seed).random((len(judged.user_rows), judged.num_items)).astype(np.float32)
    return np.round(scores, 1) if ties else scores


def ranked_items(scores, excluded):
    """Item rows, best first; equal scores by the tie rule."""
    rank, _ = tie_order(len(scores))
    allowed = np.setdiff1d(np.arange(len(scores)), excluded)
    return sorted(allowed.tolist(), key=lambda item: (-scores[item], -rank[item]))


def lines(lists):
    return np.split(lists.values, lists.offsets[1:-1])


@pytest.mark.parametrize("ties", [False, True])
def test_the_catalogue_ranking_equals_a_sorted_list(ties, monkeypatch):
    judged = random_window(0, users=200)
    scores = random_scores(judged, ties=ties)
    monkeypatch.setattr(protocols, "_CELLS", 7 * judged.num_items)  # users in blocks of 7
    values = evaluate_catalogue(judged, scorer(scores), ks=(1, 5, 20)).values
    for user, (seen, relevant) in enumerate(zip(lines(judged.seen), lines(judged.relevant), strict=True)):
        ranking = ranked_items(scores[user], seen)
        for k in (1, 5, 20):
            own = {name: values[f"catalogue/{name}@{k}"][user] for name in ("recall", "hit_rate", "ndcg", "mrr", "map")}
            if len(relevant):
                assert own == pytest.approx(naive_top_k(ranking, relevant, k))
            else:
                assert np.isnan(list(own.values())).all()


def test_a_seen_item_takes_no_place():
    judged = window(seen=[[0, 1]], relevant=[[2]], num_items=4)
    best_first = np.array([[4, 3, 2, 1]], np.float32)
    per_user = evaluate_catalogue(judged, scorer(best_first), ks=(1,))
    assert per_user.values["catalogue/mrr@1"][0] == 1


def test_users_with_nothing_to_find_are_skipped_and_counted():
    judged = window(seen=[[], [], []], relevant=[[0], [], []], num_items=3)
    per_user = evaluate_catalogue(judged, scorer(np.ones((3, 3), np.float32)))
    assert per_user.judged == 1
    assert per_user.skipped == {"no positive on an item not seen before": 2}
    assert np.isnan(per_user.values["catalogue/recall@1"]).tolist() == [False, True, True]
    assert per_user.mean("catalogue/recall@1") == per_user.values["catalogue/recall@1"][0]


def test_the_default_ks_stop_at_the_catalogue():
    judged = window(seen=[[]], relevant=[[3]], num_items=12)
    names = evaluate_catalogue(judged, scorer(np.ones((1, 12), np.float32))).values
    assert {int(name.split("@")[1]) for name in names} == {1, 5, 10}


def test_one_item_and_one_user():
    judged = window(seen=[[]], relevant=[[0]], candidates=[[0]], num_items=1)
    values = evaluate_catalogue(judged, scorer(np.zeros((1, 1), np.float32))).values
    assert {float(value[0]) for value in values.values()} == {1.0}
    assert evaluate_impressions(judged, scorer(np.zeros((1, 1), np.float32))).judged == 0
    in_batch = evaluate_in_batch(judged, scorer(np.zeros((1, 1), np.float32)), batch_size=8, seed=0)
    assert (in_batch.batch_size, in_batch.ranks) == (1, {1: 1.0})


def test_fewer_unseen_items_than_k_is_no_hit_and_no_error():
    judged = window(seen=[[0, 1, 2]], relevant=[[3]], num_items=5)
    values = evaluate_catalogue(judged, scorer(np.arange(5, dtype=np.float32)[None]), ks=(5,)).values
    assert values["catalogue/recall@5"][0] == 1
    assert values["catalogue/mrr@5"][0] == 1 / 2


def test_more_items_asked_for_than_there_are():
    judged = window(seen=[[]], relevant=[[0]], num_items=5)
    with pytest.raises(RequestError, match=r"@100 needs 100 items, but the catalogue has 5: choose k up to that"):
        evaluate_catalogue(judged, scorer(np.ones((1, 5), np.float32)), ks=(1, 100))


def test_nan_scores_name_the_user_and_the_item():
    judged = window(seen=[[], []], relevant=[[0], [1]], candidates=[[0, 1], [0, 1]], num_items=3)
    scores = np.ones((2, 3), np.float32)
    scores[1, 2] = np.nan
    message = r"NaN for user row 101 and item row 2 \(window 'test'\): the model has diverged.*learning_rate"
    for judge in (evaluate_catalogue, evaluate_impressions):
        with pytest.raises(RequestError, match=message):
            judge(judged, scorer(scores))
    with pytest.raises(RequestError, match=message):
        evaluate_in_batch(judged, scorer(scores), batch_size=2, seed=0)


def test_an_empty_window_says_where_to_look():
    with pytest.raises(DataError, match=r"window 'test' holds no event.*prepare\.split"):
        window(seen=[], relevant=[], num_items=3)


def test_a_window_without_positives_is_refused_for_the_catalogue():
    judged = window(seen=[[0], []], relevant=[[], []], num_items=3)
    with pytest.raises(DataError, match=r"none of the 2 users of window 'test' has a positive.*prepare\.positive"):
        evaluate_catalogue(judged, scorer(np.ones((2, 3), np.float32)))
    with pytest.raises(
        DataError, match=r"needs a batch of at least 2 and some positives.* 0 positives in window 'test'"
    ):
        evaluate_in_batch(judged, scorer(np.ones((2, 3), np.float32)), batch_size=4, seed=0)


@pytest.mark.parametrize("ties", [False, True])
def test_impressions_are_judged_on_the_users_own_list(ties, monkeypatch):
    judged = random_window(1)
    scores = random_scores(judged, ties=ties)
    monkeypatch.setattr(protocols, "_CELLS", 7 * judged.num_items)
    per_user = evaluate_impressions(judged, scorer(scores))
    labels = np.split(judged.labels, judged.candidates.offsets[1:-1])
    rank, _ = tie_order(judged.num_items)
    for user, (shown, label) in enumerate(zip(lines(judged.candidates), labels, strict=True)):
        alone = impression_metrics(scores[user, shown], label, ties=rank[shown], offsets=np.array([0, len(shown)]))
        for name, value in alone.items():
            np.testing.assert_allclose(per_user.values[f"impressions/{name}"][user], value[0], err_msg=name)


def test_single_class_users_are_skipped_and_counted_by_kind():
    judged = window(
        seen=[[], [], []],
        relevant=[[0], [], [0, 1]],
        candidates=[[0, 1], [0, 1], [0, 1]],
        num_items=2,
    )
    per_user = evaluate_impressions(judged, scorer(np.array([[1, 0]] * 3, np.float32)))
    assert per_user.judged == 1
    assert per_user.skipped == {"no positive impression": 1, "no negative impression": 1}
    assert per_user.mean("impressions/auc") == 1
    # Positives score 1, 1, 0 and the other impressions 0, 1, 0: single-class users count in the pool.
    assert per_user.pooled["impressions/auc_pooled"] == pytest.approx(2 * (1 + 0.5 + 1) / 9 + (0.5 + 0 + 0.5) / 9)
    chance, best = bounds_of_impressions(judged)
    assert (chance.judged, chance.mean("impressions/auc"), best.mean("impressions/mrr")) == (1, 0.5, 1)


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
    monkeypatch.setattr(protocols, "_CELLS", 3 * judged.num_items)
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


def test_products_are_judged_as_the_rows_they_stand_for(monkeypatch):
    judged = random_window(6)
    rng = np.random.default_rng(6)
    queries, factors = (rng.integers(-2, 3, (lines, 3)).astype(np.float32) for lines in (40, judged.num_items))
    products, rows = Products(queries, factors), scorer(queries @ factors.T)
    for judge in (evaluate_catalogue, evaluate_impressions):
        ours, theirs = judge(judged, products), judge(judged, rows)
        assert ours.values.keys() == theirs.values.keys()
        for name, value in ours.values.items():
            np.testing.assert_array_equal(value, theirs.values[name], err_msg=name)
    in_batch = [evaluate_in_batch(judged, model, batch_size=8, seed=0) for model in (products, rows)]
    for name, value in in_batch[0].per_user.values.items():
        np.testing.assert_array_equal(value, in_batch[1].per_user.values[name])


def test_the_rank_of_every_pair_is_its_place_in_the_list():
    judged = random_window(7)
    scores = random_scores(judged, ties=True)
    ranks = evaluate_catalogue(judged, scorer(scores), ks=(1, 20)).ranks
    expected = []
    for user, (seen, relevant) in enumerate(zip(lines(judged.seen), lines(judged.relevant), strict=True)):
        ranking = ranked_items(scores[user], seen)[:20]
        expected += [ranking.index(item) + 1 if item in ranking else 0 for item in relevant]
    assert ranks.tolist() == expected


def test_a_filtered_ranking_is_judged_against_all_positives_beside_its_ceiling():
    judged = window(seen=[[], [5]], relevant=[[0, 1, 2, 3], [4]], num_items=6)
    best_first = np.tile(np.arange(6, 0, -1, dtype=np.float32), (2, 1))
    allowed = np.array([False, True, False, True, False, True])
    filtered = evaluate_filtered(judged, scorer(best_first), allowed, ks=(1, 5))
    assert filtered.values["catalogue_filtered/recall@1"].tolist() == [1 / 4, 0]
    assert filtered.values["catalogue_filtered/recall@5"].tolist() == [2 / 4, 0]
    assert filtered.values["catalogue_filtered/ceiling"].tolist() == [2 / 4, 0]
    assert filtered.judged == 2


def test_a_filter_that_lets_everything_pass_changes_nothing():
    judged = random_window(8)
    model = scorer(random_scores(judged))
    filtered = evaluate_filtered(judged, model, np.ones(judged.num_items, bool))
    for name, value in evaluate_catalogue(judged, model).values.items():
        np.testing.assert_array_equal(filtered.values[name.replace("catalogue/", "catalogue_filtered/")], value)
    assert filtered.mean("catalogue_filtered/ceiling") == 1
