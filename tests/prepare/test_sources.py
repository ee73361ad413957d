from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import sqlglot

from tests.worlds import FIRST_MS, write_world
from twofold.errors import DataError, RecipeError
from twofold.prepare.duckdb_connection import open_duckdb
from twofold.prepare.sources import open_source
from twofold.recipe.data import Table

LOG = pa.table({"user_id": [1, 2], "item_id": [10, 20], "at": [FIRST_MS, FIRST_MS + 1], "liked": [True, False]})


def table(folder: Path, events: pa.Table, items: pa.Table | None = None) -> Table:
    return Table.model_validate(write_world(folder, events, items))


def rows(sql: str) -> list[tuple[Any, ...]]:
    return duckdb.execute(sql).fetchall()


def with_column(name: str, values: Any) -> pa.Table:
    return LOG.set_column(LOG.column_names.index(name), name, pa.array(values))


# --- any table --------------------------------------------------------------------------------------------------------


def test_a_table_gives_its_columns_and_types_without_reading_rows(tmp_path: Path) -> None:
    items = pa.table({"item_id": pa.array([10], pa.int32()), "tags": [["a"]]})
    source = open_source(table(tmp_path, LOG, items))
    assert source.events.columns == {"user_id": "BIGINT", "item_id": "BIGINT", "at": "BIGINT", "liked": "BOOLEAN"}
    assert source.items.columns == {"item_id": "BIGINT", "tags": "VARCHAR[]"}
    assert source.users.columns == {"user_id": "BIGINT"}
    assert rows(source.events.select_sql()) == [(1, 10, FIRST_MS, True), (2, 20, FIRST_MS + 1, False)]
    assert rows(source.items.select_sql()) == [(10, ["a"])]
    assert rows(source.users.select_sql()) == []


@pytest.mark.parametrize(
    ("type_", "becomes"),
    [(pa.int8(), "BIGINT"), (pa.uint16(), "BIGINT"), (pa.uint64(), "BIGINT"), (pa.string(), "VARCHAR")],
)
def test_ids_become_bigint_or_text(tmp_path: Path, type_: pa.DataType, becomes: str) -> None:
    source = open_source(table(tmp_path, with_column("user_id", pa.array([1, 2]).cast(type_))))
    assert source.events.columns["user_id"] == becomes
    assert [row[0] for row in rows(source.events.select_sql())] == ([1, 2] if becomes == "BIGINT" else ["1", "2"])


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Shanghai"])
def test_timestamps_become_utc_milliseconds(tmp_path: Path, unit: str, zone: str | None) -> None:
    at = pa.array([FIRST_MS, FIRST_MS + 1000]).cast(pa.timestamp("ms")).cast(pa.timestamp(unit, tz=zone))
    source = open_source(table(tmp_path, LOG.set_column(2, "at", at)))
    assert source.events.columns["at"] == "BIGINT"
    assert [row[2] for row in rows(source.events.select_sql())] == [FIRST_MS, FIRST_MS + 1000]


def test_a_csv_is_a_table_too(tmp_path: Path) -> None:
    pa_csv.write_csv(LOG, tmp_path / "log.csv")
    source = open_source(Table(kind="table", events=tmp_path / "log.csv"))
    assert rows(source.events.select_sql()) == [(1, 10, FIRST_MS, True), (2, 20, FIRST_MS + 1, False)]


def test_a_folder_of_files_is_one_table_and_its_name_adds_no_column(tmp_path: Path) -> None:
    folder = tmp_path / "liked=1" / "it's [new]*"
    folder.mkdir(parents=True)
    for part in range(3):
        pq.write_table(LOG, folder / f"part-{part}.parquet")
    source = open_source(Table(kind="table", events=folder))
    assert list(source.events.columns) == LOG.column_names
    assert len(rows(source.events.select_sql())) == 3 * len(LOG)
    assert len(source.files) == 3


def test_a_column_of_any_name_is_passed_on(tmp_path: Path) -> None:
    source = open_source(table(tmp_path, LOG.append_column('select "x"; --', pa.array([1, 2]))))
    assert [row[4] for row in rows(source.events.select_sql())] == [1, 2]


# --- columns under other names, moments in other units ----------------------------------------------------------------


def test_columns_are_renamed_in_every_table_that_has_them(tmp_path: Path) -> None:
    events = LOG.rename_columns(["uid", "movie", "timestamp", "liked"])
    items = pa.table({"movie": [10], "title": ["x"]})
    renaming = {"user_id": "uid", "item_id": "movie", "at": "timestamp", "name": "title"}
    source = open_source(table(tmp_path, events, items).model_copy(update={"columns": renaming}))
    assert list(source.events.columns) == ["user_id", "item_id", "at", "liked"]
    assert list(source.items.columns) == ["item_id", "name"]
    assert rows(source.events.select_sql()) == [(1, 10, FIRST_MS, True), (2, 20, FIRST_MS + 1, False)]
    assert rows(source.items.select_sql()) == [(10, "x")]


def test_one_column_may_have_two_names_and_two_columns_may_swap_theirs(tmp_path: Path) -> None:
    renaming = {"user_id": "item_id", "item_id": "user_id", "thumb": "liked", "liked": "liked"}
    source = open_source(table(tmp_path, LOG).model_copy(update={"columns": renaming}))
    assert list(source.events.columns) == ["item_id", "user_id", "at", "thumb", "liked"]
    assert rows(source.events.select_sql())[0] == (1, 10, FIRST_MS, True, True)


def test_a_renamed_column_that_no_table_has_is_answered_with_the_nearest(tmp_path: Path) -> None:
    items = pa.table({"item_id": [10], "length": [1.0]})
    data = table(tmp_path, LOG, items).model_copy(update={"columns": {"length_s": "lenght"}})
    with pytest.raises(
        RecipeError,
        match=r"data\.columns\.length_s: no table has a column lenght \(nearest: length; columns of events: user_id, .*"
        r"; items: item_id, length\)",
    ):
        open_source(data)


def test_a_new_name_that_another_column_has_is_refused(tmp_path: Path) -> None:
    events = LOG.append_column("ts", LOG["at"])
    data = table(tmp_path, events).model_copy(update={"columns": {"at": "ts"}})
    with pytest.raises(RecipeError, match=r"would give .*events\.parquet two columns at: its own at and ts\. Give the"):
        open_source(data)
    with pytest.raises(RecipeError, match=r"two columns At"):
        open_source(data.model_copy(update={"columns": {"At": "ts"}}))
    both = data.model_copy(update={"columns": {"at": "ts", "at_too": "at"}})
    assert list(open_source(both).events.columns) == ["user_id", "item_id", "at_too", "liked", "at"]


@pytest.mark.parametrize(("unit", "a_ms"), [("s", 0.001), ("ms", 1), ("us", 1_000), ("ns", 1_000_000)])
def test_integer_moments_become_milliseconds(tmp_path: Path, unit: str, a_ms: float) -> None:
    at = pa.array([round(moment * a_ms) for moment in (FIRST_MS, FIRST_MS + 5_000)])
    items = pa.table({"item_id": [10], "uploaded_at": at[:1]})
    data = table(tmp_path, LOG.set_column(2, "at", at), items).model_copy(update={"at_unit": unit})
    source = open_source(data)
    assert [row[2] for row in rows(source.events.select_sql())] == [FIRST_MS, FIRST_MS + 5_000]
    assert rows(source.items.select_sql()) == [(10, FIRST_MS)]


# --- for engines other than DuckDB ------------------------------------------------------------------------------------


def test_a_table_can_be_selected_from_what_an_engine_calls_it(tmp_path: Path) -> None:
    source = open_source(
        table(tmp_path, LOG.rename_columns(["uid", "item_id", "at", "liked"])).model_copy(
            update={"columns": {"user_id": "uid"}, "at_unit": "us"}
        )
    )
    assert source.events.own == {"uid": "BIGINT", "item_id": "BIGINT", "at": "BIGINT", "liked": "BOOLEAN"}
    assert (source.events.kind, len(source.events.files)) == ("parquet", 1)
    assert source.events.projection["user_id"] == ("BIGINT", '"uid"')
    spark = sqlglot.transpile(source.events.select_sql("log"), read="duckdb", write="spark")
    assert spark == [
        "SELECT CAST(`uid` AS BIGINT) AS `user_id`, CAST(`item_id` AS BIGINT) AS `item_id`, "
        "CAST(CAST(`at` AS BIGINT) DIV 1000 AS BIGINT) AS `at`, CAST(`liked` AS BOOLEAN) AS `liked` FROM log"
    ]
    assert source.users.files == ()
    assert rows(source.users.select_sql("log")) == []


def test_timestamps_are_written_as_spark_writes_them(tmp_path: Path) -> None:
    at = pa.array([FIRST_MS, FIRST_MS + 1000]).cast(pa.timestamp("us", tz="UTC"))
    source = open_source(table(tmp_path, LOG.set_column(2, "at", at)))
    spark = sqlglot.transpile(source.events.select_sql("log"), read="duckdb", write="spark")[0]
    assert "DATEDIFF(MILLISECOND, CAST('1970-01-01 00:00:00+00' AS TIMESTAMP), CAST(`at` AS TIMESTAMP))" in spark


def test_lists_pass_through(tmp_path: Path) -> None:
    vectors = pa.array([[0.5, 1.0]], pa.list_(pa.float32()))
    source = open_source(table(tmp_path, LOG, pa.table({"item_id": [10], "tags": [["a"]], "vector": vectors})))
    assert source.items.columns == {"item_id": "BIGINT", "tags": "VARCHAR[]", "vector": "FLOAT[]"}
    assert rows(source.items.select_sql()) == [(10, ["a"], [0.5, 1.0])]


# --- bad tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (
            "user_id",
            [1.0, 2.0],
            r"events\.parquet: user_id is DOUBLE; .*such as 1e\+05.*Write the column as BIGINT",
        ),
        ("item_id", [[1], [2]], r"item_id is BIGINT\[\]; an id is an integer or text"),
        (
            "at",
            [1.5e12, 1.6e12],
            r"at is DOUBLE; it must be UTC time as whole numbers \(1650816000000; data\.at_unit says of what\)",
        ),
        ("at", ["2024-01-01", "1.2.2024"], r"at is text, and '1.2.2024' cannot be read as a time"),
        ("at", [True, False], r"at is BOOLEAN; it must be UTC time"),
    ],
)
def test_a_column_of_the_wrong_type_is_refused(tmp_path: Path, column: str, values: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(table(tmp_path, with_column(column, values)))


def test_a_date_is_its_midnight_and_a_text_has_its_offset(tmp_path: Path) -> None:
    days = pa.array([19000, 19001], pa.int32()).cast(pa.date32())
    texts = pa.array(["2022-01-08T05:30:00+05:30", "2022-01-09"])
    for number, times in enumerate((days, texts)):
        (folder := tmp_path / str(number)).mkdir()
        source = open_source(table(folder, LOG.set_column(2, "at", times)))
        with open_duckdb(None, folders=[folder]) as engine:  # its time zone is UTC, whatever that of the machine
            found = engine.execute(f'SELECT "at" FROM ({source.events.select_sql()})').fetchall()
        assert sorted(found) == [
            (19000 * 86_400_000,),
            (19001 * 86_400_000,),
        ]


def test_decimal_commas_are_read_where_the_recipe_says_so(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id;item_id;at;price\n1;7;1704067200000;13,27\n2;8;1704067200001;0,5\n")
    data = Table(kind="table", events=tmp_path / "log.csv")
    assert open_source(data).events.columns["price"] == "VARCHAR"
    source = open_source(data.model_copy(update={"decimal_comma": ("events",)}))
    assert source.events.columns["price"] == "DOUBLE"
    assert duckdb.execute(f'SELECT "price" FROM ({source.events.select_sql()}) ORDER BY 1').fetchall() == [
        (0.5,),
        (13.27,),
    ]


def test_estimated_is_true_or_false(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"at_is_estimated is BIGINT; write it as BOOLEAN"):
        open_source(table(tmp_path, LOG.append_column("at_is_estimated", pa.array([0, 1]))))


def test_a_missing_column_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"events\.parquet has no column user_id \(nearest: userid; its columns: userid, item"
    ):
        open_source(table(tmp_path, LOG.rename_columns(["userid", "item_id", "at", "liked"])))
    with pytest.raises(DataError, match=r"items\.parquet has no column item_id \(nearest: itemid; "):
        open_source(table(tmp_path, LOG, pa.table({"itemid": [1]})))


def test_ids_of_two_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"item_id is VARCHAR in .*items\.parquet, but BIGINT in .*events\.parquet: no id would"
    ):
        open_source(table(tmp_path, LOG, pa.table({"item_id": ["10"]})))


def test_a_missing_file_is_answered_with_what_lies_there(tmp_path: Path) -> None:
    pq.write_table(LOG, tmp_path / "events.parquet")
    with pytest.raises(
        DataError, match=r"data\.events: there is no file .*event\.parquet \(nearest: events\.parquet; "
    ):
        open_source(Table(kind="table", events=tmp_path / "event.parquet"))
    with pytest.raises(DataError, match=r"data\.events: there is no file .*a path is relative to the recipe file"):
        open_source(Table(kind="table", events=tmp_path / "nowhere" / "events.parquet"))
    with pytest.raises(DataError, match=r"data\.items: there is no file"):
        open_source(Table(kind="table", events=tmp_path / "events.parquet", items=tmp_path / "items.parquet"))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"data\.events: .*log\.xlsx holds no file that is read: \.parquet, \.pq"):
        open_source(Table(kind="table", events=tmp_path / "log.xlsx"))
    pq.write_table(LOG, tmp_path / "a.parquet")
    pa_csv.write_csv(LOG, tmp_path / "b.csv")
    with pytest.raises(DataError, match=r"holds csv and parquet files together\. Name one file"):
        open_source(Table(kind="table", events=tmp_path))


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_damaged_file_is_named_with_its_size(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "events.parquet"
    pq.write_table(LOG, path)
    content = {"cut": path.read_bytes()[:-10], "empty": b"", "text": b"user_id,item_id,at\n1,2,3\n"}[damage]
    path.write_bytes(content)
    message = (
        rf"events\.parquet cannot be read as parquet \({len(content):,} bytes\): .*damaged, cut short or of another"
    )
    with pytest.raises(DataError, match=message):
        open_source(Table(kind="table", events=path))


def test_an_empty_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.events: .*events\.parquet has no rows\. Check that the export"):
        open_source(table(tmp_path, LOG.slice(0, 0)))
    (tmp_path / "log.csv").write_text("user_id,item_id,at\n")
    with pytest.raises(DataError, match=r"data\.events: .*log\.csv has no rows"):
        open_source(Table(kind="table", events=tmp_path / "log.csv"))


def test_files_of_a_folder_must_agree(tmp_path: Path) -> None:
    pq.write_table(LOG, tmp_path / "a.parquet")
    pq.write_table(LOG.drop_columns(["liked"]), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet has the columns .* but .*a\.parquet has .*same names and types"):
        open_source(Table(kind="table", events=tmp_path))


# --- fingerprints -----------------------------------------------------------------------------------------------------


def test_a_fingerprint_follows_content_and_not_place(tmp_path: Path) -> None:
    first = open_source(table(tmp_path / "a", LOG)).fingerprint()
    assert open_source(table(tmp_path / "b", LOG)).fingerprint() == first
    assert open_source(table(tmp_path / "b", with_column("liked", [True, True]))).fingerprint() != first
    assert open_source(table(tmp_path / "a", LOG, pa.table({"item_id": [1]}))).fingerprint() != first


def test_a_fingerprint_follows_the_role_of_a_file(tmp_path: Path) -> None:
    pq.write_table(LOG, tmp_path / "log.parquet")
    pq.write_table(pa.table({"item_id": [10], "user_id": [1]}), tmp_path / "side.parquet")
    np.save(tmp_path / "a.npy", np.zeros((1, 2), np.float32))
    np.save(tmp_path / "b.npy", np.ones((1, 2), np.float32))

    def fingerprint(**parts: Any) -> str:
        return open_source(Table(kind="table", events=tmp_path / "log.parquet", **parts)).fingerprint()

    side, a, b = (tmp_path / name for name in ("side.parquet", "a.npy", "b.npy"))
    assert fingerprint(items=side) != fingerprint(users=side)
    both = fingerprint(items=side, vectors={"look": a, "sound": b})
    assert fingerprint(items=side, vectors={"sound": b, "look": a}) == both
    assert fingerprint(items=side, vectors={"sound": a, "look": b}) != both


def test_a_fingerprint_follows_the_vectors_of_items_too(tmp_path: Path) -> None:
    data = table(tmp_path, LOG, pa.table({"item_id": [10]})).model_copy(
        update={"vectors": {"look": tmp_path / "l.npy"}}
    )
    with pytest.raises(DataError, match=r"data\.vectors\.look: there is no file .*l\.npy"):
        open_source(data)
    np.save(tmp_path / "l.npy", np.zeros((1, 2), np.float32))
    before = open_source(data).fingerprint()
    np.save(tmp_path / "l.npy", np.ones((1, 2), np.float32))
    assert open_source(data).fingerprint() != before


def test_a_large_file_is_told_apart_by_its_ends_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twofold.prepare.sources._WHOLE_DIGEST_BYTES", 1_000)
    monkeypatch.setattr("twofold.prepare.sources._END_BYTES", 100)
    noise = np.random.default_rng(0).integers(0, 2**60, size=2_000)
    big = pa.table({"user_id": noise, "item_id": noise, "at": np.arange(2_000) + FIRST_MS})
    source = open_source(table(tmp_path, big))
    before = source.fingerprint()
    assert source.fingerprint() == before
    path = source.files[0]
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)
    assert source.fingerprint() != before
