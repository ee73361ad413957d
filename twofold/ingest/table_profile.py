"""Profiles of the tables of a log: statistics of columns, events and days, and a description of a column's values."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Final, Literal

from twofold.errors import RecipeError
from twofold.sql.rules import rule_columns
from twofold.tables import END_S, FIRST_S

Kind = Literal["integer", "fraction", "text", "boolean", "timestamp", "day", "list", "other"]
Unit = Literal["s", "ms", "us", "ns"]


@dataclass(frozen=True)
class Column:
    """A column's statistics, from one scan of the table."""

    name: str
    type: str
    """SQL type as DuckDB writes it."""
    kind: Kind
    nulls: float
    """Share of rows that are NULL."""
    distinct: int
    """Approximate number of distinct values, without NULL."""
    low: float | None = None
    """Smallest value of a number, or of a boolean as 0 and 1."""
    high: float | None = None
    is_whole: bool = False
    """A number that never has a fraction."""
    dates: float = 0.0
    """Share of the texts that can be read as a timestamp."""
    commas: float = 0.0
    """Share of the texts that are numbers with a decimal comma."""
    wholes: float = 0.0
    """Share of the texts that are whole numbers."""
    separated: tuple[tuple[str, float], ...] = ()
    """Possible separators of a text's values, each with the share of the texts that contain it."""
    separator: str | None = None
    """Separator of the values of a text such as pop|rock; `None` means a single value."""
    length: int | None = None
    """Number of values of every list, if all are equal."""
    median: float | None = None
    """Approximate median of a number."""
    high_99: float | None = None
    """Number that is approximately the 99th percentile."""
    range: tuple[str, ...] = ()
    """Smallest and largest value, as text."""
    most_frequent: tuple[str, ...] = ()
    """Most frequent texts, cut at 60 characters."""

    @property
    def is_dated(self) -> bool:
        """Flag: the values are timestamps or days, or texts that can be read as such."""
        return self.kind in ("timestamp", "day") or self.dates >= 0.99


@dataclass(frozen=True)
class TableProfile:
    """A table: its path, and the statistics of its columns."""

    path: Path
    rows: int
    columns: tuple[Column, ...]
    has_decimal_comma: bool = False
    """Whether numbers of this CSV file are written as 13,27."""
    is_of_log: bool = False
    """Whether these are the items or users as the log describes them: the path is that of the log."""

    @property
    def names(self) -> frozenset[str]:
        """Names of the columns."""
        return frozenset(column.name for column in self.columns)


EPOCH: Final = date(1970, 1, 1)


@dataclass(frozen=True)
class Day:
    """Number of events on one local day."""

    number: int
    """Days since 1970."""
    events: int
    positives: int
    users: int | None = None
    """Number of users with a relevant event; `None` means that they were not counted."""

    @property
    def date(self) -> date:
        return EPOCH + timedelta(days=self.number)


@dataclass(frozen=True)
class EventFacts:
    """Statistics of the events that have a user, an item and a time."""

    rows: int
    positives: int
    users: int
    items: int
    lone_items: int
    """Items with one event."""
    median_events: int
    """Median number of events per user."""
    busiest_events: int
    """Number of events that 99.9 % of the users do not exceed."""
    compared: int
    """Number of rows among which duplicates and repeats were counted: all, or those of a sample of users."""
    duplicates: int
    """Number of rows that equal another row."""
    repeats: int
    """Number of different rows with the user and item of an earlier row."""
    days: tuple[Day, ...]
    """Days with events, in order; empty if the log has no clock."""
    hours: int
    """Number of the 24 hours of a day that occur."""
    users_from: tuple[int, ...] = ()
    """Number of users with a relevant event from each of `days` on; empty means that they were not counted."""
    met_before: float = 0.0
    """Share of the relevant events on an item that the user had seen on an earlier day."""
    quiet_hour: int | None = None
    """First hour of the six, in UTC, with the fewest events; `None` if the log has no clock."""


# --- names ------------------------------------------------------------------------------------------------------------


def printable(text: str) -> str:
    """Returns a name or value of a table, safe in a terminal and a comment: invisible characters become ·."""
    return "".join(character if character.isprintable() else "·" for character in text)


def rule_name(name: str) -> str | None:
    """Returns a column's name as a rule writes it; `None` means that no rule can."""
    quoted = '"' + name.replace('"', '""') + '"'
    for written in (name, quoted):
        try:
            if rule_columns(written) == {name}:
                return written
        except RecipeError:
            continue
    return None


# --- values -----------------------------------------------------------------------------------------------------------

_PER_S: Final[Mapping[Unit, int]] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def timestamp_unit(column: Column) -> Unit | None:
    """Returns the unit in which all numbers of a column are times between 1995 and 2100, if there is one."""
    if column.low is None or column.high is None:
        return None
    inside = (u for u, per_s in _PER_S.items() if FIRST_S * per_s <= column.low and column.high < END_S * per_s)
    return next(inside, None)


def is_flag(column: Column) -> bool:
    """Returns whether the values are true and false, or 0 and 1, and both occur."""
    return column.is_whole and (column.low, column.high) == (0, 1)


def look_of(column: Column) -> str:
    """Describes the values, without the name, in two or three words."""
    if column.distinct == 0:
        return "empty"
    if column.kind in ("timestamp", "day", "list"):
        return {"timestamp": "timestamp", "day": "day", "list": "list"}[column.kind]
    if is_flag(column):
        return "flag"
    if column.distinct == 1:
        return "constant"
    if column.kind == "text":
        return _look_of_text(column)
    if unit := timestamp_unit(column):
        return f"timestamp ({unit})"
    if column.low is None or column.high is None:
        return "other"
    if column.is_whole and column.low >= 19_000_101 and column.high <= 21_001_231:
        return "day (yyyymmdd)"
    if not column.is_whole and column.low >= 0 and column.high <= 1:
        return "share 0..1"
    if not column.is_whole and column.low >= 0.5 and column.high <= 5 and column.distinct <= 10:
        return "rating"
    return ("id" if words(column.name)[-1:] == ["id"] else "whole number") if column.is_whole else "number"


def _look_of_text(column: Column) -> str:
    if column.is_dated:
        return "timestamp as text"
    if column.separator is not None:
        return "list as text"
    return "category" if column.distinct <= 1000 else "text"


def shown_values(column: Column) -> str:
    """Returns the range of a column, or its most frequent values, short enough for a table."""
    joint, values = (" … ", column.range) if column.range else (", ", column.most_frequent[:3])
    return printable(joint.join(value if len(value) <= 24 else value[:23] + "…" for value in values)) or "—"


def words(name: str) -> list[str]:
    """Splits a column's name into words: `userId`, `user-id` and RecBole's `user_id:token` give user and id."""
    bare = re.sub(r":(token|float)(_seq)?$", "", name)
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", bare)
    return re.findall(r"[^\W_]+", spaced.casefold())
