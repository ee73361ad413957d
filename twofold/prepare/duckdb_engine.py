"""The SQL engines that run a plan of preparation: the interface, and DuckDB; Spark is in `spark_engine.py`.

The rules of a recipe are checked text (`sql/rules.py`). As a second barrier, the engine can access only the log's files
and the stage's folder.
"""

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import duckdb

from twofold.errors import DataError
from twofold.prepare.duckdb_connection import MEMORY_LIMIT, first_line, open_duckdb, quote_name, quote_text
from twofold.prepare.plan import Shards, Step
from twofold.prepare.sources import Source
from twofold.tables import SHARD

# Errors that the content of a log can cause while it is read. All other errors are bugs of the plan.
_LOG_ERRORS: Final = (
    duckdb.InvalidInputException,
    duckdb.ConversionException,
    duckdb.OutOfRangeException,
    duckdb.IOException,
)


SPILL: Final = "spill"
"""Name of the folder of all that does not fit in memory, below that of the stage."""


@dataclass(frozen=True)
class Engine:
    """An SQL engine with the views source_events, source_items and source_users, which read file_events, file_items and
    file_users: the files with their own columns, of the tables that have files.

    `create` creates a table or view, and replaces one of the same name; `query` returns the rows of a SELECT; `export`
    writes them to a Parquet file, in the order of its ORDER BY. `export_shards` writes FOLDER/shard=N.parquet for each
    output and shard below a folder, and calls a function with the path of each.
    """

    create: Callable[[Step], None]
    query: Callable[[str], Sequence[Any]]
    export: Callable[[str, Path], None]
    export_shards: Callable[[Shards, Path, Callable[[str], None]], None]


OpenEngine = Callable[[Source, Path], AbstractContextManager[Engine]]
"""A function that opens an engine over a log, for output files in a folder."""


@contextmanager
def duckdb_engine(source: Source, out: Path, *, memory: str = MEMORY_LIMIT) -> Iterator[Engine]:
    """Opens a locked-down DuckDB over a log; errors that a log or a disk can cause become messages for the user.

    `memory` is a share of the machine's memory, or an amount such as 2GB.
    """
    folder = out.resolve()
    opened = open_duckdb(folder / SPILL, files=source.files, folders=[folder], memory=memory)
    with opened as connection, _translated_errors(source, out):
        for name, table in source.tables.items():
            if table.files:
                connection.execute(f'CREATE VIEW "file_{name}" AS SELECT * FROM {table.files_sql}')
            connection.execute(f'CREATE VIEW "source_{name}" AS {table.select_sql(f"file_{name}")}')

        def create(step: Step) -> None:
            sql = _divide(connection, step, folder / SPILL / step.name) if step.is_divided else step.sql
            kind = "TABLE" if step.is_stored and not step.is_divided else "VIEW"
            connection.execute(f"CREATE OR REPLACE {kind} {quote_name(step.name)} AS {sql}")

        def export(sql: str, path: Path) -> None:
            connection.execute(f"COPY ({sql}) TO {quote_text(path)} (FORMAT parquet, COMPRESSION zstd)")

        def export_shards(shards: Shards, folder: Path, on_file: Callable[[str], None]) -> None:
            """Writes one shard after another: the sort of a shard fits in memory, that of the log does not."""
            for number in range(shards.count):
                create(replace(shards.rows, sql=f'{shards.rows.sql} AND "{SHARD}" = {number}'))
                create(shards.events)
                for output in shards.outputs:
                    path = f"{output.folder}/{SHARD}={number}.parquet"
                    (folder / path).parent.mkdir(parents=True, exist_ok=True)
                    export(output.sql(shards.events.name), folder / path)
                    on_file(path)

        yield Engine(create, lambda sql: connection.execute(sql).fetchall(), export, export_shards)


def _divide(connection: duckdb.DuckDBPyConnection, step: Step, parts: Path) -> str:
    """Writes the rows of each shard to a folder below `parts` and returns the SELECT of all.

    If each shard looked for its rows among those of all, the time would grow with the square of the log. Besides, a
    table that does not fit in memory is read from Parquet in half the time that DuckDB takes for what it has spilled.
    """
    parts.mkdir(parents=True)
    options = f'FORMAT parquet, COMPRESSION lz4, PARTITION_BY ("{SHARD}"), OVERWRITE_OR_IGNORE'
    connection.execute(f"COPY ({step.sql}) TO {quote_text(parts)} ({options})")
    files = ", ".join(quote_text(path) for path in sorted(parts.glob("*/*.parquet")))
    return f"FROM read_parquet([{files}], hive_partitioning = true, hive_types = {{{quote_text(SHARD)}: INTEGER}})"


@contextmanager
def _translated_errors(source: Source, out: Path) -> Iterator[None]:
    """Turns DuckDB's errors that a log, too little memory or a full disk can cause into ours."""
    try:
        yield
    except duckdb.Error as error:
        if "No space left on device" in str(error) or "max_temp_directory_size" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out)) from error
        if isinstance(error, duckdb.OutOfMemoryException):
            raise DataError(
                f"preparing {_listed(source.files)} ran out of memory: {first_line(error)}. Allow more with --memory, "
                f"or close other programs."
            ) from error
        if isinstance(error, _LOG_ERRORS):
            raise unreadable(source, first_line(error)) from error
        raise


def unreadable(source: Source, reason: str) -> DataError:
    """Returns the error for a log that an engine failed to read, with the engine's reason."""
    causes = (
        "Either the file is damaged (copy or export it again), or a value does not have its column's type, or a rule "
        "reads text as a number."
    )
    if "because the value is out of range" in reason or "Overflow in" in reason:
        causes = (
            "A number is too large for what is done with it: limit it in its rule, as LEAST(x, 1e6), leave what stands "
            "for an unknown value empty (NULL), and write ids of 2^63 and more as text."
        )
    return DataError(f"reading {_listed(source.files)} failed: {reason}. {causes}")


def _listed(files: tuple[Path, ...]) -> str:
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return ", ".join(str(path) for path in files[:3]) + more
