"""fit(): steps, validation, the best epoch, resume."""

import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from twofold.dataset.batch_order import Order
from twofold.dataset.batches import Batch, epoch_batches
from twofold.dataset.dataset import Dataset
from twofold.dataset.malloc import keep_freed_memory
from twofold.errors import DataError, RunError
from twofold.model.adversary import LengthPredictor, strength_at
from twofold.model.multi_tower import MultiTower, Towers
from twofold.model.two_tower import TwoTower
from twofold.progress import Advance, progress_bar
from twofold.recipe.train import Train
from twofold.train.checkpoint import EpochRecord, StepRecord, TrainingState, load_checkpoint, save_checkpoint
from twofold.train.device import batch_on
from twofold.train.distributed import (
    SINGLE_PROCESS,
    ProcessGroup,
    all_reduce_sum,
    broadcast_from_rank0,
    check_shareable,
    share_of,
    sum_gradients,
)
from twofold.train.hard_negatives import MINED, with_mined
from twofold.train.memory_check import check_memory
from twofold.train.objective import Objective, build_objective, mean_loss
from twofold.train.optimizer import (
    Optimizer,
    build_optimizer,
    clip_gradients,
    lazy_tables,
    learning_rate_at,
    set_learning_rate,
)
from twofold.train.sharded_embedding import distribute_model, whole_tables

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_EVERY_S = 20.0
"""A kill costs at most this much; writing one takes milliseconds at the shipped size."""
CHECKPOINT_SHARE = 0.05
"""Of the time that checkpoints may take: those of large tables come more seldom."""
LOGGED = 1000
"""Lines of `training_steps.parquet` at most: what a curve shows, and a checkpoint holds beside the weights."""

Validate = Callable[[Towers], float]
"""A full-catalogue metric of the model as it stands; higher is better."""


@dataclass(frozen=True)
class Setup:
    """What a training runs on; no part of a recipe, for it changes no result."""

    ranks: ProcessGroup = SINGLE_PROCESS


SINGLE_PROCESS_CPU = Setup()
CPU = torch.device("cpu")


def fit(
    build: Callable[[], Towers],
    dataset: Dataset,
    settings: Train,
    *,
    validate: Validate,
    out: Path,
    setup: Setup = SINGLE_PROCESS_CPU,
) -> dict[str, Any]:
    """Trains and writes `weights.safetensors` of the best epoch, and two logs, of epochs and steps; returns facts.

    If `out` holds a checkpoint of a killed attempt, training continues from it and ends where it would have ended.
    Equal seeds give equal weights on one machine with one number of threads. `build` is called twice: for a model
    without memory (device `meta`), whose size is checked, and after the seed is set for the one that is trained. Ranks
    that share the training all call this; the first one builds and writes.
    """
    ranks = setup.ranks
    with torch.device("meta"):
        sketch = build()
    per = sketch if isinstance(sketch, MultiTower) else None
    objective = build_objective(settings, dataset, per=per, ranks=ranks)
    lines, rows_per_step = objective.lines, objective.items_per_step
    check_memory(sketch, ranks, rows_per_step=rows_per_step)
    check_shareable(ranks, sketch, settings, lines=len(lines))
    parameters = sum(parameter.numel() for parameter in sketch.parameters())
    with deterministic(settings.seed, ranks.device), keep_freed_memory():
        model = build() if ranks.is_first else sketch
        guess = _length_guess(settings, model, objective)
        learner = nn.ModuleList([model] if guess is None else [model, guess])
        distribute_model(ranks, learner, in_columns=lazy_tables(learner, rows_per_step=rows_per_step), folder=out)
        optimizer = build_optimizer(
            learner, learning_rate=settings.learning_rate, rows_per_step=rows_per_step, ranks=ranks
        )
        checkpoint = out / CHECKPOINT
        remedy = (
            f"Lower train.learning_rate (now {settings.learning_rate:g}), or set train.max_grad_norm (now "
            f"{settings.max_grad_norm})"
        )
        keep = partial(save_checkpoint, checkpoint, learner, optimizer, settings=settings)
        begun = load_checkpoint(checkpoint, learner, optimizer, settings=settings)
        position, best = begun or (TrainingState(), {})
        done = position.epoch * len(lines) + position.batch * settings.batch_size
        with _progress(ranks, total=settings.epochs * len(lines), done=done) as advance:
            while position.epoch < settings.epochs and not _is_settled(position, settings.patience):
                started = stepped = time.monotonic()
                due, first = started + CHECKPOINT_EVERY_S, position.batch
                objective = with_mined(objective, model, epoch=position.epoch, is_begun=first > 0, folder=out)
                for batch in _batches(objective, settings, position):
                    step, steps = _step_number(settings, position, objective.order)
                    rate = learning_rate_at(step, steps=steps, peak=settings.learning_rate)
                    set_learning_rate(optimizer, rate)
                    strength = _strength(settings, step / steps)
                    _seed_step(settings, position)
                    loss = _backward(objective, model, batch, optimizer=optimizer, guess=guess, strength=strength)
                    length = clip_gradients(optimizer, most=settings.max_grad_norm)
                    check_divergence(loss, length, position, remedy=remedy)
                    optimizer.step()
                    before, stepped = stepped, time.monotonic()
                    taken = StepRecord(step + 1, loss, rate, length, settings.batch_size / (stepped - before))
                    position = position.after(taken, every=math.ceil(steps / LOGGED))
                    advance(len(batch.weight) * ranks.size, f"loss {position.loss_sum / position.batch:.3f}")
                    if broadcast_from_rank0(ranks, partial(_is_past, due)):
                        due = _kept(partial(keep, best=best, state=position))
                speed = (position.batch - first) * settings.batch_size / (time.monotonic() - started)
                with whole_tables(model) as fresh:
                    position = finish_epoch(position, broadcast_from_rank0(ranks, lambda: validate(model)), speed)
                    if ranks.is_first and position.best_epoch == position.epoch - 1:
                        best = weights_of(model, fresh=fresh)
                keep(best=best, state=position)
    if ranks.is_first:
        save_file(best, out / "weights.safetensors")
        _write_logs(position, out)
        for kept in (checkpoint, out / MINED):
            kept.unlink(missing_ok=True)
    return {
        "examples": len(lines),
        "parameters": parameters,
        "precision": objective.precision,
        "best_epoch": position.best_epoch,
        "epochs": [asdict(record) for record in position.records],
    }


def _is_past(moment: float) -> float:
    return float(time.monotonic() > moment)


def _kept(keep: Callable[[], None]) -> float:
    """Keeps a checkpoint; the moment when the next one is due."""
    began = time.monotonic()
    keep()
    ended = time.monotonic()
    return ended + max(CHECKPOINT_EVERY_S, (ended - began) / CHECKPOINT_SHARE)


def _strength(settings: Train, progress: float) -> float:
    """Of the reversal, at this share of the training."""
    return strength_at(progress, most=settings.adversary.max_lambda) if settings.adversary else 0.0


def _write_logs(position: TrainingState, out: Path) -> None:
    """`training_log.parquet`, a line an epoch, and `training_steps.parquet`, at most `LOGGED` lines over all steps."""
    for name, log in (("training_log", position.records), ("training_steps", position.step_log())):
        pq.write_table(pa.Table.from_pylist([asdict(line) for line in log]), out / f"{name}.parquet")


def _backward(
    objective: Objective,
    model: Towers,
    batch: Batch,
    *,
    optimizer: Optimizer,
    guess: LengthPredictor | None,
    strength: float,
) -> float:
    """Leaves the gradients of the loss of the whole batch, which it returns."""
    ranks = objective.ranks
    loss, item_vectors = mean_loss(objective, model, batch)
    total = loss
    if guess is not None:
        share = share_of(ranks, (batch.length_s > 0).sum())
        total = loss + share * guess(item_vectors, batch.length_s, strength=strength)
    optimizer.zero_grad()
    total.backward()  # type: ignore[no-untyped-call]
    sum_gradients(ranks, optimizer.copied)
    return float(all_reduce_sum(ranks, loss.detach()))


def _batches(objective: Objective, settings: Train, position: TrainingState) -> Iterator[Batch]:
    """What is left of an epoch; of each batch, this rank's part."""
    ranks, dataset = objective.ranks, objective.dataset
    for batch in epoch_batches(
        dataset,
        dataset.examples["train"],
        objective.order,
        seed=(settings.seed, position.epoch),
        first=position.batch,
        share=ranks.part(min(settings.batch_size, len(objective.lines))),
    ):
        yield batch_on(ranks.device, batch)


def _seed_step(settings: Train, position: TrainingState) -> None:
    """What a step draws depends on its number alone: a resumed training draws the same, and so do all ranks."""
    number = np.random.SeedSequence((settings.seed, position.epoch, position.batch))
    torch.manual_seed(int(number.generate_state(1)[0]))


def _progress(ranks: ProcessGroup, *, total: int, done: int) -> AbstractContextManager[Advance]:
    """The first rank's; the others are not seen."""
    if ranks.is_first:
        return progress_bar("train", total=total, unit="examples", done=done)
    return nullcontext(lambda units, remark: None)


def _step_number(settings: Train, position: TrainingState, order: Order) -> tuple[int, int]:
    """The number of the step to take, and of all."""
    return position.epoch * len(order) + position.batch, settings.epochs * len(order)


def finish_epoch(position: TrainingState, validation: float, examples_per_s: float) -> TrainingState:
    """Where training stands after an epoch, which is the best one if its validation says so."""
    record = EpochRecord(
        position.epoch, position.loss_sum / max(position.batch, 1), validation, float(round(examples_per_s))
    )
    best_so_far = max((earlier.validation for earlier in position.records), default=-np.inf)
    return replace(
        position,
        epoch=position.epoch + 1,
        batch=0,
        loss_sum=0.0,
        best_epoch=position.epoch if validation > best_so_far or not position.records else position.best_epoch,
        records=(*position.records, record),
    )


def _is_settled(position: TrainingState, patience: int | None) -> bool:
    """Whether as many epochs have passed without a better one."""
    return patience is not None and position.epoch - 1 - position.best_epoch >= patience


def _length_guess(settings: Train, model: Towers, objective: Objective) -> LengthPredictor | None:
    """What `train.adversary` asks for; its weights are drawn apart, so that it changes nothing else that is drawn."""
    if settings.adversary is None:
        return None
    lengths = objective.dataset.examples["train"].length_s[objective.lines]
    logs = np.log(lengths[lengths > 0], dtype=np.float64)  # NaN is not
    if len(logs) == 0 or np.ptp(logs) == 0:
        raise DataError(
            f"train.adversary guesses length_s, and the {len(lengths):,} rows to learn from hold "
            f"{'no length' if len(logs) == 0 else 'one length alone'}. Give the items a column length_s "
            f"(data.columns names it), or delete train.adversary."
        )
    assert isinstance(model, TwoTower), "no adversary is asked of towers per value"
    with torch.random.fork_rng(devices=[]):
        return LengthPredictor(model.item.dim, mean=float(logs.mean()), std=float(logs.std()))


def check_divergence(loss: float, length: float, position: TrainingState, *, remedy: str) -> None:
    """RunError if the loss or the length of its gradient is no number."""
    what = "loss" if not np.isfinite(loss) else "gradient"
    if not (np.isfinite(loss) and np.isfinite(length)):
        raise RunError(
            f"training diverged: the {what} of epoch {position.epoch}, batch {position.batch} is "
            f"{loss if what == 'loss' else length}. {remedy}, and run again."
        )


def weights_of(model: nn.Module, *, fresh: Collection[str] = ()) -> dict[str, Tensor]:
    """A copy of them as they stand, in ordinary memory; of the `fresh` ones, which nobody moves, themselves."""
    return {name: tensor.detach().to("cpu", copy=name not in fresh) for name, tensor in model.state_dict().items()}


@contextmanager
def deterministic(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Seeds, and asks for deterministic kernels; leaves the process as it was. On a GPU, where some kernels have no
    deterministic form, PyTorch warns of those instead of refusing.
    """
    before, random_state = torch.are_deterministic_algorithms_enabled(), torch.get_rng_state()
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.set_rng_state(random_state)
