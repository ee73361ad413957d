"""Who plays the negative, and how often: the probabilities that corrections for sampling need."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from twofold.dataset.arrays import Dataset
from twofold.dataset.batches import Batch, TensorInputs, to_tensors
from twofold.dataset.features import item_inputs


def log_in_batch_probability(item_rows: Int64[np.ndarray, "rows"], num_items: int) -> Float32[np.ndarray, "items"]:
    """log Q(j): the chance that one position of a shuffled batch holds item j, counted on the rows that batches are
    made of.

    An item that no batch can hold gets -inf and must not be asked for. Never clipped: a floor (1e-6 in TFRS) leaves
    the tail of a large catalogue uncorrected.

    >>> np.exp(log_in_batch_probability(np.array([0, 0, 0, 2]), 3)).round(2).tolist()
    [0.75, 0.0, 0.25]
    """
    counts = np.bincount(item_rows, minlength=num_items)
    with np.errstate(divide="ignore"):
        log_q: np.ndarray = np.log(counts / max(len(item_rows), 1)).astype(np.float32)
    return log_q


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


def drawn_inputs(dataset: Dataset, batch: Batch, drawn: Int64[Tensor, "drawn"]) -> TensorInputs:
    """What the item tower reads of items that are drawn for a batch, each at the moment of some line."""
    moments = batch.at[torch.randint(len(batch.at), drawn.shape)]
    state, arrays = dataset.features, dataset.item_arrays
    return to_tensors(item_inputs(state, arrays, item_rows=drawn.numpy(), at=moments.numpy()))
