"""Types of the columns that a rule reads: no lists, no text that is no number, no number beside a text."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Literal

from twofold.errors import RecipeError
from twofold.prepare.duckdb_connection import open_duckdb, quote_name, quote_text
from twofold.prepare.sources import FRACTIONS, SourceTable, finite_sql, is_number
from twofold.sql.portable import Kind
from twofold.sql.rules import columns_read_as, rule_columns, texts_beside

_ROWS_READ: Final = 10_000
"""Rows in which a text that is no number is looked for: a recipe is checked before its data are read."""
_Read = Literal["condition", "number"]
_TYPES: Final[Mapping[_Read, str]] = {"condition": "BOOLEAN", "number": "DOUBLE"}
_TIMES: Final = ("at", "uploaded_at")
_NOT_FINITE: Final = re.compile(r"[+-]?(nan|inf(inity)?)", re.IGNORECASE)
"""Texts that engines read as the number NaN or infinity."""


def check_types(
    rule: str, columns: Mapping[str, str], tables: Mapping[str, SourceTable], *, field: str, result: Kind | None
) -> None:
    """Raises RecipeError if the type or the values of a column do not fit what the rule does with it.

    `columns` are the SQL types by name; text is read from the first of the `tables`, by name, that has the column.
    """
    for column in sorted(rule_columns(rule)):
        type_ = columns[column]
        if not (is_number(type_) or _is_text(type_) or type_ == "BOOLEAN"):
            raise RecipeError(
                f"{field} reads {column}, which is {type_}; a rule reads numbers, true and false, and text. "
                f"Write what it needs of {column} into a column of its own. Rule: {rule}"
            )
    for column, texts in texts_beside(rule, result=result).items():
        _check_number(column, columns[column], texts, field=field, rule=rule)
        _check_truth(column, columns[column], texts, field=field, rule=rule)
    for kind in _TYPES:
        for column in sorted(columns_read_as(kind, rule, result=result)):
            role = next((name for name, table in tables.items() if column in table.columns), None)
            if role is not None and _is_text(columns[column]):
                _check_text(column, tables[role], kind, field=field, rule=rule, role=role)


def _is_text(type_: str) -> bool:
    return type_.startswith(("VARCHAR", "ENUM")) and type_[-1] != "]"


def _check_number(column: str, type_: str, texts: Sequence[str], *, field: str, rule: str) -> None:
    """Raises RecipeError if a number is compared with a text: 13.5 is not equal to the text '13.50'.

    An integer may be compared with the digits of another, because ids above 2^53 can be written only as text, and then
    in their usual form: 7 is not equal to the text '007'.
    """
    others = [text for text in texts if type_.startswith(FRACTIONS) or not re.fullmatch(r"0|-?[1-9]\d*", text)]
    if not is_number(type_) or not others:
        return
    time = f" {column} is a time in UTC milliseconds{_example_of(others[0])}." if column in _TIMES else ""
    raise RecipeError(
        f"{field} compares {column}, a number, with the text {quote_text(others[0])}. "
        f"Write the number without quotation marks.{time} Rule: {rule}"
    )


def _check_truth(column: str, type_: str, texts: Sequence[str], *, field: str, rule: str) -> None:
    """Raises RecipeError if true and false are compared with another text, such as 'True' or '1': none would be
    equal.
    """
    others = [text for text in texts if text not in ("true", "false")]
    if type_ == "BOOLEAN" and others:
        raise RecipeError(
            f"{field} compares {column}, which is true or false (as yes and no, or t and f, of a CSV file are read), "
            f"with the text {quote_text(others[0])}. Write {column} or NOT {column} alone. Rule: {rule}"
        )


def _example_of(text: str) -> str:
    """Returns the milliseconds of a date, as an example; nothing for another text."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return ""
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    return f": {text} is {round(time.timestamp() * 1000)}"


def _check_text(column: str, table: SourceTable, kind: _Read, *, field: str, rule: str, role: str) -> None:
    """Raises RecipeError if a value among the first rows of a text is no number, or neither true nor false."""
    values = _other_values(column, table, _TYPES[kind])
    if not values:
        return
    name = column if re.fullmatch(r"[A-Za-z_]\w*", column) else quote_name(column)
    comparison = f"{name} = {quote_text(values[0])}"
    found = f"and its values are text, such as {', '.join(values)}."
    if all(_NOT_FINITE.fullmatch(value) for value in values):
        raise RecipeError(unordered_text(column, values[0], field=field, rule=rule))
    if kind == "condition":
        raise RecipeError(f"{field} reads {column} as true or false, {found} Compare it: {comparison}. Rule: {rule}")
    advice = f"Compare it, {comparison}, or give texts numbers: CASE WHEN {comparison} THEN 2 ELSE 1 END."
    if re.fullmatch(r"-?[\d.]*,\d+", values[0]) and table.kind == "csv":
        advice = f"Numbers with a decimal comma are read with data.decimal_comma: [{role}]."
    raise RecipeError(f"{field} reads {column} as a number, {found} {advice} Rule: {rule}")


def unordered_text(column: str, value: str, *, field: str, rule: str) -> str:
    """Returns the message about a text that is NaN or infinite where a rule reads it as a number."""
    return (
        f"{field} reads {column} as a number, and some of its texts are {value!r}, which would be above or below every "
        f"number. Leave unknown values empty (NULL). Rule: {rule}"
    )


def _other_values(column: str, table: SourceTable, type_: str) -> list[str]:
    """Returns up to three values among the first rows of a table that are not of an SQL type, or no finite number."""
    name = quote_name(column)
    value = f"TRY_CAST({name} AS {type_})"
    is_other = f"{value} IS NULL" + (f" OR NOT {finite_sql(value)}" if type_ == "DOUBLE" else "")
    own = table.projection[column][1]
    first = f"SELECT CAST({own} AS VARCHAR) AS {name} FROM {table.files_sql} WHERE {own} IS NOT NULL LIMIT {_ROWS_READ}"
    other = f"SELECT DISTINCT {name} FROM ({first}) WHERE {is_other} ORDER BY 1 LIMIT 3"
    with open_duckdb(None, files=table.files) as connection:
        found = [value[:40] for (value,) in connection.execute(other).fetchall()]
    return ["".join(each if each.isprintable() else "·" for each in value) for value in found]
