"""Planted folds raise a warning, small ones too; separated groups, and groups that users mix, do not."""

import numpy as np
import pytest

from twofold.explain.folding import Grouping, _crossing, find_neighbors, probe_folding, probe_off_group
from twofold.ragged import Ragged

ITEMS, DIM = 600, 16
LANGUAGE = Grouping("language", np.arange(ITEMS) % 3, ("hi", "ta", "bn"))


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def lists_of(groups, *, users=200, length=8, own=1.0, seed=0):
    """Each user's items, of the user's own language with chance `own`, else of any."""
    rng = np.random.default_rng(seed)
    languages = int(groups.max()) + 1
    rows = []
    for user in range(users):
        mine = np.flatnonzero(groups == user % languages)
        any_of = np.arange(len(groups))
        rows.append([rng.choice(mine if rng.random() < own else any_of) for _ in range(length)])
    return Ragged(np.array(rows).reshape(-1), np.arange(users + 1) * length)


def folded(seed=0):
    """Topics decide where an item lies, whatever its language: all languages in every region."""
    rng = np.random.default_rng(seed)
    topics = unit(rng.normal(size=(20, DIM)))
    return unit(topics[rng.integers(0, 20, ITEMS)] + 0.2 * rng.normal(size=(ITEMS, DIM)))


def apart(grouping=LANGUAGE, seed=0):
    """Topics and languages decide where an item lies: a region for each language."""
    rng = np.random.default_rng(seed)
    regions = 3 * unit(rng.normal(size=(int(grouping.group.max()) + 1, DIM)))
    return unit(folded(seed) + regions[grouping.group])


def folding_of(vectors, likes, grouping=LANGUAGE):
    return probe_folding(find_neighbors(vectors), grouping, likes)


def test_folded_languages_that_users_keep_apart_raise_a_warning_and_say_what_to_do():
    probe = folding_of(folded(), lists_of(LANGUAGE.group))
    assert probe.is_alarming
    assert probe.value == pytest.approx(1, abs=0.1)
    assert "uniform_negatives: 512" in probe.next_step
    assert any(f"worst group, '{value}'" in probe.meaning for value in LANGUAGE.values)


def test_separated_languages_raise_no_warning():
    probe = folding_of(apart(), lists_of(LANGUAGE.group, own=0.95))
    assert not probe.is_alarming
    assert probe.value < 0.1


def test_a_fold_is_no_fault_where_users_cross_languages():
    for own in (0.0, 0.45):
        probe = folding_of(folded(), lists_of(LANGUAGE.group, own=own))
        assert probe.value is None
        assert not probe.is_alarming
        assert "is kept apart by users" in probe.meaning


def test_one_language_of_most_items_hides_no_fold():
    rare = Grouping("language", np.where(np.arange(ITEMS) % 50 < 3, 1 + np.arange(ITEMS) % 2, 0), ("hi", "ta", "bn"))
    assert (rare.group == 0).mean() == 0.94
    probe = folding_of(folded(), lists_of(rare.group), rare)
    assert probe.is_alarming
    assert "'hi'" not in probe.meaning


def test_two_small_languages_folded_into_a_large_one_raise_a_warning():
    """Two languages with 20 % of the items fold into the largest; a mean over all items does not show it."""
    group = np.select([np.arange(ITEMS) % 10 < 6, np.arange(ITEMS) % 10 < 8], [0, 3], 0)
    group = np.where(np.arange(ITEMS) % 10 == 8, 1, np.where(np.arange(ITEMS) % 10 == 9, 2, group))
    languages = Grouping("language", group, ("hi", "ta", "bn", "en"))
    regions = np.where(group == 3, 1, 0)
    vectors = apart(Grouping("region", regions))
    probe = folding_of(vectors, lists_of(group), languages)
    assert probe.is_alarming
    assert probe.value > 0.8
    assert "worst group, 'ta'" in probe.meaning or "worst group, 'bn'" in probe.meaning
    apart_too = folding_of(apart(languages), lists_of(group), languages)
    assert not apart_too.is_alarming


def test_groups_that_are_too_small_for_neighbors_of_their_own_are_left_out():
    few = Grouping("creator", np.arange(ITEMS) // 2)
    probe = folding_of(folded(), lists_of(LANGUAGE.group), few)
    assert probe.value is None
    assert "no group with more than 10 items" in probe.meaning
    alone = folding_of(apart(), lists_of(LANGUAGE.group), Grouping("x", np.zeros(ITEMS, np.int64)))
    assert (alone.value, alone.meaning) == (None, "fewer than two groups")
    assert folding_of(apart(), lists_of(LANGUAGE.group), Grouping("x", np.full(ITEMS, -1))).value is None


def test_unknown_groups_count_for_nothing():
    half = Grouping("language", np.where(np.arange(ITEMS) % 2, -1, LANGUAGE.group))
    assert folding_of(apart(), lists_of(LANGUAGE.group, own=0.95), half).value < 0.1


@pytest.mark.parametrize("case", range(50))
def test_crossing_equals_a_loop_over_pairs(case):
    rng = np.random.default_rng(case)
    group = rng.integers(-1, 4, 30)
    lists = [rng.integers(0, 30, rng.integers(0, 7)) for _ in range(12)]
    ragged = Ragged(np.concatenate(lists), np.cumsum([0] + [len(each) for each in lists]))
    known = [[int(group[item]) for item in each if group[item] >= 0] for each in lists]
    flat = [each for one in known for each in one]
    found = _crossing(Grouping("g", group), ragged, width=4)
    for each in range(4):
        pairs = [other != each for one in known for i, own in enumerate(one) if own == each
                 for j, other in enumerate(one) if i != j]  # fmt: skip
        share = flat.count(each) / max(len(flat), 1)
        if pairs and share < 1:
            assert found[each] == pytest.approx(min(np.mean(pairs) / (1 - share), 1))
        elif not pairs:
            assert np.isnan(found[each])


def test_recommendations_from_groups_the_user_never_liked_raise_a_warning():
    likes = lists_of(LANGUAGE.group)
    other = Ragged((likes.values + 1) % ITEMS, likes.offsets)  # the next language throughout
    popular = lists_of(LANGUAGE.group, own=0.0)
    found = [
        probe_off_group(LANGUAGE, likes, served=each, popular=popular, liked=likes) for each in (other, likes, popular)
    ]
    assert [probe.value for probe in found[:2]] == [1, 0]
    assert [probe.is_alarming for probe in found] == [True, False, True]
    assert found[0].popularity == pytest.approx(2 / 3, abs=0.05)
    assert found[0].positives == 0
    assert "kind: category, column: language" in found[0].next_step
    empty = Ragged(np.zeros(0, np.int64), np.zeros(201, np.int64))
    assert probe_off_group(LANGUAGE, likes, served=empty, popular=popular, liked=likes).value is None


def test_neighbors_are_the_nearest_by_cosine():
    vectors = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    vectors[7] = 0
    near = find_neighbors(vectors)
    assert near.items.tolist() == [item for item in range(40) if item != 7]
    cosine = near.vectors @ near.vectors.T
    np.fill_diagonal(cosine, -np.inf)
    assert (np.sort(near.nearest) == np.sort(np.argsort(-cosine)[:, :10])).all()


def test_a_liked_item_of_no_known_group_vouches_for_no_group():
    grouping = Grouping("language", np.array([0, 1, -1]), ("a", "b"))
    likes = Ragged(np.array([0, 2, 1]), np.array([0, 1, 3]))  # the first user likes a; the other b, and an unknown one
    served = Ragged(np.array([1, 0]), np.array([0, 1, 2]))  # the first gets b, the other a
    assert probe_off_group(grouping, likes, served=served, popular=served, liked=served).value == 1
