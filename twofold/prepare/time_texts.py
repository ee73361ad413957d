"""Times written as text: the format of a column, and refusal of texts whose day and month cannot be told apart.

What a cast to a timestamp reads, such as 2024-01-31 18:30:00+01:00, needs no format.
"""

import re
from functools import lru_cache
from pathlib import Path
from typing import Final

from twofold.digest import FileState
from twofold.errors import DataError
from twofold.prepare.duckdb_connection import open_duckdb, python_statement, quote_name, quote_text
from twofold.prepare.table_files import TableFiles, file_states

_DAYS: Final = ("%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%Y.%m.%d", "%d %b %Y")
_CLOCKS: Final = (" %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p", "")
FORMATS: Final = tuple(day + clock for day in _DAYS for clock in _CLOCKS)
"""Formats that are tried where a cast fails, such as that of 29/03/2024 10:00. Times without an offset are UTC."""
_FIRST_ROWS: Final = 20_480  # as many as DuckDB guesses the types of a CSV file from
_EXAMPLE: Final = (
    "Write times as 2024-01-31 18:30:00, with an offset such as +05:30 if they are not UTC, or as whole numbers."
)


def try_time_sql(text: str) -> str:
    """Returns the SQL of a text as a time, NULL if neither a cast nor one of `FORMATS` reads it."""
    formats = ", ".join(map(quote_text, FORMATS))
    zone = "TIMESTAMP WITH TIME ZONE"
    return f"COALESCE(TRY_CAST({text} AS {zone}), CAST(TRY_STRPTIME({text}, [{formats}]) AS {zone}))"


def check_day_order(files: TableFiles, column: str) -> None:
    """Raises DataError if all days of a CSV column, such as 01/05/2024, may be months: DuckDB reads the day first."""
    if files.kind != "csv":
        return
    formats = _guessed_formats(files.paths, file_states(files.paths))
    unclear = [text for text in formats if re.match("%[dm][-/]%[dm]", text)]
    if not unclear:
        return
    with open_duckdb(None, files=files.paths) as connection:
        for rows in (f"(SELECT * FROM {files.scan} LIMIT {_FIRST_ROWS})", files.scan):
            found = connection.execute(f"SELECT MAX(DAY({quote_name(column)})) FROM {rows}").fetchone()
            if found is None or found[0] is None or found[0] > 12:
                return
    raise _unclear(files, column, unclear[0])


@lru_cache(maxsize=32)
def _guessed_formats(paths: tuple[Path, ...], states: tuple[FileState, ...]) -> list[str]:
    """Returns the formats of dates and times that DuckDB guesses for CSV files, once for files that do not change."""
    with open_duckdb(None, files=paths) as connection:
        sniffed = (f"SELECT * FROM sniff_csv({quote_text(path)})" for path in paths)
        found = [connection.execute(f"SELECT DateFormat, TimestampFormat FROM ({sql})").fetchone() for sql in sniffed]
    return [text for pair in found for text in pair or () if text]


def time_format(files: TableFiles, column: str) -> str | None:
    """Returns the format of the texts of a column; `None` means that a cast reads them.

    DataError if no format reads all of the first texts, or if two formats read all texts.
    """
    text = quote_name(column)
    first = f"(SELECT {text} FROM {files.scan} WHERE {text} IS NOT NULL LIMIT {_FIRST_ROWS})"
    with open_duckdb(None, files=files.paths) as connection:

        def fitting(rows: str, formats: tuple[str, ...]) -> tuple[str, ...]:
            read = (f"COUNT(TRY_STRPTIME({text}, {quote_text(each)}))" for each in formats)
            total, *counts = connection.execute(f"SELECT COUNT(*), {', '.join(read)} FROM {rows}").fetchone() or (0,)
            return tuple(each for each, count in zip(formats, counts, strict=True) if count == total)

        odd = f"SELECT {text} FROM {first} WHERE TRY_CAST({text} AS TIMESTAMP WITH TIME ZONE) IS NULL LIMIT 1"
        found = connection.execute(odd).fetchone()
        if found is None:
            return None
        formats = fitting(first, FORMATS)
        if len(formats) > 1:
            formats = fitting(f"(SELECT {text} FROM {files.scan} WHERE {text} IS NOT NULL)", formats)
            if len(formats) > 1:
                raise _unclear(files, column, formats[0])
    if not formats:
        raise DataError(
            f"{files.paths[0]}: {column} is text, and {str(found[0])[:40]!r} cannot be read as a time. {_EXAMPLE}"
        )
    return formats[0]


def _unclear(files: TableFiles, column: str, form: str) -> DataError:
    return DataError(
        f"{files.paths[0]}: {column} holds days such as 01/05/2024, and no number in them tells the day from the month "
        f"(none is above 12). Write them as 2024-05-01. {_converted(files, column, form)}"
    )


def _converted(files: TableFiles, column: str, form: str) -> str:
    """Returns Python statements that write a file with times in place of texts of this format."""
    path, name = files.paths[0], quote_name(column)
    rows = quote_text(path)
    if files.kind == "csv":  # where DuckDB may read the column as times already, by the order that it guesses
        rows = f"read_csv({rows}, types = {{{quote_text(column)}: 'VARCHAR'}})"
    times = f"STRPTIME({name}, {quote_text(form)})"
    sql = f"COPY (SELECT * REPLACE ({times} AS {name}) FROM {rows}) TO {quote_text(f'{path.stem}-converted.parquet')}"
    return (
        f"In Python, with the right order of %d (day) and %m (month):\n{python_statement(sql)}\n"
        f"Then name {path.stem}-converted.parquet."
    )
