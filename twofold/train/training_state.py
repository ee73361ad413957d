"""State of a training: the records of its epochs and steps, and the steps whose losses are not read yet.

A loss is on the device until it is read, and reading it waits for the device, so losses are read several at a time.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from twofold.errors import RunError


@dataclass(frozen=True)
class EpochRecord:
    """Measurements of one epoch; `validation` is the metric that chooses the best epoch."""

    epoch: int
    loss: float
    validation: float
    examples_per_s: float


@dataclass(frozen=True)
class StepRecord:
    """Measurements of the steps since the previous record, up to number `step`: mean loss, last learning rate, and the
    largest gradient norm before clipping.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    examples_per_s: float


@dataclass(frozen=True)
class TrainingState:
    """Progress of a training: the next batch, and sums over the current epoch."""

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    best_epoch: int = -1
    records: tuple[EpochRecord, ...] = field(default=())
    steps: tuple[StepRecord, ...] = ()
    loose: tuple[StepRecord, ...] = ()
    """Step records not yet merged into `steps`."""

    def after(self, step: StepRecord, *, every: int) -> "TrainingState":
        """Returns the state after one more step; `every` single steps are merged into one record."""
        loose = (*self.loose, step)
        is_full = len(loose) == every
        return replace(
            self,
            batch=self.batch + 1,
            loss_sum=self.loss_sum + step.loss,
            steps=(*self.steps, _merge_steps(loose)) if is_full else self.steps,
            loose=() if is_full else loose,
        )

    def step_log(self) -> tuple[StepRecord, ...]:
        """Returns the records of all steps."""
        return (*self.steps, _merge_steps(self.loose)) if self.loose else self.steps


def _merge_steps(steps: Sequence[StepRecord]) -> StepRecord:
    """Merges the records of steps with equally many examples."""
    return StepRecord(
        step=steps[-1].step,
        loss=sum(step.loss for step in steps) / len(steps),
        learning_rate=steps[-1].learning_rate,
        gradient_norm=max(step.gradient_norm for step in steps),
        examples_per_s=float(round(len(steps) / sum(1 / step.examples_per_s for step in steps))),
    )


@dataclass
class PendingSteps:
    """Steps whose losses have not been read from the device."""

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
        """True if there are `every` steps."""
        return len(self) >= self.every

    def add(self, loss: Float[Tensor, ""], gradient_norm: Float[Tensor, ""], rate: float) -> None:
        """Adds a step."""
        self.values += [loss.double(), gradient_norm.double()]
        self.rates.append(rate)

    def read(self, state: TrainingState, *, last_step: int) -> tuple[int, TrainingState]:
        """Reads the steps and removes them; returns their number, and the state after them.

        `last_step` is the number of the last step, from 1. RunError if a loss or a gradient is not finite.
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
