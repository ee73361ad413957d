"""What a report's numbers are means of, on disk: a line a user, and a line for each pair that was to be found.

Ids, not rows: two runs number their rows as they like, and are compared user by user.
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

USERS: Final = "users.parquet"
PAIRS: Final = "pairs.parquet"


@dataclass(frozen=True)
class Values:
    """The model's numbers of each judged user, and the catalogue rank of what each was to find, 0 where not found."""

    user_ids: pa.Array
    metrics: dict[str, Float64[np.ndarray, "users"]]
    relevant: Ragged
    """Places of the pairs' item ids: entry i is pair i."""
    ranks: Int64[np.ndarray, "pairs"]
    slicings: tuple[Slicing, ...]


def save_values(
    judged: EvaluationResult,
    window: EvaluationWindow,
    folder: Path,
    *,
    users: Vocabulary,
    items: Vocabulary,
    slicings: Sequence[Slicing],
) -> None:
    """Writes users.parquet and pairs.parquet, sorted by the ids."""
    ids = users.ids.take(pa.array(window.user_rows))
    filtered = {} if judged.filtered is None else judged.filtered.values
    table = pa.table({"user_id": ids, **judged.catalogue.values, **judged.impressions.values, **filtered})
    with atomic_file(folder / USERS) as partial:
        pq.write_table(table.sort_by("user_id"), partial, compression="zstd")
    columns = {
        "user_id": ids.take(pa.array(window.relevant.lines)),
        "item_id": items.ids.take(pa.array(window.relevant.values)),
        "rank": pa.array(judged.catalogue.ranks, pa.int32()),
    }
    for slicing in slicings:
        group = pa.array(slicing.group.astype(np.int32), mask=slicing.group < 0)
        columns[slicing.name] = pa.DictionaryArray.from_arrays(group, pa.array(slicing.names, pa.string()))
    pairs = pa.table(columns).sort_by([("user_id", "ascending"), ("item_id", "ascending")])
    with atomic_file(folder / PAIRS) as partial:
        pq.write_table(pairs, partial, compression="zstd")


def load_values(folder: Path) -> Values:
    """Reads what `save_values` wrote; RunError if the run was judged before there were such files."""
    for name in (USERS, PAIRS):
        if not (folder / name).is_file():
            raise RunError(
                f"{folder} holds no values of single users: {name} is missing. Delete {folder} and run `twofold "
                "evaluate` on its run folder."
            )
    users, pairs = pq.read_table(folder / USERS), pq.read_table(folder / PAIRS)
    ids = users["user_id"].combine_chunks()
    order = Vocabulary(ids, num_known=len(ids))
    offsets = np.searchsorted(order.rows_of(pairs["user_id"]), np.arange(len(ids) + 1)).astype(np.int64)
    slicings = []
    for name in pairs.column_names[3:]:
        coded = pairs[name].combine_chunks()
        group = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        slicings.append(Slicing(name, group, tuple(coded.dictionary.to_pylist())))
    return Values(
        ids,
        {name: np.asarray(users[name]) for name in users.column_names[1:]},
        Ragged(np.arange(len(pairs)), offsets),
        np.asarray(pairs["rank"]).astype(np.int64),
        tuple(slicings),
    )
