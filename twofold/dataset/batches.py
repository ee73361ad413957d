"""Memory-mapped arrays → frozen batches of tensors; histories are gathered from offsets, never stored as lists."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from twofold.dataset.arrays import Dataset, Rows
from twofold.dataset.features import Inputs, item_inputs, user_inputs
from twofold.topk import blocks

TensorInputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """Queries and their targets, line by line: what the towers read, and what the loss needs to know of the lines."""

    user: TensorInputs
    item: TensorInputs
    user_rows: Int[Tensor, "batch"]
    item_rows: Int[Tensor, "batch"]
    weight: Float[Tensor, "batch"]


def to_tensors(inputs: Inputs) -> TensorInputs:
    """The same arrays as tensors; no copy where NumPy owns the memory."""
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in inputs.items()}


def gather_batch(dataset: Dataset, rows: Rows, lines: Int64[np.ndarray, "batch"]) -> Batch:
    """The batch of these lines: histories strictly before each line's own moment, item features at that moment."""
    user_rows, item_rows, at = rows.user_rows[lines], rows.item_rows[lines], rows.at[lines]
    user = user_inputs(
        dataset.features,
        positives=dataset.positives.last(
            user_rows, rows.positives_before[lines], n=history_length(dataset, "positives")
        ),
        negatives=dataset.negatives.last(
            user_rows, rows.negatives_before[lines], n=history_length(dataset, "negatives")
        ),
        at=at,
        at_is_known=rows.at_is_known[lines],
    )
    return Batch(
        user=to_tensors(user),
        item=to_tensors(item_inputs(dataset.features, dataset.item_arrays, item_rows, at)),
        user_rows=torch.from_numpy(user_rows),
        item_rows=torch.from_numpy(item_rows),
        weight=torch.from_numpy(rows.weight[lines]),
    )


def epoch_batches(
    dataset: Dataset,
    rows: Rows,
    lines: Int64[np.ndarray, "lines"],
    *,
    batch_size: int,
    seed: tuple[int, int],
    first: int,
) -> Iterator[Batch]:
    """Batches of one epoch in the order that `seed` = (run, epoch) fixes, from batch number `first` on.

    The order is a function of the seed alone, so a resumed run sees the batches the killed one would have seen. Lines
    that do not fill a batch wait for the next epoch's shuffle; if all of them fit in one batch, that batch is used as
    it is.
    """
    order = np.random.default_rng(seed).permutation(lines)
    for number in range(first, num_batches(len(lines), batch_size)):
        yield gather_batch(dataset, rows, order[number * batch_size : (number + 1) * batch_size])


def num_batches(lines: int, batch_size: int) -> int:
    """Batches in an epoch."""
    return max(lines // batch_size, 1)


def history_length(dataset: Dataset, of: str) -> int:
    """How many events of this kind the user tower reads; 0 if it does not read them."""
    return next(
        (feature.last for feature in dataset.features.features.user if feature.kind == "history" and feature.of == of),
        0,
    )


def query_batches(
    dataset: Dataset, user_rows: Int64[np.ndarray, "queries"], at: Int64[np.ndarray, "queries"], *, size: int = 4096
) -> Iterator[TensorInputs]:
    """What the user tower reads when these users ask at these moments, in blocks."""
    for part in blocks(len(user_rows), size):
        inputs = {}
        for of, histories in (("positives", dataset.positives), ("negatives", dataset.negatives)):
            before = histories.before(user_rows[part], at[part])
            inputs[of] = histories.last(user_rows[part], before, n=history_length(dataset, of))
        yield to_tensors(
            user_inputs(dataset.features, positives=inputs["positives"], negatives=inputs["negatives"], at=at[part])
        )


def item_batches(dataset: Dataset, at: int, *, size: int = 65_536) -> Iterator[TensorInputs]:
    """What the item tower reads of the whole catalogue at one moment, in blocks."""
    for part in blocks(len(dataset.items), size):
        item_rows = np.arange(part.start, part.stop)
        moments = np.full(len(item_rows), at, np.int64)
        yield to_tensors(item_inputs(dataset.features, dataset.item_arrays, item_rows, moments))
