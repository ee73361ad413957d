from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from twofold.errors import DataError, RecipeError
from twofold.ingest import inspect_log as looking
from twofold.ingest import inspect_table
from twofold.ingest.column_roles import GivenColumns
from twofold.ingest.draft_recipe import draft_recipe
from twofold.ingest.inspect_log import Answers, LogProfile, check_draft, profile_log
from twofold.ingest.inspect_table import engine, look_at_table
from twofold.ingest.table_profile import EventFacts
from twofold.prepare.last_days import with_dates
from twofold.prepare.run_plan import prepare
from twofold.recipe.load import load_recipe
from twofold.recipe.schema import Recipe
from twofold.recipe.split import TemporalSplit

FIRST_S = 1_704_067_200  # 1 January 2024, 00:00 UTC
DAY_S = 86_400
ROWS = 1200


def keys(days: int = 10) -> dict[str, Any]:
    """20 users, 30 items, and moments in seconds, evenly over the days."""
    numbers = np.arange(ROWS)
    return {
        "user": numbers % 20,
        "item": numbers * 7 % 30 + numbers // 600,
        "seconds": FIRST_S + numbers * days * DAY_S // ROWS,
    }


def write(path: Path, columns: dict[str, Any]) -> Path:
    table = pa.table(columns)
    if path.suffix == ".csv":
        pa_csv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return path


def drafted(seen: LogProfile, folder: Path) -> Recipe:
    """The recipe that is drafted of what was seen, as it loads from a file."""
    text = draft_recipe(seen, name="drafted", folder=folder)
    check_draft(text, folder)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return load_recipe(folder / "recipe.yaml")


def prepared(seen: LogProfile, folder: Path) -> dict[str, Any]:
    """Prepares the log by its drafted recipe."""
    (folder / "run").mkdir()
    return prepare(with_dates(drafted(seen, folder)), folder / "run")


# --- logs as they are found -------------------------------------------------------------------------------------------


def test_a_short_video_log(tmp_path: Path, short_video: Path) -> None:
    seen = profile_log(short_video)
    assert seen.roles.taken_as == {
        "user_id": "user",
        "video_id": "item",
        "time_ms": "time (ms)",
        "play_time_ms": "watch time (ms)",
        "duration_ms": "length (ms)",
        "is_like": "positive flag",
    }
    rule = "is_like OR watch_s >= LEAST(length_s, 18) AND length_s > 0"
    assert seen.roles.signals.positive == rule
    liked = duckdb.execute(
        f"SELECT SUM((is_like = 1 OR play_time_ms >= LEAST(duration_ms, 18000))::INT) FROM '{short_video}'"
    ).fetchall()[0][0]
    pairs = len({*zip(keys()["user"].tolist(), keys()["item"].tolist(), strict=True)})
    assert (seen.events.rows, seen.events.positives) == (ROWS + 2, liked)
    assert (seen.events.users, seen.events.items) == (20, 31)
    assert (seen.events.duplicates, seen.events.repeats) == (2, ROWS - pairs)
    assert (seen.events.median_events, seen.events.busiest_events) == (ROWS // 20, ROWS // 20 + 1)
    assert [day.events for day in seen.events.days] == [122, *[120] * 9]
    facts = prepared(seen, tmp_path)
    assert [facts["splits"][split]["rows"] for split in ("validation", "test")] == [120, 120]


def test_ids_that_begin_with_zeros_late_in_a_file_are_not_read_as_numbers(tmp_path: Path) -> None:
    numbers = np.arange(21_000)  # DuckDB guesses types from 20,480 rows
    users = ["0007", *(f"{number % 20 + 1}" for number in numbers[1:])][::-1]
    rows = {"user_id": users, "item_id": numbers % 30, "at": FIRST_S + numbers * 60}
    log = tmp_path / "log.csv"
    pa_csv.write_csv(pa.table(rows), log, pa_csv.WriteOptions(quoting_style="none"))
    with pytest.raises(
        DataError, match=r"(?s)user_id has ids such as 0007, .* the number 7.*types = {'user_id': 'VARCH"
    ):
        profile_log(log)


def test_of_ratings_with_many_values_all_are_counted(tmp_path: Path) -> None:
    ratings = {"user_id": keys()["user"], "item_id": keys()["item"], "rating": np.arange(ROWS) * 100 / ROWS}
    signals = profile_log(write(tmp_path / "log.parquet", ratings | {"at": keys()["seconds"]})).roles.signals
    assert (signals.positive, signals.reason) == ("rating >= 80", "20% of the ratings are 80 or more")


def test_ratings_in_seconds_as_csv(tmp_path: Path) -> None:
    key = keys(days=4000)
    ratings = (np.arange(ROWS) % 10 + 1) / 2
    columns = {"userId": key["user"], "movieId": key["item"], "rating": ratings, "timestamp": key["seconds"]}
    movies = {"movieId": np.arange(31), "title": [f"Film {n}" for n in range(31)], "genres": ["a|b", *["c"] * 30]}
    log = write(tmp_path / "ratings.csv", columns)
    seen = profile_log(log, items=write(tmp_path / "movies.csv", movies))
    assert (seen.data.at_unit, seen.roles.signals.positive) == ("s", "rating >= 4")
    assert seen.events.positives == (ratings >= 4).sum()
    split = with_dates(drafted(seen, tmp_path)).prepare.split
    assert isinstance(split, TemporalSplit)
    assert split.test.end - split.test.first == timedelta(days=91)  # 4 weeks hold .7 % of the events
    assert prepared(seen, tmp_path)["splits"]["test"]["rows"] > 0


def test_text_ids_and_iso_timestamps(tmp_path: Path) -> None:
    key = keys()
    columns = {
        "member": [f"u{user}" for user in key["user"]],
        "business_id": [f"b-{item}" for item in key["item"]],
        "date": [str(np.datetime64(int(s), "s")) + "Z" for s in key["seconds"]],
        "event_type": ["view", "view", "purchase"] * (ROWS // 3),
    }
    seen = profile_log(write(tmp_path / "log.csv", columns))
    assert seen.roles.at_unit is None
    assert seen.events.positives == ROWS
    assert seen.roles.signals.relevant == "event_type = 'purchase'"
    assert prepared(seen, tmp_path)["splits"]["test"]["rows"] == ROWS // 10


def test_a_text_file_is_parsed_once_or_in_every_scan_and_columns_that_are_known_not_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = keys()
    columns = {"user": key["user"], "item": key["item"], "timestamp": key["seconds"], "stars": np.arange(ROWS) % 5}
    log = write(tmp_path / "log.csv", columns | {"tags": ["a|b", "b|c", "c|a"] * (ROWS // 3)})
    seen = profile_log(log)
    assert {column.name: column.separator for column in seen.log.columns}["tags"] == "|"
    with monkeypatch.context() as patch:
        patch.setattr(inspect_table, "_MOST_COPIED", 0)
        assert profile_log(log) == seen
    monkeypatch.setattr(looking, "look_at_table", None)
    again = profile_log(log, answers=Answers(test_days=2), seen=seen)
    assert (again.log, again.events) == (seen.log, seen.events)
    assert again.answers.test_days == 2


def test_times_are_found_in_the_first_texts_of_a_column_wherever_they_begin(tmp_path: Path) -> None:
    texts = [""] * 12_000 + ["05.03.2024 10:00"] * 12_000 + ["soon"] * 200
    (tmp_path / "items.csv").write_text("item,added\n" + "\n".join(f"{n},{text}" for n, text in enumerate(texts)))
    columns = {column.name: column for column in look_at_table(tmp_path / "items.csv", field="--items").columns}
    assert columns["added"].dates == 1.0
    assert columns["item"].dates == 0.0


def test_a_log_of_hours_is_judged_by_last_events(tmp_path: Path) -> None:
    key = keys(days=1)
    columns = {"user_id": key["user"], "item_id": key["item"], "ts": key["seconds"]}
    seen = profile_log(write(tmp_path / "log.parquet", columns))
    assert seen.roles.signals.positive == "TRUE"
    assert prepared(seen, tmp_path)["splits"]["test"]["rows"] == 20


def test_an_order_instead_of_a_time(tmp_path: Path) -> None:
    columns = {"user_id": keys()["user"], "item_id": keys()["item"], "pos": np.arange(ROWS)}
    log = write(tmp_path / "log.csv", columns)
    with pytest.raises(
        DataError,
        match=r"(?s)time of an event by both its name and its values\. Choose one: --time COL\. Columns:\n  pos",
    ):
        profile_log(log)
    seen = profile_log(log, given_columns=GivenColumns(time="pos"))
    assert seen.events.days == ()
    assert drafted(seen, tmp_path).prepare.split.kind == "last_n"
    assert prepared(seen, tmp_path)["splits"]["test"]["users"] > 0


def test_a_rule_that_holds_for_no_event_is_not_proposed(tmp_path: Path) -> None:
    columns = {"user_id": keys()["user"], "item_id": keys()["item"], "ts": keys()["seconds"], "dwell": [9] * ROWS}
    seen = profile_log(write(tmp_path / "log.csv", columns))
    assert (seen.roles.signals.positive, seen.events.positives) == ("TRUE", ROWS)
    assert seen.roles.signals.reason == "every event, because watch_s >= 18 is true for none"


def test_rows_without_keys_are_left_out_of_the_counts(tmp_path: Path) -> None:
    users = pa.array([None, *keys()["user"][1:].tolist()])
    seen = profile_log(
        write(tmp_path / "log.parquet", {"user_id": users, "item_id": keys()["item"], "ts": keys()["seconds"]})
    )
    assert (seen.log.rows, seen.events.rows) == (ROWS, ROWS - 1)


def test_a_wide_log(tmp_path: Path) -> None:
    noise = {f"f{number}": np.arange(ROWS) * number % 7 for number in range(150)}
    seen = profile_log(
        write(
            tmp_path / "log.parquet",
            {"uid": keys()["user"], "iid": keys()["item"], **noise, "ts": keys()["seconds"]},
        )
    )
    assert len(seen.log.columns) == 153
    assert drafted(seen, tmp_path).data.columns == {"user_id": "uid", "item_id": "iid", "at": "ts"}


# --- columns ----------------------------------------------------------------------------------------------------------


def test_what_a_scan_says_of_columns(tmp_path: Path) -> None:
    columns = {
        "number": [1.5, 3.0, None, float("nan")],
        "whole": [1.0, 3.0, None, float("inf")],
        "flag": [True, False, None, True],
        "text": ["a,b", "a,b", None, "2024-01-01 10:00"],
        "nothing": pa.array([None] * 4, pa.int32()),
        "list": [["a"], ["a"], None, ["b"]],
        "nested": [{"a": 1}, {"a": 1}, None, {"a": 2}],
        "bytes": [b"1", b"1", None, b"\xff"],
    }
    found = {column.name: column for column in look_at_table(write(tmp_path / "x.parquet", columns), field="x").columns}
    assert {column.nulls for name, column in found.items() if name != "nothing"} == {1 / 4}
    assert (found["number"].low, found["number"].high, found["number"].is_whole) == (1.5, 3.0, False)
    assert (found["whole"].low, found["whole"].high) == (1.0, 3.0)
    assert (found["flag"].low, found["flag"].high, found["flag"].is_whole) == (0, 1, True)
    assert (found["text"].dates, dict(found["text"].separated)[","]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert found["text"].most_frequent[0] == "a,b"
    assert (found["nothing"].nulls, found["nothing"].distinct, found["nothing"].low) == (1, 0, None)
    assert {name: found[name].kind for name in ("list", "nested", "bytes")} == {
        "list": "list",
        "nested": "other",
        "bytes": "other",
    }


def test_a_share_of_the_users_stands_for_a_large_log(short_video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "_MAX_COMPARED", ROWS // 2)
    events: EventFacts = profile_log(short_video).events
    assert 0 < events.compared < ROWS
    assert events.compared % (ROWS // 20) in (0, 1, 2)  # whole users
    assert events.rows == ROWS + 2


# --- hostile names ----------------------------------------------------------------------------------------------------

HOSTILE = ["u'; DROP TABLE x; --", "x\") FROM read_text('/etc/passwd') --", "a\nb: [c]", "😀 {}", "%s \\ $1", "[bold]x"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_a_name(tmp_path: Path, name: str) -> None:
    key = keys()
    names = [f"{name} user", f"{name} item", f"{name} ts", f"{name} x"]
    values = [key["user"], key["item"], key["seconds"], np.arange(ROWS) % 2]
    log = write(tmp_path / "log.parquet", dict(zip(names, values, strict=True)) | {"like": np.arange(ROWS) % 3 // 2})
    seen = profile_log(log, given_columns=GivenColumns(*names[:3]))
    assert (seen.events.users, seen.events.items, seen.roles.signals.positive) == (20, 31, '"like"')
    assert list(drafted(seen, tmp_path).data.columns.values()) == names[:3]


def test_the_engine_reads_the_given_files_alone(tmp_path: Path, short_video: Path) -> None:
    other = write(tmp_path / "secret.parquet", {"x": [1]})
    with engine((short_video,)) as query:
        assert query(f"SELECT COUNT(*) FROM '{short_video}'") == [(ROWS + 2,)]
        with pytest.raises(duckdb.PermissionException):
            query(f"SELECT * FROM '{other}'")
        with pytest.raises(duckdb.InvalidInputException, match="lock"):
            query("SET memory_limit = '1TB'")


# --- logs that cannot be used -----------------------------------------------------------------------------------------


def header_only(folder: Path) -> Path:
    (folder / "log.csv").write_text("user_id,item_id,ts\n")
    return folder / "log.csv"


def empty(folder: Path) -> Path:
    (folder / "log.csv").touch()
    return folder / "log.csv"


def damaged(folder: Path) -> Path:
    whole = write(folder / "whole.parquet", {"user_id": keys()["user"]}).read_bytes()
    (folder / "log.parquet").write_bytes(whole[: len(whole) // 2])
    return folder / "log.parquet"


def late_surprise(folder: Path) -> Path:
    """Numbers, as far as the first 20,480 lines tell."""
    lines = [f"{n % 9},{n % 7},{FIRST_S + n}" for n in range(60_000)]
    (folder / "log.csv").write_text("\n".join(["user_id,item_id,ts", *lines, "1,2,never"]) + "\n")
    return folder / "log.csv"


def one_user(folder: Path) -> Path:
    return write(folder / "log.csv", {"user_id": [7] * ROWS, "item_id": keys()["item"], "ts": keys()["seconds"]})


def no_keys(folder: Path) -> Path:
    half = pa.array([1, None] * (ROWS // 2))
    other = pa.array([None, 1] * (ROWS // 2))
    return write(folder / "log.parquet", {"user_id": half, "item_id": other, "ts": keys()["seconds"]})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (header_only, r"--log: .*log\.csv has no rows\. Check that the export"),
        (empty, r"--log: .*log\.csv has no rows"),
        (damaged, r"log\.parquet cannot be read as parquet .* It is damaged, cut short or of another kind"),
        (late_surprise, r"reading .*log\.csv failed: .*never.* or a value in it is not of its column's type"),
        (one_user, r"user_id holds one user alone, and a model needs several users\. Name another column"),
        (no_keys, r"in every row user_id, item_id or ts is NULL\. Fill them"),
    ],
)
def test_a_log_that_cannot_be_used_is_refused(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(DataError, match=f"(?s){message}"):
        profile_log(make(tmp_path))


def test_a_draft_that_its_data_cannot_serve_is_refused(tmp_path: Path, short_video: Path) -> None:
    text = draft_recipe(profile_log(short_video), name="x", folder=tmp_path)
    check_draft(text, tmp_path)
    with pytest.raises(RecipeError, match="positive reads `loved`"):
        check_draft(text.replace("is_like OR", "loved OR"), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.parquet"]
