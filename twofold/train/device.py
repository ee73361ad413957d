"""Devices of a training: the CPU or one GPU per process."""

import os
from dataclasses import fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from twofold.dataset.batches import Batch
from twofold.errors import RunError

DeviceName = Literal["cpu", "cuda"]


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


def batch_on(device: torch.device, batch: Batch) -> Batch:
    """Returns the batch with its tensors on the device."""
    if device.type == "cpu":
        return batch
    return replace(batch, **{field.name: _on(device, getattr(batch, field.name)) for field in fields(batch)})


def _on(device: torch.device, value: Any) -> Any:
    match value:
        case Tensor():
            return value.to(device)
        case tuple():
            return tuple(batch_on(device, part) for part in value)
        case dict():
            return {name: _on(device, each) for name, each in value.items()}
        case _:
            return value
