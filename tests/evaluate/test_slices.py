"""Groups against loops, Holm over all of them, small ones marked, days whose order changes flagged."""

import numpy as np
import pytest
import scipy.stats

from tests.evaluate.windows import lines, random_scores, random_window, scorer
from twofold.evaluate.catalogue import evaluate_catalogue
from twofold.evaluate.significance import holm
from twofold.evaluate.slices import Slicing, evaluate_days, evaluate_slices, slice_recall
from twofold.ragged import Ragged

DAY = 86_400_000


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
        raw.append(scipy.stats.ttest_rel(own[known], other[known]).pvalue)
    assert [line.p_value for line in section.lines] == pytest.approx(holm(np.array(raw)).tolist())


def test_an_empty_slice_is_left_out_and_no_slices_are_no_error():
    relevant = Ragged(np.array([0, 1]), np.array([0, 1, 2]))
    nobody = Slicing("colour", np.array([0, -1]), ("red", "green"))
    ranks = np.array([1, 0])
    section = evaluate_slices(ranks, ranks, relevant=relevant, slicings=(nobody,), k=5, base="itself")
    assert [(line.name, line.users, line.is_small, line.p_value) for line in section.lines] == [("red", 1, True, None)]
    assert evaluate_slices(ranks, ranks, relevant=relevant, slicings=(), k=5, base="itself").lines == ()


def test_days_have_a_mean_a_spread_and_a_flag():
    query_at = np.array([0, 1, DAY, DAY + 1, 2 * DAY])
    values = {"model": np.array([0.4, 0.6, 0.3, 0.3, np.nan]), "EASE": np.array([0.2, 0.4, 0.5, 0.3, 0.9])}
    section = evaluate_days(values, query_at, metric="catalogue/recall@5")
    assert [(day.day, day.users) for day in section.days] == [("1970-01-01", 2), ("1970-01-02", 2)]
    assert section.days[0].values == pytest.approx({"model": 0.5, "EASE": 0.3})
    assert section.mean == pytest.approx({"model": (0.5 + 0.3) / 2, "EASE": (0.3 + 0.4) / 2})
    assert section.std["model"] == pytest.approx(np.std([0.5, 0.3], ddof=1))
    assert section.order_changes  # the model leads on the first day, EASE on the second
    assert not evaluate_days(
        {"model": values["model"], "none": 0 * values["model"]}, query_at, metric="m"
    ).order_changes


def test_one_day_has_no_spread_and_the_clock_says_when_it_begins():
    query_at = np.array([20 * 3_600_000, 30 * 3_600_000])
    values = {"model": np.array([0.5, 0.7])}
    one = evaluate_days(values, query_at, metric="m", utc_offset_h=8)
    assert ([day.users for day in one.days], one.std, one.order_changes) == ([2], {"model": None}, False)
    assert len(evaluate_days(values, query_at, metric="m").days) == 2
