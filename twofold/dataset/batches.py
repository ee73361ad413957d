"""Memory-mapped arrays → frozen batches of tensors; histories are gathered from offsets, never stored as lists."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from twofold.dataset.batch_order import Order
from twofold.dataset.dataset import Dataset
from twofold.dataset.examples import Examples
from twofold.dataset.features import Inputs, Queries, item_inputs, queries_at, user_inputs
from twofold.dataset.sequences import sequence_inputs
from twofold.ragged import chunks

TensorInputs = Mapping[str, Tensor]
QUERY_EVENTS = 2**16
"""Of histories at once, where users ask: a sequence encoder holds some kilobytes for each."""
QUERY_PAIRS = 2**22
"""Of events of one history at once, where times between them are read: some bytes a head and pair."""


@dataclass(frozen=True)
class Batch:
    """Queries and their targets, line by line: what the towers read, and what the loss needs to know of the lines."""

    user: TensorInputs
    item: TensorInputs
    user_rows: Int[Tensor, "batch"]
    item_rows: Int[Tensor, "batch"]
    at: Int[Tensor, "batch"]
    label: Bool[Tensor, "batch"]
    target: Float[Tensor, "batch"]
    length_s: Float[Tensor, "batch"]
    weight: Float[Tensor, "batch"]
    group: int = 0
    """Of all its lines, where batches are grouped: see `Order`."""
    parts: tuple["Batch", ...] = ()
    """What is encoded at once, one after another, where that is not the whole; then it has no inputs of its own."""


def to_tensors(inputs: Inputs) -> TensorInputs:
    """The same arrays as tensors; no copy where NumPy owns the memory."""
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in inputs.items()}


def gather_batch(dataset: Dataset, rows: Examples, lines: Int64[np.ndarray, "batch"]) -> Batch:
    """The batch of these lines: histories strictly before each line's own moment, item features at that moment."""
    state, asked = dataset.features, rows.take(lines)
    user_rows, item_rows, at = (np.ascontiguousarray(part) for part in (asked.user_rows, asked.item_rows, asked.at))
    longest_positives, longest_negatives = (
        state.history_length(of, sequences=False) for of in ("positives", "negatives")
    )
    positives = dataset.positives.last(user_rows, asked.positives_before, n=longest_positives)
    negatives = dataset.negatives.last(user_rows, asked.negatives_before, n=longest_negatives)
    queries = Queries(user_rows, at, positives, negatives, asked.at_is_known)
    sequences = sequence_inputs(state, {"positives": dataset.positives, "negatives": dataset.negatives}, asked)
    facts = to_tensors({name: getattr(asked, name) for name in ("label", "target", "length_s", "weight")})
    return Batch(
        user=to_tensors(user_inputs(state, dataset.user_arrays, queries, asked.counted, sequences=sequences)),
        item=to_tensors(item_inputs(state, dataset.item_arrays, item_rows=item_rows, at=at, counts=asked.counted)),
        user_rows=torch.from_numpy(user_rows),
        item_rows=torch.from_numpy(item_rows),
        at=torch.from_numpy(at),
        label=facts["label"],
        target=facts["target"],
        length_s=facts["length_s"],
        weight=facts["weight"],
    )


def epoch_batches(
    dataset: Dataset, rows: Examples, order: Order, *, seed: tuple[int, int], first: int, share: slice = slice(None)
) -> Iterator[Batch]:
    """Batches of the epoch that `seed` = (run, epoch) names, from batch number `first` on; of each, this share."""
    for places in order.batches(seed)[first:, share]:
        parts = [
            gather_batch(dataset, rows, order.lines[places[part]])
            for part in chunks(len(places), order.at_once or len(places))
        ]
        batch = parts[0] if len(parts) == 1 else _joined(parts)
        yield batch if order.groups is None else replace(batch, group=int(order.groups[places[0]]))


def _joined(parts: list[Batch]) -> Batch:
    """One batch, its inputs left in parts: a tower may read more than a line of them for each line."""

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    return Batch(
        user={},
        item={},
        user_rows=joined("user_rows"),
        item_rows=joined("item_rows"),
        at=joined("at"),
        label=joined("label"),
        target=joined("target"),
        length_s=joined("length_s"),
        weight=joined("weight"),
        parts=tuple(parts),
    )


def query_batches(
    dataset: Dataset, user_rows: Int64[np.ndarray, "queries"], at: Int64[np.ndarray, "queries"]
) -> Iterator[TensorInputs]:
    """What the user tower reads when these users ask at these moments, in blocks."""
    state, arrays = dataset.features, dataset.user_arrays
    longest = max(1, *(state.history_length(of) for of in ("positives", "negatives")))
    is_timed = state.reads_times("positives") or state.reads_times("negatives")
    size = QUERY_EVENTS // longest if not is_timed else min(QUERY_EVENTS // longest, QUERY_PAIRS // longest**2)
    for part in chunks(len(user_rows), max(size, 1)):
        queries = queries_at(state, dataset.positives, dataset.negatives, user_rows=user_rows[part], at=at[part])
        yield to_tensors(user_inputs(state, arrays, queries))


def item_batches(dataset: Dataset, at: int, *, size: int = 65_536) -> Iterator[TensorInputs]:
    """What the item tower reads of the whole catalogue at one moment, in blocks."""
    state, arrays = dataset.features, dataset.item_arrays
    for part in chunks(len(dataset.items), size):
        item_rows = np.arange(part.start, part.stop)
        moments = np.full(len(item_rows), at, np.int64)
        yield to_tensors(item_inputs(state, arrays, item_rows=item_rows, at=moments))
