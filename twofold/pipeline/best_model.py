"""Choice of what is served with `retriever.kind: best`: the towers, a peer, or a sum of them, by validation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Final

import numpy as np
from jaxtyping import Float64, Int32

from twofold.dataset.dataset import Dataset
from twofold.evaluate.baseline_results import PeerTuning
from twofold.evaluate.baselines import OWN_AGAIN
from twofold.evaluate.catalogue import evaluate_catalogue
from twofold.evaluate.peer_tuning import PEER_KINDS, RECENT_POPULARITY, PeerKind, climb
from twofold.evaluate.peers import Interactions
from twofold.evaluate.window import EvaluationWindow
from twofold.model.fold_in import HistoryModel
from twofold.model.history_additions import HistoryAdditions
from twofold.model.multi_tower import Towers
from twofold.model.retriever import Blend, item_vectors, newest_positives
from twofold.pipeline.adapters import catalogue_scores
from twofold.pipeline.fitted_sum import choices_of, fit_weights, without_idle_models
from twofold.pipeline.served_model import (
    ALL_DAYS,
    KNN,
    MOST_NEIGHBORS,
    TOWERS,
    Fitted,
    Served,
    ServedPeer,
    as_served,
    fit_neighbors,
    fit_peer,
    fit_served,
    popularity_model,
)
from twofold.topk import Additions, Products, sum_additions

MOST_ITEMS_OF_SUMS: Final = 2**17
"""Largest catalogue for which item-item models are served: two tables of rank 512 then hold 512 MB."""
ADDITION_WEIGHTS: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6)
"""Additions for each time that an item was met, or for a like of an item whose nearest neighbor it is, in standard
deviations of the other scores."""
START_ADDITION: Final = 0.4
NEIGHBORS: Final = "item neighbors"
UNDAMPED: Final = {"shrink": 0.0, "neighbors": 500.0, "activity": 1.0, "popularity": 0.5, "asymmetry": 0.0}
"""Constants of item-kNN that are tried beside the tuned ones, those of the linear filter of Shen et al. (CIKM 2021,
GF-CF). What exact scores add to vectors of low rank lies in rare pairs, which the shrinkage that is best for item-kNN
alone dampens: on Gowalla, its sum with iALS has 3 % less quality (docs/log.md, 30 November 2026).
"""
MOST_PAIRS: Final = 2**25
"""Largest number of users' likes × neighbors for which they are tried: a pair took 81 bytes, so at most 2.7 GB."""
LEAST_GAIN: Final = 0.01
"""Share of the quality that item neighbors must gain, beside a standard error: they make every request longer."""
STD_USERS: Final = 256  # users whose scores give the standard deviation
PRIOR_DAYS: Final = (1, 3, 7, 30, 90, ALL_DAYS)
"""Numbers of last days whose positives of an item are a model of their own in a sum of scores."""


_Found = tuple[float, Served, Products]
"""The quality of what could be served, how it is made, and its scores."""


def choose_served(
    arrays: Dataset,
    window: EvaluationWindow,
    towers: Towers | Blend,
    tuning: PeerTuning | None,
    positives: Interactions,
    *,
    has_days: bool,
) -> tuple[Served, dict[str, float], Fitted]:
    """Compares the towers, the tuned peers and sums of both on `window`; returns the best, the quality of each, and the
    fitted parts of the best one.

    *Quality* is the geometric mean of recall and NDCG, as for the constants of the peers. A peer is compared in the
    form in which it would be served: with user vectors from the histories that the features read, and item-item models
    of low rank. Where the score of the towers is an inner product, they are also compared with the fitted sum of
    towers, peers and recent popularity. With the best of these, the exact scores of item-kNN are tried, and then, where
    lists may contain items that were met before, an addition for these. `positives` are those before the window, on
    which the peers are fitted. Without `has_days`, requests lie anywhere in the log and items have no popularity of the
    last days that is right for all of them, so no model with it is compared.
    """
    if tuning is None:
        return Served(TOWERS), {}, Fitted()
    metrics = tuning.metrics
    scores = catalogue_scores(towers, arrays, window)
    fits = _fit_peers(tuning, positives)
    forms = [form for kind in PEER_KINDS if kind.name in fits for form in _forms(kind, tuning, has_days=has_days)]
    peers = []
    for form in forms:
        peer = catalogue_scores(as_served(fits[form.peers[0].kind], form.peers[0]), arrays, window)
        peers.append((_quality(window, peer, metrics), form, peer))
    found = [(_quality(window, scores, metrics), Served(TOWERS), scores), *peers]
    is_product = towers.score != "negative_distance"
    best = [max(found, key=lambda at: at[0])]
    if is_product:
        found.append(_fitted_sum(arrays, window, scores, peers, metrics, PRIOR_DAYS if has_days else ()))
        best = [_chosen(window, best[0], found[-1], metrics)]
        best += _with_additions(window, best[0], tuning, positives, arrays)
    served = max(best, key=lambda at: at[0])[1]
    qualities = {each.name: quality for quality, each, _ in [*found, *best]}
    return served, qualities, fit_served(served, arrays, positives, fits)


def _fit_peers(tuning: PeerTuning, positives: Interactions) -> dict[str, HistoryModel]:
    """Fits the tuned peers that an index can serve, by their kind."""
    fits = {}
    for kind in PEER_KINDS:
        constants, is_large = tuning.constants_of(kind.name), positives.num_items > MOST_ITEMS_OF_SUMS
        if constants is not None and (kind.name == "iALS" or not is_large):
            fits[kind.name] = fit_peer(kind.name, constants, positives)
    return fits


def _forms(kind: PeerKind, tuning: PeerTuning, *, has_days: bool) -> list[Served]:
    """Returns a peer alone and, if it has the constants, with recent popularity."""
    constants, recency = (tuning.constants_of(name) for name in (kind.name, kind.name_with_recency))
    alone = ServedPeer(kind.name, constants or {})
    forms = {kind.name: alone}
    if has_days and recency is not None:
        forms[kind.name_with_recency] = replace(alone, recency=recency)
    return [Served(name, has_towers=False, peers=(peer,)) for name, peer in forms.items()]


def _fitted_sum(
    arrays: Dataset,
    window: EvaluationWindow,
    towers: Products,
    peers: Sequence[_Found],
    metrics: tuple[str, str],
    prior_days: Sequence[int],
) -> _Found:
    """Returns the sum of towers, recent popularity and the peers that gain something, with weights fitted on `window`.

    Fitted weights have, on halves of users, up to 28 % more quality than a search along a grid of weights for two peers
    had, which this replaces, and at worst 1 % less (docs/log.md, 30 November 2026).
    """
    days, peers = [str(each) for each in prior_days], [each for each in peers if each[1].peers[0].recency is None]
    everyone, at = np.ones((len(window.user_rows), 1), np.float32), int(window.query_at.min())
    values = [item_vectors(popularity_model(window.num_items, {each: 1.0}), arrays, at) for each in days]
    priors = [Products(everyone, each) for each in values]  # equal for all users, whose histories are not read
    models = [towers, *(scores for _, _, scores in peers), *priors]
    choices = choices_of(window, models)
    if not len(choices.starts):
        return _quality(window, towers, metrics), Served(TOWERS), towers
    kept = without_idle_models(choices)
    weights = fit_weights(choices.of(kept))[0]
    if kept[0] == 0 and weights[0] <= 0 and len(kept) > 1:  # the lists of such towers say what not to serve
        kept = kept[1:]
        weights = fit_weights(choices.of(kept))[0]
    has_towers = kept[0] == 0
    factors = dict(zip(kept, (weights / weights[0] if has_towers else weights).tolist(), strict=True))
    parts = [replace(peer.peers[0], weight=factors[n]) for n, (_, peer, _) in enumerate(peers, start=1) if n in factors]
    by_days = {each: factors[n] for n, each in enumerate(days, start=1 + len(peers)) if n in factors}
    parts += [ServedPeer(RECENT_POPULARITY, by_days)] if by_days else []
    name = " + ".join([*([TOWERS] if has_towers else []), *(part.kind for part in parts)])
    scores = _sum([(factors[n], models[n]) for n in kept])
    return _quality(window, scores, metrics), Served(name, has_towers, tuple(parts)), scores


def _chosen(window: EvaluationWindow, single: _Found, fitted: _Found, metrics: tuple[str, str]) -> _Found:
    """Returns the single model if it is better than the fitted sum by a standard error, or makes the same lists."""
    gain = _of_users(window, single[2], metrics) - _of_users(window, fitted[2], metrics)
    return single if _is_beyond_error(gain) else fitted


def _is_beyond_error(gain: Float64[np.ndarray, "users"]) -> bool:
    """Returns whether the mean gain of the users is at least its standard error, as it is where all gains are 0."""
    return bool(gain.mean() >= gain.std() / math.sqrt(len(gain)))


def _sum(models: Sequence[tuple[float, Products]]) -> Products:
    """Returns the sum of the scores of models, each with a factor."""
    queries = [np.float32(factor) * model.queries for factor, model in models]
    return Products(np.concatenate(queries, axis=1), np.concatenate([model.items for _, model in models], axis=1))


def _with_additions(
    window: EvaluationWindow, best: _Found, tuning: PeerTuning, positives: Interactions, arrays: Dataset
) -> list[_Found]:
    """Returns the best so far with the exact scores of item-kNN, if these gain enough, and then also with repeats."""
    history = newest_positives(arrays, window.user_rows, window.query_at)
    found = []
    for constants in _neighbors_to_try(tuning, history, positives):
        added = HistoryAdditions(history.shape[1], neighbors=fit_neighbors(constants, positives)).of(history)
        quality, factor, scores = _best_addition(window, best[2], added, tuning.metrics)
        if quality - best[0] < LEAST_GAIN * best[0]:
            continue
        if _is_beyond_error(_of_users(window, scores, tuning.metrics) - _of_users(window, best[2], tuning.metrics)):
            near = {**constants, "weight": factor}
            found.append((quality, replace(best[1], name=f"{best[1].name} + {NEIGHBORS}", neighbors=near), scores))
    found = [max(found, key=lambda at: at[0])] if found else []
    if window.includes_seen:
        best = found[0] if found else best
        added = HistoryAdditions(history.shape[1], repeats=1.0).of(history)
        quality, factor, scores = _best_addition(window, best[2], added, tuning.metrics)
        found.append((quality, replace(best[1], name=f"{best[1].name} + {OWN_AGAIN}", repeats=factor), scores))
    return found


def _neighbors_to_try(
    tuning: PeerTuning, history: Int32[np.ndarray, "users _"], positives: Interactions
) -> list[Mapping[str, float]]:
    """Returns constants of item-kNN; none if it has none, or the log is too large to serve or try its neighbors.

    `history` holds what the window's users liked, as table rows.
    """
    constants, pairs = tuning.constants_of(KNN), np.count_nonzero(history) * MOST_NEIGHBORS
    is_too_large = positives.num_items > MOST_ITEMS_OF_SUMS or pairs > MOST_PAIRS
    return [] if constants is None or is_too_large else [constants, UNDAMPED]


def _best_addition(
    window: EvaluationWindow, scores: Products, added: Additions, metrics: tuple[str, str]
) -> tuple[float, float, Products]:
    """Returns the quality with additions at their best factor, this factor, and the sums."""
    unit = _std(scores)

    def with_added(factor: float) -> Products:
        own = added.scaled(factor * unit)
        return replace(scores, added=own if scores.added is None else sum_additions(scores.added, own))

    quality = cache(lambda factor: _quality(window, with_added(factor), metrics))
    factor = climb(ADDITION_WEIGHTS, START_ADDITION, quality)
    return quality(factor), factor * unit, with_added(factor)


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
