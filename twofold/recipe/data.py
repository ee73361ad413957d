"""Data section of a recipe: the tables of a log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from twofold.recipe.section import Name, Section


class Table(Section):
    """A log as tables of Parquet, CSV or JSON. `twofold data` downloads public data sets in this form; `twofold recipe
    new` writes this section for your own log.
    """

    kind: Literal["table"]
    events: Path
    """Path of the events: a file (.parquet, .pq, .csv, .tsv, .json, .jsonl; text also as .gz), or a folder of files of
    one format. Folders in it named `day=2024-01-01` give a column of text, `day`. Columns: user_id, item_id, at (UTC),
    and all that the rules read. A time may be a whole number, a timestamp, a date, or one of them as text, such as
    2024-01-31T18:30:00+05:30; without an offset it is UTC.
    """
    items: Path | None = None
    """Path of the items table: column item_id, and the attributes that features read. Without it, the items are those
    of the events.
    """
    users: Path | None = None
    """Path of the users table: column user_id, and attributes."""
    item_columns: tuple[str, ...] = ()
    """Columns of the events that describe the item, as `[category, brand]`, instead of an items table: the largest
    value among the events of an item is its attribute.
    """
    user_columns: tuple[str, ...] = ()
    """Columns of the events that describe the user, likewise."""
    published_negatives: Path | None = None
    """Path of a table with the columns user_id and item_id (a list): the negatives that a paper published for each
    user's positives, for `evaluate.sampled`.
    """
    vectors: Mapping[Name, Path] = {}
    """Paths of .npy files of item vectors, by name; one vector for each row of the items table, in its order."""
    columns: Mapping[str, str] = {}
    """Names of columns in your tables, by the name that twofold uses, as `user_id: uid`. Other columns keep their
    names.
    """
    decimal_comma: tuple[Literal["events", "items", "users"], ...] = ()
    """Tables of CSV files in which numbers have a decimal comma, as 13,27 for 13.27."""
    at_unit: Literal["ms", "s", "us", "ns"] = "ms"
    """Unit of timestamps that are stored as integers."""
    uploaded_at_unit: Literal["ms", "s", "us", "ns"] | None = None
    """Unit of the column uploaded_at of the items, if it is stored as integers. `null` means that of `at_unit`."""

    @model_validator(mode="after")
    def _attributes_have_one_source(self) -> Table:
        for field, table, columns in (
            ("item_columns", "items", self.item_columns),
            ("user_columns", "users", self.user_columns),
        ):
            if columns and getattr(self, table) is not None:
                raise ValueError(
                    f"data.{field} takes attributes from the events, and data.{table} names a table of them. Delete one"
                )
        return self


Data = Table
