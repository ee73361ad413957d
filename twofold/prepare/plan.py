"""Recipe → SQL statements. Pure: nothing is run here, so that one plan serves every engine.

The order is that of a careful experiment: exact duplicates dropped; columns derived; windows; labels fitted on the
training window; rules; then filters, which count on the training window and remove from it alone; samples; and for
what is left histories, point in time. Validation and test are never filtered: a test without its hard users flatters.

Statements keep to SQL that engines agree on: integers wherever order matters, quoted names (`at` is reserved in DuckDB
2), sums over RANGE frames. They read the views `source_events`, `source_items` and `source_users`, which an engine
makes of the log. Names with blanks in them are ours: no log has them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import assert_never

from twofold.prepare.event_filters import Selection, select_train
from twofold.prepare.funnel import HAS_KEYS, Count, funnel_counts, has_estimates
from twofold.prepare.hashing import shard_sql
from twofold.prepare.sources import Source, quoted
from twofold.prepare.watch_labels import ROWS, fit_label, thousandths_sql
from twofold.recipe.prepare import Counters, LastEvents, Prepare, TemporalSplit
from twofold.sql.rules import rule_columns, rule_sql
from twofold.tables import HOUR_MS, OUTCOME, SPLITS, Split


@dataclass(frozen=True)
class Step:
    """A view or a stored table, and the SELECT that makes it from those before it."""

    name: str
    sql: str
    is_stored: bool = True


@dataclass(frozen=True)
class Output:
    """A file of the stage's folder, and the SELECT whose rows it holds in the order given."""

    path: str
    sql: str


@dataclass(frozen=True)
class Shard:
    """The users of one shard: their events as a table, and the files made of it."""

    events: Step
    outputs: tuple[Output, ...]


@dataclass(frozen=True)
class Plan:
    """Steps in order; counts and files that read them; then one shard of users after the other.

    `priors` is the SELECT of a single row of sums over the training window, by the key of `prepare.counters`;
    `of_train` the condition that training rows of `labelled` fulfil.
    """

    steps: tuple[Step, ...]
    counts: tuple[Count, ...]
    outputs: tuple[Output, ...]
    shards: tuple[Shard, ...]
    priors: Mapping[str, str]
    of_train: str


def build_plan(prepare: Prepare, source: Source, *, shards: int = 1) -> Plan:
    """All that `prepare` does to a log, as text. Rows and events are cut into `shards` files by user."""
    labels = {name: fit_label(name, label) for name, label in prepare.labels.items()}
    selection = select_train(prepare, source.event_columns)
    fitted = [(name, sql) for label in labels.values() for name, sql in label.tables.items()]
    steps = (
        Step("repeated", repeated_sql()),
        # Finding each user's last events takes a sort: it is done once, not by each who reads the view.
        Step("log", log_sql(prepare, source), is_stored=isinstance(prepare.split, LastEvents)),
        *(Step(name, sql) for name, sql in fitted),
        Step("ruled", ruled_sql(prepare, {name: (label.joins, label.value) for name, label in labels.items()}), False),
        Step("labelled", labelled_sql(prepare, source)),
        *(Step(name, sql) for name, sql in selection.steps),
    )
    saved = [name for label in labels.values() for name in label.saved]
    outputs = [
        Output("items.parquet", entities_sql("item_id", "source_items", source.item_columns)),
        Output("users.parquet", entities_sql("user_id", "source_users", source.user_columns)),
        *(Output(f"fitted/{name}.parquet", f'SELECT * FROM "{name}" ORDER BY 1, 2') for name in saved),
        *(Output(f"counters/by={key}.parquet", counters_sql(key, each)) for key, each in prepare.counters.items()),
    ]
    columns = frozenset(_numbers_sql(prepare, source))
    cuts = (
        _shard(selection, shard_sql(source.event_columns["user_id"], number, shards), number, columns)
        for number in range(shards)
    )
    priors = {key: priors_sql(key, each) for key, each in prepare.counters.items()}
    counts = funnel_counts(prepare, source, selection)
    return Plan(steps, counts, tuple(outputs), tuple(cuts), priors, selection.of_train)


# --- the log with its columns -----------------------------------------------------------------------------------------


def repeated_sql() -> str:
    """Keys of more than one row: of all rows, only these can be exact duplicates, and comparing keys is cheap."""
    return """
        SELECT "user_id", "item_id", "at" FROM "source_events"
        GROUP BY "user_id", "item_id", "at" HAVING COUNT(*) > 1
    """


def log_sql(prepare: Prepare, source: Source) -> str:
    """The distinct rows of the log with every column a rule may read, what is derived, and our own columns.

    Ours: "the copies" of a row in the log; "is taken" by `where`; "is estimated"; "is kept", if none of these speaks
    against it; "the split" as its place in SPLITS, NULL outside all windows; watch and length in ms.
    """
    used = used_columns(prepare)
    sql = f'({_distinct_sql(source, used)}) AS "distinct"'
    have = set(source.event_columns)  # a column of two tables is the event's, else the item's
    for side, key, columns in (("items", "item_id", source.item_columns), ("users", "user_id", source.user_columns)):
        if extra := [name for name in columns if name in used and name not in have]:
            have |= set(extra)
            listed = ", ".join(f'"side".{quoted(name)}' for name in extra)
            joined = f'LEFT JOIN "source_{side}" AS "side" ON "side"."{key}" = "events"."{key}"'
            sql = f'(SELECT "events".*, {listed} FROM (SELECT * FROM {sql}) AS "events" {joined}) AS "with {side}"'
    for name, rule in prepare.derive.items():
        sql = f'(SELECT *, {rule_sql(rule, result="number")} AS "{name}" FROM {sql}) AS "derived"'
    taken = "TRUE" if prepare.where is None else f"COALESCE({rule_sql(prepare.where, result='condition')}, FALSE)"
    estimated = 'COALESCE("at_is_estimated", FALSE)' if has_estimates(source) else "FALSE"
    sql = f'(SELECT *, {taken} AS "is taken", {estimated} AS "is estimated" FROM {sql}) AS "taken"'
    sql = f'(SELECT *, {_kept_sql(prepare)} AS "is kept" FROM {sql}) AS "kept"'
    watch = ", ".join(
        f'{thousandths_sql(f"""CAST("{name}_s" AS DOUBLE)""")} AS "{name} in ms"' for name in _watched(prepare, source)
    )
    return f'SELECT *, {split_sql(prepare)} AS "the split"{", " + watch if watch else ""} FROM {sql}'


def _distinct_sql(source: Source, used: frozenset[str]) -> str:
    """Rows whose key occurs once as they are; the others once each, with their number."""
    kept = [quoted(name) for name in source.event_columns if name in used]
    everything = ", ".join(quoted(name) for name in source.event_columns)
    is_repeated = " AND ".join(f'"repeated"."{key}" = "events"."{key}"' for key in ("user_id", "item_id", "at"))
    is_repeated = f'EXISTS (SELECT 1 FROM "repeated" WHERE {is_repeated})'
    return f"""
        SELECT {", ".join(kept)}, 1 AS "the copies" FROM "source_events" AS "events" WHERE NOT {is_repeated}
        UNION ALL
        SELECT {", ".join(kept)}, "the copies" FROM (
            SELECT {everything}, CAST(COUNT(*) AS INTEGER) AS "the copies" FROM "source_events" AS "events"
            WHERE {is_repeated} GROUP BY {everything}
        ) AS "different"
    """


def used_columns(prepare: Prepare) -> frozenset[str]:
    """The columns that anything in the recipe's preparation reads, derived ones included."""
    rules: list[str | None] = [prepare.where, prepare.positive, prepare.negative, prepare.weight, prepare.target]
    rules += (*prepare.derive.values(), *prepare.outcomes.values())
    rules += (rule for each in prepare.counters.values() for rule in (*each.rates.values(), *each.means.values()))
    names = {"user_id", "item_id", "at", "at_is_estimated", "watch_s", "length_s", *prepare.counters}
    names |= {name for rule in rules if rule is not None for name in rule_columns(rule)}
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


def split_sql(prepare: Prepare) -> str:
    """The place of an event's window in SPLITS; NULL outside all."""
    match prepare.split:
        case TemporalSplit():
            cases = " ".join(f"WHEN {window_sql(prepare, split)} THEN {place}" for place, split in enumerate(SPLITS))
            return f'CAST(CASE WHEN NOT "is kept" THEN NULL {cases} END AS TINYINT)'
        case LastEvents(test=test, validation=validation, ties=ties):
            order = f'ORDER BY "at" DESC, {quoted(ties)} DESC, "item_id" DESC'
            from_end = f'ROW_NUMBER() OVER (PARTITION BY "user_id", "is kept" {order})'
            events = 'COUNT(*) OVER (PARTITION BY "user_id", "is kept")'
            return f"""CAST(CASE WHEN NOT "is kept" THEN NULL WHEN {events} <= {test + validation} THEN 0
                WHEN {from_end} <= {test} THEN 2 WHEN {from_end} <= {test + validation} THEN 1 ELSE 0 END AS TINYINT)"""
        case _:
            assert_never(prepare.split)


def window_sql(prepare: Prepare, name: Split) -> str:
    """Whether an event lies in a window of days: first included, end excluded."""
    bounds = prepare.bounds_ms(name)
    assert bounds is not None
    return f'"at" >= {bounds[0]} AND "at" < {bounds[1]}'


def _kept_sql(prepare: Prepare) -> str:
    """An event whose time is estimated may teach; but nothing is judged by it, nor in the days that are judged.

    Where order alone decides who is judged by what, a time that is in order is as good as a known one.
    """
    if isinstance(prepare.split, LastEvents):
        return f'"is taken" AND {HAS_KEYS}'
    judged = " OR ".join(f"({window_sql(prepare, name)})" for name in SPLITS[1:])
    return f'"is taken" AND {HAS_KEYS} AND NOT ("is estimated" AND ({judged}))'


def _watched(prepare: Prepare, source: Source) -> list[str]:
    at_hand = {*source.event_columns, *source.item_columns, *source.user_columns, *prepare.derive}
    return [name for name in ("watch", "length") if f"{name}_s" in at_hand]


# --- labels and rules -------------------------------------------------------------------------------------------------


def ruled_sql(prepare: Prepare, labels: Mapping[str, tuple[str, str]]) -> str:
    """The log with its labels (name → joins, value), and what the rules say of every row.

    Where a rule gives NULL it does not hold. An event that both rules claim is positive.
    """
    sql = ROWS
    for name, (joins, value) in labels.items():
        sql = f'(SELECT "rows".*, {value} AS "{name}" FROM {sql} {joins}) AS "rows"'
    negative = "TRUE" if prepare.negative is None else rule_sql(prepare.negative, result="condition")
    positive = rule_sql(prepare.positive, result="condition")
    return f"""
        SELECT *, COALESCE({positive}, FALSE) AS "is positive", COALESCE({negative}, FALSE) AS "is negative" FROM {sql}
    """


def labelled_sql(prepare: Prepare, source: Source) -> str:
    """Of every row what is still needed once rules are read, under names of our own."""
    numbers = "".join(f', CAST({sql} AS FLOAT) AS "{name}"' for name, sql in _numbers_sql(prepare, source).items())
    return f"""
        SELECT "user_id", "item_id", "at", "the split" AS "split", "is kept" AS "is_kept", "is taken" AS "is_taken",
            "is positive" AS "is_positive", "is negative" AND NOT "is positive" AS "is_negative",
            "is estimated" AS "is_estimated", "the copies" AS "copies"{numbers}
        FROM "ruled"
    """


def _numbers_sql(prepare: Prepare, source: Source) -> dict[str, str]:
    """The numbers that this log and recipe give every row, and how."""
    rules = {"weight": prepare.weight, "target": prepare.target}
    rules |= {f"{OUTCOME}{name}": rule for name, rule in prepare.outcomes.items()}
    numbers = {name: rule_sql(rule, result="number") for name, rule in rules.items() if rule is not None}
    return numbers | {f"{name}_s": f'"{name}_s"' for name in _watched(prepare, source)}


# --- files ------------------------------------------------------------------------------------------------------------


def _shard(selection: Selection, of_shard: str, number: int, columns: frozenset[str]) -> Shard:
    where = f'"is_kept" AND {selection.of_users} AND {of_shard}'
    name = "events of the shard"
    outputs = [Output(f"events/shard={number}.parquet", history_sql(f'"{name}"'))]
    for place, split in enumerate(SPLITS):
        kept = f'"split" = {place}' + (f" AND {selection.of_train}" if split == "train" else "")
        outputs.append(Output(f"rows/split={split}/shard={number}.parquet", rows_sql(f'"{name}"', kept, columns)))
    return Shard(Step(name, events_sql(where)), tuple(outputs))


def events_sql(where: str) -> str:
    """Kept events in the order of the files, with the positives and negatives that their user had strictly before.

    RANGE up to 1 before, on integer milliseconds: events of one timestamp do not see one another. ROWS would let them.
    """
    return f"""
        SELECT *, CAST(COUNT(CASE WHEN "is_positive" THEN 1 END) OVER "past" AS INTEGER) AS "positives_before",
            CAST(COUNT(CASE WHEN "is_negative" THEN 1 END) OVER "past" AS INTEGER) AS "negatives_before"
        FROM "labelled" WHERE {where}
        WINDOW "past" AS (
            PARTITION BY "user_id" ORDER BY "at" RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        )
    """


def rows_sql(table: str, where: str, columns: frozenset[str]) -> str:
    """`tables.ROWS`, in its order; equal keys are ordered by all else, so that a file is the same every time."""
    given = {
        "weight": 'COALESCE("weight", 0)' if "weight" in columns else "1",
        "target": '"target"' if "target" in columns else 'CASE WHEN "is_positive" THEN 1 ELSE 0 END',
        **{name: f'"{name}"' if name in columns else "NULL" for name in ("watch_s", "length_s")},
    }
    numbers = ", ".join(f'CAST({sql} AS FLOAT) AS "{name}"' for name, sql in given.items())
    outcomes = "".join(f', "{name}"' for name in sorted(columns) if name.startswith(OUTCOME))
    return f"""
        SELECT "user_id", "item_id", "at", "is_positive" AS "label", "is_estimated" AS "at_is_estimated", {numbers},
            "positives_before", "negatives_before"{outcomes}
        FROM {table} WHERE {where}
        ORDER BY "user_id", "at", "item_id", "label", "at_is_estimated", "weight", "target", "watch_s",
            "length_s"{outcomes}
    """


def history_sql(table: str) -> str:
    """`tables.HISTORY`: the events of all days, those outside the windows too."""
    return f"""
        SELECT "user_id", "item_id", "at", "is_positive", "is_negative" FROM {table}
        ORDER BY "user_id", "at", "item_id", "is_positive", "is_negative"
    """


def entities_sql(key: str, table: str, columns: Iterable[str]) -> str:
    """Users or items by rising id: those of their own table, and those of events alone, with NULL attributes."""
    attributes = "".join(f', "own".{quoted(column)}' for column in columns if column != key)
    return f"""
        SELECT "known"."{key}"{attributes}
        FROM (SELECT "{key}" FROM "{table}" UNION SELECT "{key}" FROM "labelled" WHERE "is_kept") AS "known"
        LEFT JOIN "{table}" AS "own" ON "known"."{key}" = "own"."{key}"
        ORDER BY "known"."{key}"
    """


def repeats_sql(key: str, table: str) -> str:
    """The first three ids that a table of items or users holds twice or as NULL, with their number of rows."""
    return f"""
        SELECT "{key}", COUNT(*) FROM "{table}"
        GROUP BY "{key}" HAVING COUNT(*) > 1 OR "{key}" IS NULL ORDER BY "{key}" LIMIT 3
    """


def counters_sql(key: str, counters: Counters) -> str:
    """Events of every completed or running hour by key, and what the recipe counts of them; hours without any are left
    out. `hour` counts from 1970.
    """
    return f"""
        SELECT {quoted(key)} AS "key", CAST(("at" - "at" % {HOUR_MS}) / {HOUR_MS} AS BIGINT) AS "hour",
            {_sums_sql(counters)}
        FROM "ruled" WHERE "is kept" AND NOT "is estimated" AND {quoted(key)} IS NOT NULL
        GROUP BY 1, 2 ORDER BY 1, 2
    """


def priors_sql(key: str, counters: Counters) -> str:
    """One row: the same sums over the training window."""
    return f"""
        SELECT {_sums_sql(counters)} FROM "ruled"
        WHERE "the split" = 0 AND NOT "is estimated" AND {quoted(key)} IS NOT NULL
    """


def counted_columns(counters: Counters) -> list[str]:
    """Names of what `counters_sql` sums, in its order."""
    return ["events", *(f"rate_{name}" for name in counters.rates), *(f"mean_{name}" for name in counters.means)]


def _sums_sql(counters: Counters) -> str:
    each = ["1"]
    each += [f"CASE WHEN {rule_sql(rule, result='condition')} THEN 1 ELSE 0 END" for rule in counters.rates.values()]
    each += [
        "COALESCE(" + thousandths_sql("(" + rule_sql(rule, result="number") + ")") + ", 0)"
        for rule in counters.means.values()
    ]
    named = zip(each, counted_columns(counters), strict=True)
    return ", ".join(f'CAST(COALESCE(SUM({value}), 0) AS BIGINT) AS "{name}"' for value, name in named)


def oddities_sql(source: Source) -> dict[str, str]:
    """What is odd about lengths, in words → the SELECT that counts such rows. Rules decide what becomes of them."""
    odd = {}
    if "length_s" in source.event_columns:
        odd["length of 0 or less"] = '"length_s" <= 0'
    if {"length_s", "watch_s"} <= set(source.event_columns):
        odd["watched longer than long"] = '"watch_s" > "length_s"'
    return {name: f'SELECT COUNT(*) FROM "source_events" WHERE {where}' for name, where in odd.items()}
