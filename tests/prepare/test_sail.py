"""Sail, which needs no Java, against DuckDB, row by row: recipes that ship, and every part of a recipe at once."""

import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.prepare.spark_cases import ODD_ITEMS, ODD_NAME, assert_same_rows, everything, odd_log
from tests.worlds import popularity_only, world_recipe, write_world
from twofold.errors import DataError, RecipeError
from twofold.ingest import world_events as world
from twofold.prepare import rule_types
from twofold.prepare import run_plan as stage
from twofold.prepare.check import check_recipe
from twofold.prepare.duckdb_engine import duckdb_engine
from twofold.prepare.spark_engine import _Writer, spark_engine
from twofold.recipe.load import load_recipe
from twofold.recipe.schema import Recipe

pytest.importorskip("pysail", reason="Sail is not installed: pip install 'twofold[sail]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
sail_engine = partial(spark_engine, master="sail")


def prepare_with_both(recipe: Recipe, folder: Path) -> tuple[Path, Path]:
    """Fails unless DuckDB and Sail find the same facts, and write the same files with the same rows in order."""
    outs, facts = (folder / "duckdb", folder / "sail"), []
    for out, engine in zip(outs, (duckdb_engine, sail_engine), strict=True):
        out.mkdir(parents=True)
        facts.append(stage.prepare(recipe, out, engine))
    files = [sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file()) for out in outs]
    assert files[0] == files[1]
    for path in files[0]:
        if path.suffix == ".parquet":
            assert_same_rows(*(pq.ParquetFile(out / path).read() for out in outs), path, float_rtol=0.0)
        else:
            assert (outs[0] / path).read_bytes() == (outs[1] / path).read_bytes()
    means = [found.pop("mean_weight", 1.0) for found in facts]  # a sum of doubles, in any order
    assert means[0] == pytest.approx(means[1], rel=1e-12)
    assert facts[0] == facts[1]
    return outs


def with_prepare(recipe: Recipe, **parts: Any) -> Recipe:
    """The recipe with other parts of `prepare`."""
    return Recipe.model_validate(recipe.model_dump() | {"prepare": recipe.prepare.model_dump() | parts})


RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("kuairand*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_of_the_shipped_log(tmp_path: Path, path: Path) -> None:
    prepare_with_both(load_recipe(path), tmp_path)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("id_type", [pa.int64(), pa.string()], ids=str)
def test_everything_at_once_in_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, id_type: pa.DataType, shards: int
) -> None:
    data = world.write_world(tmp_path / "log", world.World(rows=20_000, noise=0.1)).model_dump()
    monkeypatch.setattr(stage, "EVENTS_PER_SHARD", 20_000 // shards + 1000)
    for name in ("events", "items", "users"):
        table = pq.read_table(data[name])
        for key in {"user_id", "item_id"} & set(table.column_names):
            ids = table[key].cast(id_type)
            if (name, id_type) == ("events", pa.string()):
                ids = pc.if_else(pc.equal(ids, ids[0]), "", ids)  # an id that is missing
            table = table.set_column(table.column_names.index(key), key, ids)
        data[name] = tmp_path / f"{name}.parquet"
        pq.write_table(table, data[name])
    days = {"train": (1, 25), "validation": (25, 27), "test": (27, 29)}
    windows = {name: {"first": f"2024-01-{first:02}", "end": f"2024-01-{end}"} for name, (first, end) in days.items()}
    recipe = with_prepare(world_recipe(data), **everything("creator_id"), split={"kind": "temporal"} | windows)
    out, _ = prepare_with_both(recipe, tmp_path)
    assert len(list((out / "events").iterdir())) == shards


@pytest.mark.parametrize("seed", range(2))
def test_everything_at_once_on_odd_values(tmp_path: Path, seed: int) -> None:
    rules = {
        "positive": "liked OR note IN ('it''s', '${x}', 'a\\n', '') OR below",
        "negative": f'gain < 0 OR "{ODD_NAME.replace(chr(34), 2 * chr(34))}" > 5',
    }
    data = write_world(tmp_path / "[log] {1}*? $x é", odd_log(seed), ODD_ITEMS)
    recipe = with_prepare(world_recipe(data), **everything("creator"))
    recipe = with_prepare(recipe, **rules, filters=[{"kind": "items", "min_events": 2}], positive_share=0.9)
    prepare_with_both(recipe, tmp_path)


def test_no_java_and_no_java_library_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setitem(sys.modules, "py4j", None)
    recipe = popularity_only(tmp_path / "log")
    (tmp_path / "out").mkdir()
    assert stage.prepare(recipe, tmp_path / "out", sail_engine)["splits"]["train"]["rows"] > 0
    assert not (tmp_path / "out" / "spill").exists()


def test_a_value_that_is_no_number_is_refused_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule_types, "_ROWS_READ", 0)  # the text is in a later row than those that are looked at
    log = pq.read_table(popularity_only(tmp_path / "log").data.events)
    log = log.append_column("title", pa.array(["a title"] * len(log)))
    recipe = with_prepare(world_recipe(write_world(tmp_path / "log", log)), positive="title > 1 OR liked")
    with pytest.raises(DataError, match=r"reading .*events\.parquet failed: .*a title.*text as a number"):
        stage.prepare(recipe, tmp_path, sail_engine)


def test_folders_named_by_a_column_are_refused(tmp_path: Path) -> None:
    log = Path(popularity_only(tmp_path / "flat").data.events)
    folder = tmp_path / "log" / "hour=1"
    folder.mkdir(parents=True)
    shutil.copy(log, folder / "part-0.parquet")
    source = check_recipe(world_recipe({"kind": "table", "events": tmp_path / "log"}))
    with pytest.raises(DataError, match="its folders give the columns hour, which Sail does not read.*--engine duckdb"):
        sail_engine(source, tmp_path / "out").__enter__()


def test_a_server_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = check_recipe(popularity_only(tmp_path / "log"))
    with pytest.raises(RecipeError, match=r"--spark-master sc://127\.0\.0\.1:1: Spark did not start"):
        spark_engine(source, tmp_path / "out", master="sc://127.0.0.1:1").__enter__()


def test_all_shards_are_written_by_one_statement_for_each_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    write = _Writer._write
    monkeypatch.setattr(
        _Writer,
        "_write",
        lambda self, rows, folder, **parts: written.append(folder.name) or write(self, rows, folder, **parts),
    )
    recipe = popularity_only(tmp_path / "log")
    monkeypatch.setattr(stage, "EVENTS_PER_SHARD", pq.read_metadata(recipe.data.events).num_rows // 4)
    (tmp_path / "out").mkdir()
    assert stage.prepare(recipe, tmp_path / "out", sail_engine)["shards"] >= 4
    assert written.count("parts") == 4  # events, and the rows of three windows
