"""Groups of training examples: a batch holds one day, one value of some columns, such as one language, or one tower."""

import numpy as np
from jaxtyping import Int32, Int64

from twofold.dataset.dataset import Dataset, attribute_column
from twofold.errors import DataError
from twofold.model.multi_tower import MultiTower
from twofold.recipe.features import reads_time
from twofold.recipe.train import Bce, Regression, Train
from twofold.tables import DAY_MS, HOUR_MS

MIN_BATCHES = 4
"""Smallest number of batches of a span of time: the examples beyond full batches wait for the next epoch, and with
groups of one or two batches these would be many."""


def group_examples(
    dataset: Dataset, settings: Train, examples: Int64[np.ndarray, "examples"]
) -> Int32[np.ndarray, "examples"] | None:
    """Returns the group of each training example by `train.group_by` and `train.group_by_time`; `None` means one group.

    Batches of one day make an item stand as a negative with the age, counters and probability that it had on the day of
    the query. By default they are used where the item tower reads any of these.
    """
    groups = group_by_columns(dataset, settings.group_by, examples, batch_size=settings.batch_size)
    span = settings.group_by_time
    if span == "auto":
        competes = not isinstance(settings.loss, Bce | Regression)
        is_timed = any(map(reads_time, dataset.features.features.item))
        span = "day" if groups is None and competes and is_timed else "none"
    if span == "none":
        return groups
    at = np.asarray(dataset.examples["train"].at[examples])
    least = MIN_BATCHES * settings.batch_size
    spans = group_by_span(at, HOUR_MS if span == "hour" else DAY_MS, min_examples=least)
    if groups is not None:
        spans = _filled(_numbered(groups.astype(np.int64) * (spans.max() + 1) + spans), settings.batch_size)
    return spans.astype(np.int32) if spans.max(initial=0) > 0 else None


def group_by_span(
    at: Int64[np.ndarray, "examples"], span_ms: int, *, min_examples: int
) -> Int64[np.ndarray, "examples"]:
    """Returns a number per span of time, ascending. Spans of fewer than `min_examples` are joined with the next ones,
    and what is left at the end with the one before.

    >>> group_by_span(np.array([5, 12, 13, 25, 38]), 10, min_examples=2).tolist()
    [0, 0, 0, 1, 1]
    """
    spans, index, counts = np.unique(at // span_ms, return_inverse=True, return_counts=True)
    group_of_span, group, size = np.zeros(len(spans), np.int64), 0, 0
    for number, count in enumerate(counts):
        if size >= min_examples:
            group, size = group + 1, 0
        group_of_span[number], size = group, size + count
    if size < min_examples:
        group_of_span[group_of_span == group] = max(group - 1, 0)
    grouped: np.ndarray = group_of_span[index]
    return grouped


def group_by_columns(
    dataset: Dataset, columns: tuple[str, ...], examples: Int64[np.ndarray, "examples"], *, batch_size: int
) -> Int32[np.ndarray, "examples"] | None:
    """Returns the group of each training example: equal values of every column, NULL included; `None` without columns.

    In a batch that is not full, an example would weigh too much. Groups smaller than a batch are therefore merged, and
    if they still do not fill one, they join the smallest group that does. Raises DataError if one group is left.
    """
    if not columns:
        return None
    groups = np.zeros(len(examples), np.int64)
    for column in columns:
        codes = _codes(dataset, column, examples)
        if len(codes) and (codes == codes[0]).all():
            raise DataError(
                f"train.group_by: {column} has a single value in the {len(examples):,} training examples, so there "
                f"is nothing to group. Delete it from train.group_by."
            )
        groups = _numbered(groups * (codes.max(initial=0) + 1) + codes)
    num_groups, groups = len(np.unique(groups)), _filled(groups, batch_size)
    if groups.max(initial=0) == 0:
        raise DataError(
            f"train.group_by: of the {num_groups:,} groups of {', '.join(columns)}, fewer than two fill a batch of "
            f"{batch_size:,} rows, so that one would be left. Lower train.batch_size, or group by a column of fewer "
            f"values."
        )
    return groups.astype(np.int32)


def group_by_tower(
    dataset: Dataset, model: MultiTower, examples: Int64[np.ndarray, "examples"], *, batch_size: int
) -> Int32[np.ndarray, "examples"]:
    """Returns the tower of each training example; raises DataError if a tower would never get a full batch."""
    groups: Int32[np.ndarray, "examples"] = model.tower_of_item[dataset.examples["train"].item_rows[examples]].astype(
        np.int32
    )
    counts = np.bincount(groups, minlength=len(model.values))
    short = sorted(np.flatnonzero(counts < batch_size), key=lambda tower: counts[tower])
    if short:
        named = ", ".join(f"{model.values[tower]} ({counts[tower]:,})" for tower in short[:5])
        raise DataError(
            f"retriever.separate_towers_by: {len(short)} of the {len(counts)} values have fewer rows to learn from "
            f"than a batch of {batch_size:,}, so that their towers would learn nothing: "
            f"{named}{', …' * (len(short) > 5)}. Lower train.batch_size, or leave their events out with prepare.where."
        )
    return groups


def _codes(dataset: Dataset, column: str, examples: Int64[np.ndarray, "examples"]) -> Int64[np.ndarray, "examples"]:
    """Returns a number per value of the item's column, or of the user's if items have no such column."""
    rows = dataset.examples["train"]
    side, values = attribute_column(dataset.folder, column)
    encoded = values.combine_chunks().dictionary_encode(null_encoding="encode").indices
    codes: np.ndarray = np.asarray(encoded).astype(np.int64)
    group_codes: np.ndarray = codes[(rows.item_rows if side == "item" else rows.user_rows)[examples]]
    return group_codes


def _filled(groups: Int64[np.ndarray, "examples"], batch_size: int) -> Int64[np.ndarray, "examples"]:
    counts = np.bincount(groups)
    small = counts < batch_size
    if small.any() and not small.all() and counts[small].sum() < batch_size:
        small[np.argmin(np.where(small, len(groups) + 1, counts))] = True
    return _numbered(np.where(small[groups], -1, groups))


def _numbered(keys: Int64[np.ndarray, "examples"]) -> Int64[np.ndarray, "examples"]:
    """Numbers the distinct keys 0, 1, 2, … in ascending order."""
    numbers: np.ndarray = np.unique(keys, return_inverse=True)[1]
    return numbers
