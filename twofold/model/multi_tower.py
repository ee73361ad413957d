"""Separate two-tower models for each value of a column of the items, used as one model."""

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
"""Maximum number of values, because vectors are as many times as wide; a column with more should be a feature."""


class MultiTower(nn.Module):
    """One two-tower model per value; the models share no parameter.

    An item's vector is the output of its own value's item tower, placed in that value's block of a longer vector of
    zeros; a user's vector is the concatenation of all user towers' outputs. Their product is the score of the item's
    own towers. For cosine, the user's vector is divided by the root of the number of values: its length is then 1, and
    the order of the items is the same. Training never compares scores of different towers; the report shows how well
    they mix.
    """

    def __init__(self, towers: Sequence[TwoTower], values: tuple[str, ...], tower_of_item: Int64[np.ndarray, "items"]):
        """Takes one model per value, in the order of `values`, and the index of the model of each item row."""
        super().__init__()
        self.towers = nn.ModuleList(towers)
        self.values = values
        self.tower_of_item = tower_of_item
        self.score = towers[0].score

    @property
    def user(self) -> ConcatEncoder:
        """All user towers as one encoder."""
        scale = 1 / math.sqrt(len(self.values)) if self.score == "cosine" else 1.0
        return ConcatEncoder((self.tower(index).user for index in range(len(self.values))), scale=scale)

    def tower(self, index: int) -> TwoTower:
        """Returns the model of one value."""
        towers = self.towers[index]
        assert isinstance(towers, TwoTower)
        return towers


Towers: TypeAlias = TwoTower | MultiTower


def towers_of(model: Towers, group: int) -> TwoTower:
    """Returns the two-tower model that is trained on batches of this group."""
    return model.tower(group) if isinstance(model, MultiTower) else model


def encode_items(model: Towers, batches: Iterable[TensorInputs]) -> Float32[np.ndarray, "items dim"]:
    """Encodes the whole catalogue, whose items the batches contain in order."""
    if isinstance(model, TwoTower):
        return encode(model.item, batches)
    parts, first = [], 0
    for inputs in batches:
        towers = model.tower_of_item[first : first + len(next(iter(inputs.values())))]
        vectors = np.zeros((len(towers), len(model.values), model.tower(0).item.dim), np.float32)
        for index in np.unique(towers).tolist():
            own = np.flatnonzero(towers == index)
            own_inputs = {name: values[own] for name, values in inputs.items()}
            vectors[own, index] = encode(model.tower(index).item, [own_inputs])
        parts.append(vectors.reshape(len(towers), -1))
        first += len(towers)
    return np.concatenate(parts)


def build_towers(recipe: retriever_recipe.TwoTower, dataset: Dataset) -> Towers:
    """Builds the model of a recipe; DataError if the column has fewer than two values, or too many."""
    if recipe.separate_towers_by is None:
        return build_two_tower(recipe, dataset.features, dataset.vectors)
    column = attribute_column(dataset.folder, recipe.separate_towers_by)[1].combine_chunks()
    values, tower_of_item = assign_towers(column, num_known=dataset.items.num_known, column=recipe.separate_towers_by)
    return MultiTower(
        [build_two_tower(recipe, dataset.features, dataset.vectors) for _ in values], values, tower_of_item
    )


def describe_towers(model: Towers) -> list[ModelPart]:
    """Returns every block and layer of every tower."""
    if isinstance(model, TwoTower):
        return describe_model(model)
    return [
        ModelPart(f"{value}: {part.tower}", part.name, part.shape, part.parameters)
        for index, value in enumerate(model.values)
        for part in describe_model(model.tower(index))
    ]


def describe_unbuilt_towers(recipe: retriever_recipe.TwoTower, dataset: Dataset) -> list[ModelPart]:
    """Returns the blocks and layers of the model of a recipe, without allocating it."""
    with torch.device("meta"):
        return describe_towers(build_towers(recipe, dataset))


def assign_towers(
    item_values: pa.Array, *, num_known: int, column: str
) -> tuple[tuple[str, ...], Int64[np.ndarray, "items"]]:
    """Returns the values of the training window's items (the first `num_known`), and the index of each item's value.

    NULL is a value. A value that no such item has gets the index of the most frequent value.

    >>> assign_towers(pa.array(["hi", "ta", "ta", None, "bn"]), num_known=4, column="language")
    (('hi', 'ta', 'none'), array([0, 1, 1, 2, 1]))
    """
    encoded = item_values.dictionary_encode(null_encoding="encode")
    codes = np.asarray(encoded.indices).astype(np.int64)
    counts = np.bincount(codes[:num_known], minlength=len(encoded.dictionary))
    known = np.flatnonzero(counts)
    if not 2 <= len(known) <= MOST_VALUES:
        reason = (
            "so separate towers would not differ. Delete it"
            if len(known) < 2
            else f"and each makes the vectors longer; {MOST_VALUES} is the maximum. Name a coarser column, or read "
            f"{column} by a feature of kind: category"
        )
        raise DataError(
            f"retriever.separate_towers_by: the items of the training window have {len(known):,} "
            f"value{'s' * (len(known) != 1)} of {column}, {reason}."
        )
    tower_of_item = np.full(len(counts), np.argmax(counts[known]))
    tower_of_item[known] = np.arange(len(known))
    names = ("none" if value is None else str(value) for value in encoded.dictionary.take(known).to_pylist())
    return tuple(names), tower_of_item[codes]
