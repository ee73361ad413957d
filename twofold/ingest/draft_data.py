"""The data section of a drafted recipe: tables, keys that they share, and names that are free."""

from collections.abc import Mapping
from typing import Literal

from twofold.errors import DataError
from twofold.ingest.column_names import UPLOADED, normalized_name
from twofold.ingest.column_roles import Roles, guess_key
from twofold.ingest.table_profile import Column, TableProfile, printable, timestamp_unit
from twofold.prepare.sources import is_number
from twofold.recipe.data import Table


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
    derived = set(roles.signals.derive)
    seconds = {"watch_s", "length_s"} - derived
    columns |= {name.lower(): name for name in names_of(log) if name.lower() in seconds and name not in seconds}
    undated = set() if uploaded else {"uploaded_at"}
    columns |= _freed(log, set(own), derived, columns)
    columns |= _freed(items, {"item_id", "uploaded_at"}, derived | undated, columns)
    columns |= _freed(users, {"user_id"}, derived, columns)
    return Table(
        kind="table",
        events=log.path,
        items=items.path if items and not items.is_of_log else None,
        users=users.path if users and not users.is_of_log else None,
        item_columns=_of_log(items, roles.item, columns),
        user_columns=_of_log(users, roles.user, columns),
        columns=columns,
        decimal_comma=_with_decimal_comma(log, items, users),
        at_unit=at_unit,
        uploaded_at_unit=None if upload_unit == at_unit else upload_unit,
    )


def _of_log(table: TableProfile | None, key: str, columns: Mapping[str, str]) -> tuple[str, ...]:
    """Returns twofold's names of the attributes that the log itself contains."""
    ours = {theirs: ours for ours, theirs in columns.items()}
    own = table.columns if table is not None and table.is_of_log else ()
    return tuple(ours.get(column.name, column.name) for column in own if column.name != key)


def _with_decimal_comma(
    log: TableProfile, items: TableProfile | None, users: TableProfile | None
) -> tuple[Literal["events", "items", "users"], ...]:
    tables: dict[Literal["events", "items", "users"], TableProfile | None] = {
        "events": log,
        "items": items,
        "users": users,
    }
    return tuple(name for name, table in tables.items() if table is not None and table.has_decimal_comma)


def _shared_key(log: TableProfile, table: TableProfile, theirs: str, guessed: str | None, ours: str) -> str:
    """Returns the side table's name of the key, if one entry of `columns` can express it."""
    if theirs == ours and guessed is not None and guessed not in names_of(log):
        return guessed
    hint = f"; its {printable(guessed)} may be the key" if guessed else ""
    raise DataError(
        f"{table.path} has no column {printable(theirs)}, as {log.path} calls the {ours[:4]}{hint}. One name must "
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
    able = [
        column
        for column in columns
        if column.is_dated or (column.kind == "integer" and timestamp_unit(column) is not None)
    ]
    named = [column for column in able if normalized_name(column.name) in UPLOADED]
    return min(named, key=lambda column: column.name != "uploaded_at", default=None)


def names_of(table: TableProfile | None) -> set[str]:
    return {column.name for column in table.columns} if table else set()


def our_name(data: Table, name: str) -> str:
    return next((ours for ours, theirs in data.columns.items() if theirs == name), name)
