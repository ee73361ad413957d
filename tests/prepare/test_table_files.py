"""Files of a table: their formats, folders of partitions, and what is refused before a row is read."""

import gzip
import json
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.worlds import FIRST_MS
from twofold.errors import DataError
from twofold.prepare import table_files as table_files_module
from twofold.prepare.sources import open_source
from twofold.prepare.table_files import table_files
from twofold.recipe.data import Table

LOG = pa.table({"user_id": [1, 2], "item_id": [10, 20], "at": [FIRST_MS, FIRST_MS + 1], "liked": [True, False]})
ROWS = [(1, 10, FIRST_MS, True), (2, 20, FIRST_MS + 1, False)]
TEXT = "user_id,item_id,at,liked\n" + "".join(f"{u},{i},{at},{str(liked).lower()}\n" for u, i, at, liked in ROWS)
OBJECTS = [dict(zip(LOG.column_names, row, strict=True)) for row in ROWS]


def rows_at(path: Path) -> list[tuple[object, ...]]:
    source = open_source(Table(kind="table", events=path))
    return duckdb.execute(f'SELECT user_id, item_id, "at", liked FROM ({source.events.select_sql()})').fetchall()


def test_a_file_is_read_again_only_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id\n1,10\n")
    found = table_files(tmp_path / "log.csv", "data.events")
    with monkeypatch.context() as patch:
        patch.setattr(table_files_module, "open_duckdb", None)
        assert table_files(tmp_path / "log.csv", "--log") == found
    (tmp_path / "log.csv").write_text("user_id,item_id\na,10\n")
    assert table_files(tmp_path / "log.csv", "data.events").columns == {"user_id": "VARCHAR", "item_id": "BIGINT"}
    (tmp_path / "log.csv").write_text("user_id,item_id\n")
    with pytest.raises(DataError, match=r"log\.csv has no rows"):
        table_files(tmp_path / "log.csv", "data.events")


# --- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("log.csv", TEXT),
        ("LOG.CSV", TEXT),
        ("log.tsv", TEXT.replace(",", "\t")),
        ("log.csv.gz", TEXT),
        ("log.2024.CSV.GZ", TEXT),
        ("log.json", json.dumps(OBJECTS)),
        ("log.jsonl", "\n".join(map(json.dumps, OBJECTS))),
        ("log.jsonl.gz", "\n".join(map(json.dumps, OBJECTS))),
    ],
)
def test_text_formats_are_read_by_the_ending_of_their_name(tmp_path: Path, name: str, content: str) -> None:
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.lower().endswith(".gz") else data)
    assert rows_at(tmp_path / name) == ROWS


@pytest.mark.parametrize("name", ["log.parquet", "log.pq", "LOG.PARQUET"])
def test_parquet_has_several_endings(tmp_path: Path, name: str) -> None:
    pq.write_table(LOG, tmp_path / name)
    assert rows_at(tmp_path / name) == ROWS


def test_lists_of_json_are_lists(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"item_id": 10, "tags": ["a", "b"]}\n{"item_id": 20, "tags": []}\n')
    pq.write_table(LOG, tmp_path / "log.parquet")
    source = open_source(Table(kind="table", events=tmp_path / "log.parquet", items=tmp_path / "items.jsonl"))
    assert source.items.columns == {"item_id": "BIGINT", "tags": "VARCHAR[]"}


# --- folders ----------------------------------------------------------------------------------------------------------


def test_folders_named_by_a_column_give_that_column_as_text(tmp_path: Path) -> None:
    log = tmp_path / "split=train" / "events"  # a folder above the named one gives no column
    for row, day in enumerate(("2024-01-01", "2024-01-02")):
        part = log / f"day={day}" / f"hour=0{row}" / "part-0.parquet"
        part.parent.mkdir(parents=True)
        pq.write_table(LOG.slice(row, 1), part)
    (log / "_SUCCESS").touch()
    (log / "day=2024-01-01" / ".part-0.parquet.crc").touch()
    source = open_source(Table(kind="table", events=log))
    assert source.events.columns == {
        **{"user_id": "BIGINT", "item_id": "BIGINT", "at": "BIGINT", "liked": "BOOLEAN"},
        **{"day": "VARCHAR", "hour": "VARCHAR"},
    }
    assert source.events.partitions == ("day", "hour")
    assert sorted(duckdb.execute(source.events.select_sql()).fetchall()) == [
        (*ROWS[0], "2024-01-01", "00"),
        (*ROWS[1], "2024-01-02", "01"),
    ]


def test_the_fingerprint_tells_the_folders_of_equal_files_apart(tmp_path: Path) -> None:
    def fingerprint(folder: Path, day: str) -> str:
        part = folder / f"day={day}" / "part-0.parquet"
        part.parent.mkdir(parents=True)
        pq.write_table(LOG, part)
        return open_source(Table(kind="table", events=folder)).fingerprint()

    assert fingerprint(tmp_path / "a", "1") == fingerprint(tmp_path / "b", "1")
    assert fingerprint(tmp_path / "c", "2") != fingerprint(tmp_path / "d", "1")


def test_parts_without_rows_are_left_out(tmp_path: Path) -> None:
    pq.write_table(LOG.slice(0, 0), tmp_path / "part-0.parquet")
    pq.write_table(LOG, tmp_path / "part-1.parquet")
    assert rows_at(tmp_path) == ROWS
    assert [path.name for path in table_files(tmp_path, "data.events").paths] == ["part-1.parquet"]
    pq.write_table(LOG.slice(0, 0), tmp_path / "part-1.parquet")
    with pytest.raises(DataError, match=r"data\.events: each of the 2 files in .* has no rows\. Check that the export"):
        table_files(tmp_path, "data.events")


def test_levels_of_folders_must_agree(tmp_path: Path) -> None:
    (tmp_path / "day=1").mkdir()
    pq.write_table(LOG, tmp_path / "day=1" / "a.parquet")
    pq.write_table(LOG, tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"a\.parquet lies in folders that give the columns .*'day'.* All files need"):
        table_files(tmp_path, "data.events")


def test_a_delta_table_and_endless_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "delta" / "_delta_log").mkdir(parents=True)
    pq.write_table(LOG, tmp_path / "delta" / "part-0.parquet")
    with pytest.raises(DataError, match=r"delta is a Delta table, whose files also hold deleted rows\. Write its curr"):
        table_files(tmp_path / "delta", "data.events")
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "up=1").symlink_to(tmp_path / "loop")
    with pytest.raises(DataError, match=r"is 9 folders deep; at most 8 are read"):
        table_files(tmp_path / "loop", "data.events")


def test_a_link_is_read_under_its_own_name(tmp_path: Path) -> None:
    pq.write_table(LOG, tmp_path / "blob")
    (tmp_path / "log.parquet").symlink_to(tmp_path / "blob")
    assert rows_at(tmp_path / "log.parquet") == ROWS


@pytest.mark.parametrize(("name", "other"), [("star*.csv", "star1.csv"), ("q[1].csv", "q1.csv"), ("w?.csv", "w1.csv")])
def test_a_name_that_is_a_pattern_for_another_file_is_refused(tmp_path: Path, name: str, other: str) -> None:
    (tmp_path / name).write_text(TEXT)
    assert rows_at(tmp_path / name) == ROWS
    (tmp_path / other).write_text(TEXT)
    with pytest.raises(DataError, match=r"is read as a pattern, because of \*, \? or \[ in its name, and .*1\.csv"):
        rows_at(tmp_path / name)


# --- columns ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "repeated"),
    [
        ("user_id,item_id,at,at", "at"),
        ("user_id;item_id;at;AT", "at"),
        ('"user_id","at","item_id","item_id"', "item_id"),
    ],
)
def test_a_repeated_column_is_named(tmp_path: Path, header: str, repeated: str) -> None:
    row = f"1,2,{FIRST_MS},3\n".replace(",", ";" if ";" in header else ",")
    (tmp_path / "log.csv").write_text(f"{header}\n{row}")
    with pytest.raises(DataError, match=rf"log\.csv has several columns {repeated} \(upper and lower case"):
        table_files(tmp_path / "log.csv", "data.events")


def test_a_repeated_column_of_parquet_is_named_and_a_number_at_the_end_is_no_repetition(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array([1])] * 2, names=["at", "At"]), tmp_path / "log.parquet")
    with pytest.raises(DataError, match=r"several columns at .* Its columns: at, At\."):
        table_files(tmp_path / "log.parquet", "data.events")
    (tmp_path / "tags.csv").write_text("tag,tag_1,tag_2\na,b,c\n")
    assert list(table_files(tmp_path / "tags.csv", "data.items").columns) == ["tag", "tag_1", "tag_2"]


def days(*written: str) -> str:
    return "user_id,item_id,at\n" + "".join(f"{row},{row},{day} 10:00:00\n" for row, day in enumerate(written))


def test_days_that_may_be_months_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(days("01/05/2024", "01/06/2024"))
    with pytest.raises(DataError, match=r"log\.csv: at holds days such as 01/05/2024, .* Write them as 2024-05-01\."):
        open_source(Table(kind="table", events=path))


@pytest.mark.parametrize("written", [("01/05/2024", "13/05/2024"), ("01.05.2024", "02.05.2024"), ("2024-05-01",)])
def test_days_that_can_be_told_are_read_day_first(tmp_path: Path, written: tuple[str, ...]) -> None:
    (tmp_path / "log.csv").write_text(days(*written))
    source = open_source(Table(kind="table", events=tmp_path / "log.csv"))
    assert duckdb.execute(
        f'SELECT MIN(MONTH(MAKE_TIMESTAMP("at" * 1000))) FROM ({source.events.select_sql()})'
    ).fetchall() == [(5,)]


@pytest.mark.parametrize(("name", "values"), [("length_s", ["03:25", "x"]), ("watch_s", [[1.0], [2.0]])])
def test_seconds_that_are_no_numbers_are_refused_with_a_way_out(
    tmp_path: Path, name: str, values: list[object]
) -> None:
    pq.write_table(LOG.append_column(name, pa.array(values)), tmp_path / "log.parquet")
    message = rf"log\.parquet: {name} is .*; a column of that name is seconds as a number\. .*{{{name}_of_log: {name}}}"
    with pytest.raises(DataError, match=message):
        open_source(Table(kind="table", events=tmp_path / "log.parquet"))
    renamed = Table(kind="table", events=tmp_path / "log.parquet", columns={f"{name}_of_log": name})
    assert f"{name}_of_log" in open_source(renamed).events.columns


# --- what is missing --------------------------------------------------------------------------------------------------


def test_null_of_databases_is_missing_in_csv(tmp_path: Path) -> None:
    lines = ["7,1,2024-03-01,2", "NULL,2,2024-03-02,NULL", "\\N,3,2024-03-03,\\N", ",4,2024-03-04,", "8,NULL,NULL,3"]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,at,stars", *lines]))
    source = open_source(Table(kind="table", events=tmp_path / "log.csv"))
    assert source.events.columns == dict.fromkeys(("user_id", "item_id", "at", "stars"), "BIGINT")
    found = duckdb.execute(f'SELECT "user_id", "item_id", "at" IS NULL, "stars" FROM ({source.events.select_sql()})')
    missing = [(None, 2, False, None), (None, 3, False, None), (None, 4, False, None)]
    assert found.fetchall() == [(7, 1, False, 2), *missing, (8, None, True, 3)]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet", "dictionary.parquet"])
def test_an_id_of_empty_text_is_missing(tmp_path: Path, ending: str) -> None:
    users, items, log = ["a", "", "b"], ["x", "y", ""], tmp_path / f"log.{ending}"
    objects = [{"user_id": user, "item_id": item, "at": 1} for user, item in zip(users, items, strict=True)]
    if ending == "jsonl":
        log.write_text("\n".join(map(json.dumps, objects)))
    elif ending == "csv":
        log.write_text(
            "user_id,item_id,at\n" + "".join(f'"{row["user_id"]}","{row["item_id"]}",1\n' for row in objects)
        )
    else:
        table = pa.Table.from_pylist(objects)
        keys = {
            name: table[name].dictionary_encode() if "dictionary" in ending else table[name]
            for name in table.column_names
        }
        pq.write_table(pa.table(keys | {"at": table["at"]}), log)
    source = open_source(Table(kind="table", events=log))
    found = duckdb.execute(f'SELECT "user_id", "item_id" FROM ({source.events.select_sql()})').fetchall()
    assert found == [("a", "x"), (None, "y"), ("b", None)]


@pytest.mark.parametrize(("line", "values"), [("1,2,3", 3), ("1,2,3,true,extra", 5), ('"a,b",2,3,true,extra', 5)])
def test_the_first_line_with_another_number_of_values_is_named(tmp_path: Path, line: str, values: int) -> None:
    rows = [f"{user},{item},{FIRST_MS},true" for user in range(20) for item in range(20)]
    rows[300] = line
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,at,liked", *rows]) + "\n")
    with pytest.raises(DataError) as refused:
        table_files(tmp_path / "log.csv", "data.events")
    first = f"data.events: line 302 of {tmp_path / 'log.csv'} has {values} values, the header 4: {line}"
    assert str(refused.value).splitlines()[0] == first
    assert "Mend or remove the line" in str(refused.value)
