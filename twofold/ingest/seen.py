"""The profile of a log, and the data section and split that follow from it.

`inspect_log.py` reads the log; `draft_recipe.py` writes the recipe.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from statistics import median
from typing import Final

from twofold.errors import DataError
from twofold.ingest.column_roles import (
    Column,
    Roles,
    TableProfile,
    guess_key,
    look_of,
    printable,
    timestamp_unit,
)
from twofold.ingest.spellings import UPLOADED, normalized_name
from twofold.recipe.data import Table
from twofold.recipe.prepare import LastEvents, TemporalSplit, Window
from twofold.render.numbers import plural

EPOCH: Final = date(1970, 1, 1)


@dataclass(frozen=True)
class Day:
    """Number of events on one UTC day."""

    number: int
    """Days since 1970."""
    events: int
    positives: int

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


@dataclass(frozen=True)
class LogProfile:
    """All that a recipe is drafted from."""

    log: TableProfile
    items: TableProfile | None
    users: TableProfile | None
    roles: Roles
    data: Table
    events: EventFacts

    @property
    def tables(self) -> tuple[TableProfile, ...]:
        return tuple(table for table in (self.log, self.items, self.users) if table is not None)


def taken_as(seen: LogProfile, table: TableProfile, column: Column) -> str:
    """Returns the role of a column, or a description of its values."""
    if table is seen.log:
        return seen.roles.taken_as.get(column.name) or look_of(column)
    ours = {"item_id": "item", "user_id": "user", "uploaded_at": "upload time"}
    return ours.get(our_name(seen.data, column.name)) or look_of(column)


# --- the data part ----------------------------------------------------------------------------------------------------


def data_part(log: TableProfile, items: TableProfile | None, users: TableProfile | None, roles: Roles) -> Table:
    """Returns the tables and their column names. DataError if items or users share no key with the log."""
    own = {"user_id": roles.user, "item_id": roles.item, "at": roles.time}
    columns = {ours: theirs for ours, theirs in own.items() if ours != theirs}
    if items is not None and not {roles.item, "item_id"} & names_of(items):
        columns["item_id"] = _shared_key(log, items, roles.item, guess_key(items, "item"), "item_id")
    if users is not None and not {roles.user, "user_id"} & names_of(users):
        columns["user_id"] = _shared_key(log, users, roles.user, guess_key(users, "user"), "user_id")
    uploaded = _uploaded(items, roles.at_unit or "ms")
    if uploaded is not None and uploaded != "uploaded_at":
        columns["uploaded_at"] = uploaded
    derived = set(roles.derive)
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
        at_unit=roles.at_unit or "ms",
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
    """Renames columns whose own name is reserved or used by another column. To engines, `At` equals `at`."""
    freed = {}
    for name in names_of(table):
        ours = name.lower()
        is_taken = ours in taken and columns.get(ours, name) != name and columns[ours] in names_of(table)
        if is_taken or ours in barred:
            freed[f"{ours}_of_log"] = name
    return freed


def _uploaded(items: TableProfile | None, unit: str) -> str | None:
    """Returns the upload time column of the items file, if a recipe can read it."""
    able = [c for c in items.columns if c.kind == "timestamp" or timestamp_unit(c) == unit] if items else []
    named = [column.name for column in able if normalized_name(column.name) in UPLOADED]
    return "uploaded_at" if "uploaded_at" in named else named[0] if named else None


def names_of(table: TableProfile | None) -> set[str]:
    return {column.name for column in table.columns} if table else set()


def our_name(data: Table, name: str) -> str:
    return next((ours for ours, theirs in data.columns.items() if theirs == name), name)


# --- windows ----------------------------------------------------------------------------------------------------------


def choose_split(events: EventFacts) -> tuple[TemporalSplit | LastEvents, str]:
    """Returns the split and its reason: the last whole day tests, the one before validates; weeks if days are small."""
    last, days = LastEvents(kind="last_n", test=1, validation=1), events.days
    if not days:
        return last, "the order of events is known, their days are not"
    first, end = days[0].number, days[-1].number + 1
    if end - first < 3:
        return last, f"the log covers {plural(end - first, 'day')}: too few to train, validate and test on days apart"
    for width, called in ((1, "day"), (7, "week"), (28, "4 weeks"), (91, "quarter"), (364, "year")):
        whole = end - 1 if width == 1 and _is_cut_short(days) else end
        bounds = (first, whole - 2 * width, whole - width, whole)
        if bounds[0] < bounds[1] and _is_enough(events, bounds):
            train, validation, test = (
                Window(first=EPOCH + timedelta(days=a), end=EPOCH + timedelta(days=b))
                for a, b in zip(bounds, bounds[1:], strict=False)
            )
            reason = f"test: last {called}; validation: the {called} before; train: everything earlier"
            if whole < end:
                reason += f"; {days[-1].date} is left out: it is incomplete"
            return TemporalSplit(kind="temporal", train=train, validation=validation, test=test), reason
    return last, "no cut in time leaves 1 % of the events to validate, 1 % to test and half of them to train"


def _is_cut_short(days: Sequence[Day]) -> bool:
    return days[-1].events * 2 < median(day.events for day in days[-8:-1])


def _is_enough(events: EventFacts, bounds: tuple[int, ...]) -> bool:
    """Returns whether 1 % (at most 100,000 events) validate and test, half train, and each window has positives."""
    wanted = min(0.01 * events.rows, 100_000)
    windows = [events_within(events, first, end) for first, end in zip(bounds, bounds[1:], strict=False)]
    floors = (0.5 * events.rows, wanted, wanted)
    return all(
        sum(day.events for day in window) >= floor and any(day.positives for day in window)
        for window, floor in zip(windows, floors, strict=True)
    )


def events_within(events: EventFacts, first: int, end: int) -> list[Day]:
    return [day for day in events.days if first <= day.number < end]
