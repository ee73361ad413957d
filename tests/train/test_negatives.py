from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.dataset.prepared import FEATURES, random_events, write_prepared
from twofold.dataset.batches import gather_batch, item_batches
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import load_dataset
from twofold.recipe.train import Bpr, FullSoftmax, InBatchSoftmax, Train
from twofold.tables import DAY_MS
from twofold.train import negatives, objective
from twofold.train.distributed import ProcessGroup
from twofold.train.negatives import count_in_batch, log_mixed_probability, sampled_inputs
from twofold.train.objective import build_objective, draw_columns


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("negatives")
    write_prepared(folder / "prepare", random_events(0))
    build_dataset(folder / "prepare", FEATURES, folder / "dataset", time_zone="Asia/Shanghai")
    return load_dataset(folder / "dataset")


def with_uploads(dataset, days):
    uploaded_at = (np.asarray(days) * DAY_MS).astype(np.int64)
    return replace(dataset, item_arrays=replace(dataset.item_arrays, uploaded_at=uploaded_at))


def test_q_is_the_share_of_the_rows_that_batches_are_made_of():
    q = count_in_batch([np.array([2, 2]), np.array([0, 2])], num_items=4)
    assert q.log(torch.arange(4)).exp().tolist() == pytest.approx([1 / 4, 0, 3 / 4, 0])


def test_q_of_a_group_is_counted_on_its_own_rows():
    rows, groups = np.array([2, 2, 0, 2, 3]), np.array([0, 1, 1, 0, 0])
    q = count_in_batch([(groups * 4 + rows)[part] for part in (slice(3), slice(3, 5))], num_items=4)
    item_rows = torch.tensor([3, 2, 1, 0])
    assert q.log(item_rows, group=0).exp().tolist() == pytest.approx([1 / 3, 2 / 3, 0, 0])
    assert q.log(item_rows, group=1).exp().tolist() == pytest.approx([0, 1 / 2, 0, 1 / 2])


def test_q_of_the_tail_is_not_clipped():
    rows = np.concatenate([np.zeros(3_000_000, np.int64), [1]])
    assert float(count_in_batch([rows], num_items=2).log(torch.tensor([1]))) == pytest.approx(np.log(1 / 3_000_001))


def test_a_mixture_has_the_probability_of_either_source_by_its_share():
    log_q = torch.tensor([0.5, 0.25]).log()
    assert log_mixed_probability(log_q, batch=4, uniform=0, num_items=10) is log_q
    # Never drawn into a batch, and yet a candidate: the uniform ones hold it.
    found = log_mixed_probability(torch.tensor([0.5, 0.0]).log(), batch=30, uniform=10, num_items=20).exp()
    assert found.tolist() == pytest.approx([0.75 * 0.5 + 0.25 / 20, 0.25 / 20])


def test_drawn_items_are_read_as_the_catalogue_is_at_the_moment_of_a_line(dataset):
    batch = gather_batch(dataset, dataset.examples["train"], np.array([7]))
    drawn = torch.tensor([3, 0, 3])
    inputs = sampled_inputs(dataset, batch, drawn)
    (catalogue,) = item_batches(dataset, int(batch.at[0]))
    for name, values in inputs.items():
        assert torch.equal(values, catalogue[name][drawn])


@pytest.mark.parametrize(
    "loss", [InBatchSoftmax(kind="in_batch_softmax", uniform_negatives=9), FullSoftmax(kind="full_softmax")]
)
def test_ranks_draw_the_same_items_though_their_examples_are_of_other_times(dataset, loss, monkeypatch):
    dataset = with_uploads(dataset, np.arange(len(dataset.items)) / 2)
    rows = dataset.examples["train"]
    early, late = np.array_split(np.argsort(rows.at, kind="stable")[[0, 1, 2, -3, -2, -1]], 2)
    batches = [gather_batch(dataset, rows, np.sort(part)) for part in (early, late)]

    def gathered(ranks, own):
        (name,) = (name for name in ("at", "item_rows", "user_rows") if own is getattr(batches[ranks.rank], name))
        return torch.cat([getattr(batch, name) for batch in batches])

    monkeypatch.setattr(negatives, "all_gather", gathered)
    monkeypatch.setattr(objective, "all_gather", gathered)
    found = []
    for rank, batch in enumerate(batches):
        settings = Train(loss=loss, batch_size=6, group_by_time="none")
        torch.manual_seed(0)
        found.append(draw_columns(build_objective(settings, dataset, ranks=ProcessGroup(rank=rank, size=2)), batch))
    assert torch.equal(found[0].item_rows, found[1].item_rows)
    assert found[0].pool_size == found[1].pool_size
    for columns, batch in zip(found, batches, strict=True):
        assert torch.equal(columns.item_rows[columns.own], batch.item_rows)


@pytest.mark.parametrize("loss", [InBatchSoftmax(kind="in_batch_softmax", uniform_negatives=9), Bpr(kind="bpr")])
def test_where_every_item_was_uploaded_after_the_batch_all_are_drawn(dataset, loss):
    dataset = with_uploads(dataset, np.full(len(dataset.items), 100))
    batch = gather_batch(dataset, dataset.examples["train"], np.arange(4))
    columns = draw_columns(build_objective(Train(loss=loss, batch_size=4), dataset), batch)
    assert columns.pool_size == dataset.items.num_known
