"""What runs statements: DuckDB here, tables in memory that spill to disk; Spark in `spark.py`.

Rules are vetted text (`recipe/rules.py`); as a second wall, the engine itself may touch nothing but the log's files and
the stage's folder.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb

from twofold.errors import DataError, RecipeError
from twofold.prepare.plan import Step
from twofold.prepare.sources import Source, first_line

# Of the machine's memory; above it tables spill. DuckDB's default of 80 % leaves a laptop too little for all else.
MEMORY_LIMIT: Final = "50%"
# What a log can cause while it is read. All other errors are bugs of the plan.
_OF_THE_LOG: Final = (
    duckdb.InvalidInputException,
    duckdb.ConversionException,
    duckdb.OutOfRangeException,
    duckdb.IOException,
)


@dataclass(frozen=True)
class Engine:
    """What runs statements. It has the views source_events, source_items and source_users.

    `make` makes a table or view, replacing one of that name; `ask` gives the rows of a SELECT; `write` writes them to a
    Parquet file, in the order of its ORDER BY.
    """

    make: Callable[[Step], None]
    ask: Callable[[str], Sequence[Any]]
    write: Callable[[str, Path], None]


OpenEngine = Callable[[Source, Path], AbstractContextManager[Engine]]
"""Opens an engine over a log, for files below a folder."""


@contextmanager
def duckdb_engine(source: Source, out: Path, *, memory: str = MEMORY_LIMIT) -> Iterator[Engine]:
    """A locked DuckDB over a log. What a log or a disk can cause is raised in the user's words.

    `memory` is a share of the machine's, or an amount such as 2GB.
    """
    spill = out.resolve() / "spill"
    shutil.rmtree(spill, ignore_errors=True)  # left by an attempt that was killed
    settings = {
        "temp_directory": _text(spill),
        "TimeZone": "'UTC'",
        "enable_progress_bar": "false",  # we draw our own
        "allowed_paths": f"[{', '.join(_text(path) for path in source.files)}]",
        "allowed_directories": f"[{_text(out.resolve())}]",
        "enable_external_access": "false",
        "lock_configuration": "true",  # last: nothing can be set after it
    }
    try:
        with duckdb.connect() as connection, _explained(source, out):
            _limit_memory(connection, memory)
            for name, value in settings.items():
                connection.execute(f"SET {name} = {value}")
            for table, sql in (("events", source.events_sql), ("items", source.items_sql), ("users", source.users_sql)):
                connection.execute(f'CREATE VIEW "source_{table}" AS {sql}')

            def make(step: Step) -> None:
                kind = "TABLE" if step.is_stored else "VIEW"
                connection.execute(f'CREATE OR REPLACE {kind} "{step.name}" AS {step.sql}')

            def write(sql: str, path: Path) -> None:
                connection.execute(f"COPY ({sql}) TO {_text(path)} (FORMAT parquet, COMPRESSION zstd)")

            yield Engine(make, lambda sql: connection.execute(sql).fetchall(), write)
    finally:
        shutil.rmtree(spill, ignore_errors=True)


def _limit_memory(connection: duckdb.DuckDBPyConnection, memory: str) -> None:
    try:
        connection.execute(f"SET memory_limit = {_text(Path(memory))}")
    except duckdb.Error as error:
        raise RecipeError(
            f"--memory {memory} cannot be read: {first_line(error)}. Write an amount such as 2GB, or a share such as "
            f"50%."
        ) from None


@contextmanager
def _explained(source: Source, out: Path) -> Iterator[None]:
    """DuckDB's errors that a log, a memory or a disk can cause, as ours."""
    try:
        yield
    except duckdb.Error as error:
        if "No space left on device" in str(error) or "max_temp_directory_size" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out)) from error
        if isinstance(error, duckdb.OutOfMemoryException):
            raise DataError(
                f"preparing {_named(source.files)} ran out of memory: {first_line(error)}. Give it more with --memory, "
                f"or close other programs."
            ) from error
        if isinstance(error, _OF_THE_LOG):
            raise unreadable(source, first_line(error)) from error
        raise


def unreadable(source: Source, reason: str) -> DataError:
    """What is said of a log that an engine stumbled over, with the engine's own reason."""
    return DataError(
        f"reading {_named(source.files)} failed: {reason}. Either the file is damaged (copy or export it again), "
        f"or a value in it is not of its column's type, or a rule reads text as a number."
    )


def _named(files: tuple[Path, ...]) -> str:
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return ", ".join(str(path) for path in files[:3]) + more


def _text(value: Path) -> str:
    return "'" + str(value).replace("'", "''") + "'"
