"""Charts of the card: coordinates of the training curves and of the boxes that draw the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from twofold.tables import Json

_CURVE: Final = (300.0, 110.0)
_LAYERS: Final = ("linear", "layer norm", "batch norm")
_TOWER: Final = 420.0
_BETWEEN: Final = 40.0
_BOX: Final = 30.0
_STEP: Final = 38.0
_AXES: Final = ("step", "epoch")
_NOT_DRAWN: Final = (*_AXES, "seconds", "examples")


@dataclass(frozen=True)
class Curve:
    """One column of the training log: points of a polyline, and the values at its ends."""

    name: str
    axis: str
    points: tuple[tuple[float, float], ...]
    first: tuple[float, float]
    last: tuple[float, float]
    low: float
    high: float


@dataclass(frozen=True)
class Box:
    """A part of the model: `kind` is block, layer or score."""

    x: float
    y: float
    width: float
    kind: str
    title: str
    shape: str
    parameters: int


@dataclass(frozen=True)
class Drawing:
    """Boxes of the model's parts, and arrows (x, from y, to y)."""

    boxes: tuple[Box, ...]
    arrows: tuple[tuple[float, float, float], ...]
    width: float
    height: float
    parameters: int


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
        known = [(float(x), float(y)) for x, y in pairs if x is not None and y is not None and y == y]
        if name not in _NOT_DRAWN and known:
            curves.append(_curve(name, axis, known))
    return tuple(curves)


def _curve(name: str, axis: str, known: Sequence[tuple[float, float]]) -> Curve:
    xs, ys = [x for x, _ in known], [y for _, y in known]
    (width, height), low, high = _CURVE, min(ys), max(ys)
    x_range, y_range = (max(xs) - min(xs)) or 1.0, (high - low) or 1.0
    points = tuple(
        (round(width * (x - min(xs)) / x_range, 1), round(height * (1 - (y - low) / y_range), 1)) for x, y in known
    )
    return Curve(name, axis, points, known[0], known[-1], low, high)


def drawing_of(parts: Sequence[Mapping[str, Json]], score: str) -> Drawing | None:
    """Draws two columns of boxes, user and item, that meet in the score; `None` means there are no parts.

    Each of `parts`, from the report, has tower, name, shape and parameters.
    """
    if not parts:
        return None
    boxes, arrows, bottoms = [], [], []
    for column, tower in enumerate(("user", "item")):
        x, y = column * (_TOWER + _BETWEEN), 28.0
        for part in parts:
            if part["tower"] != tower:
                continue
            is_layer = part["name"] in _LAYERS
            if is_layer:
                y += 12
                arrows.append((x + _TOWER / 2, y - 20, y))
            kind = "layer" if is_layer else "block"
            boxes.append(Box(x, y, _TOWER, kind, part["name"], part["shape"], part["parameters"]))
            y += _STEP
        bottoms.append((x + _TOWER / 2, y - _STEP + _BOX))
    level = max(y for _, y in bottoms) + 26
    arrows += [(x, y, level) for x, y in bottoms]
    width = 2 * _TOWER + _BETWEEN
    boxes.append(Box(0.0, level, width, "score", "score", score, 0))
    total = sum(part["parameters"] for part in parts)
    return Drawing(tuple(boxes), tuple(arrows), width, level + _BOX + 4, total)
