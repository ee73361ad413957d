from itertools import combinations

import numpy as np
import pytest
import scipy.stats

from twofold.explain.probes import (
    effective_rank,
    found_among,
    gini,
    mean_cosine,
    probe_cold_items,
    probe_lists,
    probe_norms,
    probe_vectors,
)
from twofold.ragged import Ragged


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def warnings_of(probes):
    return {probe.name for probe in probes if probe.is_alarming}


def test_spread_vectors_raise_no_warning():
    assert warnings_of(probe_vectors(unit(np.random.default_rng(0).normal(size=(500, 16))))) == set()


def test_a_collapsed_model_raises_every_warning():
    point = np.ones((500, 16)) + np.random.default_rng(0).normal(scale=1e-3, size=(500, 16))
    assert warnings_of(probe_vectors(unit(point))) == {"effective_rank", "mean_cosine"}


def test_lengths_of_vectors_do_not_count_and_zero_vectors_are_none():
    vectors = unit(np.random.default_rng(0).normal(size=(50, 4)))
    longer = np.concatenate([vectors * np.arange(1, 51, dtype=np.float32)[:, None], np.zeros((3, 4), np.float32)])
    for one, other in zip(probe_vectors(vectors), probe_vectors(longer), strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-6)


def test_numbers_by_hand():
    # two directions used with singular values sqrt(3) and 1: shares s and 1 - s
    vectors = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    share = np.sqrt(3) / (np.sqrt(3) + 1)
    expected = np.exp(-(share * np.log(share) + (1 - share) * np.log(1 - share)))
    assert effective_rank(vectors) == pytest.approx(expected)
    assert mean_cosine(vectors) == pytest.approx(3 / 6)  # 3 of the 6 pairs are equal, the others orthogonal


@pytest.mark.parametrize("case", range(200))
def test_vectors_are_measured_as_their_definitions_say(case):
    rng = np.random.default_rng(case)
    items = int(rng.integers(2, 40))
    vectors = unit(rng.normal(size=(items, int(rng.integers(1, 12)))))
    cosines = [float(one @ other) for one, other in combinations(vectors, 2)]
    assert mean_cosine(vectors) == pytest.approx(np.mean(cosines), abs=1e-5)
    singular = np.linalg.svd(vectors.astype(np.float64), compute_uv=False)
    share = singular / singular.sum()
    assert effective_rank(vectors) == pytest.approx(np.exp(scipy.stats.entropy(share)), rel=1e-3)


def test_the_same_items_for_everyone():
    lists = np.tile(np.arange(10), 1000)
    probes = probe_lists(lists, num_items=1000, num_lists=1000)
    values = {probe.name: probe.value for probe in probes}
    assert values == {"coverage": 0.01, "hub_share": 1.0, "commonest_item": 1.0, "gini": pytest.approx(0.99)}
    assert warnings_of(probes) == set(values)


def test_lists_of_their_own_raise_no_warning():
    lists = np.random.default_rng(0).integers(0, 1000, size=10_000)
    assert warnings_of(probe_lists(lists, num_items=1000, num_lists=1000)) == set()


@pytest.mark.parametrize("case", range(200))
def test_lists_are_measured_as_their_definitions_say(case):
    rng = np.random.default_rng(case)
    num_items, num_lists = int(rng.integers(1, 300)), int(rng.integers(1, 30))
    lists = [
        rng.choice(num_items, int(rng.integers(1, min(num_items, 10) + 1)), replace=False) for _ in range(num_lists)
    ]
    item_rows = np.concatenate(lists)
    counts = np.array([(item_rows == item).sum() for item in range(num_items)])
    assert gini(counts) == pytest.approx(np.abs(counts[:, None] - counts).mean() / (2 * counts.mean()))
    hubs = max(round(num_items / 100), 1)
    expected = {
        "coverage": len(set(item_rows.tolist())) / num_items,
        "hub_share": sum(sorted(counts)[-hubs:]) / len(item_rows),
        "commonest_item": max(sum(item in each for each in lists) for item in range(num_items)) / num_lists,
        "gini": gini(counts),
    }
    probes = probe_lists(item_rows, num_items=num_items, num_lists=num_lists)
    assert {probe.name: probe.value for probe in probes} == pytest.approx(expected)


def test_no_lists_at_all():
    probes = probe_lists(np.empty(0, np.int64), num_items=3, num_lists=0)
    assert {probe.name: probe.value for probe in probes}["coverage"] == 0.0


def test_popular_items_with_long_vectors():
    rng = np.random.default_rng(0)
    events = rng.poisson(20, 300)
    longer = unit(rng.normal(size=(300, 8))) * (1 + events[:, None]).astype(np.float32)
    assert probe_norms(longer, events).value > 0.99
    assert probe_norms((1 / longer).astype(np.float32), events).value < 0
    for probe in (probe_norms(unit(longer), events), probe_norms(longer, np.ones(300, np.int64))):
        assert probe.value is None
        assert not probe.is_alarming


def test_recall_that_depends_on_ids_raises_a_warning():
    found = np.array([True, True, False, True, True, True])
    alone = probe_cold_items(found, np.array([False] * 6), k=10)
    assert (alone.value, alone.is_alarming) == (0, True)
    kept = probe_cold_items(found, np.array([True, False, True, True, False, False]), k=10)
    assert (kept.value, kept.is_alarming) == (pytest.approx(3 / 5), False)
    assert probe_cold_items(np.zeros(6, bool), found, k=10).value is None
    assert probe_cold_items(found[:0], found[:0], k=10).value is None


def test_found_among_is_the_rank_in_the_unseen_catalogue():
    queries = np.array([[1, 0], [0, 1]], np.float32)
    items = np.array([[3, 0], [2, 1], [1, 2], [0, 3]], np.float32)
    relevant = Ragged(np.array([1, 2, 0]), np.array([0, 2, 3]))
    seen = Ragged(np.array([0]), np.array([0, 1, 1]))
    assert found_among(queries, items, relevant=relevant, seen=seen, k=1).tolist() == [True, False, False]
    assert found_among(queries, items, relevant=relevant, seen=seen, k=4).tolist() == [True, True, True]


def test_every_threshold_says_where_it_comes_from():
    probes = probe_vectors(unit(np.random.default_rng(0).normal(size=(50, 4))))
    assert {probe.source for probe in probes} == {"not measured"}
