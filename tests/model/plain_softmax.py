"""The in-batch softmax over the whole matrix of logits: what the fused one must equal."""

import torch
from torch import Tensor
from torch.nn import functional


def in_batch_softmax(
    user_vectors: Tensor,
    item_vectors: Tensor,
    *,
    temperature: float,
    log_q: Tensor,
    masked: Tensor,
) -> Tensor:
    """Returns the cross-entropy of each example's own item against the other items, corrected by log Q.

    The first items are those of the examples, in their order; others may follow. `masked` columns do not compete.
    """
    logits = user_vectors @ item_vectors.T / temperature - log_q  # (batch, items)
    logits = logits.masked_fill(masked, -torch.inf)
    return functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")


def collisions(user_rows: Tensor, item_rows: Tensor) -> Tensor:
    """Returns the columns that are no negatives of an example: the same item, or another positive of the same user."""
    same = (item_rows[:, None] == item_rows) | (user_rows[:, None] == user_rows)
    return same.fill_diagonal_(False)
