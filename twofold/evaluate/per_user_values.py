"""Per-user values of an evaluation on disk: one row per user, and one row per relevant pair.

Rows have ids, because two runs may number users and items differently and are compared user by user.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64, Int64

from twofold.dataset.vocabulary import Vocabulary
from twofold.errors import RunError
from twofold.evaluate.evaluate_window import EvaluationResult
from twofold.evaluate.slices import Slicing
from twofold.evaluate.window import EvaluationWindow
from twofold.ragged import Ragged
from twofold.run_folder import atomic_file

USERS_FILE: Final = "users.parquet"
PAIRS_FILE: Final = "pairs.parquet"


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
        columns[slicing.name] = pa.DictionaryArray.from_arrays(group, pa.array(slicing.names, pa.string()))
    pairs = pa.table(columns).sort_by([("user_id", "ascending"), ("item_id", "ascending")])
    with atomic_file(folder / PAIRS_FILE) as partial:
        pq.write_table(pairs, partial, compression="zstd")


def load_values(folder: Path) -> PerUserValues:
    """Reads the files of `save_values`; RunError if one is missing."""
    for name in (USERS_FILE, PAIRS_FILE):
        if not (folder / name).is_file():
            raise RunError(
                f"{folder} has no values per user: {name} is missing. Delete {folder} and run `twofold evaluate` on "
                "its run folder."
            )
    users, pairs = pq.read_table(folder / USERS_FILE), pq.read_table(folder / PAIRS_FILE)
    ids = users["user_id"].combine_chunks()
    order = Vocabulary(ids, num_known=len(ids))
    offsets = np.searchsorted(order.rows_of(pairs["user_id"]), np.arange(len(ids) + 1)).astype(np.int64)
    slicings = []
    for name in pairs.column_names[3:]:
        coded = pairs[name].combine_chunks()
        group = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        slicings.append(Slicing(name, group, tuple(coded.dictionary.to_pylist())))
    return PerUserValues(
        ids,
        {name: np.asarray(users[name]) for name in users.column_names[1:]},
        Ragged(np.arange(len(pairs)), offsets),
        np.asarray(pairs["rank"]).astype(np.int64),
        tuple(slicings),
    )
