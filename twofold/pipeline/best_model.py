"""Choice of what is served with `retriever.kind: best`: the trained towers, or a peer that is better on validation."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import scipy.sparse
from jaxtyping import Float32
from sklearn.utils.extmath import randomized_svd

from twofold.dataset.dataset import Dataset
from twofold.evaluate.baseline_results import PeerChoice, PeerTuning
from twofold.evaluate.catalogue import evaluate_catalogue
from twofold.evaluate.headline_metrics import deciding_metrics
from twofold.evaluate.peer_tuning import PEER_KINDS, tune_peers
from twofold.evaluate.peers import Ials, Interactions, ItemWeights
from twofold.evaluate.window import EvaluationWindow, evaluation_window
from twofold.model.fold_in import FoldIn, HistoryModel, ItemSums, RecencyPrior, save_factors
from twofold.model.retriever import Model
from twofold.pipeline.adapters import catalogue_scores, positives_before_window
from twofold.recipe.prepare import Prepare

TOWERS: Final = "two towers"
MAX_RANK: Final = 512
"""Largest rank of a served item-item model. Its quality is measured after the truncation."""
_ALL_DAYS: Final = 36_500


def serve_best(
    prepare: Prepare, arrays: Dataset, window: EvaluationWindow, towers: Model, *, out: Path
) -> dict[str, Any]:
    """Compares the towers with the fitted peers on the validation `window`, and writes the peer if it is better.

    *Better* is the geometric mean of recall and NDCG, as for the constants of the peers. A peer is compared in the form
    in which it would be served: its vectors computed from the histories that the features read, item-item models
    of low rank. What is written is then fitted again on all positives before the test window, as in the report. Returns
    which model is served, and the quality of those that were compared.
    """
    metrics = deciding_metrics(window.num_items)
    positives = positives_before_window(prepare, arrays, window)
    tuning = tune_peers(window, positives, metrics=metrics)
    quality = {TOWERS: _quality(arrays, window, towers, metrics)}
    if tuning is None:
        return {"served": TOWERS, "quality": quality}
    for choice in sorted(tuning.choices, key=lambda choice: -choice.quality):
        if choice.quality <= quality[TOWERS]:
            break
        peer = _as_served(choice, tuning, positives)
        if peer is None:
            continue
        quality[choice.name] = _quality(arrays, window, peer, metrics)
        if quality[choice.name] > quality[TOWERS]:
            before_test = positives_before_window(prepare, arrays, evaluation_window(arrays, "test"))
            again = _as_served(choice, tuning, before_test)
            assert again is not None
            save_factors(again, out)
            return {"served": choice.name, "quality": quality}
    return {"served": TOWERS, "quality": quality}


def _quality(arrays: Dataset, window: EvaluationWindow, model: Model, metrics: tuple[str, str]) -> float:
    ks = tuple({int(metric.partition("@")[2]) for metric in metrics})
    values = evaluate_catalogue(window, catalogue_scores(model, arrays, window), ks=ks)
    return math.sqrt(math.prod(values.mean(metric) for metric in metrics))


def _as_served(choice: PeerChoice, tuning: PeerTuning, positives: Interactions) -> HistoryModel | None:
    """Fits a peer and returns it as a model of vectors; `None` for the popularity of the last days."""
    for kind in PEER_KINDS:
        if choice.name not in (kind.name, kind.name_with_recency):
            continue
        constants = tuning.constants_of(kind.name)
        assert constants is not None
        has_recency = choice.name == kind.name_with_recency
        prior = _prior(choice.constants) if has_recency else None
        match kind.fit(positives, constants):
            case Ials() as peer:
                default = peer.user_vectors[np.unique(positives.user_rows)].mean(axis=0)
                return FoldIn(peer.item_vectors, default, peer.alpha, peer.regularization, prior)
            case ItemWeights() as peer:
                left, right = _low_rank(peer.weights)
                return ItemSums(right, left, prior or RecencyPrior(1e-6, _ALL_DAYS))  # popularity decides ties
    return None


def _prior(constants: Mapping[str, float]) -> RecencyPrior:
    return RecencyPrior(constants["weight"], int(constants["days"]))


def _low_rank(
    weights: scipy.sparse.csr_matrix | Float32[np.ndarray, "items items"],
) -> tuple[Float32[np.ndarray, "items dim"], Float32[np.ndarray, "items dim"]]:
    """Returns left and right vectors whose products are nearest to the weights."""
    rank = min(MAX_RANK, weights.shape[0] - 1)
    left, values, right = randomized_svd(weights, n_components=rank, random_state=0)
    scale = np.sqrt(values)
    return np.ascontiguousarray(left * scale, np.float32), np.ascontiguousarray((right.T * scale), np.float32)
