"""The ranker, the second stage of recommendation: a network that scores pairs of a user and a candidate item."""

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor, nn

from twofold.dataset.batches import item_batches
from twofold.dataset.dataset import Dataset, load_dataset
from twofold.dataset.features import FeatureState
from twofold.model.encoder import Encoder
from twofold.model.formula import score_by
from twofold.model.onnx_export import export_graph, export_user_tower
from twofold.model.summary import describe_encoder, describe_layers
from twofold.model.two_tower import build_two_tower
from twofold.model.weights import encode, load_weights
from twofold.ragged import chunks
from twofold.recipe import retriever as retriever_recipe
from twofold.recipe.features import Features
from twofold.recipe.ranker import RELEVANCE, Mlp
from twofold.run_folder import Stage, write_json
from twofold.sql.rules import rule_tree
from twofold.tables import ModelPart
from twofold.topk import Additions, with_additions

USER_GRAPH: Final = "ranker_user.onnx"
PAIR_GRAPH: Final = "ranker_pairs.onnx"
ITEMS: Final = "ranker_items.npy"
ABOUT: Final = "ranker.json"
MAX_LOGIT: Final = 14.0
"""Log-odds in a formula are clamped to ±14, so that no probability is nearer than 1e-6 to 0, which has no logarithm."""
CHUNK_ELEMENTS: Final = 2**22
"""Numbers of item vectors gathered at a time: 16 MiB of float32."""


@dataclass(frozen=True)
class RetrieverAndRankerData:
    """One dataset, once with the retriever's features and once with the ranker's."""

    retriever: Dataset
    ranker: Dataset


def load_ranker_data(folder: Path, retriever: Features, ranker: Features) -> RetrieverAndRankerData:
    """Loads a `dataset/` folder with the features of either stage."""
    return RetrieverAndRankerData(load_dataset(folder, retriever), load_dataset(folder, ranker))


# --- the network ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scales:
    """Mean and standard deviation of the retriever's scores and of log(1 + rank), over candidate lists of training."""

    score_mean: float
    score_std: float
    rank_mean: float
    rank_std: float


class Ranker(nn.Module):
    """Encoders of users and items, and layers that turn a pair into one score: higher is better.

    A pair is described by the outputs of both encoders and their product, the retriever's two vectors and their
    product, the retrieval score and rank, and the rank in the list of each further source of candidates. The
    retriever's vectors are those whose inner product is its score, with additions as `with_additions` has them.

    The initial ranker keeps the retriever's order: its relevance is the retrieval score times `retrieval_weight`, plus
    a last layer that begins at zero. `heads` predict the recipe's outcomes as log-odds, from the last hidden layer, and
    `formula` combines relevance and predictions into the score. Without a formula, the score is a mean of relevance and
    retrieval score, in which the latter has the weight `retriever_share`: 0 is the ranker alone, 1 the retriever alone.
    """

    score_mean: Tensor
    score_std: Tensor
    rank_mean: Tensor
    rank_std: Tensor
    retriever_share: Tensor

    def __init__(self, user: Encoder, item: Encoder, *, vector_dim: int, config: Mlp) -> None:
        """Builds the layers for retriever vectors of width `vector_dim`."""
        super().__init__()
        self.user = user
        self.item = item
        self.vector_dim = vector_dim
        self.top = config.candidates.num_candidates
        self.num_sources = len(config.candidates.sources)
        width = 3 * user.dim + 3 * vector_dim + 2 + self.num_sources
        layers: list[nn.Module] = []
        for hidden in config.hidden:
            layers += [nn.Linear(width, hidden), nn.ReLU()]
            layers += [nn.Dropout(config.dropout)] if config.dropout else []
            width = hidden
        last = nn.Linear(width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)
        self.retrieval_weight = nn.Parameter(torch.ones(()))
        self.names = tuple(head.outcome for head in config.heads)
        self.heads = nn.Linear(width, len(self.names)) if self.names else None
        self.formula = None if config.formula is None else rule_tree(config.formula, result="number")
        for name in ("score_mean", "score_std", "rank_mean", "rank_std"):
            self.register_buffer(name, torch.tensor(float(name.endswith("std"))))
        self.register_buffer("retriever_share", torch.zeros(()), persistent=False)

    def fit_scales(self, scales: Scales) -> None:
        """Sets the means and deviations that standardize scores and ranks."""
        for name, value in vars(scales).items():
            getattr(self, name).fill_(value)

    def set_retriever_share(self, share: float) -> None:
        """Sets the weight of the retrieval score in the score, from 0 to 1; training does not read it."""
        self.retriever_share.fill_(share)

    def fit_heads(self, means: Sequence[float]) -> None:
        """Initializes every head to predict the mean of its outcome."""
        assert self.heads is not None
        nn.init.zeros_(self.heads.weight)
        with torch.no_grad():
            self.heads.bias.copy_(torch.tensor(means).logit().clamp(-MAX_LOGIT, MAX_LOGIT))

    def with_formula(self, formula: str) -> "Ranker":
        """Returns the same network with another formula; the name of a head, in quotes, is its prediction."""
        other = copy(self)
        other.formula = rule_tree(formula, result="number")
        return other

    def forward(
        self,
        users: Float[Tensor, "queries dim"],
        items: Float[Tensor, "queries length dim"],
        user_vectors: Float[Tensor, "queries _"],
        item_vectors: Float[Tensor, "queries length _"],
        ranks: Int[Tensor, "queries length _"],
    ) -> Float[Tensor, "queries length"]:
        """Returns the score that orders each query's items; the inputs are those of `scores_and_logits`."""
        retrieval, relevance, logits = self.scores_and_logits(users, items, user_vectors, item_vectors, ranks)
        if self.formula is None:
            return (1 - self.retriever_share) * relevance + self.retriever_share * retrieval
        # The exporter writes bounds of doubles as floats, and 1 - 1e-6 is no float: so the logits are clamped.
        predicted = logits.clamp(-MAX_LOGIT, MAX_LOGIT).double().sigmoid().unbind(dim=2)
        return score_by(self.formula, {RELEVANCE: relevance, **dict(zip(self.names, predicted, strict=True))})

    def scores_and_logits(
        self,
        users: Float[Tensor, "queries dim"],
        items: Float[Tensor, "queries length dim"],
        user_vectors: Float[Tensor, "queries _"],
        item_vectors: Float[Tensor, "queries length _"],
        ranks: Int[Tensor, "queries length _"],
    ) -> tuple[Float[Tensor, "queries length"], Float[Tensor, "queries length"], Float[Tensor, "queries length _"]]:
        """Returns the standardized retrieval score and the relevance of each query's items, and each head's log-odds.

        `users` and `items` are outputs of the encoders, and the vectors are the retriever's. Ranks are those in the
        retriever's list, then in that of each source; they count from 0, and `top` means that the item is not there.
        """
        product = user_vectors[:, None] * item_vectors
        score = (product.sum(dim=2) - self.score_mean) / self.score_std
        log_ranks = torch.log1p(ranks.to(product.dtype))
        rank = (log_ranks[:, :, :1] - self.rank_mean) / self.rank_std
        in_sources = [1 - log_ranks[:, :, 1:] / math.log1p(self.top)] if self.num_sources else []  # 0: not listed
        user_side = torch.cat([users, user_vectors], dim=1)[:, None].expand(-1, items.shape[1], -1)
        parts = [user_side, items, item_vectors, users[:, None] * items, product, score[:, :, None], rank, *in_sources]
        inner, (*layers, last) = torch.cat(parts, dim=2), self.layers
        for layer in layers:
            inner = layer(inner)
        logits = inner[:, :, :0] if self.heads is None else self.heads(inner)
        return score, self.retrieval_weight * score + last(inner).squeeze(2), logits


def build_ranker(
    config: Mlp, state: FeatureState, vectors: Mapping[str, Float32[np.ndarray, "items _"]], *, vector_dim: int
) -> Ranker:
    """Builds an untrained ranker. `state` holds its features, `vectors` the item vectors of the recipe by name."""
    encoders = retriever_recipe.TwoTower(kind="two_tower", dim=config.dim, score=retriever_recipe.Dot(kind="dot"))
    towers = build_two_tower(encoders, state, vectors)
    return Ranker(towers.user, towers.item, vector_dim=vector_dim, config=config)


def describe_ranker(ranker: Ranker) -> list[ModelPart]:
    """Lists every block and layer with its shape and number of parameters."""
    encoders = describe_encoder("ranker, user", ranker.user) + describe_encoder("ranker, item", ranker.item)
    heads = [] if ranker.heads is None else describe_layers("ranker", nn.Sequential(ranker.heads))
    named_heads = [replace(part, name=", ".join(ranker.names)) for part in heads]
    return encoders + describe_layers("ranker", ranker.layers) + named_heads


# --- files ------------------------------------------------------------------------------------------------------------


def load_ranker(config: Mlp, data: RetrieverAndRankerData, folder: Path, *, vector_dim: int) -> Ranker:
    """Loads the ranker from the folder that its training wrote."""
    ranker = build_ranker(config, data.ranker.features, data.ranker.vectors, vector_dim=vector_dim)
    return load_weights(ranker, folder / "weights.safetensors")


def load_ranker_stage(config: Mlp | None, data: RetrieverAndRankerData, trained: Stage | None) -> Ranker | None:
    """Loads the ranker of the finished stage `train/ranker`; `None` if the recipe has no ranker."""
    if config is None or trained is None:
        return None
    ranker = load_ranker(config, data, trained.folder, vector_dim=trained.facts["width"])
    ranker.set_retriever_share(trained.facts["retriever_share"])
    return ranker


def save_ranker(
    ranker: Ranker, data: RetrieverAndRankerData, vectors: Float32[np.ndarray, "items _"], *, at: int, folder: Path
) -> None:
    """Writes the ranker for serving: the user encoder and the scoring of pairs as ONNX graphs, and the item encoder's
    output for the whole catalogue at one point in time. `vectors` are the retriever's item vectors (inner product).
    """
    export_user_tower(ranker.user, folder / USER_GRAPH)
    export_pairs(ranker, folder / PAIR_GRAPH)
    np.save(folder / ITEMS, encode_items(ranker, data.ranker, vectors, at).encoded)
    write_json(folder / ABOUT, {"top": ranker.top})


def export_pairs(ranker: Ranker, path: Path) -> None:
    """Writes the scoring of pairs, without the encoders, as an ONNX graph for any number of queries and items."""
    values = {
        "users": torch.zeros(2, ranker.user.dim),
        "items": torch.zeros(2, 3, ranker.user.dim),
        "user_vectors": torch.zeros(2, ranker.vector_dim),
        "item_vectors": torch.zeros(2, 3, ranker.vector_dim),
        # The graph's name of `ranks`.
        "places": torch.zeros(2, 3, 1 + ranker.num_sources, dtype=torch.int64),
    }
    requests, length = torch.export.Dim("requests"), torch.export.Dim("length")
    per_item = {0: requests, 1: length}
    sizes = {"users": {0: requests}, "items": per_item, "user_vectors": {0: requests}, "item_vectors": per_item}
    export_graph(ranker, values, sizes=sizes | {"ranks": per_item}, output="scores", path=path)


# --- scores of many queries -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncodedItems:
    """The catalogue at one point in time, one row per item: the retriever's vectors and the item encoder's output."""

    vectors: Float32[np.ndarray, "items _"]
    encoded: Float32[np.ndarray, "items dim"]


@dataclass(frozen=True)
class EncodedUsers:
    """Users at their request times: the user encoder's output, and what makes the retriever's scores."""

    encoded: Float32[np.ndarray, "queries dim"]
    vectors: Float32[np.ndarray, "queries _"]
    added: Additions | None = None
    """Additions to the retriever's scores of some items; `None` means none."""

    def of(self, queries: Int64[np.ndarray, "_"]) -> "EncodedUsers":
        """Returns the chosen users, in the given order."""
        added = None if self.added is None else self.added.of(queries)
        return EncodedUsers(self.encoded[queries], self.vectors[queries], added)


def encode_items(ranker: Ranker, dataset: Dataset, vectors: Float32[np.ndarray, "items _"], at: int) -> EncodedItems:
    """Encodes the whole catalogue at one point in time; `vectors` are the retriever's."""
    return EncodedItems(vectors, encode(ranker.item, item_batches(dataset, at)))


@torch.inference_mode()
def rank_scores(
    ranker: Ranker,
    items: EncodedItems,
    users: EncodedUsers,
    item_rows: Int64[np.ndarray, "queries length"],
    ranks: Int64[np.ndarray, "queries length _"],
) -> Float32[np.ndarray, "queries length"]:
    """Computes the scores of each query's candidates; `ranks` are those in the list of the retriever and of each
    source, from 0.
    """
    was_training = ranker.training
    ranker.eval()
    queries, length = item_rows.shape
    scores = np.empty((queries, length), np.float32)
    added = None if users.added is None else users.added.lists(item_rows, num_items=len(items.vectors))
    for part in chunks(queries, max(CHUNK_ELEMENTS // max(items.vectors.shape[1] * length, 1), 1)):
        rows = item_rows[part]
        vectors = users.vectors[part], items.vectors[rows]
        if added is not None:
            vectors = with_additions(*vectors, added[part])
        inputs = users.encoded[part], items.encoded[rows], *vectors, ranks[part]
        scores[part] = ranker(*map(torch.from_numpy, inputs)).numpy()
    ranker.train(was_training)
    return scores
