"""Summary of a model: every block and layer with its shape and number of parameters."""

from typing import assert_never

from torch import nn

from twofold.model.encoder import Block, Encoder, Lookup, Number, Pool, Sequence
from twofold.model.two_tower import TwoTower
from twofold.tables import ModelPart


def describe_model(model: TwoTower) -> list[ModelPart]:
    """Every block and layer of both towers, read from the modules themselves."""
    return [*describe_encoder("user", model.user), *describe_encoder("item", model.item)]


def describe_encoder(name: str, tower: Encoder) -> list[ModelPart]:
    """Every block and layer of one tower."""
    parts = []
    for block in tower.blocks:
        modules = [held[block.name] for held in (tower.tables, tower.readers) if block.name in held]
        count = sum(parameter.numel() for module in modules for parameter in module.parameters())
        shape = f"{_shape(block)}, the item's table" if block.name in tower.lent else _shape(block)
        parts.append(ModelPart(name, block.name, shape, count))
    return parts + describe_layers(name, tower.layers)


def describe_layers(name: str, layers: nn.Sequential) -> list[ModelPart]:
    """Those of the layers that hold parameters."""
    parts = []
    for layer in layers:
        count = sum(parameter.numel() for parameter in layer.parameters())
        match layer:
            case nn.Linear():
                parts.append(ModelPart(name, "linear", f"{layer.in_features} → {layer.out_features}", count))
            case nn.LayerNorm():
                parts.append(ModelPart(name, "layer norm", str(layer.normalized_shape[0]), count))
            case nn.BatchNorm1d():
                parts.append(ModelPart(name, "batch norm", str(layer.num_features), count))
    return parts


def _shape(block: Block) -> str:
    match block:
        case Lookup():
            return f"{block.rows:,} rows, lookup → {block.width}"
        case Pool():
            held = f"{block.rows:,} rows" if block.over is None else f"given {block.over}"
            return f"{held}, {block.pool} → {block.width}"
        case Sequence():
            timed = "timed " if block.is_timed else ""
            return f"{block.rows:,} rows, {block.depth} {timed}causal layers of {block.heads} heads → {block.width}"
        case Number():
            return f"number{f' → {block.dim}' if block.expand else ''} → {block.width}"
        case _:
            assert_never(block)
