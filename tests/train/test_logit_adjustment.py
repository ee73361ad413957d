"""The logit adjustment reads shares of the whole window, and items that nobody liked stay negatives."""

import numpy as np
import pytest
import torch

from tests.dataset.prepared import FEATURES, random_events, write_prepared
from twofold.dataset.batches import epoch_batches
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import load_dataset
from twofold.model.two_tower import build_two_tower
from twofold.recipe.retriever import TwoTower
from twofold.recipe.train import FullSoftmax, Train
from twofold.train.batch_loss import loss_of_vectors
from twofold.train.objective import build_objective, draw_columns


@pytest.mark.parametrize("span", ["none", "day"])
def test_the_loss_is_its_definition_where_items_of_the_day_or_the_window_have_no_positive(span, tmp_path):
    events = [event for event in random_events(0) if not (event.liked and event.item < 5)]
    write_prepared(tmp_path / "prepare", events)
    build_dataset(tmp_path / "prepare", FEATURES, tmp_path / "dataset", time_zone="UTC")
    dataset = load_dataset(tmp_path / "dataset")
    rows, known = dataset.examples["train"], dataset.items.num_known
    counts = np.bincount(rows.item_rows[rows.label], minlength=known)
    assert (counts == 0).sum() >= 5
    loss = FullSoftmax(kind="full_softmax", logit_adjustment=0.7)
    settings = Train(loss=loss, batch_size=6, group_by_time=span, precision="float32")
    objective = build_objective(settings, dataset)
    assert (objective.order.groups is None) == (span == "none")
    (batch, *_) = epoch_batches(dataset, rows, objective.order, seed=(0, 0), first=0)
    columns, draw = draw_columns(objective, batch), torch.Generator().manual_seed(0)
    assert torch.equal(columns.item_rows, torch.arange(known))
    config = TwoTower.model_validate({"kind": "two_tower", "dim": 4, "score": {"kind": "dot"}})
    model = build_two_tower(config, dataset.features, dataset.vectors)
    users, items = torch.randn(6, 4, generator=draw), torch.randn(known, 4, generator=draw, requires_grad=True)
    found = loss_of_vectors(objective, model, batch, columns, users=users, items=items)
    adjusted = users @ items.T + 0.7 * torch.tensor(np.log(np.maximum(counts, 1) / counts.sum()), dtype=torch.float32)
    expected = torch.nn.functional.cross_entropy(adjusted, batch.item_rows)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert items.grad is not None
    assert (items.grad.abs().sum(dim=1) > 0).all()
