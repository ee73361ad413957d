"""One code path: a row of training, the same question in evaluation, and the catalogue at its moment are byte-equal."""

import numpy as np
import pytest

from tests.dataset.prepared import FEATURES, random_events, write_prepared
from twofold.dataset import batches
from twofold.dataset.batch_order import Order
from twofold.dataset.batches import epoch_batches, gather_batch, item_batches, query_batches
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import load_dataset
from twofold.dataset.example_blocks import ExampleBlocks
from twofold.dataset.features import feature_names


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    write_prepared(folder / "prepare", random_events(0))
    build_dataset(folder / "prepare", FEATURES, folder / "dataset", time_zone="Asia/Shanghai")
    return load_dataset(folder / "dataset")


def as_bytes(inputs, line=slice(None)):
    """Sequences are whole users' in training: see test_sequences.py."""
    return {name: values[line].numpy().tobytes() for name, values in inputs.items() if "sequence" not in name}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_row_reads_what_its_user_reads_who_asks_at_its_moment(dataset, split):
    rows = dataset.examples[split]
    batch = gather_batch(dataset, rows, np.arange(len(rows)))
    assert set(batch.user) == {*feature_names(dataset.features)[0], "positives_sequence.places"}
    (queried,) = query_batches(dataset, np.asarray(rows.user_rows), np.asarray(rows.at))
    assert as_bytes(batch.user) == as_bytes(queried)


def test_a_row_reads_what_the_catalogue_holds_at_its_moment(dataset):
    rows = dataset.examples["validation"]
    for line in range(0, len(rows), 7):
        batch = gather_batch(dataset, rows, np.array([line]))
        (catalogue,) = item_batches(dataset, int(rows.at[line]))
        assert set(batch.item) == set(feature_names(dataset.features)[1])
        width = batch.item["tags"].shape[1]  # of the longest list of the batch
        assert not catalogue["tags"][rows.item_rows[line], width:].any()
        catalogue |= {"tags": catalogue["tags"][:, :width]}
        assert as_bytes(batch.item) == as_bytes(catalogue, slice(rows.item_rows[line], rows.item_rows[line] + 1))


def test_nothing_that_a_tower_reads_is_missing_or_endless(dataset):
    batch = gather_batch(dataset, dataset.examples["train"], np.arange(len(dataset.examples["train"])))
    for side in (batch.user, batch.item):
        for name, values in side.items():
            assert bool(values.isfinite().all()), name
    counted = batch.user["user_id_like_24h"]
    assert abs(float(counted.mean())) < 1e-5
    assert abs(float(counted.std(correction=0)) - 1) < 1e-5


def test_the_order_of_an_epoch_is_its_seeds_and_a_resumed_one_continues_it(dataset):
    rows = dataset.examples["train"]
    order = Order(ExampleBlocks(rows), len(rows), 50)
    whole = list(epoch_batches(dataset, rows, order, seed=(0, 3), first=0))
    resumed = list(epoch_batches(dataset, rows, order, seed=(0, 3), first=2))
    assert [as_bytes(batch.user) for batch in whole[2:]] == [as_bytes(batch.user) for batch in resumed]
    other = list(epoch_batches(dataset, rows, order, seed=(0, 4), first=0))
    assert other[0].item_rows.tolist() != whole[0].item_rows.tolist()


def test_long_lists_make_batches_of_fewer_items(dataset, monkeypatch):
    (whole,) = item_batches(dataset, 0)
    monkeypatch.setattr(batches, "ITEM_VALUES", 3 * 7)  # lists have up to three tags
    parts = list(item_batches(dataset, 0))
    assert [len(part["id"]) for part in parts] == [7, 7, 7, 1]
    found = [row[row > 0].tolist() for part in parts for row in part["tags"]]
    assert found == [row[row > 0].tolist() for row in whole["tags"]]
