"""The retriever: two encoders that never see one another's features, compared by cosine."""

import logging
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

import numpy as np
import torch
from jaxtyping import Float, Float32
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from twofold.dataset.features import FeatureState, feature_names
from twofold.model.encoder import Block, Encoder, Lookup, Mean, Number
from twofold.recipe import features, schema

TensorInputs = Mapping[str, Tensor]


class TwoTower(nn.Module):
    """A user encoder and an item encoder with outputs of equal width and unit length; the score is their inner
    product.
    """

    def __init__(self, user: Encoder, item: Encoder) -> None:
        """Both encoders must have the same output width."""
        super().__init__()
        self.user = user
        self.item = item


def build_two_tower(recipe: schema.TwoTower, state: FeatureState) -> TwoTower:
    """The model a recipe asks for, with tables as large as the fitted features need."""
    user = tuple(_block(feature, state, recipe.dim) for feature in state.features.user)
    item = tuple(_block(feature, state, recipe.dim) for feature in state.features.item)
    return TwoTower(
        Encoder(user, hidden=recipe.hidden, dim=recipe.dim),
        Encoder(item, hidden=recipe.hidden, dim=recipe.dim),
    )


def _block(feature: features.UserFeature | features.ItemFeature, state: FeatureState, dim: int) -> Block:
    name = features.feature_name(feature)
    match feature:
        case features.HistoryFeature():
            return Mean(name, state.table_rows(name), dim)
        case features.IdFeature():
            return Lookup(name, state.table_rows(name), dim)
        case features.CategoryFeature() | features.TimeFeature():
            return Lookup(name, state.table_rows(name), feature.dim)
        case features.BagFeature():
            return Mean(name, state.table_rows(name), feature.dim)
        case features.NumberFeature() | features.AgeFeature():
            return Number(name)
        case _:
            assert_never(feature)


@torch.inference_mode()
def encode(tower: Encoder, batches: Iterable[TensorInputs]) -> Float32[np.ndarray, "lines dim"]:
    """The vectors of all lines of the batches."""
    was_training = tower.training
    tower.eval()
    parts = [tower(inputs).cpu().numpy() for inputs in batches]
    tower.train(was_training)
    return np.concatenate(parts)


def save_weights(model: TwoTower, path: Path) -> None:
    """Writes safetensors."""
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)


def load_weights(model: TwoTower, path: Path) -> TwoTower:
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
    parts = []
    for tower_name, tower in (("user", model.user), ("item", model.item)):
        for block in tower.blocks:
            shape = f"{type(block).__name__.lower()} → {block.dim}"
            count = 0 if isinstance(block, Number) else block.rows * block.dim
            rows = "" if isinstance(block, Number) else f"{block.rows:,} rows, "
            parts.append(ModelPart(tower_name, block.name, rows + shape, count))
        for layer in tower.layers:
            if isinstance(layer, nn.Linear):
                count = sum(parameter.numel() for parameter in layer.parameters())
                parts.append(ModelPart(tower_name, "linear", f"{layer.in_features} → {layer.out_features}", count))
    return parts


class _Positional(nn.Module):
    """The exporter names inputs by position; this puts them back under their features' names."""

    def __init__(self, tower: Encoder, names: tuple[str, ...]) -> None:
        super().__init__()
        self.tower = tower
        self.names = names

    def forward(self, *values: Tensor) -> Float[Tensor, "batch dim"]:
        vector: Tensor = self.tower(dict(zip(self.names, values, strict=True)))
        return vector


def export_user_tower(model: TwoTower, state: FeatureState, path: Path) -> None:
    """Writes the user tower as ONNX: inputs named as the user features, any batch size; output `vector`, unit
    length.
    """
    names, _ = feature_names(state)
    histories = {
        feature.of: feature.last for feature in state.features.user if isinstance(feature, features.HistoryFeature)
    }
    # Two lines: a batch of one would be taken for a constant.
    values = tuple(
        torch.zeros((2, histories[name]) if name in histories else (2,), dtype=torch.int64) for name in names
    )
    batch = torch.export.Dim("batch")
    registry_log = logging.getLogger("torch.onnx")
    level = registry_log.level
    registry_log.setLevel(logging.ERROR)  # it reports that torchvision, which nothing here uses, is not installed
    with warnings.catch_warnings():
        # The exporter warns of its own internals (deprecated pytree calls, axis names shared on purpose).
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Positional(model.user, names).eval(),
            values,
            dynamo=True,
            input_names=names,
            output_names=["vector"],
            dynamic_shapes={"values": tuple({0: batch} for _ in names)},
            verbose=False,
        )
    registry_log.setLevel(level)
    assert program is not None
    program.save(path)
