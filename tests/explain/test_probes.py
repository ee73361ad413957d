from itertools import combinations

import numpy as np
import pytest
import scipy.stats

from twofold.explain.probes import (
    effective_rank,
    found_among,
    gini,
    mean_cosine,
    new_item_probe,
    probe_lists,
    probe_norms,
    probe_vectors,
)
from twofold.ragged import Ragged
from twofold.topk import Products


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


def test_one_new_item_at_a_time_is_ranked_among_known_ones():
    """Item 0 is user 0's favorite and item 1 the next; with the vectors of new items both come last."""
    known = Products(np.eye(2, dtype=np.float32), np.array([[3, 0], [2, 1], [1, 2], [0, 3]], np.float32))
    relevant, seen = Ragged(np.array([0, 1, 0]), np.array([0, 2, 3])), Ragged(np.array([3]), np.array([0, 1, 1]))
    assert found_among(known, known.items, relevant=relevant, seen=seen, k=1).tolist() == [True, False, False]
    assert found_among(known, known.items, relevant=relevant, seen=seen, k=2).tolist() == [True, True, False]
    new_items = np.array([[1.5, 0], [0.5, 0], [9, 9], [9, 9]], np.float32)
    # User 0 as a new item 0: only item 1 (2) is above 1.5; as a new item 1: items 0 and 2 are, item 3 is seen.
    assert found_among(known, new_items, relevant=relevant, seen=seen, k=2).tolist() == [True, False, False]
    assert found_among(known, new_items, relevant=relevant, seen=seen, k=4).tolist() == [True, True, True]


def test_equal_scores_are_no_hit_of_everyone():
    """A model that gives every new item the score of all others finds k of N of them, by the fixed order of ties."""
    known = Products(np.ones((200, 1), np.float32), np.ones((100, 1), np.float32))
    relevant = Ragged(np.arange(200) % 100, np.arange(201))
    nothing = Ragged(np.zeros(0, np.int64), np.zeros(201, np.int64))
    found = found_among(known, known.items, relevant=relevant, seen=nothing, k=20)
    assert found.mean() == pytest.approx(0.2, abs=0.01)


def test_items_that_cannot_be_found_while_new_raise_a_warning():
    rng = np.random.default_rng(0)
    queries, items = unit(rng.normal(size=(200, 8))), unit(rng.normal(size=(300, 8)))
    known = Products(queries, items)
    relevant = Ragged(np.argmax(queries @ items.T, axis=1), np.arange(201))
    nothing = Ragged(np.zeros(0, np.int64), np.zeros(201, np.int64))
    lost = new_item_probe(known, -items, relevant=relevant, seen=nothing, k=10)
    assert (lost.value, lost.is_alarming) == (0, True)
    assert "1.000 with them, 0.033 by chance" in lost.meaning
    kept = new_item_probe(known, items + np.float32(0.1), relevant=relevant, seen=nothing, k=10)
    assert kept.value > 0.5
    assert not kept.is_alarming
    empty = Ragged(np.zeros(0, np.int64), np.zeros(201, np.int64))
    assert new_item_probe(known, items, relevant=empty, seen=nothing, k=10).value is None


def test_every_threshold_says_where_it_comes_from():
    probes = probe_vectors(unit(np.random.default_rng(0).normal(size=(50, 4))))
    assert {probe.source for probe in probes} == {"not measured"}
