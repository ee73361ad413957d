"""Summary of a model: every block and layer with its shape and number of parameters."""

from typing import assert_never

from torch import nn

from twofold.model.encoder import Block, Encoder, Lookup, Number, Pool, Sequence, module_key
from twofold.model.two_tower import TwoTower
from twofold.tables import ModelPart


def describe_model(model: TwoTower) -> list[ModelPart]:
    """Returns every block and layer of both towers, and a learned temperature, read from the modules themselves."""
    learned = [] if model.log_temperature is None else [ModelPart("score", "temperature", "learned", 1)]
    return [*describe_encoder("user", model.user), *describe_encoder("item", model.item), *learned]


def describe_encoder(name: str, tower: Encoder) -> list[ModelPart]:
    """Returns every block and layer of one tower."""
    parts = []
    for block in tower.feature_blocks:
        modules = [owned[key] for owned in (tower.tables, tower.readers) if (key := module_key(block.name)) in owned]
        count = sum(parameter.numel() for module in modules for parameter in module.parameters())
        shape = f"{_shape(block)}, the item's table" if block.name in tower.shared_tables else _shape(block)
        parts.append(ModelPart(name, block.name, shape, count))
    return parts + describe_layers(name, tower.layers)


def describe_layers(name: str, layers: nn.Sequential) -> list[ModelPart]:
    """Returns the layers that have parameters."""
    parts = []
    for layer in layers:
        count = sum(parameter.numel() for parameter in layer.parameters())
        match layer:
            case nn.Linear():
                parts.append(ModelPart(name, "linear", f"{layer.in_features} → {layer.out_features}", count))
            case nn.BatchNorm1d():
                parts.append(ModelPart(name, "batch norm", str(layer.num_features), count))
    return parts


def _shape(block: Block) -> str:
    match block:
        case Lookup():
            return f"{block.rows:,} rows, lookup → {block.width}"
        case Pool():
            table = f"{block.rows:,} rows" if block.vectors is None else f"given {block.vectors}"
            return f"{table}, {block.pool} → {block.width}"
        case Sequence():
            timed = "timed " if block.is_timed else ""
            layers = f"{block.num_layers} {timed}causal layers of {block.num_heads} heads"
            return f"{block.rows:,} rows, {layers} → {block.width}"
        case Number():
            return f"number{f' → {block.dim}' if block.hidden_dim else ''} → {block.width}"
        case _:
            assert_never(block)
