"""Losses as plain functions of logits or predictions, with one loss per example."""

from collections.abc import Callable
from typing import Final, Literal, assert_never

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from twofold.ragged import chunks

CHUNK_ELEMENTS: Final = 2**21
"""Number of logits that `by_chunks` has in memory at once: 8 MiB. A guess, not measured."""

# --- softmax ----------------------------------------------------------------------------------------------------------


def sampled_softmax(positive: Float[Tensor, "batch"], negative: Float[Tensor, "batch items"]) -> Float[Tensor, "batch"]:
    """Returns the cross-entropy of the positive's logit against those of sampled negatives.

    A negative's logit is its score minus the log of its expected count in the example's sample; -inf excludes it. Then
    the negatives' exponentials sum, on average, to those of all items but the positive, which is always present and so
    is not corrected (Khrylchenko et al., *Correcting the LogQ correction*, RecSys 2025, section 3). The gradient is
    that of their equation: 1 − p(positive), held constant, times the gradient of log-sum(negatives) − positive.
    """
    return torch.cat([positive[:, None], negative], dim=1).logsumexp(dim=1) - positive


def by_chunks(losses: Callable[[slice], Tensor], *, examples: int, columns: int) -> Float[Tensor, "examples"]:
    """Computes the losses in chunks of examples with about `CHUNK_ELEMENTS` logits each; the backward pass computes the
    logits again (Chen et al., *Training deep nets with sublinear memory cost*, 2016).
    """
    parts = chunks(examples, max(1, CHUNK_ELEMENTS // max(columns, 1)))
    if len(parts) == 1:
        return losses(parts[0])
    return torch.cat([checkpoint(losses, part, use_reentrant=False, preserve_rng_state=False) for part in parts])


# --- pairwise ---------------------------------------------------------------------------------------------------------


def bpr(positive: Float[Tensor, "batch"], negative: Float[Tensor, "batch items"]) -> Float[Tensor, "batch"]:
    """Returns -log sigmoid(positive − negative), averaged over an example's negatives (Rendle et al., *BPR: Bayesian
    personalized ranking from implicit feedback*, UAI 2009, section 4.1). A negative of -inf is excluded.
    """
    competing = (~negative.isneginf()).sum(dim=1).clamp(min=1)
    return functional.softplus(negative - positive[:, None]).sum(dim=1) / competing


# --- pointwise --------------------------------------------------------------------------------------------------------


def bce(logits: Float[Tensor, "batch"], labels: Bool[Tensor, "batch"], *, gamma: float = 0.0) -> Float[Tensor, "batch"]:
    """Returns binary cross-entropy times (1 − p of the true class)^gamma (Lin et al., *Focal loss for dense object
    detection*, ICCV 2017, equation 4, without the class weight); gamma 0 is plain cross-entropy.
    """
    losses = functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    return losses if gamma == 0 else (1 - torch.exp(-losses)) ** gamma * losses  # exp(-loss) is p of the true class


def regression(
    predicted: Float[Tensor, "batch"], targets: Float[Tensor, "batch"], *, error: Literal["huber", "mse"]
) -> Float[Tensor, "batch"]:
    """Returns (predicted − target)² (`mse`), or half of it up to an error of 1 and linear beyond (Huber, *Robust
    estimation of a location parameter*, 1964).
    """
    match error:
        case "huber":
            return functional.huber_loss(predicted, targets, reduction="none")
        case "mse":
            return functional.mse_loss(predicted, targets, reduction="none")
        case _:
            assert_never(error)
