"""Preparation plan: the SQL statements of a recipe. Nothing is run here, so one plan works on every engine.

The order of the steps: drop exact duplicates; derive columns; assign windows; fit labels on the training window; apply
rules; then filters, which count on the training window and remove rows from it alone; samples; and for the remaining
events, point-in-time histories. Validation and test are never filtered: a test without hard users looks too good.

Statements use only SQL that engines agree on: integers wherever order matters, quoted names (`at` is reserved in DuckDB
2), sums over RANGE frames. They read the views `source_events`, `source_items` and `source_users`, which an engine
creates from the log. Columns that begin with `_tf_` are internal: no column of a log or a recipe may (`INTERNAL`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

from twofold.digest import file_stem
from twofold.prepare.counter_sums import counters_sql, priors_sql
from twofold.prepare.duckdb_connection import quote_name
from twofold.prepare.event_filters import Selection, select_train
from twofold.prepare.funnel import Count, funnel_counts, has_estimates
from twofold.prepare.hashing import shard_sql
from twofold.prepare.sources import Source, SourceTable
from twofold.prepare.taken_rows import taken_sql
from twofold.prepare.watch_labels import ROWS, fit_label, thousandths_sql
from twofold.prepare.windows import kept_sql, split_sql
from twofold.recipe.prepare import Prepare
from twofold.recipe.split import LastEvents
from twofold.sql.rules import rule_columns, rule_sql
from twofold.tables import OUTCOME, SHARD, SPLITS


@dataclass(frozen=True)
class Step:
    """A view or stored table, and the SELECT that creates it from earlier steps.

    An engine may store a table that `is_divided` by the column shard, so that a shard is read without the others.
    """

    name: str
    sql: str
    is_stored: bool = True
    is_divided: bool = False


@dataclass(frozen=True)
class Output:
    """A file of the stage's folder, and the SELECT of its rows in their order."""

    path: str
    sql: str


@dataclass(frozen=True)
class ShardOutput:
    """A folder of the stage with one file per shard, and the columns, condition and order of its rows."""

    folder: str
    columns: str
    where: str
    order: str

    def sql(self, events: str, *, has_shard: bool = False) -> str:
        """Returns the SELECT from the table of events in the order of the files; `has_shard` adds and sorts shards."""
        columns, order = (
            (f'{self.columns}, "{SHARD}"', f'"{SHARD}", {self.order}') if has_shard else (self.columns, self.order)
        )
        return f'SELECT {columns} FROM "{events}" WHERE {self.where} ORDER BY {order}'


@dataclass(frozen=True)
class Shards:
    """The shards of users, which an engine writes together or one after another.

    `rows` is the view of the usable events of all shards, whose condition may be extended; `events`, which reads it, is
    stored; `outputs` are written from `events`.
    """

    count: int
    rows: Step
    events: Step
    outputs: tuple[ShardOutput, ...]


@dataclass(frozen=True)
class Plan:
    """Steps in order; counts and files that read them; then the files of the shards.

    `priors` is, for each key of `prepare.counters`, the SELECT of one row of sums over the training window;
    `train_condition` and `evaluated_condition` are the conditions for rows of `labelled` in the training window, and in
    those of validation and test.
    """

    steps: tuple[Step, ...]
    counts: tuple[Count, ...]
    outputs: tuple[Output, ...]
    shards: Shards
    priors: Mapping[str, str]
    train_condition: str
    evaluated_condition: str


def build_plan(prepare: Prepare, source: Source, *, shards: int = 1) -> Plan:
    """Returns every statement of `prepare`. Examples and events are divided into `shards` files by user."""
    labels = {name: fit_label(name, label) for name, label in prepare.labels.items()}
    selection = select_train(prepare, source.events.columns)
    fitted = [(name, sql) for label in labels.values() for name, sql in label.tables.items()]
    # A view is computed once per reader: with one reader, a view; with several, or a sort, a stored table.
    is_log_stored, is_ruled_stored = bool(fitted) or isinstance(prepare.split, LastEvents), bool(prepare.counters)
    steps = (
        Step("repeated", _repeated_sql()),
        Step("log", log_sql(prepare, source), is_log_stored),
        *(Step(name, sql) for name, sql in fitted),
        Step(
            "ruled",
            _ruled_sql(prepare, {name: (label.joins, label.value) for name, label in labels.items()}),
            is_ruled_stored,
        ),
        *_shard_steps(source, shards),
        Step("labelled", _labelled_sql(prepare, source, shards=shards), is_divided=shards > 1),
        *(Step(name, sql) for name, sql in selection.tables),
    )
    saved = [name for label in labels.values() for name in label.saved]
    outputs = [
        Output("items.parquet", _entities_sql("item_id", "source_items", source.items)),
        Output("users.parquet", _entities_sql("user_id", "source_users", source.users)),
        *(Output(f"fitted/{name}.parquet", f'SELECT * FROM "{name}" ORDER BY 1, 2') for name in saved),
        *(
            Output(f"counters/by={file_stem(key)}.parquet", counters_sql(key, each))
            for key, each in prepare.counters.items()
        ),
    ]
    priors = {key: priors_sql(key, each) for key, each in prepare.counters.items()}
    counts = funnel_counts(prepare, source, selection)
    cut = _shards(selection, shards, frozenset(_numbers_sql(prepare, source)))
    evaluated = f'"split" > 0 AND {selection.of_users}'
    return Plan(steps, counts, tuple(outputs), cut, priors, selection.train_condition, evaluated)


# --- the log with its columns -----------------------------------------------------------------------------------------


def _repeated_sql() -> str:
    """Returns the keys of more than one row: only these rows can be exact duplicates, and comparing keys is cheap."""
    return """
        SELECT "user_id", "item_id", "at" FROM "source_events"
        GROUP BY "user_id", "item_id", "at" HAVING COUNT(*) > 1
    """


def log_sql(prepare: Prepare, source: Source) -> str:
    """Returns the distinct rows of the log with every column that a rule may read, derived columns, and internal ones.

    Internal columns: _tf_copies, the number of equal rows in the log; _tf_is_taken, the value of `where`;
    _tf_is_estimated; _tf_is_kept, if the row may be used; _tf_split, the index of its window in SPLITS, NULL outside
    all windows; _tf_watch_ms and _tf_length_ms.
    """
    used = used_columns(prepare)
    read = [name for name in source.events.columns if name in used]
    sql = taken_sql(prepare, source, used, f'({_distinct_sql(source, used)}) AS "distinct"')
    estimated = 'COALESCE("at_is_estimated", FALSE)' if has_estimates(source) else "FALSE"
    sql = f'(SELECT *, {estimated} AS "_tf_is_estimated" FROM {sql}) AS "known"'
    sql = f'(SELECT *, {kept_sql(prepare, source, read)} AS "_tf_is_kept" FROM {sql}) AS "kept"'
    watch = ", ".join(
        f'{thousandths_sql(f"""CAST("{name}_s" AS DOUBLE)""")} AS "_tf_{name}_ms"' for name in _watched(prepare, source)
    )
    split = split_sql(prepare, read)
    return f'SELECT *, {split} AS "_tf_split"{", " + watch if watch else ""} FROM {sql}'


def _distinct_sql(source: Source, used: frozenset[str]) -> str:
    """Returns rows with a unique key unchanged, and each other distinct row once, with its number of copies."""
    kept = [quote_name(name) for name in source.events.columns if name in used]
    all_columns = ", ".join(quote_name(name) for name in source.events.columns)
    is_repeated = " AND ".join(f'"repeated"."{key}" = "events"."{key}"' for key in ("user_id", "item_id", "at"))
    is_repeated = f'EXISTS (SELECT 1 FROM "repeated" WHERE {is_repeated})'
    return f"""
        SELECT {", ".join(kept)}, 1 AS "_tf_copies" FROM "source_events" AS "events" WHERE NOT {is_repeated}
        UNION ALL
        SELECT {", ".join(kept)}, "_tf_copies" FROM (
            SELECT {all_columns}, CAST(COUNT(*) AS INTEGER) AS "_tf_copies" FROM "source_events" AS "events"
            WHERE {is_repeated} GROUP BY {all_columns}
        ) AS "different"
    """


def used_columns(prepare: Prepare) -> frozenset[str]:
    """Returns the columns that `prepare` reads, derived ones included."""
    names = {"user_id", "item_id", "at", "at_is_estimated", "watch_s", "length_s", *prepare.counters}
    names |= {name for rule in prepare.rules() for name in rule_columns(rule.text)}
    for label in prepare.labels.values():
        match label.kind:
            case "below_mean":
                names |= {label.column, label.key}
            case "wtg":
                names |= {label.buckets.creator} if label.buckets.kind == "item" and label.buckets.creator else set()
            case "pcc" | "quantile" | "long_view":
                pass
            case _:
                assert_never(label.kind)
    return frozenset(names | ({prepare.split.ties} if isinstance(prepare.split, LastEvents) else set()))


def _watched(prepare: Prepare, source: Source) -> list[str]:
    available = {*source.events.columns, *source.items.columns, *source.users.columns, *prepare.derive}
    return [name for name in ("watch", "length") if f"{name}_s" in available]


# --- labels and rules -------------------------------------------------------------------------------------------------


def _ruled_sql(prepare: Prepare, labels: Mapping[str, tuple[str, str]]) -> str:
    """Returns the log with its labels (name → joins, value) and the values of the rules for every row.

    A rule that gives NULL is false. An event that fulfils both rules is positive.
    """
    sql = ROWS
    for name, (joins, value) in labels.items():
        sql = f'(SELECT "rows".*, {value} AS "{name}" FROM {sql} {joins}) AS "rows"'
    negative = "TRUE" if prepare.negative is None else rule_sql(prepare.negative, result="condition")
    positive = rule_sql(prepare.positive, result="condition")
    relevant = positive if prepare.relevant is None else rule_sql(prepare.relevant, result="condition")
    return f"""
        SELECT *, COALESCE({positive}, FALSE) AS "_tf_is_positive", COALESCE({negative}, FALSE) AS "_tf_is_negative",
            COALESCE({relevant}, FALSE) AS "_tf_is_relevant"
        FROM {sql}
    """


def _labelled_sql(prepare: Prepare, source: Source, *, shards: int = 1) -> str:
    """Returns the columns of every row that later steps read, and the shard of its user."""
    shard, joined = "0", ""
    if shards > 1:
        is_text = source.events.columns["user_id"] != "BIGINT"
        # Events without a user have no shard in the table.
        shard = 'COALESCE("_tf_shard", 0)' if is_text else shard_sql("BIGINT", shards)
        joined = 'LEFT JOIN "user_shards" ON "_tf_user" = "user_id"' if is_text else ""
    numbers = "".join(f', CAST({sql} AS FLOAT) AS "{name}"' for name, sql in _numbers_sql(prepare, source).items())
    return f"""
        SELECT "user_id", "item_id", "at", "_tf_split" AS "split", "_tf_is_kept" AS "is_kept",
            "_tf_is_taken" AS "is_taken", "_tf_is_positive" AS "is_positive",
            "_tf_is_negative" AND NOT "_tf_is_positive" AS "is_negative",
            "_tf_is_relevant" AS "is_relevant", "_tf_is_estimated" AS "is_estimated", "_tf_copies" AS "copies",
            CAST({shard} AS INTEGER) AS "{SHARD}"{numbers}
        FROM "ruled" {joined}
    """


def _shard_steps(source: Source, shards: int) -> list[Step]:
    """Returns the table of the shards of users with ids of text: their hash costs 2 µs, so it is computed once a user,
    not once an event.
    """
    type_ = source.events.columns["user_id"]
    if shards == 1 or type_ == "BIGINT":
        return []
    users = 'SELECT DISTINCT "user_id" FROM "source_events" WHERE "user_id" IS NOT NULL'
    return [
        Step(
            "user_shards",
            f'SELECT "user_id" AS "_tf_user", {shard_sql(type_, shards)} AS "_tf_shard" FROM ({users}) AS "users"',
        )
    ]


def _numbers_sql(prepare: Prepare, source: Source) -> dict[str, str]:
    """Returns the SQL of each number that this log and recipe define for a row, by name."""
    rules = {"weight": prepare.weight, "target": prepare.target}
    rules |= {f"{OUTCOME}{name}": rule for name, rule in prepare.outcomes.items()}
    numbers = {name: rule_sql(rule, result="number") for name, rule in rules.items() if rule is not None}
    return numbers | {f"{name}_s": f'"{name}_s"' for name in _watched(prepare, source)}


# --- files ------------------------------------------------------------------------------------------------------------


def _shards(selection: Selection, count: int, columns: frozenset[str]) -> Shards:
    outputs = [_history_output()]
    for index, split in enumerate(SPLITS):
        kept = f'"split" = {index}' + (f" AND {selection.train_condition}" if split == "train" else "")
        outputs.append(_rows_output(f"rows/split={split}", kept, columns))
    usable = f'SELECT * FROM "labelled" WHERE "is_kept" AND {selection.of_users}'
    return Shards(count, Step("usable", usable, False), Step("shard_events", events_sql("usable")), tuple(outputs))


def events_sql(usable: str) -> str:
    """Returns usable events with the number of positives and negatives of their user strictly before.

    RANGE … 1 PRECEDING on integer milliseconds: events with one timestamp do not see each other. ROWS would let them.
    """
    return f"""
        SELECT *, CAST(COUNT(CASE WHEN "is_positive" THEN 1 END) OVER "past" AS INTEGER) AS "positives_before",
            CAST(COUNT(CASE WHEN "is_negative" THEN 1 END) OVER "past" AS INTEGER) AS "negatives_before"
        FROM "{usable}"
        WINDOW "past" AS (
            PARTITION BY "user_id" ORDER BY "at" RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        )
    """


def _rows_output(folder: str, where: str, columns: frozenset[str]) -> ShardOutput:
    """Returns the columns of `tables.ROWS` in its order; all other columns break ties, so that files repeat."""
    sources = {
        "weight": 'COALESCE("weight", 0)' if "weight" in columns else "1",
        "target": '"target"' if "target" in columns else 'CASE WHEN "is_positive" THEN 1 ELSE 0 END',
        **{name: f'"{name}"' if name in columns else "NULL" for name in ("watch_s", "length_s")},
    }
    numbers = ", ".join(f'CAST({sql} AS FLOAT) AS "{name}"' for name, sql in sources.items())
    outcomes = "".join(f', "{name}"' for name in sorted(columns) if name.startswith(OUTCOME))
    return ShardOutput(
        folder,
        f'''"user_id", "item_id", "at", "is_positive" AS "label", "is_estimated" AS "at_is_estimated", {numbers},
            "positives_before", "negatives_before", "is_relevant"{outcomes}''',
        where,
        f'''"user_id", "at", "item_id", "label", "at_is_estimated", "weight", "target", "watch_s", "length_s",
            "is_relevant"{outcomes}''',
    )


def _history_output() -> ShardOutput:
    """Returns the columns of `tables.HISTORY`: events of all days, also those outside the windows."""
    return ShardOutput(
        "events",
        '"user_id", "item_id", "at", "is_positive", "is_negative"',
        "TRUE",
        '"user_id", "at", "item_id", "is_positive", "is_negative"',
    )


def _entities_sql(key: str, name: str, table: SourceTable) -> str:
    """Returns users or items by rising id; those found only in events have NULL attributes.

    A table that is read from the events has ids of events that `where` does not take, which are left out.
    """
    attributes = "".join(f', "own".{quote_name(column)}' for column in table.columns if column != key)
    listed = f'SELECT "{key}" FROM "{name}" UNION ' if table.grouped_by is None else ""
    return f"""
        SELECT "known"."{key}"{attributes}
        FROM ({listed}SELECT "{key}" FROM "labelled" WHERE "is_kept" GROUP BY "{key}") AS "known"
        LEFT JOIN "{name}" AS "own" ON "known"."{key}" = "own"."{key}"
        ORDER BY "known"."{key}"
    """


def repeats_sql(key: str, table: str) -> str:
    """Returns the first three ids that are NULL or repeated in a table of items or users, and their number of rows."""
    return f"""
        SELECT "{key}", COUNT(*) FROM "{table}"
        GROUP BY "{key}" HAVING COUNT(*) > 1 OR "{key}" IS NULL ORDER BY "{key}" LIMIT 3
    """
