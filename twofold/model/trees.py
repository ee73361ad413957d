"""The ranker's rival: boosted trees over columns of numbers and categories, by the library LightGBM, without torch.

A line of the matrix is a pair: the user's columns, the item's, the retriever's score, and the place in its order.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Int64

from twofold.dataset.dataset import Dataset
from twofold.dataset.tower_inputs import Inputs, item_inputs, queries_at, user_inputs
from twofold.recipe.features import (
    CategoryFeature,
    ClusterFeature,
    Features,
    ItemFeature,
    ProfileFeature,
    TimeFeature,
    UserFeature,
    feature_name,
)
from twofold.recipe.ranker import LambdaMart

FILE: Final = "trees.txt"


@dataclass(frozen=True)
class Trees:
    """What orders the `top` best items of the retriever: higher is better, within a list."""

    booster: Any  # lightgbm.Booster
    columns: tuple[str, ...]
    top: int
    used: int
    """How many of its trees are summed."""

    def scores(
        self,
        users: Float32[np.ndarray, "queries _"],
        items: Float32[np.ndarray, "queries length _"],
        score: Float32[np.ndarray, "queries length"],
        places: Int64[np.ndarray, "queries length"],
    ) -> Float32[np.ndarray, "queries length"]:
        """Of each query's items, from the columns of both sides and what the retriever says; places count from 0."""
        lines = pair_columns(users, items, score, places)
        found = self.booster.predict(lines, num_iteration=self.used) if len(lines) else np.empty(0)
        return found.astype(np.float32).reshape(places.shape)

    def cut(self, used: int) -> "Trees":
        """The first so many."""
        return replace(self, used=used)


def load_trees(asked: LambdaMart, features: Features, folder: Path) -> Trees:
    """What a folder holds; `features` are those that the trees were grown on."""
    from lightgbm import Booster

    booster = Booster(model_file=folder / FILE)
    return Trees(booster, column_names(features), asked.candidates.num_candidates, booster.num_trees())


def save_trees(trees: Trees, folder: Path) -> None:
    """Writes those that are used, as LightGBM's text."""
    trees.booster.save_model(folder / FILE, num_iteration=trees.used)


# --- the matrix -------------------------------------------------------------------------------------------------------


def column_names(features: Features) -> tuple[str, ...]:
    """Of the matrix, from left to right."""
    return tuple(name for name, _ in _columns(features))


def category_columns(features: Features) -> list[int]:
    """Places of the columns whose numbers are names: values of a vocabulary, hours, weekdays; 0 is none."""
    return [place for place, (_, is_category) in enumerate(_columns(features)) if is_category]


def user_columns(
    dataset: Dataset, user_rows: Int64[np.ndarray, "queries"], at: Int64[np.ndarray, "queries"]
) -> Float32[np.ndarray, "queries _"]:
    """Of users who ask at these moments."""
    state = dataset.features
    queries = queries_at(state, dataset.positives, dataset.negatives, user_rows=user_rows, at=at)
    inputs = user_inputs(state, dataset.user_arrays, queries)
    return _side(inputs, state.features.user, lines=len(user_rows))


def item_columns(
    dataset: Dataset, item_rows: Int64[np.ndarray, "lines"], at: Int64[np.ndarray, "lines"]
) -> Float32[np.ndarray, "lines _"]:
    """Of items at these moments."""
    state = dataset.features
    inputs = item_inputs(state, dataset.item_arrays, item_rows=item_rows, at=at)
    return _side(inputs, state.features.item, lines=len(item_rows))


def pair_columns(
    users: Float32[np.ndarray, "queries _"],
    items: Float32[np.ndarray, "queries length _"],
    score: Float32[np.ndarray, "queries length"],
    places: Int64[np.ndarray, "queries length"],
) -> Float32[np.ndarray, "pairs columns"]:
    """The matrix: a line a pair, query by query."""
    queries, length = places.shape
    asking = np.broadcast_to(users[:, None], (queries, length, users.shape[1]))
    told = (asking, items, score[:, :, None], places[:, :, None])
    columns = sum(part.shape[2] for part in told)
    return np.concatenate(told, axis=2, dtype=np.float32, casting="same_kind").reshape(queries * length, columns)


def _columns(features: Features) -> Iterator[tuple[str, bool]]:
    """Names, and whether each is a category."""
    for tower, side in (("user", features.user), ("item", features.item)):
        for feature in side:
            name = f"{tower}.{feature_name(feature)}"
            match feature:
                case ClusterFeature(num_clusters=width) | ProfileFeature(length=width):
                    yield from ((f"{name}.{number}", False) for number in range(width))
                case _:
                    yield name, isinstance(feature, CategoryFeature | TimeFeature)
    yield from (("score", False), ("place", False))


def _side(inputs: Inputs, side: Iterable[UserFeature | ItemFeature], *, lines: int) -> Float32[np.ndarray, "lines _"]:
    own = [inputs[feature_name(feature)].reshape(lines, -1) for feature in side]
    return np.hstack([np.empty((lines, 0), np.float32), *own], dtype=np.float32, casting="same_kind")
