"""Scatter plot of two measures of a few things, with the line through those that no other is better than in both.

Positions are percentages of the plot's width and height, so that a page draws it at any width (`macros.html.j2`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from twofold.render.difference_plot import nice_ticks
from twofold.render.numbers import format_significant


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
