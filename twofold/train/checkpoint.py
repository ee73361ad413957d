"""Checkpoints of a training: weights, optimizer state, best weights so far, and progress, in one file.

The random draws of a step depend only on its number, so a checkpoint needs no random state.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from twofold.errors import RunError
from twofold.recipe.section import Section
from twofold.run_folder import atomic_file
from twofold.train.optimizer import Optimizer
from twofold.train.sharded_embedding import sharded, whole_tables
from twofold.train.training_state import EpochRecord, StepRecord, TrainingState

MARK = "twofold"
MADE_FOR = "made for"


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    *,
    best: Mapping[str, Tensor],
    state: TrainingState,
    settings: Section,
) -> None:
    """Writes the checkpoint atomically: the previous file stays until the new one is complete. All ranks must call
    this; rank 0 writes.
    """
    optimizer_state, made_for = optimizer.state(), _made_for(settings, model)
    with whole_tables(model):
        if not optimizer.ranks.is_first:
            return
        weights = model.state_dict()
        tensors = {f"model.{name}": tensor for name, tensor in weights.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in optimizer_state.items()}
        about = {MARK: json.dumps(asdict(state)), MADE_FOR: json.dumps(made_for)}
        with atomic_file(path) as partial:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, about)


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: Optimizer, *, settings: Section
) -> tuple[TrainingState, dict[str, Tensor]] | None:
    """Loads a checkpoint into model and optimizer; returns the training state and the best weights. `None` means that
    there is no complete file. Raises RunError if settings or shapes differ. The number of ranks may have changed.
    """
    try:
        with safe_open(path, framework="pt") as file:
            saved, made_for = (json.loads(file.metadata()[name]) for name in (MARK, MADE_FOR))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (FileNotFoundError, SafetensorError, KeyError, TypeError):
        return None
    _check_same_training(path, made_for, _made_for(settings, model))
    weights = _part(tensors, "model.")
    model.load_state_dict(weights | {name: table.cut(weights[name]) for name, table in sharded(model).items()})
    optimizer.load_state(_part(tensors, "optimizer."))
    records = tuple(EpochRecord(**record) for record in saved.pop("records"))
    steps, loose = (tuple(StepRecord(**step) for step in saved.pop(name, ())) for name in ("steps", "loose"))
    return TrainingState(**saved, records=records, steps=steps, loose=loose), _part(tensors, "best.")


def _made_for(settings: Section, model: nn.Module) -> dict[str, str]:
    """Returns the state that must match before training resumes: one entry per setting, one per tensor, and the names
    of the lazy tables, whose optimizer state is kept apart.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shapes |= {name: (table.num_embeddings, table.whole_dim) for name, table in sharded(model).items()}
    weights = {f"weights {name}": " × ".join(map(str, shape)) for name, shape in shapes.items()}
    lazy = [name for name, each in model.named_modules() if isinstance(each, nn.Embedding) and each.sparse]
    tables = {"lazy tables": ", ".join(lazy)} if lazy else {}
    return dict(_fields("train", settings.model_dump(mode="json"))) | weights | tables


def _fields(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _fields(f"{name}.{key}", inner)
    else:
        yield name, json.dumps(value)


def _check_same_training(path: Path, old: dict[str, str], new: dict[str, str]) -> None:
    names = [name for name in old | new if old.get(name) != new.get(name)]
    if names:
        shown = "; ".join(f"{name}: {old.get(name, 'none')} → {new.get(name, 'none')}" for name in names[:5])
        more = f"; and {len(names) - 5} more" if len(names) > 5 else ""
        raise RunError(
            f"{path} is the checkpoint of another training, which differs in {shown}{more}. Resume with the settings "
            f"of that training, or delete the file to start again."
        )


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
