"""Ranks within batches equal those of a loop: distinct columns, corrected scores, and a uniform reference."""

import numpy as np
import pytest

from tests.evaluate.windows import lines, random_scores, random_window, scorer, window
from twofold.evaluate import in_batch as in_batch_module
from twofold.evaluate import window as window_module
from twofold.evaluate.catalogue import evaluate_catalogue
from twofold.evaluate.in_batch import batch_section, evaluate_in_batch
from twofold.topk import tie_order


def naive_in_batch(judged, scores, batch_size, seed):
    """Rank of every relevant pair among the distinct items of its batch, one comparison at a time."""
    rank, _ = tie_order(judged.num_items)
    pairs = [(user, item) for user, items in enumerate(lines(judged.relevant)) for item in items.tolist()]
    order = np.random.default_rng(seed).permutation(len(pairs)).tolist()
    size = min(batch_size, len(pairs))
    ranks = {}
    for first in range(0, len(pairs), size):
        start = min(first, len(pairs) - size)
        columns = {pairs[place][1] for place in order[start : start + size]}
        for place in order[first : first + size]:
            user, own = pairs[place]
            others = [item for item in columns if item not in judged.relevant.part(slice(user, user + 1)).values]
            key = (scores[user, own], rank[own])
            ranks[user, own] = 1 + sum((scores[user, item], rank[item]) > key for item in others)
    return ranks


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("batch_size", [8, 10_000])
def test_in_batch_ranks_equal_a_loop(batch_size, corrected, monkeypatch):
    judged = random_window(2)
    scores = random_scores(judged, ties=True)
    correction = np.linspace(-1, 1, judged.num_items, dtype=np.float32) if corrected else None
    for module in (window_module, in_batch_module):
        monkeypatch.setattr(module, "CHUNK_ELEMENTS", 3 * judged.num_items)
    result = evaluate_in_batch(judged, scorer(scores), batch_size=batch_size, seed=4, correction=correction)
    ranks = naive_in_batch(judged, scores - correction if corrected else scores, batch_size, seed=4)
    assert (result.pairs, result.batch_size, result.is_corrected) == (
        len(ranks),
        min(batch_size, len(ranks)),
        corrected,
    )
    for k in result.ks:
        for user in range(len(judged.user_rows)):
            own = [rank <= k for (whose, _), rank in ranks.items() if whose == user]
            value = result.per_user.values[f"in_batch/hit_rate@{k}"][user]
            assert value == pytest.approx(np.mean(own)) if own else np.isnan(value)


def test_the_correction_changes_the_batch_and_not_the_uniform_reference():
    judged = random_window(2)
    scores, correction = random_scores(judged), np.linspace(-1, 1, judged.num_items, dtype=np.float32)
    plain, corrected = (
        evaluate_in_batch(judged, scorer(scores), batch_size=16, seed=0, correction=each).per_user.values
        for each in (None, correction)
    )
    assert not np.array_equal(plain["in_batch/hit_rate@5"], corrected["in_batch/hit_rate@5"], equal_nan=True)
    for name in plain:
        if "uniform" in name:
            np.testing.assert_array_equal(plain[name], corrected[name])


def test_an_item_that_fills_the_batch_is_one_competitor():
    """Three users like item 0, which everybody's scores prefer, and one likes item 1: it comes second, not fourth."""
    judged = window(seen=[[]] * 4, relevant=[[0], [0], [0], [1]], num_items=60)
    scores = np.tile(np.linspace(1, 0, 60, dtype=np.float32), (4, 1))
    result = evaluate_in_batch(judged, scorer(scores), batch_size=4, seed=0)
    assert result.distinct_items == 2
    (rank,) = in_batch_ranks(judged, scores)[3:]
    assert rank == 2


def in_batch_ranks(judged, scores):
    batches = in_batch_module._draw_batches(judged.relevant.values, 4, seed=0, num_items=judged.num_items)
    nothing = np.zeros(judged.num_items, np.float32)
    return in_batch_module._pair_ranks(scores, nothing, batches, window=judged, users=slice(0, 4))[0].tolist()


def test_a_random_model_hits_alike_in_the_batch_and_among_uniform_items():
    rng = np.random.default_rng(5)
    users, num_items, batch_size = 4000, 400, 100
    judged = window(seen=[[]] * users, relevant=rng.integers(0, num_items, (users, 1)).tolist(), num_items=num_items)
    result = evaluate_in_batch(judged, scorer(random_scores(judged)), batch_size=batch_size, seed=0)
    assert result.distinct_items == pytest.approx(num_items * (1 - (1 - 1 / num_items) ** batch_size), rel=0.02)
    for k in result.ks:
        share = k / result.distinct_items
        error = (share * (1 - share) / users) ** 0.5
        for name in ("hit_rate", "uniform_hit_rate"):
            assert result.per_user.mean(f"in_batch/{name}@{k}") == pytest.approx(share, abs=4 * error + 0.02 * share)


def test_popular_candidates_are_harder_than_uniform_ones():
    """Scores are popularity: among popular candidates a positive seldom comes first, among uniform ones often."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, 501)
    relevant = rng.choice(500, 2000, p=share / share.sum())[:, None].tolist()
    judged = window(seen=[[]] * 2000, relevant=relevant, num_items=500)
    scores = np.tile(share.astype(np.float32), (2000, 1))
    result = evaluate_in_batch(judged, scorer(scores), batch_size=100, seed=0)
    means = {name: result.per_user.mean(f"in_batch/{name}@10") for name in ("hit_rate", "uniform_hit_rate")}
    assert means["hit_rate"] < means["uniform_hit_rate"] - 0.1
    corrected = evaluate_in_batch(
        judged, scorer(scores), batch_size=100, seed=0, correction=(share - 1e-3 * np.arange(500)).astype(np.float32)
    )
    # What training subtracts for popularity puts the rare items first here.
    assert corrected.per_user.mean("in_batch/hit_rate@10") < means["hit_rate"]


def test_the_users_other_positives_and_the_own_item_elsewhere_do_not_compete():
    judged = window(seen=[[], []], relevant=[[0, 1], [0]], num_items=2)
    all_in_one = evaluate_in_batch(judged, scorer(np.array([[1, 2], [1, 2]], np.float32)), batch_size=3, seed=0)
    # User 0 likes both columns, so nothing competes; for user 1 item 1 does, and wins.
    assert all_in_one.per_user.values["in_batch/hit_rate@1"].tolist() == [1, 0]


def test_the_section_says_what_a_batch_is():
    judged = random_window(3)
    model = scorer(random_scores(judged, ties=True))
    catalogue = evaluate_catalogue(judged, model)
    correction = np.ones(judged.num_items, np.float32)
    for given, words in (
        (correction, ", and training subtracts log Q from the score of each."),
        (None, " popular ones."),
    ):
        result = evaluate_in_batch(judged, model, batch_size=16, seed=0, correction=given)
        section = batch_section(result, catalogue.values, num_items=judged.num_items)
        assert section.sentence.startswith(
            f"A batch of 16 is a smaller and different exam: its {result.distinct_items:.0f} distinct items are "
        )
        assert words in section.sentence
        assert f"in the whole catalogue of {judged.num_items} " in section.sentence
    for line in section.lines:
        assert line.catalogue.value == pytest.approx(catalogue.mean(f"catalogue/recall@{line.k}"))
        assert line.in_batch.value == pytest.approx(result.per_user.mean(f"in_batch/hit_rate@{line.k}"))


def test_no_hit_rate_is_measured_beyond_the_catalogue():
    """A batch may be larger than the catalogue, which has no recall@k to compare with there."""
    judged = random_window(0, users=40, num_items=30)
    found = evaluate_in_batch(judged, scorer(random_scores(judged)), batch_size=64, seed=0)
    assert found.batch_size > 30
    assert max(found.ks) <= 30
