"""What the arrays hold is what preparation wrote; files whose order was lost are refused."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twofold import pipeline
from twofold.dataset.arrays import build_dataset, load_dataset
from twofold.errors import DataError


@pytest.fixture(scope="module")
def prepared(checkerboard, tmp_path_factory):
    return pipeline.prepare(pipeline.Job(checkerboard, tmp_path_factory.mktemp("run"))).folder


def test_every_row_and_event_comes_back_under_its_id(checkerboard, prepared, tmp_path):
    build_dataset(prepared, checkerboard.features, tmp_path, utc_offset_h=0)
    dataset = load_dataset(tmp_path)
    written = pq.read_table(prepared / "rows" / "split=train" / "shard=0.parquet")
    rows = dataset.rows["train"]
    assert dataset.users.ids_of(rows.user_rows).to_pylist() == written["user_id"].to_pylist()
    assert dataset.items.ids_of(rows.item_rows).to_pylist() == written["item_id"].to_pylist()
    assert (np.diff(dataset.positives.offsets) + np.diff(dataset.negatives.offsets)).sum() == len(dataset.events.at)


@pytest.mark.parametrize(
    ("lost", "order"),
    [
        ("events", lambda table: pa.concat_tables([table.slice(1), table.slice(0, 1)])),  # a user's part torn off
        ("rows/split=train", lambda table: table.sort_by([("user_id", "descending"), ("at", "ascending")])),
        ("events", lambda table: table.sort_by([("user_id", "ascending"), ("at", "descending")])),
    ],
)
def test_files_whose_order_was_lost_are_refused(checkerboard, prepared, tmp_path, lost, order):
    changed = shutil.copytree(prepared, tmp_path / "prepare")
    path = changed / lost / "shard=0.parquet"
    pq.write_table(order(pq.read_table(path)), path)
    with pytest.raises(
        DataError, match=rf"{lost}/shard=0.parquet is not sorted by user and time: line \d+ .*delete {changed} and run"
    ):
        build_dataset(changed, checkerboard.features, tmp_path / "dataset", utc_offset_h=0)
