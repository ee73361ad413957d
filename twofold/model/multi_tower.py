"""Several two-towers side by side, one for each value of a column of the items, asked as one."""

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float32, Int64
from torch import nn

from twofold.dataset.batches import TensorInputs
from twofold.dataset.dataset import Dataset, attribute_column
from twofold.errors import DataError
from twofold.model.encoder import ConcatEncoder
from twofold.model.summary import describe_model
from twofold.model.two_tower import TwoTower, build_two_tower
from twofold.model.weights import encode
from twofold.recipe import retriever as retriever_recipe
from twofold.tables import ModelPart

MOST_VALUES = 64
"""Vectors are as many times as wide; a column of more values is one for a feature."""


class MultiTower(nn.Module):
    """A two-tower a value, which share no parameter.

    An item's vector is what the item tower of its own value says, in that value's block of a wide vector of zeros; a
    user's is what all user towers say, one after another. Their product is the score of the item's own towers. For
    cosine, the user's is divided by the root of the number of values: its length is 1, and the order is the same.
    Scores of different towers have never been compared in training: how well they mix is for the report to say.
    """

    def __init__(self, towers: Sequence[TwoTower], values: tuple[str, ...], tower_of_item: Int64[np.ndarray, "items"]):
        """Both in the order of the `values`; `tower_of_item` says for each item row which tower is its own."""
        super().__init__()
        self.towers = nn.ModuleList(towers)
        self.values = values
        self.tower_of_item = tower_of_item
        self.score = towers[0].score

    @property
    def user(self) -> ConcatEncoder:
        """All user towers as one."""
        scale = 1 / math.sqrt(len(self.values)) if self.score == "cosine" else 1.0
        return ConcatEncoder((self.of(place).user for place in range(len(self.values))), scale=scale)

    def of(self, place: int) -> TwoTower:
        """The towers of one value."""
        towers = self.towers[place]
        assert isinstance(towers, TwoTower)
        return towers


Towers: TypeAlias = TwoTower | MultiTower


def towers_of(model: Towers, group: int) -> TwoTower:
    """Those that a batch of this group is for."""
    return model.of(group) if isinstance(model, MultiTower) else model


def encode_items(model: Towers, batches: Iterable[TensorInputs]) -> Float32[np.ndarray, "items wide"]:
    """The vectors of the whole catalogue, of which the batches are parts in order."""
    if isinstance(model, TwoTower):
        return encode(model.item, batches)
    parts, first = [], 0
    for inputs in batches:
        places = model.tower_of_item[first : first + len(next(iter(inputs.values())))]
        wide = np.zeros((len(places), len(model.values), model.of(0).item.dim), np.float32)
        for place in np.unique(places).tolist():
            own = np.flatnonzero(places == place)
            wide[own, place] = encode(model.of(place).item, [{name: given[own] for name, given in inputs.items()}])
        parts.append(wide.reshape(len(places), -1))
        first += len(places)
    return np.concatenate(parts)


def build_towers(recipe: retriever_recipe.TwoTower, dataset: Dataset) -> Towers:
    """The model that a recipe asks for; DataError where the column has no values to tell apart, or too many."""
    if recipe.separate_towers_by is None:
        return build_two_tower(recipe, dataset.features, dataset.vectors)
    given = attribute_column(dataset.folder, recipe.separate_towers_by)[1].combine_chunks()
    values, tower_of_item = places_of(given, num_known=dataset.items.num_known, column=recipe.separate_towers_by)
    return MultiTower(
        [build_two_tower(recipe, dataset.features, dataset.vectors) for _ in values], values, tower_of_item
    )


def describe_towers(model: Towers) -> list[ModelPart]:
    """Every block and layer of every tower."""
    if isinstance(model, TwoTower):
        return describe_model(model)
    return [
        ModelPart(f"{value}: {part.tower}", part.name, part.shape, part.parameters)
        for place, value in enumerate(model.values)
        for part in describe_model(model.of(place))
    ]


def describe_unbuilt_towers(recipe: retriever_recipe.TwoTower, dataset: Dataset) -> list[ModelPart]:
    """The same of the model that would be built, which takes no memory."""
    with torch.device("meta"):
        return describe_towers(build_towers(recipe, dataset))


def places_of(given: pa.Array, *, num_known: int, column: str) -> tuple[tuple[str, ...], Int64[np.ndarray, "items"]]:
    """The values that items of the training window, the first `num_known`, have; and the place of each item's among
    them. NULL is a value. One that no such item has takes the place of the value of the most.

    >>> places_of(pa.array(["hi", "ta", "ta", None, "bn"]), num_known=4, column="language")
    (('hi', 'ta', 'none'), array([0, 1, 1, 2, 1]))
    """
    encoded = given.dictionary_encode(null_encoding="encode")
    codes = np.asarray(encoded.indices).astype(np.int64)
    counts = np.bincount(codes[:num_known], minlength=len(encoded.dictionary))
    known = np.flatnonzero(counts)
    if not 2 <= len(known) <= MOST_VALUES:
        why = (
            "so that there is nothing to tell apart. Delete it"
            if len(known) < 2
            else f"each of which makes vectors wider, and {MOST_VALUES} is the most. Name a coarser column, or read "
            f"{column} by a feature of kind: category"
        )
        raise DataError(
            f"retriever.separate_towers_by: the items of the training window have {len(known):,} "
            f"value{'s' * (len(known) != 1)} of {column}, {why}."
        )
    tower_of_item = np.full(len(counts), np.argmax(counts[known]))
    tower_of_item[known] = np.arange(len(known))
    names = ("none" if value is None else str(value) for value in encoded.dictionary.take(known).to_pylist())
    return tuple(names), tower_of_item[codes]
