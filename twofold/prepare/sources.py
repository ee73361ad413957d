"""Source tables of a recipe as SELECTs with the names and types of `twofold/tables.py`.

Names and types come from headers and first lines (`table_files.py`), so a recipe is checked before its data are read.
Projections are SQL that DuckDB and, through sqlglot, Spark understand alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from twofold.digest import digest_of, file_digest
from twofold.errors import DataError, RecipeError
from twofold.prepare.duckdb_connection import FileKind, quote_name, quote_text, scan_sql
from twofold.prepare.table_files import TableFiles, files_of_tables, require_file
from twofold.prepare.time_texts import check_day_order, time_format
from twofold.recipe.data import Table
from twofold.recipe.messages import did_you_mean
from twofold.tables import EVENTS, INTERNAL, ITEMS, USERS

INTEGERS: Final = frozenset(
    f"{sign}{size}" for sign in ("", "U") for size in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")
)
FRACTIONS: Final = ("DOUBLE", "FLOAT", "DECIMAL")
"""Types of fractions; DECIMAL has its digits behind."""
_HAS_NAN: Final = frozenset({"FLOAT", "DOUBLE"})
_ZONELESS: Final = frozenset({"TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS"})
_ZONED: Final = frozenset({"TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ_NS"})
# Types whose values NumPy and Arrow cannot compare or look up, and Spark does not have.
_AS_TEXT: Final = {f"{type_}{end}": f"VARCHAR{end}" for type_ in ("UUID", "JSON") for end in ("", "[]")}
# Factor or integer divisor that turns an integer timestamp into milliseconds.
_TO_MS: Final = {"s": " * 1000", "ms": "", "us": " // 1000", "ns": " // 1000000"}
_WHOLE_DIGEST_BYTES: Final = 64 * 2**20
_END_BYTES: Final = 2**20


@dataclass(frozen=True)
class SourceTable:
    """A table of a log: its files, their columns, and the projection to twofold's names and types.

    `own` is name → SQL type as in the files; `partitions` are those of its columns that the names of folders give;
    `projection` is twofold's name → (SQL type, expression over the own columns). A table that the recipe does not name
    has no files and no rows.

    `fractions` is twofold's name → own column, as SQL, of the FLOAT and DOUBLE columns. Their NaN and infinities become
    NULL: spark and polars write an unknown number as NaN, and engines order NaN above every number, so that a rule such
    as `watch_s >= 18` would be true for it.
    """

    files: tuple[Path, ...]
    kind: FileKind
    own: Mapping[str, str]
    projection: Mapping[str, tuple[str, str]]
    fractions: Mapping[str, str] = field(default_factory=dict)
    partitions: tuple[str, ...] = ()
    text_options: str = ""
    grouped_by: str | None = None
    """Key of a table of attributes that is read from the events: one row per key, with the largest value of each
    column. `None` means that the rows are those of the files."""
    copy: str | None = None
    """Table of an engine that holds the rows of the files; `None` means that the files are read."""

    @property
    def columns(self) -> dict[str, str]:
        """SQL types by twofold's names."""
        return {name: type_ for name, (type_, _) in self.projection.items()}

    @property
    def files_sql(self) -> str:
        """FROM clause for the files as DuckDB reads them."""
        if self.copy is not None:
            return self.copy
        return scan_sql(self.files, self.kind, has_partitions=bool(self.partitions), text_options=self.text_options)

    def select_sql(self, origin: str | None = None) -> str:
        """Returns the SELECT from the files as DuckDB reads them, or from `origin`, an engine's view or table."""
        if not self.files:
            return f"{projection_sql(self.projection, '(SELECT 1) AS nothing')} WHERE FALSE"
        sql = projection_sql(self.projection, origin or self.files_sql)
        if self.grouped_by is None:
            return sql
        key, others = quote_name(self.grouped_by), [name for name in self.projection if name != self.grouped_by]
        largest = "".join(f", MAX({quote_name(name)}) AS {quote_name(name)}" for name in others)
        return f'SELECT {key}{largest} FROM ({sql}) AS "rows" WHERE {key} IS NOT NULL GROUP BY {key}'


@dataclass(frozen=True)
class Source:
    """A log as three tables: SELECTs for DuckDB, and what another engine needs to write its own.

    An optional BOOLEAN event column `at_is_estimated` marks events with a known order and an estimated time.
    """

    events: SourceTable
    items: SourceTable
    users: SourceTable
    vector_files: Mapping[str, Path] = field(default_factory=dict)

    @property
    def tables(self) -> Mapping[str, SourceTable]:
        """Tables by name: events, items, users."""
        return {"events": self.events, "items": self.items, "users": self.users}

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of the tables, each once."""
        return tuple(dict.fromkeys((*self.events.files, *self.items.files, *self.users.files)))

    def fingerprint(self) -> str:
        """Returns a digest that changes with the content or the role of a file, and not when its folder moves.

        Above 64 MiB, size, time of writing, first and last MiB replace the content, because a terabyte takes too long.
        """
        tables = {role: [_file_facts(path, table) for path in table.files] for role, table in self.tables.items()}
        vectors = {name: _content_digest(path) for name, path in self.vector_files.items()}
        return digest_of({"tables": tables, "vectors": vectors})


def open_source(data: Table) -> Source:
    """Opens the source that a recipe names.

    DataError if a file is missing, damaged or empty, or a column is missing or has a wrong type. RecipeError if
    `data.columns` names a column that no table has. Integer ids become BIGINT; times become UTC milliseconds, and
    timestamps without a zone are read as UTC.
    """
    paths = {"events": data.events, "items": data.items, "users": data.users}
    fields = {f"data.{name}": path for name, path in paths.items() if path is not None}
    files = files_of_tables(fields, decimal_comma=[f"data.{name}" for name in data.decimal_comma])
    found = {field.removeprefix("data."): each for field, each in files.items()}
    _check_renaming(data.columns, {name: files.columns for name, files in found.items()})
    events = _table(data, found["events"], EVENTS)
    sides = []
    for name, needed, listed in (("items", ITEMS, data.item_columns), ("users", USERS, data.user_columns)):
        (key,) = needed
        type_ = events.columns[key]
        if listed:
            sides.append(
                _attributes(_table(data, found["events"], needed), key, listed, field=f"data.{name[:-1]}_columns")
            )
            continue
        if name not in found:
            sides.append(SourceTable((), "parquet", {}, {key: (type_, "NULL")}))
            continue
        side = _table(data, found[name], needed)
        if side.columns[key] != type_:
            raise DataError(
                f"{key} is {side.columns[key]} in {_named(side.files)}, but {type_} in {_named(events.files)}: no id "
                f"would match. Write both as integers or both as text."
            )
        sides.append(side)
    for name, path in data.vectors.items():
        require_file(path, f"data.vectors.{name}")
    if data.published_negatives is not None:
        require_file(data.published_negatives, "data.published_negatives")
    items, users = sides
    return Source(events, items, users, {name: path.resolve() for name, path in data.vectors.items()})


def table_paths(data: Table) -> dict[str, Path]:
    """Returns the paths of events, items and users for messages; items and users may come from the events."""
    return {"events": data.events, "items": data.items or data.events, "users": data.users or data.events}


def projection_sql(projection: Mapping[str, tuple[str, str]], origin: str) -> str:
    """Returns the SELECT that gives the columns of a log twofold's names and types: name → (type, SQL of the value)."""
    listed = ", ".join(f"CAST({value} AS {type_}) AS {quote_name(name)}" for name, (type_, value) in projection.items())
    return f"SELECT {listed} FROM {origin}"


def is_number(type_: str) -> bool:
    """Checks whether an SQL type is that of single numbers."""
    return type_ in INTEGERS or type_.startswith(FRACTIONS) and type_[-1] != "]"


def finite_sql(number: str) -> str:
    """Returns the condition that a FLOAT or DOUBLE is neither NaN nor infinite."""
    # DuckDB 2.0 decides ISNAN(x) and ABS(x) < infinity by the statistics of a Parquet file, which leave NaN out.
    return f"ISFINITE({number})"


# --- columns ----------------------------------------------------------------------------------------------------------


def _table(data: Table, found: TableFiles, needed: Mapping[str, str]) -> SourceTable:
    files, own = found.paths, found.columns
    named = _renamed(own, data.columns, files)
    projection = {name: (_AS_TEXT.get(own[column], own[column]), quote_name(column)) for name, column in named.items()}
    for name in needed:
        if name not in named:
            raise DataError(
                f"{_named(files)} has no column {name} ({did_you_mean(name, own)}its columns: {', '.join(own)}). "
                f"Name the right one, as data.columns: {{{name}: …}}."
            )
    fractions: dict[str, str] = {}
    for name, (type_, column) in projection.items():
        if name == "at" or (name == "uploaded_at" and needed == ITEMS):
            unit = data.at_unit if name == "at" else data.uploaded_at_unit or data.at_unit
            projection[name] = _timestamp(name, type_, named[name], found, unit)
        elif name in needed:
            projection[name] = _id(name, type_, column, files)
        elif type_ in _HAS_NAN:
            fractions[name] = column
            projection[name] = type_, f"CASE WHEN {finite_sql(column)} THEN {column} END"
    estimated, _ = projection.get("at_is_estimated", ("BOOLEAN", ""))
    if estimated != "BOOLEAN":
        raise DataError(f"{_named(files)}: at_is_estimated is {estimated}; write it as BOOLEAN.")
    for name in ("watch_s", "length_s"):
        if not is_number(type_ := projection.get(name, ("DOUBLE", ""))[0]):
            raise DataError(
                f"{_named(files)}: {name} is {type_}; a column of that name is seconds as a number. Convert it, or "
                f"give it another name, as data.columns: {{{name}_of_log: {named[name]}}}."
            )
    return SourceTable(files, found.kind, own, projection, fractions, found.partitions, found.text_options)


def _attributes(table: SourceTable, key: str, listed: tuple[str, ...], *, field: str) -> SourceTable:
    """Returns the table of events reduced to an id and its attributes, one row an id, or raises RecipeError."""
    for name in listed:
        if name not in table.columns:
            raise RecipeError(
                f"{field}: the events have no column {name} ({did_you_mean(name, table.columns)}columns: "
                f"{', '.join(sorted(table.columns))})."
            )
        if table.columns[name].endswith(("]", ")")) and not table.columns[name].startswith("DECIMAL"):
            raise RecipeError(f"{field}: {name} is {table.columns[name]}; only single values have a largest one.")
    projection = {name: table.projection[name] for name in dict.fromkeys((key, *listed))}
    return replace(table, projection=projection, grouped_by=key)


def _renamed(own: Mapping[str, str], renaming: Mapping[str, str], files: tuple[Path, ...]) -> dict[str, str]:
    """Returns twofold's name → own name, in the order of the files; columns without a new name keep theirs."""
    named: dict[str, str] = {}
    for column in own:
        for name in [ours for ours, theirs in renaming.items() if theirs == column] or [column]:
            if name.lower().startswith(INTERNAL):
                raise RecipeError(
                    f"{_named(files)} has a column {name}, and names that begin with {INTERNAL} are those of internal "
                    f"columns. Give it another one, as data.columns: {{log{name}: {column}}}."
                )
            # Engines do not tell `At` from `at`.
            taken = next((other for other in named if other.lower() == name.lower()), None)
            if taken is not None:
                raise RecipeError(
                    f"data.columns would give {_named(files)} two columns {name}: its own {named[taken]} and "
                    f"{column}. Give the unwanted one another name, as data.columns: {{{name}_too: {name}}}."
                )
            named[name] = column
    return named


def _check_renaming(renaming: Mapping[str, str], own: Mapping[str, Mapping[str, str]]) -> None:
    columns = [column for table in own.values() for column in table]
    for name, column in renaming.items():
        if column not in columns:
            available = "; ".join(f"{table}: {', '.join(names)}" for table, names in own.items())
            raise RecipeError(
                f"data.columns.{name}: no table has a column {column} "
                f"({did_you_mean(column, columns)}columns of {available})."
            )


def _id(name: str, type_: str, column: str, files: tuple[Path, ...]) -> tuple[str, str]:
    if type_ in INTEGERS:
        return "BIGINT", column
    if type_ == "VARCHAR" or type_.startswith("ENUM"):
        return "VARCHAR", f"NULLIF(CAST({column} AS VARCHAR), '')"  # an empty id would be one user for all without any
    cause = " In a text file, a value such as 1e+05 or 7.0 makes it so." if type_ == "DOUBLE" else ""
    raise DataError(
        f"{_named(files)}: {name} is {type_}; an id is an integer or text (floats merge ids above 2^53).{cause} "
        f"Write the column as BIGINT or VARCHAR."
    )


def _timestamp(name: str, type_: str, own: str, files: TableFiles, unit: str) -> tuple[str, str]:
    column = quote_name(own)
    if type_ in INTEGERS:
        return "BIGINT", f"CAST({column} AS BIGINT){_TO_MS[unit]}"
    if type_ == "VARCHAR" and (form := time_format(files, own)) is not None:
        type_, column = "TIMESTAMP", f"STRPTIME({column}, {quote_text(form)})"
    elif type_ in _ZONELESS or type_ == "DATE":
        check_day_order(files, own)
    # EPOCH_MS has no counterpart in Spark that sqlglot knows; this has. A text may have an offset.
    if type_ in _ZONED or type_ == "VARCHAR":
        zone = "TIMESTAMP WITH TIME ZONE"
        return "BIGINT", f"DATE_DIFF('millisecond', CAST('1970-01-01 00:00:00+00' AS {zone}), CAST({column} AS {zone}))"
    if type_ in _ZONELESS or type_ == "DATE":
        return "BIGINT", f"DATE_DIFF('millisecond', CAST('1970-01-01' AS TIMESTAMP), CAST({column} AS TIMESTAMP))"
    raise DataError(
        f"{_named(files.paths)}: {name} is {type_}; it must be UTC time as whole numbers (1650816000000; "
        f"data.{name}_unit says of what), or a timestamp, a date or a text such as 2022-04-24 16:00:00. "
        f"Floats lose the order of events."
    )


# --- files ------------------------------------------------------------------------------------------------------------


def _named(files: tuple[Path, ...]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0].parent} ({len(files)} files)"


def _file_facts(path: Path, table: SourceTable) -> list[str | int]:
    """Returns name, size and content of a file; the folders that give its partitions belong to its name."""
    name = "/".join(path.parts[-1 - len(table.partitions) :])
    return [name, path.stat().st_size, _content_digest(path)]


def _content_digest(path: Path) -> str:
    facts = path.stat()
    if facts.st_size <= _WHOLE_DIGEST_BYTES:
        return file_digest(path)
    with path.open("rb") as file:
        first = file.read(_END_BYTES)
        file.seek(-_END_BYTES, 2)
        return digest_of([facts.st_mtime_ns, first.hex(), file.read().hex()])
