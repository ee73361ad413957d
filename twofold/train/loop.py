"""Training loop of the retriever: steps, validation, the best epoch, and resuming from a checkpoint."""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from twofold.dataset.batch_order import Order
from twofold.dataset.batches import Batch, epoch_batches
from twofold.dataset.dataset import Dataset
from twofold.dataset.malloc import keep_freed_memory
from twofold.model.adversary import LengthPredictor, build_length_predictor, strength_at
from twofold.model.multi_tower import MultiTower, Towers
from twofold.model.two_tower import TwoTower
from twofold.progress import Advance, progress_bar
from twofold.recipe.train import Train
from twofold.train.batch_loss import mean_loss
from twofold.train.checkpoint import delete_checkpoint, load_checkpoint, save_checkpoint
from twofold.train.device import STEPS_PER_READ, deterministic, prefetched, seed_generators
from twofold.train.distributed import (
    SINGLE_PROCESS,
    ProcessGroup,
    all_reduce_sum,
    broadcast_from_rank0,
    check_shareable,
    share_of,
    sum_gradients,
)
from twofold.train.hard_negatives import MINED, with_hard_negatives
from twofold.train.memory_check import check_memory
from twofold.train.objective import Objective, build_objective
from twofold.train.optimizer import (
    Optimizer,
    build_optimizer,
    clip_gradients,
    constant_rate_at,
    lazy_tables,
    learning_rate_at,
    set_learning_rate,
)
from twofold.train.sharded_embedding import distribute_model, whole_tables
from twofold.train.training_state import EpochRecord, PendingSteps, TrainingState

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_EVERY_S = 20.0
"""A killed training loses at most this much; writing a checkpoint takes milliseconds at the shipped size."""
CHECKPOINT_SHARE = 0.05
"""Largest share of the time that checkpoints may take: those of large tables are written less often."""
MAX_STEP_RECORDS = 1000
"""Largest number of rows of `training_steps.parquet`, which a checkpoint also holds."""

Validate = Callable[[Towers], float]
"""Computes a full-catalogue metric of the current model; higher is better."""


@dataclass(frozen=True)
class Setup:
    """A process group to train on. It is no part of a recipe, because it does not change the result."""

    ranks: ProcessGroup = SINGLE_PROCESS


SINGLE_PROCESS_CPU = Setup()


def fit(
    build: Callable[[], Towers],
    dataset: Dataset,
    settings: Train,
    *,
    validate: Validate | Sequence[float],
    out: Path,
    setup: Setup = SINGLE_PROCESS_CPU,
) -> dict[str, Any]:
    """Trains; writes `weights.safetensors` of the best epoch and logs of epochs and steps; returns facts.

    A killed attempt resumes from its checkpoint in `out` and ends as it would have ended. Equal seeds give equal
    weights on one machine with one number of threads. If `validate` is a list of known values, up to the best one, it
    trains one epoch for each. `build` is called twice: on the device `meta`, and seeded. All ranks call this.
    """
    ranks, epochs = setup.ranks, num_epochs(validate, settings.epochs)
    with torch.device("meta"):
        meta_model = build()
    per = meta_model if isinstance(meta_model, MultiTower) else None
    objective = build_objective(settings, dataset, per=per, ranks=ranks)
    num_examples = objective.order.num_examples
    check_memory(meta_model, ranks, objective.step_size)
    check_shareable(ranks, meta_model, settings, num_examples=num_examples)
    with deterministic(settings.seed, ranks.device), keep_freed_memory():
        training = _begin(build() if ranks.is_first else meta_model, objective, settings, out)
        state, best = training.resumed()
        done = state.epoch * num_examples + state.batch * objective.order.batch_examples
        with _progress(ranks, total=epochs * num_examples, done=done, may_stop=_may_end(validate, settings)) as advance:
            while state.epoch < epochs and not _has_converged(state, settings.patience):
                state, speed = _train_epoch(training, state, best, advance)
                with whole_tables(training.model) as fresh:
                    value = broadcast_from_rank0(ranks, partial(validation_of, validate, state, training.model))
                    state = finish_epoch(state, value, speed)
                    if ranks.is_first and state.best_epoch == state.epoch - 1:
                        best = weights_of(training.model, fresh=fresh)
                training.save(best=best, state=state)
                advance(0, _epoch_line(state, epochs))
    if ranks.is_first:
        _write_results(best, state, out)
        delete_checkpoint(training.checkpoint)
        (out / MINED).unlink(missing_ok=True)
    return {
        "examples": num_examples,
        "parameters": sum(parameter.numel() for parameter in meta_model.parameters()),
        "precision": objective.precision,
        "best_epoch": state.best_epoch,
        "epochs": [asdict(record) for record in state.records],
    }


@dataclass(frozen=True)
class _Training:
    """The model, the adversary's predictor and the optimizer, which steps change, and where they are saved."""

    model: Towers
    predictor: LengthPredictor | None
    optimizer: Optimizer
    objective: Objective
    settings: Train
    out: Path

    @property
    def trainable(self) -> nn.ModuleList:
        return nn.ModuleList([self.model] if self.predictor is None else [self.model, self.predictor])

    @property
    def checkpoint(self) -> Path:
        return self.out / CHECKPOINT

    def save(self, *, best: dict[str, Tensor], state: TrainingState) -> None:
        save_checkpoint(self.checkpoint, self.trainable, self.optimizer, settings=self.settings, best=best, state=state)

    def resumed(self) -> tuple[TrainingState, dict[str, Tensor]]:
        """Loads the checkpoint, if there is one; returns its state and its best weights."""
        found = load_checkpoint(self.checkpoint, self.trainable, self.optimizer, settings=self.settings)
        return found or (TrainingState(), {})


def _begin(model: Towers, objective: Objective, settings: Train, out: Path) -> _Training:
    """Distributes the model among the ranks, and builds what trains it."""
    predictor, size = _length_predictor(settings, model, objective), objective.step_size
    trainable = nn.ModuleList([model] if predictor is None else [model, predictor])
    distribute_model(objective.ranks, trainable, in_columns=lazy_tables(trainable, size), folder=out)
    optimizer = build_optimizer(
        trainable,
        learning_rate=settings.learning_rate,
        size=size,
        weight_decay=settings.weight_decay,
        kind=settings.optimizer,
        ranks=objective.ranks,
    )
    return _Training(model, predictor, optimizer, objective, settings, out)


def _train_epoch(
    training: _Training, state: TrainingState, best: dict[str, Tensor], advance: Advance
) -> tuple[TrainingState, float]:
    """Takes the remaining steps of an epoch; returns the state after them, and the examples per second."""
    settings, model, optimizer, ranks = training.settings, training.model, training.optimizer, training.objective.ranks
    started, pending = time.monotonic(), _pending(settings, training.objective)
    due, first = started + CHECKPOINT_EVERY_S, state.batch
    objective = with_hard_negatives(training.objective, model, is_begun=first > 0, folder=training.out)
    for batch in _batches(objective, settings, state):
        current = replace(state, batch=state.batch + len(pending))
        step, steps = _step_number(settings, current, objective.order)
        rate, strength = _learning_rate(settings, step, steps=steps), _strength(settings, step / steps)
        set_learning_rate(optimizer, rate)
        _seed_step(settings, current, ranks.device)
        loss = _backward(objective, model, batch, optimizer, predictor=training.predictor, strength=strength)
        gradient_norm = clip_gradients(optimizer, most=settings.max_grad_norm)
        pending.add(loss, gradient_norm, rate)
        is_due = pending.is_full or current.batch + 1 == len(objective.order)
        read, state = pending.read(state, last_step=step + 1) if is_due else (0, state)
        optimizer.step()
        if read:
            advance(read * len(batch.weight) * ranks.size, f"loss {state.loss_sum / state.batch:.3f}")
        if read and broadcast_from_rank0(ranks, partial(_is_past, due)):
            due = _save_and_schedule(partial(training.save, best=best, state=state))
    return state, (state.batch - first) * objective.order.batch_examples / (time.monotonic() - started)


def _epoch_line(state: TrainingState, epochs: int) -> str:
    """Describes the last epoch, and whether it is the best one so far."""
    last, best = state.records[-1], state.records[state.best_epoch]
    which = "the best so far" if last is best else f"best {best.validation:.4f} of epoch {best.epoch + 1}"
    return (
        f"epoch {last.epoch + 1} of at most {epochs}: loss {last.loss:.3f}, validation {last.validation:.4f}, "
        f"{which}; {last.examples_per_s:,.0f} examples/s"
    )


def _pending(settings: Train, objective: Objective) -> PendingSteps:
    """Returns the empty list of the steps of an epoch that are not read yet."""
    remedy = (
        f"Lower train.learning_rate (now {settings.learning_rate:g}), or set train.max_grad_norm (now "
        f"{settings.max_grad_norm})"
    )
    every = 1 if objective.ranks.device.type == "cpu" else STEPS_PER_READ
    merged = math.ceil(settings.epochs * len(objective.order) / MAX_STEP_RECORDS)
    return PendingSteps(every, merged, objective.order.batch_examples, remedy)


def _is_past(due: float) -> float:
    return float(time.monotonic() > due)


def _save_and_schedule(save: Callable[[], None]) -> float:
    """Writes a checkpoint and returns the time of the next one."""
    began = time.monotonic()
    save()
    ended = time.monotonic()
    return ended + max(CHECKPOINT_EVERY_S, (ended - began) / CHECKPOINT_SHARE)


def _learning_rate(settings: Train, step: int, *, steps: int) -> float:
    """Returns the learning rate of a step: a cosine over all epochs, or, with `patience`, a constant after the first
    epoch.
    """
    if settings.patience is None:
        return learning_rate_at(step, steps=steps, peak=settings.learning_rate)
    return constant_rate_at(step, warm_up=steps // settings.epochs, peak=settings.learning_rate)


def _strength(settings: Train, progress: float) -> float:
    """Returns the strength of the gradient reversal after this share of the training."""
    return strength_at(progress, most=settings.adversary.max_lambda) if settings.adversary else 0.0


def _write_results(best: Mapping[str, Tensor], state: TrainingState, out: Path) -> None:
    """Writes the weights of the best epoch, `training_log.parquet`, one row per epoch, and `training_steps.parquet`."""
    save_file(dict(best), out / "weights.safetensors")
    for name, log in (("training_log", state.records), ("training_steps", state.step_log())):
        pq.write_table(pa.Table.from_pylist([asdict(record) for record in log]), out / f"{name}.parquet")


def _backward(
    objective: Objective,
    model: Towers,
    batch: Batch,
    optimizer: Optimizer,
    *,
    predictor: LengthPredictor | None,
    strength: float,
) -> Float[Tensor, ""]:
    """Computes the gradients of the whole batch's loss and returns the loss."""
    ranks = objective.ranks
    loss, item_vectors = mean_loss(objective, model, batch)
    total = loss
    if predictor is not None:
        share = share_of(ranks, (batch.length_s > 0).sum())
        total = loss + share * predictor(item_vectors, batch.length_s, strength=strength)
    optimizer.zero_grad()
    total.backward()  # type: ignore[no-untyped-call]
    sum_gradients(ranks, optimizer.copied)
    return all_reduce_sum(ranks, loss.detach())


def _batches(objective: Objective, settings: Train, state: TrainingState) -> Iterator[Batch]:
    """Returns the remaining batches of an epoch: this rank's share of each."""
    ranks, dataset = objective.ranks, objective.dataset
    batches = epoch_batches(
        dataset,
        dataset.examples["train"],
        objective.order,
        seed=(settings.seed, state.epoch),
        first=state.batch,
        share=ranks.part(objective.order.batch_examples),
    )
    return prefetched(batches, ranks.device)


def _seed_step(settings: Train, state: TrainingState, device: torch.device) -> None:
    """Seeds a step by its number, so that a resumed training and all ranks draw the same."""
    number = np.random.SeedSequence((settings.seed, state.epoch, state.batch))
    seed_generators(int(number.generate_state(1)[0]), device)


def _progress(ranks: ProcessGroup, *, total: int, done: int, may_stop: bool) -> AbstractContextManager[Advance]:
    """Opens the progress bar of rank 0; other ranks show none."""
    if ranks.is_first:
        return progress_bar("train", total=total, unit="examples", done=done, may_stop=may_stop)
    return nullcontext(lambda units, remark: None)


def _may_end(validate: Validate | Sequence[float], settings: Train) -> bool:
    """Returns whether training may end before its last epoch: not if it repeats a known number of epochs."""
    return callable(validate) and settings.patience is not None


def _step_number(settings: Train, state: TrainingState, order: Order) -> tuple[int, int]:
    """Returns the number of the next step and the number of all steps."""
    return state.epoch * len(order) + state.batch, settings.epochs * len(order)


def num_epochs(validate: Callable[[Any], float] | Sequence[float], planned: int) -> int:
    """Returns the number of epochs to train at most: as planned, or one for each known validation value."""
    return planned if callable(validate) else len(validate)


def validation_of(validate: Callable[[Any], float] | Sequence[float], state: TrainingState, model: Any) -> float:
    """Returns the validation metric after an epoch: computed, or the known one."""
    return validate(model) if callable(validate) else validate[state.epoch]


def finish_epoch(state: TrainingState, validation: float, examples_per_s: float) -> TrainingState:
    """Returns the state after an epoch, which becomes the best one if its validation is higher than all before."""
    record = EpochRecord(state.epoch, state.loss_sum / max(state.batch, 1), validation, float(round(examples_per_s)))
    best_so_far = max((earlier.validation for earlier in state.records), default=-np.inf)
    return replace(
        state,
        epoch=state.epoch + 1,
        batch=0,
        loss_sum=0.0,
        best_epoch=state.epoch if validation > best_so_far or not state.records else state.best_epoch,
        records=(*state.records, record),
    )


def _has_converged(state: TrainingState, patience: int | None) -> bool:
    """Returns whether `patience` epochs have passed without a better one."""
    return patience is not None and state.epoch - 1 - state.best_epoch >= patience


def _length_predictor(settings: Train, model: Towers, objective: Objective) -> LengthPredictor | None:
    if settings.adversary is None:
        return None
    assert isinstance(model, TwoTower), "the recipe has no adversary with several towers"
    return build_length_predictor(model.item.dim, objective.dataset.examples["train"].length_s[objective.examples])


def weights_of(model: nn.Module, *, fresh: Collection[str] = ()) -> dict[str, Tensor]:
    """Returns a copy of the weights on the CPU; the `fresh` ones are not copied, because nothing else uses them."""
    return {name: tensor.detach().to("cpu", copy=name not in fresh) for name, tensor in model.state_dict().items()}
