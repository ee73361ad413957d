"""Planted folds raise a warning; separated groups, and groups that users mix too, do not."""

import numpy as np
import pytest

from twofold.explain.folding import Grouping, find_neighbors, probe_groups, probe_hubs
from twofold.ragged import Ragged

ITEMS, DIM = 600, 16
LANGUAGE = Grouping("language", np.arange(ITEMS) % 3)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def lists_of(groups, *, users=200, length=8, own=1.0, seed=0):
    """Each user's items, of the user's own language with chance `own`, else of any."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        mine = np.flatnonzero(groups == user % 3)
        any_of = np.arange(len(groups))
        rows.append([rng.choice(mine if rng.random() < own else any_of) for _ in range(length)])
    return Ragged(np.array(rows).reshape(-1), np.arange(users + 1) * length)


def folded(seed=0):
    """Topics decide where an item lies, whatever its language: three languages in every region."""
    rng = np.random.default_rng(seed)
    topics = unit(rng.normal(size=(20, DIM)))
    return unit(topics[rng.integers(0, 20, ITEMS)] + 0.2 * rng.normal(size=(ITEMS, DIM)))


def apart(seed=0):
    """Returns vectors that have a region of the space for each language."""
    rng = np.random.default_rng(seed)
    regions = 3 * unit(rng.normal(size=(3, DIM)))
    return unit(folded(seed) + regions[LANGUAGE.group])


def probes_of(vectors, likes, served=None):
    found = probe_groups(find_neighbors(vectors), LANGUAGE, likes, served=served)
    return {probe.name.partition("/")[2]: probe for probe in found}


def test_folded_languages_that_users_keep_apart_raise_a_warning():
    probes = probes_of(folded(), lists_of(LANGUAGE.group))
    assert probes["folding"].is_alarming
    assert probes["folding"].value == pytest.approx(1, abs=0.1)
    assert probes["purity"].value == pytest.approx(1 / 3, abs=0.05)
    assert probes["linear_probe"].is_alarming


def test_separated_languages_raise_no_warning():
    probes = probes_of(apart(), lists_of(LANGUAGE.group, own=0.95))
    assert not any(probe.is_alarming for probe in probes.values())
    assert probes["purity"].value > 0.95
    assert probes["linear_probe"].value > 0.95


def test_a_fold_is_no_fault_where_users_cross_languages_freely():
    probes = probes_of(folded(), lists_of(LANGUAGE.group, own=0.0))
    assert not any(probe.is_alarming for probe in probes.values())
    assert probes["folding"].value is None
    assert "as often as chance" in probes["folding"].meaning


def test_recommendations_from_groups_the_user_never_liked_raise_a_warning():
    likes = lists_of(LANGUAGE.group)
    served = Ragged((likes.values + 1) % ITEMS, likes.offsets)  # the next language throughout
    assert probes_of(apart(), likes, served=served)["served_other"].value == 1
    assert probes_of(apart(), likes, served=served)["served_other"].is_alarming
    assert probes_of(apart(), likes, served=likes)["served_other"].value == 0
    empty = Ragged(np.zeros(0, np.int64), np.zeros(201, np.int64))
    assert probes_of(apart(), likes, served=empty)["served_other"].value is None


def test_unknown_groups_count_for_nothing_and_one_group_has_no_purity():
    half = Grouping("language", np.where(np.arange(ITEMS) % 2, -1, LANGUAGE.group))
    purity = probe_groups(find_neighbors(apart()), half, lists_of(LANGUAGE.group))[0]
    assert purity.value > 0.9
    (alone,) = probe_groups(find_neighbors(apart()), Grouping("x", np.zeros(ITEMS, np.int64)), lists_of(LANGUAGE.group))
    assert (alone.value, alone.meaning) == (None, "fewer than two groups")


def test_neighbors_are_the_nearest_by_cosine():
    vectors = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    vectors[7] = 0
    near = find_neighbors(vectors)
    assert near.items.tolist() == [item for item in range(40) if item != 7]
    cosine = near.vectors @ near.vectors.T
    np.fill_diagonal(cosine, -np.inf)
    assert (np.sort(near.nearest) == np.sort(np.argsort(-cosine)[:, :10])).all()


def test_a_hub_raises_a_warning_and_a_sphere_does_not():
    # One item lies in the middle of many directions that are far from one another.
    spread = unit(np.random.default_rng(0).normal(size=(400, 3)))
    assert not any(probe.is_alarming for probe in probe_hubs(find_neighbors(spread)))
    star = np.vstack([np.eye(200) * 0.9 + 0.2, np.full((4, 200), 1.0)]).astype(np.float32)
    assert all(probe.is_alarming for probe in probe_hubs(find_neighbors(star)))


def test_few_items_have_no_hubs():
    (probe,) = probe_hubs(find_neighbors(np.ones((3, 2), np.float32)))
    assert probe.value is None
    assert "fewer than 11 items" in probe.meaning
    assert probe_hubs(find_neighbors(np.ones((1, 2), np.float32)))[0].value is None
