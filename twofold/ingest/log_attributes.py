"""Attributes of items and users that stand in the log itself: columns with one value per item, or per user.

A column that tells the outcome of an event, such as watch time or a rating, differs between the events of an item.
Only columns that never do are attributes.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from twofold.ingest.inspect_table import Query, engine, read_once
from twofold.ingest.table_profile import Column, TableProfile
from twofold.prepare.duckdb_connection import quote_name
from twofold.prepare.sources import SourceTable

_KINDS: Final = ("integer", "fraction", "text", "boolean", "timestamp", "day")
_MOST_COLUMNS: Final = 40
_FEWEST: Final = 10
"""Items, or users, with several values of a column, below which nothing is known of it."""
_NEARLY: Final = 0.2
"""Share of the items that may have several values of a column that is named as nearly an attribute."""


@dataclass(frozen=True)
class LogAttributes:
    """Tables of items and users that a log contains, and columns that are nearly attributes of an item."""

    items: TableProfile | None
    users: TableProfile | None
    varying: tuple[str, ...]


def log_attributes(
    log: TableProfile, events: SourceTable, keys: tuple[str, str], taken: Collection[str]
) -> LogAttributes:
    """Returns the attributes in a log, whose user and item columns are `keys`; columns in `taken` have other roles."""
    columns = [c for c in log.columns if c.kind in _KINDS and c.distinct > 1 and c.name not in (*keys, *taken)]
    user, item = ({column.name: column for column in log.columns}[key] for key in keys)
    with engine(events.files) as query:
        events = read_once(query, events)
        items, varying = _attributes(query, log, events, item, columns[:_MOST_COLUMNS])
        described = {column.name for column in items.columns} if items else set()
        users, _ = _attributes(query, log, events, user, [c for c in columns if c.name not in described])
    return LogAttributes(items, users, varying)


def _attributes(
    query: Query, log: TableProfile, events: SourceTable, key: Column, columns: Sequence[Column]
) -> tuple[TableProfile | None, tuple[str, ...]]:
    """Returns the table of the keys with their attributes, if there are any, and the columns that nearly are some."""
    if not columns:
        return None, ()
    grouped = ", ".join(
        f'MIN({name}) AS "low_{number}", MAX({name}) AS "high_{number}", COUNT({name}) AS "count_{number}"'
        for number, name in enumerate(quote_name(column.name) for column in columns)
    )
    facts = ", ".join(
        f'COUNT(CASE WHEN "low_{n}" <> "high_{n}" THEN 1 END), COUNT(CASE WHEN "count_{n}" > 1 THEN 1 END), '
        f'COUNT("high_{n}"), APPROX_COUNT_DISTINCT("high_{n}")'
        for n in range(len(columns))
    )
    own = quote_name(key.name)
    rows = f"SELECT {grouped} FROM {events.files_sql} WHERE {own} IS NOT NULL GROUP BY {own}"
    count, *found = query(f"SELECT COUNT(*), {facts} FROM ({rows})")[0]
    constant, varying = [], []
    for number, column in enumerate(columns):
        several, repeated, filled, distinct = found[4 * number : 4 * number + 4]
        if repeated >= _FEWEST and several == 0:
            constant.append(replace(column, nulls=1 - filled / count, distinct=min(distinct, filled)))
        elif repeated >= _FEWEST and several <= _NEARLY * repeated and column.kind != "boolean" and distinct > 2:
            varying.append(column.name)
    if not constant:
        return None, tuple(varying)
    table = TableProfile(log.path, count, (replace(key, distinct=count, nulls=0.0), *constant), is_of_log=True)
    return table, tuple(varying)
