"""Beyond accuracy, against loops and by hand."""

from itertools import combinations, permutations
from math import log2

import numpy as np
import pytest

from twofold.explain.diversity import (
    intra_list_similarity,
    novelty,
    overlap,
    probe_content,
    probe_lists_of_groups,
    probe_served,
    served_shares,
)
from twofold.explain.folding import Grouping
from twofold.ragged import Ragged


def ragged(lists):
    return Ragged(
        np.concatenate([np.array(each, np.int64) for each in lists]), np.cumsum([0] + [len(each) for each in lists])
    )


def test_recommendations_are_counted_by_tenths_of_popularity():
    events = np.arange(20)[::-1].copy()  # items 0 and 1 are the most popular tenth
    lists = ragged([[0, 1, 19], [0, 5, 19], []])
    shares = served_shares(lists, events)
    assert shares[-1] == 3 / 6
    assert shares[0] == 2 / 6
    assert shares[10 - 5 // 2 - 1] == 1 / 6
    assert served_shares(ragged([[]]), events).sum() == 0


def test_novelty_is_the_mean_surprise():
    events = np.array([6, 0, 0, 0])
    assert novelty(ragged([[0, 1]]), events) == pytest.approx((-log2(7 / 10) - log2(1 / 10)) / 2)
    assert novelty(ragged([[]]), events) is None


def test_overlap_is_what_two_users_share():
    assert overlap(ragged([[1, 2, 3, 4], [1, 2, 3, 4]])) == 1
    assert overlap(ragged([[1, 2, 3, 4], [3, 4, 5, 6], []])) == 0.5
    assert overlap(ragged([[1, 2], []])) is None
    lists = [np.random.default_rng(user).choice(50, 10, replace=False) for user in range(20)]
    naive = np.mean([len(set(one) & set(other)) / 10 for one, other in combinations(lists, 2)])
    assert overlap(ragged(lists)) == pytest.approx(naive, abs=0.01)


@pytest.mark.parametrize("case", range(200))
def test_what_is_served_is_measured_as_its_definitions_say(case):
    rng = np.random.default_rng(case)
    events = rng.poisson(3, 30)
    lists = [rng.choice(30, rng.integers(1, 9), replace=False) for _ in range(int(rng.integers(2, 6)))]
    item_rows = [int(item) for each in lists for item in each]
    surprise = [-log2((events[item] + 1) / (events.sum() + 30)) for item in item_rows]
    assert novelty(ragged(lists), events) == pytest.approx(np.mean(surprise))
    tenths = sorted(range(30), key=lambda item: events[item])  # ties keep their order
    shares = [sum(tenths.index(item) // 3 == tenth for item in item_rows) / len(item_rows) for tenth in range(10)]
    assert served_shares(ragged(lists), events).tolist() == pytest.approx(shares)
    shared = [len(set(one) & set(other)) / len(one) for one, other in permutations(lists, 2)]
    assert overlap(ragged(lists)) == pytest.approx(np.mean(shared), abs=0.02)  # drawn pairs


@pytest.mark.parametrize("case", range(200))
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


def test_lists_of_one_repeated_clip_raise_a_warning():
    vectors = np.ones((9, 3), np.float32)
    assert probe_content(ragged([[0, 1, 2], [3, 4]]), "image", vectors).is_alarming


def test_few_creators_with_all_recommendations_raise_a_warning():
    creators = Grouping("creator", np.arange(300) % 150)
    everything = probe_lists_of_groups(ragged([[0, 150, 0, 1]]), creators)
    assert everything.value == 1
    assert everything.is_alarming
    assert not probe_lists_of_groups(ragged([range(300)]), creators).is_alarming


def test_only_popular_items_raise_a_warning_and_lists_like_the_log_do_not():
    rng = np.random.default_rng(0)
    events = rng.poisson(5, 200) + np.where(np.arange(200) < 20, 10, 0)
    cold = np.zeros(200, bool)
    cold[199] = True

    def probes(lists):
        return {probe.name: probe for probe in probe_served(ragged(lists), events, is_cold=cold)}

    popular = probes([rng.choice(20, 10, replace=False) for _ in range(50)])
    assert popular["served_top_tenth"].is_alarming
    assert popular["overlap"].value == pytest.approx(0.5, abs=0.05)
    fair = probes([rng.choice(200, 10, replace=False, p=events / events.sum()) for _ in range(50)])
    assert not fair["served_top_tenth"].is_alarming
    assert probes([[199, 0]])["served_cold"].value == 0.5
