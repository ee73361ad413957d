"""Plots of a page: differences with their intervals around a line at zero, and things by two measures.

Positions are percentages of the plot's width and height, so that a page draws it at any width (`macros.html.j2`).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from twofold.render.numbers import format_interval, format_signed, format_significant

# --- axes -------------------------------------------------------------------------------------------------------------


def nice_ticks(low: float, high: float, *, most: int = 6) -> list[float]:
    """Returns at most `most` round values at equal distances; the first is at most `low`, the last at least `high`.

    >>> nice_ticks(-0.013, 0.041)
    [-0.02, 0.0, 0.02, 0.04, 0.06]
    >>> nice_ticks(5.154, 8.502), nice_ticks(0.0, 0.002, most=3), nice_ticks(2.0, 2.0)
    ([5.0, 6.0, 7.0, 8.0, 9.0], [0.0, 0.001, 0.002], [2.0, 2.1])
    """
    span = high - low or max(abs(high), 1.0)
    power = math.floor(math.log10(span)) - 1
    for exponent in range(power, power + 4):
        for digit in (1.0, 2.0, 5.0):
            step = digit * 10.0**exponent
            first = math.floor(low / step + 1e-9)
            last = max(math.ceil(high / step - 1e-9), first + 1)
            if last - first + 1 <= most:
                return [round(number * step, max(0, -exponent)) for number in range(first, last + 1)]
    raise AssertionError(f"no step divides {low} to {high}")


# --- differences ------------------------------------------------------------------------------------------------------

Outcome = Literal["better", "worse", ""]
"""The side of zero on which an interval lies; empty if it includes zero."""


@dataclass(frozen=True)
class Difference:
    """A named difference with its interval."""

    name: str
    value: float
    low: float
    high: float
    note: str = ""
    """Second text of the row, such as its number of users."""
    is_significant: bool = True
    """False if a test over several differences says so, although the interval excludes zero."""

    @property
    def outcome(self) -> Outcome:
        """Side of zero on which the interval lies; empty if the difference is not significant."""
        if not self.is_significant:
            return ""
        return "better" if self.low > 0 else "worse" if self.high < 0 else ""


@dataclass(frozen=True)
class PlotRow:
    """A difference with the positions of its dot and of the ends of its interval."""

    difference: Difference
    dot: float
    low: float
    high: float

    @property
    def label(self) -> str:
        """Value and interval in words."""
        each = self.difference
        return f"{format_signed(each.value)} {format_interval(each.low, each.high)}"


@dataclass(frozen=True)
class DifferencePlot:
    """Rows of a plot, the position of zero, and ticks as (position, text)."""

    rows: tuple[PlotRow, ...]
    zero: float
    ticks: tuple[tuple[float, str], ...]


def difference_plot(
    differences: Iterable[Difference], *, is_sorted: bool = True, axis: Sequence[float] | None = None
) -> DifferencePlot | None:
    """Returns the plot of these differences, by default the largest first; `None` means that there are none.

    `axis` are the ticks of an axis shared by several plots, see `axis_of`.
    """
    rows = list(differences)
    if not rows:
        return None
    if is_sorted:
        rows.sort(key=lambda each: -each.value)
    ticks = list(axis or axis_of(rows))

    def position(value: float) -> float:
        return round(100 * (value - ticks[0]) / (ticks[-1] - ticks[0]), 2)

    return DifferencePlot(
        rows=tuple(PlotRow(each, position(each.value), position(each.low), position(each.high)) for each in rows),
        zero=position(0.0),
        ticks=tuple((position(tick), _tick_text(tick)) for tick in ticks),
    )


def _tick_text(tick: float) -> str:
    return f"{'+' if tick > 0 else ''}{format_significant(tick)}"


def axis_of(differences: Iterable[Difference]) -> list[float]:
    """Returns the ticks of an axis that includes zero and every interval."""
    ends = [0.0, *(end for each in differences for end in (each.low, each.high))]
    return nice_ticks(min(ends), max(ends), most=4)  # the texts of more would touch each other


# --- two measures -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScatterPoint:
    """A thing by two measures."""

    name: str
    x: float
    y: float
    is_best: bool
    """Whether the line goes through it."""


@dataclass(frozen=True)
class PlacedPoint:
    """A point with its distances from the left and the top."""

    point: ScatterPoint
    left: float
    top: float


@dataclass(frozen=True)
class ScatterPlot:
    """Points in their order, the line from the left to the right, and ticks as (position, text)."""

    points: tuple[PlacedPoint, ...]
    line: tuple[tuple[float, float], ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


def scatter_plot(points: Sequence[ScatterPoint]) -> ScatterPlot:
    """Returns the plot of these points, of which there is at least one.

    >>> plot = scatter_plot([ScatterPoint("a", 0.0, 1.0, True), ScatterPoint("b", 1.0, 0.0, False)])
    >>> [(each.left, each.top) for each in plot.points], plot.line
    ([(0.0, 0.0), (100.0, 100.0)], ((0.0, 0.0),))
    """
    x_ticks, y_ticks = (
        nice_ticks(min(each), max(each), most=6) for each in zip(*((p.x, p.y) for p in points), strict=True)
    )

    def left(x: float) -> float:
        return round(100 * (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]), 2)

    def top(y: float) -> float:
        return round(100 * (y_ticks[-1] - y) / (y_ticks[-1] - y_ticks[0]), 2)

    placed = tuple(PlacedPoint(each, left(each.x), top(each.y)) for each in points)
    return ScatterPlot(
        placed,
        tuple(sorted((each.left, each.top) for each in placed if each.point.is_best)),
        tuple((left(tick), format_significant(tick)) for tick in x_ticks),
        tuple((top(tick), format_significant(tick)) for tick in y_ticks),
    )
