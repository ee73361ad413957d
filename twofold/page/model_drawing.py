"""Drawing of the model: the towers side by side, the parts of each from its inputs to its last layer, and the score."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from twofold.tables import ModelPart

LAYERS: Final = ("linear", "layer norm", "batch norm")
_RANKER: Final = "ranker"


@dataclass(frozen=True)
class Tower:
    """A column of the drawing: the parts that read features, then the layers above them."""

    name: str
    inputs: tuple[ModelPart, ...]
    layers: tuple[ModelPart, ...]


@dataclass(frozen=True)
class Drawing:
    """One stage of the model: towers, the layers that join them, and the score that leaves them."""

    title: str
    towers: tuple[Tower, ...]
    joint: tuple[ModelPart, ...]
    score: str
    parameters: int


def drawings_of(parts: Sequence[ModelPart], *, retriever_score: str) -> tuple[Drawing, ...]:
    """Draws the retriever and, if it has parts, the ranker, whose towers are named `ranker, …` in the report."""
    of_ranker = [part for part in parts if part.tower.split(",")[0] == _RANKER]
    stages = (
        ("Retriever", [part for part in parts if part not in of_ranker], retriever_score),
        ("Ranker", of_ranker, "score of a user and a candidate"),
    )
    return tuple(_drawing(title, own, score) for title, own, score in stages if own)


def _drawing(title: str, parts: Sequence[ModelPart], score: str) -> Drawing:
    names = dict.fromkeys(part.tower for part in parts if part.tower != _RANKER)
    return Drawing(
        title=title,
        towers=tuple(_tower(name, [part for part in parts if part.tower == name]) for name in names),
        joint=tuple(part for part in parts if part.tower == _RANKER),
        score=score,
        parameters=sum(part.parameters for part in parts),
    )


def _tower(name: str, parts: Sequence[ModelPart]) -> Tower:
    layers = tuple(part for part in parts if part.name in LAYERS)
    return Tower(name.removeprefix(f"{_RANKER}, "), tuple(part for part in parts if part not in layers), layers)
