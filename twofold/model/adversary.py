"""What a vector must not tell: a small network guesses it, and the reversed gradient takes it out of the vector."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

HIDDEN = 64
"""Width of the guess's hidden layer: enough to find what is not linear. Not measured."""


class LengthPredictor(nn.Module):
    """Guesses log(length), standardised, of items from their vectors: one hidden layer with ReLU."""

    def __init__(self, dim: int, *, mean: float, std: float) -> None:
        """`mean` and `std` are of log(length_s) over what is trained on."""
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
        self.mean, self.std = mean, std

    def forward(
        self, vectors: Float[Tensor, "batch dim"], length_s: Float[Tensor, "batch"], *, strength: float
    ) -> Float[Tensor, ""]:
        """Mean squared error where the length is known; its gradient reaches the vectors reversed, times `strength`."""
        guessed = self.layers(reverse_gradient(vectors, strength)).squeeze(1)
        known = length_s > 0  # NaN is not
        wanted = (torch.where(known, length_s, 1).log() - self.mean) / self.std
        return (functional.mse_loss(guessed, wanted, reduction="none") * known).sum() / known.sum().clamp(min=1)


def reverse_gradient(values: Float[Tensor, "*shape"], strength: float) -> Float[Tensor, "*shape"]:
    """The same values; the gradient that comes back is multiplied by -strength (Ganin & Lempitsky, *Unsupervised domain
    adaptation by backpropagation*, ICML 2015, section 3).
    """
    reversed_: Tensor = _Reversed.apply(values, strength)  # type: ignore[no-untyped-call]
    return reversed_


def strength_at(progress: float, *, most: float) -> float:
    """From 0 to almost `most` while progress goes from 0 to 1 (ibid., section 4), so that the guess learns first.

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
