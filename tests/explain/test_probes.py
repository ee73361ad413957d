"""Planted faults of vectors raise a warning that says what to do; sound vectors raise none."""

from itertools import combinations

import numpy as np
import pytest
import scipy.stats

from twofold.explain.folding import find_neighbors, probe_hubs
from twofold.explain.probes import (
    Probe,
    effective_rank,
    found_among,
    halfway,
    mean_cosine,
    near_by_chance,
    new_item_probe,
    probe_norms,
    probe_vectors,
)
from twofold.ragged import Ragged
from twofold.topk import Additions, Products


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def warnings_of(probes):
    return {probe.name for probe in probes if probe.is_alarming}


# --- planted vectors --------------------------------------------------------------------------------------------------


def isotropic(rng, dim, items=2000):
    return rng.normal(size=(items, dim))


def falling(rng):
    return rng.normal(size=(2000, 128)) / np.sqrt(1 + np.arange(128))


def few_directions(rng):
    return np.hstack([rng.normal(size=(2000, 14)), 1e-4 * rng.normal(size=(2000, 114))])


def two_points(rng):
    return np.where(np.arange(2000)[:, None] % 2, 1, -1) * unit(rng.normal(size=(1, 64))) + 0.01 * rng.normal(
        size=(2000, 64)
    ) / np.sqrt(64)


def half_on_one_point(rng):
    vectors = unit(rng.normal(size=(2000, 64)))
    vectors[::2] = unit(rng.normal(size=(1, 64))) + 0.01 * rng.normal(size=(1000, 64)) / np.sqrt(64)
    return vectors


def eight_kinds(rng):
    """Items of a kind are alike, and there are as many of each: no fault."""
    return unit(rng.normal(size=(8, 64)))[np.arange(2000) % 8] + 0.01 * rng.normal(size=(2000, 64)) / np.sqrt(64)


def collapsed(rng):
    return np.ones((2000, 64)) + 1e-3 * rng.normal(size=(2000, 64))


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        (lambda rng: isotropic(rng, 16), set()),
        (lambda rng: isotropic(rng, 64), set()),
        (lambda rng: isotropic(rng, 128), set()),
        (lambda rng: isotropic(rng, 3), set()),  # one pair in forty is near by chance alone
        (falling, set()),
        (eight_kinds, set()),
        (few_directions, {"effective_rank"}),
        (two_points, {"near_pairs"}),
        (half_on_one_point, {"near_pairs"}),
        (collapsed, {"effective_rank", "near_pairs"}),
    ],
    ids=[
        "16 dims",
        "64 dims",
        "128 dims",
        "3 dims",
        "falling",
        "eight kinds",
        "14 of 128",
        "two points",
        "half a point",
        "collapsed",
    ],
)
def test_planted_vectors_raise_their_warning_and_sound_ones_none(plant, expected):
    probes = probe_vectors(unit(plant(np.random.default_rng(0))))
    assert expected <= warnings_of(probes)
    if not expected:
        assert warnings_of(probes) == set()


def test_a_hub_raises_a_warning_and_a_sphere_does_not():
    spread = unit(np.random.default_rng(0).normal(size=(400, 3)))
    assert not probe_hubs(find_neighbors(spread)).is_alarming
    star = np.vstack([np.eye(200) * 0.9 + 0.2, np.full((4, 200), 1.0)]).astype(np.float32)
    assert probe_hubs(find_neighbors(star)).is_alarming


def test_few_items_have_no_hubs():
    probe = probe_hubs(find_neighbors(np.ones((3, 2), np.float32)))
    assert probe.value is None
    assert "fewer than 11 items" in probe.meaning
    assert probe_hubs(find_neighbors(np.ones((1, 2), np.float32))).value is None


def test_every_probe_with_a_limit_says_where_it_comes_from_and_what_to_do():
    rng = np.random.default_rng(0)
    probes = [
        *probe_vectors(unit(rng.normal(size=(50, 4)))),
        probe_hubs(find_neighbors(unit(rng.normal(size=(50, 4))))),
    ]
    for probe in probes:
        assert probe.source
        assert "train.loss" in probe.next_step or "train.hard_negatives" in probe.next_step


def test_a_limit_lies_halfway_between_two_references_that_differ():
    assert halfway(1.0, 0.5) == 0.75
    assert halfway(0.5, 0.52) is None
    assert halfway(None, 0.5) is halfway(0.5, None) is None
    assert Probe("x", 0.76, "", alarm_above=halfway(1.0, 0.5)).is_alarming
    assert not Probe("x", None, "", alarm_above=0.5).is_alarming
    assert Probe("x", 0.2, "", alarm_below=0.3).is_alarming


# --- definitions ------------------------------------------------------------------------------------------------------


def test_lengths_of_vectors_do_not_count_and_zero_vectors_are_none():
    vectors = unit(np.random.default_rng(0).normal(size=(50, 4)))
    longer = np.concatenate([vectors * np.arange(1, 51, dtype=np.float32)[:, None], np.zeros((3, 4), np.float32)])
    for one, other in zip(probe_vectors(vectors), probe_vectors(longer), strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-3)


def test_where_all_vectors_are_zero_there_is_no_number():
    found = probe_vectors(np.zeros((5, 4), np.float32))
    assert [probe.value for probe in found] == [None, None]


def test_numbers_by_hand():
    # two directions used with singular values sqrt(3) and 1: shares s and 1 - s
    vectors = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    share = np.sqrt(3) / (np.sqrt(3) + 1)
    expected = np.exp(-(share * np.log(share) + (1 - share) * np.log(1 - share)))
    assert effective_rank(vectors) == pytest.approx(expected)
    assert mean_cosine(vectors) == pytest.approx(3 / 6)  # 3 of the 6 pairs are equal, the others orthogonal
    near = probe_vectors(vectors)[1]
    assert near.value == pytest.approx(3 / 6, abs=0.01)


@pytest.mark.parametrize("dim", [2, 3, 8])
def test_near_pairs_by_chance_are_those_of_random_directions(dim):
    vectors = unit(np.random.default_rng(0).normal(size=(3000, dim)))
    cosine = (vectors @ vectors.T)[np.triu_indices(3000, 1)]
    assert near_by_chance(dim) == pytest.approx((cosine > 0.9).mean(), abs=0.005)


@pytest.mark.parametrize("case", range(50))
def test_vectors_are_measured_as_their_definitions_say(case):
    rng = np.random.default_rng(case)
    items = int(rng.integers(2, 40))
    vectors = unit(rng.normal(size=(items, int(rng.integers(1, 12)))))
    cosines = [float(one @ other) for one, other in combinations(vectors, 2)]
    assert mean_cosine(vectors) == pytest.approx(np.mean(cosines), abs=1e-5)
    singular = np.linalg.svd(vectors.astype(np.float64), compute_uv=False)
    share = singular / singular.sum()
    assert effective_rank(vectors) == pytest.approx(np.exp(scipy.stats.entropy(share)), rel=1e-3)


def test_popular_items_with_long_vectors():
    rng = np.random.default_rng(0)
    events = rng.poisson(20, 300)
    longer = unit(rng.normal(size=(300, 8))) * (1 + events[:, None]).astype(np.float32)
    assert probe_norms(longer, events)[0].value > 0.99
    assert probe_norms((1 / longer).astype(np.float32), events)[0].value < 0
    assert probe_norms(unit(longer), events) == probe_norms(longer, np.ones(300, np.int64)) == ()


# --- new items --------------------------------------------------------------------------------------------------------


def test_one_new_item_at_a_time_is_ranked_among_known_ones():
    """Item 0 is user 0's favorite and item 1 the next; with the vectors of new items both come last."""
    known = Products(np.eye(2, dtype=np.float32), np.array([[3, 0], [2, 1], [1, 2], [0, 3]], np.float32))
    relevant, seen = Ragged(np.array([0, 1, 0]), np.array([0, 2, 3])), Ragged(np.array([3]), np.array([0, 1, 1]))
    assert found_among(known, known, relevant=relevant, seen=seen, k=1).tolist() == [True, False, False]
    assert found_among(known, known, relevant=relevant, seen=seen, k=2).tolist() == [True, True, False]
    new_items = np.array([[1.5, 0], [0.5, 0], [9, 9], [9, 9]], np.float32)
    # User 0 as a new item 0: only item 1 (2) is above 1.5; as a new item 1: items 0 and 2 are, item 3 is seen.
    assert found_among(known, Products(known.queries, new_items), relevant=relevant, seen=seen, k=2).tolist() == [
        True,
        False,
        False,
    ]
    assert found_among(known, Products(known.queries, new_items), relevant=relevant, seen=seen, k=4).tolist() == [
        True,
        True,
        True,
    ]


def test_what_histories_add_to_scores_counts_for_items_as_they_are():
    """The item that scores lowest is first by its addition."""
    items = np.arange(1, 21, dtype=np.float32)[:, None]
    added = Additions(Ragged(np.array([0]), np.array([0, 1])), np.array([99], np.float32))
    known, relevant = Products(np.ones((1, 1), np.float32), items, added), Ragged(np.array([0]), np.array([0, 1]))
    nothing = Ragged(np.zeros(0, np.int64), np.zeros(2, np.int64))
    found = new_item_probe(known, items, relevant=relevant, seen=nothing, k=5)
    assert found.value == 0
    assert "1.000 with them" in found.meaning


def test_equal_scores_are_no_hit_of_everyone():
    """A model that gives every new item the score of all others finds k of N of them, by the fixed order of ties."""
    known = Products(np.ones((200, 1), np.float32), np.ones((100, 1), np.float32))
    relevant = Ragged(np.arange(200) % 100, np.arange(201))
    nothing = Ragged(np.zeros(0, np.int64), np.zeros(201, np.int64))
    found = found_among(known, known, relevant=relevant, seen=nothing, k=20)
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
    assert "prepare.new_items: 0.05" in lost.next_step
    kept = new_item_probe(known, items + np.float32(0.1), relevant=relevant, seen=nothing, k=10)
    assert kept.value > 0.6
    assert not kept.is_alarming
    empty = Ragged(np.zeros(0, np.int64), np.zeros(201, np.int64))
    assert new_item_probe(known, items, relevant=empty, seen=nothing, k=10).value is None
