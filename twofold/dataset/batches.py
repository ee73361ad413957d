"""Batches of tensors from memory-mapped arrays; histories are gathered by their offsets, never stored as lists."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from twofold.dataset.batch_order import Order
from twofold.dataset.dataset import Dataset
from twofold.dataset.examples import Examples
from twofold.dataset.npy import read_ahead, release
from twofold.dataset.sequences import sequence_inputs
from twofold.dataset.tower_inputs import Inputs, Queries, item_inputs, queries_at, user_inputs
from twofold.ragged import chunks

TensorInputs = Mapping[str, Tensor]
QUERY_EVENTS = 2**16
"""Number of history events encoded at once for queries: a sequence encoder holds some kilobytes for each."""
QUERY_PAIRS = 2**22
"""Number of pairs of history events encoded at once if times between them are read: some bytes per head and pair."""
ITEMS_PER_BATCH = 2**16
ITEM_VALUES = 2**26
"""Number of places for values of lists, such as tags, in a batch of items: a list of thousands pads those beside it."""


@dataclass(frozen=True)
class Batch:
    """A batch of examples: the inputs of both towers, and the columns that losses read."""

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
    """Group of all examples of the batch: see `Order`."""
    parts: tuple["Batch", ...] = ()
    """Parts that are encoded one after another; a batch with parts has no inputs of its own. Empty means no parts."""
    host: "Batch | None" = None
    """The batch on the CPU, which random draws read without waiting for a device; `None` means this one."""

    @property
    def on_host(self) -> "Batch":
        """The batch on the CPU."""
        return self.host or self


def to_tensors(inputs: Inputs) -> TensorInputs:
    """Converts arrays to tensors, without a copy if NumPy owns the memory."""
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in inputs.items()}


def gather_batch(dataset: Dataset, examples: Examples, indices: Int64[np.ndarray, "batch"]) -> Batch:
    """Gathers the examples at these indices: histories strictly before each example, item features at its time."""
    state, batch = dataset.features, examples.take(indices)
    user_rows, item_rows, at = (np.ascontiguousarray(part) for part in (batch.user_rows, batch.item_rows, batch.at))
    longest_positives, longest_negatives = (
        state.history_length(events, sequences=False) for events in ("positives", "negatives")
    )
    positives = dataset.positives.last(user_rows, batch.positives_before, n=longest_positives)
    negatives = dataset.negatives.last(user_rows, batch.negatives_before, n=longest_negatives)
    queries = Queries(user_rows, at, positives, negatives, batch.at_is_known)
    sequences = sequence_inputs(state, dataset.positives, batch)
    columns = to_tensors({name: getattr(batch, name) for name in ("label", "target", "length_s", "weight")})
    return Batch(
        user=to_tensors(user_inputs(state, dataset.user_arrays, queries, batch.counter_values, sequences=sequences)),
        item=to_tensors(
            item_inputs(state, dataset.item_arrays, item_rows=item_rows, at=at, counts=batch.counter_values)
        ),
        user_rows=torch.from_numpy(user_rows),
        item_rows=torch.from_numpy(item_rows),
        at=torch.from_numpy(at),
        label=columns["label"],
        target=columns["target"],
        length_s=columns["length_s"],
        weight=columns["weight"],
    )


def epoch_batches(
    dataset: Dataset, examples: Examples, order: Order, *, seed: tuple[int, int], first: int, share: slice = slice(None)
) -> Iterator[Batch]:
    """Yields this share of each batch of the epoch with `seed` = (run, epoch), from batch number `first` on."""
    for made in order.epoch(seed):
        skipped = min(first, len(made.indices))
        first -= skipped
        if skipped == len(made.indices):
            continue
        for number in (made.block, made.following):
            if number is not None:
                _advise_block(dataset, examples, order.examples.part(number), read_ahead)
        for indices, group in zip(made.indices[skipped:, share], made.groups[skipped:], strict=True):
            parts = [
                gather_batch(dataset, examples, indices[part])
                for part in chunks(len(indices), order.micro_batch_size or len(indices))
            ]
            batch = parts[0] if len(parts) == 1 else _joined(parts)
            yield batch if order.groups is None else replace(batch, group=int(group))
        if len(order.examples) > 1:
            _advise_block(dataset, examples, order.examples.part(made.block), release)


def _advise_block(
    dataset: Dataset, examples: Examples, part: slice, advise: Callable[[np.ndarray, slice], None]
) -> None:
    """Passes advice on what a batch reads of a block: the rows, and the histories of their users."""
    for values in (examples.records, *examples.counter_values.values(), *examples.outcomes.values()):
        advise(values, part)
    users = examples.user_rows[part.start], examples.user_rows[part.stop - 1] + 1
    state = dataset.features
    for histories, length, is_timed in (
        (dataset.positives, state.history_length("positives"), state.reads_times),
        (dataset.negatives, state.history_length("negatives"), False),
    ):
        events = slice(int(histories.offsets[users[0]]), int(histories.offsets[users[1]]))
        for values in (histories.item_rows, histories.at)[: (length > 0) + is_timed]:
            advise(values, events)


def _joined(parts: list[Batch]) -> Batch:
    """Joins batches to one, whose inputs stay in parts: a tower may read more than one row of inputs per example."""

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
    """Yields the inputs of the user tower for these users at these times, in chunks."""
    state, arrays = dataset.features, dataset.user_arrays
    longest = max(1, *(state.history_length(events) for events in ("positives", "negatives")))
    size = QUERY_EVENTS // longest if not state.reads_times else min(QUERY_EVENTS // longest, QUERY_PAIRS // longest**2)
    for part in chunks(len(user_rows), max(size, 1)):
        queries = queries_at(state, dataset.positives, dataset.negatives, user_rows=user_rows[part], at=at[part])
        yield to_tensors(user_inputs(state, arrays, queries))


def item_batches(dataset: Dataset, at: int, *, as_new: bool = False) -> Iterator[TensorInputs]:
    """Yields the inputs of the item tower for the whole catalogue at one time, in chunks.

    `as_new` describes every item as if it were new: see `item_inputs`.
    """
    state, arrays = dataset.features, dataset.item_arrays
    longest = max((int(lists.sizes.max(initial=0)) for lists in arrays.bags.values()), default=0)
    for part in chunks(len(dataset.items), max(min(ITEMS_PER_BATCH, ITEM_VALUES // max(longest, 1)), 1)):
        item_rows = np.arange(part.start, part.stop)
        timestamps = np.full(len(item_rows), at, np.int64)
        is_new = np.ones(len(item_rows), bool) if as_new else None
        yield to_tensors(item_inputs(state, arrays, item_rows=item_rows, at=timestamps, is_new=is_new))
