"""fit(): steps, validation, the best epoch, resume."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Int64
from torch import Tensor

from twofold.dataset.arrays import Dataset
from twofold.dataset.batches import Batch, epoch_batches, num_batches
from twofold.dataset.memory import kept_memory
from twofold.errors import DataError, RunError
from twofold.model.losses import collisions, in_batch_softmax
from twofold.model.two_tower import TwoTower, save_weights
from twofold.progress import progress_bar
from twofold.recipe.schema import Train
from twofold.train.checkpoint import EpochRecord, Position, load_checkpoint, save_checkpoint
from twofold.train.negatives import log_in_batch_probability
from twofold.train.optimise import build_optimiser, learning_rate_at, set_learning_rate

CHECKPOINT_EVERY_S = 20.0
"""A kill costs at most this much; writing one takes milliseconds at the shipped size."""

Validate = Callable[[TwoTower], float]
"""A full-catalogue metric of the model as it stands; higher is better."""


def fit(
    build: Callable[[], TwoTower],
    dataset: Dataset,
    settings: Train,
    *,
    temperature: float,
    validate: Validate,
    out: Path,
) -> dict[str, Any]:
    """Trains and writes `weights.safetensors` of the best epoch, and `training_log.parquet`; returns facts.

    If `out` holds a checkpoint of a killed attempt, training continues from it and ends where it would have ended.
    Equal seeds give equal weights on one machine with one number of threads. `build` makes the model after the seed is
    set.
    """
    with _deterministic(settings.seed), kept_memory():
        model = build()
        lines = _positive_lines(dataset)
        optimiser = build_optimiser(model, learning_rate=settings.learning_rate)
        checkpoint = out / "checkpoint.safetensors"
        position, best = load_checkpoint(checkpoint, model, optimiser) or (Position(), _copy(model))
        log_q = torch.from_numpy(log_in_batch_probability(dataset.rows["train"].item_rows[lines], len(dataset.items)))
        with progress_bar(
            "train",
            total=settings.epochs * len(lines),
            unit="examples",
            done=position.epoch * len(lines) + position.batch * settings.batch_size,
        ) as advance:
            while position.epoch < settings.epochs:
                saved_at, started, first = time.monotonic(), time.monotonic(), position.batch
                seed = (settings.seed, position.epoch)
                for batch in epoch_batches(
                    dataset, dataset.rows["train"], lines, batch_size=settings.batch_size, seed=seed, first=first
                ):
                    rate = _rate(settings, position, len(lines))
                    set_learning_rate(optimiser, rate)
                    loss = _step(model, optimiser, batch, log_q=log_q, temperature=temperature)
                    _refuse_divergence(loss, position, settings)
                    position = replace(position, batch=position.batch + 1, loss_sum=position.loss_sum + loss)
                    advance(len(batch.weight), f"loss {position.loss_sum / position.batch:.3f}")
                    if time.monotonic() - saved_at > CHECKPOINT_EVERY_S:
                        save_checkpoint(checkpoint, model, optimiser, best=best, position=position)
                        saved_at = time.monotonic()
                examples = (position.batch - first) * settings.batch_size
                speed = examples / (time.monotonic() - started)
                position = _finish_epoch(position, validate(model), speed)
                if position.best_epoch == position.epoch - 1:
                    best = _copy(model)
                save_checkpoint(checkpoint, model, optimiser, best=best, position=position)
        model.load_state_dict(best)
    save_weights(model, out / "weights.safetensors")
    pq.write_table(pa.Table.from_pylist([asdict(record) for record in position.records]), out / "training_log.parquet")
    checkpoint.unlink(missing_ok=True)
    return {
        "examples": len(lines),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "best_epoch": position.best_epoch,
        "epochs": [asdict(record) for record in position.records],
    }


def _step(
    model: TwoTower, optimiser: torch.optim.Optimizer, batch: Batch, *, log_q: Tensor, temperature: float
) -> float:
    users, items = model.user(batch.user), model.item(batch.item)
    losses = in_batch_softmax(
        users,
        items,
        temperature=temperature,
        log_q=log_q[batch.item_rows],
        masked=collisions(batch.user_rows, batch.item_rows),
    )
    loss = (losses * batch.weight).sum() / batch.weight.sum()
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return float(loss.detach())


def _rate(settings: Train, position: Position, lines: int) -> float:
    per_epoch = num_batches(lines, settings.batch_size)
    step = position.epoch * per_epoch + position.batch
    return learning_rate_at(step, steps=settings.epochs * per_epoch, peak=settings.learning_rate)


def _finish_epoch(position: Position, validation: float, examples_per_s: float) -> Position:
    record = EpochRecord(
        position.epoch, position.loss_sum / max(position.batch, 1), validation, float(round(examples_per_s))
    )
    best_so_far = max((earlier.validation for earlier in position.records), default=-np.inf)
    return Position(
        epoch=position.epoch + 1,
        best_epoch=position.epoch if validation > best_so_far else position.best_epoch,
        records=(*position.records, record),
    )


def _positive_lines(dataset: Dataset) -> Int64[np.ndarray, "positives"]:
    lines = np.flatnonzero(dataset.rows["train"].label)
    if len(lines) < 2:
        raise DataError(
            f"the training window holds {len(lines)} positive events; in-batch softmax needs at least 2. "
            f"Check prepare.positive and prepare.split.train."
        )
    return lines


def _refuse_divergence(loss: float, position: Position, settings: Train) -> None:
    if not np.isfinite(loss):
        raise RunError(
            f"training diverged: the loss of epoch {position.epoch}, batch {position.batch} is {loss}. "
            f"Lower train.learning_rate (now {settings.learning_rate:g}) and run again."
        )


def _copy(model: TwoTower) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Seeds, and asks for deterministic kernels; leaves the process as it was."""
    before, random_state = torch.are_deterministic_algorithms_enabled(), torch.get_rng_state()
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.set_rng_state(random_state)
