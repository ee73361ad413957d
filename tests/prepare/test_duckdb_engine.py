import errno
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.worlds import DAY_MS, FIRST_MS, SPLIT, world_recipe, write_world
from twofold.errors import DataError, RecipeError, RunError
from twofold.prepare.check import check_recipe
from twofold.prepare.duckdb_engine import _translated_errors, duckdb_engine
from twofold.prepare.funnel import funnel_lines
from twofold.prepare.run_plan import prepare
from twofold.recipe.schema import Recipe
from twofold.run_folder import locked

ITEMS = pa.table({"item_id": [0, 1], "creator": ["a", "b"], "tags": [["x"], []], "uploaded_at": [FIRST_MS, FIRST_MS]})


def log(*, users: int = 3, items: int = 4, at: Any = None, liked: bool | None | str = "even") -> pa.Table:
    """Every user meets every item on every one of the six days, and likes the even ones."""
    lines = [(user, item, day) for user in range(users) for item in range(items) for day in range(6)]
    user_id, item_id, day = np.array(lines).T
    return pa.table(
        {
            "user_id": user_id,
            "item_id": item_id,
            "at": FIRST_MS + day * DAY_MS + item_id if at is None else [at] * len(lines),
            "liked": pa.array(item_id % 2 == 0 if liked == "even" else [liked] * len(lines), pa.bool_()),
            "title": ["a title"] * len(lines),
        }
    )


def recipe_of(
    folder: Path, events: pa.Table, items: pa.Table | None = None, item_features: Any = None, **parts: Any
) -> Recipe:
    """A recipe over a log; `parts` go to its `prepare`."""
    features = {"user": [{"kind": "time", "part": "hour"}], "item": item_features or [{"kind": "id"}]}
    prepare_part = {"positive": "liked", "split": SPLIT} | parts
    return world_recipe(write_world(folder / "log", events, items), {"prepare": prepare_part, "features": features})


# --- what is written --------------------------------------------------------------------------------------------------


def test_the_facts_say_what_the_files_hold(tmp_path: Path) -> None:
    facts = prepare(recipe_of(tmp_path, log(), filters=[{"kind": "users", "min_events": 2}]), tmp_path)
    train = {"rows": 3 * 4 * 4, "users": 3, "items": 4, "positive_share": 0.5}
    judged = {"rows": 3 * 4, "users": 3, "items": 4, "positive_share": 0.5}
    assert facts["splits"] == {"train": train, "validation": judged, "test": judged}
    for split, expected in facts["splits"].items():
        assert pq.read_metadata(tmp_path / "rows" / f"split={split}" / "shard=0.parquet").num_rows == expected["rows"]
    assert (facts["first_at"], facts["last_at"]) == (FIRST_MS, FIRST_MS + 5 * DAY_MS + 3)
    assert json.loads((tmp_path / "funnel.json").read_text()) == facts["funnel"]
    assert [asdict(line) for line in funnel_lines(facts["funnel"])] == facts["funnel"]
    assert json.loads(json.dumps(facts)) == facts


def test_the_same_log_gives_the_same_bytes_in_any_order_and_leaves_no_spill(tmp_path: Path) -> None:
    shuffled = log().take(pa.array(np.random.default_rng(0).permutation(3 * 4 * 6)))
    outs = []
    for number, events in enumerate((log(), shuffled)):
        outs.append(tmp_path / str(number) / "prepare")
        outs[-1].mkdir(parents=True)
        prepare(recipe_of(tmp_path / str(number), events), outs[-1])
    files = [{path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} for out in outs]
    assert files[0] == files[1]
    assert sorted(str(path) for path in files[0]) == [
        "events/shard=0.parquet",
        "funnel.json",
        "items.parquet",
        "rows/split=test/shard=0.parquet",
        "rows/split=train/shard=0.parquet",
        "rows/split=validation/shard=0.parquet",
        "users.parquet",
    ]
    assert not (outs[0] / "spill").exists()


def test_text_ids_stay_text_and_are_sorted_by_code_point(tmp_path: Path) -> None:
    events = log(users=2, items=4)
    names = pa.array(["Ä", "z", "a", "Z", "10", "9", "é", "ab"])
    events = events.set_column(1, "item_id", names.take(events["item_id"].combine_chunks()))
    prepare(recipe_of(tmp_path, events), tmp_path)
    assert pq.read_table(tmp_path / "items.parquet")["item_id"].to_pylist() == sorted(["Ä", "z", "a", "Z"])


def test_zoned_timestamps_are_read_by_the_locked_engine(tmp_path: Path) -> None:
    events = log()
    moments = events["at"].cast(pa.timestamp("ms", tz="UTC")).cast(pa.timestamp("us", tz="America/New_York"))
    facts = prepare(recipe_of(tmp_path, events.set_column(2, "at", moments)), tmp_path)
    assert facts["first_at"] == FIRST_MS


def test_a_folder_left_by_a_killed_attempt_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "spill").mkdir()
    (tmp_path / "spill" / "duckdb_temp_storage-0.tmp").write_bytes(b"half")
    (tmp_path / "rows" / "split=train").mkdir(parents=True)
    (tmp_path / "rows" / "split=train" / "shard=0.parquet").write_bytes(b"half")
    prepare(recipe_of(tmp_path, log()), tmp_path)
    assert pq.read_metadata(tmp_path / "rows" / "split=train" / "shard=0.parquet").num_rows == 3 * 4 * 4
    assert not (tmp_path / "spill").exists()


@pytest.mark.slow
def test_the_shipped_log(tmp_path: Path, kuairand_folder: Path) -> None:
    days = {
        "kind": "temporal",
        "train": {"first": "2022-04-09", "end": "2022-05-07"},
        "validation": {"first": "2022-05-07", "end": "2022-05-08"},
        "test": {"first": "2022-05-08", "end": "2022-05-09"},
    }
    recipe = world_recipe(
        {"kind": "table", **{name: kuairand_folder / f"{name}.parquet" for name in ("events", "items", "users")}},
        {"prepare": {"positive": "long_view OR liked", "time_zone": "Asia/Shanghai", "split": days}},
    )
    facts = prepare(recipe, tmp_path)
    lines = {line.name: line for line in funnel_lines(facts["funnel"])}
    assert lines["log"].rows == 228_329 + 817_187
    assert lines["without exact duplicates"].removed == 5_460
    assert lines["no estimated time in validation or test"].removed == 0
    assert lines["outside the windows"].rows == 0
    assert lines["train window"].positives == 359_299
    assert facts["splits"]["validation"]["rows"] == 13_468
    assert facts["splits"]["test"]["rows"] == 15_324
    assert facts["odd_rows"] == {"length of 0 or less": 3_568, "watched longer than long": 34_254}
    _files_agree_with_a_second_way_of_counting(tmp_path)


def _files_agree_with_a_second_way_of_counting(out: Path) -> None:
    """Histories counted with searchsorted instead of a window, on the whole shipped log."""
    events = pq.read_table(out / "events" / "shard=0.parquet")
    user, at, item = (np.asarray(events[name]) for name in ("user_id", "at", "item_id"))
    assert np.array_equal(np.lexsort((item, at, user)), np.arange(len(user)))
    order = user * 2**42 + at  # one rising number: users below 2^16, times below 2^41
    for kind in ("positive", "negative"):
        of_kind = order[np.asarray(events[f"is_{kind}"])]
        for split in ("train", "validation", "test"):
            rows = pq.read_table(out / "rows" / f"split={split}" / "shard=0.parquet", partitioning=None)
            keys = np.asarray(rows["user_id"]) * 2**42
            before = np.searchsorted(of_kind, keys + np.asarray(rows["at"])) - np.searchsorted(of_kind, keys)
            assert np.array_equal(before, np.asarray(rows[f"{kind}s_before"]))


# --- what is refused before rows are read -----------------------------------------------------------------------------


def test_a_rule_over_a_missing_column_names_its_field(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"prepare\.positive reads `likes`, .*nearest: `liked`"):
        check_recipe(recipe_of(tmp_path, log(), positive="likes"))
    with pytest.raises(RecipeError, match=r"prepare\.negative reads `skipped`, which does not exist"):
        check_recipe(recipe_of(tmp_path, log(), negative="skipped"))


def test_a_rule_over_lists_or_dates_names_field_and_type(tmp_path: Path) -> None:
    events = log()
    day = pa.array([19_000] * events.num_rows, pa.int32()).cast(pa.date32())
    events = events.append_column("tags", pa.array([["x"]] * events.num_rows)).append_column("day", day)
    with pytest.raises(
        RecipeError, match=r"prepare\.positive reads tags, which is VARCHAR\[\]; a rule reads numbers.*Rule: tags"
    ):
        check_recipe(recipe_of(tmp_path, events, positive="tags > 1"))
    with pytest.raises(RecipeError, match=r"prepare\.negative reads day, which is DATE; a rule reads numbers"):
        check_recipe(recipe_of(tmp_path, events, negative="day = '2022-01-08'"))


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (
            {"kind": "category", "column": "creators"},
            r"features\.item\.1\.column reads creators, .*nearest: creator; columns available",
        ),
        (
            {"kind": "category", "column": "tags"},
            r"features\.item\.1\.column reads tags .*VARCHAR\[\]; .*read by kind: bag",
        ),
        ({"kind": "bag", "column": "creator"}, r"column reads creator .*VARCHAR; kind: bag needs a list column"),
        ({"kind": "number", "column": "creator", "scale": "log"}, r"creator .*VARCHAR; kind: number needs a number"),
    ],
)
def test_an_item_feature_over_a_wrong_column_names_its_field(
    tmp_path: Path, feature: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        check_recipe(recipe_of(tmp_path, log(), ITEMS, [{"kind": "id"}, feature]))


def test_age_needs_the_moment_of_upload(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"features\.item\.1, the item's age, reads uploaded_at, which the items of .* do not"
    ):
        check_recipe(recipe_of(tmp_path, log(), ITEMS.drop_columns(["uploaded_at"]), [{"kind": "id"}, {"kind": "age"}]))


def test_features_of_every_kind_over_the_right_columns_pass(tmp_path: Path) -> None:
    items = ITEMS.append_column("length_s", pa.array([1.5, 2.5]))
    uploaded = pa.array([FIRST_MS] * 2).cast(pa.timestamp("ms"))
    items = items.set_column(items.column_names.index("uploaded_at"), "uploaded_at", uploaded)
    features = [
        {"kind": "id"},
        {"kind": "category", "column": "creator"},
        {"kind": "bag", "column": "tags"},
        {"kind": "number", "column": "length_s", "scale": "standard"},
        {"kind": "age"},
    ]
    assert check_recipe(recipe_of(tmp_path, log(), items, features)).items.columns["uploaded_at"] == "BIGINT"


# --- the disk, and what else the engine may touch ---------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_said_in_the_words_of_the_run(tmp_path: Path) -> None:
    source = check_recipe(recipe_of(tmp_path, log()))
    with pytest.raises(OSError, match="No space left") as caught, _translated_errors(source, tmp_path):
        duckdb.execute("COPY (SELECT 1 AS x) TO '/dev/full' (FORMAT parquet)")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path))
    with (
        pytest.raises(RunError, match=r"the disk is full: writing .* failed with"),
        locked(tmp_path / "run"),
        _translated_errors(source, tmp_path),
    ):
        duckdb.execute("COPY (SELECT 1 AS x) TO '/dev/full' (FORMAT parquet)")


def test_a_full_spill_folder_is_a_full_disk_and_a_full_memory_is_not(tmp_path: Path) -> None:
    source = check_recipe(recipe_of(tmp_path, log()))
    with duckdb.connect(config={"memory_limit": "60MB", "threads": 1}) as connection:
        heavy = "CREATE TABLE big AS SELECT range, HASH(range) AS x FROM range(20000000) ORDER BY x"
        connection.execute(f"SET temp_directory = '{tmp_path / 'spill'}'")
        connection.execute("SET max_temp_directory_size = '1MB'")
        with pytest.raises(OSError, match="No space left"), _translated_errors(source, tmp_path):
            connection.execute(heavy)
    with (
        duckdb.connect(config={"memory_limit": "60MB", "threads": 1, "temp_directory": ""}) as connection,
        pytest.raises(DataError, match=r"preparing .* ran out of memory: .*Allow more with --memory"),
        _translated_errors(source, tmp_path),
    ):
        connection.execute(heavy)


def test_the_engine_reads_the_log_and_writes_the_stage_and_nothing_else(tmp_path: Path) -> None:
    source = check_recipe(recipe_of(tmp_path, log(), ITEMS))
    secret = tmp_path / "secret.csv"
    secret.write_text("password\n1234\n")
    with duckdb_engine(source, tmp_path / "out") as engine:
        query = engine.query
        assert query(f"SELECT COUNT(*) FROM ({source.events.select_sql()})") == [(72,)]
        for statement in (
            f"SELECT * FROM read_text('{secret}')",
            f"COPY (SELECT 1) TO '{tmp_path / 'elsewhere.parquet'}'",
            "SET enable_external_access = true",
            "SET allowed_directories = ['/']",
            "INSTALL httpfs",
        ):
            with pytest.raises(duckdb.Error, match="disabled|locked"):
                query(statement)
