"""Start of new towers from item vectors that another model has learned."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from twofold.dataset.features import FeatureState
from twofold.dataset.id_tables import IdTable
from twofold.model.encoder import INITIAL_STD
from twofold.model.multi_tower import Towers
from twofold.model.two_tower import TwoTower
from twofold.recipe.features import HistoryFeature, IdFeature, SequenceFeature


@torch.no_grad()
def start_from(model: Towers, state: FeatureState, item_vectors: Float32[np.ndarray, "items dim"]) -> None:
    """Copies item vectors into the embeddings of item ids and of positives, scaled to the spread of new embeddings.

    Items whose vector is zero keep their new embedding, and so do items that have no row of their own. Of items that
    share a row, the first gives its vector. Tables of another width, and all other weights, are left as they are.
    """
    known = np.flatnonzero(item_vectors.any(axis=1))
    if not len(known):
        return
    vectors = item_vectors[known]
    scaled = torch.from_numpy(vectors * np.float32(INITIAL_STD / vectors.std()))
    for tower in [model] if isinstance(model, TwoTower) else [model.tower(index) for index in range(len(model.values))]:
        for table, ids in _item_tables(tower, state):
            if table.embedding_dim == scaled.shape[1]:
                rows, first = np.unique(ids.rows(1 + known.astype(np.int32)), return_index=True)
                is_own = rows > 0
                table.weight[torch.from_numpy(rows[is_own])] = scaled[torch.from_numpy(first[is_own])]


def _item_tables(tower: TwoTower, state: FeatureState) -> Iterator[tuple[nn.Embedding, IdTable]]:
    """Yields the tables of item ids and of positives; one that both share comes twice."""
    for feature, block in zip(state.features.item, tower.item.feature_blocks, strict=True):
        if isinstance(feature, IdFeature):
            yield tower.item.table_of(block), state.id_table("item", feature)
    for user_feature, block in zip(state.features.user, tower.user.feature_blocks, strict=True):
        match user_feature:
            case HistoryFeature(events="positives", vectors=None) | SequenceFeature():
                yield tower.user.table_of(block), state.id_table("user", user_feature)
            case _:
                pass
