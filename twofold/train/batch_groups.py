"""Groups of training examples, so that a batch holds one value of some columns, such as one language, or one tower."""

import numpy as np
from jaxtyping import Int32, Int64

from twofold.dataset.dataset import Dataset, attribute_column
from twofold.errors import DataError
from twofold.model.multi_tower import MultiTower


def group_examples(
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
