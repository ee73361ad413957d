"""Said before it is allocated: what a model takes in training, against what there is."""

from pathlib import Path

import torch
from torch import nn

from twofold.errors import RunError
from twofold.train.optimise import lazy_tables

NUMBER_BYTES = 4
STATES = 2
"""Of Adam, a number each: the mean of the gradients and of their squares."""
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def refuse_what_does_not_fit(sketch: nn.Module, *, device: torch.device, rows_per_step: int, copies: int = 1) -> None:
    """RunError with the sum, if training the model needs more than is available; `sketch` is the model without memory
    (on the device `meta`). `copies` of it are trained by as many processes in the same memory.

    A lower bound: activations and a step's own arrays come on top. The gradient of a table that gets a sparse one is
    small and left out; the copy of the best epoch lies in ordinary memory.
    """
    lazy = {id(table.weight) for table in lazy_tables(sketch, rows_per_step=rows_per_step)}
    kept = 1 + STATES + (device.type == "cpu")
    takes = {
        name: parameter.numel() * NUMBER_BYTES * (kept + (id(parameter) not in lazy)) * copies
        for name, parameter in sketch.named_parameters()
    }
    total, available = sum(takes.values()), available_bytes(device)
    if available is None or total <= available:
        return
    name, parameter = max(sketch.named_parameters(), key=lambda each: takes[each[0]])
    shape = " × ".join(f"{size:,}" for size in parameter.shape)
    times = kept + (id(parameter) not in lazy)
    processes = f" × {copies} processes" if copies > 1 else ""
    raise RunError(
        f"training this model takes {_gib(total)} and {_gib(available)} are available on {device}. Most of it is "
        f"{name}: {shape} numbers × {NUMBER_BYTES} bytes × {times} (itself, its gradient unless that is sparse, "
        f"{STATES} states of Adam, the best epoch){processes} = {_gib(takes[name])}. Lower retriever.dim, or keep "
        f"fewer items with prepare.filters (min_events), or train on a machine with more memory."
    )


def available_bytes(device: torch.device) -> int | None:
    """Memory that can be had without swapping: the least of what the system and the container's limit leave. None where
    neither says (not Linux).
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if not _MEMINFO.exists():
        return None
    free = int(_MEMINFO.read_text().partition("MemAvailable:")[2].split()[0]) * 1024
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.stat").read_text().partition("anon ")[2].split()[0])
    except (OSError, ValueError, IndexError):  # no such container, or "max": no limit
        return free
    return min(free, limit - used)


def _gib(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
