"""Weights of a model on disk, and the vectors that an encoder computes."""

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float32
from safetensors.torch import load_file, save_file
from torch import nn

from twofold.dataset.batches import TensorInputs

Built = TypeVar("Built", bound=nn.Module)


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes the weights as safetensors."""
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)


def load_weights(model: Built, path: Path) -> Built:
    """Loads weights into a newly built model; the digest of the stage ensures that the shapes match."""
    model.load_state_dict(load_file(path))
    return model


@torch.inference_mode()
def encode(tower: nn.Module, batches: Iterable[TensorInputs]) -> Float32[np.ndarray, "_ dim"]:
    """Encodes all examples of the batches, which may be on another device than the tower."""
    was_training = tower.training
    tower.eval()
    device = next(tower.parameters()).device
    moved = ({name: values.to(device) for name, values in inputs.items()} for inputs in batches)
    parts = [tower(inputs).cpu().numpy() for inputs in moved]
    tower.train(was_training)
    return np.concatenate(parts)
