"""Encoders from table columns to arrays: standardized numbers, and values as rows of an embedding table."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32, Float64, Int32, Int64

from twofold.dataset.vocabulary import Vocabulary
from twofold.errors import DataError
from twofold.ragged import Ragged
from twofold.tables import DAY_MS, HOUR_MS, INTERNAL

FARTHEST = np.float32(1e6)
"""Largest standardized number. One of n values on which a scale is fitted is at most √n from their mean, but a new item
may have 3.4e38 for what is unknown, whose square no vector of a tower can hold."""
_NEVER = np.int64(np.iinfo(np.int64).min)


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of a number on the training window."""

    mean: float
    std: float

    def apply(self, values: Float32[np.ndarray, "batch"]) -> Float32[np.ndarray, "batch"]:
        """Standardizes the values; NaN (no value) becomes the mean, which is 0, and what is further than FARTHEST from
        it as far as that.
        """
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            standardized = (values - np.float32(self.mean)) / np.float32(self.std)
        return np.asarray(np.clip(np.nan_to_num(standardized), -FARTHEST, FARTHEST))


def fit_scale(pieces: Iterable[Float32[np.ndarray, "_"]]) -> Scale:
    """Fits the scale of all values but NaN, the same however they are divided into pieces (Chan, Golub, LeVeque 1979,
    equation 1.5).
    """
    count, mean, squares = 0, 0.0, 0.0
    for piece in pieces:
        values = piece[~np.isnan(piece)].astype(np.float64)
        if len(values) == 0:
            continue
        shift, both = float(values.mean()) - mean, count + len(values)
        squares += float(values.var()) * len(values) + shift**2 * count * len(values) / both
        mean += shift * len(values) / both
        count = both
    return Scale(mean, (squares / count) ** 0.5 or 1.0) if count else Scale(0.0, 1.0)


POSITIVES = f"{INTERNAL}positives"
"""Column of the items with their number of training positives; only of recipes that read the popularity."""


def popularity(items: pa.Table) -> Float32[np.ndarray, "items"]:
    """Returns log(1 + training positives) of each item."""
    return numbers(items[POSITIVES], is_log=True, name=POSITIVES)


def numbers(column: pa.ChunkedArray, *, is_log: bool, name: str) -> Float32[np.ndarray, "_"]:
    """Returns the column's numbers, NULL as NaN; with `is_log`, log(1 + x).

    DataError if a number is beyond float32, or negative with `is_log`.
    """
    values = np.asarray(column.cast(pa.float64(), safe=False).combine_chunks().to_numpy(zero_copy_only=False))
    least, most = (float(end(values, initial=0, where=~np.isnan(values))) for end in (np.min, np.max))
    if is_log and least < 0:
        raise DataError(
            f"the column {name} has negative numbers, down to {least:g}, and the feature that reads it has scale: log, "
            f"which is log(1 + x) of numbers of 0 or more. Write scale: standard, or a column of its own with what you "
            f"mean, such as the absolute value."
        )
    if max(-least, most) > float(np.finfo(np.float32).max):
        raise DataError(
            f"the column {name} goes from {least:g} to {most:g}, and a feature reads numbers up to 3.4e38. Write a "
            f"column of smaller numbers, or NULL for what is unknown."
        )
    return (np.log1p(values) if is_log else values).astype(np.float32)


def profiles(column: pa.ChunkedArray, length: int, *, name: str) -> Float32[np.ndarray, "_ length"]:
    """Returns one row per list, NULL as zeros; DataError if a list has another length or contains NULL."""
    lists = column.combine_chunks()
    lists = lists.cast(pa.list_(pa.float32()))
    lengths = pc.fill_null(pc.list_value_length(lists), length)
    values = pc.list_flatten(lists)
    unknown = len(values) - int(np.isfinite(np.asarray(values)).sum())
    for actual in pc.unique(lengths).to_pylist():
        if actual != length or unknown:
            raise DataError(
                f"the users' column {name} holds lists of {actual} numbers, of all of which {unknown} are NULL, NaN or "
                f"infinite; the feature that reads the column has length: {length}. Write lists of one length, without "
                f"these."
            )
    rows = np.zeros((len(lists), length), np.float32)
    rows[np.asarray(pc.is_valid(lists))] = np.asarray(values).reshape(-1, length)
    return rows


def value_rows(column: pa.ChunkedArray, vocabulary: Vocabulary) -> Int32[np.ndarray, "_"]:
    """Returns the embedding table's row of each value: 0 for NULL and for a value that is not in the vocabulary."""
    return (vocabulary.rows_of(column) + 1).astype(np.int32)


def value_lists(column: pa.ChunkedArray, sep: str | None) -> pa.ChunkedArray:
    """Returns a column of lists: the column itself, or a text split at `sep`, without empty values.

    >>> value_lists(pa.chunked_array([["pop | rock", "", None]]), "|").to_pylist()
    [['pop', 'rock'], [], None]
    """
    if sep is None:
        return column
    split = pc.split_pattern(column.combine_chunks(), sep)
    values = pc.utf8_trim_whitespace(pc.list_flatten(split))
    kept = pc.greater(pc.utf8_length(values), 0)
    per_list = np.bincount(np.asarray(pc.list_parent_indices(split))[np.asarray(kept)], minlength=len(split))
    offsets = pa.array(np.concatenate([[0], np.cumsum(per_list)]).astype(np.int32))
    mask = pc.is_null(split) if split.null_count else None
    return pa.chunked_array([pa.ListArray.from_arrays(offsets, values.filter(kept), mask=mask)])


def bag_rows(column: pa.ChunkedArray, vocabulary: Vocabulary) -> Ragged:
    """Returns the embedding table's rows of each list's values, 0 for those of no row."""
    lists = column.combine_chunks()
    lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0))
    rows = (vocabulary.rows_of(pc.list_flatten(lists)) + 1).astype(np.int32)
    return Ragged(rows, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))


def timestamps(column: pa.ChunkedArray) -> Int64[np.ndarray, "_"]:
    """Returns UTC milliseconds, with NULL encoded as `log_days` expects."""
    return pc.fill_null(column, int(_NEVER)).combine_chunks().to_numpy(zero_copy_only=False)


def age_days(uploaded_at: pa.ChunkedArray, as_of: int) -> pa.Array:
    """Returns the age of each item in days; NULL where the time of its upload is."""
    return pa.array(days_since(timestamps(uploaded_at), as_of), mask=~uploaded_at.is_valid().to_numpy())


def log_days(since: Int64[np.ndarray, "batch"], at: Int64[np.ndarray, "batch"]) -> Float32[np.ndarray, "batch"]:
    """Returns log(1 + days) from `since` to `at`; NaN where `since` is unknown."""
    return np.where(since == _NEVER, np.nan, np.log1p(days_since(since, at))).astype(np.float32)


def days_since(
    since: Int64[np.ndarray, "*batch"] | int, at: Int64[np.ndarray, "*batch"] | int
) -> Float64[np.ndarray, "*batch"]:
    """Returns the days from `since` to `at`; 0 where `at` is earlier: an item seen before its upload date is new."""
    return np.asarray(np.maximum((at - since) / DAY_MS, 0))


def shares(clusters: Int32[np.ndarray, "batch length"], k: int) -> Float32[np.ndarray, "batch k"]:
    """Returns each cluster's share of an example's items (1 to k, 0 = none); the sum is 1, or 0 without items."""
    first = np.arange(len(clusters))[:, None] * (k + 1)
    counts = np.bincount((first + clusters).ravel(), minlength=len(clusters) * (k + 1)).reshape(-1, k + 1)[:, 1:]
    share: np.ndarray = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return share.astype(np.float32)


def clock_rows(part: Literal["hour", "weekday"], local: Int64[np.ndarray, "batch"]) -> Int32[np.ndarray, "batch"]:
    """Returns the hour as 1 to 24, or the weekday as 1 (Monday) to 7 (Sunday), of times in local milliseconds."""
    # 1 January 1970 was a Thursday.
    value = local // HOUR_MS % 24 if part == "hour" else (local // DAY_MS + 3) % 7
    return (value + 1).astype(np.int32)
