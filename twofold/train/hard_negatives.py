"""Hard negatives: items that the model ranks high for users who did not like them, mined again in every epoch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64

from twofold.dataset.npy import append_array, map_array
from twofold.errors import RunError
from twofold.model.multi_tower import Towers
from twofold.model.retriever import item_vectors, user_vectors
from twofold.model.two_tower import TwoTower
from twofold.ragged import Ragged, chunks
from twofold.run_folder import atomic_file
from twofold.topk import NOT_ALLOWED, exclude
from twofold.train.negatives import HardNegativePool
from twofold.train.objective import Objective

MINED = "hard_negatives.npy"
"""File beside the checkpoint, deleted with it."""
CHUNK_ELEMENTS = 2**24
"""Scores in memory at a time: 64 MB of float32."""


def with_hard_negatives(objective: Objective, model: Towers, *, is_begun: bool, folder: Path) -> Objective:
    """Returns the objective with the hard negatives of this epoch, mined by the current model before its first step.

    They are stored in a file, 4 bytes per user and rank: they need not fit in memory, and a resumed training draws from
    those of the killed one.
    """
    config, path = objective.hard, folder / MINED
    if config is None:
        return objective
    assert isinstance(model, TwoTower), "the recipe has no hard negatives with several towers"
    users = np.unique(objective.dataset.examples["train"].user_rows[objective.examples])
    if not is_begun:
        with atomic_file(path) as partial:
            mine(objective, model, users, skip=config.skip, top=config.top, path=partial)
    if not path.exists():
        raise RunError(f"{path} is missing, from which the killed training drew. Delete {folder} and run again.")
    item_rows = map_array(path).reshape(len(users), -1)
    return replace(objective, hard_pool=HardNegativePool(users, item_rows, (item_rows >= 0).sum(axis=1)))


def mine(
    objective: Objective, model: TwoTower, users: Int64[np.ndarray, "users"], *, skip: int, top: int, path: Path
) -> None:
    """Writes the items of ranks [skip, top) of each user, -1 where fewer are left.

    Each user makes one request, at the timestamp of its newest training example. Items outside the training window and
    the user's earlier positives have no rank, so nothing of the validation window is read. The search is exact and in
    chunks: a user costs one product with every item and one top-k. The best 500 of 7,500 took 0.1 ms on one core (0.36
    with ties broken as in served lists, which is not needed here).
    """
    dataset, rows = objective.dataset, objective.dataset.examples["train"]
    at = rows.at[np.searchsorted(rows.user_rows, users, side="right") - 1]
    items = torch.from_numpy(item_vectors(model, dataset, int(at.max())))
    window = rows.user_rows[objective.examples], rows.item_rows[objective.examples]
    with append_array(path, np.int32) as append:
        for part in chunks(len(users), max(CHUNK_ELEMENTS // len(items), 1)):
            part_users, times = users[part], at[part]
            vectors = torch.from_numpy(user_vectors(model, dataset, part_users, times))
            queries, factors = model.as_products(vectors, items)
            scores = (queries @ factors.T).numpy()
            scores[:, objective.num_items :] = NOT_ALLOWED
            before = dataset.positives.before(part_users, times)
            exclude(scores, Ragged(*dataset.positives.slices(part_users, before)))
            bounds = np.searchsorted(window[0], [*part_users, part_users[-1] + 1])
            exclude(scores, Ragged(window[1][bounds[0] : bounds[-1]], bounds - bounds[0]))
            best = torch.from_numpy(scores).topk(top)
            append(best.indices.masked_fill(best.values.isneginf(), -1)[:, skip:].flatten().numpy())
