"""Plots of differences: between two runs by metric, and in groups of users and items."""

from collections.abc import Iterable
from itertools import groupby

from twofold.evaluate.compare import MetricComparison
from twofold.evaluate.results import SliceLine
from twofold.evaluate.significance import Estimate, is_significant
from twofold.render.numbers import in_title, plural
from twofold.render.plots import Difference, DifferencePlot, axis_of, difference_plot


def group_plots(lines: Iterable[SliceLine]) -> list[tuple[str, DifferencePlot]]:
    """Returns (slicing, plot of the differences in its groups), all on one axis.

    Groups of fewer than 100 users are left out, because they are not tested. A difference is significant if its p-value
    is, which is corrected for the number of groups.
    """
    known = [
        (
            line.by,
            difference_of(
                line.name, line.minus, plural(line.users, "user"), is_significant=is_significant(line.p_value)
            ),
        )
        for line in lines
        if not line.is_small and line.minus.low is not None
    ]
    axis = axis_of(each for _, each in known)
    plots = (
        (by, difference_plot([each for _, each in own], is_sorted=False, axis=axis))
        for by, own in groupby(known, key=lambda line: line[0])
    )
    return [(by, plot) for by, plot in plots if plot is not None]


def metric_plot(lines: Iterable[MetricComparison]) -> DifferencePlot | None:
    """Returns the plot of a run's differences from the base run, one row per metric, in their order."""
    known = (line for line in lines if line.minus.low is not None)
    return difference_plot(
        [difference_of(in_title(line.metric), line.minus, is_significant=line.is_significant) for line in known],
        is_sorted=False,
    )


def difference_of(name: str, minus: Estimate, note: str = "", *, is_significant: bool = True) -> Difference:
    """Returns an estimate that has an interval as a row of a plot."""
    value, low, high = minus.value, minus.low, minus.high
    assert value is not None, "an interval has a mean"
    assert low is not None, "an interval has two ends"
    assert high is not None, "an interval has two ends"
    return Difference(name, value, low, high, note, is_significant)
