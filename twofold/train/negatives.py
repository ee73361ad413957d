"""Who plays the negative, and how often: the probabilities that corrections for sampling need."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor

from twofold.dataset.batches import Batch, TensorInputs, to_tensors
from twofold.dataset.dataset import Dataset
from twofold.dataset.tower_inputs import item_inputs
from twofold.train.distributed import SINGLE_PROCESS, ProcessGroup, all_gather


@dataclass(frozen=True)
class InBatchProbability:
    """Q(j): the chance that one position of a batch holds item j, counted on the rows that batches are made of, in each
    group by itself where batches are grouped.

    Never clipped: a floor (1e-6 in TFRS) leaves the tail of a large catalogue uncorrected.
    """

    num_items: int
    keys: Int64[Tensor, "pairs"]
    """group · num_items + item of every pair that occurs, rising."""
    log_q: Float[Tensor, "pairs"]

    def on(self, device: torch.device) -> "InBatchProbability":
        """The same, there."""
        return replace(self, keys=self.keys.to(device), log_q=self.log_q.to(device))

    def log(self, item_rows: Int64[Tensor, "columns"], *, group: int = 0) -> Float[Tensor, "columns"]:
        """log Q of each; -inf where no batch of the group can hold it."""
        wanted = group * self.num_items + item_rows
        places = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
        return self.log_q[places].masked_fill(self.keys[places] != wanted, -torch.inf)


def count_in_batch(
    item_rows: Int64[np.ndarray, "rows"], groups: Int32[np.ndarray, "rows"] | None = None, *, num_items: int
) -> InBatchProbability:
    """Counts on the item of each row that batches are made of.

    >>> count_in_batch(np.array([0, 0, 0, 2]), num_items=3).log(torch.arange(3)).exp()
    tensor([0.7500, 0.0000, 0.2500])
    """
    of = np.zeros(len(item_rows), np.int32) if groups is None else groups
    keys, counts = np.unique(of.astype(np.int64) * num_items + item_rows, return_counts=True)
    shares = counts / np.bincount(of)[keys // num_items]
    return InBatchProbability(num_items, torch.from_numpy(keys), torch.from_numpy(np.log(shares).astype(np.float32)))


def log_mixed_probability(
    log_q: Float[Tensor, "columns"], *, batch: int, uniform: int, num_items: int
) -> Float[Tensor, "columns"]:
    """log of the chance that a column holds its item, where `batch` columns are the batch's and `uniform` are drawn
    from `num_items` (Yang et al., *Mixed negative sampling*, WWW 2020 companion, section 3.3).

    >>> q = log_mixed_probability(torch.tensor([0.5]).log(), batch=3, uniform=1, num_items=10).exp()
    >>> round(float(q), 3), (3 * 0.5 + 1 * 0.1) / 4
    (0.4, 0.4)
    """
    if uniform == 0:
        return log_q
    return torch.log((batch * log_q.exp() + uniform / num_items) / (batch + uniform))


def log_expected_counts(
    competing: Bool[Tensor, "lines columns"],
    *,
    own_q: Float[Tensor, "lines"],
    column_q: Float[Tensor, "columns"],
    in_batch: int,
    num_items: int,
) -> Float[Tensor, "lines columns"]:
    """log of how often a line's competing columns are expected to hold the item of each column, which is not its own.

    The first `in_batch` columns are the batch's: each holds j with Q'(j) = Q(j) / (1 - Q(own)), the chance given that
    it is not the line's own item. The others are drawn from `num_items` items, each as likely.
    """
    popular = competing[:, :in_batch].sum(dim=1) / (1 - own_q).clamp(min=torch.finfo(own_q.dtype).tiny)
    uniform = competing[:, in_batch:].sum(dim=1) / max(num_items - 1, 1)
    return torch.log(popular[:, None] * column_q + uniform[:, None])


@dataclass(frozen=True)
class HardNegativePool:
    """Items that the model ranks high for each user that is learned from, -1 behind the last; see `mining`."""

    user_rows: Int64[np.ndarray, "users"]
    """Rising."""
    item_rows: Int32[np.ndarray, "users ranks"]
    counts: Int64[np.ndarray, "users"]

    def draw(
        self, user_rows: Int64[Tensor, "batch"], each: int
    ) -> tuple[Int64[Tensor, "batch each"], Int64[Tensor, "batch"]]:
        """For each line so many of its user's items, each as likely, or -1; and of how many they are drawn."""
        places = np.searchsorted(self.user_rows, user_rows.numpy())
        counts = self.counts[places]
        ranks = (torch.rand(len(places), each, dtype=torch.float64).numpy() * counts[:, None]).astype(np.int64)
        item_rows = self.item_rows[places[:, None], ranks].astype(np.int64)
        return torch.from_numpy(item_rows), torch.from_numpy(counts)


def drawn_inputs(
    dataset: Dataset, batch: Batch, drawn: Int64[Tensor, "drawn"], *, ranks: ProcessGroup = SINGLE_PROCESS
) -> TensorInputs:
    """What the item tower reads of items that are drawn for a batch, each at the moment of some line; the share of this
    rank, where each draws the same.
    """
    at = all_gather(ranks, batch.at).cpu()
    moments, share = at[torch.randint(len(at), drawn.shape)], ranks.share(len(drawn))
    state, arrays = dataset.features, dataset.item_arrays
    inputs = item_inputs(state, arrays, item_rows=drawn[share].numpy(), at=moments[share].numpy())
    return {name: values.to(ranks.device) for name, values in to_tensors(inputs).items()}
