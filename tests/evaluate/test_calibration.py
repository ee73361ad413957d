"""Calibration by hand: errors of bins, chance, seconds of a quantile."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from twofold.evaluate.calibration import BINS, evaluate_head, evaluate_seconds, head_sentence, seconds_at

# Two lengths: up to 20 s (5 and 15 s were watched), and above (40 s, four times as often as 10 s).
TABLE = pa.table(
    {"bucket": [5_000, 5_000, 20_000, 20_000], "watch_ms": [5_000, 15_000, 10_000, 40_000],
     "quantile": [0.25, 0.75, 0.1, 0.6]}
)  # fmt: skip


def floats(*values):
    return np.array(values, np.float32)


def test_the_error_is_that_of_the_bins_weighed_by_their_impressions():
    """Thirty impressions in 15 bins of two: one bin is told .2 and comes to .5, another .9 and comes to 0."""
    said = np.repeat(np.linspace(0.1, 0.9, BINS), 2).astype(np.float32)
    said[:2], said[-2:] = 0.05, 0.95
    outcome = np.round(said, 3)  # shares that come true as they are told
    outcome[:2], outcome[-2:] = (0, 1), (0, 0)
    head = evaluate_head("it", said, outcome.astype(np.float32))
    assert head.ece == pytest.approx((abs(0.05 - 0.5) * 2 + abs(0.95 - 0) * 2) / 30, abs=1e-3)
    assert [each.impressions for each in head.bins] == [2] * BINS
    assert (head.bins[0].observed, head.bins[-1].observed) == (0.5, 0.0)
    assert head.predicted == pytest.approx(said.mean())
    assert head.ratio == pytest.approx(said.mean() / outcome.mean())
    assert head.auc is None  # shares are no condition


def test_chances_that_are_right_show_the_error_that_is_expected_of_them():
    draw = np.random.default_rng(0)
    found, expected = [], []
    for _ in range(30):
        said = draw.uniform(0.02, 0.6, 3000).astype(np.float32)
        head = evaluate_head("it", said, (draw.random(3000) < said).astype(np.float32))
        found.append(head.ece)
        expected.append(head.noise)
    assert np.mean(found) == pytest.approx(np.mean(expected), rel=0.05)


def test_only_known_outcomes_are_judged():
    said, outcome = floats(0.1, 0.2, 0.9, 0.8, 0.5), floats(0, 1, 1, np.nan, 0)
    head = evaluate_head("it", said, outcome)
    assert head.impressions == 4
    assert head.auc == pytest.approx(roc_auc_score([0, 1, 1, 0], [0.1, 0.2, 0.9, 0.5]))
    assert evaluate_head("it", said, floats(*[np.nan] * 5)) is None
    nothing = evaluate_head("it", said, floats(0, 0, 0, 0, 0))
    assert (nothing.ratio, nothing.auc) == (None, None)
    assert head_sentence(nothing).startswith(
        "it, on 5 impressions: mean prediction 0.500, mean outcome 0.000 (ratio –)"
    )


def test_a_quantile_is_a_watch_time_of_items_as_long():
    quantile = floats(0.25, 0.5, 0.75, 0.05, 0.6, 0.9, 0.35, 0.25)
    length = floats(10, 19.9, 5, 20, 100, 20, 30, 1)  # shorter than any: as the shortest
    expected = [5, 10, 15, 10, 40, 40, 10 + 30 * 0.25 / 0.5, 5]
    np.testing.assert_allclose(seconds_at(TABLE, quantile, length), expected, rtol=1e-6)


def test_seconds_are_held_against_what_the_length_alone_tells():
    said, length = floats(0.25, 0.75, 0.1, 0.6, 0.3), floats(10, 10, 30, 30, np.nan)
    watched = floats(5, 14, 10, 37, 20)
    found = evaluate_seconds(TABLE, said, watched, length)
    assert found.impressions == 4
    assert found.mae == pytest.approx((0 + 1 + 0 + 3) / 4)
    middle = [10, 10, 10 + 30 * 0.4 / 0.5, 10 + 30 * 0.4 / 0.5]
    assert found.mae_of_length == pytest.approx(np.abs(np.array(middle) - watched[:4]).mean())
    assert found.xauc == 1.0
    assert found.xauc_of_length == pytest.approx(
        (2 * 0.5 + 3) / 6
    )  # of 6 pairs 2 are ties, and 10 s before 14 is wrong
    assert evaluate_seconds(TABLE, said[4:], watched[4:], length[4:]) is None
