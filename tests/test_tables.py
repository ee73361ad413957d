"""The words all packages share are those on disk."""

import pyarrow.parquet as pq

from twofold.pipeline import run as pipeline
from twofold.tables import HISTORY, ROWS, SPLITS


def test_prepared_files_have_the_columns_the_tables_name(checkerboard, tmp_path):
    folder = pipeline.prepare(pipeline.Job(checkerboard, tmp_path)).folder
    for split in SPLITS:
        assert set(pq.read_schema(folder / "rows" / f"split={split}" / "shard=0.parquet").names) == set(ROWS)
    assert set(pq.read_schema(folder / "events" / "shard=0.parquet").names) == set(HISTORY)
