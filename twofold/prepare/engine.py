"""Runs the plan on DuckDB: tables in memory that spill to disk, files in order, and a count of what every step left.

Rules are vetted text (`recipe/rules.py`); as a second wall, the engine itself may touch nothing but the log's files and
the stage's folder.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final, assert_never

import duckdb

from twofold.bundle import Json, write_json
from twofold.errors import DataError, RecipeError
from twofold.prepare.plan import Plan, Scope, build_plan, oddities_sql, repeats_sql
from twofold.prepare.sources import INTEGERS, Source, first_line, open_source, table_paths
from twofold.progress import progress_bar
from twofold.recipe.problems import nearest
from twofold.recipe.rules import check_columns, rule_columns
from twofold.recipe.features import AgeFeature, BagFeature, CategoryFeature, IdFeature, ItemFeature, NumberFeature
from twofold.recipe.schema import Recipe
from twofold.tables import SPLITS, Split

Ask = Callable[[str], list[Any]]

# Of the machine's memory; above it tables spill. DuckDB's default of 80 % leaves a laptop too little for all else.
MEMORY_LIMIT: Final = "50%"
# 1973 in milliseconds, and 1973 in microseconds: no log is older, and none reaches the year 5138.
_FIRST_MS: Final = 10**11
_LAST_MS: Final = 10**14
_FRACTIONS: Final = ("DOUBLE", "FLOAT", "DECIMAL")
# What a log can cause while it is read. All other errors are bugs of the plan.
_OF_THE_LOG: Final = (
    duckdb.InvalidInputException,
    duckdb.ConversionException,
    duckdb.OutOfRangeException,
    duckdb.IOException,
)


@dataclass(frozen=True)
class FunnelLine:
    """What a step of preparation left; `removed` is the rows that the line before it, in its scope, had more.

    The rows of the last "log" line are those of the first "train" line and of all "windows" lines together.
    """

    name: str
    scope: Scope
    rows: int
    users: int
    items: int
    positives: int
    positive_share: float
    removed: int


def funnel_lines(funnel: Json) -> list[FunnelLine]:
    """The lines of funnel.json, or of the manifest's `funnel`, for a table on a terminal or a page."""
    return [FunnelLine(**line) for line in funnel]


def check_recipe(recipe: Recipe) -> Source:
    """The recipe's source, after all that can be checked before rows are read: files, columns, types, rules."""
    source = open_source(recipe.data)
    rules = {"prepare.positive": recipe.prepare.positive, "prepare.negative": recipe.prepare.negative}
    for field, rule in rules.items():
        if rule is not None:
            check_columns(rule, source.event_columns, field=field)
            _check_types(rule, source, field=field)
    for number, feature in enumerate(recipe.features.item):
        _check_item_feature(feature, source, field=f"features.item.{number}", path=table_paths(recipe.data)["items"])
    return source


def prepare(recipe: Recipe, out: Path) -> dict[str, Json]:
    """Writes rows, events, items, users and funnel.json into a folder; returns facts for the manifest.

    DataError if the log cannot teach what the recipe asks; OSError with ENOSPC if the disk is full.
    """
    source, paths = check_recipe(recipe), table_paths(recipe.data)
    plan = build_plan(recipe.prepare, source)
    num_statements = len(plan.steps) + len(plan.counts) + len(plan.outputs)
    with _engine(source, out) as ask, progress_bar("prepare", total=num_statements, unit="statements") as advance:
        _refuse_repeats(ask(repeats_sql("item_id", source.items_sql)), "item_id", paths["items"])
        _refuse_repeats(ask(repeats_sql("user_id", source.users_sql)), "user_id", paths["users"])
        for step in plan.steps:
            ask(f'CREATE TABLE "{step.table}" AS {step.sql}')
            advance(1, step.table)
        funnel = _funnel(plan, ask)
        first_at, last_at = ask('SELECT MIN("at"), MAX("at") FROM "events"')[0]
        odd_rows = {name: int(ask(sql)[0][0]) for name, sql in oddities_sql(source).items()}
        advance(len(plan.counts), "funnel")
        _refuse_unusable(recipe, funnel, first_at, last_at)
        for output in plan.outputs:
            path = out.resolve() / output.path
            path.parent.mkdir(parents=True, exist_ok=True)
            ask(f"COPY ({output.sql}) TO {_text(path)} (FORMAT parquet, COMPRESSION zstd)")
            advance(1, output.path)
    lines = [asdict(line) for line in funnel]
    write_json(out / "funnel.json", lines)
    splits = {
        split: {"rows": line.rows, "users": line.users, "items": line.items, "positive_share": line.positive_share}
        for split, line in _split_lines(funnel).items()
    }
    return {"splits": splits, "first_at": first_at, "last_at": last_at, "odd_rows": odd_rows, "funnel": lines}


# --- the engine -------------------------------------------------------------------------------------------------------


@contextmanager
def _engine(source: Source, out: Path) -> Iterator[Ask]:
    """Runs statements on a locked DuckDB. What a log or a disk can cause is raised in the user's words."""
    spill = out.resolve() / "spill"
    shutil.rmtree(spill, ignore_errors=True)  # left by an attempt that was killed
    settings = {
        "memory_limit": f"'{MEMORY_LIMIT}'",
        "temp_directory": _text(spill),
        "TimeZone": "'UTC'",
        "allowed_paths": f"[{', '.join(_text(path) for path in source.files)}]",
        "allowed_directories": f"[{_text(out.resolve())}]",
        "enable_external_access": "false",
        "lock_configuration": "true",  # last: nothing can be set after it
    }
    try:
        with duckdb.connect() as connection, _explained(source, out):
            for name, value in settings.items():
                connection.execute(f"SET {name} = {value}")
            yield lambda sql: connection.execute(sql).fetchall()
    finally:
        shutil.rmtree(spill, ignore_errors=True)


@contextmanager
def _explained(source: Source, out: Path) -> Iterator[None]:
    """DuckDB's errors that a log, a memory or a disk can cause, as ours."""
    try:
        yield
    except duckdb.Error as error:
        if "No space left on device" in str(error) or "max_temp_directory_size" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out)) from error
        files = ", ".join(str(path) for path in source.files)
        if isinstance(error, duckdb.OutOfMemoryException):
            raise DataError(
                f"preparing {files} ran out of memory: {first_line(error)}. Close other programs or prepare fewer days."
            ) from error
        if isinstance(error, _OF_THE_LOG):
            raise DataError(
                f"reading {files} failed: {first_line(error)}. Either the file is damaged (copy or export it again), "
                f"or a value in it is not of its column's type, or a rule reads text as a number."
            ) from error
        raise


def _text(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


# --- the funnel -------------------------------------------------------------------------------------------------------


def _funnel(plan: Plan, ask: Ask) -> list[FunnelLine]:
    lines: list[FunnelLine] = []
    for count in plan.counts:
        rows, users, items, positives = (int(value) for value in ask(count.sql)[0])
        follows = bool(lines) and lines[-1].scope == count.scope != "windows"
        removed = lines[-1].rows - rows if follows else 0
        share = positives / rows if rows else 0.0
        lines.append(FunnelLine(count.name, count.scope, rows, users, items, positives, share, removed))
    return lines


def _split_lines(funnel: Sequence[FunnelLine]) -> dict[Split, FunnelLine]:
    """The line of each window's rows: for training, what the last filter left."""
    train = [line for line in funnel if line.scope == "train"][-1]
    validation, test, _ = (line for line in funnel if line.scope == "windows")
    return dict(zip(SPLITS, (train, validation, test), strict=True))


# --- refusals before rows are read ------------------------------------------------------------------------------------


def _check_types(rule: str, source: Source, *, field: str) -> None:
    """A rule reads single values. DuckDB would bind a cast of a list to a number, and fail on the first row."""
    for column in sorted(rule_columns(rule)):
        type_ = source.event_columns[column]
        if not (
            type_ in INTEGERS or type_.startswith((*_FRACTIONS, "BOOLEAN", "VARCHAR", "ENUM")) and type_[-1] != "]"
        ):
            raise RecipeError(
                f"{field} reads {column}, which is {type_}; a rule reads numbers, true and false, and text. "
                f"Write what it needs of {column} into a column of its own. Rule: {rule}"
            )


def _check_item_feature(feature: ItemFeature, source: Source, *, field: str, path: Path) -> None:
    match feature:
        case IdFeature():
            return
        case CategoryFeature() | BagFeature() | NumberFeature():
            column, where = feature.column, f"{field}.column"
        case AgeFeature():
            column, where = "uploaded_at", f"{field}, the item's age,"
        case _:
            assert_never(feature)
    if column not in source.item_columns:
        raise RecipeError(
            f"{where} reads {column}, which the items of {path} do not have "
            f"({nearest(column, source.item_columns)}columns at hand: {', '.join(sorted(source.item_columns))})."
        )
    type_ = source.item_columns[column]
    is_plain = not type_.endswith("]") and not type_.startswith(("STRUCT", "MAP", "UNION", "BLOB"))
    is_right, wanted = {
        "category": (is_plain, "a plain column; a list is read by kind: bag"),
        "bag": (type_.endswith("[]"), "a list column, such as VARCHAR[]; single values are read by kind: category"),
        "number": (type_ in INTEGERS or type_.startswith(_FRACTIONS), "a number; text is read by kind: category"),
        "age": (type_ == "BIGINT", "UTC milliseconds as BIGINT, or timestamps"),
    }[feature.kind]
    if not is_right:
        raise RecipeError(f"{where} reads {column} of {path}, which is {type_}; kind: {feature.kind} needs {wanted}.")


# --- refusals of a log ------------------------------------------------------------------------------------------------


def _refuse_repeats(repeats: list[Any], key: str, path: Path) -> None:
    if repeats:
        listed = ", ".join(f"{'NULL' if value is None else value} in {rows} rows" for value, rows in repeats)
        raise DataError(f"{path}: {key} holds {listed}; each must stand in one row alone, and none be NULL.")


def _refuse_unusable(recipe: Recipe, funnel: list[FunnelLine], first_at: int | None, last_at: int | None) -> None:
    """A log that cannot be trained on, or judged by, is refused before anything is written."""
    log = table_paths(recipe.data)["events"]
    if first_at is None or last_at is None:
        raise DataError(f"{log}: in each of its {funnel[0].rows:,} rows user_id, item_id or at is NULL. Fill them.")
    for at in (first_at, last_at):
        if not _FIRST_MS <= at < _LAST_MS:
            unit = "seconds" if at < _FIRST_MS else "microseconds or nanoseconds"
            raise DataError(
                f"{log}: at holds {at}, which looks like {unit}; it must be UTC milliseconds, such as 1650816000000. "
                f"Convert the column, or delete rows whose time is not known."
            )
    lines = _split_lines(funnel)
    for split, line in lines.items():
        if line.positives == 0:
            raise DataError(f"{log}: {_lack(recipe, split, funnel, first_at, last_at)}")
    for kind, count in (("user", lines["train"].users), ("item", lines["train"].items)):
        if count < 2:
            raise DataError(
                f"{log}: the training rows hold one {kind} alone, and a model learns by telling {kind}s apart. "
                f"Take a log of more {kind}s, a longer prepare.split.train or weaker prepare.filters."
            )


def _lack(recipe: Recipe, split: Split, funnel: list[FunnelLine], first_at: int, last_at: int) -> str:
    """Why a window has no positive rows, and what would mend it."""
    days = recipe.prepare
    window = getattr(days.split, split)
    asked = f"prepare.split.{split}, {window.first} to {window.end} (end excluded, days at UTC{days.utc_offset_h:+d})"
    unfiltered = next(line for line in funnel if line.name == f"{split} window")
    if unfiltered.rows == 0:
        zone = timezone(timedelta(hours=days.utc_offset_h))
        first, last = (datetime.fromtimestamp(at / 1000, tz=zone).date() for at in (first_at, last_at))
        return f"no event lies in {asked}. The log goes from {first} to {last}: move the windows into it."
    if unfiltered.positives == 0:
        return (
            f"none of the {unfiltered.rows:,} events in {asked} is positive by prepare.positive, "
            f"{recipe.prepare.positive}. Weaken the rule, or look for NULL in the columns it reads."
        )
    train = [line for line in funnel if line.scope == "train"]
    cause = next(line for line in train if line.positives == 0)
    return (
        f"prepare.filters.{train.index(cause) - 1} ({cause.name}) leaves {cause.rows:,} rows and none of the "
        f"{unfiltered.positives:,} positives in {asked}. Weaken it."
    )
