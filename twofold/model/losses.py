"""Losses as plain functions: vectors or logits in, one loss a line out."""

from collections.abc import Callable
from typing import Final, Literal, assert_never

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from twofold.ragged import chunks

CELLS: Final = 2**21
"""Logits that `by_chunks` holds at once: 8 MiB. A guess, not measured."""

# --- softmax ----------------------------------------------------------------------------------------------------------


def sampled_softmax(positive: Float[Tensor, "batch"], negative: Float[Tensor, "batch items"]) -> Float[Tensor, "batch"]:
    """Cross-entropy of the positive's logit against negatives' logits, each less the log of how often a line's sample
    is expected to hold it; -inf where a column does not compete.

    Then the negatives' exponentials sum up, on average, to those of all items but the positive, which is there for
    certain and so is not corrected (Khrylchenko et al., *Correcting the LogQ correction*, RecSys 2025, section 3). Its
    gradient is that of their equation: 1 − p(positive), held fixed, times that of the log-sum of negatives less the
    positive.
    """
    return torch.cat([positive[:, None], negative], dim=1).logsumexp(dim=1) - positive


def by_chunks(losses: Callable[[slice], Tensor], *, lines: int, columns: int) -> Float[Tensor, "lines"]:
    """The losses of all lines, so many lines at a time that about `CELLS` logits are in memory; the backward pass makes
    them again (Chen et al., *Training deep nets with sublinear memory cost*, 2016).
    """
    parts = chunks(lines, max(1, CELLS // max(columns, 1)))
    if len(parts) == 1:
        return losses(parts[0])
    return torch.cat([checkpoint(losses, part, use_reentrant=False, preserve_rng_state=False) for part in parts])


# --- pairwise ---------------------------------------------------------------------------------------------------------


def bpr(positive: Float[Tensor, "batch"], negative: Float[Tensor, "batch items"]) -> Float[Tensor, "batch"]:
    """-log sigmoid(positive − negative), the mean over a line's negatives (Rendle et al., *BPR: Bayesian personalized
    ranking from implicit feedback*, UAI 2009, section 4.1). A negative of -inf does not compete.
    """
    competing = (~negative.isneginf()).sum(dim=1).clamp(min=1)
    return functional.softplus(negative - positive[:, None]).sum(dim=1) / competing


# --- pointwise --------------------------------------------------------------------------------------------------------


def bce(logits: Float[Tensor, "batch"], labels: Bool[Tensor, "batch"], *, gamma: float = 0.0) -> Float[Tensor, "batch"]:
    """Binary cross-entropy, times (1 − p of the true class)^gamma (Lin et al., *Focal loss for dense object
    detection*, ICCV 2017, equation 4, without the class weight); gamma 0 is plain cross-entropy.
    """
    losses = functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    return losses if gamma == 0 else (1 - torch.exp(-losses)) ** gamma * losses  # exp(-loss) is p of the true class


def regression(
    predicted: Float[Tensor, "batch"], targets: Float[Tensor, "batch"], *, error: Literal["huber", "mse"]
) -> Float[Tensor, "batch"]:
    """(predicted − target)²; or half of it up to an error of 1, and linear beyond (Huber, *Robust estimation of a
    location parameter*, 1964).
    """
    match error:
        case "huber":
            return functional.huber_loss(predicted, targets, reduction="none")
        case "mse":
            return functional.mse_loss(predicted, targets, reduction="none")
        case _:
            assert_never(error)
