"""Feature blocks → one vector. Both towers are this module with other blocks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

INITIAL_STD = 0.1
"""Of embedding rows. Measured on the shipped log against PyTorch's 1.0, which needs twice the epochs."""


@dataclass(frozen=True)
class Lookup:
    """One trained vector a row; row 0 is *none* and stays zero."""

    name: str
    rows: int
    dim: int


@dataclass(frozen=True)
class Mean:
    """The mean of the trained vectors of a line's rows; row 0 is padding, an empty line gives zero."""

    name: str
    rows: int
    dim: int


@dataclass(frozen=True)
class Number:
    """A standardised number as it is."""

    name: str
    dim: int = 1


Block = Lookup | Mean | Number


class Encoder(nn.Module):
    """Concatenates its blocks, then linear layers with ReLU between, then unit length: `Float[batch dim]`."""

    def __init__(self, blocks: tuple[Block, ...], *, hidden: tuple[int, ...], dim: int) -> None:
        """`hidden` are the widths between the concatenation and the output of `dim`."""
        super().__init__()
        self.blocks = blocks
        self.tables = nn.ModuleDict(
            {block.name: _table(block.rows, block.dim) for block in blocks if not isinstance(block, Number)}
        )
        widths = (sum(block.dim for block in blocks), *hidden, dim)
        layers: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
        for width, following in zip(widths[1:], widths[2:], strict=False):
            layers += [nn.ReLU(), nn.Linear(width, following)]
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "batch dim"]:
        """`inputs` holds one tensor a block by its name; others are ignored."""
        parts = [self._embed(block, inputs[block.name]) for block in self.blocks]
        return functional.normalize(self.layers(torch.cat(parts, dim=1)), dim=1)

    def _embed(self, block: Block, values: Tensor) -> Float[Tensor, "batch width"]:
        match block:
            case Lookup():
                found: Tensor = self.tables[block.name](values)
                return found
            case Mean():
                weight = self.tables[block.name].weight
                assert isinstance(weight, Tensor)
                return mean_of_rows(weight, values)
            case Number():
                return values[:, None]
            case _:
                assert_never(block)


def mean_of_rows(table: Float[Tensor, "rows dim"], rows: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
    """The mean of the table's rows a line, 0 left out; zero where a line holds nothing else."""
    if torch.compiler.is_exporting():  # ONNX has no embedding bag; the served graph gathers and masks
        present = (rows != 0).to(table.dtype)
        total = (functional.embedding(rows, table) * present[:, :, None]).sum(dim=1)
        return total / present.sum(dim=1, keepdim=True).clamp(min=1)
    return functional.embedding_bag(rows, table, mode="mean", padding_idx=0)


def _table(rows: int, dim: int) -> nn.Embedding:
    table = nn.Embedding(rows, dim, padding_idx=0)
    with torch.no_grad():
        nn.init.normal_(table.weight, std=INITIAL_STD)
        table.weight[0] = 0
    return table
