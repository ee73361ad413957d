"""Times as text: formats that no cast reads, days that may be months, and commands that mend them as written."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from twofold.errors import DataError
from twofold.ingest.column_roles import GivenColumns
from twofold.ingest.inspect_log import profile_log
from twofold.prepare.duckdb_connection import open_duckdb
from twofold.prepare.sources import open_source
from twofold.prepare.spark_engine import spark_sql
from twofold.recipe.data import Table

FIRST = datetime(2024, 3, 1, 9, 5, tzinfo=UTC)


def csv(path: Path, form: str, *, days: int = 40) -> Path:
    """Writes a log of one event a day, at 9:05, with times of this format."""
    rows = (f'{day % 7},{day % 5},"{FIRST + timedelta(days=day):{form}}"' for day in range(days))
    path.write_text("\n".join(["user_id,item_id,at", *rows]), encoding="utf-8")
    return path


def jsonl(path: Path, form: str, *, days: int = 40) -> Path:
    """Writes the log of `csv` as JSON, one object a line."""
    rows = (
        {"user_id": day % 7, "item_id": day % 5, "at": f"{FIRST + timedelta(days=day):{form}}"} for day in range(days)
    )
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def refusal(log: Path, message: str) -> str:
    with pytest.raises(DataError, match=message) as refused:
        open_source(Table(kind="table", events=log))
    return str(refused.value)


def run_statement(said: str) -> None:
    """Runs the line of Python in a message."""
    statement = re.search(r"import duckdb.*", said)
    assert statement is not None
    exec(statement[0], {})


def times(path: Path) -> list[int]:
    source = open_source(Table(kind="table", events=path))
    with open_duckdb(None, files=source.files) as engine:
        events = source.events.select_sql()
        return [row[0] for row in engine.execute(f'SELECT "at" FROM ({events}) ORDER BY 1').fetchall()]


@pytest.mark.parametrize(
    "form",
    ["%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M", "%m/%d/%Y %I:%M %p", "%d.%m.%Y %H:%M", "%d-%m-%Y %H:%M", "%d %b %Y %H:%M"]
    + ["%d/%m/%Y %H:%M:%S", "%Y/%m/%d %H:%M", "%Y-%m-%dT%H:%M:%S+00:00", "%m/%d/%y %H:%M", "%d %b %y %H:%M"],
)
def test_the_usual_ways_to_write_a_time_are_read(tmp_path: Path, form: str) -> None:
    found = times(csv(tmp_path / "log.csv", form))
    assert found == [round((FIRST + timedelta(days=day)).timestamp() * 1000) for day in range(40)]
    profile = profile_log(tmp_path / "log.csv")
    assert (profile.roles.time, profile.roles.has_clock) == ("at", True)
    assert [profile.events.days[end].date for end in (0, -1)] == [FIRST.date(), (FIRST + timedelta(days=39)).date()]


DAY_OR_MONTH = "no number in them tells the day from the month"
DAY_OR_YEAR = "no number in them tells the year from the day"
UNCLEAR = [("%d/%m/%Y %H:%M", 10, DAY_OR_MONTH), ("%d/%m/%Y", 10, DAY_OR_MONTH)]
UNCLEAR += [(form, 40, DAY_OR_YEAR) for form in ("%d.%m.%y", "%d-%m-%y", "%d/%m/%y %H:%M", "%d.%m.%y %H:%M:%S")]


@pytest.mark.parametrize(("form", "days", "message"), UNCLEAR)
def test_days_that_may_be_months_or_years_are_refused_with_statements_that_work(
    tmp_path: Path, form: str, days: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_statement(refusal(csv(tmp_path / "log.csv", form, days=days), message))
    first = FIRST if "%H" in form else FIRST.replace(hour=0, minute=0)
    assert times(tmp_path / "log-converted.parquet")[0] == round(first.timestamp() * 1000)


@pytest.mark.parametrize("form", ["%m-%d-%Y", "%m-%d-%Y %H:%M:%S", "%y-%m-%d"])
def test_days_of_json_that_may_be_months_or_years_are_refused_with_statements_that_work(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refusal(jsonl(tmp_path / "log.jsonl", form, days=10), DAY_OR_YEAR if "%y" in form else DAY_OR_MONTH)
    guessed = re.search(r"STRPTIME\(\"at\", '([^']*)'", said)
    assert guessed is not None
    run_statement(said.replace(f"'{guessed[1]}'", f"'{form}'"))
    first = FIRST if "%H" in form else FIRST.replace(hour=0, minute=0)
    assert times(tmp_path / "log-converted.parquet")[0] == round(first.timestamp() * 1000)


@pytest.mark.parametrize("form", ["%m-%d-%Y %H:%M", "%d-%m-%Y %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S"])
def test_days_of_json_that_can_be_told_are_read(tmp_path: Path, form: str) -> None:
    found = times(jsonl(tmp_path / "log.jsonl", form))
    assert found == [round((FIRST + timedelta(days=day)).timestamp() * 1000) for day in range(40)]


def test_a_year_above_31_is_no_day(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,at\n1,2,98-03-01\n2,1,98-03-02\n")
    assert times(tmp_path / "log.csv")[0] == datetime(1998, 3, 1, tzinfo=UTC).timestamp() * 1000


def test_each_column_is_judged_by_its_own_format(tmp_path: Path) -> None:
    """Days of birth that may be months do not make the times of the events unclear."""
    rows = (
        f"{day % 7},{day % 5},0{day + 1}/03/2024,{FIRST + timedelta(days=day):%Y-%m-%d %H:%M:%S}" for day in range(9)
    )
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,born,at", *rows]))
    assert times(tmp_path / "log.csv")[0] == round(FIRST.timestamp() * 1000)


def test_a_format_that_nobody_knows_is_refused_with_a_statement_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="at, is VARCHAR such as wk ") as refused:
        profile_log(csv(tmp_path / "log.csv", "wk %d/%m/%Y %H:%M"), given_columns=GivenColumns(time="at"))
    assert "with the format of your times in place of %d/%m/%Y %H:%M" in str(refused.value)
    run_statement(str(refused.value).replace("'%d/%m/%Y %H:%M'", "'wk %d/%m/%Y %H:%M'"))
    assert times(tmp_path / "log-converted.parquet")[0] == round(FIRST.timestamp() * 1000)


def test_spark_reads_the_format_as_well() -> None:
    assert "TO_TIMESTAMP(at, 'd/M/yyyy H:m')" in spark_sql("SELECT STRPTIME(at, '%d/%m/%Y %H:%M')")
