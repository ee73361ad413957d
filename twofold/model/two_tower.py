"""Two-tower retriever: a user encoder, an item encoder and the score of their outputs."""

import math
from collections.abc import Mapping
from typing import Literal, assert_never

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from twofold.dataset.features import FeatureState, single_from
from twofold.model.encoder import Block, Encoder, Layers, Lookup, Number, Pool, Sequence
from twofold.recipe import retriever as retriever_recipe
from twofold.recipe.features import (
    AgeFeature,
    BagFeature,
    CategoryFeature,
    ClusterFeature,
    CounterFeature,
    HistoryFeature,
    IdFeature,
    ItemFeature,
    NumberFeature,
    PopularityFeature,
    ProfileFeature,
    SequenceFeature,
    TimeFeature,
    UserFeature,
    VectorFeature,
    feature_name,
)


class TwoTower(nn.Module):
    """A user encoder and an item encoder with outputs of equal width; neither reads the other's features.

    The score is the inner product (for cosine, of vectors of length 1) or the negative squared distance; losses divide
    the score by the temperature.
    """

    def __init__(self, user: Encoder, item: Encoder, *, score: retriever_recipe.Score) -> None:
        """Takes encoders of the same output width; for cosine, both return vectors of length 1."""
        super().__init__()
        self.user = user
        self.item = item
        self.score = score.kind
        self.fixed_temperature = score.temperature if isinstance(score, retriever_recipe.Cosine) else 1.0
        self.log_temperature: nn.Parameter | None = None
        if isinstance(score, retriever_recipe.Cosine) and score.learn_temperature:
            self.log_temperature = nn.Parameter(torch.tensor(math.log(score.temperature)))

    @property
    def temperature(self) -> float | Float[Tensor, ""]:
        """Divides the score in the loss; a tensor with a gradient if it is learned."""
        if self.log_temperature is None:
            return self.fixed_temperature
        return self.log_temperature.exp().clamp(min=1 / retriever_recipe.LARGEST_SCALE)

    @torch.no_grad()
    def limit_temperature(self) -> None:
        """Raises a learned temperature below its limit to the limit: further below it, it would have no gradient."""
        if self.log_temperature is not None:
            self.log_temperature.clamp_(min=-math.log(retriever_recipe.LARGEST_SCALE))

    @torch.no_grad()
    def temperature_value(self) -> float:
        """Returns the temperature as a number."""
        return float(self.temperature)

    def as_products(
        self, users: Float[Tensor, "users dim"], items: Float[Tensor, "items dim"]
    ) -> tuple[Float[Tensor, "users _"], Float[Tensor, "items _"]]:
        """Returns vectors whose inner products are the scores: the same ones, unless the score is a distance.

        -‖u - v‖² = (u, ‖u‖², 1) · (2v, -1, -‖v‖²), so that every loss is written once, for inner products.
        """
        if self.score != "negative_distance":
            return users, items
        one_user, one_item = torch.ones_like(users[:, :1]), torch.ones_like(items[:, :1])
        return (
            torch.cat([users, users.square().sum(dim=1, keepdim=True), one_user], dim=1),
            torch.cat([2 * items, -one_item, -items.square().sum(dim=1, keepdim=True)], dim=1),
        )

    def own_logits(
        self, users: Float[Tensor, "batch dim"], items: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch"]:
        """Returns the score of each user with the item of the same row, divided by the temperature."""
        queries, factors = self.as_products(users, items)
        return (queries * factors).sum(dim=1) / self.temperature


def build_two_tower(
    recipe: retriever_recipe.TwoTower, state: FeatureState, vectors: Mapping[str, Float32[np.ndarray, "items _"]]
) -> TwoTower:
    """Builds the model of a recipe, with table sizes from the fitted features; `vectors` has one row per item row."""
    dims = {name: int(values.shape[1]) for name, values in vectors.items()}
    user = tuple(_block(feature, state, "user", dim=recipe.dim, dims=dims) for feature in state.features.user)
    item = tuple(_block(feature, state, "item", dim=recipe.dim, dims=dims) for feature in state.features.item)
    used = {block.vectors for block in user if isinstance(block, Pool)} - {None}
    fixed_tables = {name: _with_none(values) for name, values in vectors.items() if name in used}
    layers = Layers(
        recipe.dim,
        recipe.hidden,
        dropout=recipe.dropout,
        batch_norm=recipe.output_norm == "batch_norm",
        unit_length=recipe.output_norm == "l2" or isinstance(recipe.score, retriever_recipe.Cosine),
    )
    shared = [
        feature_name(feature)
        for feature in state.features.user
        if isinstance(feature, HistoryFeature | SequenceFeature) and feature.share_item_embedding
    ]
    # The user tower's weights are drawn first, before the shared table exists: see docs/log.md on the adversary.
    users = Encoder(
        user, layers, fixed_tables=fixed_tables, shared_tables={name: nn.Embedding(1, 1) for name in shared}
    )
    items = Encoder(item, layers)
    users.shared_tables.update({name: items.table_of(block) for block in item if block.name == "id" for name in shared})
    return TwoTower(users, items, score=recipe.score)


def _block(
    feature: UserFeature | ItemFeature,
    state: FeatureState,
    tower: Literal["user", "item"],
    *,
    dim: int,
    dims: Mapping[str, int],
) -> Block:
    name, single, rows = feature_name(feature), single_from(state, tower, feature), _num_rows(feature, state, tower)
    match feature:
        case HistoryFeature(max_length=length, vectors=fixed, pool=pool):
            return Pool(name, *((rows, dim) if fixed is None else (0, dims[fixed])), pool, length, fixed)
        case SequenceFeature(max_length=length):
            return Sequence(
                name,
                rows,
                dim,
                length,
                num_layers=feature.num_layers,
                num_heads=feature.num_heads,
                dropout=feature.dropout,
                is_timed=feature.time_bias,
            )
        case ClusterFeature(num_clusters=width) | ProfileFeature(length=width):
            return Number(name, width)
        case VectorFeature():
            return Number(name, dims[feature.vectors])
        case IdFeature():
            table = state.id_table(tower, feature)
            return Lookup(name, rows, dim, feature.unknown_rate, single, table.trains_unknown)
        case TimeFeature():
            return Lookup(name, 1 + (24 if feature.part == "hour" else 7), feature.dim)
        case CategoryFeature():
            return Lookup(name, rows, feature.dim, single_from=single)
        case BagFeature():
            return Pool(name, rows, feature.dim, single_from=single)
        case NumberFeature() | AgeFeature() | CounterFeature() | PopularityFeature():
            return Number(name, hidden_dim=feature.hidden_dim)
        case _:
            assert_never(feature)


def _num_rows(feature: UserFeature | ItemFeature, state: FeatureState, tower: Literal["user", "item"]) -> int:
    """Returns the number of rows of the table of ids or values that a feature reads, row 0 included."""
    if isinstance(feature, IdFeature | HistoryFeature | SequenceFeature):
        return state.id_table(tower, feature).num_rows
    return 1 + len(state.vocabularies.get(f"{tower}.{feature_name(feature)}", ()))


def _with_none(vectors: Float32[np.ndarray, "items dim"]) -> Float[Tensor, "_ dim"]:
    """Returns a table whose row 0 is none (zeros) and whose other rows are those of the items."""
    return torch.from_numpy(np.pad(vectors, ((1, 0), (0, 0))))
