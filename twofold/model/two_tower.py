"""The retriever: two encoders that never see one another's features, and how their outputs are compared."""

import logging
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, assert_never

import numpy as np
import torch
from jaxtyping import Float, Float32
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from twofold.dataset.features import FeatureState
from twofold.model.encoder import Block, ConcatEncoder, Encoder, Layers, Lookup, Number, Pool, Sequence
from twofold.recipe import train as training
from twofold.recipe.features import (
    AgeFeature,
    BagFeature,
    CategoryFeature,
    ClusterFeature,
    CounterFeature,
    HistoryFeature,
    IdFeature,
    ItemFeature,
    NumberFeature,
    ProfileFeature,
    SequenceFeature,
    TimeFeature,
    UserFeature,
    VectorFeature,
    feature_name,
)

TensorInputs = Mapping[str, Tensor]
Built = TypeVar("Built", bound=nn.Module)


class TwoTower(nn.Module):
    """A user encoder and an item encoder with outputs of equal width.

    The score is their inner product (of vectors of length 1 where it is called cosine) or their negative distance;
    losses read it divided by the temperature.
    """

    def __init__(self, user: Encoder, item: Encoder, *, score: training.Score) -> None:
        """Both encoders must have the same output width; for cosine, both give vectors of length 1."""
        super().__init__()
        self.user = user
        self.item = item
        self.score = score.kind
        self.temperature = score.temperature if isinstance(score, training.Cosine) else 1.0

    def as_products(
        self, users: Float[Tensor, "users dim"], items: Float[Tensor, "items dim"]
    ) -> tuple[Float[Tensor, "users wide"], Float[Tensor, "items wide"]]:
        """Vectors whose inner products are the scores: the same, unless the score is a distance.

        -‖u - v‖² = (u, ‖u‖², 1) · (2v, -1, -‖v‖²), so that every loss is written once, over products.
        """
        if self.score != "negative_distance":
            return users, items
        one_user, one_item = torch.ones_like(users[:, :1]), torch.ones_like(items[:, :1])
        return (
            torch.cat([users, users.square().sum(dim=1, keepdim=True), one_user], dim=1),
            torch.cat([2 * items, -one_item, -items.square().sum(dim=1, keepdim=True)], dim=1),
        )

    def own_logits(
        self, users: Float[Tensor, "batch dim"], items: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch"]:
        """Line by line, the score of the user and the item over the temperature."""
        queries, factors = self.as_products(users, items)
        return (queries * factors).sum(dim=1) / self.temperature


def build_two_tower(
    recipe: training.TwoTower, state: FeatureState, vectors: Mapping[str, Float32[np.ndarray, "items _"]]
) -> TwoTower:
    """The model a recipe asks for, with tables as large as the fitted features need; `vectors` has a line an item
    row.
    """
    widths = {name: int(values.shape[1]) for name, values in vectors.items()}
    user, item = (
        tuple(_block(feature, state, f"{tower}.", dim=recipe.dim, widths=widths) for feature in side)
        for tower, side in (("user", state.features.user), ("item", state.features.item))
    )
    read = {block.over for block in user if isinstance(block, Pool)} - {None}
    given = {name: _with_none(values) for name, values in vectors.items() if name in read}
    layers = Layers(
        recipe.dim,
        recipe.hidden,
        dropout=recipe.dropout,
        layer_norm=recipe.norm == "layer",
        batch_norm=recipe.output_norm == "batch_norm",
        unit_length=recipe.output_norm == "l2" or isinstance(recipe.score, training.Cosine),
    )
    shared = [
        feature_name(feature)
        for feature in state.features.user
        if isinstance(feature, HistoryFeature | SequenceFeature) and feature.share_item_embedding
    ]
    # The user tower's weights are drawn first, before there is a table to lend: see docs/log.md on the adversary.
    users = Encoder(user, layers, given=given, lent={name: nn.Embedding(1, 1) for name in shared})
    items = Encoder(item, layers)
    users.lent.update({name: items.table_of(block) for block in item if block.name == "id" for name in shared})
    return TwoTower(users, items, score=recipe.score)


def _block(
    feature: UserFeature | ItemFeature, state: FeatureState, tower: str, *, dim: int, widths: Mapping[str, int]
) -> Block:
    name = feature_name(feature)
    match feature:
        case HistoryFeature(max_length=last, vectors=over, pool=pool):
            if over is None:
                return Pool(name, 1 + state.num_known_items, dim, pool, last)
            return Pool(name, 0, widths[over], pool, last, over)
        case SequenceFeature(max_length=last):
            return Sequence(
                name,
                1 + state.num_known_items,
                dim,
                last,
                depth=feature.num_layers,
                heads=feature.num_heads,
                dropout=feature.dropout,
                is_timed=feature.time_bias,
            )
        case ClusterFeature():
            return Number(name, feature.num_clusters)
        case ProfileFeature():
            return Number(name, feature.length)
        case VectorFeature():
            return Number(name, widths[feature.vectors])
        case IdFeature():
            known = state.num_known_items if tower == "item." else len(state.vocabularies[tower + name])
            return Lookup(name, 1 + known, dim, feature.unknown_rate)
        case TimeFeature():
            return Lookup(name, 1 + (24 if feature.part == "hour" else 7), feature.dim)
        case CategoryFeature():
            return Lookup(name, 1 + len(state.vocabularies[tower + name]), feature.dim)
        case BagFeature():
            return Pool(name, 1 + len(state.vocabularies[tower + name]), feature.dim)
        case NumberFeature() | AgeFeature() | CounterFeature():
            return Number(name, expand=feature.hidden_dim)
        case _:
            assert_never(feature)


def _with_none(vectors: Float32[np.ndarray, "items dim"]) -> Float[Tensor, "rows dim"]:
    """Row 0 is none, item rows follow."""
    return torch.from_numpy(np.pad(vectors, ((1, 0), (0, 0))))


@torch.inference_mode()
def encode(tower: nn.Module, batches: Iterable[TensorInputs]) -> Float32[np.ndarray, "lines dim"]:
    """The vectors of all lines of the batches, which may lie elsewhere than the tower."""
    was_training = tower.training
    tower.eval()
    device = next(tower.parameters()).device
    there = ({name: values.to(device) for name, values in inputs.items()} for inputs in batches)
    parts = [tower(inputs).cpu().numpy() for inputs in there]
    tower.train(was_training)
    return np.concatenate(parts)


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes safetensors."""
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)


def load_weights(model: Built, path: Path) -> Built:
    """Fills a freshly built model; shapes must fit, which the stage's digest has made sure of."""
    model.load_state_dict(load_file(path))
    return model


@dataclass(frozen=True)
class ModelPart:
    """One block or layer as the drawing of the model shows it."""

    tower: str
    name: str
    shape: str
    parameters: int


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
