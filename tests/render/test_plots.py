"""Plots of differences: order, axis and positions."""

import pytest

from twofold.render.plots import Difference, axis_of, difference_plot, nice_ticks

BETTER = Difference("a", 0.02, 0.01, 0.04)
WORSE = Difference("b", -0.01, -0.02, -0.005)
SAME = Difference("c", 0.0, -1.0, 1.0)


def test_the_axis_holds_zero_and_every_interval():
    plot = difference_plot([WORSE, BETTER])
    assert plot.ticks == ((0.0, "−0.02"), (33.33, "0"), (66.67, "+0.02"), (100.0, "+0.04"))
    assert [row.difference.name for row in plot.rows] == ["a", "b"]  # the largest first
    assert plot.zero == 33.33
    better, worse = plot.rows
    assert (better.low, better.dot, better.high) == (50, 66.67, 100)
    assert (worse.low, worse.dot, worse.high) == (0, 16.67, 25)
    assert better.label == "+0.020 [0.010, 0.040]"


def test_an_outcome_is_the_side_of_zero():
    assert [each.outcome for each in (BETTER, WORSE, SAME)] == ["better", "worse", ""]
    only_better = difference_plot([BETTER])
    assert only_better.zero == 0


def test_plots_share_an_axis_and_keep_the_order_of_groups():
    axis = axis_of([BETTER, SAME])
    plot = difference_plot([WORSE, BETTER], is_sorted=False, axis=axis)
    assert [row.difference.name for row in plot.rows] == ["b", "a"]
    assert [text for _, text in plot.ticks] == ["−1", "0", "+1"]


def test_nothing_has_no_plot():
    assert difference_plot([]) is None


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 0.0), (-3e-9, 2e-9), (0.0, 1e6), (-0.3, 7.9), (5.5, 5.5), (-1e-3, -1e-4)]
)
@pytest.mark.parametrize("most", [3, 4, 6])
def test_ticks_enclose_every_range(low, high, most):
    ticks = nice_ticks(low, high, most=most)
    assert 2 <= len(ticks) <= most
    assert ticks[0] <= low + 1e-12
    assert ticks[-1] >= high - 1e-12
