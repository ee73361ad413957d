"""Vectors of a bundle as tables, and what they say: similar items, and reasons for recommendations."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64, Integer

from twofold.index.item_mask import ItemMask
from twofold.index.similar import search_similar
from twofold.ragged import Ragged
from twofold.serve.bundle import Bundle

REASONS: Final = 3  # items of the history named as reasons for a recommended item
READ_FOR_REASONS: Final = 100  # newest positives among which reasons are searched


def vector_table(name: str, ids: pa.Array, vectors: Float32[np.ndarray, "_ dim"]) -> pa.Table:
    """Returns a table of ids and vectors, lists of one length."""
    values = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    return pa.table({name: ids, "vector": pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])})


def similar_items(bundle: Bundle, item_row: int, k: int, *, allowed: ItemMask | None = None) -> pa.Table:
    """Returns the k other items most similar to one: item_id, score, rank. The score is the cosine of the vectors, or
    the negative squared distance where that is the score of the model.
    """
    itself, vector = Ragged(np.array([item_row]), np.array([0, 1])), np.asarray(bundle.index.vectors[[item_row]])
    found = search_similar(bundle.index, vector, k, allowed=allowed, excluded=itself)
    count = int(found.counts[0])
    columns: dict[str, Any] = {
        "item_id": bundle.items.ids_of(found.item_rows[0, :count]),
        "score": found.scores[0, :count],
        "rank": np.arange(1, count + 1, dtype=np.int32),
    }
    return pa.table(columns)


def with_reasons(bundle: Bundle, table: pa.Table, positives: Int64[np.ndarray, "events"]) -> pa.Table:
    """Adds to a user's recommendations the most similar items of the history: `because` and `similarity`, best first.

    Similarity is the cosine of the vectors, not a cause: the tower reduces the whole history to one vector.
    """
    rows = bundle.items.rows_of(table["item_id"])
    best, cosines = most_similar_positives(lambda item_rows: bundle.index.vectors[item_rows], rows, positives)
    because = [bundle.items.ids_of(line) for line in best]
    lists = pa.ListArray.from_arrays(
        np.arange(len(best) + 1, dtype=np.int32) * best.shape[1],
        pa.concat_arrays([bundle.items.ids[:0], *because]),
    )
    similarity = [line.tolist() for line in cosines]
    return table.append_column("because", lists).append_column(
        "similarity", pa.array(similarity, pa.list_(pa.float32()))
    )


def most_similar_positives(
    vectors_of: Callable[[Integer[np.ndarray, "_"]], Float32[np.ndarray, "_ dim"]],
    item_rows: Integer[np.ndarray, "items"],
    positives: Integer[np.ndarray, "events"],
) -> tuple[Int64[np.ndarray, "items _"], Float32[np.ndarray, "items _"]]:
    """Returns for each item the rows of the most similar of a user's newest positives and their cosines, best first."""
    liked = np.unique(positives[-READ_FOR_REASONS:]).astype(np.int64)
    cosines = _unit(vectors_of(item_rows)) @ _unit(vectors_of(liked)).T
    best = np.argsort(-cosines, axis=1, kind="stable")[:, :REASONS]
    return liked[best], np.take_along_axis(cosines, best, axis=1)


def _unit(vectors: Float32[np.ndarray, "items dim"]) -> Float32[np.ndarray, "items dim"]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny))
