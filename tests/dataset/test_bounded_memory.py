"""Memory of the dataset stage where the log is long: it follows the distinct ids and a block of rows, not the log."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twofold.dataset import build
from twofold.dataset.column_encoders import POSITIVES
from twofold.dataset.examples import ROW, distinct_ids
from twofold.recipe.features import Features


@pytest.fixture
def pool() -> Iterator[pa.MemoryPool]:
    """A pool of Arrow that counts the memory of one test."""
    default = pa.default_memory_pool()
    counted = pa.proxy_memory_pool(default)
    pa.set_memory_pool(counted)
    yield counted
    pa.set_memory_pool(default)


def test_distinct_ids_of_many_shards_take_the_memory_of_those_of_one(tmp_path: Path, pool: pa.MemoryPool) -> None:
    """A log of 3 billion rows has 375 shards, each with most of the items: together, texts of more than 2 GiB."""
    ids = [f"{number:03d}" + "x" * 1_000 for number in range(1_000)]
    (tmp_path / "events").mkdir()
    first = tmp_path / "events" / "shard=0.parquet"
    pq.write_table(pa.table({"item_id": ids[1:]}), first, compression="zstd", use_dictionary=False)
    for number in range(1, 30):
        (tmp_path / "events" / f"shard={number}.parquet").symlink_to(first)
    last = pa.table({"item_id": [ids[5], ids[0], ids[0]]})
    pq.write_table(last, tmp_path / "events" / "shard=30.parquet")
    found = distinct_ids(tmp_path, ["events"], "item_id", pa.string())
    assert found.to_pylist() == [*ids[1:], ids[0]]
    assert pool.max_memory() < 15e6, "once 1 MB, and not 30 times"


def test_popularity_is_counted_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "BATCH_ROWS", 1_000)
    rows = np.zeros(200_000, ROW)
    rows["item_rows"], rows["label"] = np.arange(len(rows)) % 5, np.arange(len(rows)) % 5 != 3
    (tmp_path / "rows").mkdir()
    np.save(tmp_path / "rows" / "train.npy", rows)
    features = Features.model_validate(
        {"user": [{"kind": "history", "events": "positives"}], "item": [{"kind": "popularity"}]}
    )
    del rows
    tracemalloc.start()
    counted = build._with_popularity(pa.table({"item_id": range(6)}), features, tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert counted[POSITIVES].to_pylist() == [40_000, 40_000, 40_000, 0, 40_000, 0]
    assert peak < 0.5e6
