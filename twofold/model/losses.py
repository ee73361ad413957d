"""Losses as plain functions: vectors in, one loss a line out."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional


def in_batch_softmax(
    user_vectors: Float[Tensor, "batch dim"],
    item_vectors: Float[Tensor, "batch dim"],
    *,
    temperature: float,
    log_q: Float[Tensor, "batch"],
    masked: Bool[Tensor, "batch batch"],
) -> Float[Tensor, "batch"]:
    """Cross-entropy of each line's own item against the other lines' items, corrected for how often those are drawn.

    The logit of column j is s(u, j) / temperature − log Q(j), where Q(j) is the probability that a batch position
    holds j (Yi et al., *Sampling-bias-corrected neural modeling for large corpus item recommendations*, RecSys 2019,
    section 3). Temperature first, correction after: it is an estimate of the full softmax's normaliser, which lives on
    the logits. Q is never clipped. `masked` columns (see `collisions`) do not compete. No correction is applied when
    serving.
    """
    logits = user_vectors @ item_vectors.T / temperature - log_q  # (batch, batch)
    logits = logits.masked_fill(masked, -torch.inf)
    return functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")


def collisions(user_rows: Int[Tensor, "batch"], item_rows: Int[Tensor, "batch"]) -> Bool[Tensor, "batch batch"]:
    """Columns that are no negatives of a line: the same item elsewhere in the batch, and the same user's other
    positives.

    The diagonal is never masked.
    """
    same = (item_rows[:, None] == item_rows) | (user_rows[:, None] == user_rows)
    return same.fill_diagonal_(False)
