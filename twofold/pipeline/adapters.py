"""Adapters from a trained model to evaluation, explanation and index: scores, vectors and index results.

With them, `evaluate`, `explain` and `index` never import a model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int64

from twofold.dataset.batches import query_batches
from twofold.dataset.dataset import Dataset
from twofold.dataset.examples import Examples
from twofold.dataset.vocabulary import Vocabulary
from twofold.errors import RecipeError
from twofold.evaluate.baselines import positives_before
from twofold.evaluate.calibration import Calibration, evaluate_head, evaluate_seconds
from twofold.evaluate.evaluate_window import AllowedItems
from twofold.evaluate.headline_metrics import primary_k
from twofold.evaluate.peers import Interactions
from twofold.evaluate.results import MODEL
from twofold.evaluate.scores import (
    FIRST_STAGE,
    ScoreBlock,
    ScorePairs,
    TwoStages,
    find_candidates,
    order_candidates,
    rank_in_two_stages,
    score_impressions,
)
from twofold.evaluate.window import DayBounds, EvaluationWindow, evaluation_window, split_of
from twofold.explain import gap
from twofold.explain.probes import Probe, new_item_probe
from twofold.index.filters import compile_filter
from twofold.index.item_index import CALIBRATION_QUERIES, Index
from twofold.index.score_kinds import items_as_products, queries_as_products
from twofold.index.search import search
from twofold.model.fold_in import HistoryModel
from twofold.model.multi_tower import MultiTower, towers_of
from twofold.model.ranker import EncodedUsers, Ranker, RetrieverAndRankerData, encode_items, rank_scores
from twofold.model.retriever import Blend, Model, additions_of, as_products, item_vectors, user_vectors
from twofold.model.weights import encode
from twofold.pipeline.trained_models import TrainedModels
from twofold.ragged import Ragged
from twofold.recipe.prepare import Prepare
from twofold.recipe.schema import Recipe
from twofold.recipe.train import InBatchSoftmax, Train
from twofold.tables import Split
from twofold.topk import Additions, Products
from twofold.train.negatives import mixed_log_q


def catalogue_scores(model: Model, arrays: Dataset, window: EvaluationWindow) -> Products:
    """Returns the retriever's scores of every item of the catalogue for each of the window's users.

    Item features are as of the window's first request.
    """
    users = user_vectors(model, arrays, window.user_rows, window.query_at)
    items = item_vectors(model, arrays, int(window.query_at.min()))
    return Products(
        queries_as_products(users, model.score),
        items_as_products(items, model.score),
        additions_of(model, arrays, window.user_rows, window.query_at),
    )


def window_of(recipe: Recipe, arrays: Dataset, split: Split, day: DayBounds | None = None) -> EvaluationWindow:
    """Returns a window of the data set, with the items that the recipe recommends again; see `evaluation_window`."""
    return evaluation_window(arrays, split, day, includes_seen=recipe.index.include_seen)


def positives_before_window(prepare: Prepare, arrays: Dataset, window: EvaluationWindow) -> Interactions:
    """Returns the positives from which baselines of a whole window may learn: see `positives_before`."""
    bounds = prepare.bounds_ms(split_of(window))
    return positives_before(arrays, window, first_at=bounds[0] if bounds else None)


def score_sources(models: TrainedModels, window: EvaluationWindow) -> dict[str, ScoreBlock]:
    """Returns the scores that a report has rows for, by name, the model first.

    With a ranker, the model is both stages together; the retriever alone is a further row.
    """
    if models.ranker is None:
        return {MODEL: catalogue_scores(models.retriever, models.data.retriever, window)}
    both = two_stages(models, models.ranker, window)
    return {MODEL: both, FIRST_STAGE: both.retrieved}


def two_stages(models: TrainedModels, ranker: Ranker, window: EvaluationWindow) -> TwoStages:
    """Returns both stages on the window's users: the ranker orders the best unseen items of the retriever and of the
    other sources of candidates.
    """
    retrieved, pair_scorer = _retrieved(models.retriever, ranker, models.data, window)
    sources = None if models.sources is None else models.sources.of_window(window)
    return rank_in_two_stages(retrieved, pair_scorer(ranker), seen=window.seen, top=ranker.top, sources=sources)


def two_stages_by_share(
    models: TrainedModels, ranker: Ranker, window: EvaluationWindow, shares: Sequence[float]
) -> Iterator[tuple[float, TwoStages]]:
    """Yields both stages for each weight of the retriever in the order, of which the ranker keeps the last.

    What does not depend on the weight is computed once.
    """
    retrieved, pair_scorer = _retrieved(models.retriever, ranker, models.data, window)
    sources = None if models.sources is None else models.sources.of_window(window)
    candidates = find_candidates(retrieved, seen=window.seen, top=ranker.top, sources=sources)
    for share in shares:
        ranker.set_retriever_share(share)
        yield share, order_candidates(retrieved, candidates, pair_scorer(ranker), sources=sources)


PredictPairs = Callable[
    [Int64[np.ndarray, "pairs"], Int64[np.ndarray, "pairs"]],
    Float32[np.ndarray, "pairs"],
]
"""Predictions for pairs of a user of the window and an item row."""


def head_predictions(models: TrainedModels, window: EvaluationWindow) -> dict[str, PredictPairs]:
    """Returns the predictions of each head of the ranker by name; empty if there are no heads."""
    ranker = models.ranker
    if ranker is None or not ranker.names:
        return {}
    retrieved, pair_scorer = _retrieved(models.retriever, ranker, models.data, window)
    sources = None if models.sources is None else models.sources.of_window(window)
    best = find_candidates(retrieved, seen=window.seen, top=ranker.top, sources=sources)
    scorers = {name: pair_scorer(ranker.with_formula(f'"{name}"')) for name in ranker.names}
    return {name: partial(score_impressions, best, scorer) for name, scorer in scorers.items()}


def evaluate_heads(
    heads: Mapping[str, PredictPairs], rows: Examples, window: EvaluationWindow, *, prepare: Prepare, fitted: Path
) -> tuple[Calibration, ...]:
    """Compares the predictions of every head with the outcomes of `rows`, the window's impressions.

    `fitted` is the folder in which preparation stores the quantiles of watch time.
    """
    queries, item_rows = np.searchsorted(window.user_rows, rows.user_rows), np.ascontiguousarray(rows.item_rows)
    found = []
    for name, predict in heads.items():
        predicted = predict(queries, item_rows)
        head, label = evaluate_head(name, predicted, np.asarray(rows.outcomes[name])), prepare.quantile_of(name)
        if head is not None and label is not None:
            table = pq.read_table(fitted / f"{label}.quantile.parquet")
            head = replace(head, seconds=evaluate_seconds(table, predicted, rows.watch_s, rows.length_s))
        found += [] if head is None else [head]
    return tuple(found)


def _retrieved(
    model: Model, ranker: Ranker, arrays: RetrieverAndRankerData, window: EvaluationWindow
) -> tuple[Products, Callable[[Ranker], ScorePairs]]:
    """Returns the retriever's scores, and a function from a ranker to its scores of pairs.

    That function takes any formula over the heads of `ranker`: users and items are encoded once.
    """
    at = int(window.query_at.min())
    items = item_vectors(model, arrays.retriever, at)
    users = user_vectors(model, arrays.retriever, window.user_rows, window.query_at)
    queries, factors = as_products(model, users, items)
    item_inputs = encode_items(ranker, arrays.ranker, factors, at)
    encoded = encode(ranker.user, query_batches(arrays.ranker, window.user_rows, window.query_at))
    added = additions_of(model, arrays.retriever, window.user_rows, window.query_at)
    user_inputs = EncodedUsers(encoded, queries, added)

    def pair_scorer(ranker: Ranker) -> ScorePairs:
        return lambda rows, item_rows, ranks: rank_scores(ranker, item_inputs, user_inputs.of(rows), item_rows, ranks)

    return Products(queries, factors, added), pair_scorer


def calibration_queries(model: Model, arrays: Dataset, at: int) -> Float32[np.ndarray, "queries dim"]:
    """Returns vectors of users from all over the log at one request time, with which an index measures its recall."""
    users = len(arrays.users)
    user_rows = np.linspace(0, users - 1, min(users, CALIBRATION_QUERIES)).astype(np.int64)
    return user_vectors(model, arrays, user_rows, np.full(len(user_rows), at))


def allowed_items(attributes: pa.Table, where: str | None) -> AllowedItems | None:
    """Returns the items for which the rule `index.where` is true, in the order of the attributes.

    `None` means all items. RecipeError if the rule is true for none.
    """
    if where is None:
        return None
    allowed = compile_filter(where, attributes)
    if not allowed.any():
        raise RecipeError(
            f"index.where: {where} is true for none of the {len(attributes):,} items, so nothing could be recommended. "
            f"Loosen the rule."
        )
    return AllowedItems(where, allowed)


def batch_correction(model: Model, arrays: Dataset, settings: Train) -> Float32[np.ndarray, "items"]:
    """Returns what training subtracts from the score of each item within a batch: temperature · log Q.

    Q(j) is the probability that a column of a batch holds item j, from the training examples; an item without any
    counts as one that has a single example, because no batch of training can hold it. 0 if the loss corrects nothing.
    """
    loss, num_items = settings.loss, len(arrays.items)
    if isinstance(model, Blend):
        of_towers = [batch_correction(towers, arrays, settings) for towers in model.towers]
        return np.asarray(sum(of_towers, np.zeros(num_items)), np.float32)
    if isinstance(model, HistoryModel) or not isinstance(loss, InBatchSoftmax) or loss.log_q == "none":
        return np.zeros(num_items, np.float32)
    rows = arrays.examples["train"]
    counts = np.bincount(rows.item_rows[rows.label], minlength=num_items)
    size = min(settings.batch_size, int(counts.sum()))  # fewer examples are one batch
    log_q = mixed_log_q(
        np.maximum(counts, 1), batch=size, uniform=loss.uniform_negatives, num_items=arrays.items.num_known
    )
    towers = towers_of(model, 0)
    # A user's vector over several towers is shorter than that of one tower: see MultiTower.
    scale = model.scale if isinstance(model, MultiTower) else 1.0
    return (log_q * towers.temperature_value() * scale).astype(np.float32)


@dataclass(frozen=True)
class ServedIndex:
    """The index of a bundle: its row i is item i of `items`, described as of `as_of` (UTC milliseconds)."""

    index: Index
    items: Vocabulary
    as_of: int


def gap_case(
    model: Model, arrays: Dataset, window: EvaluationWindow, *, served: ServedIndex, settings: Train
) -> gap.GapCase:
    """Returns the window as a task for the trained model and for the served index."""
    index = served.index
    dataset_row = arrays.items.rows_of(served.items.ids)
    index_row = np.argsort(dataset_row)
    users = user_vectors(model, arrays, window.user_rows, window.query_at)
    items = item_vectors(model, arrays, int(window.query_at.min()))
    rescored, later = (
        each if index.score == model.score else _with_norms_of(each, index.vectors[index_row])
        for each in (items, item_vectors(model, arrays, served.as_of))
    )

    added = additions_of(model, arrays, window.user_rows, window.query_at)
    in_index = (
        None if added is None else Additions(Ragged(index_row[added.rows.values], added.rows.offsets), added.values)
    )

    def answers(queries: Int64[np.ndarray, "queries"], k: int) -> Int64[np.ndarray, "queries k"]:
        seen = window.seen.of(queries)
        excluded = Ragged(index_row[seen.values], seen.offsets)
        added = None if in_index is None else in_index.of(queries)
        rows = search(index, users[queries], k, excluded=excluded, added=added).item_rows
        return np.where(rows < 0, -1, dataset_row[rows])

    query_vectors = {score: queries_as_products(users, score) for score in (model.score, index.score)}
    return gap.GapCase(
        relevant=window.relevant,
        seen=window.seen,
        trained=Products(query_vectors[model.score], items_as_products(items, model.score), added),
        correction=batch_correction(model, arrays, settings),
        rescored=Products(query_vectors[index.score], items_as_products(rescored, index.score), added),
        later=Products(query_vectors[index.score], items_as_products(later, index.score), added),
        stored=Products(query_vectors[index.score], items_as_products(index.vectors, index.score), in_index),
        returned_as=dataset_row,
        search=answers,
    )


def probe_new_items(model: Model, arrays: Dataset, window: EvaluationWindow, case: gap.GapCase) -> Probe:
    """Measures how often a positive item is found if it is new and all others are as they are."""
    new_items = item_vectors(model, arrays, int(window.query_at.min()), as_new=True)
    return new_item_probe(
        case.trained,
        items_as_products(new_items, model.score),
        relevant=case.relevant,
        seen=case.seen,
        k=primary_k(len(arrays.items)),
    )


def _with_norms_of(
    vectors: Float32[np.ndarray, "items dim"], others: Float32[np.ndarray, "items dim"]
) -> Float32[np.ndarray, "items dim"]:
    """Returns the same directions with the norms of `others`, which some scores ignore and others use."""
    own, wanted = (np.linalg.norm(each, axis=1, keepdims=True) for each in (vectors, others))
    return np.asarray(vectors / np.maximum(own, np.finfo(np.float32).tiny) * wanted)
