"""Checkpoints of a training: weights, optimizer state, best weights so far, and progress.

```
├── checkpoint.safetensors                             progress, best weights, and what every rank has a copy of
└── checkpoint.EPOCH-BATCH.RANK-of-SIZE.safetensors    a rank's columns of sharded tables and of their optimizer state
```

Each rank writes its own columns, and no rank gathers a table. Any number of ranks can go on: a rank reads the columns
that it needs from all parts. A single process has no parts. The random draws of a step depend only on its number, so a
checkpoint needs no random state.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from twofold.errors import RunError
from twofold.recipe.section import Section
from twofold.run_folder import atomic_file
from twofold.train.distributed import wait_for_all
from twofold.train.optimizer import Optimizer
from twofold.train.sharded_embedding import sharded
from twofold.train.training_state import EpochRecord, StepRecord, TrainingState

MARK = "twofold"
MADE_FOR = "made for"
PARTS = "parts"


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    *,
    best: Mapping[str, Tensor],
    state: TrainingState,
    settings: Section,
) -> None:
    """Writes the checkpoint: the previous one stays until all parts are complete. All ranks must call this."""
    ranks, tables = optimizer.ranks, sharded(model)
    whole = {f"model.{name}": tensor for name, tensor in model.state_dict().items() if name not in tables}
    own: dict[str, Tensor] = {f"model.{name}": table.weight.data for name, table in tables.items()}
    for key, tensor in optimizer.state().items():
        is_cut = tensor.ndim > 0 and optimizer.table_of(key) is not None
        (own if is_cut else whole)[f"optimizer.{key}"] = tensor
    at = f"{path.stem}.{state.epoch}-{state.batch}"
    parts = [f"{at}.{rank}-of-{ranks.size}{path.suffix}" for rank in range(ranks.size)]
    if own:
        _write(path.with_name(parts[ranks.rank]), own, {})
        wait_for_all(ranks)
    if not ranks.is_first:
        return
    named = parts if own else []
    about = {MARK: asdict(state), MADE_FOR: _made_for(settings, model), PARTS: named}
    _write(path, whole | {f"best.{name}": tensor for name, tensor in best.items()}, about)
    _delete_parts(path, but=named)


def _write(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    with atomic_file(path) as partial:
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, partial, {name: json.dumps(value) for name, value in about.items()})


def delete_checkpoint(path: Path) -> None:
    """Deletes a checkpoint with its parts."""
    path.unlink(missing_ok=True)
    _delete_parts(path, but=())


def _delete_parts(path: Path, *, but: Collection[str]) -> None:
    for part in path.parent.glob(f"{path.stem}.*-of-*"):  # also what a killed attempt was writing
        if part.name not in but:
            part.unlink()


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: Optimizer, *, settings: Section
) -> tuple[TrainingState, dict[str, Tensor]] | None:
    """Loads a checkpoint into model and optimizer; returns the training state and, on rank 0, the best weights. `None`
    means that there is no complete checkpoint. Raises RunError if settings or shapes differ. The number of ranks may
    have changed.
    """
    try:
        with safe_open(path, framework="pt") as file:
            saved, made_for, parts = (json.loads(file.metadata()[name]) for name in (MARK, MADE_FOR, PARTS))
            _check_same_training(path, made_for, _made_for(settings, model))
            columns, tensors = _columns_to_read(model, optimizer), {}
            for name in file.keys():  # noqa: SIM118 - no mapping
                if optimizer.ranks.is_first or not name.startswith("best."):
                    held = file.get_slice(name)
                    is_table = len(held.get_shape()) > 1
                    tensors[name] = held[:, columns(name)].contiguous() if is_table else file.get_tensor(name)
        tensors |= _read_parts([path.with_name(part) for part in parts], columns)
    except (FileNotFoundError, SafetensorError, KeyError, TypeError):
        return None
    model.load_state_dict(_part(tensors, "model."))
    optimizer.load_state(_part(tensors, "optimizer."))
    records = tuple(EpochRecord(**record) for record in saved.pop("records"))
    steps, loose = (tuple(StepRecord(**step) for step in saved.pop(name, ())) for name in ("steps", "loose"))
    return TrainingState(**saved, records=records, steps=steps, loose=loose), _part(tensors, "best.")


def _columns_to_read(model: nn.Module, optimizer: Optimizer) -> Callable[[str], slice]:
    """Returns a function that says which columns of a whole tensor this rank holds, by its name in a checkpoint."""
    tables = sharded(model)

    def columns(name: str) -> slice:
        kind, _, key = name.partition(".")
        table = optimizer.table_of(key) if kind == "optimizer" else tables.get(key) if kind == "model" else None
        return slice(None) if table is None else table.columns

    return columns


def _read_parts(parts: Sequence[Path], columns: Callable[[str], slice]) -> dict[str, Tensor]:
    """Returns the columns that this rank holds of the tensors that the parts have; nothing else is read."""
    found: dict[str, list[Tensor]] = {}
    firsts: dict[str, int] = {}
    for part in parts:
        with safe_open(part, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                own, wanted = file.get_slice(name), columns(name)
                first = firsts.get(name, 0)
                firsts[name] = end = first + own.get_shape()[1]
                begin, stop = max(wanted.start or 0, first), min(end if wanted.stop is None else wanted.stop, end)
                pieces = found.setdefault(name, [])
                if begin < stop or not pieces:
                    pieces.append(own[:, begin - first : max(stop, begin) - first])
    return {name: torch.cat(pieces, dim=1) for name, pieces in found.items()}


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
