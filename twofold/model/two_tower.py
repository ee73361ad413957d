"""The retriever: two encoders that never see one another's features, and how their outputs are compared."""

from collections.abc import Mapping
from typing import assert_never

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from twofold.dataset.features import FeatureState
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
    ProfileFeature,
    SequenceFeature,
    TimeFeature,
    UserFeature,
    VectorFeature,
    feature_name,
)


class TwoTower(nn.Module):
    """A user encoder and an item encoder with outputs of equal width.

    The score is their inner product (of vectors of length 1 where it is called cosine) or their negative distance;
    losses read it divided by the temperature.
    """

    def __init__(self, user: Encoder, item: Encoder, *, score: retriever_recipe.Score) -> None:
        """Both encoders must have the same output width; for cosine, both give vectors of length 1."""
        super().__init__()
        self.user = user
        self.item = item
        self.score = score.kind
        self.temperature = score.temperature if isinstance(score, retriever_recipe.Cosine) else 1.0

    def as_products(
        self, users: Float[Tensor, "users dim"], items: Float[Tensor, "items dim"]
    ) -> tuple[Float[Tensor, "users wide"], Float[Tensor, "items wide"]]:
        """Vectors whose inner products are the scores: the same, unless the score is a distance.

        -‖u - v‖² = (u, ‖u‖², 1) · (2v, -1, -‖v‖²), so that every loss is written once, over products.
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
        """Line by line, the score of the user and the item over the temperature."""
        queries, factors = self.as_products(users, items)
        return (queries * factors).sum(dim=1) / self.temperature


def build_two_tower(
    recipe: retriever_recipe.TwoTower, state: FeatureState, vectors: Mapping[str, Float32[np.ndarray, "items _"]]
) -> TwoTower:
    """The model a recipe asks for, with tables as large as the fitted features need; `vectors` has a line an item
    row.
    """
    widths = {name: int(values.shape[1]) for name, values in vectors.items()}
    user, item = (
        tuple(_block(feature, state, f"{tower}.", dim=recipe.dim, widths=widths) for feature in side)
        for tower, side in (("user", state.features.user), ("item", state.features.item))
    )
    read = {block.over for block in user if isinstance(block, Pool)} - {None}
    given = {name: _with_none(values) for name, values in vectors.items() if name in read}
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
    # The user tower's weights are drawn first, before there is a table to lend: see docs/log.md on the adversary.
    users = Encoder(user, layers, given=given, lent={name: nn.Embedding(1, 1) for name in shared})
    items = Encoder(item, layers)
    users.lent.update({name: items.table_of(block) for block in item if block.name == "id" for name in shared})
    return TwoTower(users, items, score=recipe.score)


def _block(
    feature: UserFeature | ItemFeature, state: FeatureState, tower: str, *, dim: int, widths: Mapping[str, int]
) -> Block:
    name = feature_name(feature)
    match feature:
        case HistoryFeature(max_length=last, vectors=over, pool=pool):
            if over is None:
                return Pool(name, 1 + state.num_known_items, dim, pool, last)
            return Pool(name, 0, widths[over], pool, last, over)
        case SequenceFeature(max_length=last):
            return Sequence(
                name,
                1 + state.num_known_items,
                dim,
                last,
                depth=feature.num_layers,
                heads=feature.num_heads,
                dropout=feature.dropout,
                is_timed=feature.time_bias,
            )
        case ClusterFeature():
            return Number(name, feature.num_clusters)
        case ProfileFeature():
            return Number(name, feature.length)
        case VectorFeature():
            return Number(name, widths[feature.vectors])
        case IdFeature():
            known = state.num_known_items if tower == "item." else len(state.vocabularies[tower + name])
            return Lookup(name, 1 + known, dim, feature.unknown_rate)
        case TimeFeature():
            return Lookup(name, 1 + (24 if feature.part == "hour" else 7), feature.dim)
        case CategoryFeature():
            return Lookup(name, 1 + len(state.vocabularies[tower + name]), feature.dim)
        case BagFeature():
            return Pool(name, 1 + len(state.vocabularies[tower + name]), feature.dim)
        case NumberFeature() | AgeFeature() | CounterFeature():
            return Number(name, expand=feature.hidden_dim)
        case _:
            assert_never(feature)


def _with_none(vectors: Float32[np.ndarray, "items dim"]) -> Float[Tensor, "rows dim"]:
    """Row 0 is none, item rows follow."""
    return torch.from_numpy(np.pad(vectors, ((1, 0), (0, 0))))
