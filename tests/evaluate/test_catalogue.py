"""The catalogue ranking equals a sorted list; who is skipped, and which windows are refused."""

from dataclasses import replace

import numpy as np
import pytest

from tests.evaluate.test_metrics import naive_top_k
from tests.evaluate.windows import lines, random_scores, random_window, ranked_items, scorer, window
from twofold.errors import DataError, RequestError
from twofold.evaluate import catalogue as catalogue_module
from twofold.evaluate import window as window_module
from twofold.evaluate.catalogue import evaluate_catalogue, evaluate_filtered
from twofold.evaluate.impressions import evaluate_impressions
from twofold.evaluate.in_batch import evaluate_in_batch
from twofold.evaluate.scores import rank_in_two_stages
from twofold.topk import Products


@pytest.mark.parametrize("ties", [False, True])
def test_the_catalogue_ranking_equals_a_sorted_list(ties, monkeypatch):
    judged = random_window(0, users=200)
    scores = random_scores(judged, ties=ties)
    for module in (window_module, catalogue_module):
        monkeypatch.setattr(module, "CHUNK_ELEMENTS", 7 * judged.num_items)  # users in chunks of 7
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
    assert per_user.evaluated == 1
    assert per_user.skipped == {"no positive on an item not seen before": 2}
    assert np.isnan(per_user.values["catalogue/recall@1"]).tolist() == [False, True, True]
    again = evaluate_catalogue(replace(judged, includes_seen=True), scorer(np.ones((3, 3), np.float32)))
    assert again.skipped == {"no positive": 2}
    assert replace(judged, includes_seen=True).excluded == "nothing; seen items stay"
    assert per_user.mean("catalogue/recall@1") == per_user.values["catalogue/recall@1"][0]


def test_the_default_ks_stop_at_the_catalogue():
    judged = window(seen=[[]], relevant=[[3]], num_items=12)
    names = evaluate_catalogue(judged, scorer(np.ones((1, 12), np.float32))).values
    assert {int(name.split("@")[1]) for name in names} == {1, 5, 10}


def test_one_item_and_one_user():
    judged = window(seen=[[]], relevant=[[0]], candidates=[[0]], num_items=1)
    values = evaluate_catalogue(judged, scorer(np.zeros((1, 1), np.float32))).values
    assert {float(value[0]) for value in values.values()} == {1.0}
    assert evaluate_impressions(judged, scorer(np.zeros((1, 1), np.float32))).evaluated == 0
    in_batch = evaluate_in_batch(judged, scorer(np.zeros((1, 1), np.float32)), batch_size=8, seed=0)
    assert (in_batch.batch_size, in_batch.ks) == (1, (1,))


def test_fewer_unseen_items_than_k_is_no_hit_and_no_error():
    judged = window(seen=[[0, 1, 2]], relevant=[[3]], num_items=5)
    values = evaluate_catalogue(judged, scorer(np.arange(5, dtype=np.float32)[None]), ks=(5,)).values
    assert values["catalogue/recall@5"][0] == 1
    assert values["catalogue/mrr@5"][0] == 1 / 2


def test_more_items_asked_for_than_there_are():
    judged = window(seen=[[]], relevant=[[0]], num_items=5)
    with pytest.raises(RequestError, match=r"@100 needs 100 items, but the catalogue has 5: choose a smaller k"):
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
    with pytest.raises(DataError, match=r"window 'test' contains no event.*prepare\.split"):
        window(seen=[], relevant=[], num_items=3)


def test_a_window_without_positives_is_refused_for_the_catalogue():
    judged = window(seen=[[0], []], relevant=[[], []], num_items=3)
    message = r"the 2 users of window 'test' have no positive on an item not seen before, so .*prepare\.positive"
    with pytest.raises(DataError, match=message):
        evaluate_catalogue(judged, scorer(np.ones((2, 3), np.float32)))
    with pytest.raises(DataError, match="the 2 users of window 'test' have no positive, so"):
        evaluate_catalogue(replace(judged, includes_seen=True), scorer(np.ones((2, 3), np.float32)))
    with pytest.raises(
        DataError, match=r"needs a batch of at least 2 and some positives.* 0 positives in window 'test'"
    ):
        evaluate_in_batch(judged, scorer(np.ones((2, 3), np.float32)), batch_size=4, seed=0)


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
    assert filtered.evaluated == 2


def test_a_filter_that_lets_everything_pass_changes_nothing():
    judged = random_window(8)
    model = scorer(random_scores(judged))
    filtered = evaluate_filtered(judged, model, np.ones(judged.num_items, bool))
    for name, value in evaluate_catalogue(judged, model).values.items():
        np.testing.assert_array_equal(filtered.values[name.replace("catalogue/", "catalogue_filtered/")], value)
    assert filtered.mean("catalogue_filtered/ceiling") == 1


def test_with_a_filter_the_ranker_gets_the_best_allowed_items_as_in_serving():
    """Served: filter, then the retriever's best, then the ranker. Ranking first and filtering then loses items."""
    judged, top, k = random_window(9, users=200, num_items=60), 8, 5
    rng = np.random.default_rng(9)
    retrieved = Products(*(rng.normal(size=(rows, 4)).astype(np.float32) for rows in (200, 60)))
    liking = rng.normal(size=(200, 60)).astype(np.float32)
    for user, relevant in enumerate(lines(judged.relevant)):
        liking[user, relevant] += 2

    def by_liking(users, item_rows, positions):
        return liking[users[:, None], item_rows]

    allowed = rng.random(60) < 0.3
    both = rank_in_two_stages(retrieved, by_liking, seen=judged.seen, top=top)
    filtered = evaluate_filtered(judged, both, allowed, ks=(k,))
    scores = retrieved.queries @ retrieved.items.T
    served, after = [], []
    for user, (seen, relevant) in enumerate(zip(lines(judged.seen), lines(judged.relevant), strict=True)):
        ranked = ranked_items(scores[user], seen)
        candidates = [item for item in ranked if allowed[item]]
        best = sorted(candidates[:top], key=lambda item, user=user: -liking[user, item])
        served.append((best + candidates[top:])[:k])
        best = sorted(ranked[:top], key=lambda item, user=user: -liking[user, item])
        after.append([item for item in best + ranked[top:] if allowed[item]][:k])
        if len(relevant):
            gain = sum(1 / np.log2(place + 2) for place, item in enumerate(served[-1]) if item in relevant)
            ideal = sum(1 / np.log2(place + 2) for place in range(min(len(relevant), k)))
            assert filtered.values[f"catalogue_filtered/ndcg@{k}"][user] == pytest.approx(gain / ideal)
    relevant = lines(judged.relevant)
    found = [
        np.mean([np.isin(own, each).mean() for own, each in zip(relevant, lists, strict=True) if len(own)])
        for lists in (served, after)
    ]
    assert filtered.mean(f"catalogue_filtered/recall@{k}") == pytest.approx(found[0])
    assert found[0] > found[1] * 1.2  # the world tells the two orders apart
