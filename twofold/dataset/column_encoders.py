"""Columns of a table → arrays: numbers on one scale, values as rows of a table of trained vectors."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32, Int32, Int64

from twofold.dataset.vocabulary import Vocabulary
from twofold.errors import DataError
from twofold.tables import DAY_MS, HOUR_MS

_NEVER = np.int64(np.iinfo(np.int64).min)


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of a number on the training window."""

    mean: float
    std: float

    def apply(self, values: Float32[np.ndarray, "batch"]) -> Float32[np.ndarray, "batch"]:
        """Standardised; NaN (no value) becomes the mean, which is 0."""
        standardised = (values - np.float32(self.mean)) / np.float32(self.std)
        return np.asarray(np.nan_to_num(standardised))


def fit_scale(pieces: Iterable[Float32[np.ndarray, "_"]]) -> Scale:
    """The scale of all values that are there, whatever they are cut into (Chan, Golub, LeVeque 1979, equation 1.5)."""
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


def numbers(column: pa.ChunkedArray, *, is_log: bool) -> Float32[np.ndarray, "lines"]:
    """The column's numbers, NULL as NaN; `is_log`: after log(1 + x), negative ones counting as 0."""
    values = np.asarray(column.cast(pa.float64()).combine_chunks().to_numpy(zero_copy_only=False))
    if is_log:
        values = np.log1p(np.maximum(values, 0))
    return values.astype(np.float32)


def profiles(column: pa.ChunkedArray, length: int, *, name: str) -> Float32[np.ndarray, "lines length"]:
    """The column's lists as lines, NULL as zeros; DataError if a list has another length, or holds NULL."""
    lists = column.combine_chunks()
    lists = lists.cast(pa.list_(pa.float32()))
    lengths = pc.fill_null(pc.list_value_length(lists), length)
    values = pc.list_flatten(lists)
    for found in pc.unique(lengths).to_pylist():
        if found != length or values.null_count:
            raise DataError(
                f"the users' column {name} holds lists of {found} numbers, {values.null_count} of all NULL; the "
                f"feature that reads it says length: {length}. Write lists of one length, without NULL."
            )
    lines = np.zeros((len(lists), length), np.float32)
    lines[np.asarray(pc.is_valid(lists))] = np.asarray(values).reshape(-1, length)
    return lines


def value_rows(column: pa.ChunkedArray, vocabulary: Vocabulary) -> Int32[np.ndarray, "lines"]:
    """Table row of each value: 0 for NULL and for what the vocabulary does not hold."""
    return (vocabulary.rows_of(column) + 1).astype(np.int32)


def bag_rows(column: pa.ChunkedArray, vocabulary: Vocabulary) -> Int32[np.ndarray, "lines length"]:
    """Table rows of each list's values, as wide as the longest list, 0 where there is none."""
    lists = column.combine_chunks()
    lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0))
    width = max(int(lengths.max(initial=0)), 1)
    rows = np.zeros((len(lists), width), np.int32)
    line = np.repeat(np.arange(len(lists)), lengths)
    place = np.arange(len(line)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    rows[line, place] = vocabulary.rows_of(pc.list_flatten(lists)) + 1
    return rows


def moments(column: pa.ChunkedArray) -> Int64[np.ndarray, "lines"]:
    """UTC milliseconds; what `log_days` reads."""
    filled: np.ndarray = pc.fill_null(column, int(_NEVER)).combine_chunks().to_numpy(zero_copy_only=False)
    return filled


def log_days(since: Int64[np.ndarray, "rows"], at: Int64[np.ndarray, "rows"]) -> Float32[np.ndarray, "rows"]:
    """log(1 + days) from one moment to another; NaN where the first is not known."""
    days = np.maximum((at - since) / DAY_MS, 0)  # an item seen before its upload date is new, not negative
    return np.where(since == _NEVER, np.nan, np.log1p(days)).astype(np.float32)


def shares(clusters: Int32[np.ndarray, "lines length"], k: int) -> Float32[np.ndarray, "lines k"]:
    """How a line's clusters (1 to k, 0 = none) are shared out: sums to 1, or to 0 where there are none."""
    first = np.arange(len(clusters))[:, None] * (k + 1)
    counts = np.bincount((first + clusters).ravel(), minlength=len(clusters) * (k + 1)).reshape(-1, k + 1)[:, 1:]
    shared: np.ndarray = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return shared.astype(np.float32)


def clock_rows(of: Literal["hour", "weekday"], local: Int64[np.ndarray, "lines"]) -> Int32[np.ndarray, "lines"]:
    """1 to 24, or 1 for Monday to 7 for Sunday, of moments in milliseconds of the local clock."""
    # 1 January 1970 was a Thursday.
    value = local // HOUR_MS % 24 if of == "hour" else (local // DAY_MS + 3) % 7
    return (value + 1).astype(np.int32)
