"""DuckDB connections that can read and write only the given files and folders, and SQL for names, texts and scans.

Every connection that runs a rule, or names of columns that a log brought along, is opened here.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import duckdb

from twofold.errors import RecipeError

# Of the machine's memory; above it tables spill to disk. DuckDB's default of 80 % leaves a laptop too little for
# everything else.
MEMORY_LIMIT: Final = "50%"

FileKind = Literal["parquet", "csv", "json"]
"""Formats of files; `json` is one array of objects, or one object a line."""


@contextmanager
def open_duckdb(
    spill: Path | None, *, files: Iterable[Path] = (), folders: Iterable[Path] = (), memory: str = MEMORY_LIMIT
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Opens an in-memory DuckDB that may read `files`, use `folders` and spill to `spill`, which is deleted at the end.

    `spill=None` means that it does not spill, which is enough to read headers. `memory` is a share of the machine's
    memory, or an amount such as 2GB; RecipeError if it is neither.
    """
    if spill is not None:
        shutil.rmtree(spill, ignore_errors=True)  # left by a process that was killed
    settings = {
        "temp_directory": "''" if spill is None else quote_text(spill),
        "TimeZone": "'UTC'",
        "enable_progress_bar": "false",  # it would appear in the middle of our own output
        "allowed_paths": _list_sql(files),
        "allowed_directories": _list_sql((*folders, *(() if spill is None else (spill,)))),
        "enable_external_access": "false",
        "lock_configuration": "true",  # last: nothing can be set after it
    }
    try:
        with duckdb.connect() as connection:
            _limit_memory(connection, memory)
            for name, value in settings.items():
                connection.execute(f"SET {name} = {value}")
            yield connection
    finally:
        if spill is not None:
            shutil.rmtree(spill, ignore_errors=True)


def _limit_memory(connection: duckdb.DuckDBPyConnection, memory: str) -> None:
    try:
        connection.execute(f"SET memory_limit = {quote_text(memory)}")
    except duckdb.Error as error:
        raise RecipeError(
            f"--memory {memory} cannot be read: {first_line(error)}. Write an amount such as 2GB, or a share such as "
            f"50%."
        ) from None


def quote_name(name: str) -> str:
    """Returns a column's or table's name as SQL, whatever characters it has."""
    return '"' + name.replace('"', '""') + '"'


def quote_text(value: str | Path) -> str:
    """Returns a text or a path as an SQL string."""
    return "'" + str(value).replace("'", "''") + "'"


def scan_sql(files: Sequence[Path], kind: FileKind, *, has_partitions: bool = False, text_options: str = "") -> str:
    """Returns the FROM clause that reads files of one kind as one table, CSV and JSON with these options.

    With `has_partitions`, folders named `column=value` give columns of text.
    """
    # Always written: by default, a parent folder called `split=train` would add a column of that name. Texts, because
    # other engines guess other types.
    options = ["hive_partitioning = true", "hive_types_autocast = false"]
    options = options if has_partitions else ["hive_partitioning = false"]
    return f"read_{kind}({', '.join([_list_sql(files), *options, *([text_options] if text_options else [])])})"


def first_line(error: duckdb.Error) -> str:
    """Returns the reason that DuckDB gives, without its advice, which is about calls that the user did not make."""
    return str(error).split("\n\n")[0].split(".\n")[0].replace("\n", "; ").rstrip(".")


def python_statement(sql: str) -> str:
    """Returns SQL as a line of Python, for a message: whoever has twofold has the module, but not always a shell."""
    escaped = sql.replace("\\", "\\\\")
    return f'  import duckdb; duckdb.sql("""{escaped}""")'


def _list_sql(paths: Iterable[Path]) -> str:
    return f"[{', '.join(quote_text(path) for path in paths)}]"
