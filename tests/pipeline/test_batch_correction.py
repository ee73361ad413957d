"""The correction of in-batch scores in the report is what training subtracts."""

import numpy as np
import pytest
import torch

from twofold.dataset.batches import epoch_batches
from twofold.dataset.dataset import load_dataset
from twofold.model.two_tower import build_two_tower
from twofold.pipeline import run as pipeline
from twofold.pipeline.adapters import batch_correction
from twofold.train.batch_loss import _log_q
from twofold.train.objective import build_objective, draw_columns


@pytest.mark.parametrize("batch_size", [128, 1_000_000])
def test_log_q_is_that_of_training_also_where_one_batch_holds_all(popularity_only, batch_size, tmp_path):
    job = pipeline.Job(popularity_only, tmp_path)
    dataset = load_dataset(pipeline.build_dataset(job, pipeline.prepare(job)).folder)
    settings = popularity_only.train.model_copy(update={"batch_size": batch_size})
    model = build_two_tower(popularity_only.retriever, dataset.features, {})
    objective = build_objective(settings, dataset)
    batch = next(epoch_batches(dataset, dataset.examples["train"], objective.order, seed=(0, 0), first=0))
    liked = torch.arange(len(dataset.items))[torch.isfinite(objective.in_batch.log(torch.arange(len(dataset.items))))]
    log_q = _log_q(objective, liked, draw_columns(objective, batch), group=0).numpy()
    found = batch_correction(model, dataset, settings) / model.temperature_value()
    np.testing.assert_allclose(found[liked.numpy()], log_q, atol=0.01)  # unliked items count as liked once
