"""Spark against DuckDB, row by row: whatever a recipe asks for, both write the same files."""

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.prepare.spark_cases import ODD_ITEMS, ODD_NAME, assert_same_rows, everything, odd_log
from tests.worlds import DAY_MS, FIRST_MS, popularity_only, world_recipe, write_world
from twofold.cli.main import app
from twofold.errors import DataError, RecipeError
from twofold.ingest import world_events as world
from twofold.local_time import local_ms, local_ms_sql
from twofold.prepare import rule_types
from twofold.prepare import run_plan as stage
from twofold.prepare.check import check_recipe
from twofold.prepare.duckdb_engine import duckdb_engine
from twofold.prepare.spark_engine import _elsewhere, spark_engine, spark_sql
from twofold.prepare.spark_session import _start, _stop, translated_errors
from twofold.recipe.load import dump_recipe, load_recipe
from twofold.recipe.schema import Recipe

pytest.importorskip("pyspark", reason="Spark is not installed: pip install 'twofold[spark]'")
if shutil.which("java") is None:
    pytest.skip("there is no Java", allow_module_level=True)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One Spark for all tests: engines use the session that is there."""
    few = "--driver-memory 2g --conf spark.sql.shuffle.partitions=4 pyspark-shell"  # for tables as small as these
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_SUBMIT_ARGS", few)
        session = _start("local[2]", tmp_path_factory.mktemp("spark"))
    yield session
    _stop(session)


def prepare_with_both(recipe: Recipe, folder: Path, *, float_rtol: float = 0.0) -> tuple[Path, Path]:
    """Fails unless both engines find the same facts, and write the same files with the same rows in the same order.

    Everything is compared exactly, floats too; `float_rtol` is for rules with LN, EXP or POWER, whose last digit no
    standard promises.
    """
    outs, facts = (folder / "duckdb", folder / "spark"), []
    for out, engine in zip(outs, (duckdb_engine, spark_engine), strict=True):
        out.mkdir(parents=True)
        facts.append(stage.prepare(recipe, out, engine))
    files = [sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file()) for out in outs]
    assert files[0] == files[1]
    for path in files[0]:
        if path.suffix == ".parquet":
            assert_same_rows(*(pq.ParquetFile(out / path).read() for out in outs), path, float_rtol=float_rtol)
        else:
            assert (outs[0] / path).read_bytes() == (outs[1] / path).read_bytes()
    means = [found.pop("mean_weight", 1.0) for found in facts]  # a sum of doubles, in any order
    assert means[0] == pytest.approx(means[1], rel=1e-12)
    if float_rtol:
        for found in facts:
            found.pop("labels")
    assert facts[0] == facts[1]
    return outs


def rows_of(out: Path, split: str) -> int:
    return sum(pq.read_metadata(path).num_rows for path in (out / "rows" / f"split={split}").iterdir())


def test_local_time_is_that_of_numpy_in_zones_with_half_hours_and_summer_time(session: Any) -> None:
    for zone in ("Asia/Kolkata", "Europe/Berlin", "Australia/Lord_Howe"):
        at = np.arange(FIRST_MS, FIRST_MS + 366 * DAY_MS, 7_777_777, dtype=np.int64)
        local = local_ms_sql('"at"', zone, first_ms=int(at[0]), last_ms=int(at[-1]))
        listed = ", ".join(f"({each})" for each in at.tolist())
        rows = session.sql(spark_sql(f'SELECT {local} FROM (VALUES {listed}) AS "times"("at")')).collect()
        assert [value for (value,) in rows] == local_ms(at, zone).tolist()


# --- what is asked of a log -------------------------------------------------------------------------------------------


def with_prepare(recipe: Recipe, **parts: Any) -> Recipe:
    """The recipe with other parts of `prepare`."""
    return Recipe.model_validate(recipe.model_dump() | {"prepare": recipe.prepare.model_dump() | parts})


def test_everything_at_once_on_a_part_of_the_shipped_log(tmp_path: Path, kuairand_folder: Path) -> None:
    recipe = load_recipe(kuairand_folder.parents[1] / "recipes" / "kuairand.yaml")
    log = pq.read_table(recipe.data.events)
    pq.write_table(log.filter(np.asarray(log["user_id"]) % 4 == 0), tmp_path / "events.parquet")
    data = {"data": recipe.data.model_dump() | {"events": tmp_path / "events.parquet"}}
    recipe = with_prepare(Recipe.model_validate(recipe.model_dump() | data), **everything("author_id"))
    out, _ = prepare_with_both(recipe, tmp_path)
    assert rows_of(out, "train") > 1_000


@pytest.fixture(scope="module")
def short_videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The `data` part that reads a world of 50,000 events, a tenth of them corrupted."""
    folder = tmp_path_factory.mktemp("world") / "log"
    return world.write_world(folder, world.World(rows=50_000, noise=0.1)).model_dump()


def test_last_events_of_a_world_in_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_videos: dict[str, Any]
) -> None:
    monkeypatch.setattr(stage, "EVENTS_PER_SHARD", 25_000)
    parts = {"where": "language <> 'language 0'", "split": {"kind": "last_n", "test": 3, "ties": "watch_s"}}
    labels = {"item_gain": {"kind": "wtg", "buckets": {"kind": "item", "creator": "creator_id"}}}
    recipe = with_prepare(world_recipe(short_videos), **parts, labels=labels, target="item_gain")
    out, _ = prepare_with_both(recipe, tmp_path)
    assert len(list((out / "events").iterdir())) == 2


def test_everything_at_once_on_a_world_with_ids_of_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_videos: dict[str, Any]
) -> None:
    monkeypatch.setattr(stage, "EVENTS_PER_SHARD", 25_000)
    data: dict[str, Any] = {"kind": "table"}
    for name in ("events", "items", "users"):
        table = pq.read_table(short_videos[name])
        for key in {"user_id", "item_id"} & set(table.column_names):
            named = pc.binary_join_element_wise("é ", table[key].cast(pa.string()), "")
            is_missing = pc.and_(pc.equal(table[key], table[key][0]), name == "events")
            text = pc.if_else(is_missing, "", named)
            table = table.set_column(table.column_names.index(key), key, text)
        data[name] = tmp_path / f"{name}.parquet"
        pq.write_table(table, data[name])
    days = {"train": (1, 25), "validation": (25, 27), "test": (27, 29)}
    windows = {name: {"first": f"2024-01-{first:02}", "end": f"2024-01-{end}"} for name, (first, end) in days.items()}
    recipe = with_prepare(world_recipe(data), **everything("creator_id"), split={"kind": "temporal"} | windows)
    out, _ = prepare_with_both(recipe, tmp_path)
    assert rows_of(out, "train") > 1_000


# --- odd values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_everything_at_once_on_odd_values(tmp_path: Path, seed: int) -> None:
    rules = {
        "positive": "liked OR note IN ('it''s', '${x}', 'a\\n', '') OR below",
        "negative": f'gain < 0 OR "{ODD_NAME.replace(chr(34), 2 * chr(34))}" > 5',
    }
    recipe = with_prepare(
        world_recipe(write_world(tmp_path / "log", odd_log(seed), ODD_ITEMS)), **everything("creator")
    )
    recipe = with_prepare(recipe, **rules, filters=[{"kind": "items", "min_events": 2}], positive_share=0.9)
    prepare_with_both(recipe, tmp_path)


def test_nan_and_infinities_are_null_on_both_engines(tmp_path: Path) -> None:
    log, draw = odd_log(4), np.random.default_rng(4)
    for name, type_ in (("watch_s", pa.float64()), ("fine", pa.float32())):
        values = draw.choice([np.nan, np.inf, -np.inf, -0.0, 2.5, 20.0], size=len(log))
        log = log.set_column(log.column_names.index(name), name, pa.array(values, type_))
    parts = {
        "positive": "watch_s >= 18 OR fine > 2",
        "weight": "LEAST(SQRT(watch_s), 2, COALESCE(fine, 1) + 3)",
        "target": "GREATEST(LEAST(fine, watch_s), -1)",
        "split": {"kind": "last_n", "test": 2, "ties": "note"},
    }
    recipe = with_prepare(world_recipe(write_world(tmp_path / "log", log, ODD_ITEMS)), **parts)
    out, _ = prepare_with_both(recipe, tmp_path)
    rows = pq.read_table(out / "rows" / "split=train" / "shard=0.parquet", partitioning=None)
    assert set(rows["watch_s"].to_pylist()) == {None, 0.0, 2.5, 20.0}
    assert None in rows["target"].to_pylist()


def test_odd_values_by_last_events_and_functions_of_doubles(tmp_path: Path) -> None:
    parts = {
        "split": {"kind": "last_n", "test": 2, "validation": 2, "ties": "watch_s"},
        "derive": {"curved": "POWER(ABS(watch_s), 0.3) + LN(length_s) - EXP(-length_s)", "left": "watch_s % 7"},
        "positive": "liked AND NOT (watch_s BETWEEN 1 AND 9) OR fine > 0.05",
        "weight": "NULLIF(FLOOR(ABS(fine) * 100), 3)",
        "target": "curved + left + CEIL(fine)",
    }
    recipe = with_prepare(world_recipe(write_world(tmp_path / "log", odd_log(5), ODD_ITEMS)), **parts)
    prepare_with_both(recipe, tmp_path, float_rtol=2.0**-23)


MOMENTS_US = [1_650_816_000_123_456, 1_650_816_000_123_999, None]


@pytest.mark.parametrize(
    ("at", "unit"),
    [
        (pa.array(MOMENTS_US), "us"),
        (pa.array([us and us * 1000 + 999 for us in MOMENTS_US]), "ns"),
        (pa.array(MOMENTS_US, pa.timestamp("us")), "ms"),
        (pa.array(MOMENTS_US, pa.timestamp("us", tz="America/New_York")), "ms"),
        (pa.array([us and us // 1000 for us in MOMENTS_US], pa.timestamp("ms")), "ms"),
        (pa.array([us and us * 1000 + 999 for us in MOMENTS_US], pa.timestamp("ns")), "ms"),
        (pa.array([us and us * 1000 + 999 for us in MOMENTS_US], pa.timestamp("ns", tz="UTC")), "ms"),
        (pa.array([1_650_816_000, 2**32 - 1, None], pa.uint32()), "s"),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
def test_columns_of_every_type_are_read_alike(tmp_path: Path, at: pa.Array, unit: str) -> None:
    folder = tmp_path / "split=train, [1] {2}*? $x é"  # neither a partition nor a pattern
    events = pa.table(
        {
            "user_id": pa.array([1, 2, None], pa.uint8()),
            "item_id": pa.array(["b", "a", ""], pa.large_string()).dictionary_encode(),
            "at": at,
            "liked": [True, None, False],
            "small": pa.array([2**16 - 1, 0, None], pa.uint16()),
            "nested": pa.array([{"a": [1]}, None, {"a": None}], pa.struct([("a", pa.list_(pa.int8()))])),
            "bytes": [b"\x00", None, b""],
        }
    )
    items = pa.table({"item_id": ["a"], "_x": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))})
    source = check_recipe(world_recipe(write_world(folder, events, items) | {"at_unit": unit}))
    found = []
    for engine in (duckdb_engine, spark_engine):
        with engine(source, tmp_path / "out") as opened:
            listed = ", ".join(f'"{name}"' for name in source.events.columns if name != "nested")
            ordered = opened.query(f'SELECT {listed} FROM "source_events" ORDER BY "user_id"')
            found.append([tuple(row) for row in [*ordered, *opened.query('SELECT * FROM "source_items"')]])
            assert opened.query('SELECT COUNT(*) FROM "source_users"')[0][0] == 0
    assert found[0] == found[1]


# --- what can go wrong ------------------------------------------------------------------------------------------------


def log() -> pa.Table:
    users, items, days = (column.ravel() for column in np.meshgrid(range(4), range(5), range(6)))
    at = FIRST_MS + days * DAY_MS
    return pa.table({"user_id": users, "item_id": items, "at": at, "liked": items % 2 == 0, "title": ["a title"] * 120})


def test_text_read_as_a_number_is_refused_with_the_value(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rule_types, "_ROWS_READ", 0)  # the text is in a later row than those that are looked at
    recipe = with_prepare(world_recipe(write_world(tmp_path / "log", log())), positive="title > 1 OR liked")
    with pytest.raises(DataError, match=r"reading .*events\.parquet failed: The value 'a title' of .*text as a number"):
        stage.prepare(recipe, tmp_path, spark_engine)
    assert capfd.readouterr().err == ""
    assert not (tmp_path / "spill").exists()


def test_damage_inside_a_file_is_found_while_reading(tmp_path: Path) -> None:
    recipe = world_recipe(write_world(tmp_path / "log", log()))
    path = tmp_path / "log" / "events.parquet"
    pq.write_table(pa.concat_tables([log()] * 300), path, compression="zstd", use_dictionary=False)
    source = check_recipe(recipe)
    content = bytearray(path.read_bytes())
    content[100 : len(content) // 2] = np.random.default_rng(0).bytes(len(content) // 2 - 100)
    path.write_bytes(content)
    with (
        pytest.raises(DataError, match=r"failed: Encountered error while reading file .*events\.parquet\. Either the"),
        spark_engine(source, tmp_path) as engine,
    ):
        engine.query('SELECT SUM("item_id"), MAX("at"), COUNT("title") FROM "source_events"')


def test_csv_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(f"user_id,item_id,at,liked\n1,1,{FIRST_MS},true\n")
    source = check_recipe(world_recipe({"kind": "table", "events": tmp_path / "log.csv"}))
    with pytest.raises(DataError, match=r"log\.csv: Spark reads CSV by other rules than DuckDB.* Write it as Parquet"):
        spark_engine(source, tmp_path).__enter__()


def test_a_type_that_spark_lacks_is_named(tmp_path: Path) -> None:
    events = log().append_column("hour", pa.array([1] * 120, pa.time64("us")))
    source = check_recipe(world_recipe(write_world(tmp_path / "log", events)))
    with pytest.raises(
        DataError, match=r"events\.parquet: Spark cannot read it: .*TIME.* Write that column in another"
    ):
        spark_engine(source, tmp_path).__enter__()


@pytest.mark.parametrize(
    ("said", "error", "match"),
    [
        (
            "[TASK_WRITE_FAILED] Task failed.\nCaused by: java.io.IOException: No space left on device",
            OSError,
            "No space",
        ),
        (
            "java.lang.OutOfMemoryError: Java heap space",
            DataError,
            "Spark ran out of memory, or ended, .*--driver-memory",
        ),
    ],
)
def test_a_full_disk_and_a_full_memory_are_said_in_our_words(
    tmp_path: Path, said: str, error: type[Exception], match: str
) -> None:
    from pyspark.errors import PySparkException

    source = check_recipe(world_recipe(write_world(tmp_path / "log", log())))
    with pytest.raises(error, match=match) as caught, translated_errors(source, tmp_path):
        raise PySparkException(said)
    assert not isinstance(caught.value, OSError) or caught.value.errno == errno.ENOSPC


def test_a_spark_that_is_gone_and_parts_that_are_elsewhere_are_told(tmp_path: Path) -> None:
    source = check_recipe(world_recipe(write_world(tmp_path / "log", log())))
    with pytest.raises(DataError, match=r"or ended, .*events\.parquet"), translated_errors(source, tmp_path):
        raise ConnectionRefusedError("Connection refused")
    assert "finds no parts there. Name a folder for runs" in str(_elsewhere(tmp_path))


def test_without_java_or_with_no_master_spark_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"--spark-master here: Spark did not start: .*local\[2\] for two threads"):
        _start("here", tmp_path)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(RecipeError, match="Spark needs Java 17 or later, and JAVA_HOME is .*Install it"):
        _start("local[2]", tmp_path)
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RecipeError, match="there is no java on the PATH"):
        _start("local[2]", tmp_path)


def test_a_running_spark_keeps_its_views_and_settings(tmp_path: Path, session: Any) -> None:
    source = check_recipe(popularity_only(tmp_path / "log"))
    session.conf.set("spark.sql.session.timeZone", "Asia/Shanghai")
    with spark_engine(source, tmp_path):
        pass
    assert session.conf.get("spark.sql.session.timeZone") == "Asia/Shanghai"
    assert session.catalog.listTables() == []
    assert session.sql("SELECT 1").collect()[0][0] == 1


def test_the_command_line_prepares_with_spark(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text(dump_recipe(popularity_only(tmp_path / "log")))
    options = ["--engine", "spark", "--spark-master", "local[2]", "--runs", str(tmp_path / "runs")]
    app(["prepare", str(tmp_path / "recipe.yaml"), *options], standalone_mode=False)
    output = capfd.readouterr()
    assert "train window" in output.out and "java" not in output.err.lower()  # noqa: PT018
    assert rows_of(tmp_path / "runs" / "world" / "prepare", "test") > 0
