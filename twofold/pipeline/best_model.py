"""Choice of what is served with `retriever.kind: best`: the towers, a peer, or a sum of them, by validation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import scipy.sparse
from jaxtyping import Float32, Float64, Int32
from sklearn.utils.extmath import randomized_svd

from twofold.dataset.dataset import Dataset
from twofold.evaluate.baseline_results import PeerTuning
from twofold.evaluate.baselines import OWN_AGAIN
from twofold.evaluate.catalogue import evaluate_catalogue
from twofold.evaluate.peer_tuning import PEER_KINDS, PeerKind, climb
from twofold.evaluate.peers import Ials, Interactions, ItemWeights
from twofold.evaluate.window import EvaluationWindow
from twofold.item_neighbors import ItemNeighbors
from twofold.model.fold_in import FoldIn, HistoryModel, ItemSums, RecencyPrior, save_factors
from twofold.model.history_additions import HistoryAdditions, save_additions
from twofold.model.multi_tower import Towers
from twofold.model.retriever import WEIGHTS, Blend, newest_positives
from twofold.pipeline.adapters import catalogue_scores
from twofold.pipeline.sources import nearest_items
from twofold.topk import Additions, Products, sum_additions
from twofold.train.als import fold_in_of

TOWERS: Final = "two towers"
MAX_RANK: Final = 512
"""Largest rank of a served item-item model. Its quality is measured after the truncation."""
MOST_ITEMS_OF_SUMS: Final = 2**17
"""Largest catalogue for which item-item models are served: two tables of rank 512 then hold 512 MB."""
BLENDED: Final = 2
"""Number of peers that are tried beside the towers: the best ones, of different kinds."""
BLEND_WEIGHTS: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Weights of a peer's scores beside those of the towers, both in units of their standard deviations."""
START_WEIGHT: Final = 0.2
BOTH_FACTORS: Final = (1.0, 0.5)  # of the weights of two peers that are both added
UNCERTAIN: Final = 0.01
"""Share of the quality. A difference with a larger standard error does not decide between one peer and two."""
ADDITION_WEIGHTS: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
"""Additions for each time that an item was met, or for a like of an item whose nearest neighbor it is, in standard
deviations of the other scores."""
START_ADDITION: Final = 0.4
KNN: Final = "item-kNN"
NEIGHBORS: Final = "item neighbors"
MOST_NEIGHBORS: Final = 50  # of each item, in a served table
MOST_PAIRS: Final = 2**26
"""Largest number of users' likes × neighbors for which they are tried: the sums are in memory at once, up to 1 GB."""
LEAST_GAIN: Final = 1.01
"""Least factor of the quality for which item neighbors are served: they make every request longer."""
STD_USERS: Final = 256  # users whose scores give the standard deviation
_ALL_DAYS: Final = 36_500


@dataclass(frozen=True)
class ServedPeer:
    """A peer that is served: its kind, its constants, those of its recency prior, and the factor of its scores."""

    kind: str
    constants: Mapping[str, float]
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


_Found = tuple[float, Served, Products]
"""The quality of what could be served, how it is made, and its scores."""


def choose_served(
    arrays: Dataset,
    window: EvaluationWindow,
    towers: Towers | Blend,
    tuning: PeerTuning | None,
    positives: Interactions,
) -> tuple[Served, dict[str, float], Fitted]:
    """Compares the towers, the tuned peers and sums of both on `window`; returns the best, the quality of each, and the
    fitted parts of the best one.

    *Quality* is the geometric mean of recall and NDCG, as for the constants of the peers. A peer is compared in the
    form in which it would be served: with user vectors from the histories that the features read, and item-item models
    of low rank. The best peers of `BLENDED` kinds are also added to the towers, each alone and all together, where the
    score of the towers is an inner product. With what `_chosen` returns, the exact scores of item-kNN are tried, and
    then, where lists may contain items that were met before, an addition for these. `positives` are those before the
    window, on which the peers are fitted.
    """
    if tuning is None:
        return Served(TOWERS), {}, Fitted()
    metrics = tuning.metrics
    scores = catalogue_scores(towers, arrays, window)
    fits = _fit_peers(tuning, positives)
    peers = []
    for kind in (each for each in PEER_KINDS if each.name in fits):
        for alone in _alone_and_with_recency(kind, tuning):
            peer = catalogue_scores(_as_served(fits[kind.name], alone.peers[0]), arrays, window)
            peers.append((_quality(window, peer, metrics), alone, peer))
    found = [(_quality(window, scores, metrics), Served(TOWERS), scores), *peers]
    is_product = towers.score != "negative_distance"
    found += _blends(window, scores, _best_of_kinds(peers), metrics) if is_product else []
    best, near = [_chosen(window, found, metrics)], None
    if is_product:
        history = newest_positives(arrays, window.user_rows, window.query_at)
        near = _neighbors_to_try(tuning, history, positives)
        best += _with_additions(window, best[0], tuning, history, near)
    served = max(best, key=lambda at: at[0])[1]
    own_peers = tuple(_as_served(fits[each.kind], each) for each in served.peers)
    qualities = {each.name: quality for quality, each, _ in [*found, *best]}
    return served, qualities, Fitted(own_peers, _additions_of(served, arrays, near))


def fit_served(served: Served, arrays: Dataset, positives: Interactions) -> Fitted:
    """Fits the peers that are served beside or instead of the towers, and the additions for histories."""
    peers = [_as_served(_fit(_kind_of(each.kind), each.constants, positives), each) for each in served.peers]
    near = None if served.neighbors is None else _fit_neighbors(served.neighbors, positives)
    return Fitted(tuple(peers), _additions_of(served, arrays, near))


def save_served(served: Served, fitted: Fitted, out: Path) -> None:
    """Writes what is fitted beside the weights of the towers; a peer that is served alone takes their place."""
    if fitted.added is not None:
        save_additions(fitted.added, out)
    for number, peer in enumerate(fitted.peers):
        save_factors(peer, out, number=number)
    if not served.has_towers:
        for path in out.rglob(WEIGHTS):
            path.unlink()


def _fit(kind: PeerKind, constants: Mapping[str, float], positives: Interactions) -> HistoryModel:
    match kind.fit(positives, constants):
        case Ials() as peer:
            return fold_in_of(peer.factors)
        case ItemWeights() as peer:
            left, right = _low_rank(peer.weights)
            return ItemSums(right, left)
    raise AssertionError(f"{kind.name} has no form that an index can serve")


def _as_served(fitted: HistoryModel, served: ServedPeer) -> HistoryModel:
    """Returns a fitted peer with its prior and its weight."""
    prior = None if isinstance(fitted, FoldIn) else RecencyPrior(1e-6, _ALL_DAYS)  # popularity decides ties of sums
    if served.recency is not None:
        prior = RecencyPrior(served.recency["weight"], int(served.recency["days"]))
    return replace(fitted, prior=prior, weight=served.weight)


def _fit_peers(tuning: PeerTuning, positives: Interactions) -> dict[str, HistoryModel]:
    """Fits the tuned peers that an index can serve, by their kind."""
    fits = {}
    for kind in PEER_KINDS:
        constants, is_large = tuning.constants_of(kind.name), positives.num_items > MOST_ITEMS_OF_SUMS
        if constants is not None and (kind.name == "iALS" or not is_large):
            fits[kind.name] = _fit(kind, constants, positives)
    return fits


def _alone_and_with_recency(kind: PeerKind, tuning: PeerTuning) -> list[Served]:
    constants, recency = (tuning.constants_of(name) for name in (kind.name, kind.name_with_recency))
    forms = [(kind.name, ServedPeer(kind.name, constants or {}))]
    forms += [] if recency is None else [(kind.name_with_recency, replace(forms[0][1], recency=recency))]
    return [Served(name, has_towers=False, peers=(peer,)) for name, peer in forms]


def _best_of_kinds(peers: Sequence[_Found]) -> list[_Found]:
    """Returns the best peer of each of the best `BLENDED` kinds, the best one first."""
    ordered = sorted(peers, key=lambda at: -at[0])
    kinds = list(dict.fromkeys(alone.peers[0].kind for _, alone, _ in ordered))[:BLENDED]
    return [next(each for each in ordered if each[1].peers[0].kind == kind) for kind in kinds]


def _blends(
    window: EvaluationWindow, towers: Products, peers: Sequence[_Found], metrics: tuple[str, str]
) -> list[_Found]:
    """Returns the best sum of the towers with each peer, and the best sum with both of them.

    In the latter each peer has the weight that was best for it alone, or half of it.
    """
    found = [_best_blend(window, towers, peer, alone, metrics) for _, alone, peer in peers]
    if len(found) < BLENDED:
        return found
    name, sums = " + ".join([TOWERS, *(alone.name for _, alone, _ in peers)]), list[_Found]()
    for factor in BOTH_FACTORS:
        weighted = tuple(replace(each, weight=factor * each.weight) for _, blend, _ in found for each in blend.peers)
        scores = _sum(towers, [(each.weight, peer[2]) for each, peer in zip(weighted, peers, strict=True)])
        sums.append((_quality(window, scores, metrics), Served(name, peers=weighted), scores))
    return [*found, max(sums, key=lambda at: at[0])]


def _chosen(window: EvaluationWindow, found: Sequence[_Found], metrics: tuple[str, str]) -> _Found:
    """Returns the best; in place of a sum with one peer, that with two, where the choice among them is chance.

    It is chance if their difference has a standard error of more than `UNCERTAIN` of the quality, and is less than
    that. The mean of two models then errs less than one of them: on halves of users this gains 3.0 % of the quality on
    MovieLens-100K, 2.9 % on latest-small, 1.1 % on news, 0 where users are many (docs/log.md, 29 November 2026).
    """
    best = max(found, key=lambda at: at[0])
    both = next((each for each in found if len(each[1].peers) == BLENDED), None)
    if both is None or not best[1].has_towers or len(best[1].peers) != 1:
        return best
    loss = _of_users(window, best[2], metrics) - _of_users(window, both[2], metrics)
    error = loss.std() / math.sqrt(len(loss))
    return both if error > UNCERTAIN * best[0] and loss.mean() <= error else best


def _best_blend(
    window: EvaluationWindow, towers: Products, peer: Products, alone: Served, metrics: tuple[str, str]
) -> _Found:
    """Returns the best sum of the scores of towers and peer: its quality, what would be served, and the scores.

    `alone` is the peer as it would be served without the towers.
    """
    unit = _std(towers) / (_std(peer) or 1.0)
    quality = cache(lambda factor: _quality(window, _sum(towers, [(factor * unit, peer)]), metrics))
    factor = climb(BLEND_WEIGHTS, START_WEIGHT, quality)
    served = Served(f"{TOWERS} + {alone.name}", peers=(replace(alone.peers[0], weight=factor * unit),))
    return quality(factor), served, _sum(towers, [(factor * unit, peer)])


def _sum(towers: Products, peers: Sequence[tuple[float, Products]]) -> Products:
    """Returns the scores of the towers plus those of peers, each with a factor."""
    queries = [towers.queries, *(np.float32(factor) * peer.queries for factor, peer in peers)]
    items = [towers.items, *(peer.items for _, peer in peers)]
    return Products(np.concatenate(queries, axis=1), np.concatenate(items, axis=1))


def _neighbors_to_try(
    tuning: PeerTuning, history: Int32[np.ndarray, "users _"], positives: Interactions
) -> ItemNeighbors | None:
    """Fits the neighbors of items; `None` if item-kNN has no constants, or the log is too large to serve or try them.

    `history` holds what the window's users liked, as table rows.
    """
    constants, pairs = tuning.constants_of(KNN), np.count_nonzero(history) * MOST_NEIGHBORS
    if constants is None or positives.num_items > MOST_ITEMS_OF_SUMS or pairs > MOST_PAIRS:
        return None
    return _fit_neighbors(constants, positives)


def _with_additions(
    window: EvaluationWindow,
    best: _Found,
    tuning: PeerTuning,
    history: Int32[np.ndarray, "users _"],
    near: ItemNeighbors | None,
) -> list[_Found]:
    """Returns the best so far with the exact scores of item-kNN, if these gain enough, and then also with repeats."""
    found, constants = [], tuning.constants_of(KNN)
    if near is not None and constants is not None:
        added = HistoryAdditions(history.shape[1], neighbors=near).of(history)
        quality, factor, scores = _best_addition(window, best[2], added, tuning.metrics)
        if quality >= LEAST_GAIN * best[0]:
            served = replace(best[1], name=f"{best[1].name} + {NEIGHBORS}", neighbors={**constants, "weight": factor})
            best = (quality, served, scores)
            found.append(best)
    if window.includes_seen:
        added = HistoryAdditions(history.shape[1], repeats=1.0).of(history)
        quality, factor, scores = _best_addition(window, best[2], added, tuning.metrics)
        found.append((quality, replace(best[1], name=f"{best[1].name} + {OWN_AGAIN}", repeats=factor), scores))
    return found


def _best_addition(
    window: EvaluationWindow, scores: Products, added: Additions, metrics: tuple[str, str]
) -> tuple[float, float, Products]:
    """Returns the quality with additions at their best factor, this factor, and the sums."""
    unit = _std(scores)

    def with_added(factor: float) -> Products:
        parts = [added.scaled(factor * unit)] if scores.added is None else [scores.added, added.scaled(factor * unit)]
        return replace(scores, added=sum_additions(*parts))

    quality = cache(lambda factor: _quality(window, with_added(factor), metrics))
    factor = climb(ADDITION_WEIGHTS, START_ADDITION, quality)
    return quality(factor), factor * unit, with_added(factor)


def _additions_of(served: Served, arrays: Dataset, near: ItemNeighbors | None) -> HistoryAdditions | None:
    """Returns the additions of what is served, with the fitted neighbors of items, if it has any."""
    weighted = None if served.neighbors is None or near is None else near.scaled(served.neighbors["weight"])
    if weighted is None and not served.repeats:
        return None
    return HistoryAdditions(arrays.features.history_length("positives"), served.repeats, weighted)


def _fit_neighbors(constants: Mapping[str, float], positives: Interactions) -> ItemNeighbors:
    """Returns the most similar items of each item by item-kNN; a similarity of 1 is the mean of each item's nearest."""
    fitted = _kind_of(KNN).fit(positives, constants)
    assert isinstance(fitted, ItemWeights)
    near = nearest_items(scipy.sparse.csr_matrix(fitted.weights), MOST_NEIGHBORS)
    nearest = near.similarities[near.item_rows[:, 0] >= 0, 0]
    return near.scaled(1 / float(nearest.mean()) if len(nearest) else 1.0)


def _kind_of(name: str) -> PeerKind:
    return next(kind for kind in PEER_KINDS if kind.name == name)


def _quality(window: EvaluationWindow, scores: Products, metrics: tuple[str, str]) -> float:
    return float(_of_users(window, scores, metrics).mean())


def _of_users(window: EvaluationWindow, scores: Products, metrics: tuple[str, str]) -> Float64[np.ndarray, "_"]:
    """Returns values of users whose mean is the quality, and whose variance is its own to first order."""
    ks = tuple({int(metric.partition("@")[2]) for metric in metrics})
    found = evaluate_catalogue(window, scores, ks=ks).values
    values = np.stack([found[metric][~np.isnan(found[metric])] for metric in metrics])
    means = np.maximum(values.mean(axis=1), 1e-12)
    return np.asarray(math.sqrt(math.prod(means.tolist())) * (values / means[:, None]).mean(axis=0))


def _std(scores: Products) -> float:
    some = np.linspace(0, len(scores.queries) - 1, min(len(scores.queries), STD_USERS)).astype(np.int64)
    return float(scores(some).std())


def _low_rank(
    weights: scipy.sparse.csr_matrix | Float32[np.ndarray, "items items"],
) -> tuple[Float32[np.ndarray, "items dim"], Float32[np.ndarray, "items dim"]]:
    """Returns left and right vectors whose products are nearest to the weights."""
    rank = min(MAX_RANK, weights.shape[0] - 1)
    left, values, right = randomized_svd(weights, rank, n_iter=2, random_state=0)  # more iterations gain nothing
    left, right = (np.ascontiguousarray(each * np.sqrt(values), np.float32) for each in (left, right.T))
    return left, right
