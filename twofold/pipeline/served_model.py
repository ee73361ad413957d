"""The retriever that `retriever.kind: best` serves: how it is made, how its parts are fitted, and their files."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import scipy.sparse
from jaxtyping import Float32
from sklearn.utils.extmath import randomized_svd

from twofold.dataset.dataset import Dataset
from twofold.evaluate.peer_tuning import PEER_KINDS, RECENT_POPULARITY, PeerKind
from twofold.evaluate.peers import Ials, Interactions, ItemWeights
from twofold.item_neighbors import ItemNeighbors
from twofold.model.fold_in import FOLD_IN, LEFT, VECTORS, HistoryModel, ItemSums, RecencyPrior, save_factors
from twofold.model.history_additions import ADDITIONS, HistoryAdditions, save_additions
from twofold.model.retriever import WEIGHTS
from twofold.pipeline.sources import nearest_items
from twofold.train.als import fold_in_of

TOWERS: Final = "two towers"
KNN: Final = "item-kNN"
MAX_RANK: Final = 512
"""Largest rank of a served item-item model. Its quality is measured after the truncation."""
MOST_NEIGHBORS: Final = 100  # of each item, in a served table
ALL_DAYS: Final = 36_500
TOWERS_FACTS: Final = "facts.json"
"""Beside the towers of an ensemble or of `kind: best`: says that their training has ended."""


@dataclass(frozen=True)
class ServedPeer:
    """A peer that is served: its kind, its constants, those of its recency prior, and the factor of its scores."""

    kind: str
    constants: Mapping[str, float]
    """Constants of the kind; for `RECENT_POPULARITY`, the weight of each number of days."""
    recency: Mapping[str, float] | None = None
    """`None` means that it has no recency prior."""
    weight: float = 1.0


@dataclass(frozen=True)
class Served:
    """The chosen retriever: its `name` in words, and how it is made."""

    name: str
    has_towers: bool = True
    peers: tuple[ServedPeer, ...] = ()
    """Peers whose scores are added to those of the towers, or the one that is served alone."""
    neighbors: Mapping[str, float] | None = None
    """Constants of item-kNN and the `weight` of its exact scores beside all others; `None` means none."""
    repeats: float = 0.0
    """Addition to the score of an item for each time that the user has met it lately."""


@dataclass(frozen=True)
class Fitted:
    """The parts of what is served that are fitted beside the towers."""

    peers: tuple[HistoryModel, ...] = ()
    added: HistoryAdditions | None = None


def fit_served(
    served: Served, arrays: Dataset, positives: Interactions, fits: Mapping[str, HistoryModel] | None = None
) -> Fitted:
    """Fits the peers that are served beside or instead of the towers, and the additions for histories.

    `fits` are models of some kinds that are fitted already.
    """
    peers = [(fits or {}).get(each.kind) or fit_peer(each.kind, each.constants, positives) for each in served.peers]
    own = tuple(as_served(fitted, each) for fitted, each in zip(peers, served.peers, strict=True))
    return Fitted(own, _additions_of(served, arrays, positives))


def save_served(served: Served, fitted: Fitted, out: Path) -> None:
    """Writes what is fitted beside the weights of the towers; a peer that is served alone takes their place."""
    if fitted.added is not None:
        save_additions(fitted.added, out)
    for number, peer in enumerate(fitted.peers):
        save_factors(peer, out, number=number)
    if not served.has_towers:
        for path in out.rglob(WEIGHTS):
            (path.parent / TOWERS_FACTS).unlink(missing_ok=True)  # a run that is killed here trains the towers again
            path.unlink()


def discard_served(out: Path) -> None:
    """Deletes what `save_served` wrote in an attempt that was killed before its stage was complete."""
    shutil.rmtree(out / ADDITIONS, ignore_errors=True)
    for name in (FOLD_IN, LEFT, VECTORS):
        for path in out.glob(f"{Path(name).stem}*"):
            path.unlink()


def fit_peer(kind: str, constants: Mapping[str, float], positives: Interactions) -> HistoryModel:
    """Fits a peer with its constants, in the form in which an index serves it: an item-item model has low rank."""
    if kind == RECENT_POPULARITY:
        return popularity_model(positives.num_items, constants)
    match _kind_of(kind).fit(positives, constants):
        case Ials() as peer:
            return fold_in_of(peer.factors)
        case ItemWeights() as peer:
            left, right = _low_rank(peer.weights)
            return ItemSums(right, left)
    raise AssertionError(f"{kind} has no form that an index can serve")


def popularity_model(num_items: int, weights: Mapping[str, float]) -> ItemSums:
    """Returns a model that reads no history: recent popularity, with the weight of each number of days."""
    nothing = np.empty((num_items, 0), np.float32)
    return ItemSums(nothing, nothing, RecencyPrior(tuple(weights.values()), tuple(int(days) for days in weights)))


def as_served(fitted: HistoryModel, served: ServedPeer) -> HistoryModel:
    """Returns a fitted peer with its prior and its weight."""
    prior = fitted.prior
    if served.recency is not None:
        prior = RecencyPrior((served.recency["weight"],), (int(served.recency["days"]),))
    elif prior is None and isinstance(fitted, ItemSums):
        prior = RecencyPrior((1e-6,), (ALL_DAYS,))  # popularity decides ties of sums
    return replace(fitted, prior=prior, weight=served.weight)


def _additions_of(served: Served, arrays: Dataset, positives: Interactions) -> HistoryAdditions | None:
    """Returns the additions of what is served, with the fitted neighbors of items, if it has any."""
    constants = served.neighbors
    if constants is None and not served.repeats:
        return None
    near = None if constants is None else fit_neighbors(constants, positives).scaled(constants["weight"])
    return HistoryAdditions(arrays.features.history_length("positives"), served.repeats, near)


def fit_neighbors(constants: Mapping[str, float], positives: Interactions) -> ItemNeighbors:
    """Returns the most similar items of each item by item-kNN; a similarity of 1 is the mean of each item's nearest."""
    fitted = _kind_of(KNN).fit(positives, constants)
    assert isinstance(fitted, ItemWeights)
    near = nearest_items(scipy.sparse.csr_matrix(fitted.weights), MOST_NEIGHBORS)
    nearest = near.similarities[near.item_rows[:, 0] >= 0, 0]
    return near.scaled(1 / float(nearest.mean()) if len(nearest) else 1.0)


def _kind_of(name: str) -> PeerKind:
    return next(kind for kind in PEER_KINDS if kind.name == name)


def _low_rank(
    weights: scipy.sparse.csr_matrix | Float32[np.ndarray, "items items"],
) -> tuple[Float32[np.ndarray, "items dim"], Float32[np.ndarray, "items dim"]]:
    """Returns left and right vectors whose products are nearest to the weights."""
    rank = min(MAX_RANK, weights.shape[0] - 1)
    left, values, right = randomized_svd(weights, rank, n_iter=2, random_state=0)  # more iterations gain nothing
    left, right = (np.ascontiguousarray(each * np.sqrt(values), np.float32) for each in (left, right.T))
    return left, right
