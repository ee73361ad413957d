"""Lists beside those of popularity and what people like: planted sameness raises a warning, fair lists do not."""

from itertools import combinations, permutations

import numpy as np
import pytest

from twofold.explain.diversity import (
    ComparedLists,
    intra_list_similarity,
    overlap,
    popular_lists,
    probe_content,
    probe_group_share,
    probe_lists,
    served_shares,
)
from twofold.explain.folding import Grouping
from twofold.ragged import Ragged


def ragged(lists):
    return Ragged(
        np.concatenate([np.array(each, np.int64) for each in lists]), np.cumsum([0] + [len(each) for each in lists])
    )


def world(served, liked, events, *, is_cold=None):
    """All probes of lists, with popularity lists of the same length; nothing was seen."""
    served, liked = ragged(served), ragged(liked)
    nothing = Ragged(np.zeros(0, np.int64), np.zeros(len(served.sizes) + 1, np.int64))
    lists = ComparedLists(served, popular_lists(events, nothing, served.sizes), liked)
    is_cold = np.zeros(len(events), bool) if is_cold is None else is_cold
    return {probe.name: probe for probe in probe_lists(lists, events, is_cold=is_cold)}


def warnings_of(probes):
    return {name for name, probe in probes.items() if probe.is_alarming}


def drawn(rng, users, length, share):
    return [rng.choice(len(share), length, replace=False, p=share / share.sum()) for _ in range(users)]


# --- planted lists ----------------------------------------------------------------------------------------------------


def test_a_few_users_of_a_large_catalogue_raise_no_warning():
    """40 users and 10 of 10,000 items: they cannot cover 5 % of the catalogue."""
    rng, share = np.random.default_rng(0), np.ones(10_000)
    found = world(drawn(rng, 40, 10, share), drawn(rng, 40, 2, share), rng.poisson(3, 10_000))
    assert warnings_of(found) == set()
    assert found["coverage"].value < 0.05


def test_long_lists_of_a_small_catalogue_raise_no_warning():
    """1,000 users and 50 of 60 items: every item is in most lists, and it could not be otherwise."""
    rng, share = np.random.default_rng(0), np.ones(60)
    found = world(drawn(rng, 1000, 50, share), drawn(rng, 1000, 2, share), rng.poisson(30, 60))
    assert warnings_of(found) == set()
    assert found["overlap"].value > 0.8


def test_lists_exactly_as_people_like_raise_no_warning():
    rng, share = np.random.default_rng(0), 1 / np.arange(1, 2001)
    events = rng.multinomial(20_000, share / share.sum())
    found = world(drawn(rng, 500, 10, share), drawn(rng, 500, 10, share), events)
    assert warnings_of(found) == set()


def test_one_list_for_everybody_raises_every_warning_of_sameness():
    rng, share = np.random.default_rng(0), 1 / np.arange(1, 2001) ** 0.5
    events = rng.multinomial(20_000, share / share.sum())
    best = np.argsort(-events)[:10]
    found = world([best] * 500, drawn(rng, 500, 3, share), events)
    assert warnings_of(found) == {"coverage", "top_tenth", "overlap"}
    for name in warnings_of(found):
        assert "train.loss" in found[name].next_step or "features.user" in found[name].next_step
        assert found[name].source


def test_a_random_choice_of_popular_items_raises_the_one_of_popularity():
    rng, share = np.random.default_rng(0), np.ones(2000)
    events = np.where(np.arange(2000) < 200, 60, 40)
    served = [rng.choice(200, 10, replace=False) for _ in range(500)]
    found = world(served, drawn(rng, 500, 2, share), events)
    assert warnings_of(found) == {"top_tenth", "coverage"}
    assert (found["top_tenth"].value, found["top_tenth"].popularity) == (1, 1)
    assert found["top_tenth"].positives == pytest.approx(0.1, abs=0.04)


def test_new_items_that_people_like_and_nobody_is_recommended_raise_a_warning():
    rng, share = np.random.default_rng(0), np.ones(1000)
    is_cold = np.arange(1000) >= 900
    events = np.where(is_cold, 0, 5)
    known = [rng.choice(900, 10, replace=False) for _ in range(300)]
    liked = drawn(rng, 300, 3, share)
    assert "cold_items" in warnings_of(world(known, liked, events, is_cold=is_cold))
    assert "cold_items" not in warnings_of(world(drawn(rng, 300, 10, share), liked, events, is_cold=is_cold))


def test_few_creators_with_all_recommendations_raise_a_warning():
    creators = Grouping("creator", np.arange(300) % 150)
    everybody = ragged([[0, 150, 0, 1]] * 20)
    fair = ragged([list(range(300))] * 20)
    for served, is_alarming in ((everybody, True), (fair, False)):
        probe = probe_group_share(ComparedLists(served, everybody, fair), creators)
        assert probe.is_alarming == is_alarming
        assert (probe.popularity, probe.positives) == (1, pytest.approx(4 / 300))
    assert "the 2 most frequent values of 150" in probe.meaning


def test_lists_of_one_repeated_clip_raise_a_warning():
    rng = np.random.default_rng(0)
    vectors = np.vstack([np.ones((5, 8)), rng.normal(size=(40, 8))]).astype(np.float32)
    liked = ragged([rng.choice(np.arange(5, 45), 5, replace=False) for _ in range(9)])
    same = ComparedLists(ragged([[0, 1, 2], [3, 4]]), liked, liked)
    probe = probe_content(same, "image", vectors)
    assert probe.is_alarming
    assert "image" in probe.next_step
    assert not probe_content(ComparedLists(liked, liked, liked), "image", vectors).is_alarming


def test_no_lists_at_all():
    empty = [[] for _ in range(3)]
    found = world(empty, empty, np.array([1, 2, 3]))
    assert {name: probe.value for name, probe in found.items()} == {
        "coverage": 0.0,
        "top_tenth": None,
        "overlap": None,
        "cold_items": None,
    }
    assert warnings_of(found) == set()


# --- definitions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(50))
def test_popular_lists_equal_a_loop(case, monkeypatch):
    monkeypatch.setattr("twofold.explain.diversity._CHUNK_FLAGS", 40)
    rng = np.random.default_rng(case)
    counts = rng.poisson(3, 30)
    seen = [rng.choice(30, rng.integers(0, 25), replace=True) for _ in range(7)]
    lengths = rng.integers(0, 9, 7)
    order = sorted(range(30), key=lambda item: -counts[item])  # ties keep their order
    expected = [[item for item in order if item not in own][:length] for own, length in zip(seen, lengths, strict=True)]
    found = popular_lists(counts, ragged(seen), lengths)
    assert [found.part(slice(user, user + 1)).values.tolist() for user in range(7)] == expected


def test_recommendations_are_counted_by_tenths_of_popularity():
    events = np.arange(20)[::-1].copy()  # items 0 and 1 are the most popular tenth
    lists = ragged([[0, 1, 19], [0, 5, 19], []])
    shares = served_shares(lists, events)
    assert shares[-1] == 3 / 6
    assert shares[0] == 2 / 6
    assert shares[10 - 5 // 2 - 1] == 1 / 6
    assert served_shares(ragged([[]]), events).sum() == 0


def test_overlap_is_what_two_users_share():
    assert overlap(ragged([[1, 2, 3, 4], [1, 2, 3, 4]])) == 1
    assert overlap(ragged([[1, 2, 3, 4], [3, 4, 5, 6], []])) == 0.5
    assert overlap(ragged([[1, 2], []])) is None
    lists = [np.random.default_rng(user).choice(50, 10, replace=False) for user in range(20)]
    naive = np.mean([len(set(one) & set(other)) / 10 for one, other in combinations(lists, 2)])
    assert overlap(ragged(lists)) == pytest.approx(naive, abs=0.01)


@pytest.mark.parametrize("case", range(50))
def test_what_is_served_is_measured_as_its_definitions_say(case):
    rng = np.random.default_rng(case)
    events = rng.poisson(3, 30)
    lists = [rng.choice(30, rng.integers(1, 9), replace=False) for _ in range(int(rng.integers(2, 6)))]
    item_rows = [int(item) for each in lists for item in each]
    tenths = sorted(range(30), key=lambda item: events[item])  # ties keep their order
    shares = [sum(tenths.index(item) // 3 == tenth for item in item_rows) / len(item_rows) for tenth in range(10)]
    assert served_shares(ragged(lists), events).tolist() == pytest.approx(shares)
    shared = [len(set(one) & set(other)) / len(one) for one, other in permutations(lists, 2)]
    assert overlap(ragged(lists)) == pytest.approx(np.mean(shared), abs=0.02)  # drawn pairs
    found = world(lists, lists, events)
    assert found["coverage"].value == found["coverage"].positives == len(set(item_rows)) / 30


@pytest.mark.parametrize("case", range(50))
def test_similarity_within_lists_equals_a_loop(case):
    rng = np.random.default_rng(case)
    vectors = rng.normal(size=(30, 4)).astype(np.float32)
    vectors[3], vectors[4] = 0, np.nan
    lists = [rng.choice(30, rng.integers(0, 9), replace=False) for _ in range(12)]
    means = []
    for each in lists:
        known = [item for item in each if item not in (3, 4)]
        unit = [vectors[item] / np.linalg.norm(vectors[item]) for item in known]
        if len(unit) > 1:
            means.append(np.mean([one @ other for one, other in combinations(unit, 2)]))
    assert intra_list_similarity(ragged(lists), vectors) == pytest.approx(np.mean(means), abs=1e-6)
    assert intra_list_similarity(ragged([[1], [2]]), vectors) is None
    assert intra_list_similarity(ragged([[3], []]), vectors) is None
