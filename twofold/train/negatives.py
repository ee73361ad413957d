"""Sampling of negatives, with the probabilities that the correction of the loss needs."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int32, Int64
from torch import Tensor

from twofold.dataset.batches import Batch, TensorInputs, to_tensors
from twofold.dataset.dataset import Dataset
from twofold.dataset.example_blocks import count_keys
from twofold.dataset.tower_inputs import item_inputs
from twofold.train.device import tensor_on
from twofold.train.distributed import SINGLE_PROCESS, ProcessGroup, all_gather


@dataclass(frozen=True)
class InBatchProbability:
    """Q(j): the probability that one position of a batch holds item j, counted on the training examples; per group if
    batches are grouped.

    Never clipped: a floor (1e-6 in TFRS) leaves the tail of a large catalogue uncorrected.
    """

    num_items: int
    keys: Int64[Tensor, "pairs"]
    """group · num_items + item of every pair that occurs, ascending."""
    log_q: Float[Tensor, "pairs"]

    def on(self, device: torch.device) -> "InBatchProbability":
        """Returns the same probabilities on another device."""
        return replace(self, keys=self.keys.to(device), log_q=self.log_q.to(device))

    def log(self, item_rows: Int64[Tensor, "items"], *, group: int = 0) -> Float[Tensor, "items"]:
        """Returns log Q of each item; -inf for an item that no batch of the group can hold."""
        keys = group * self.num_items + item_rows
        found = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        return self.log_q[found].masked_fill(self.keys[found] != keys, -torch.inf)


def count_in_batch(keys: Iterable[Int64[np.ndarray, "_"]], *, num_items: int) -> InBatchProbability:
    """Counts the keys, group · num_items + item, of the training examples in parts.

    >>> count_in_batch([np.array([0, 0]), np.array([0, 2])], num_items=3).log(torch.arange(3)).exp()
    tensor([0.7500, 0.0000, 0.2500])
    """
    distinct, counts = count_keys(keys)
    groups = distinct // num_items
    totals = np.zeros(int(groups.max(initial=-1)) + 1, np.int64)
    np.add.at(totals, groups, counts)
    log_q = np.log(counts / totals[groups]).astype(np.float32)
    return InBatchProbability(num_items, torch.from_numpy(distinct), torch.from_numpy(log_q))


def log_mixed_probability(
    log_q: Float[Tensor, "items"], *, batch: int, uniform: int, num_items: int
) -> Float[Tensor, "items"]:
    """Returns the log-probability that a column holds its item, for `batch` columns of the batch and `uniform` columns
    drawn from `num_items` (Yang et al., *Mixed negative sampling*, WWW 2020 companion, section 3.3).

    >>> q = log_mixed_probability(torch.tensor([0.5]).log(), batch=3, uniform=1, num_items=10).exp()
    >>> round(float(q), 3), (3 * 0.5 + 1 * 0.1) / 4
    (0.4, 0.4)
    """
    if uniform == 0:
        return log_q
    return torch.log((batch * log_q.exp() + uniform / num_items) / (batch + uniform))


def mixed_log_q(
    counts: Int64[np.ndarray, "items"], *, batch: int, uniform: int, num_items: int
) -> Float32[np.ndarray, "items"]:
    """Returns `log_mixed_probability` of each item from its number of training examples."""
    log_q = torch.from_numpy(np.log(counts / counts.sum()).astype(np.float32))
    return log_mixed_probability(log_q, batch=batch, uniform=uniform, num_items=num_items).numpy()


@dataclass(frozen=True)
class HardNegativePool:
    """Items that the model ranks high for each user of the training examples, padded with -1; see `hard_negatives`."""

    user_rows: Int64[np.ndarray, "users"]
    """Ascending."""
    item_rows: Int32[np.ndarray, "users k"]
    counts: Int64[np.ndarray, "users"]

    def draw(
        self, user_rows: Int64[Tensor, "batch"], num: int
    ) -> tuple[Int64[Tensor, "batch _"], Int64[Tensor, "batch"]]:
        """Draws `num` items of each user uniformly, or -1 without any; also returns the size of each pool."""
        users = np.searchsorted(self.user_rows, user_rows.numpy())
        counts = self.counts[users]
        ranks = (torch.rand(len(users), num, dtype=torch.float64).numpy() * counts[:, None]).astype(np.int64)
        item_rows = self.item_rows[users[:, None], ranks].astype(np.int64)
        return torch.from_numpy(item_rows), torch.from_numpy(counts)


def of_all_ranks(ranks: ProcessGroup, batch: Batch, column: Literal["at", "item_rows"]) -> Int[Tensor, "_"]:
    """Returns a column of the whole batch, on the CPU: what draws depend on must be the same on every rank."""
    if ranks.size == 1:
        return batch.on_host.at if column == "at" else batch.on_host.item_rows
    return all_gather(ranks, batch.at if column == "at" else batch.item_rows).cpu()


def sampled_inputs(
    dataset: Dataset, batch: Batch, drawn: Int64[Tensor, "_"], *, ranks: ProcessGroup = SINGLE_PROCESS
) -> TensorInputs:
    """Returns the item tower's inputs for sampled items, each at the timestamp of some example of the batch. Every rank
    draws the same and returns its own share.
    """
    at = of_all_ranks(ranks, batch, "at")
    times, share = at[torch.randint(len(at), drawn.shape)], ranks.share(len(drawn))
    state, arrays = dataset.features, dataset.item_arrays
    inputs = item_inputs(state, arrays, item_rows=drawn[share].numpy(), at=times[share].numpy())
    return {name: tensor_on(ranks.device, values) for name, values in to_tensors(inputs).items()}
