"""One file that a killed training continues from: weights, optimiser, best weights so far, position in the data."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from twofold.bundle import atomic_file
from twofold.train.optimise import Optimiser

MARK = "twofold"


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch did; `validation` is the metric the best epoch is chosen by."""

    epoch: int
    loss: float
    validation: float
    examples_per_s: float


@dataclass(frozen=True)
class Position:
    """Where training stands: the next batch to take, and what it has seen so far of this epoch."""

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    best_epoch: int = -1
    records: tuple[EpochRecord, ...] = field(default=())


def save_checkpoint(
    path: Path, model: nn.Module, optimiser: Optimiser, *, best: dict[str, Tensor], position: Position
) -> None:
    """Writes the file whole or not at all; the previous one stays until then."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    tensors |= {f"optimiser.{name}": tensor for name, tensor in optimiser.state().items()}
    tensors["random_state"] = torch.get_rng_state()
    with atomic_file(path) as partial:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            partial,
            {MARK: json.dumps(asdict(position))},
        )


def load_checkpoint(path: Path, model: nn.Module, optimiser: Optimiser) -> tuple[Position, dict[str, Tensor]] | None:
    """Fills model, optimiser and random state; returns the position and the best weights. None if there is no (whole)
    file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            saved = json.loads(file.metadata()[MARK])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (FileNotFoundError, SafetensorError, KeyError, TypeError):
        return None
    model.load_state_dict(_part(tensors, "model."))
    optimiser.load_state(_part(tensors, "optimiser."))
    torch.set_rng_state(tensors["random_state"])
    records = tuple(EpochRecord(**record) for record in saved.pop("records"))
    return Position(**saved, records=records), _part(tensors, "best.")


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
