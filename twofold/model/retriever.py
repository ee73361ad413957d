"""Interface of all retrievers: loading, vectors, scores, export and summary of two towers, of peers, and of both."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias, assert_never

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64

from twofold.dataset.batches import item_batches, query_batches
from twofold.dataset.dataset import Dataset, load_dataset
from twofold.dataset.recent_counts import count_events
from twofold.model.fold_in import FoldIn, HistoryModel, ItemSums, load_factors, save_fold_in
from twofold.model.history_additions import HistoryAdditions, load_additions
from twofold.model.multi_tower import MultiTower, Towers, build_towers, describe_unbuilt_towers, encode_items
from twofold.model.multi_tower import describe_towers as describe_built_towers
from twofold.model.onnx_export import export_user_tower
from twofold.model.two_tower import TwoTower
from twofold.model.weights import encode, load_weights
from twofold.recipe import retriever as retriever_recipe
from twofold.recipe.features import Features
from twofold.run_folder import numbered
from twofold.tables import DAY_MS, ModelPart
from twofold.topk import Additions

WEIGHTS = "weights.safetensors"


def towers_folder(folder: Path, number: int) -> Path:
    """Returns the folder of one of several pairs of towers: the train/ folder itself for the first."""
    return folder / f"towers-{number}" if number else folder


@dataclass(frozen=True)
class Blend:
    """Retrievers whose scores are added: each vector holds those of all parts, one after the other.

    The parts are pairs of towers of several seeds, then peers, which hold their weights in the sum. Their scores must
    be inner products.
    """

    score: ClassVar[Literal["dot"]] = "dot"

    parts: tuple[Towers | HistoryModel, ...]
    added: HistoryAdditions | None = None
    """Additions to the scores of some items by the user's newest positives."""

    @property
    def towers(self) -> tuple[Towers, ...]:
        """Parts that are towers."""
        return tuple(part for part in self.parts if isinstance(part, Towers))

    @property
    def peers(self) -> tuple[HistoryModel, ...]:
        """Parts that are peers."""
        return tuple(part for part in self.parts if isinstance(part, HistoryModel))


Model: TypeAlias = Towers | HistoryModel | Blend


def load_model(config: retriever_recipe.Retriever, dataset: Dataset, folder: Path) -> Model:
    """Loads the model of a train/ folder, with the recipe and the dataset that it was trained with.

    With `kind: best` it is what was best on the validation window: the towers, a peer, or a sum of them. With
    `ensemble`, the towers are a sum themselves.
    """
    match config:
        case retriever_recipe.TwoTower():
            paths = [
                path for number in range(config.ensemble) if (path := towers_folder(folder, number) / WEIGHTS).exists()
            ]
            parts: list[Towers | HistoryModel] = [load_weights(build_towers(config, dataset), path) for path in paths]
            parts += load_factors(folder)
            added = load_additions(folder)
            return parts[0] if len(parts) == 1 and added is None else Blend(tuple(parts), added)
        case retriever_recipe.Ials():
            return load_factors(folder)[0]
        case _:
            assert_never(config)


def item_vectors(model: Model, dataset: Dataset, at: int, *, as_new: bool = False) -> Float32[np.ndarray, "items dim"]:
    """Returns the item vectors of the whole catalogue at one time (UTC milliseconds).

    `as_new` gives each the vector that it would have if it were new: see `item_inputs`. For iALS, which knows an item
    by its positives alone, that is zero.
    """
    match model:
        case TwoTower() | MultiTower():
            return encode_items(model, item_batches(dataset, at, as_new=as_new))
        case FoldIn() | ItemSums():
            own = np.zeros_like(model.item_vectors) if as_new else model.item_vectors
            return _with_prior(model, own, dataset, at)
        case Blend():
            return np.concatenate([item_vectors(part, dataset, at, as_new=as_new) for part in model.parts], axis=1)
        case _:
            assert_never(model)


def _with_prior(
    model: HistoryModel, vectors: Float32[np.ndarray, "items dim"], dataset: Dataset, at: int
) -> Float32[np.ndarray, "items _"]:
    if model.prior is None:
        return vectors
    spans = [at - days * DAY_MS for days in model.prior.days]
    counts = [count_events(dataset.positives, len(dataset.items), first=first, end=at) for first in spans]
    return np.concatenate([vectors, model.prior.values(counts)[:, None]], axis=1)


def user_vectors(
    model: Model, dataset: Dataset, user_rows: Int64[np.ndarray, "queries"], at: Int64[np.ndarray, "queries"]
) -> Float32[np.ndarray, "queries dim"]:
    """Returns the vectors of users of the log at these times, from their events strictly before."""
    if isinstance(model, Blend):
        return np.concatenate([user_vectors(part, dataset, user_rows, at) for part in model.parts], axis=1)
    # Histories in a batch have about the same length, so that a sequence encoder reads little padding.
    order = np.argsort(dataset.positives.before(user_rows, at), kind="stable")
    batches = query_batches(dataset, user_rows[order], at[order])
    match model:
        case TwoTower() | MultiTower():
            vectors = encode(model.user, batches)
        case FoldIn() | ItemSums():
            arrays = ({name: values.numpy() for name, values in inputs.items()} for inputs in batches)
            vectors = np.concatenate([model.vectors(inputs) for inputs in arrays])
        case _:
            assert_never(model)
    return vectors[np.argsort(order)]


def additions_of(
    model: Model, dataset: Dataset, user_rows: Int64[np.ndarray, "queries"], at: Int64[np.ndarray, "queries"]
) -> Additions | None:
    """Returns what the histories of users of the log before these times add to the scores; `None` is nothing."""
    if not isinstance(model, Blend) or model.added is None:
        return None
    return model.added.of(newest_positives(dataset, user_rows, at))


def newest_positives(
    dataset: Dataset, user_rows: Int64[np.ndarray, "queries"], at: Int64[np.ndarray, "queries"]
) -> Int32[np.ndarray, "queries _"]:
    """Returns the positives that the user tower reads, as table rows: the newest, up to the longest history."""
    return dataset.positives.last_before(user_rows, at, n=dataset.features.history_length("positives"))


def as_products(
    model: Model, users: Float32[np.ndarray, "users dim"], items: Float32[np.ndarray, "items dim"]
) -> tuple[Float32[np.ndarray, "users _"], Float32[np.ndarray, "items _"]]:
    """Returns vectors whose inner products are the model's scores: see `TwoTower.as_products`."""
    if not isinstance(model, TwoTower):
        return users, items
    queries, factors = model.as_products(torch.from_numpy(users), torch.from_numpy(items))
    return queries.numpy(), factors.numpy()


def save_user_side(model: Model, folder: Path, *, number: int = 0) -> None:
    """Writes the files from which the service computes user vectors, beside the index of the item vectors.

    `number` counts the towers, or the peers, of one retriever.
    """
    match model:
        case TwoTower() | MultiTower():
            export_user_tower(model.user, folder / numbered("user_tower.onnx", number))
        case FoldIn() | ItemSums():
            save_fold_in(model, folder, number=number)
        case Blend():
            for parts in (model.towers, model.peers):
                for number, part in enumerate(parts):
                    save_user_side(part, folder, number=number)
        case _:
            assert_never(model)


def describe_towers(config: retriever_recipe.Retriever, features: Features, dataset: Path) -> list[ModelPart]:
    """Returns the blocks and layers of towers that are not built yet, for a dataset/ folder; empty for iALS."""
    arrays = load_dataset(dataset, features)
    return describe_unbuilt_towers(config, arrays) if isinstance(config, retriever_recipe.TwoTower) else []


def describe_model(model: Model) -> list[ModelPart]:
    """Returns every block and layer of the model."""
    match model:
        case TwoTower() | MultiTower():
            return describe_built_towers(model)
        case FoldIn() | ItemSums():
            items, dim = model.item_vectors.shape
            how = "solved from" if isinstance(model, FoldIn) else "sum of"
            return [
                ModelPart("user", "positives", f"{how} their items' vectors → {dim}", 0),
                ModelPart("item", "id", f"{items:,} rows → {dim}", items * dim),
            ]
        case Blend():
            # All pairs of towers have the same parts.
            first = describe_built_towers(model.towers[0]) if model.towers else []
            first = [replace(part, parameters=part.parameters * len(model.towers)) for part in first]
            of_peers = [
                replace(part, name=f"{part.name} of the peer") for peer in model.peers for part in describe_model(peer)
            ]
            return [*first, *of_peers, *_describe_additions(model.added)]
        case _:
            assert_never(model)


def _describe_additions(added: HistoryAdditions | None) -> list[ModelPart]:
    if added is None:
        return []
    parts = [ModelPart("user", "repeats", "times seen × weight → score", 1)] if added.repeats else []
    if added.neighbors is not None:
        weights = int((added.neighbors.item_rows >= 0).sum())
        parts.append(ModelPart("user", "item neighbors", f"sum of {weights:,} similarities → score", weights))
    return parts
