"""Groups of training examples: a batch holds one day, one value of some columns, such as one language, or one tower."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int64

from twofold.dataset.batch_order import Order
from twofold.dataset.dataset import Dataset, attribute_column
from twofold.dataset.example_blocks import ExampleBlocks, Groups, number_groups
from twofold.errors import DataError
from twofold.model.multi_tower import MultiTower
from twofold.recipe.features import reads_time
from twofold.recipe.train import Bce, Regression, Train
from twofold.tables import DAY_MS, HOUR_MS

MIN_BATCHES = 4
"""Smallest number of batches of a span of time: the examples beyond full batches wait for the next epoch, and with
groups of one or two batches these would be many."""
KeyOf = Callable[[Int64[np.ndarray, "examples"]], Int64[np.ndarray, "examples"]]
"""Function from row indices to a number of each."""


def group_examples(dataset: Dataset, settings: Train, examples: ExampleBlocks) -> Groups | None:
    """Returns the groups of training examples by `train.group_by` and `train.group_by_time`; `None` means one group.

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
    least = MIN_BATCHES * settings.batch_size
    spans = group_by_span(examples, HOUR_MS if span == "hour" else DAY_MS, min_examples=least)
    if groups is not None:
        spans = _filled(number_groups(examples, _pair(groups, spans.of, len(spans))), settings.batch_size)
    return spans if len(spans) > 1 else None


def sequences_of_a_batch(order: Order) -> int | None:
    """Returns about how many sequences the examples of a batch share: at most `max_run` consecutive examples of a user
    and group one, and those that the edge of a part of the batch divides. `None` means that no examples share one.
    """
    if order.max_run == 1:
        return None
    runs, num_groups = 0, 1 if order.groups is None else len(order.groups)
    for part in order.examples:
        keys = np.asarray(order.examples.rows.user_rows[part]) * num_groups
        _, counts = np.unique(keys if order.groups is None else keys + order.groups.of(part), return_counts=True)
        runs += int((-(-counts // order.max_run) + (counts > order.max_run)).sum())
    cuts = -(-order.batch_size // (order.micro_batch_size or order.batch_size))
    return min(-(-runs // len(order)) + cuts, order.batch_size)


def group_by_span(examples: ExampleBlocks, span_ms: int, *, min_examples: int) -> Groups:
    """Returns a group per span of time, ascending. Spans of fewer than `min_examples` are joined with the next ones,
    and what is left at the end with the one before.
    """
    spans = number_groups(examples, lambda indices: examples.rows.at[indices] // span_ms)
    new, group, size = np.zeros(len(spans), np.int64), 0, 0
    for number, count in enumerate(spans.counts):
        if size >= min_examples:
            group, size = group + 1, 0
        new[number], size = group, size + count
    if size < min_examples:
        new[new == group] = max(group - 1, 0)
    return spans.renamed(new)


def group_by_columns(
    dataset: Dataset, columns: tuple[str, ...], examples: ExampleBlocks, *, batch_size: int
) -> Groups | None:
    """Returns the groups of training examples: equal values of every column, NULL included; `None` without columns.

    In a batch that is not full, an example would weigh too much. Groups smaller than a batch are therefore merged, and
    if they still do not fill one, they join the smallest group that does. Raises DataError if one group is left.
    """
    groups: Groups | None = None
    for column in columns:
        code_of, num_codes = _codes(dataset, column)
        codes = number_groups(examples, code_of)
        if len(codes) == 1:
            raise DataError(
                f"train.group_by: {column} has a single value in the {codes.counts.sum():,} training examples, so "
                f"there is nothing to group. Delete it from train.group_by."
            )
        groups = codes if groups is None else number_groups(examples, _pair(groups, code_of, num_codes))
    if groups is None:
        return None
    filled = _filled(groups, batch_size)
    if len(filled) == 1:
        raise DataError(
            f"train.group_by: of the {len(groups):,} groups of {', '.join(columns)}, fewer than two fill a batch of "
            f"{batch_size:,} rows, so that one would be left. Lower train.batch_size, or group by a column of fewer "
            f"values."
        )
    return filled


def group_by_tower(dataset: Dataset, model: MultiTower, examples: ExampleBlocks, *, batch_size: int) -> Groups:
    """Returns the training examples of each tower; raises DataError if a tower would never get a full batch."""
    item_rows, num_towers = dataset.examples["train"].item_rows, len(model.values)
    towers = model.tower_of_item.astype(np.int64)
    counts = np.zeros(num_towers, np.int64)
    for part in examples:
        counts += np.bincount(towers[item_rows[part]], minlength=num_towers)
    short = sorted(np.flatnonzero(counts < batch_size), key=lambda tower: counts[tower])
    if short:
        named = ", ".join(f"{model.values[tower]} ({counts[tower]:,})" for tower in short[:5])
        raise DataError(
            f"retriever.separate_towers_by: {len(short)} of the {len(counts)} values have fewer rows to learn from "
            f"than a batch of {batch_size:,}, so that their towers would learn nothing: "
            f"{named}{', …' * (len(short) > 5)}. Lower train.batch_size, or leave their events out with prepare.where."
        )
    return Groups(lambda indices: towers[item_rows[indices]], counts)


def _pair(first: Groups, second: KeyOf, num_second: int) -> KeyOf:
    """Returns a key for each pair of a group and a number below `num_second`, in the order of the groups."""
    return lambda indices: first.of(indices) * num_second + second(indices)


def _codes(dataset: Dataset, column: str) -> tuple[KeyOf, int]:
    """Returns a function from examples to codes of their items' values of a column, and how many codes there are.

    If items have no such column, it reads that of the users.
    """
    rows = dataset.examples["train"]
    side, values = attribute_column(dataset.folder, column)
    encoded = values.combine_chunks().dictionary_encode(null_encoding="encode").indices
    codes: np.ndarray = np.asarray(encoded).astype(np.int64)
    row_of = rows.item_rows if side == "item" else rows.user_rows
    return lambda indices: codes[row_of[indices]], int(codes.max(initial=0)) + 1


def _filled(groups: Groups, batch_size: int) -> Groups:
    """Merges the groups of fewer examples than a batch, and puts them first."""
    counts = groups.counts
    small = counts < batch_size
    if small.any() and not small.all() and counts[small].sum() < batch_size:
        small[np.argmin(np.where(small, counts.sum() + 1, counts))] = True
    return groups.renamed(np.where(small, 0, np.cumsum(~small) - 1 + small.any()))
