"""Folders named by a column give the same texts on Spark and DuckDB."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.worlds import popularity_only, world_recipe

pytest.importorskip("pyspark", reason="Spark is not installed: pip install 'twofold[spark]'")
if shutil.which("java") is None:
    pytest.skip("there is no Java", allow_module_level=True)

from tests.prepare.test_spark_engine import prepare_with_both, pytestmark, session  # noqa: E402 - it skips as well

__all__ = ["pytestmark", "session"]

# Name of a folder → the text that it stands for: no number, escaped as Hive and Spark write it, or NULL.
HOURS = {"00": "00", "01": "01", "a%3Ab": "a:b", "__HIVE_DEFAULT_PARTITION__": None}


def test_folders_named_by_a_column_are_texts_on_both_engines(tmp_path: Path) -> None:
    log = pq.read_table(popularity_only(tmp_path / "flat").data.events)
    part = len(log) // len(HOURS) + 1
    for number, hour in enumerate(HOURS):
        folder = tmp_path / "split=train" / "log" / f"hour={hour}"  # the folder above the log gives no column
        folder.mkdir(parents=True)
        pq.write_table(log.slice(number * part, part), folder / "part-0.parquet")
    pq.write_table(log.slice(0, 0), folder / "part-1.parquet")  # Spark writes one per empty partition
    recipe = world_recipe({"kind": "table", "events": tmp_path / "split=train" / "log"})
    weights = (
        "CASE WHEN hour = '00' THEN 1 WHEN hour = '01' THEN 2 WHEN hour = 'a:b' THEN 3 WHEN hour IS NULL THEN 4 END"
    )
    prepare = recipe.prepare.model_dump() | {"weight": weights}
    outs = prepare_with_both(world_recipe(recipe.data.model_dump(), {"prepare": prepare}), tmp_path / "out")
    columns = [pq.read_table(path, partitioning=None)["weight"] for path in outs[1].glob("rows/split=*/*.parquet")]
    assert {value for column in columns for value in column.to_pylist()} == {1.0, 2.0, 3.0, 4.0}
