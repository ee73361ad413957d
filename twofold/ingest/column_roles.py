"""The role of each column of a log: user, item, time, and signals of interest, guessed from names and values.

A role needs both a usual name and fitting values: a column called `time` with the values 0, 1 and 2 is no time. Where
several columns fit equally well, the user is asked to choose. `inspect_log.py` reads the values.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from twofold.errors import DataError
from twofold.ingest.column_names import CREATOR, ITEM, TIME, USER, has_unit, key_name, normalized_name
from twofold.ingest.positive_rules import Signals, find_signals
from twofold.ingest.table_profile import (
    Column,
    TableProfile,
    Unit,
    is_flag,
    look_of,
    printable,
    shown_values,
    timestamp_unit,
)
from twofold.prepare.duckdb_connection import python_statement, quote_name, quote_text
from twofold.recipe.messages import did_you_mean

# --- roles ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Roles:
    """The columns with a role in the recipe, and the rules that follow from them."""

    user: str
    item: str
    time: str
    at_unit: Unit | None
    """Unit of a time given as whole numbers; `None` means timestamps."""
    has_clock: bool
    """`False` means that `time` gives only the order of events, no days and hours."""
    signals: Signals
    """Rules of the recipe that follow from the other columns."""
    taken_as: Mapping[str, str]
    """Column → its role, for columns that have one."""


@dataclass(frozen=True)
class GivenColumns:
    """The columns that the user names, and weights by kind of event; `None` means that the column is guessed."""

    user: str | None = None
    item: str | None = None
    time: str | None = None
    weights: Mapping[str, float] = field(default_factory=dict)


_UNIQUE: Final = 0.9  # of the rows have values of their own: distinct values are counted approximately


def guess_roles(
    log: TableProfile,
    given_columns: GivenColumns = GivenColumns(),  # noqa: B008 - frozen
    *,
    items: TableProfile | None = None,
    users: TableProfile | None = None,
) -> Roles:
    """Guesses the columns of user, item and time, and the signals that an event has; `items` may hold the lengths.

    Where names leave it open, the column of the items or users is the key that the log shares with their table.

    DataError if one of the three is missing, could be several columns, or has a type that no recipe reads.
    """
    user, item = _find_keys(log, given_columns, items, users)
    time = _find_column(log, "time", given_columns.time, TIME, _could_be_time, taken=(user.name, item.name))
    if len({user.name, item.name, time.name}) < 3:
        raise DataError(
            f"{log.path}: user, item and time are {user.name}, {item.name} and {time.name}; "
            f"name three different columns: --user COL --item COL --time COL"
        )
    for column, role in ((user, "user"), (item, "item")):
        if column.kind not in ("integer", "text"):
            raise _refused(log, column, role, "as whole numbers or as text", "BIGINT")
    unit = timestamp_unit(time) if time.kind == "integer" else None
    if time.kind != "integer" and not time.is_dated:
        wanted = "BIGINT" if time.kind == "fraction" else "TIMESTAMP"
        raise _refused(log, time, "time", "as timestamps or as whole numbers", wanted)
    has_clock = time.is_dated or unit is not None
    time_as = f"time ({unit})" if unit else "time" if has_clock else "time (order only)"
    others = [column for column in log.columns if column.name not in (user.name, item.name, time.name)]
    signals, taken_as = find_signals(others, items.columns if items else (), given_columns.weights)
    return Roles(
        user=user.name,
        item=item.name,
        time=time.name,
        at_unit=None if time.is_dated else unit or "ms",
        has_clock=has_clock,
        signals=signals,
        taken_as={user.name: "user", item.name: "item", time.name: time_as} | taken_as,
    )


def guess_key(table: TableProfile, role: Literal["user", "item"]) -> str | None:
    """Guesses the key column of an items or users file, independently of its name in the log."""
    tiers = (*(ITEM if role == "item" else USER), frozenset({"id"}))
    found = _likeliest([column for column in table.columns if _could_be_id(column)], tiers)
    return found[0].name if len(found) == 1 else None


def _likeliest(columns: Sequence[Column], tiers: Sequence[frozenset[str]]) -> list[Column]:
    """Returns the columns whose name is in the first set that has any; none if no set has one."""
    found = (
        [column for column in columns if tier & {normalized_name(column.name), key_name(column.name)}] for tier in tiers
    )
    return next((some for some in found if some), [])


def _find_keys(
    log: TableProfile, given_columns: GivenColumns, items: TableProfile | None, users: TableProfile | None
) -> tuple[Column, Column]:
    of_user = given_columns.user or _shared(log, users, USER)
    of_item = None if given_columns.item else _shared(log, items, ITEM)
    user = _find_column(log, "user", of_user, USER, _could_be_id, taken=(of_item,) if of_item else ())
    named = given_columns.item or of_item
    return user, _find_column(log, "item", named, (*ITEM, CREATOR), _could_be_id, taken=(user.name,))


def _shared(log: TableProfile, table: TableProfile | None, tiers: Sequence[frozenset[str]]) -> str | None:
    """Returns the log's column that is the unique key of a table, if names do not decide and there is only one."""
    able = {column.name for column in log.columns if _could_be_id(column)}
    if table is None or len(_likeliest([column for column in log.columns if column.name in able], tiers)) == 1:
        return None
    unique = [c.name for c in table.columns if c.name in able and c.distinct >= _UNIQUE * table.rows and c.nulls == 0]
    return unique[0] if len(unique) == 1 else None


def _find_column(
    log: TableProfile,
    role: str,
    named: str | None,
    tiers: Sequence[frozenset[str]],
    could_be: Callable[[Column], bool],
    *,
    taken: tuple[str, ...] = (),
) -> Column:
    columns = {column.name: column for column in log.columns}
    if named is not None:
        if named not in columns:
            raise DataError(
                f"--{role} {named}: {log.path} has no such column ({did_you_mean(named, columns)}its columns: "
                f"{', '.join(map(printable, columns))})"
            )
        return columns[named]
    free = [column for column in log.columns if column.name not in taken and not is_flag(column)]
    able = [column for column in log.columns if column.name not in taken and could_be(column)]
    found = _likeliest(able, tiers) or (able if role == "time" and len(able) == 1 else [])
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{log.path}: which column is the {role}? Equally likely are\n{_listed(found)}\n"
            f"Choose one: --{role} {_shell(found[0].name)}"
        )
    left = f"Choose one: --{role} COL. Columns:\n{_listed(free)}\n" if free else ""
    orders = (
        "A log without times needs a column of whole numbers that rise from event to event. " if role == "time" else ""
    )
    raise DataError(
        f"{log.path}: could not find the {role} column: no column looks like the {role} of an event by both its name "
        f"and its values. {left}{orders}"
        "A recipe needs a user, an item and a time."
    )


def _could_be_id(column: Column) -> bool:
    is_id = column.kind in ("integer", "text") or column.kind == "fraction" and column.is_whole
    return is_id and column.nulls <= 0.5 and column.distinct > 0 and not has_unit(column.name)


def _could_be_time(column: Column) -> bool:
    if column.nulls > 0.5 or column.distinct == 0:
        return False
    return column.is_dated or timestamp_unit(column) is not None


def _refused(log: TableProfile, column: Column, role: str, wanted: str, type_: str) -> DataError:
    # Seconds with a fraction are kept to the millisecond; the unit of the resulting whole number follows from its size.
    name, target = quote_name(column.name), f"{log.path.stem}-converted.parquet"
    scale = " * 1000" if role == "time" and timestamp_unit(column) == "s" else ""
    is_text = type_ == "TIMESTAMP" and column.kind == "text"
    value = f"STRPTIME({name}, '%d/%m/%Y %H:%M')" if is_text else f"CAST({name}{scale} AS {type_})"
    sql = f"COPY (SELECT * REPLACE ({value} AS {name}) FROM {quote_text(log.path)}) TO {quote_text(target)}"
    found = f"{column.type} such as {shown_values(column)}" if is_text else column.type
    example = ", with the format of your times in place of %d/%m/%Y %H:%M" if is_text else ""
    return DataError(
        f"{log.path}: the {role}, {printable(column.name)}, is {found}; a recipe reads it {wanted}. "
        f"In Python{example}:\n{printable(python_statement(sql))}\nthen --log {target}"
    )


def _listed(columns: Sequence[Column], most: int = 12) -> str:
    shown = [
        f"  {printable(c.name)}  {c.type}, about {c.distinct:,} values, {look_of(c)}, {shown_values(c)}"
        for c in columns[:most]
    ]
    return "\n".join(shown + [f"  and {len(columns) - most} more"] * (len(columns) > most))


def _shell(name: str) -> str:
    return printable(name) if re.fullmatch(r"[\w.-]+", name) else "'" + printable(name).replace("'", "'\\''") + "'"
