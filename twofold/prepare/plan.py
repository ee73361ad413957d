"""Recipe → SQL statements. Pure: nothing is run here, so that one plan serves every engine.

The order is that of a careful experiment: rules on raw rows; exact duplicates dropped; windows; histories point in
time over all that is kept; then filters, which count on the training window and remove from it alone. Validation and
test are never filtered: a test without its hard users flatters.

Statements keep to SQL that engines agree on: integers wherever order matters, quoted names (`at` is reserved in DuckDB
2), counts over RANGE frames. What only files can tell lies in `sources.py`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, assert_never

from twofold.prepare.sources import Source, quoted
from twofold.recipe.rules import rule_sql
from twofold.recipe.preparation import Filter, ItemFilter, Prepare, UserFilter
from twofold.tables import SPLITS, Split

Scope = Literal["log", "train", "windows"]

_HAS_KEYS: Final = '"user_id" IS NOT NULL AND "item_id" IS NOT NULL AND "at" IS NOT NULL'


@dataclass(frozen=True)
class Step:
    """A table, and the SELECT that makes it from the tables before it."""

    table: str
    sql: str


@dataclass(frozen=True)
class Count:
    """A line of the funnel, and the SELECT of its four counts: rows, users, items, positives."""

    name: str
    scope: Scope
    sql: str


@dataclass(frozen=True)
class Output:
    """A file of the stage's folder, and the SELECT whose rows it holds in the order given."""

    path: str
    sql: str


@dataclass(frozen=True)
class Plan:
    """The steps in order; then the counts and the files, which read the steps' tables."""

    steps: tuple[Step, ...]
    counts: tuple[Count, ...]
    outputs: tuple[Output, ...]


def build_plan(prepare: Prepare, source: Source, *, shards: int = 1) -> Plan:
    """All that `prepare` does to a log, as text. Rows and events are cut into `shards` files by user."""
    steps = [Step("labelled", labelled_sql(prepare, source)), Step("events", events_sql(prepare, source))]
    stages = [f"""(SELECT * FROM "events" WHERE {_in_split("train")})"""]
    for number, filter_ in enumerate(prepare.filters):
        steps.append(Step(f"train_{number}", filter_sql(filter_, stages[-1])))
        stages.append(f'"train_{number}"')
    outputs = []
    for shard in range(shards):
        where = shard_sql(source.event_columns["user_id"], shard, shards)
        for split in SPLITS:
            table = stages[-1] if split == "train" else '"events"'
            sql = rows_sql(table, f"{_in_split(split)} AND {where}")
            outputs.append(Output(f"rows/split={split}/shard={shard}.parquet", sql))
        outputs.append(Output(f"events/shard={shard}.parquet", history_sql(where)))
    outputs.append(Output("items.parquet", entities_sql("item_id", source.items_sql, source.item_columns)))
    outputs.append(Output("users.parquet", entities_sql("user_id", source.users_sql, source.user_columns)))
    return Plan(tuple(steps), _counts(prepare, source, tuple(stages)), tuple(outputs))


# --- steps ------------------------------------------------------------------------------------------------------------


def labelled_sql(prepare: Prepare, source: Source) -> str:
    """The distinct rows of the log, those without keys included, with their number and what the rules say of them.

    Where a rule gives NULL it does not hold. An event that both rules claim is positive.
    """
    columns = ", ".join(quoted(name) for name in source.event_columns)
    negative = "TRUE" if prepare.negative is None else rule_sql(prepare.negative, result="condition")
    return f"""
        SELECT "user_id", "item_id", "at", "is_positive", "is_negative" AND NOT "is_positive" AS "is_negative",
            "is_estimated", "copies"
        FROM (
            SELECT "user_id", "item_id", "at",
                COALESCE({rule_sql(prepare.positive, result="condition")}, FALSE) AS "is_positive",
                COALESCE({negative}, FALSE) AS "is_negative",
                {'COALESCE("at_is_estimated", FALSE)' if _has_estimates(source) else "FALSE"} AS "is_estimated",
                "copies of a row" AS "copies"
            FROM (
                SELECT {columns}, COUNT(*) AS "copies of a row" FROM ({source.events_sql}) AS "log" GROUP BY {columns}
            ) AS "different"
        ) AS "ruled"
    """


def events_sql(prepare: Prepare, source: Source) -> str:
    """Every kept event: its window (NULL outside all), and the positives and negatives its user had strictly before.

    RANGE up to 1 before, on integer milliseconds: events of one timestamp do not see one another. ROWS would let them.
    """
    splits = " ".join(f"WHEN {window_sql(prepare, split)} THEN '{split}'" for split in SPLITS)
    return f"""
        SELECT "user_id", "item_id", "at", "is_positive", "is_negative", "is_estimated", CASE {splits} END AS "split",
            COUNT(CASE WHEN "is_positive" THEN 1 END) OVER "past" AS "positives_before",
            COUNT(CASE WHEN "is_negative" THEN 1 END) OVER "past" AS "negatives_before"
        FROM "labelled" WHERE {_kept_sql(prepare, source)}
        WINDOW "past" AS (
            PARTITION BY "user_id" ORDER BY "at" RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        )
    """


def window_sql(prepare: Prepare, name: Split) -> str:
    """Whether an event lies in a window: first included, end excluded."""
    bounds = prepare.bounds_ms(name)
    assert bounds is not None
    first, end = bounds
    return f'"at" >= {first} AND "at" < {end}'


def filter_sql(filter_: Filter, rows: str) -> str:
    """The training rows a filter keeps of `rows` (a table or a SELECT in brackets), counting on those rows alone."""
    match filter_:
        case ItemFilter():
            key, conditions = '"item_id"', [f"COUNT(*) >= {filter_.min_events}"]
        case UserFilter():
            key, conditions = '"user_id"', [f"COUNT(*) >= {filter_.min_events}"]
            if filter_.max_events is not None:
                conditions.append(f"COUNT(*) <= {filter_.max_events}")
            conditions.append(f'COUNT(CASE WHEN "is_positive" THEN 1 END) >= {filter_.min_positives}')
            conditions.append(f'COUNT(CASE WHEN "is_negative" THEN 1 END) >= {filter_.min_negatives}')
        case _:
            assert_never(filter_)
    return f"""
        SELECT * FROM {rows} AS "kept" WHERE {key} IN (
            SELECT {key} FROM {rows} AS "counted" GROUP BY {key} HAVING {" AND ".join(conditions)}
        )
    """


def _kept_sql(prepare: Prepare, source: Source) -> str:
    """An event whose time is estimated may teach, but nothing is judged by it, nor in the days that are judged."""
    if not _has_estimates(source):
        return _HAS_KEYS
    judged = " OR ".join(f"({window_sql(prepare, name)})" for name in SPLITS[1:])
    return f'{_HAS_KEYS} AND NOT ("is_estimated" AND ({judged}))'


def _has_estimates(source: Source) -> bool:
    return "at_is_estimated" in source.event_columns


def _in_split(split: Split) -> str:
    return f"\"split\" = '{split}'"


# --- files ------------------------------------------------------------------------------------------------------------


def rows_sql(table: str, where: str) -> str:
    """`tables.ROWS`, in its order; equal keys are ordered by the label, so that a file is the same every time."""
    return f"""
        SELECT "user_id", "item_id", "at", "is_positive" AS "label", "is_estimated" AS "at_is_estimated",
            CAST(1 AS FLOAT) AS "weight", CAST("positives_before" AS INTEGER) AS "positives_before",
            CAST("negatives_before" AS INTEGER) AS "negatives_before"
        FROM {table} AS "kept" WHERE {where}
        ORDER BY "user_id", "at", "item_id", "label", "at_is_estimated"
    """


def history_sql(where: str) -> str:
    """`tables.HISTORY`: the events of all days, those outside the windows too."""
    return f"""
        SELECT "user_id", "item_id", "at", "is_positive", "is_negative" FROM "events" WHERE {where}
        ORDER BY "user_id", "at", "item_id", "is_positive", "is_negative"
    """


def entities_sql(key: str, table_sql: str, columns: Iterable[str]) -> str:
    """Users or items by rising id: those of their own table, and those of events alone, with NULL attributes."""
    attributes = "".join(f', "own".{quoted(column)}' for column in columns if column != key)
    return f"""
        SELECT "known"."{key}"{attributes}
        FROM (SELECT "{key}" FROM ({table_sql}) AS "listed" UNION SELECT "{key}" FROM "events") AS "known"
        LEFT JOIN ({table_sql}) AS "own" ON "known"."{key}" = "own"."{key}"
        ORDER BY "known"."{key}"
    """


def repeats_sql(key: str, table_sql: str) -> str:
    """The first three ids that a table of items or users holds twice or as NULL, with their number of rows."""
    return f"""
        SELECT "{key}", COUNT(*) FROM ({table_sql}) AS "own"
        GROUP BY "{key}" HAVING COUNT(*) > 1 OR "{key}" IS NULL ORDER BY "{key}" LIMIT 3
    """


def shard_sql(user_type: str, shard: int, shards: int) -> str:
    """Whether a user's rows lie in a shard, by our own integer arithmetic: HASH() differs from engine to engine."""
    if shards == 1:
        return "TRUE"
    if user_type == "BIGINT":
        # One step of a Lehmer generator (Park & Miller 1988): neighbouring ids part, and no product exceeds 2^47.
        number = '((ABS("user_id" % 2147483647) * 48271) % 2147483647)'
    else:
        # The first 24 bits of MD5, digit by digit: engines have no common way from hexadecimal to a number.
        digits = (f"STRPOS('0123456789abcdef', SUBSTR(MD5(\"user_id\"), {place + 1}, 1)) - 1" for place in range(6))
        number = f"({' + '.join(f'{16**place} * ({digit})' for place, digit in enumerate(digits))})"
    return f"{number} % {shards} = {shard}"


# --- the funnel -------------------------------------------------------------------------------------------------------


def _counts(prepare: Prepare, source: Source, train_stages: tuple[str, ...]) -> tuple[Count, ...]:
    """Three accounts: the log, the training window through its filters, and the other days. Rows add up over them."""
    counts = [
        Count("log", "log", _count_sql('"labelled"', "TRUE", each='"copies"')),
        Count("with user, item and time", "log", _count_sql('"labelled"', _HAS_KEYS, each='"copies"')),
        Count("without exact duplicates", "log", _count_sql('"labelled"', _HAS_KEYS)),
    ]
    if _has_estimates(source):
        kept = _kept_sql(prepare, source)
        counts.append(Count("no estimated time where judged", "log", _count_sql('"labelled"', kept)))
    names = ["train window", *(filter_name(filter_) for filter_ in prepare.filters)]
    counts += [Count(name, "train", _count_sql(stage)) for name, stage in zip(names, train_stages, strict=True)]
    counts += [Count(f"{split} window", "windows", _count_sql('"events"', _in_split(split))) for split in SPLITS[1:]]
    counts.append(Count("outside the windows", "windows", _count_sql('"events"', '"split" IS NULL')))
    return tuple(counts)


def filter_name(filter_: Filter) -> str:
    """What a filter keeps, in words: `users: 5 to 500 events, 1 or more positives`."""
    match filter_:
        case ItemFilter():
            return f"items: {filter_.min_events} or more events"
        case UserFilter():
            most = "or more" if filter_.max_events is None else f"to {filter_.max_events}"
            parts = [f"{filter_.min_events} {most} events"]
            parts += [f"{filter_.min_positives} or more positives"] * (filter_.min_positives > 0)
            parts += [f"{filter_.min_negatives} or more negatives"] * (filter_.min_negatives > 0)
            return f"users: {', '.join(parts)}"
        case _:
            assert_never(filter_)


def _count_sql(table: str, where: str = "TRUE", *, each: str = "1") -> str:
    return f"""
        SELECT COALESCE(SUM({each}), 0), COUNT(DISTINCT "user_id"), COUNT(DISTINCT "item_id"),
            COALESCE(SUM(CASE WHEN "is_positive" THEN {each} ELSE 0 END), 0)
        FROM {table} AS "counted" WHERE {where}
    """


def oddities_sql(source: Source) -> dict[str, str]:
    """What is odd about lengths, in words → the SELECT that counts such rows. Rules decide what becomes of them."""
    odd = {}
    if "length_s" in source.event_columns:
        odd["length of 0 or less"] = '"length_s" <= 0'
    if {"length_s", "watch_s"} <= set(source.event_columns):
        odd["watched longer than long"] = '"watch_s" > "length_s"'
    return {name: f'SELECT COUNT(*) FROM ({source.events_sql}) AS "log" WHERE {where}' for name, where in odd.items()}
