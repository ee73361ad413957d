"""Devices of a training: the CPU or one GPU per process."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, replace
from typing import Any, Final, Literal

import torch
from torch import Tensor

from twofold.dataset.batches import Batch
from twofold.errors import RunError

DeviceName = Literal["cpu", "cuda"]
CPU: Final = torch.device("cpu")
PREFETCHED: Final = 2
"""Batches that wait for a GPU. Not measured."""
STEPS_PER_READ: Final = 50
"""Steps of a GPU between two reads of the losses, each of which waits until the GPU has caught up."""


def open_device(name: DeviceName, *, local_rank: int = 0, local_size: int = 1) -> torch.device:
    """Opens the device of the process `local_rank` of `local_size` on this machine, or raises RunError."""
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RunError(
            f"--device cuda needs a GPU, and PyTorch {torch.__version__} finds none. Check that `nvidia-smi` lists "
            f"one and that this PyTorch is built for CUDA (pytorch.org says how to install it), or train with "
            f"--device cpu."
        )
    if local_size > torch.cuda.device_count():
        raise RunError(
            f"{local_size} processes on this machine need a GPU each, and it has {torch.cuda.device_count()}. Start "
            f"torchrun with --nproc-per-node {torch.cuda.device_count()}."
        )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, cuBLAS refuses to be deterministic
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seeds the generators of the CPU and of the device, as `torch.manual_seed` does.

    On a CPU, that function would format the stack for each kind of device that it does not find, at every step.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def batch_on(device: torch.device, batch: Batch) -> Batch:
    """Returns the batch with its tensors on the device, and the original as its `host`."""
    if device.type == "cpu":
        return batch
    moved = {field.name: _on(device, getattr(batch, field.name)) for field in fields(batch) if field.name != "host"}
    return replace(batch, **moved, host=batch)


def tensor_on(device: torch.device, tensor: Tensor) -> Tensor:
    """Returns a tensor of the CPU on the device. The copy is queued: the CPU goes on, and the device's later work
    waits.
    """
    if device.type == "cpu":
        return tensor
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def reduced_precision(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Returns a context in which a GPU multiplies in `dtype` inside the layers of a tower. On a CPU nothing changes.

    Norms and sums stay in float32, as PyTorch's lists of autocast say. Not measured.
    """
    if device.type != "cuda" or dtype != torch.bfloat16:
        return nullcontext()
    return torch.autocast(device.type, dtype)


def prefetched(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yields the batches on the device. For a GPU, a thread gathers the next ones while the current one is computed:
    NumPy releases Python's lock while it gathers.
    """
    if device.type == "cpu":
        yield from batches
        return
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[Batch | None]] = deque(pool.submit(next, batches, None) for _ in range(PREFETCHED))
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, batches, None))
            yield batch_on(device, batch)
        for each in waiting:
            each.cancel()


def _on(device: torch.device, value: Any) -> Any:
    match value:
        case Tensor():
            return tensor_on(device, value)
        case tuple():
            return tuple(batch_on(device, part) for part in value)
        case dict():
            return {name: _on(device, each) for name, each in value.items()}
        case _:
            return value


@contextmanager
def deterministic(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Sets the seed and deterministic kernels, and restores the process at the end. On a GPU only the seed is set, as
    deterministic kernels sort where others add, and float32 products have the precision of TF32.
    """
    before, random_state = torch.are_deterministic_algorithms_enabled(), torch.get_rng_state()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    products = torch.get_float32_matmul_precision()
    torch.use_deterministic_algorithms(device.type != "cuda")
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else products)
    # Nothing here reads memory before it is written, and filling new memory took 5 to 8 % of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.set_float32_matmul_precision(products)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
        torch.set_rng_state(random_state)
