"""Hard negatives: what the model itself ranks high for users who did not like it, mined anew every few epochs."""

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
"""Lies beside the checkpoint, and goes with it."""
CELLS = 2**24
"""Scores in memory at a time: 64 MB of float32."""


def with_mined(objective: Objective, model: Towers, *, epoch: int, is_begun: bool, folder: Path) -> Objective:
    """The objective with the hard negatives that this epoch draws from: mined by the model as it stands before the
    first step of every epoch.

    They lie in a file of 4 bytes a user and rank: they need not fit in memory, and a resumed training has those of the
    killed one.
    """
    asked, path = objective.hard, folder / MINED
    if asked is None:
        return objective
    assert isinstance(model, TwoTower), "no hard negatives are asked of towers per value"
    users = np.unique(objective.dataset.examples["train"].user_rows[objective.lines])
    if not is_begun:
        with atomic_file(path) as partial:
            mine(objective, model, users, skip=asked.skip, top=asked.top, path=partial)
    if not path.exists():
        raise RunError(f"{path} is gone, which the killed training drew from. Delete {folder} and run again.")
    item_rows = map_array(path).reshape(len(users), -1)
    return replace(objective, mined=HardNegativePool(users, item_rows, (item_rows >= 0).sum(axis=1)))


def mine(
    objective: Objective, model: TwoTower, users: Int64[np.ndarray, "users"], *, skip: int, top: int, path: Path
) -> None:
    """Writes the items of ranks [skip, top) of each user, -1 where fewer are left.

    A user asks once, at the moment of its newest row of the training window, knowing what lies before. Items outside
    the training window have no rank, nor have the user's positives up to then, from before the window too: nothing of
    validation is looked at. Exact and in blocks. A user costs a product with every item and the choice of the best:
    500 of 7,500 took 0.1 ms on one core (0.36 where ties are broken as in answers, which nothing here needs).
    """
    dataset, rows = objective.dataset, objective.dataset.examples["train"]
    at = rows.at[np.searchsorted(rows.user_rows, users, side="right") - 1]
    items = torch.from_numpy(item_vectors(model, dataset, int(at.max())))
    of_window = rows.user_rows[objective.lines], rows.item_rows[objective.lines]
    with append_array(path, np.int32) as append:
        for part in chunks(len(users), max(CELLS // len(items), 1)):
            asking, moments = users[part], at[part]
            vectors = torch.from_numpy(user_vectors(model, dataset, asking, moments))
            queries, factors = model.as_products(vectors, items)
            scores = (queries @ factors.T).numpy()
            scores[:, objective.num_items :] = NOT_ALLOWED
            before = dataset.positives.before(asking, moments)
            exclude(scores, Ragged(*dataset.positives.slices(asking, before)))
            bounds = np.searchsorted(of_window[0], [*asking, asking[-1] + 1])
            exclude(scores, Ragged(of_window[1][bounds[0] : bounds[-1]], bounds - bounds[0]))
            best = torch.from_numpy(scores).topk(top)
            append(best.indices.masked_fill(best.values.isneginf(), -1)[:, skip:].flatten().numpy())
