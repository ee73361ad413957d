"""Odd values of a log: those that are counted, and those that a rule may not read as a condition or as a number.

SQL reads a number as true where it is not 0, so `positive: thumb` would count a thumb of -1 as positive.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twofold.errors import DataError
from twofold.prepare.duckdb_connection import quote_name
from twofold.prepare.rule_types import unordered_text
from twofold.prepare.sources import Source, SourceTable, finite_sql, is_number, projection_sql
from twofold.recipe.prepare import Prepare
from twofold.sql.rules import columns_read_as


def oddities_sql(source: Source) -> list[tuple[tuple[str, ...], str]]:
    """Returns the names of oddities and the SELECT of their numbers of rows, for each table that may have any.

    These are NaN and infinities, which are read as NULL, impossible lengths, whose use is up to the rules, and
    attributes of the events that change: the largest value may be one of the days that are to be predicted.
    """
    events, items = source.events, source.items
    # One statement for the events, which reads them once: their NaN are those of the file, their lengths as rules see.
    as_in_file = {f"{name} in the file": ("DOUBLE", own) for name, own in events.fractions.items()}
    rows = f'({projection_sql({**events.projection, **as_in_file}, quote_name("file_events"))}) AS "events"'
    odd = _not_finite("events", {name: quote_name(f"{name} in the file") for name in events.fractions})
    if has_length := "length_s" in events.columns or "length_s" in items.columns:
        odd["length of 0 or less"] = '"length_s" <= 0'
    if has_length and "watch_s" in events.columns:
        odd["watched longer than long"] = '"watch_s" > "length_s"'
    if has_length and "length_s" not in events.columns:
        rows += ' LEFT JOIN (SELECT "item_id", "length_s" FROM "source_items") AS "lengths" USING ("item_id")'
    found = [(rows, odd)]
    for side, table in (("items", items), ("users", source.tables["users"])):
        found.append((f'"file_{side}"', _not_finite(side, table.fractions)))
    found += [_changing(side, table) for side, table in source.tables.items() if table.grouped_by is not None]
    return [(tuple(odd), f"SELECT {_counts_sql(odd.values())} FROM {rows}") for rows, odd in found if odd]


def _not_finite(side: str, fractions: Mapping[str, str]) -> dict[str, str]:
    """Returns by the name of the oddity the condition that a column is NaN or infinite; `fractions` is name → SQL."""
    return {
        f"{side}: {name} is NaN or infinite, read as NULL": f"NOT {finite_sql(own)}" for name, own in fractions.items()
    }


def _changing(side: str, table: SourceTable) -> tuple[str, dict[str, str]]:
    """Returns a table of the ends of each attribute that is read from the events, one row an id, and by the name of the
    oddity the condition that they differ.
    """
    key, names = quote_name(table.grouped_by or ""), [name for name in table.projection if name != table.grouped_by]
    ends = "".join(
        f', MIN({quote_name(name)}) AS "least_{number}", MAX({quote_name(name)}) AS "most_{number}"'
        for number, name in enumerate(names)
    )
    rows = f'({projection_sql(table.projection, quote_name(f"file_{side}"))}) AS "rows"'
    odd = {
        f"{side}: {name} changes among the events of one id, and the largest value is read, be it a later one": (
            f'"least_{number}" <> "most_{number}"'
        )
        for number, name in enumerate(names)
    }
    return f'(SELECT {key}{ends} FROM {rows} WHERE {key} IS NOT NULL GROUP BY {key}) AS "ends"', odd


def _counts_sql(conditions: Iterable[str]) -> str:
    return ", ".join(f"COUNT(CASE WHEN {condition} THEN 1 END)" for condition in conditions)


# --- ids --------------------------------------------------------------------------------------------------------------


def check_ids_match(source: Source, paths: Mapping[str, Path], query: Callable[[str], Sequence[Any]]) -> None:
    """Raises DataError if no id of a table of items or users is one of the events, as sku-7 and SKU-7: every attribute
    would be unknown, and the catalogue would hold every item twice.

    `query` runs a SELECT on the source tables and the table `labelled`; `paths` are those of the tables by name.
    """
    for side, key in (("items", "item_id"), ("users", "user_id")):
        table = source.tables[side]
        if not table.files or table.grouped_by is not None:
            continue
        seen = f'(SELECT DISTINCT "{key}" FROM "labelled" WHERE "is_kept") AS "seen"'
        listed = f'(SELECT "{key}" AS "listed" FROM "source_{side}") AS "all"'
        facts = f'COUNT("listed"), MIN("{key}"), (SELECT MIN("{key}") FROM "source_{side}")'
        matches, of_events, own = query(f'SELECT {facts} FROM {seen} LEFT JOIN {listed} ON "listed" = "{key}"')[0]
        if not matches and of_events is not None:
            raise DataError(
                f"{paths[side]}: none of its ids is one of the events. Its {key} are such as {own!r}, those of the "
                f"events such as {of_events!r}. Write them alike in both files."
            )


# --- numbers as conditions --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BareCondition:
    """A number that a rule of the recipe reads as true or false, and the table or view that has it."""

    column: str
    field: str
    rule: str
    table: str


def check_bare_conditions(prepare: Prepare, source: Source, query: Callable[[str], Sequence[Any]]) -> None:
    """Raises DataError if a number that a rule reads as a condition has a value other than 0, 1 and NULL.

    `query` runs a SELECT on the source tables and the view `ruled`; each table is read once.
    """
    found = _bare_conditions(prepare, source)
    for table in sorted({each.table for each in found}):
        own = [each for each in found if each.table == table]
        listed = ", ".join(_range_sql(each.column) for each in own)
        values = query(f'SELECT {listed} FROM "{table}"')[0]
        for number, each in enumerate(own):
            least, most, others = values[3 * number : 3 * number + 3]
            if others:
                raise _refusal(each, least, most)


def check_texts_as_numbers(prepare: Prepare, source: Source, query: Callable[[str], Sequence[Any]]) -> None:
    """Raises DataError if a text that a rule reads as a number is NaN or infinite in some row, as `astype(str)` of
    pandas writes what is unknown: it would be above or below every number.

    `query` runs a SELECT on the source tables.
    """
    seen: set[str] = set()
    for rule in prepare.rules():
        for column in sorted(columns_read_as("number", rule.text, result=rule.result) - seen):
            seen.add(column)
            table, type_ = _source_of(column, source) or ("", "")
            if type_ == "VARCHAR":
                name = quote_name(column)
                odd = f"NOT {finite_sql(f'TRY_CAST({name} AS DOUBLE)')}"
                value = query(f'SELECT MIN(CASE WHEN {odd} THEN {name} END) FROM "{table}"')[0][0]
                if value is not None:
                    raise DataError(unordered_text(column, value, field=rule.field, rule=rule.text))


def _source_of(column: str, source: Source) -> tuple[str, str] | None:
    """Returns the source table of a column, and its SQL type; a column of two tables is the event's."""
    for name, table in source.tables.items():
        if column in table.columns:
            return f"source_{name}", table.columns[column]
    return None


def _bare_conditions(prepare: Prepare, source: Source) -> list[BareCondition]:
    """Returns the numbers that rules read as conditions, each with the first such rule."""
    found: dict[str, BareCondition] = {}
    for rule in prepare.rules():
        for column in sorted(columns_read_as("condition", rule.text, result=rule.result) - found.keys()):
            if (table := _table_of(column, prepare, source)) is not None:
                found[column] = BareCondition(column, rule.field, rule.text, table)
    return list(found.values())


def _table_of(column: str, prepare: Prepare, source: Source) -> str | None:
    """Returns the table or view of a column if it is a number; a column of two tables is the event's."""
    if (found := _source_of(column, source)) is not None:
        table, type_ = found
        return table if is_number(type_) else None
    is_truth = column in prepare.labels and prepare.labels[column].kind in ("long_view", "below_mean")
    return None if is_truth else "ruled"


def _range_sql(column: str) -> str:
    number = f"CAST({quote_name(column)} AS DOUBLE)"
    return f"MIN({number}), MAX({number}), COUNT(CASE WHEN {number} NOT IN (0e0, 1e0) THEN 1 END)"


def _refusal(bare: BareCondition, least: float, most: float) -> DataError:
    name = bare.column if bare.column.isidentifier() else quote_name(bare.column)
    limit = 0 if least < 0 else (least + most) / 2
    return DataError(
        f"{bare.field} reads {name} as a condition, and its values are numbers from {least:g} to {most:g}: as a "
        f"condition, every number but 0 is true. Write the comparison that you mean, such as {name} > {limit:g}, or "
        f"{name} <> 0. Rule: {bare.rule}"
    )
