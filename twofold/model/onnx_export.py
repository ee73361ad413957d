"""ONNX files of encoders and other modules, which the service runs."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, assert_never

import torch
from jaxtyping import Float
from torch import Tensor, nn

from twofold.model.encoder import Block, Encoder, Lookup, Number, Pool, Sequence
from twofold.model.multi_tower import ConcatEncoder

EXAMPLES: Final = 2
"""Examples that the exporter gets: it would take a batch size of one for a constant."""


class _Positional(nn.Module):
    """A tower with positional inputs, as the exporter needs them, which it passes on under their features' names."""

    def __init__(self, tower: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.tower = tower
        self.names = names

    def forward(self, *values: Tensor) -> Float[Tensor, "batch dim"]:
        return self.tower(dict(zip(self.names, values, strict=True)))


def export_user_tower(tower: Encoder | ConcatEncoder, path: Path) -> None:
    """Writes a user tower as ONNX for any batch size: inputs as in `features.feature_names`, output `vector`."""
    values: dict[str, Tensor] = {}
    for block in tower.feature_blocks:
        values[block.name] = _empty_input(block)
        if isinstance(block, Sequence) and block.is_timed:
            values[f"{block.name}.ages"] = _empty_input(block)
    batch = torch.export.Dim("batch")
    sizes = {"values": tuple({0: batch} for _ in values)}
    export_graph(_Positional(tower, tuple(values)), values, sizes=sizes, output="vector", path=path)


def export_graph(
    module: nn.Module, values: Mapping[str, Tensor], *, sizes: Mapping[str, Any], output: str, path: Path
) -> None:
    """Writes a module as ONNX.

    `values` are example inputs by name, in the order of the module's parameters; `sizes` are their variable dimensions,
    in the form that `torch.export` expects.
    """
    registry_log = logging.getLogger("torch.onnx")
    level = registry_log.level
    registry_log.setLevel(
        logging.ERROR
    )  # otherwise it reports that torchvision, which is not used here, is not installed
    with warnings.catch_warnings():
        # The exporter warns about its own internals (deprecated pytree calls, axis names shared on purpose).
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


def _empty_input(block: Block) -> Tensor:
    """Returns an input of zeros, from which the exporter takes type and shape."""
    match block:
        case Lookup():
            return torch.zeros(EXAMPLES, dtype=torch.int32)
        case Pool():
            assert block.length is not None, "the user tower pools histories, whose length is fixed"
            return torch.zeros((EXAMPLES, block.length), dtype=torch.int32)
        case Sequence():
            return torch.zeros((EXAMPLES, block.length), dtype=torch.int32)
        case Number():
            return torch.zeros(EXAMPLES if block.dim == 1 else (EXAMPLES, block.dim))
        case _:
            assert_never(block)
