"""Estimates the memory of a training before it allocates, and stops if it does not fit."""

from pathlib import Path

import torch
from torch import nn

from twofold.errors import RunError
from twofold.train.distributed import ProcessGroup
from twofold.train.optimizer import StepSize, lazy_tables

NUMBER_BYTES = 4
STATES = 2
"""Numbers per parameter that Adam stores: the mean of the gradients and of their squares."""
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def check_memory(meta_model: nn.Module, ranks: ProcessGroup, size: StepSize) -> None:
    """Raises RunError if training the model needs more memory than is available on the rank's device. `meta_model` is
    the model on the device `meta`.

    The estimate is a lower bound: it leaves out activations, the arrays of a step and sparse gradients.
    """
    lazy = {id(table.weight) for table in lazy_tables(meta_model, size)}
    takes = {
        name: _taken(parameter, ranks, is_lazy=id(parameter) in lazy)
        for name, parameter in meta_model.named_parameters()
    }
    total, available = sum(bytes_ for bytes_, _ in takes.values()), available_bytes(ranks.device)
    if available is None or total <= available:
        return
    name, parameter = max(meta_model.named_parameters(), key=lambda each: takes[each[0]][0])
    most, why = takes[name]
    shape = " × ".join(f"{size:,}" for size in parameter.shape)
    more = ", or on several (torchrun), which share such a table" if id(parameter) in lazy else ""
    raise RunError(
        f"training this model takes {_gib(total)} and {_gib(available)} are available on {ranks.device}. Most of it is "
        f"{name}: {shape} numbers × {NUMBER_BYTES} bytes × {why} = {_gib(most)}. Lower retriever.dim, or keep fewer "
        f"items with prepare.filters (min_events), or train on a machine with more memory{more}."
    )


def _taken(parameter: nn.Parameter, ranks: ProcessGroup, *, is_lazy: bool) -> tuple[int, str]:
    """Returns the bytes that a parameter takes on the rank's device, and their terms in words. On a CPU, the ranks of
    one machine share its memory, which also stores the weights of the best epoch.
    """
    on_cpu = ranks.device.type == "cpu"
    here = ranks.on_this_machine if on_cpu else 1
    why, best = f"itself, {STATES} states of Adam", ", the best epoch" if on_cpu else ""
    factor: float
    if not is_lazy:
        each = f", × {here} processes" if here > 1 else ""
        factor, why = (2 + STATES) * here + on_cpu, f"{why}, its gradient{each}{best}"
    elif ranks.size == 1:
        factor, why = 1 + STATES + on_cpu, f"{why}{best}"
    else:  # the weights of the best epoch are in a file
        part = here / ranks.size
        at_first = ", whole at the start" if on_cpu else ""
        factor, why = max((1 + STATES) * part, part + on_cpu), f"{why}, held by {ranks.size} processes{at_first}"
    return round(parameter.numel() * NUMBER_BYTES * factor), f"{factor:.3g} ({why})"


def available_bytes(device: torch.device) -> int | None:
    """Returns the memory that is available without swapping: the smaller of what the system and the container's limit
    leave. `None` means that neither is known (not Linux).
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if not _MEMINFO.exists():
        return None
    free = int(_MEMINFO.read_text(encoding="utf-8").partition("MemAvailable:")[2].split()[0]) * 1024
    try:
        limit = int((_CGROUP / "memory.max").read_text(encoding="utf-8"))
        used = int((_CGROUP / "memory.stat").read_text(encoding="utf-8").partition("anon ")[2].split()[0])
    except (OSError, ValueError, IndexError):  # no such container, or "max": no limit
        return free
    return min(free, limit - used)


def _gib(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
