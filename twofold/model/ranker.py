"""The ranker: a network over a user, an item and how they meet. It orders a hundred items, not a million."""

from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor, nn

from twofold.dataset.batches import item_batches
from twofold.dataset.dataset import Dataset, load_dataset
from twofold.dataset.features import FeatureState
from twofold.model.encoder import ConcatEncoder, Encoder
from twofold.model.formula import score_by
from twofold.model.onnx_export import export_graph, export_user_tower
from twofold.model.retriever import Model
from twofold.model.summary import describe_encoder, describe_layers
from twofold.model.two_tower import TwoTower, build_two_tower
from twofold.model.weights import encode, load_weights
from twofold.recipe import train as training
from twofold.recipe.features import Features
from twofold.recipe.ranker import RELEVANCE
from twofold.recipe.ranker import Mlp as Asked
from twofold.run_folder import write_json
from twofold.sql.rules import rule_tree
from twofold.tables import ModelPart

USER_GRAPH: Final = "ranker_user.onnx"
PAIR_GRAPH: Final = "ranker_pairs.onnx"
ITEMS: Final = "ranker_items.npy"
ABOUT: Final = "ranker.json"
_MOST: Final = 14.0  # log-odds in a formula: so no chance is nearer than 1e-6 to 0, which has no logarithm


@dataclass(frozen=True)
class RetrieverAndRankerData:
    """One dataset as either stage reads it."""

    retriever: Dataset
    ranker: Dataset


@dataclass(frozen=True)
class Scales:
    """Mean and standard deviation of the retriever's scores, and of log(1 + place), over the lists it was taught on."""

    score_mean: float
    score_std: float
    place_mean: float
    place_std: float


Side: TypeAlias = Encoder | ConcatEncoder
"""The ranker's own encoder of users or of items; and beside it a tower that is fine-tuned, if one is."""


class CrossNetwork(nn.Module):
    """x ← x₀ ⊙ (W x + b) + x, layer by layer: products of ever more of the inputs (Wang et al., *DCN V2*, WWW 2021,
    equation 1).
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, inputs: Float[Tensor, "*lines width"]) -> Float[Tensor, "*lines width"]:
        """As wide as its inputs."""
        crossed = inputs
        for layer in self.layers:
            crossed = inputs * layer(crossed) + crossed
        return crossed


class Ranker(nn.Module):
    """Encoders of both sides, then one number a pair: higher is better.

    It begins as the retriever's own order, scaled by `trust`, and learns what to change of it. A pair is what the two
    encoders say, their product, the retriever's two vectors, their product, its score and its rank. The retriever's
    vectors are those whose inner product is its score.

    The last hidden layer also says what `heads` are asked for, as log-odds; `formula` makes one number of it all.
    """

    score_mean: Tensor
    score_std: Tensor
    place_mean: Tensor
    place_std: Tensor

    def __init__(self, user: Side, item: Side, *, retrieved: int, asked: Asked) -> None:
        """`retrieved` is the width of the retriever's vectors; `top`, how many of its best items are to be ranked."""
        super().__init__()
        self.user = user
        self.item = item
        self.retrieved = retrieved
        self.top = asked.candidates.num_candidates
        width = 3 * user.dim + 3 * retrieved + 2
        layers: list[nn.Module] = [CrossNetwork(width, asked.crosses)] if asked.crosses else []
        for following in asked.hidden:
            layers += [nn.Linear(width, following), nn.ReLU()]
            layers += [nn.Dropout(asked.dropout)] if asked.dropout else []
            width = following
        last = nn.Linear(width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)
        self.trust = nn.Parameter(torch.ones(()))
        self.names = tuple(head.outcome for head in asked.heads)
        self.heads = nn.Linear(width, len(self.names)) if self.names else None
        self.formula = None if asked.formula is None else rule_tree(asked.formula, result="number")
        for name in ("score_mean", "score_std", "place_mean", "place_std"):
            self.register_buffer(name, torch.tensor(float(name.endswith("std"))))

    def fit_scales(self, scales: Scales) -> None:
        """Sets what scores and places are standardised by."""
        for name, value in vars(scales).items():
            getattr(self, name).fill_(value)

    def fit_heads(self, means: Sequence[float]) -> None:
        """Lets every head begin as the mean of what it is to learn."""
        assert self.heads is not None
        nn.init.zeros_(self.heads.weight)
        with torch.no_grad():
            self.heads.bias.copy_(torch.tensor(means).logit().clamp(-_MOST, _MOST))

    def with_formula(self, formula: str) -> "Ranker":
        """The same ranker with another formula: the name of a head, in double quotes, gives what that says."""
        other = copy(self)
        other.formula = rule_tree(formula, result="number")
        return other

    def forward(
        self,
        users: Float[Tensor, "requests dim"],
        items: Float[Tensor, "requests length dim"],
        user_vectors: Float[Tensor, "requests retrieved"],
        item_vectors: Float[Tensor, "requests length retrieved"],
        places: Int[Tensor, "requests length"],
    ) -> Float[Tensor, "requests length"]:
        """What each request's items are ordered by, from what `relevance_and_logits` reads."""
        relevance, odds = self.relevance_and_logits(users, items, user_vectors, item_vectors, places)
        if self.formula is None:
            return relevance
        # Bounds on the chances would be floats in the graph, and 1 - 1e-6 is none.
        chances = odds.clamp(-_MOST, _MOST).double().sigmoid().unbind(dim=2)
        return score_by(self.formula, {RELEVANCE: relevance, **dict(zip(self.names, chances, strict=True))})

    def relevance_and_logits(
        self,
        users: Float[Tensor, "requests dim"],
        items: Float[Tensor, "requests length dim"],
        user_vectors: Float[Tensor, "requests retrieved"],
        item_vectors: Float[Tensor, "requests length retrieved"],
        places: Int[Tensor, "requests length"],
    ) -> tuple[Float[Tensor, "requests length"], Float[Tensor, "requests length heads"]]:
        """Relevance of each request's items and the log-odds of every head, from what the encoders and the retriever
        say; places count from 0.
        """
        met = user_vectors[:, None] * item_vectors
        score = (met.sum(dim=2) - self.score_mean) / self.score_std
        place = (torch.log1p(places.to(met.dtype)) - self.place_mean) / self.place_std
        asking = torch.cat([users, user_vectors], dim=1)[:, None].expand(-1, items.shape[1], -1)
        told = [asking, items, item_vectors, users[:, None] * items, met, score[:, :, None], place[:, :, None]]
        inner, (*layers, last) = torch.cat(told, dim=2), self.layers
        for layer in layers:
            inner = layer(inner)
        odds = inner[:, :, :0] if self.heads is None else self.heads(inner)
        return self.trust * score + last(inner).squeeze(2), odds


def build_ranker(
    asked: Asked,
    state: FeatureState,
    vectors: Mapping[str, Float32[np.ndarray, "items _"]],
    *,
    retrieved: int,
    retriever: Model | None = None,
) -> Ranker:
    """The ranker a recipe asks for; `state` holds its features, `vectors` have a line an item row. To fine-tune, it
    begins with a copy of the towers of the `retriever` beside its own encoders.
    """
    sides = training.TwoTower(kind="two_tower", dim=asked.dim, score=training.Dot(kind="dot"))
    if asked.fine_tune is None:
        own = build_two_tower(sides, state, vectors)
        return Ranker(own.user, own.item, retrieved=retrieved, asked=asked)
    assert isinstance(retriever, TwoTower), "the recipe was checked"
    if asked.features is not None:
        told = state.features.model_copy(update={"user": asked.features.user, "item": asked.features.item})
        state = replace(state, features=told)
    own, towers = build_two_tower(sides, state, vectors), deepcopy(retriever)
    user, item = ConcatEncoder((own.user, towers.user)), ConcatEncoder((own.item, towers.item))
    return Ranker(user, item, retrieved=retrieved, asked=asked)


def tuned_parameters(ranker: Ranker) -> list[nn.Parameter]:
    """Those of the towers that it goes on with."""
    towers = [tower for side in (ranker.user, ranker.item) for tower in _encoders(side)[1:]]
    return [parameter for tower in towers for parameter in tower.parameters()]


def load_stages(folder: Path, retriever: Features, ranker: Features) -> RetrieverAndRankerData:
    """A dataset/ folder, with what either stage reads."""
    return RetrieverAndRankerData(load_dataset(folder, retriever), load_dataset(folder, ranker))


def load_ranker(
    asked: Asked, arrays: RetrieverAndRankerData, folder: Path, *, retrieved: int, retriever: Model | None = None
) -> Ranker:
    """What a train/ranker/ folder holds, taught by that retriever."""
    made = build_ranker(asked, arrays.ranker.features, arrays.ranker.vectors, retrieved=retrieved, retriever=retriever)
    return load_weights(made, folder / "weights.safetensors")


def describe_ranker(ranker: Ranker) -> list[ModelPart]:
    """Every block and layer, read from the modules themselves."""
    sides = [
        part
        for name, side in (("user", ranker.user), ("item", ranker.item))
        for what, encoder in zip(("ranker", "tuned tower"), _encoders(side), strict=False)
        for part in describe_encoder(f"{what}, {name}", encoder)
    ]
    crosses = [layer for layer in ranker.layers if isinstance(layer, CrossNetwork)]
    counts = [sum(parameter.numel() for parameter in layer.parameters()) for layer in crosses]
    drawn = [
        ModelPart("ranker", "crosses", f"{len(layer.layers)} of {layer.width}", count)
        for layer, count in zip(crosses, counts, strict=True)
    ]
    heads = [] if ranker.heads is None else describe_layers("ranker", nn.Sequential(ranker.heads))
    said = [replace(part, name=", ".join(ranker.names)) for part in heads]
    return sides + drawn + describe_layers("ranker", ranker.layers) + said


def _encoders(side: Side) -> tuple[Encoder, ...]:
    return side.parts if isinstance(side, ConcatEncoder) else (side,)


def save_ranker(
    ranker: Ranker, arrays: RetrieverAndRankerData, vectors: Float32[np.ndarray, "items wide"], *, at: int, folder: Path
) -> None:
    """Writes what a server ranks with: the user encoder and the scores of pairs as graphs, and what the item encoder
    says of the whole catalogue at one moment, whose vectors (of the inner product) are given.
    """
    export_user_tower(ranker.user, folder / USER_GRAPH)
    _export_pairs(ranker, folder / PAIR_GRAPH)
    np.save(folder / ITEMS, encode_item_side(ranker, arrays.ranker, vectors, at).encoded)
    write_json(folder / ABOUT, {"top": ranker.top})


def _export_pairs(ranker: Ranker, path: Path) -> None:
    """Writes what scores pairs as ONNX: inputs as `forward` names them, any number of requests and items; output
    `scores`. The encoders are not part of it.
    """
    dim, wide = ranker.user.dim, ranker.retrieved
    values = {
        "users": torch.zeros(2, dim),
        "items": torch.zeros(2, 3, dim),
        "user_vectors": torch.zeros(2, wide),
        "item_vectors": torch.zeros(2, 3, wide),
        "places": torch.zeros(2, 3, dtype=torch.int64),
    }
    requests, length = torch.export.Dim("requests"), torch.export.Dim("length")
    sizes = {name: {0: requests, 1: length} if name in _OF_ITEMS else {0: requests} for name in values}
    export_graph(ranker, values, sizes=sizes, output="scores", path=path)


_OF_ITEMS = ("items", "item_vectors", "places")


# --- many requests at one moment --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ItemSide:
    """What is known of every item before anybody asks: the retriever's vectors and what the ranker makes of its own
    features, a line an item row.
    """

    vectors: Float32[np.ndarray, "items wide"]
    encoded: Float32[np.ndarray, "items dim"]


def encode_item_side(
    ranker: Ranker, dataset: Dataset, vectors: Float32[np.ndarray, "items wide"], at: int, *, is_masked: bool = False
) -> ItemSide:
    """Of the whole catalogue at one moment; `is_masked`: as if nobody knew an item's id, and `vectors` say so too."""
    batches = item_batches(dataset, at)
    if is_masked:
        batches = ({**batch, "id": batch["id"] * 0} if "id" in batch else batch for batch in batches)
    return ItemSide(vectors, encode(ranker.item, batches))


@torch.inference_mode()
def rank_scores(
    ranker: Ranker,
    items: ItemSide,
    users: Float32[np.ndarray, "queries dim"],
    user_vectors: Float32[np.ndarray, "queries wide"],
    item_rows: Int64[np.ndarray, "queries length"],
    places: Int64[np.ndarray, "queries length"],
) -> Float32[np.ndarray, "queries length"]:
    """The ranker's scores of each query's items, which stand at these `places` of the retriever's order, from 0.

    `users` are what the ranker's user encoder says of those who ask.
    """
    was_training = ranker.training
    ranker.eval()
    given = users, items.encoded[item_rows], user_vectors, items.vectors[item_rows], places
    scores: np.ndarray = ranker(*map(torch.from_numpy, given)).numpy()
    ranker.train(was_training)
    return scores
