"""Per-user values of an evaluation on disk: of the model, of each relevant pair, and of every row of the report.

Rows have ids, because two runs may number users and items differently and are compared user by user.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float64, Int64

from twofold.dataset.vocabulary import Vocabulary
from twofold.errors import RunError
from twofold.evaluate.days import DayValues
from twofold.evaluate.evaluate_window import EvaluationResult
from twofold.evaluate.results import MODEL
from twofold.evaluate.slices import Slicing
from twofold.evaluate.window import EvaluationWindow, PerUser
from twofold.ragged import Ragged
from twofold.run_folder import atomic_file

USERS_FILE: Final = "users.parquet"
PAIRS_FILE: Final = "pairs.parquet"
ROWS_FILE: Final = "rows.parquet"
GROUP: Final = "group: "
"""Begins the names of columns of groups, so that a column of the log's own name cannot take the place of another."""


@dataclass(frozen=True)
class PerUserValues:
    """The model's metrics of each user, and the catalogue rank of each relevant pair, 0 if not found."""

    user_ids: pa.Array
    metrics: dict[str, Float64[np.ndarray, "users"]]
    relevant: Ragged
    """Indices of each user's pairs."""
    ranks: Int64[np.ndarray, "pairs"]
    slicings: tuple[Slicing, ...]


def save_values(
    result: EvaluationResult,
    window: EvaluationWindow,
    folder: Path,
    *,
    users: Vocabulary,
    items: Vocabulary,
    slicings: Sequence[Slicing],
) -> None:
    """Writes users.parquet and pairs.parquet, sorted by ids."""
    ids = users.ids.take(pa.array(window.user_rows))
    filtered = {} if result.filtered is None else result.filtered.values
    table = pa.table({"user_id": ids, **result.catalogue.values, **result.impressions.values, **filtered})
    with atomic_file(folder / USERS_FILE) as partial:
        pq.write_table(table.sort_by("user_id"), partial, compression="zstd")
    columns = {
        "user_id": ids.take(pa.array(window.relevant.lines)),
        "item_id": items.ids.take(pa.array(window.relevant.values)),
        "rank": pa.array(result.catalogue.ranks, pa.int32()),
    }
    for slicing in slicings:
        group = pa.array(slicing.group.astype(np.int32), mask=slicing.group < 0)
        columns[GROUP + slicing.name] = pa.DictionaryArray.from_arrays(group, pa.array(slicing.names, pa.string()))
    pairs = pa.table(columns).sort_by([("user_id", "ascending"), ("item_id", "ascending")])
    with atomic_file(folder / PAIRS_FILE) as partial:
        pq.write_table(pairs, partial, compression="zstd")


def save_row_values(days: Sequence[DayValues], folder: Path, *, users: Vocabulary, metrics: Sequence[str]) -> None:
    """Writes rows.parquet: per window and row of the report, these metrics of each user."""
    parts = [
        pa.table(
            {
                "window": pa.array([day.day] * len(day.users)).dictionary_encode(),
                "row": pa.array([name] * len(day.users)).dictionary_encode(),
                "user_id": users.ids.take(pa.array(day.users)),
                **{metric: values.values[metric] for metric in metrics},
            }
        )
        for day in days
        for name, values in day.rows.items()
    ]
    with atomic_file(folder / ROWS_FILE) as partial:
        pq.write_table(pa.concat_tables(parts).unify_dictionaries(), partial, compression="zstd")


def load_row_values(folders: Mapping[str, Path]) -> list[DayValues]:
    """Reads what `save_row_values` wrote for the test windows of several runs, with one number per user id.

    Each window gets the name that its folder has in `folders`.
    """
    tables = [
        pq.read_table(folder / ROWS_FILE, filters=pc.field("window") == "test").combine_chunks()
        for folder in folders.values()
    ]
    ids = pa.concat_tables([table.select(["user_id"]) for table in tables])["user_id"].combine_chunks().unique()
    days = []
    for name, table in zip(folders, tables, strict=True):
        users = pc.index_in(table["user_id"], ids).to_numpy().astype(np.int64)
        of_row = table["row"].cast(pa.string()).to_numpy(zero_copy_only=False)
        rows = {}
        for row in dict.fromkeys(of_row):
            values = {metric: np.asarray(table[metric])[of_row == row] for metric in table.column_names[3:]}
            evaluated = int((~np.isnan(next(iter(values.values())))).sum())
            rows[str(row)] = PerUser(values, evaluated, {})
        days.append(DayValues(name, users[of_row == MODEL], rows))
    return days


def load_values(folder: Path) -> PerUserValues:
    """Reads the files of `save_values`; RunError if one is missing or damaged."""
    again = f"Delete {folder} and run `twofold evaluate` on its run folder."
    for name in (USERS_FILE, PAIRS_FILE):
        if not (folder / name).is_file():
            raise RunError(f"{folder} has no values per user: {name} is missing. {again}")
    try:
        users, pairs = (pq.read_table(folder / name) for name in (USERS_FILE, PAIRS_FILE))
    except (pa.ArrowException, OSError) as error:
        raise RunError(f"{folder} has damaged values per user: {error}. {again}") from error
    ids = users["user_id"].combine_chunks()
    order = Vocabulary(ids, num_known=len(ids))
    offsets = np.searchsorted(order.rows_of(pairs["user_id"]), np.arange(len(ids) + 1)).astype(np.int64)
    slicings = []
    for name in pairs.column_names[3:]:
        coded = pairs[name].combine_chunks()
        group = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        slicings.append(Slicing(name.removeprefix(GROUP), group, tuple(coded.dictionary.to_pylist())))
    return PerUserValues(
        ids,
        {name: np.asarray(users[name]) for name in users.column_names[1:]},
        Ragged(np.arange(len(pairs)), offsets),
        np.asarray(pairs["rank"]).astype(np.int64),
        tuple(slicings),
    )
