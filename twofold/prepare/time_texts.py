"""Times written as text: the format of a column, and refusal of texts whose day and month cannot be told apart.

What a cast to a timestamp reads, such as 2024-01-31 18:30:00+01:00, needs no format.
"""

import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Final

from twofold.digest import FileState
from twofold.errors import DataError
from twofold.prepare.duckdb_connection import open_duckdb, python_statement, quote_name, quote_text
from twofold.prepare.table_files import TableFiles, file_states

_DAYS: Final = ("%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%Y.%m.%d", "%d %b %Y")
# A year of two digits may stand on either side of the month.
_SHORT_DAYS: Final = (
    *("%d/%m/%y", "%m/%d/%y", "%y/%m/%d", "%d.%m.%y", "%y.%m.%d"),
    *("%d-%m-%y", "%m-%d-%y", "%y-%m-%d", "%d %b %y"),
)
_CLOCKS: Final = (" %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p", "")
_LONG_FORMATS: Final = tuple(day + clock for day in _DAYS for clock in _CLOCKS)
FORMATS: Final = (*_LONG_FORMATS, *(day + clock for day in _SHORT_DAYS for clock in _CLOCKS))
"""Formats that are tried where a cast fails, such as that of 29/03/2024 10:00. Times without an offset are UTC."""
_FIRST_ROWS: Final = 20_480  # as many as DuckDB guesses the types of a CSV file from
_EXAMPLE: Final = (
    "Write times as 2024-01-31 18:30:00, with an offset such as +05:30 if they are not UTC, or as whole numbers."
)
_NO_TIMES: Final = "dateformat = '-', timestampformat = '-'"  # fit no text


def try_time_sql(text: str) -> str:
    """Returns the SQL of a text as a time, NULL if neither a cast nor a format reads it; years may be wrong."""
    formats = ", ".join(map(quote_text, _LONG_FORMATS))  # which read 24 as the year 24
    zone = "TIMESTAMP WITH TIME ZONE"
    return f"COALESCE(TRY_CAST({text} AS {zone}), CAST(TRY_STRPTIME({text}, [{formats}]) AS {zone}))"


def check_day_order(files: TableFiles, column: str) -> None:
    """Raises DataError if DuckDB guessed the order of day, month and year in the times of a column of text.

    All days, such as those of 01/05/2024, may be months; or the year has two digits and may be the day, as in 01.05.24.
    """
    if files.kind == "parquet":
        return
    guessed = _guessed_formats(files.paths, files.text_options, file_states(files.paths)) if files.kind == "csv" else []
    formats = [days if files.columns[column] == "DATE" else times for times, days in guessed]
    months = [form for form in formats if form and re.match("%[dm][-/]%[dm]", form)]
    years = [form for form in formats if form and form.startswith("%y")]
    if formats and all(formats) and not (months or years):
        return
    with open_duckdb(None, files=files.paths) as connection:
        day, year = f"DAY({quote_name(column)})", f"YEAR({quote_name(column)})"
        for rows in (f"(SELECT * FROM {files.scan} LIMIT {_FIRST_ROWS})", files.scan):
            found = connection.execute(f"SELECT MAX({day}), MAX({year} % 100), MAX({year}) FROM {rows}").fetchone()
            if found is None or found[0] is None:
                return
            is_cast = found[2] < 1000  # of 01/05/24 00:00 to the year 1
            if not (is_cast or (months and found[0] <= 12) or (years and found[1] <= 31)):
                return
    texts = _as_text(files, column)
    raise _unclear(files, column, months[0] if months else time_format(texts, column) or years[0])


@lru_cache(maxsize=32)
def _guessed_formats(
    paths: tuple[Path, ...], text_options: str, states: tuple[FileState, ...]
) -> list[tuple[str | None, str | None]]:
    """Returns the formats of times and of days that DuckDB guesses for each CSV file; `None`: a cast reads them.

    Files that do not change are read once.
    """
    options = f", {text_options}" if text_options else ""
    with open_duckdb(None, files=paths) as connection:
        sniffed = (f"SELECT * FROM sniff_csv({quote_text(path)}{options})" for path in paths)
        found = [connection.execute(f"SELECT TimestampFormat, DateFormat FROM ({sql})").fetchone() for sql in sniffed]
    return [(times, days) for times, days in filter(None, found)]


def time_format(files: TableFiles, column: str) -> str | None:
    """Returns the format of the texts of a column; `None` means that a cast reads them.

    DataError if no format reads all of the first texts, or if two formats read all texts.
    """
    text = quote_name(column)
    first = f"(SELECT {text} FROM {files.scan} WHERE {text} IS NOT NULL LIMIT {_FIRST_ROWS})"
    with open_duckdb(None, files=files.paths) as connection:

        def fitting(rows: str, formats: tuple[str, ...]) -> tuple[str, ...]:
            read = (f"COUNT(CASE WHEN {_is_read(text, each)} THEN 1 END)" for each in formats)
            total, *counts = connection.execute(f"SELECT COUNT(*), {', '.join(read)} FROM {rows}").fetchone() or (0,)
            return tuple(each for each, count in zip(formats, counts, strict=True) if count == total)

        time_ = f"TRY_CAST({text} AS TIMESTAMP WITH TIME ZONE)"
        facts = f"MIN(CASE WHEN {time_} IS NULL THEN {text} END), MIN({text}), MAX(YEAR({time_}))"
        odd, example, year = connection.execute(f"SELECT {facts} FROM {first}").fetchone() or (None,) * 3
        if odd is None and (year is None or year >= 1000):
            return None
        formats = fitting(first, FORMATS)
        if len(formats) > 1:
            formats = fitting(f"(SELECT {text} FROM {files.scan} WHERE {text} IS NOT NULL)", formats)
            if len(formats) > 1:
                raise _unclear(files, column, formats[0])
    if not formats:
        shown = str(odd or example)[:40]
        raise DataError(f"{files.paths[0]}: {column} is text, and {shown!r} cannot be read as a time. {_EXAMPLE}")
    return formats[0]


def _is_read(text: str, form: str) -> str:
    """Returns the condition that a text has a format: %Y reads 24 as well, and engines differ in the century of 98."""
    return f"YEAR(TRY_STRPTIME({text}, {quote_text(form)})) >= {2000 if '%y' in form else 1000}"


def _unclear(files: TableFiles, column: str, form: str) -> DataError:
    if "%y" in form:
        problem = "days such as 01.05.24, and no number in them tells the year from the day (none is above 31)"
    else:
        problem = "days such as 01/05/2024, and no number in them tells the day from the month (none is above 12)"
    return DataError(
        f"{files.paths[0]}: {column} holds {problem}. Write them as 2024-05-01. {_converted(files, column, form)}"
    )


def _as_text(files: TableFiles, column: str) -> TableFiles:
    """Returns CSV or JSON files whose times of this column are read as text."""
    types = f"types = {{{quote_text(column)}: 'VARCHAR'}}" if files.kind == "csv" else _NO_TIMES
    kept = files.text_options if files.kind == "csv" else ""
    return files if types in kept else replace(files, text_options=", ".join(filter(None, (kept, types))))


def _converted(files: TableFiles, column: str, form: str) -> str:
    """Returns Python statements that write a file with times in place of texts of this format."""
    path, name = files.paths[0], quote_name(column)
    rows = quote_text(path)
    if files.kind != "parquet":  # DuckDB may read the column as times already, by the order that it guesses
        rows = f"read_{files.kind}({rows}, {_as_text(files, column).text_options})"
    times = f"STRPTIME({name}, {quote_text(form)})"
    sql = f"COPY (SELECT * REPLACE ({times} AS {name}) FROM {rows}) TO {quote_text(f'{path.stem}-converted.parquet')}"
    parts = "%d (day), %m (month) and %y (year)" if "%y" in form else "%d (day) and %m (month)"
    return (
        f"In Python, with the right order of {parts}:\n{python_statement(sql)}\n"
        f"Then name {path.stem}-converted.parquet."
    )
