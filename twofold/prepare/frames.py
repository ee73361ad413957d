"""Tables of a log that are in memory: pandas, polars, Arrow, DuckDB relations, and all with an Arrow C stream."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from twofold.errors import DataError
from twofold.recipe.schema import Recipe
from twofold.run_folder import atomic_file

Frame: TypeAlias = Any
"""A path as text or `Path`, or a table in memory."""


def with_tables(recipe: Recipe, tables: Mapping[str, Frame], folder: Path) -> Recipe:
    """Returns the recipe with its tables events, items and users replaced; `None` leaves one as it is.

    A table in memory is written to `folder`, as NAME.parquet. DataError if it is no table.
    """
    update: dict[str, Any] = {}
    for name, table in tables.items():
        if table is not None:
            update[name] = table_path(table, name, folder)
            if name != "events":  # a table of attributes replaces those of the events
                update[f"{name[:-1]}_columns"] = ()
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=update)}) if update else recipe


def table_path(table: Frame, name: str, folder: Path) -> Path:
    """Returns the absolute path of a table, which is written to `folder` if it is in memory."""
    if isinstance(table, str | Path):
        return Path(table).absolute()
    path = folder.absolute() / f"{name}.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        pq.write_table(as_arrow(table, name), partial)
    return path


def as_arrow(table: Frame, name: str) -> pa.Table:
    """Converts a table in memory to Arrow, without the index of pandas; DataError if it is no table."""
    try:
        if type(table).__module__.partition(".")[0] == "pandas":
            return pa.Table.from_pandas(table, preserve_index=False)
        if hasattr(table, "to_arrow_table"):  # a relation of DuckDB
            return table.to_arrow_table()
        return pa.table(table)
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"{name} is a {type(table).__name__}, which cannot be read as a table: {error}. Pass a path, or a table of "
            f"pandas, polars, Arrow or DuckDB."
        ) from None
