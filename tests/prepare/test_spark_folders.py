"""Folders named by a column give the same texts on Spark and DuckDB."""

from pathlib import Path

import pyarrow.parquet as pq

from tests.prepare.test_spark_engine import prepare_with_both, pytestmark, session
from tests.worlds import popularity_only, world_recipe

__all__ = ["pytestmark", "session"]


def test_folders_named_by_a_column_are_texts_on_both_engines(tmp_path: Path) -> None:
    log = pq.read_table(popularity_only(tmp_path / "flat").data.events)
    third = len(log) // 3 + 1
    for number in range(3):
        folder = tmp_path / "split=train" / "log" / f"hour=0{number}"
        folder.mkdir(parents=True)
        pq.write_table(log.slice(number * third, third), folder / "part-0.parquet")
    pq.write_table(log.slice(0, 0), folder / "part-1.parquet")
    recipe = world_recipe({"kind": "table", "events": tmp_path / "split=train" / "log"})
    prepare = recipe.prepare.model_dump() | {"weight": "CASE WHEN hour = '01' THEN 2 ELSE 1 END"}
    outs = prepare_with_both(world_recipe(recipe.data.model_dump(), {"prepare": prepare}), tmp_path / "out")
    weights = [pq.read_table(path, partitioning=None)["weight"] for path in outs[1].glob("rows/split=*/*.parquet")]
    assert {value for column in weights for value in column.to_pylist()} == {1.0, 2.0}
