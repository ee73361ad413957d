"""The retriever of a run, whichever it is: the one place that asks which."""

from pathlib import Path
from typing import TypeAlias, assert_never

import numpy as np
from jaxtyping import Float32, Int64

from twofold.dataset.arrays import Dataset, load_dataset
from twofold.dataset.batches import item_batches, query_batches
from twofold.model import two_tower
from twofold.model.fold_in import FoldIn, load_factors, save_fold_in
from twofold.model.two_tower import ModelPart, TwoTower
from twofold.recipe import training

Model: TypeAlias = TwoTower | FoldIn


def load_model(asked: training.Retriever, dataset: Dataset, folder: Path) -> Model:
    """What a train/ folder holds, for the recipe and the dataset it was made of."""
    match asked:
        case training.TwoTower():
            model = two_tower.build_two_tower(asked, dataset.features, dataset.vectors)
            return two_tower.load_weights(model, folder / "weights.safetensors")
        case training.Ials():
            return load_factors(folder)
        case _:
            assert_never(asked)


def item_vectors(model: Model, dataset: Dataset, at: int) -> Float32[np.ndarray, "items dim"]:
    """Vectors of the whole catalogue at one moment (UTC milliseconds)."""
    match model:
        case TwoTower():
            return two_tower.encode(model.item, item_batches(dataset, at))
        case FoldIn():
            return model.item_vectors
        case _:
            assert_never(model)


def user_vectors(
    model: Model, dataset: Dataset, user_rows: Int64[np.ndarray, "queries"], at: Int64[np.ndarray, "queries"]
) -> Float32[np.ndarray, "queries dim"]:
    """What users of the log ask with at these moments, knowing their events strictly before."""
    # Histories of about one length in a block: a sequence encoder then works on little padding.
    order = np.argsort(dataset.positives.before(user_rows, at), kind="stable")
    batches = query_batches(dataset, user_rows[order], at[order])
    match model:
        case TwoTower():
            vectors = two_tower.encode(model.user, batches)
        case FoldIn():
            asked = ({name: values.numpy() for name, values in inputs.items()} for inputs in batches)
            vectors = np.concatenate([model.vectors(inputs) for inputs in asked])
        case _:
            assert_never(model)
    return vectors[np.argsort(order)]


def save_user_side(model: Model, folder: Path) -> None:
    """Writes what a server makes users' vectors with, beside the index of the items' vectors."""
    match model:
        case TwoTower():
            two_tower.export_user_tower(model, folder / "user_tower.onnx")
        case FoldIn():
            save_fold_in(model, folder)
        case _:
            assert_never(model)


def describe_towers(asked: training.Retriever, dataset: Path) -> list[ModelPart]:
    """The same of towers that are not made yet, for a dataset/ folder; nothing for a retriever that is solved."""
    arrays = load_dataset(dataset)
    return two_tower.describe_unmade(asked, arrays) if isinstance(asked, training.TwoTower) else []


def describe_model(model: Model) -> list[ModelPart]:
    """Every part of it as the drawing of the model shows it."""
    match model:
        case TwoTower():
            return two_tower.describe_model(model)
        case FoldIn():
            items, dim = model.item_vectors.shape
            return [
                ModelPart("user", "positives", f"solved from their items' vectors → {dim}", 0),
                ModelPart("item", "id", f"{items:,} rows → {dim}", items * dim),
            ]
        case _:
            assert_never(model)
