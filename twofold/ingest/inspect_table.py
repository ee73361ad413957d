"""Inspection of a table: statistics of its columns, in scans of bounded memory."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import duckdb

from twofold.errors import DataError
from twofold.ingest.event_kinds import MOST_KINDS
from twofold.ingest.table_profile import Column, Kind, TableProfile, printable
from twofold.prepare.duckdb_connection import (
    FileKind,
    first_line,
    open_duckdb,
    python_statement,
    quote_name,
    quote_text,
    scan_sql,
)
from twofold.prepare.sources import INTEGERS, SourceTable
from twofold.prepare.table_files import TableFiles, table_files
from twofold.prepare.time_texts import try_time_sql

Query = Callable[[str], list[Any]]

# DuckDB's time grows with the square of the columns in a statement: 400 columns at once took 11 s for 4,000 rows.
_COLUMNS_PER_SCAN: Final = 64
_SHOWN: Final = 60
# DuckDB counts three times as many texts as it returns: where a column has no more kinds, none is missed.
_MOST_TEXTS: Final = MOST_KINDS + 1
SEPARATORS: Final = ("|", ";", ">", ",")
"""Separators of the values of a text, from the clearest to the one that sentences have as well."""
_DECIMAL_COMMA: Final = r"[+-]?\d+,\d+"
_WHOLE: Final = r"[+-]?\d+"
_SPLIT_ROWS: Final = 50_000  # rows of a text column whose parts are counted
_MOST_COPIED: Final = 2**28  # bytes of a file of text
_DATED_TEXTS: Final = 10_000  # values of a text column that are read as times, in some forty formats: 20 µs each


def look_at_table(path: Path, *, field: str) -> TableProfile:
    """Returns the statistics of a table's columns. `field` is the option that named the path.

    Where texts of a CSV file are numbers with a decimal comma, the table is read again with these as numbers.
    """
    files = table_files(path, field)
    columns, rows = _look(files)
    if files.kind == "csv" and _may_have_decimal_commas(files, columns):
        others = table_files(path, field, has_decimal_comma=True)
        found, _ = _look(others)
        if _numbers(found) > _numbers(columns):
            return TableProfile(path, rows, found, has_decimal_comma=True)
    return TableProfile(path, rows, columns)


def _may_have_decimal_commas(files: TableFiles, columns: Sequence[Column]) -> bool:
    """Returns whether a column of text holds numbers with a decimal comma, and perhaps whole ones, such as 3 and 4,5.

    Where commas separate the columns, 3 and 4,5 are rather lists.
    """
    texts = [column for column in columns if column.kind == "text" and column.commas > 0]
    if any(column.commas >= 0.99 for column in texts):
        return True
    if all(column.commas + column.wholes < 0.99 for column in texts):
        return False
    with engine(files.paths) as query:
        return query(f"SELECT Delimiter FROM sniff_csv({quote_text(files.paths[0])})")[0][0] != ","


def _numbers(columns: Sequence[Column]) -> set[str]:
    return {column.name for column in columns if column.kind in ("integer", "fraction")}


def _look(files: TableFiles) -> tuple[tuple[Column, ...], int]:
    types = files.columns
    names = list(types)
    rows, columns = 0, []
    with engine(files.paths) as query:
        scan = copied_once(query, files.scan, files.paths, files.kind)
        for first in range(0, len(names), _COLUMNS_PER_SCAN):
            some = names[first : first + _COLUMNS_PER_SCAN]
            listed = ", ".join(_column_sql(name, types[name]) for name in some)
            rows, *facts = query(f"SELECT COUNT(*), {listed} FROM {scan}")[0]
            columns += [_column(name, types[name], rows, fact) for name, fact in zip(some, facts, strict=True)]
        return _with_separators(query, scan, _with_dates(query, scan, columns)), rows


def _with_dates(query: Query, scan: str, columns: Sequence[Column]) -> list[Column]:
    """Adds the share of each text column's first values that are times."""
    return [
        replace(column, dates=_share_of_dates(query, scan, column.name)) if column.kind == "text" else column
        for column in columns
    ]


def _share_of_dates(query: Query, scan: str, name: str) -> float:
    column = quote_name(name)
    texts = f"SELECT CAST({column} AS VARCHAR) AS text FROM {scan} WHERE {column} IS NOT NULL"
    # A text that repeats, such as an id, is read once.
    counted = f"SELECT text, COUNT(*) AS number FROM ({texts} LIMIT {_DATED_TEXTS}) GROUP BY text"
    dates = f"SUM(CASE WHEN {try_time_sql('text')} IS NOT NULL THEN number END)"
    found, texts_read = query(f"SELECT {dates}, SUM(number) FROM ({counted})")[0]
    return float((found or 0) / (texts_read or 1))


def _with_separators(query: Query, scan: str, columns: Sequence[Column]) -> tuple[Column, ...]:
    """Adds the separator of each text column whose parts repeat: those of tags do, those of titles do not."""
    found = []
    for column in columns:
        separator = next(
            (sep for sep, share in column.separated if share >= 0.2 and _repeats(query, scan, column, sep)), None
        )
        found.append(replace(column, separator=separator))
    return tuple(found)


def _repeats(query: Query, scan: str, column: Column, separator: str) -> bool:
    """Returns whether the parts of a text column occur four times on average, and are not quoted or bracketed."""
    parts = f"STRING_SPLIT({quote_name(column.name)}, {quote_text(separator)})"
    text = f"TRIM(UNNEST({parts}))"
    sql = f"SELECT {text} AS part FROM (SELECT * FROM {scan} LIMIT {_SPLIT_ROWS})"
    brackets = "COUNT(CASE WHEN SUBSTRING(part, 1, 1) IN ('[', '{') THEN 1 END)"
    total, distinct, bracketed = query(f"SELECT COUNT(*), COUNT(DISTINCT part), {brackets} FROM ({sql})")[0]
    return bool(total >= 4 * distinct and not bracketed)


def _kind(type_: str) -> Kind:
    if type_ in INTEGERS:
        return "integer"
    if type_.endswith("]"):
        return "list"
    if type_ in ("DATE", "BOOLEAN"):
        return "day" if type_ == "DATE" else "boolean"
    starts: dict[Kind, tuple[str, ...]] = {
        "fraction": ("DOUBLE", "FLOAT", "DECIMAL"),
        "text": ("VARCHAR", "UUID", "ENUM"),
        "timestamp": ("TIMESTAMP",),
    }
    return next((kind for kind, names in starts.items() if type_.startswith(names)), "other")


def _column_sql(name: str, type_: str) -> str:
    """Returns the SQL struct of a column's statistics; its fields depend on the column's type."""
    column, kind = quote_name(name), _kind(type_)
    text = f"CAST({column} AS VARCHAR)"
    facts = {"filled": f"COUNT({column})", "distinct": f"APPROX_COUNT_DISTINCT({column})"}
    finite = f"CASE WHEN ISFINITE({column}) THEN {column} END" if type_ in ("FLOAT", "DOUBLE") else column
    low, high = f"MIN({finite})", f"MAX({finite})"
    if kind in ("integer", "fraction", "boolean"):
        facts |= {"low": f"CAST({low} AS DOUBLE)", "high": f"CAST({high} AS DOUBLE)"}
    if kind in ("integer", "fraction"):
        facts["quantiles"] = f"CAST(APPROX_QUANTILE({finite}, [0.5, 0.99]) AS DOUBLE[])"
    if kind == "fraction":
        facts["fractions"] = f"COUNT(CASE WHEN {column} <> FLOOR({column}) THEN 1 END)"
    if kind in ("integer", "fraction", "boolean", "timestamp", "day"):
        facts |= {"first": f"CAST({low} AS VARCHAR)", "last": f"CAST({high} AS VARCHAR)"}
    if kind == "text":
        facts["commonest"] = f"APPROX_TOP_K(LEFT({text}, {_SHOWN}), {_MOST_TEXTS})"
        facts["commas"] = f"COUNT(CASE WHEN REGEXP_FULL_MATCH({text}, '{_DECIMAL_COMMA}') THEN 1 END)"
        facts["wholes"] = f"COUNT(CASE WHEN REGEXP_FULL_MATCH({text}, '{_WHOLE}') THEN 1 END)"
        for number, separator in enumerate(SEPARATORS):
            facts[f"separated_{number}"] = f"COUNT(CASE WHEN CONTAINS({text}, {quote_text(separator)}) THEN 1 END)"
    if kind == "list":
        facts |= {"shortest": f"MIN(LEN({column}))", "longest": f"MAX(LEN({column}))"}
    listed = ", ".join(f"'{field}': {sql}" for field, sql in facts.items())
    return f"{{{listed}}}"


def _column(name: str, type_: str, rows: int, fact: dict[str, Any]) -> Column:
    filled, (median, high_99) = fact["filled"], fact.get("quantiles") or (None, None)
    return Column(
        name=name,
        type=type_,
        kind=_kind(type_),
        nulls=1 - filled / rows,
        distinct=min(fact["distinct"], filled),
        low=fact.get("low"),
        high=fact.get("high"),
        is_whole=fact.get("low") is not None and fact.get("fractions", 0) == 0,
        median=median,
        high_99=high_99,
        commas=fact.get("commas", 0) / max(filled, 1),
        wholes=fact.get("wholes", 0) / max(filled, 1),
        separated=tuple(
            (separator, fact[f"separated_{number}"] / max(filled, 1))
            for number, separator in enumerate(SEPARATORS)
            if f"separated_{number}" in fact
        ),
        length=fact.get("longest") if fact.get("longest") == fact.get("shortest") else None,
        range=tuple(fact[end] for end in ("first", "last") if fact.get(end) is not None),
        most_frequent=tuple(fact.get("commonest") or ()),
    )


# --- the engine -------------------------------------------------------------------------------------------------------


@contextmanager
def engine(files: Sequence[Path]) -> Iterator[Query]:
    """Runs statements on a DuckDB that may read the given files, spill, and do nothing else."""
    with (
        tempfile.TemporaryDirectory(prefix="twofold-inspect-") as spill,
        open_duckdb(Path(spill), files=files) as connection,
    ):
        try:
            yield lambda sql: connection.execute(sql).fetchall()
        except (duckdb.InvalidInputException, duckdb.ConversionException, duckdb.IOException) as error:
            listed = ", ".join(map(str, files))
            raise DataError(
                f"reading {listed} failed: {first_line(error)}. The file is damaged (copy or export it again), or a "
                f"value in it is not of its column's type."
            ) from error


def copied_once(query: Query, scan: str, files: Sequence[Path], kind: FileKind) -> str:
    """Copies a small table of text for the statements that follow; returns the FROM clause that reads it.

    Each scan of a CSV or JSON file guesses its columns again and parses it: 40 ms for a file of a few rows.
    """
    if kind == "parquet" or sum(path.stat().st_size for path in files) > _MOST_COPIED:
        return scan
    name = quote_name(scan)
    query(f"CREATE TABLE IF NOT EXISTS {name} AS FROM {scan}")
    return name


def check_padded_ids(query: Query, events: SourceTable, keys: Sequence[str]) -> None:
    """Raises DataError if ids of a CSV file begin with zeros, but are read as whole numbers: 0007 would be 7.

    DuckDB guesses types from the first 20,480 rows, so this happens where such ids come late.
    """
    numbers = [name for name in keys if events.kind == "csv" and events.own.get(name) in INTEGERS]
    if not numbers:
        return
    has_partitions, options = bool(events.partitions), "all_varchar = true"
    scan = scan_sql(events.files, "csv", has_partitions=has_partitions, text_options=options)
    padded = ", ".join(
        f"MIN(CASE WHEN REGEXP_MATCHES({name}, '^\\s*[+-]?0[0-9]') THEN TRIM({name}) END)"
        for name in map(quote_name, numbers)
    )
    found = dict(zip(numbers, query(f"SELECT {padded} FROM {scan}")[0], strict=True))
    found = {name: example for name, example in found.items() if example is not None}
    for name, example in found.items():
        log, types = events.files[0], ", ".join(f"{quote_text(each)}: 'VARCHAR'" for each in found)
        target = f"{log.name.partition('.')[0]}.parquet"
        sql = f"COPY (FROM read_csv({quote_text(log)}, types = {{{types}}})) TO {quote_text(target)}"
        raise DataError(
            f"{log}: {printable(name)} has ids such as {printable(example)}, which would be read as the number "
            f"{int(example)}, because the ids of its first rows begin with no zero. Write them as text. In Python:\n"
            f"{printable(python_statement(sql))}\nthen --log {target}"
        )


def read_once(query: Query, table: SourceTable) -> SourceTable:
    """Returns the table of a log as one whose files are read once, if they are small and of text."""
    return replace(table, copy=copied_once(query, table.files_sql, table.files, table.kind)) if table.files else table
