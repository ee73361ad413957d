"""The layout of a published data set: its files, and the SELECT statements that turn them into canonical tables.

`public.py` runs the statements on DuckDB only, so they may use functions that Spark does not have. Every row is kept as
published, exact duplicates included.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from twofold.prepare.duckdb_connection import quote_text


@dataclass(frozen=True)
class SourceFiles:
    """Files with equal columns, read as one table. `*` in a name matches any text.

    `csv_options` are options of DuckDB's read_csv; Parquet files need none.
    """

    names: tuple[str, ...]
    csv_options: str = ""


@dataclass(frozen=True)
class Layout:
    """The files of a data set, all in one folder, by their table name in SQL; and each output table's SELECT."""

    files: Mapping[str, SourceFiles]
    tables: Mapping[str, str]


CSV_WITH_HEADER: Final = "header=true, delim=',', quote='\"', escape='\"'"


def column_types_sql(types: Mapping[str, str]) -> str:
    """Returns column types as read_csv takes them: `{'user': 'BIGINT'}`."""
    return "{" + ", ".join(f"{quote_text(name)}: '{type_}'" for name, type_ in types.items()) + "}"
