"""Inspection of a log: column statistics and event counts, in scans of bounded memory.

`draft_recipe.py` turns the profile into a recipe. Column names reach DuckDB only as quoted names, never as SQL.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import duckdb

from twofold.errors import DataError
from twofold.ingest.column_roles import UPLOADED, GivenColumns, Roles, guess_key, guess_roles, normalized_name
from twofold.ingest.log_profile import Column, Day, EventFacts, Kind, TableProfile, look_of, printable, timestamp_unit
from twofold.local_time import local_ms_sql
from twofold.prepare.check import check_recipe
from twofold.prepare.duckdb_connection import first_line, open_duckdb, quote_name, scan_sql
from twofold.prepare.sources import INTEGERS, Source, is_number, open_source
from twofold.prepare.table_files import table_files
from twofold.recipe.data import Table
from twofold.recipe.load import load_recipe
from twofold.sql.rules import rule_sql
from twofold.tables import DAY_MS, HOUR_MS

Query = Callable[[str], list[Any]]

# Duplicates and repeats are counted on at most this many rows: those of a share of the users, chosen by hash.
_MAX_COMPARED: Final = 20_000_000
# DuckDB's time grows with the square of the columns in a statement: 400 columns at once took 11 s for 4,000 rows.
_COLUMNS_PER_SCAN: Final = 64
_SHOWN: Final = 60


@dataclass(frozen=True)
class LogProfile:
    """All that a recipe is drafted from."""

    log: TableProfile
    items: TableProfile | None
    users: TableProfile | None
    roles: Roles
    data: Table
    events: EventFacts
    time_zone: str = "UTC"
    """IANA time zone of the days in `events`."""

    @property
    def tables(self) -> tuple[TableProfile, ...]:
        return tuple(table for table in (self.log, self.items, self.users) if table is not None)


def taken_as(seen: LogProfile, table: TableProfile, column: Column) -> str:
    """Returns the role of a column, or a description of its values."""
    if table is seen.log:
        return seen.roles.taken_as.get(column.name) or look_of(column)
    ours = {"item_id": "item", "user_id": "user", "uploaded_at": "upload time"}
    return ours.get(our_name(seen.data, column.name)) or look_of(column)


def profile_log(
    log: Path,
    *,
    items: Path | None = None,
    users: Path | None = None,
    given_columns: GivenColumns = GivenColumns(),  # noqa: B008
    time_zone: str = "UTC",
) -> LogProfile:
    """Returns the profile of a log: the columns of every table, their roles, and statistics of the events.

    `given_columns` are not guessed. Days are those of the IANA time zone `time_zone`. DataError if a file is missing,
    damaged or empty, if user, item or time cannot be found, or if there is only one user or one item.
    """
    tables = {"--log": log} | {name: path for name, path in (("--items", items), ("--users", users)) if path}
    looked = {name: look_at_table(path, field=name) for name, path in tables.items()}
    roles = guess_roles(looked["--log"], given_columns)
    sides = looked.get("--items"), looked.get("--users")
    data = data_section(looked["--log"], *sides, roles)
    events = look_at_events(open_source(data), roles, time_zone)
    if events.positives == 0:
        roles = replace(roles, positive="TRUE", reason=f"every event, because {roles.positive} is true for none")
        events = look_at_events(open_source(data), roles, time_zone)
    return LogProfile(looked["--log"], *sides, roles, data, events, time_zone)


def check_draft(text: str, folder: Path) -> None:
    """Checks that a recipe's text loads from a file in `folder` and fits its data."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=folder, prefix=".draft-", suffix=".yaml") as draft:
        draft.write(text)
        draft.flush()
        check_recipe(load_recipe(Path(draft.name)))


def look_at_table(path: Path, *, field: str) -> TableProfile:
    """Returns the statistics of a table's columns. `field` is the option that named the path."""
    files = table_files(path, field)
    types = files.columns
    names = list(types)
    rows, columns = 0, []
    scan = scan_sql(files.paths, files.kind, has_partitions=bool(files.partitions))
    with _engine(files.paths) as query:
        for first in range(0, len(names), _COLUMNS_PER_SCAN):
            some = names[first : first + _COLUMNS_PER_SCAN]
            listed = ", ".join(_column_sql(name, types[name]) for name in some)
            rows, *facts = query(f"SELECT COUNT(*), {listed} FROM {scan}")[0]
            columns += [_column(name, types[name], rows, fact) for name, fact in zip(some, facts, strict=True)]
    return TableProfile(path, rows, tuple(columns))


def look_at_events(source: Source, roles: Roles, time_zone: str) -> EventFacts:
    """Counts users, items, days and repeats of the events; DataError if there is only one user or item."""
    with _engine(source.files) as query:
        events = _events_sql(source, roles)
        counts = f"""COUNT(*), COALESCE(SUM("is_positive"), 0), COUNT(DISTINCT "at" // {HOUR_MS} % 24)"""
        rows, positives, hours = query(f"SELECT {counts} FROM {events}")[0]
        users, median, busiest = query(
            _groups_sql(events, "user_id", "QUANTILE_DISC(n, 0.5), QUANTILE_DISC(n, 0.999)")
        )[0]
        items, lone_items = query(_groups_sql(events, "item_id", "COUNT(CASE WHEN n = 1 THEN 1 END)"))[0]
        _check_learnable(source, roles, rows=rows, users=users, items=items)
        share = min(1.0, _MAX_COMPARED / rows)
        compared, different, pairs = query(_compared_sql(source, share))[0]
        days = _days(query, events, time_zone) if roles.has_clock else ()
    return EventFacts(
        rows=rows,
        positives=positives,
        users=users,
        items=items,
        lone_items=lone_items,
        median_events=median,
        busiest_events=busiest,
        compared=compared,
        duplicates=compared - different,
        repeats=different - pairs,
        days=days,
        hours=hours,
    )


def _check_learnable(source: Source, roles: Roles, *, rows: int, users: int, items: int) -> None:
    log = source.events.files[0]
    if rows == 0:
        raise DataError(f"{log}: in every row {roles.user}, {roles.item} or {roles.time} is NULL. Fill them.")
    for role, count, column in (("user", users, roles.user), ("item", items, roles.item)):
        if count < 2:
            raise DataError(
                f"{log}: {column} holds one {role} alone, and a model needs several {role}s. Name another "
                f"column with --{role} COL, or take a log with more {role}s."
            )


# --- the data section -------------------------------------------------------------------------------------------------


def data_section(log: TableProfile, items: TableProfile | None, users: TableProfile | None, roles: Roles) -> Table:
    """Returns the tables and their column names. DataError if items or users share no key with the log."""
    own = {"user_id": roles.user, "item_id": roles.item, "at": roles.time}
    columns = {ours: theirs for ours, theirs in own.items() if ours != theirs}
    if items is not None and not {roles.item, "item_id"} & names_of(items):
        columns["item_id"] = _shared_key(log, items, roles.item, guess_key(items, "item"), "item_id")
    if users is not None and not {roles.user, "user_id"} & names_of(users):
        columns["user_id"] = _shared_key(log, users, roles.user, guess_key(users, "user"), "user_id")
    uploaded = _uploaded(items)
    if uploaded is not None and uploaded.name != "uploaded_at":
        columns["uploaded_at"] = uploaded.name
    at_unit = roles.at_unit or "ms"
    upload_unit = timestamp_unit(uploaded) if uploaded is not None and uploaded.kind == "integer" else at_unit
    derived = set(roles.derive)
    seconds = {"watch_s", "length_s"} - derived
    columns |= {name.lower(): name for name in names_of(log) if name.lower() in seconds and name not in seconds}
    undated = set() if uploaded else {"uploaded_at"}
    columns |= _freed(log, set(own), derived, columns)
    columns |= _freed(items, {"item_id", "uploaded_at"}, derived | undated, columns)
    columns |= _freed(users, {"user_id"}, derived, columns)
    return Table(
        kind="table",
        events=log.path,
        items=items.path if items else None,
        users=users.path if users else None,
        columns=columns,
        at_unit=at_unit,
        uploaded_at_unit=None if upload_unit == at_unit else upload_unit,
    )


def _shared_key(log: TableProfile, table: TableProfile, theirs: str, guessed: str | None, ours: str) -> str:
    """Returns the side table's name of the key, if one entry of `columns` can express it."""
    if theirs == ours and guessed is not None and guessed not in names_of(log):
        return guessed
    hint = f"its {printable(guessed)} may be the key. " if guessed else ""
    raise DataError(
        f"{table.path} has no column {printable(theirs)}, as {log.path} calls the {ours[:4]}; {hint}One name must "
        f"serve both: rename it there. Its columns: {', '.join(map(printable, sorted(names_of(table))))}"
    )


def _freed(table: TableProfile | None, taken: set[str], barred: set[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Renames columns whose own name is reserved or used by another column. To engines, `At` equals `at`.

    A column called watch_s or length_s that holds no numbers is no time in seconds.
    """
    freed = {}
    timed = (column for column in (table.columns if table else ()) if column.name.lower() in ("watch_s", "length_s"))
    untimed = {column.name.lower() for column in timed if not is_number(column.type)}
    for name in names_of(table):
        ours = name.lower()
        is_taken = ours in taken and columns.get(ours, name) != name and columns[ours] in names_of(table)
        if is_taken or ours in barred or ours in untimed:
            freed[f"{ours}_of_log"] = name
    return freed


def _uploaded(items: TableProfile | None) -> Column | None:
    """Returns the upload time column of the items file, if a recipe can read it."""
    columns = items.columns if items else ()
    able = [c for c in columns if c.kind == "timestamp" or c.kind == "integer" and timestamp_unit(c) is not None]
    named = [column for column in able if normalized_name(column.name) in UPLOADED]
    return min(named, key=lambda column: column.name != "uploaded_at", default=None)


def names_of(table: TableProfile | None) -> set[str]:
    return {column.name for column in table.columns} if table else set()


def our_name(data: Table, name: str) -> str:
    return next((ours for ours, theirs in data.columns.items() if theirs == name), name)


# --- SQL --------------------------------------------------------------------------------------------------------------


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
    if kind == "fraction":
        facts["fractions"] = f"COUNT(CASE WHEN {column} <> FLOOR({column}) THEN 1 END)"
    if kind in ("integer", "fraction", "boolean", "timestamp", "day"):
        facts |= {"first": f"CAST({low} AS VARCHAR)", "last": f"CAST({high} AS VARCHAR)"}
    if kind == "text":
        facts["commonest"] = f"APPROX_TOP_K(LEFT({text}, {_SHOWN}), 5)"
        facts["dates"] = f"COUNT(TRY_CAST({text} AS TIMESTAMP))"
        facts["lists"] = f"COUNT(CASE WHEN CONTAINS({text}, ',') OR CONTAINS({text}, '|') THEN 1 END)"
    listed = ", ".join(f"'{field}': {sql}" for field, sql in facts.items())
    return f"{{{listed}}}"


def _column(name: str, type_: str, rows: int, fact: dict[str, Any]) -> Column:
    filled = fact["filled"]
    return Column(
        name=name,
        type=type_,
        kind=_kind(type_),
        nulls=1 - filled / rows,
        distinct=min(fact["distinct"], filled),
        low=fact.get("low"),
        high=fact.get("high"),
        is_whole=fact.get("low") is not None and fact.get("fractions", 0) == 0,
        dates=fact.get("dates", 0) / max(filled, 1),
        lists=fact.get("lists", 0) / max(filled, 1),
        range=tuple(fact[end] for end in ("first", "last") if fact.get(end) is not None),
        most_frequent=tuple(fact.get("commonest") or ()),
    )


def _events_sql(source: Source, roles: Roles) -> str:
    """Returns the events with user, item and time under our names, and whether they are positive."""
    sql = f'({source.events_sql}) AS "log"'
    for name, rule in roles.derive.items():
        sql = f'(SELECT *, {rule_sql(rule, result="number")} AS {quote_name(name)} FROM {sql}) AS "derived"'
    positive = rule_sql(roles.positive, result="condition")
    return f"""(
        SELECT "user_id", "item_id", "at", CAST(COALESCE({positive}, FALSE) AS INTEGER) AS "is_positive" FROM {sql}
        WHERE "user_id" IS NOT NULL AND "item_id" IS NOT NULL AND "at" IS NOT NULL
    ) AS "events" """


def _days(query: Query, events: str, time_zone: str) -> tuple[Day, ...]:
    first_ms, last_ms = query(f'SELECT MIN("at"), MAX("at") FROM {events}')[0]
    local = local_ms_sql('"at"', time_zone, first_ms=first_ms, last_ms=last_ms)
    by_day = f'SELECT {local} // {DAY_MS}, COUNT(*), SUM("is_positive") FROM {events} GROUP BY 1 ORDER BY 1'
    return tuple(Day(*day) for day in query(by_day))


def _groups_sql(events: str, key: str, facts: str) -> str:
    return f"SELECT COUNT(*), {facts} FROM (SELECT COUNT(*) AS n FROM {events} GROUP BY {quote_name(key)})"


def _compared_sql(source: Source, share: float) -> str:
    """Counts rows, distinct rows and distinct user-item pairs of a share of the users, by 64-bit hash."""
    whole = ", ".join(quote_name(name) for name in source.event_columns)
    return f"""
        SELECT COUNT(*), COUNT(DISTINCT HASH({whole})), COUNT(DISTINCT HASH("user_id", "item_id"))
        FROM ({source.events_sql}) AS "log"
        WHERE "user_id" IS NOT NULL AND HASH("user_id") % 1000000 < {round(share * 1_000_000)}
    """


# --- the engine -------------------------------------------------------------------------------------------------------


@contextmanager
def _engine(files: Sequence[Path]) -> Iterator[Query]:
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
