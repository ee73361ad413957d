"""Pictures of docs/studies.md, from the runs of the studies: maps of item vectors, colored by language."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from twofold.dataset.dataset import Dataset, item_attributes, load_dataset
from twofold.explain.folding import Grouping, find_neighbors, probe_folding
from twofold.explain.map import MapUsers, draw_map
from twofold.explain.run_probes import groupings_of
from twofold.index.item_index import load_index
from twofold.model.multi_tower import Towers
from twofold.model.retriever import build_towers, item_vectors
from twofold.pipeline.job import reopen
from twofold.ragged import Ragged
from twofold.recipe.retriever import TwoTower
from twofold.render.numbers import format_decimal
from twofold.run_folder import atomic_file, open_stage
from twofold.train.loop import fit

COLORS: Final = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#b279a2", "#9d755d")
MAPPED: Final = {
    "base": "one model, in-batch negatives",
    "b12": "one model, log Q, mixed negatives",
    "b02": "a model for each language",
}
"""Runs of study B on its picture."""
ANIMATED: Final = {
    "e01": "positives alone",
    "base": "items shown and not liked",
    "e02": "random",
    "e03": "in-batch and random",
    "e04": "in-batch, random and hard",
}
"""Runs of study E on its picture, and their negatives."""
_SIDE: Final = 250  # of a panel, in units of the picture
_HEAD: Final = 44
_GAP: Final = 10
_COLUMNS: Final = 3
_SECONDS: Final = 1.0  # of a frame
_ITEMS: Final = 1200  # of a map of study B
_EACH: Final = 150  # items of either language in a frame of study E


def draw_gap(runs: Path, picture: Path) -> None:
    """Draws t-SNE maps of the same items with positives, as the runs of `MAPPED` place them."""
    panels = []
    for number, (name, title) in enumerate(MAPPED.items()):
        folder = runs / f"{name}-seed0"
        dataset = load_dataset(folder / "dataset")
        language = _languages(dataset, folder)
        liked = np.unique(dataset.examples["train"].item_rows[dataset.examples["train"].label])
        items = np.sort(np.random.default_rng(0).permutation(liked)[:_ITEMS])
        vectors = np.ascontiguousarray(load_index(open_stage(folder, "index").folder).vectors[items], np.float32)
        nobody = MapUsers(
            pa.array([], pa.int64()), np.zeros((0, 1), np.float32), np.zeros((len(vectors), 1), np.float32)
        )
        drawn = draw_map(vectors, pa.table({"item_id": items}), users=nobody)
        kept = np.asarray([int(each) for each in drawn.ids])
        xy = drawn.xy / np.abs(drawn.xy).max()
        panels.append(_panel(number, title, [_points(xy, language.group[kept])]))
    _write(picture, panels)


def draw_practice(runs: Path, picture: Path) -> dict[str, list[float | None]]:
    """Draws the items of two languages after each epoch; returns the folding of all languages by run and epoch."""
    panels, folding = [], {}
    for number, (name, title) in enumerate(ANIMATED.items()):
        folder = runs / f"{name}-seed0"
        dataset = load_dataset(folder / "dataset")
        language, likes = _languages(dataset, folder), dataset.positives
        liked = Ragged(np.asarray(likes.item_rows, np.int64), np.asarray(likes.offsets))
        frames = _vectors_by_epoch(folder, dataset)
        folding[name] = [probe_folding(find_neighbors(each), language, liked).value for each in frames]
        chosen = _items_of_two(language)
        own, axes = language.group[chosen], _axes(frames[-1][chosen], language.group[chosen])
        points = [_points((_unit(each[chosen]) - axes[2]) @ axes[:2].T, own) for each in frames]
        marks = [f"epoch {epoch + 1}, folding {format_decimal(value)}" for epoch, value in enumerate(folding[name])]
        panels.append(_panel(number, title, points, marks))
    _write(picture, panels)
    return folding


def _languages(dataset: Dataset, folder: Path) -> Grouping:
    (found,) = [each for each in groupings_of(dataset, item_attributes(folder / "dataset"), ["language"])
                if each.name == "language"]  # fmt: skip
    return found


def _vectors_by_epoch(folder: Path, dataset: Dataset) -> Sequence[np.ndarray]:
    """Returns the item vectors after each epoch: the training is repeated, with the same seed, and they are kept."""
    path, recipe = folder / "epochs.npy", reopen(folder).recipe
    if not path.exists():
        assert isinstance(recipe.retriever, TwoTower), "an animated run is of two towers"
        frames: list[np.ndarray] = []

        def keep(model: Towers) -> float:
            frames.append(item_vectors(model, dataset, 0))
            return float(len(frames))

        out = folder / "epochs.partial"
        out.mkdir(exist_ok=True)
        fit(partial(build_towers, recipe.retriever, dataset), dataset, recipe.train, validate=keep, out=out)
        with atomic_file(path) as file, file.open("wb") as opened:
            np.save(opened, np.stack(frames))
    return list(np.load(path))


def _items_of_two(language: Grouping) -> np.ndarray:
    """Returns as many items of each of the two languages that have most."""
    largest = np.argsort(-np.bincount(language.group[language.group >= 0]), kind="stable")[:2]
    rng = np.random.default_rng(0)
    parts = [rng.permutation(np.flatnonzero(language.group == each))[:_EACH] for each in largest]
    return np.concatenate(parts)


def _axes(vectors: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Returns the axes of a map: the direction between the means of two groups, the widest other one, and the mean."""
    unit = _unit(vectors)
    first, second = (unit[group == each].mean(axis=0) for each in np.unique(group))
    across = (first - second) / max(float(np.linalg.norm(first - second)), 1e-12)
    rest = unit - unit.mean(axis=0)
    rest -= (rest @ across)[:, None] * across
    return np.stack([across, np.linalg.eigh(rest.T @ rest).eigenvectors[:, -1], unit.mean(axis=0)])


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


# --- SVG --------------------------------------------------------------------------------------------------------------


def _points(xy: np.ndarray, group: np.ndarray) -> str:
    """Returns a path of dots for each group; coordinates from -1 to 1 fill a panel."""
    at = np.clip(np.rint((xy * [1, -1] + 1) / 2 * (_SIDE - 16) + 8), 0, _SIDE).astype(int)
    return "".join(
        f'<path stroke="{COLORS[number % len(COLORS)]}" d="{"".join(f"M{x} {y}h0" for x, y in at[group == each])}"/>'
        for number, each in enumerate(np.unique(group))
    )


def _panel(number: int, title: str, frames: Sequence[str], marks: Sequence[str] = ()) -> str:
    """Returns one map; several frames follow each other, and the last one is what a still picture shows."""
    row, column = divmod(number, _COLUMNS)
    x, y = column * (_SIDE + _GAP) + _GAP // 2, row * (_HEAD + _SIDE + _GAP)
    parts = [f'<g transform="translate({x} {y})"><text x="4" y="16">{title}</text>']
    for each, frame in enumerate(frames):
        mark = f'<text x="4" y="34" class="note">{marks[each]}</text>' if marks else ""
        shown = ";".join("1" if each == other else "0" for other in range(len(frames)))
        moves = (
            f'<animate attributeName="opacity" dur="{len(frames) * _SECONDS:g}s" repeatCount="indefinite" '
            f'calcMode="discrete" values="{shown}"/>'
        )
        is_last = each == len(frames) - 1
        parts.append(
            f'<g opacity="{int(is_last)}">{moves if len(frames) > 1 else ""}{mark}'
            f'<g transform="translate(0 {_HEAD})" class="dots">{frame}</g></g>'
        )
    parts.append(f'<rect y="{_HEAD}" width="{_SIDE}" height="{_SIDE}" fill="none" stroke="#ccc"/></g>')
    return "".join(parts)


def _write(picture: Path, panels: Sequence[str]) -> None:
    width = min(len(panels), _COLUMNS) * (_SIDE + _GAP)
    height = -(-len(panels) // _COLUMNS) * (_HEAD + _SIDE + _GAP)
    style = "text{font:13px sans-serif}.note{fill:#555;font-size:12px}.dots path{stroke-width:4;stroke-linecap:round}"
    with atomic_file(picture) as partial_file:
        partial_file.write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"><style>{style}</style>'
            f'<rect width="{width}" height="{height}" fill="#fff"/>{"".join(panels)}</svg>\n',
            encoding="utf-8",
        )
