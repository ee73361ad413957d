"""Times as text: formats that no cast reads, days that may be months, and commands that mend them as written."""

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


def times(path: Path) -> list[int]:
    source = open_source(Table(kind="table", events=path))
    with open_duckdb(None, files=source.files) as engine:
        events = source.events.select_sql()
        return [row[0] for row in engine.execute(f'SELECT "at" FROM ({events}) ORDER BY 1').fetchall()]


@pytest.mark.parametrize(
    "form",
    ["%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M", "%m/%d/%Y %I:%M %p", "%d.%m.%Y %H:%M", "%d-%m-%Y %H:%M", "%d %b %Y %H:%M"]
    + ["%d/%m/%Y %H:%M:%S", "%Y/%m/%d %H:%M", "%Y-%m-%dT%H:%M:%S+00:00"],
)
def test_the_usual_ways_to_write_a_time_are_read(tmp_path: Path, form: str) -> None:
    found = times(csv(tmp_path / "log.csv", form))
    assert found == [round((FIRST + timedelta(days=day)).timestamp() * 1000) for day in range(40)]
    profile = profile_log(tmp_path / "log.csv")
    assert (profile.roles.time, profile.roles.has_clock) == ("at", True)
    assert [profile.events.days[end].date for end in (0, -1)] == [FIRST.date(), (FIRST + timedelta(days=39)).date()]


@pytest.mark.parametrize("form", ["%d/%m/%Y %H:%M", "%d/%m/%Y"])
def test_days_that_may_be_months_are_refused_with_statements_that_work(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    log = csv(tmp_path / "log.csv", form, days=10)
    with pytest.raises(DataError, match="no number in them tells the day from the month") as refused:
        open_source(Table(kind="table", events=log))
    statement = re.search(r"import duckdb.*", str(refused.value))
    assert statement is not None
    exec(statement[0], {})
    first = FIRST if "%H" in form else FIRST.replace(hour=0, minute=0)
    assert times(tmp_path / "log-converted.parquet")[0] == round(first.timestamp() * 1000)


def test_a_format_that_nobody_knows_is_refused_with_a_statement_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="at, is VARCHAR such as wk ") as refused:
        profile_log(csv(tmp_path / "log.csv", "wk %d/%m/%Y %H:%M"), given_columns=GivenColumns(time="at"))
    assert "with the format of your times in place of %d/%m/%Y %H:%M" in str(refused.value)
    statement = re.search(r"import duckdb.*", str(refused.value))
    assert statement is not None
    exec(statement[0].replace("'%d/%m/%Y %H:%M'", "'wk %d/%m/%Y %H:%M'"), {})
    assert times(tmp_path / "log-converted.parquet")[0] == round(FIRST.timestamp() * 1000)


def test_spark_reads_the_format_as_well() -> None:
    assert "TO_TIMESTAMP(at, 'd/M/yyyy H:m')" in spark_sql("SELECT STRPTIME(at, '%d/%m/%Y %H:%M')")
