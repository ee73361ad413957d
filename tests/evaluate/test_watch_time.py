"""Watch time: every number against a loop or scikit-learn on random cases, and against arithmetic on hand tables."""

from itertools import combinations
from math import log, log2

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, mean_squared_error, roc_auc_score

from tests.evaluate.windows import ragged, scorer, window
from twofold.evaluate import watch_time
from twofold.evaluate.watch_time import (
    KS,
    Watched,
    errors,
    evaluate_watch_time,
    fit_gain,
    gains,
    is_long_view,
    length_decile,
    list_metrics,
    pooled_xauc,
    xauc,
)

CASES = 200


def lists(seed):
    """CASES lists of 0 to 30 impressions, with ties in scores and in truth."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 31, CASES))])
    scores = np.round(rng.random(offsets[-1]), 1).astype(np.float32)
    return scores, np.round(rng.exponential(5.0, offsets[-1])), offsets


def naive_xauc(scores, truth):
    won = []
    for (score, value), (other_score, other_value) in combinations(zip(scores, truth, strict=True), 2):
        if value != other_value:
            won.append(0.5 if score == other_score else float((score > other_score) == (value > other_value)))
    return np.mean(won) if won else np.nan


def test_xauc_equals_a_loop_over_pairs(monkeypatch):
    monkeypatch.setattr(watch_time, "CHUNK_PAIRS", 500)
    scores, truth, offsets = lists(0)
    ours = xauc(scores, truth, offsets=offsets)
    for line in range(CASES):
        part = slice(offsets[line], offsets[line + 1])
        expected = naive_xauc(scores[part], truth[part])
        assert ours[line] == pytest.approx(expected, nan_ok=True)
        assert pooled_xauc(scores[part], truth[part]) == pytest.approx(expected, nan_ok=True)


def test_xauc_of_a_label_is_its_auc():
    scores, truth, offsets = lists(1)
    label = (truth > 4).astype(float)
    ours = xauc(scores, label, offsets=offsets)
    for line in range(CASES):
        part = slice(offsets[line], offsets[line + 1])
        if len(np.unique(label[part])) == 2:
            assert ours[line] == pytest.approx(roc_auc_score(label[part], scores[part]))
    assert pooled_xauc(scores, label) == pytest.approx(roc_auc_score(label, scores))


def test_xauc_by_hand():
    # Pairs of different truth: (1, 3), (1, 3), (3, 3) is dropped; one ordered rightly, one a tie of scores.
    assert xauc(np.array([1, 2, 1], np.float32), np.array([1.0, 3.0, 3.0]), offsets=np.array([0, 3])).tolist() == [
        1.5 / 2
    ]
    assert np.isnan(xauc(np.zeros(3, np.float32), np.ones(3), offsets=np.array([0, 1, 3]))).all()
    assert np.isnan(pooled_xauc(np.zeros(2, np.float32), np.ones(2)))
    assert pooled_xauc(np.zeros(2, np.float32), np.array([1.0, 2.0])) == 0.5


def test_errors_equal_scikit_learn():
    rng = np.random.default_rng(2)
    predicted, truth = rng.normal(size=(2, 500)).astype(np.float32)
    expected = {"mae": mean_absolute_error(truth, predicted), "rmse": mean_squared_error(truth, predicted) ** 0.5}
    assert errors(predicted, truth) == pytest.approx(expected, rel=1e-6)
    assert np.isnan(list(errors(predicted[:0], truth[:0]).values())).all()


def test_the_tops_of_lists_equal_a_loop():
    scores, gain, offsets = lists(3)
    is_long = gain > 5
    ties = np.random.default_rng(3).permutation(len(scores))
    ours = list_metrics(scores, gain, is_long, ties=ties, offsets=offsets)
    for line in range(CASES):
        own = list(range(offsets[line], offsets[line + 1]))
        ranking = sorted(own, key=lambda at: (-scores[at], -ties[at]))
        for k in KS:
            top = ranking[:k]
            expected = {
                f"wtg@{k}": np.mean(gain[top]) if top else np.nan,
                f"long_view@{k}": np.mean(is_long[top]) if top else np.nan,
                f"dcg_wtg@{k}": sum(gain[at] / log2(r + 2) for r, at in enumerate(top)) if top else np.nan,
                f"dcg_wtg_ln@{k}": sum(gain[at] / log(r + 2) for r, at in enumerate(top)) if top else np.nan,
            }
            assert {name: ours[name][line] for name in expected} == pytest.approx(expected, nan_ok=True)


def test_deciles_of_lengths_keep_equal_ones_together():
    assert length_decile(np.arange(100, dtype=np.float32)).tolist() == [place // 10 for place in range(100)]
    assert len(set(length_decile(np.full(50, 7, np.float32)).tolist())) == 1
    assert length_decile(np.zeros(0, np.float32)).tolist() == []


def test_a_window_is_judged_by_watch_time_and_by_length():
    judged = window(seen=[[], [], []], relevant=[[0], [1], []], num_items=4)
    rows = ragged([[0, 1, 2], [1, 3], []])
    watched = Watched(
        rows,
        watch_s=np.array([9, 3, 1, 2, 8], np.float32),
        length_s=np.array([9, 30, 9, 30, 60], np.float32),
        gain=np.array([1.0, 0.0, -1.0, np.nan, 2.0]),
        target=np.array([4, 3, 2, 3, 1], np.float32),
    )
    scores = np.tile(np.array([4, 3, 2, 1], np.float32), (3, 1))
    whole, deciles = evaluate_watch_time(judged, scorer(scores), watched)
    assert whole.values["watch_time/xauc"].tolist()[:2] == [1, 0]
    assert np.isnan(whole.values["watch_time/xauc"][2])
    assert whole.values["watch_time/wtg@5"].tolist()[:2] == [0, 2]  # an unknown gain takes no place
    assert whole.values["watch_time/long_view@5"].tolist()[:2] == [1 / 3, 0]
    assert (whole.evaluated, whole.skipped) == (2, {"no impression of known watch time and length": 1})
    assert whole.pooled["watch_time/mae"] == 0
    assert sum(part.evaluated for part in deciles) == 4  # user 0 in two of them, user 1 in two
    shortest = deciles[length_decile(watched.length_s)[0]]
    assert shortest.values["watch_time/xauc"].tolist()[:1] == [1]


def test_a_gain_is_how_far_from_the_mean_of_items_as_long():
    watch = np.array([1, 3, 10, 30], np.float32)
    length = np.array([5, 5, 60, 60], np.float32)
    scale = fit_gain(watch, length)
    assert gains(scale, watch, length) == pytest.approx([-1, 1, -1, 1])
    assert gains(scale, np.array([4], np.float32), np.array([5], np.float32)) == pytest.approx([(4 - 2) / 1])


def test_a_length_that_is_always_watched_alike_or_once_has_no_gain():
    watch, length = np.array([2, 2, 7], np.float32), np.array([5, 5, 60], np.float32)
    assert np.isnan(gains(fit_gain(watch, length), watch, length)).all()
    nothing = np.zeros(0, np.float32)
    assert np.isnan(gains(fit_gain(nothing, nothing), watch, length)).all()


def test_a_long_view_is_all_of_a_short_item_or_18_s():
    watch, length = np.array([9.9, 10, 17.9, 18], np.float32), np.array([10, 10, 300, 300], np.float32)
    assert is_long_view(watch, length).tolist() == [False, True, False, True]
