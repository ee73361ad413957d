"""ONNX files of encoders and other modules, which the service runs."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, assert_never

import torch
from jaxtyping import Float
from torch import Tensor, nn

from twofold.model.encoder import Block, ConcatEncoder, Encoder, Lookup, Number, Pool, Sequence


class _Positional(nn.Module):
    """The exporter names inputs by position; this puts them back under their features' names."""

    def __init__(self, tower: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.tower = tower
        self.names = names

    def forward(self, *values: Tensor) -> Float[Tensor, "batch dim"]:
        vector: Tensor = self.tower(dict(zip(self.names, values, strict=True)))
        return vector


def export_user_tower(tower: Encoder | ConcatEncoder, path: Path) -> None:
    """Writes a user tower as ONNX: inputs as `dataset.features.feature_names` says, any batch size; output `vector`."""
    values: dict[str, Tensor] = {}
    for block in tower.blocks:
        # Two lines: a batch of one would be taken for a constant.
        values[block.name] = _nothing(block, lines=2)
        if isinstance(block, Sequence) and block.is_timed:
            values[f"{block.name}.ages"] = _nothing(block, lines=2)
    batch = torch.export.Dim("batch")
    sizes = {"values": tuple({0: batch} for _ in values)}
    export_graph(_Positional(tower, tuple(values)), values, sizes=sizes, output="vector", path=path)


def export_graph(
    module: nn.Module, values: Mapping[str, Tensor], *, sizes: Mapping[str, Any], output: str, path: Path
) -> None:
    """Writes a module as ONNX. `values` are inputs by name, in the module's order; `sizes` are those of their
    dimensions that may change, as `torch.export` wants them.
    """
    registry_log = logging.getLogger("torch.onnx")
    level = registry_log.level
    registry_log.setLevel(logging.ERROR)  # it reports that torchvision, which nothing here uses, is not installed
    with warnings.catch_warnings():
        # The exporter warns of its own internals (deprecated pytree calls, axis names shared on purpose).
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            tuple(values.values()),
            dynamo=True,
            input_names=tuple(values),
            output_names=[output],
            dynamic_shapes=dict(sizes),
            verbose=False,
        )
    registry_log.setLevel(level)
    assert program is not None
    program.save(path)


def _nothing(block: Block, *, lines: int) -> Tensor:
    """What a block reads where there is nothing to read: gives the exporter its type and shape."""
    match block:
        case Lookup():
            return torch.zeros(lines, dtype=torch.int32)
        case Pool():
            assert block.length is not None, "the user tower pools histories, whose length is fixed"
            return torch.zeros((lines, block.length), dtype=torch.int32)
        case Sequence():
            return torch.zeros((lines, block.length), dtype=torch.int32)
        case Number():
            return torch.zeros(lines if block.dim == 1 else (lines, block.dim))
        case _:
            assert_never(block)
