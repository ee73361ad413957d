"""Files of a table: those at a path, and the names and types of their columns.

Only headers, first lines and one row per file are read. Folders named `column=value`, as Hive and Spark write them,
give a column of text.
"""

import csv
import gzip
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from glob import glob
from itertools import chain
from pathlib import Path
from typing import Final

import duckdb
import pyarrow.parquet as pq

from twofold.digest import FileState, file_state
from twofold.errors import DataError
from twofold.prepare.duckdb_connection import FileKind, first_line, open_duckdb, python_statement, quote_text, scan_sql
from twofold.recipe.messages import did_you_mean

READABLE: Final = ".parquet, .pq, .csv, .tsv, .json, .jsonl (the text formats also with .gz)"
"""Endings of the files that are read, for messages."""
_KINDS: Final[Mapping[str, FileKind]] = {
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
}
_DELIMITED: Final = (".dat", ".data", ".inter", ".tab", ".txt")  # usual endings of delimited text with no fixed meaning
_NAME_FILES: Final = "Name a file, or a folder of files."
_DELIMITERS: Final = ",;\t|"  # those that DuckDB recognizes
_CSV_OPTIONS: Final = r"nullstr = ['', 'NULL', '\N']"  # as databases write what is missing
# Other times stay text: DuckDB would read 03-01-2024 as 3 January, whatever the other days are.
_JSON_OPTIONS: Final = "dateformat = '%Y-%m-%d', timestampformat = '%Y-%m-%d %H:%M:%S'"
_MAX_DEPTH: Final = 8  # of folders `column=value`; a link to a folder above would have no end
# DuckDB reads a path with one of these as a pattern, which may stand for other files.
_PATTERN: Final = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class TableFiles:
    """Files of one table, all of one kind and with the same columns.

    `columns` is name → SQL type as in the files; for CSV and JSON, as their first lines suggest. `partitions` are those
    that the names of folders give.
    """

    paths: tuple[Path, ...]
    kind: FileKind
    partitions: tuple[str, ...]
    columns: Mapping[str, str]
    text_options: str = ""

    @property
    def scan(self) -> str:
        """FROM clause that reads the files as one table."""
        return scan_sql(self.paths, self.kind, has_partitions=bool(self.partitions), text_options=self.text_options)


def table_files(path: Path, field: str, *, has_decimal_comma: bool = False) -> TableFiles:
    """Returns the file at a path, or the files in a folder and its folders `column=value`, in the order of their names.

    Files without rows are left out. Files and folders whose names begin with `_` or `.` are not read. DataError if
    there is no file, if one is damaged, if none has a row, or if their kinds or columns differ. `field` is what named
    the path. With `has_decimal_comma`, numbers of CSV files are written as 13,27.
    """
    return files_of_tables({field: path}, decimal_comma=(field,) if has_decimal_comma else ())[field]


def files_of_tables(tables: Mapping[str, Path], *, decimal_comma: Collection[str] = ()) -> dict[str, TableFiles]:
    """Returns the files of several tables, each as `table_files` does, by the field that named the path of the table.

    Opening a DuckDB takes longer than reading a header, and guessing the columns of a CSV file longer still: one DuckDB
    reads all headers, and those of files that have not changed since are remembered.
    """
    scans = [_scan_of(path, field, has_decimal_comma=field in decimal_comma) for field, path in tables.items()]
    headers = _headers(tuple(scans))
    return {
        field: _table_of(path, field, scan, dict(zip(scan.paths, columns, strict=True)))
        for (field, path), scan, columns in zip(tables.items(), scans, headers, strict=True)
    }


@dataclass(frozen=True)
class _Scan:
    """Files of one table, with what tells whether one of them has changed, and how they are read."""

    paths: tuple[Path, ...]
    states: tuple[FileState, ...]
    kind: FileKind
    partitions: tuple[str, ...]
    text_options: str


def _scan_of(path: Path, field: str, *, has_decimal_comma: bool) -> _Scan:
    paths = _paths(path, field)
    kind, partitions = _common_kind(path, paths, field), _common_partitions(path, paths, field)
    options = {"csv": [_CSV_OPTIONS], "json": [_JSON_OPTIONS], "parquet": []}[kind]
    if has_decimal_comma and kind == "csv":
        options.append("decimal_separator = ','")
    return _Scan(paths, file_states(paths), kind, partitions, ", ".join(options))


def file_states(paths: Iterable[Path]) -> tuple[FileState, ...]:
    """Returns what tells of each file whether it has changed."""
    return tuple(file_state(path.stat()) for path in paths)


@lru_cache(maxsize=32)
def _headers(scans: tuple[_Scan, ...]) -> list[list[dict[str, str]]]:
    """Returns the columns of each file of each table; none if the file has no rows."""
    with open_duckdb(None, files=chain(*(scan.paths for scan in scans))) as connection:
        return [[_columns(connection, path, scan) for path in scan.paths] for scan in scans]


def _table_of(path: Path, field: str, scan: _Scan, headers: Mapping[Path, dict[str, str]]) -> TableFiles:
    described = {file: columns for file, columns in headers.items() if columns}
    for file, columns in described.items():
        _check_repeated(file, scan.kind, columns, field)
        _check_delimiter(file, scan.kind, columns, field)
    if not described:
        files = path if len(scan.paths) == 1 else f"each of the {len(scan.paths):,} files in {path}"
        raise DataError(f"{field}: {files} has no rows. Check that the export finished.")
    first, own = next(iter(described.items()))
    for file, columns in described.items():
        if columns != own:
            raise DataError(
                f"{field}: {file} has the columns {columns}, but {first} has {own}. "
                f"All files of a folder need the same names and types."
            )
    columns = _without_parents(own, path, scan.partitions, scan.paths)
    return TableFiles(tuple(described), scan.kind, scan.partitions, columns, scan.text_options)


def require_file(path: Path, field: str) -> None:
    """Raises DataError, with similar names, if there is no file."""
    if path.is_file():
        return
    there = f"there is no folder {path.parent} either; "
    if path.parent.is_dir():
        beside = sorted(file.name for file in path.parent.iterdir() if not file.name.startswith("."))
        some = f"its folder holds {', '.join(beside[:5])}{' …' if len(beside) > 5 else ''}; " if beside else ""
        there = did_you_mean(path.name, beside) or some
    start = f"{Path.cwd()}" if field.startswith("--") else "the recipe file"
    raise DataError(f"{field}: there is no file {path} ({there}a path is relative to {start}).")


# --- paths ------------------------------------------------------------------------------------------------------------


def _paths(path: Path, field: str) -> tuple[Path, ...]:
    if not path.is_dir():
        require_file(path, field)
    root = path.resolve() if path.is_dir() else path.absolute()
    paths = tuple(_walk(root, field, depth=0)) if root.is_dir() else (root,)
    paths = tuple(file for file in paths if _kind_of(file))
    if not paths:
        is_text = path.is_file() and path.suffix in _DELIMITED
        step = f"If it is delimited text, rename it to {path.stem}.csv." if is_text else _NAME_FILES
        raise DataError(f"{field}: {path} holds no file that is read: {READABLE}. {step}")
    for file in paths:
        if others := set(glob(str(file)) if _PATTERN.search(str(file)) else ()) - {str(file)}:
            raise DataError(
                f"{field}: {file} is read as a pattern, because of *, ? or [ in its name, and {min(others)} fits it. "
                f"Rename it."
            )
    return paths


def _walk(folder: Path, field: str, *, depth: int) -> Iterator[Path]:
    if (folder / "_delta_log").is_dir():
        raise DataError(
            f"{field}: {folder} is a Delta table, whose files also hold deleted rows. Write its current rows to "
            f"another folder, as Parquet."
        )
    if depth > _MAX_DEPTH:
        raise DataError(f"{field}: {folder} is {depth} folders deep; at most {_MAX_DEPTH} are read. Move its files up.")
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(("_", ".")):
            continue
        if not entry.is_dir():
            yield entry
        elif _partition_of(entry.name):
            yield from _walk(entry, field, depth=depth + 1)


def _kind_of(path: Path) -> FileKind | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    is_packed = suffixes[-1:] == [".gz"]
    kind = _KINDS.get("".join(suffixes[-2:-1] if is_packed else suffixes[-1:]))
    return None if is_packed and kind == "parquet" else kind


def _partition_of(folder: str) -> str | None:
    """Returns the column that a folder's name gives; `None` means none."""
    name, sign, _ = folder.partition("=")
    return name if sign and name else None


def _common_kind(path: Path, paths: tuple[Path, ...], field: str) -> FileKind:
    kinds = sorted({kind for file in paths if (kind := _kind_of(file))})
    if len(kinds) > 1:
        raise DataError(
            f"{field}: {path} holds {' and '.join(kinds)} files together. Name one file, or a folder of files of one "
            f"kind."
        )
    return kinds[0]


def _common_partitions(path: Path, paths: tuple[Path, ...], field: str) -> tuple[str, ...]:
    """Returns the columns that the folders below `path` give; DataError if they differ from file to file."""
    root = path.resolve() if path.is_dir() else path.absolute().parent
    found = {file: tuple(map(_partition_of, file.parent.relative_to(root).parts)) for file in paths}
    levels = tuple(name for name in found[paths[0]] if name)
    for file, names in found.items():
        if names != levels:
            raise DataError(
                f"{field}: {file} lies in folders that give the columns {names or 'none'}, but {paths[0]} in folders "
                f"that give {levels or 'none'}. All files need the same levels."
            )
    return levels


def _without_parents(
    own: dict[str, str], path: Path, partitions: tuple[str, ...], paths: tuple[Path, ...]
) -> dict[str, str]:
    """Returns the columns without those that DuckDB takes from folders above `path`, such as /data/split=train/log."""
    above = {name for part in paths[0].parent.parts[: -len(partitions) or None] if (name := _partition_of(part))}
    return {name: type_ for name, type_ in own.items() if not partitions or name in partitions or name not in above}


# --- columns ----------------------------------------------------------------------------------------------------------


def _columns(connection: duckdb.DuckDBPyConnection, path: Path, scan: _Scan) -> dict[str, str]:
    """Returns name → SQL type; nothing if the file has no rows."""
    rows = scan_sql((path,), scan.kind, has_partitions=bool(scan.partitions), text_options=scan.text_options)
    try:
        columns = {row[0]: row[1] for row in connection.execute(f"DESCRIBE SELECT * FROM {rows}").fetchall()}
        return columns if connection.execute(f"SELECT 1 FROM {rows} LIMIT 1").fetchall() else {}
    except duckdb.Error as error:
        raise DataError(
            f"{path} cannot be read as {scan.kind} ({path.stat().st_size:,} bytes): {first_line(error)}. "
            f"It is damaged, cut short or of another kind: copy or export it again."
        ) from error


def _check_repeated(path: Path, kind: FileKind, columns: Mapping[str, str], field: str) -> None:
    """Raises DataError if two columns have one name, the second of which DuckDB calls NAME_1."""
    lower = {name.lower() for name in columns}
    if kind == "json" or not any(re.sub(r"_\d+$", "", name) in lower - {name} for name in lower):
        return
    names = pq.read_schema(path).names if kind == "parquet" else _csv_header(path)
    repeated = {name.lower() for name in names if [other.lower() for other in names].count(name.lower()) > 1}
    if repeated:
        raise DataError(
            f"{field}: {path} has several columns {', '.join(sorted(repeated))} (upper and lower case are the same). "
            f"Rename all but one. Its columns: {', '.join(names)}."
        )


def _check_delimiter(path: Path, kind: FileKind, columns: Mapping[str, str], field: str) -> None:
    """Raises DataError if a CSV file is read as one column, because its delimiter is none of the usual ones."""
    (first, *others) = columns
    header = first.replace('"', "").strip()
    marks = re.findall(r"[^\w]+", header)
    if kind != "csv" or others or len(marks) < 2 or len(set(marks)) > 1:
        return
    if marks[0] in _DELIMITERS:
        _check_lines(path, header.split(marks[0]), marks[0], field)
    target = f"{path.name.partition('.')[0]}.parquet"
    sql = f"COPY (FROM read_csv({quote_text(path)}, delim = {quote_text(marks[0])})) TO {quote_text(target)}"
    raise DataError(
        f"{field}: {path} is read as one column, {header}. Its values seem to be separated by {marks[0]!r}; commas, "
        f"semicolons, tabs and | are recognized. In Python:\n{python_statement(sql)}\nThen name {target}."
    )


def _check_lines(path: Path, names: Sequence[str], delimiter: str, field: str) -> None:
    """Raises DataError with the first line that has another number of values than the header.

    DuckDB reads such a file as one column if the line is among the first 20,000.
    """
    columns = ", ".join(f"{quote_text(f'{number}')}: 'VARCHAR'" for number in range(len(names)))
    options = (
        f"auto_detect = false, header = true, quote = '\"', delim = {quote_text(delimiter)}, columns = {{{columns}}}"
    )
    try:
        with open_duckdb(None, files=(path,)) as connection:
            connection.execute(f"SELECT COUNT(COLUMNS(*)) FROM read_csv({quote_text(path)}, {options})").fetchall()
    except duckdb.Error as error:
        found = re.search(r"Line: (\d+)\nOriginal Line: (.*)\nExpected Number of Columns: \d+ Found: (\d+)", str(error))
        if found is not None:
            line, text, values = found.groups()
            raise DataError(
                f"{field}: line {line} of {path} has {values} values, the header {len(names)}: {text[:200]}\n"
                f"Mend or remove the line. A value that holds {delimiter!r} stands in double quotes."
            ) from None


def _csv_header(path: Path) -> list[str]:
    with path.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    with (
        gzip.open(path, "rt", encoding="utf-8-sig", errors="replace")
        if is_packed
        else path.open(encoding="utf-8-sig", errors="replace") as text
    ):
        sample = text.readline()
    delimiter = max(_DELIMITERS, key=sample.count)
    return next(csv.reader([sample], delimiter=delimiter), [])
