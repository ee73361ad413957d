"""Adversarial removal of an attribute: a small network predicts it from the vector, and the reversed gradient makes
that prediction fail.
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from twofold.errors import DataError

HIDDEN = 64
"""Width of the predictor's hidden layer: enough for nonlinear dependence. Not measured."""


class LengthPredictor(nn.Module):
    """A network with one hidden layer (ReLU) that predicts the standardized log(length) of items from their vectors."""

    def __init__(self, dim: int, *, mean: float, std: float) -> None:
        """Takes the mean and the standard deviation of log(length_s) over the training examples."""
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
        self.mean, self.std = mean, std

    def forward(
        self, vectors: Float[Tensor, "batch dim"], length_s: Float[Tensor, "batch"], *, strength: float
    ) -> Float[Tensor, ""]:
        """Returns the mean squared error where the length is known; the vectors get the gradient times -`strength`."""
        predicted = self.layers(reverse_gradient(vectors, strength)).squeeze(1)
        known = length_s > 0  # false for NaN
        target = (torch.where(known, length_s, 1).log() - self.mean) / self.std
        return (functional.mse_loss(predicted, target, reduction="none") * known).sum() / known.sum().clamp(min=1)


def build_length_predictor(dim: int, length_s: Float32[np.ndarray, "examples"]) -> LengthPredictor:
    """Builds the predictor of `train.adversary` for vectors of this width and training examples of these lengths, NaN
    where unknown. Its weights are drawn apart, so that no other random draw changes.
    """
    logs = np.log(length_s[length_s > 0], dtype=np.float64)  # NaN is not
    if len(logs) == 0 or np.ptp(logs) == 0:
        raise DataError(
            f"train.adversary predicts length_s, and the {len(length_s):,} training examples have "
            f"{'no length' if len(logs) == 0 else 'a single length'}. Give the items a column length_s "
            f"(data.columns names it), or delete train.adversary."
        )
    with torch.random.fork_rng(devices=[]):
        return LengthPredictor(dim, mean=float(logs.mean()), std=float(logs.std()))


def reverse_gradient(values: Float[Tensor, "*batch"], strength: float) -> Float[Tensor, "*batch"]:
    """Returns the same values, and multiplies their gradient by -strength (Ganin & Lempitsky, *Unsupervised domain
    adaptation by backpropagation*, ICML 2015, section 3).
    """
    reversed_: Tensor = _Reversed.apply(values, strength)  # type: ignore[no-untyped-call]
    return reversed_


def strength_at(progress: float, *, most: float) -> float:
    """Returns the factor of the reversed gradient, which rises from 0 to almost `most` as training progresses.

    The predictor is thus trained before the factor is large (Ganin & Lempitsky, ICML 2015, section 4).

    >>> [round(strength_at(progress, most=2.0), 2) for progress in (0.0, 0.1, 0.5, 1.0)]
    [0.0, 0.92, 1.97, 2.0]
    """
    return most * (2 / (1 + math.exp(-10 * progress)) - 1)


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient, None
