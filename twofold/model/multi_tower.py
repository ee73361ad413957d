"""Separate two-tower models for each value of a column of the items, used as one model."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from twofold.dataset.batches import TensorInputs
from twofold.dataset.dataset import Dataset, attribute_column
from twofold.errors import DataError
from twofold.model.encoder import Block, Encoder
from twofold.model.summary import describe_model
from twofold.model.two_tower import TwoTower, build_two_tower
from twofold.model.weights import encode
from twofold.recipe import retriever as retriever_recipe
from twofold.tables import ModelPart

ROUTED = 0.5**0.5
"""Factor of the outputs of routed towers, and of the mark of the tower that follows them: the score of an item of the
user's own tower is half the cosine plus one half, and that of any other item 0."""
MOST_VALUES = 64
"""Maximum number of values, because vectors are as many times as wide; a column with more should be a feature."""


@dataclass(frozen=True)
class Route:
    """A category of the user tower, and the tower that each row of its table is routed to, -1 for none."""

    feature: str
    tower_of_row: Int64[np.ndarray, "_"]


class ConcatEncoder(nn.Module):
    """Concatenated outputs of several encoders for the same examples, scaled by one factor."""

    def __init__(self, encoders: Iterable[Encoder], *, scale: float = 1.0) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.scale = scale

    @property
    def parts(self) -> tuple[Encoder, ...]:
        """The encoders."""
        return tuple(each for each in self.encoders if isinstance(each, Encoder))

    @property
    def feature_blocks(self) -> tuple[Block, ...]:
        """The distinct blocks of all encoders."""
        return tuple({block.name: block for part in self.parts for block in part.feature_blocks}.values())

    @property
    def dim(self) -> int:
        """Output width of all encoders together."""
        return sum(part.dim for part in self.parts)

    def forward(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "batch dim"]:
        """Encodes `inputs` with every encoder."""
        return torch.cat([encoder(inputs) for encoder in self.encoders], dim=1) * self.scale


class RoutedEncoder(ConcatEncoder):
    """Outputs of the user's own tower, zeros for those of others, and the mark of the tower: a vector of length 1. A
    user of no tower has all outputs and all marks, each divided by the root of their number.
    """

    def __init__(self, encoders: Iterable[Encoder], route: Route) -> None:
        super().__init__(encoders)
        own, num = route.tower_of_row, len(self.encoders)
        marks = np.where((own < 0)[:, None], num**-0.5, own[:, None] == np.arange(num))
        self.feature = route.feature
        self.register_buffer("marks", torch.from_numpy(marks.astype(np.float32)), persistent=False)

    @property
    def dim(self) -> int:
        """Output width: that of all encoders, and the marks."""
        return super().dim + len(self.encoders)

    def forward(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "batch dim"]:
        """Encodes `inputs` with every encoder, and marks the user's own."""
        assert isinstance(self.marks, Tensor)
        marks = self.marks[inputs[self.feature].long()]
        parts = [encoder(inputs) * marks[:, [number]] for number, encoder in enumerate(self.encoders)]
        return torch.cat([*parts, marks], dim=1) * ROUTED


class MultiTower(nn.Module):
    """One two-tower model per value; the models share no parameter.

    An item's vector is the output of its own value's item tower, placed in that value's block of a longer vector of
    zeros; a user's vector is the concatenation of all user towers' outputs. Their product is the score of the item's
    own towers. For cosine, the user's vector is divided by the root of the number of values: its length is then 1, and
    the order of the items is the same. Training never compares scores of different towers; the report shows how well
    they mix. With a route, users are recommended items of their own tower alone, see `RoutedEncoder`.
    """

    def __init__(
        self,
        towers: Sequence[TwoTower],
        values: tuple[str, ...],
        tower_of_item: Int64[np.ndarray, "items"],
        route: Route | None = None,
    ) -> None:
        """Takes one model per value, in the order of `values`, and the index of the model of each item row."""
        super().__init__()
        self.towers = nn.ModuleList(towers)
        self.values = values
        self.tower_of_item = tower_of_item
        self.route = route
        self.score = towers[0].score

    @property
    def scale(self) -> float:
        """Factor by which the score of a tower alone is multiplied in the score of all towers together."""
        if self.route is not None:
            return ROUTED**2
        return 1 / math.sqrt(len(self.values)) if self.score == "cosine" else 1.0

    @property
    def user(self) -> ConcatEncoder:
        """All user towers as one encoder."""
        encoders = (self.tower(index).user for index in range(len(self.values)))
        if self.route is not None:
            return RoutedEncoder(encoders, self.route)
        return ConcatEncoder(encoders, scale=self.scale)

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
        flat = vectors.reshape(len(towers), -1)
        if model.route is not None:
            marks = (towers[:, None] == np.arange(len(model.values))).astype(np.float32)
            flat = np.concatenate([flat, marks], axis=1) * np.float32(ROUTED)
        parts.append(flat)
        first += len(towers)
    return np.concatenate(parts)


def build_towers(recipe: retriever_recipe.TwoTower, dataset: Dataset) -> Towers:
    """Builds the model of a recipe; DataError if the column has fewer than two values, or too many."""
    if recipe.separate_towers_by is None:
        return build_two_tower(recipe, dataset.features, dataset.vectors)
    column = attribute_column(dataset.folder, recipe.separate_towers_by)[1].combine_chunks()
    values, tower_of_item = assign_towers(column, num_known=dataset.items.num_known, column=recipe.separate_towers_by)
    route = None
    if recipe.route_users:
        known = dataset.features.vocabularies[f"user.{recipe.separate_towers_by}"].ids.to_pylist()
        number = {value: index for index, value in enumerate(values)}
        own = [-1, *(number.get(str(value), -1) for value in known)]
        route = Route(recipe.separate_towers_by, np.array(own, np.int64))
    towers = [build_two_tower(recipe, dataset.features, dataset.vectors) for _ in values]
    return MultiTower(towers, values, tower_of_item, route)


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
