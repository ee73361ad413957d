"""Rows grouped by columns of their item or user, so that a batch holds one language, or one city, alone; or by the
towers that learn from them.
"""

import numpy as np
from jaxtyping import Int32, Int64

from twofold.dataset.dataset import Dataset, attribute_column
from twofold.errors import DataError
from twofold.model.multi_tower import MultiTower


def group_lines(
    dataset: Dataset, columns: tuple[str, ...], lines: Int64[np.ndarray, "lines"], *, batch_size: int
) -> Int32[np.ndarray, "lines"] | None:
    """The group of each training line: lines of one value of every column; None without columns. NULL is a value.

    Groups that do not fill a batch would teach too much a line in small ones, so they make up a rest together; where
    the rest does not fill a batch either, it joins the smallest group that does. DataError if that leaves one group.
    """
    if not columns:
        return None
    groups = np.zeros(len(lines), np.int64)
    for column in columns:
        codes = _codes(dataset, column, lines)
        if len(codes) and (codes == codes[0]).all():
            raise DataError(
                f"train.group_by: {column} has one value alone in the {len(lines):,} rows to learn from, so that there "
                f"is nothing to group. Delete it from train.group_by."
            )
        groups = _numbered(groups * (codes.max(initial=0) + 1) + codes)
    found, groups = len(np.unique(groups)), _filled(groups, batch_size)
    if groups.max(initial=0) == 0:
        raise DataError(
            f"train.group_by: of the {found:,} groups of {', '.join(columns)}, fewer than two fill a batch of "
            f"{batch_size:,} rows, so that one would be left. Lower train.batch_size, or group by a column of fewer "
            f"values."
        )
    return groups.astype(np.int32)


def lines_per_tower(
    dataset: Dataset, model: MultiTower, lines: Int64[np.ndarray, "lines"], *, batch_size: int
) -> Int32[np.ndarray, "lines"]:
    """The place of the towers that each training line is for; DataError where some would never see a batch."""
    groups: Int32[np.ndarray, "lines"] = model.tower_of_item[dataset.examples["train"].item_rows[lines]].astype(
        np.int32
    )
    counts = np.bincount(groups, minlength=len(model.values))
    short = sorted(np.flatnonzero(counts < batch_size), key=lambda place: counts[place])
    if short:
        named = ", ".join(f"{model.values[place]} ({counts[place]:,})" for place in short[:5])
        raise DataError(
            f"retriever.separate_towers_by: {len(short)} of the {len(counts)} values have fewer rows to learn from "
            f"than a batch of {batch_size:,}, so that their towers would learn nothing: "
            f"{named}{', …' * (len(short) > 5)}. Lower train.batch_size, or leave their events out with prepare.where."
        )
    return groups


def _codes(dataset: Dataset, column: str, lines: Int64[np.ndarray, "lines"]) -> Int64[np.ndarray, "lines"]:
    """A number a value: the item's, or the user's where items have no such column."""
    rows = dataset.examples["train"]
    of, values = attribute_column(dataset.folder, column)
    encoded = values.combine_chunks().dictionary_encode(null_encoding="encode").indices
    codes: np.ndarray = np.asarray(encoded).astype(np.int64)
    found: np.ndarray = codes[(rows.item_rows if of == "item" else rows.user_rows)[lines]]
    return found


def _filled(groups: Int64[np.ndarray, "lines"], batch_size: int) -> Int64[np.ndarray, "lines"]:
    counts = np.bincount(groups)
    small = counts < batch_size
    if small.any() and not small.all() and counts[small].sum() < batch_size:
        small[np.argmin(np.where(small, len(groups) + 1, counts))] = True
    return _numbered(np.where(small[groups], -1, groups))


def _numbered(keys: Int64[np.ndarray, "lines"]) -> Int64[np.ndarray, "lines"]:
    """0, 1, 2, … in the order of the keys."""
    numbers: np.ndarray = np.unique(keys, return_inverse=True)[1]
    return numbers
