"""Inspection of a log: its tables, the roles of their columns, and counts of the events, in scans of bounded memory.

`draft_recipe.py` turns the profile into a recipe. Column names reach DuckDB only as quoted names, never as SQL.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil, log10
from pathlib import Path
from statistics import median
from typing import Final

from twofold.errors import DataError
from twofold.ingest.column_roles import GivenColumns, Roles, guess_roles
from twofold.ingest.draft_data import data_section, our_name
from twofold.ingest.draft_split import check_test_days, choose_split, count_judged
from twofold.ingest.inspect_table import Query, check_padded_ids, engine, look_at_table, read_once
from twofold.ingest.log_attributes import LogAttributes, log_attributes
from twofold.ingest.positive_rules import with_threshold
from twofold.ingest.table_profile import Column, Day, EventFacts, TableProfile, look_of, printable
from twofold.ingest.time_zones import guess_time_zone
from twofold.local_time import local_ms_sql
from twofold.prepare.check import check_recipe
from twofold.prepare.duckdb_connection import quote_name
from twofold.prepare.last_days import check_times
from twofold.prepare.sources import Source, open_source
from twofold.recipe.data import Table
from twofold.recipe.load import load_recipe
from twofold.recipe.split import TemporalSplit
from twofold.render.numbers import plural
from twofold.sql.rules import check_columns, rule_columns, rule_sql
from twofold.tables import DAY_MS, HOUR_MS

# Duplicates and repeats are counted on at most this many rows: those of a share of the users, chosen by hash.
_MAX_COMPARED: Final = 20_000_000
_ENOUGH_USERS: Final = 300
"""Users with a relevant event in the test window below which weaker kinds of event are asked for as well."""


@dataclass(frozen=True)
class Answers:
    """Answers of the user to the questions that a log leaves open; `None` means that the answer is guessed."""

    positive: str | None = None
    relevant: str | None = None
    repeats: bool | None = None
    test_days: int | None = None
    time_zone: str | None = None


@dataclass(frozen=True)
class LogProfile:
    """The profile of a log: its tables, the roles of their columns, counts of the events, and the user's answers."""

    log: TableProfile
    items: TableProfile | None
    users: TableProfile | None
    roles: Roles
    data: Table
    events: EventFacts
    time_zone: str = "UTC"
    """IANA time zone of the days in `events`."""
    zone_reason: str = ""
    """Reason for the time zone; empty means that nothing speaks for it."""
    answers: Answers = field(default_factory=Answers)
    varying: tuple[str, ...] = ()
    """Columns of the log that have one value for most items, and several for some."""

    @property
    def tables(self) -> tuple[TableProfile, ...]:
        """Tables that are files of their own."""
        found = (table for table in (self.log, self.items, self.users) if table is not None)
        return tuple(table for table in found if not table.is_of_log)


def taken_as(seen: LogProfile, table: TableProfile, column: Column) -> str:
    """Returns the role of a column, or a description of its values."""
    if table is seen.log:
        sides = (("item attribute", seen.items), ("user attribute", seen.users))
        own = (role for role, side in sides if side is not None and side.is_of_log and column.name in side.names)
        return seen.roles.taken_as.get(column.name) or next(own, look_of(column))
    ours = {"item_id": "item", "user_id": "user", "uploaded_at": "upload time"}
    if (role := ours.get(our_name(seen.data, column.name))) is not None:
        return role
    role = seen.roles.taken_as.get(column.name, "")
    return role if table is seen.items and role.startswith("length") else look_of(column)


def profile_log(
    log: Path,
    *,
    items: Path | None = None,
    users: Path | None = None,
    given_columns: GivenColumns = GivenColumns(),  # noqa: B008
    answers: Answers = Answers(),  # noqa: B008
    seen: LogProfile | None = None,
) -> LogProfile:
    """Returns the profile of a log: the columns of every table, their roles, and statistics of the events.

    `given_columns` and `answers` are not guessed. `seen` is an earlier profile of the same files, whose columns are not
    read again. DataError if a file is missing, damaged or empty, if user, item or time cannot be found, or if there is
    only one user or one item.
    """
    tables = {"--log": log} | {name: path for name, path in (("--items", items), ("--users", users)) if path}
    known = {} if seen is None else {"--log": seen.log, "--items": seen.items, "--users": seen.users}
    looked = {name: known.get(name) or look_at_table(path, field=name) for name, path in tables.items()}
    sides = looked.get("--items"), looked.get("--users")
    roles = guess_roles(looked["--log"], given_columns, items=sides[0], users=sides[1])
    own = _own_attributes(looked["--log"], sides, roles)
    sides = sides[0] or own.items, sides[1] or own.users
    data = data_section(looked["--log"], *sides, roles)
    source = open_source(data)
    zone, zone_reason = answers.time_zone or "UTC", "as given" if answers.time_zone else ""
    if answers.time_zone is None and roles.has_clock:
        zone, zone_reason = guess_time_zone(source.events, data.columns.get("at", "at"))
    with engine(source.files) as query:
        check_padded_ids(query, source.events, (roles.user, roles.item))
        source = replace(source, events=read_once(query, source.events), items=read_once(query, source.items))
        roles, events = _count(query, source, _as_answered(query, source, roles, answers), answers, zone)
    return LogProfile(looked["--log"], *sides, roles, data, events, zone, zone_reason, answers, own.varying)


def _own_attributes(
    log: TableProfile, sides: tuple[TableProfile | None, TableProfile | None], roles: Roles
) -> LogAttributes:
    """Returns the attributes of items and users that the log contains, for those without a table."""
    if all(sides):
        return LogAttributes(None, None, ())
    taken = {name for name, role in roles.taken_as.items() if not role.startswith("length")}
    events = open_source(data_section(log, None, None, roles)).events
    found = log_attributes(log, events, (roles.user, roles.item), taken)
    return found if sides[0] is None else replace(found, items=None, varying=())


def check_draft(text: str, folder: Path) -> None:
    """Checks that a recipe's text loads from a file in `folder` and fits its data."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=folder, prefix=".draft-", suffix=".yaml") as draft:
        draft.write(text)
        draft.flush()
        check_recipe(load_recipe(Path(draft.name)))


def log_facts(seen: LogProfile) -> list[tuple[str, str]]:
    """Returns what the log holds, each count as a heading and a sentence."""
    events, about = seen.events, "" if seen.events.compared >= seen.events.rows else "about "
    scale = events.rows / events.compared
    duplicates, repeats = round(events.duplicates * scale), round(events.repeats * scale)
    keyless = seen.log.rows - events.rows
    facts = [
        ("rows", f"{seen.log.rows:,}" + (f"; {keyless:,} lack user, item or time and are dropped" if keyless else "")),
        ("duplicates", f"{about}{duplicates:,} rows equal another row; they are dropped"),
        ("repeats", f"{about}{repeats:,} rows repeat the user and item of an earlier row"),
        (
            "users",
            f"{events.users:,}; half have {plural(events.median_events, 'event')} or fewer, 99.9 % at most "
            f"{events.busiest_events:,}",
        ),
        ("items", f"{events.items:,}; {events.lone_items:,} have one event"),
    ]
    if events.days:
        first, last = events.days[0], events.days[-1]
        daily = round(median(day.events for day in events.days))
        days = f"{first.date} to {last.date} ({seen.time_zone}), {plural(last.number - first.number + 1, 'day')}"
        facts.append(("days", f"{days}; {daily:,} rows on a median day"))
    share = events.positives / events.rows
    return [*facts, ("positive", f"{share:.1%} of the rows: {printable(seen.roles.signals.positive)}")]


# --- rules ------------------------------------------------------------------------------------------------------------


def _as_answered(query: Query, source: Source, roles: Roles, answers: Answers) -> Roles:
    """Returns the roles with the user's rules, or with the threshold that fits the distribution of the ratings.

    RecipeError if a rule reads a column that the log has not.
    """
    signals = roles.signals
    for option, rule in (("--positive", answers.positive), ("--relevant", answers.relevant)):
        if rule is not None:
            check_columns(rule, source.events.columns, field=option)
    if signals.rating is not None and answers.positive is None:
        column = rule_sql(signals.rating, result="number")
        log = f'({source.events.select_sql()}) AS "log"'
        # Of ratings such as 80.07, down to a thousandth of the highest: all are counted, however many values there are.
        step = 10.0 ** (ceil(log10(query(f"SELECT MAX({column}) FROM {log}")[0][0] or 1)) - 3)
        rating = f"ROUND(FLOOR({column} / {step} + 1e-9) * {step}, 9)"
        counts = query(f"SELECT {rating}, COUNT(*) FROM {log} GROUP BY 1")
        signals = with_threshold(signals, [(value, count) for value, count in counts if value is not None])
    if answers.positive is not None:
        signals = replace(signals, positive=answers.positive, reason="as given", kinds=None, rating=None)
    if answers.relevant is not None:
        signals = replace(signals, relevant=answers.relevant)
    return replace(roles, signals=signals)


def _count(query: Query, source: Source, roles: Roles, answers: Answers, zone: str) -> tuple[Roles, EventFacts]:
    """Counts the events. The strongest kinds of event that enough users of the test window have become relevant."""
    kinds = roles.signals.kinds
    choices = [answers.relevant] if answers.relevant or kinds is None else [*kinds.relevant_choices, None]
    for relevant in choices:
        roles = replace(roles, signals=replace(roles.signals, relevant=relevant))
        events = _look_at_events(query, source, roles, zone)
        is_by_days = isinstance(choose_split(events, answers.test_days)[0], TemporalSplit)
        wanted = min(_ENOUGH_USERS, events.users // 4)
        if relevant is None or (is_by_days and (count_judged(events, answers.test_days) or 0) >= wanted):
            break
    _check_answered(events, answers)
    if events.positives == 0:
        reason = f"every event, because {roles.signals.positive} is true for none"
        signals = replace(roles.signals, positive="TRUE", reason=reason, kinds=None, relevant=None, rating=None)
        roles = replace(roles, signals=signals)
        events = _look_at_events(query, source, roles, zone)
    return roles, events


def _check_answered(events: EventFacts, answers: Answers) -> None:
    """Raises DataError if a rule of the user is true for no event; RequestError if the log has too few test days."""
    if answers.test_days is not None:
        check_test_days(events, answers.test_days)
    for option, rule, has_events in (
        ("--positive", answers.positive, events.positives > 0),
        ("--relevant", answers.relevant, max(events.users_from, default=1) > 0),
    ):
        if rule is not None and not has_events:
            raise DataError(
                f"{option}: {rule} is true for none of the {events.rows:,} events. Compare its values with those that "
                f"`twofold recipe new` prints for the column without this option."
            )


# --- counts -----------------------------------------------------------------------------------------------------------


def _look_at_events(query: Query, source: Source, roles: Roles, time_zone: str) -> EventFacts:
    """Counts users, items, days and repeats of the events; DataError if there is only one user or item."""
    events = _events_sql(source, roles)
    rows, positives = query(f'SELECT COUNT(*), COALESCE(SUM("is_positive"), 0) FROM {events}')[0]
    by_hour = dict(query(f'SELECT "at" // {HOUR_MS} % 24, COUNT(*) FROM {events} GROUP BY 1'))
    users, median, busiest = query(_groups_sql(events, "user_id", "QUANTILE_DISC(n, 0.5), QUANTILE_DISC(n, 0.999)"))[0]
    items, lone_items = query(_groups_sql(events, "item_id", "COUNT(CASE WHEN n = 1 THEN 1 END)"))[0]
    _check_learnable(source, roles, rows=rows, users=users, items=items)
    share = min(1.0, _MAX_COMPARED / rows)
    compared, different, pairs = query(_compared_sql(source, share))[0]
    relevant, again = query(_met_before_sql(events, share, has_clock=roles.has_clock))[0]
    days, users_from = _days(query, source, roles, time_zone) if roles.has_clock else ((), ())
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
        hours=len(by_hour),
        users_from=users_from,
        met_before=again / relevant if relevant else 0.0,
        quiet_hour=_quiet_hour(by_hour) if roles.has_clock else None,
    )


def _quiet_hour(by_hour: Mapping[int, int]) -> int | None:
    """Returns the first of the six hours with the fewest events; `None` if they have more than an even share."""
    sums = {first: sum(by_hour.get((first + each) % 24, 0) for each in range(6)) for first in range(24)}
    quietest = min(sums, key=lambda first: sums[first])
    return quietest if sums[quietest] * 8 < sum(by_hour.values()) else None


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


# --- SQL --------------------------------------------------------------------------------------------------------------


def _events_sql(source: Source, roles: Roles) -> str:
    """Returns the events with user, item and time under our names, and whether they are positive and relevant."""
    signals = roles.signals
    relevant = signals.positive if signals.relevant is None else signals.relevant
    read = {name for rule in (*signals.derive.values(), signals.positive, relevant) for name in rule_columns(rule)}
    extra = [name for name in source.items.columns if name in read and name not in source.events.columns]
    sql = f'({source.events.select_sql()}) AS "log"'
    if extra:
        listed = ", ".join(f'"side".{quote_name(name)}' for name in extra)
        joined = f'LEFT JOIN ({source.items.select_sql()}) AS "side" ON "side"."item_id" = "log"."item_id"'
        sql = f'(SELECT "log".*, {listed} FROM {sql} {joined}) AS "with items"'
    for name, rule in signals.derive.items():
        sql = f'(SELECT *, {rule_sql(rule, result="number")} AS {quote_name(name)} FROM {sql}) AS "derived"'
    flags = ", ".join(
        f'CAST(COALESCE({rule_sql(rule, result="condition")}, FALSE) AS INTEGER) AS "{name}"'
        for name, rule in (("is_positive", signals.positive), ("is_relevant", relevant))
    )
    return f"""(
        SELECT "user_id", "item_id", "at", {flags} FROM {sql}
        WHERE "user_id" IS NOT NULL AND "item_id" IS NOT NULL AND "at" IS NOT NULL
    ) AS "events" """


def _days(query: Query, source: Source, roles: Roles, time_zone: str) -> tuple[tuple[Day, ...], tuple[int, ...]]:
    """Returns the days, and for each of them the number of users with a relevant event from it on."""
    events = _events_sql(source, roles)
    first_ms, last_ms = query(f'SELECT MIN("at"), MAX("at") FROM {events}')[0]
    check_times(first_ms, last_ms, log=source.events.files[0], column=printable(roles.time))
    local = local_ms_sql('"at"', time_zone, first_ms=first_ms, last_ms=last_ms) + f" // {DAY_MS}"
    users = 'COUNT(DISTINCT CASE WHEN "is_relevant" = 1 THEN "user_id" END)'
    by_day = query(f'SELECT {local}, COUNT(*), SUM("is_positive"), {users} FROM {events} GROUP BY 1 ORDER BY 1')
    days = tuple(Day(*day) for day in by_day)
    last = f'SELECT MAX({local}) AS "last" FROM {events} WHERE "is_relevant" = 1 GROUP BY "user_id"'
    ends = dict(query(f'SELECT "last", COUNT(*) FROM ({last}) GROUP BY 1'))
    return days, tuple(sum(count for end, count in ends.items() if end >= day.number) for day in days)


def _groups_sql(events: str, key: str, facts: str) -> str:
    return f"SELECT COUNT(*), {facts} FROM (SELECT COUNT(*) AS n FROM {events} GROUP BY {quote_name(key)})"


def _compared_sql(source: Source, share: float) -> str:
    """Counts rows, distinct rows and distinct user-item pairs of a share of the users, by 64-bit hash."""
    whole = ", ".join(quote_name(name) for name in source.events.columns)
    return f"""
        SELECT COUNT(*), COUNT(DISTINCT HASH({whole})), COUNT(DISTINCT HASH("user_id", "item_id"))
        FROM ({source.events.select_sql()}) AS "log" WHERE "user_id" IS NOT NULL AND {_of_share(share)}
    """


def _met_before_sql(events: str, share: float, *, has_clock: bool) -> str:
    """Counts the relevant events of a share of the users, and those on items seen on an earlier day, or earlier."""
    when = f'"at" // {DAY_MS}' if has_clock else '"at"'
    first = f'MIN({when}) OVER (PARTITION BY "user_id", "item_id")'
    return f"""
        SELECT COUNT(*), COUNT(CASE WHEN "first" < "when" THEN 1 END) FROM (
            SELECT "is_relevant", {when} AS "when", {first} AS "first" FROM {events} WHERE {_of_share(share)}
        ) AS "meetings" WHERE "is_relevant" = 1
    """


def _of_share(share: float) -> str:
    return f'HASH("user_id") % 1000000 < {round(share * 1_000_000)}'
