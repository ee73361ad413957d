"""Groups against loops, Holm over those that are tested, small ones marked."""

import numpy as np
import pytest
import scipy.stats

from tests.evaluate.windows import lines, random_scores, random_window, scorer
from twofold.evaluate.catalogue import evaluate_catalogue
from twofold.evaluate.significance import holm
from twofold.evaluate.slices import Slicing, evaluate_slices, slice_recall
from twofold.ragged import Ragged


def judged_pairs(seed, users=300):
    judged = random_window(seed, users=users)
    ranks = [evaluate_catalogue(judged, scorer(random_scores(judged, each)), ks=(10,)).ranks for each in (0, 1)]
    group = np.random.default_rng(seed).integers(-1, 3, len(judged.relevant.values))
    return judged.relevant, ranks, Slicing("colour", group, ("red", "green", "blue"))


def test_recall_of_a_group_counts_its_own_pairs_only():
    relevant, (ranks, _), slicing = judged_pairs(0)
    recall = slice_recall(ranks, relevant, slicing, k=10)
    bounds = relevant.offsets
    for user in range(len(relevant.sizes)):
        own = slice(bounds[user], bounds[user + 1])
        for group in range(3):
            found = [0 < rank <= 10 for rank, of in zip(ranks[own], slicing.group[own], strict=True) if of == group]
            assert recall[user, group] == pytest.approx(np.mean(found) if found else np.nan, nan_ok=True)


def test_a_group_of_everyone_is_the_catalogue_metric():
    judged = random_window(1)
    whole = evaluate_catalogue(judged, scorer(random_scores(judged)), ks=(10,))
    everyone = Slicing("all", np.zeros(len(judged.relevant.values), np.int64), ("all",))
    recall = slice_recall(whole.ranks, judged.relevant, everyone, k=10)
    np.testing.assert_array_equal(recall[:, 0], whole.values["catalogue/recall@10"])
    assert len(lines(judged.relevant)) == len(recall)


def test_every_line_is_paired_and_corrected_for_all_lines():
    relevant, (ranks, base_ranks), slicing = judged_pairs(2)
    halves = Slicing("half", np.repeat(np.arange(2), [100, len(ranks) - 100]), ("first", "second"))
    section = evaluate_slices(ranks, base_ranks, relevant=relevant, slicings=(slicing, halves), k=10, base="the other")
    assert (section.metric, section.base) == ("recall@10", "the other")
    assert [(line.by, line.name) for line in section.lines] == [
        *(("colour", name) for name in ("red", "green", "blue")),
        ("half", "first"),
        ("half", "second"),
    ]
    raw = []
    for line, each, group in zip(section.lines, [slicing] * 3 + [halves] * 2, [0, 1, 2, 0, 1], strict=True):
        own, other = (slice_recall(values, relevant, each, k=10)[:, group] for values in (ranks, base_ranks))
        known = ~np.isnan(own)
        assert line.users == known.sum()
        assert line.is_small == (line.users < 100)
        assert line.minus.value == pytest.approx(np.mean(own[known] - other[known]))
        assert line.minus.value == pytest.approx(line.model.value - line.base.value)
        raw.append(scipy.stats.ttest_rel(own[known], other[known]).pvalue if known.sum() >= 100 else np.nan)
    expected = [None if np.isnan(p) else p for p in holm(np.array(raw))]
    assert [line.p_value for line in section.lines] == pytest.approx(expected)
    assert [line.p_value is None for line in section.lines] == [line.is_small for line in section.lines]
    assert 0 < sum(line.is_small for line in section.lines) < len(section.lines)


def test_an_empty_slice_is_left_out_and_no_slices_are_no_error():
    relevant = Ragged(np.array([0, 1]), np.array([0, 1, 2]))
    colours = Slicing("colour", np.array([0, 2]), ("red", "green", "blue"))
    ranks = np.array([1, 0])
    section = evaluate_slices(ranks, ranks, relevant=relevant, slicings=(colours,), k=5, base="itself")
    assert [(line.name, line.users, line.is_small, line.p_value) for line in section.lines] == [
        ("red", 1, True, None),
        ("blue", 1, True, None),
    ]
    assert evaluate_slices(ranks, ranks, relevant=relevant, slicings=(), k=5, base="itself").lines == ()


def test_a_slicing_of_one_group_is_no_slicing_and_costs_the_others_nothing():
    relevant, (ranks, base_ranks), slicing = judged_pairs(3)
    all_of_one_age = Slicing("item age", np.zeros(len(ranks), np.int64), ("from 7 to 30 days", "older"))
    arguments = {"relevant": relevant, "k": 10, "base": "the other"}
    alone = evaluate_slices(ranks, base_ranks, slicings=(slicing,), **arguments)
    assert evaluate_slices(ranks, base_ranks, slicings=(all_of_one_age, slicing), **arguments) == alone
