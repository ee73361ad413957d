"""Peers read the items of a history, also where towers read rows that several items share."""

import numpy as np
import pytest

from tests.dataset.prepared import random_events, write_prepared
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import load_dataset
from twofold.model.fold_in import ItemSums
from twofold.model.retriever import user_vectors
from twofold.recipe.features import Features
from twofold.tables import DAY_MS


@pytest.mark.parametrize(
    ("limits", "buckets"),
    [({}, None), ({"item_ids": {"min_count": 18}}, None), ({"item_ids": {"min_count": 18, "shared_rows": 2}}, None)]
    + [({}, 3)],
)
def test_a_peer_reads_the_liked_items_of_training(limits, buckets, tmp_path):
    user = {"kind": "history", "events": "positives", "max_length": 5, "share_item_embedding": True}
    features = Features.model_validate({"user": [user], "item": [{"kind": "id", "num_buckets": buckets}], **limits})
    write_prepared(tmp_path / "prepare", random_events(0))
    build_dataset(tmp_path / "prepare", features, tmp_path / "dataset", time_zone="UTC")
    dataset = load_dataset(tmp_path / "dataset")
    one_of_each = np.eye(len(dataset.items), dtype=np.float32)
    users, at = np.arange(len(dataset.users)), np.full(len(dataset.users), 13 * DAY_MS)
    read = user_vectors(ItemSums(one_of_each, one_of_each), dataset, users, at) > 0
    liked = dataset.positives.last_before(users, at, n=5)
    liked *= liked <= dataset.items.num_known
    assert [set(np.flatnonzero(row) + 1) for row in read] == [set(row[row > 0]) for row in liked]
    assert read.sum() > 30
