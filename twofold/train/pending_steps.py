"""Steps whose losses are still on the device: reading one waits for the device, so they are read together."""

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from twofold.errors import RunError
from twofold.train.checkpoint import StepRecord, TrainingState


@dataclass
class PendingSteps:
    """The steps after a training state that have not been read."""

    every: int
    """Number of steps that are read together: 1 on the CPU."""
    merged: int
    """Number of steps that become one record."""
    batch_size: int
    remedy: str
    """Advice if a loss or a gradient is not finite."""
    began: float = field(default_factory=time.monotonic)
    values: list[Tensor] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        """Returns the number of steps that have not been read."""
        return len(self.rates)

    @property
    def is_full(self) -> bool:
        """True if it is time to read."""
        return len(self) >= self.every

    def add(self, loss: Float[Tensor, ""], gradient_norm: Float[Tensor, ""], rate: float) -> None:
        """Adds a step."""
        self.values += [loss.double(), gradient_norm.double()]
        self.rates.append(rate)

    def read(self, state: TrainingState, *, last_step: int) -> tuple[int, TrainingState]:
        """Returns the number of steps and the state after them, and forgets them; `last_step` is the number of the
        last one, from 1.

        RunError if a loss or a gradient is not finite.
        """
        values, now = torch.stack(self.values).view(-1, 2).tolist(), time.monotonic()
        speed, first = self.batch_size * len(self) / (now - self.began), last_step - len(self) + 1
        for step, ((loss, norm), rate) in enumerate(zip(values, self.rates, strict=True), first):
            check_divergence(loss, norm, state, remedy=self.remedy)
            state = state.after(StepRecord(step, loss, rate, norm, speed), every=self.merged)
        self.values, self.rates, self.began = [], [], now
        return len(values), state


def check_divergence(loss: float, gradient_norm: float, state: TrainingState, *, remedy: str) -> None:
    """Raises RunError if the loss or its gradient is not finite."""
    what = "loss" if not np.isfinite(loss) else "gradient"
    if not (np.isfinite(loss) and np.isfinite(gradient_norm)):
        raise RunError(
            f"training diverged: the {what} of epoch {state.epoch}, batch {state.batch} is "
            f"{loss if what == 'loss' else gradient_norm}. {remedy}, and run again."
        )
