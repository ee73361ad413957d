"""Curves of the training log with axes: coordinates for `training.html.j2`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from twofold.render.numbers import format_significant
from twofold.render.plots import nice_ticks

WIDTH: Final = 300.0
HEIGHT: Final = 110.0
_AXES: Final = ("step", "epoch")
_NOT_DRAWN: Final = (*_AXES, "seconds", "examples", "examples_per_s")


@dataclass(frozen=True)
class Curve:
    """One column of the training log: points of a polyline, ticks of both axes as (position, text), and its ends."""

    name: str
    axis: str
    points: tuple[tuple[float, float], ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    first: float
    last: float
    low: float
    high: float


def training_curves(folder: Path) -> tuple[Curve, ...]:
    """Reads the curves of a train/ folder: over steps where steps were logged, over epochs for the rest."""
    curves: dict[str, Curve] = {}
    for name in ("training_steps", "training_log"):
        log = folder / f"{name}.parquet"
        if log.is_file():
            curves = {curve.name: curve for curve in curves_of(pq.read_table(log))} | curves
    return tuple(curves.values())


def curves_of(log: pa.Table) -> tuple[Curve, ...]:
    """Returns a curve for every column of numbers, over steps or epochs, without the rows that have no value."""
    axis = next((name for name in _AXES if name in log.column_names), None)
    if axis is None:
        return ()
    curves = []
    for name in log.column_names:
        is_number = pa.types.is_floating(log[name].type) or pa.types.is_integer(log[name].type)
        pairs = zip(log[axis].to_pylist(), log[name].to_pylist(), strict=True) if is_number else ()
        first = axis == "epoch"  # epochs are counted from 1, as the lines of progress count
        known = [(float(x) + first, float(y)) for x, y in pairs if x is not None and y is not None and y == y]
        if name not in _NOT_DRAWN and known:
            curves.append(_curve(name, axis, known))
    return tuple(curves)


def _curve(name: str, axis: str, known: Sequence[tuple[float, float]]) -> Curve:
    xs, ys = [x for x, _ in known], [y for _, y in known]
    y_axis = nice_ticks(min(ys), max(ys), most=4)
    x_range, y_range = (max(xs) - min(xs)) or 1.0, y_axis[-1] - y_axis[0]

    def across(x: float) -> float:
        return round(WIDTH * (x - min(xs)) / x_range, 1)

    def down(y: float) -> float:
        return round(HEIGHT * (1 - (y - y_axis[0]) / y_range), 1)

    return Curve(
        name=name,
        axis=axis,
        points=tuple((across(x), down(y)) for x, y in known),
        x_ticks=tuple((across(x), f"{x:,.0f}") for x in dict.fromkeys((xs[0], xs[len(xs) // 2], xs[-1]))),
        y_ticks=tuple((down(y), format_significant(y)) for y in y_axis),
        first=ys[0],
        last=ys[-1],
        low=min(ys),
        high=max(ys),
    )
