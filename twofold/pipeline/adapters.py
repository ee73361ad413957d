"""What the judges are given of a model that they never see: its scores, its vectors, the answers of its index."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int64

from twofold.dataset.dataset import Dataset
from twofold.dataset.vocabulary import Vocabulary
from twofold.errors import RecipeError
from twofold.evaluate.calibration import Calibration, evaluate_head, evaluate_seconds
from twofold.evaluate.evaluate_window import AllowedItems, primary_k
from twofold.evaluate.results import MODEL
from twofold.evaluate.scores import (
    FIRST_STAGE,
    ScoreBlock,
    ScorePairs,
    TwoStages,
    find_best,
    rank_in_two_stages,
    score_impressions,
)
from twofold.evaluate.window import EvaluationWindow
from twofold.explain import gap
from twofold.explain.probes import Probe, found_among, probe_cold_items
from twofold.index.filters import compile_filter
from twofold.index.item_index import CALIBRATION_QUERIES, Index
from twofold.index.score_kinds import items_as_products, queries_as_products
from twofold.index.search import search
from twofold.model.ranker import Ranker, RetrieverAndRankerData
from twofold.model.retriever import Model, as_products, item_vectors, masked_item_vectors, user_vectors
from twofold.model.second_stage import SecondStage, item_side, pair_scores, user_side
from twofold.ragged import Ragged
from twofold.recipe.prepare import Prepare
from twofold.topk import Products


def scores_of(model: Model, arrays: Dataset, window: EvaluationWindow) -> Products:
    """Scores of the window's users against the whole catalogue; item features as of the window's first request."""
    users = user_vectors(model, arrays, window.user_rows, window.query_at)
    items = item_vectors(model, arrays, int(window.query_at.min()))
    return Products(queries_as_products(users, model.score), items_as_products(items, model.score))


def two_stages(
    model: Model,
    ranker: SecondStage,
    arrays: RetrieverAndRankerData,
    window: EvaluationWindow,
    *,
    is_masked: bool = False,
) -> TwoStages:
    """Both stages on the window's users: the ranker orders the retriever's best unseen items.

    `is_masked`: as if no item's id were known, to either.
    """
    retrieved, scores_of_pairs = _asked(model, ranker, arrays, window, is_masked=is_masked)
    return rank_in_two_stages(retrieved, scores_of_pairs(ranker), seen=window.seen, top=ranker.top)


def judged_heads(
    model: Model,
    ranker: SecondStage | None,
    arrays: RetrieverAndRankerData,
    window: EvaluationWindow,
    *,
    prepare: Prepare,
    fitted: Path,
) -> tuple[Calibration, ...]:
    """What every head of the ranker says of the window's impressions, users asking as in the report, against what came
    of them; `fitted` is where preparation keeps the quantiles of watch time.
    """
    if not isinstance(ranker, Ranker) or not ranker.names:
        return ()
    retrieved, scores_of_pairs = _asked(model, ranker, arrays, window, is_masked=False)
    found = find_best(retrieved, seen=window.seen, top=ranker.top)
    (rows,) = (rows for split, rows in arrays.ranker.rows.items() if split == window.name)
    lines, item_rows = np.searchsorted(window.user_rows, rows.user_rows), np.ascontiguousarray(rows.item_rows)
    judged = []
    for name in ranker.names:
        said = score_impressions(found, scores_of_pairs(ranker.with_formula(f'"{name}"')), lines, item_rows)
        head, label = evaluate_head(name, said, np.asarray(rows.outcomes[name])), prepare.quantile_of(name)
        if head is not None and label is not None:
            table = pq.read_table(fitted / f"{label}.quantile.parquet")
            head = replace(head, seconds=evaluate_seconds(table, said, rows.watch_s, rows.length_s))
        judged += [] if head is None else [head]
    return tuple(judged)


def _asked(
    model: Model, ranker: SecondStage, arrays: RetrieverAndRankerData, window: EvaluationWindow, *, is_masked: bool
) -> tuple[Products, Callable[[SecondStage], ScorePairs]]:
    """What the retriever makes of the window's users and of all items; and what a ranker does, whichever formula it has
    over one network.
    """
    at = int(window.query_at.min())
    given = masked_item_vectors(model, arrays.retriever, at) if is_masked else None
    items = item_vectors(model, arrays.retriever, at) if given is None else given
    users = user_vectors(model, arrays.retriever, window.user_rows, window.query_at)
    queries, factors = as_products(model, users, items)
    side = item_side(ranker, arrays.ranker, factors, at, is_masked=is_masked)
    asking = user_side(ranker, arrays.ranker, window.user_rows, window.query_at)

    def scores_of_pairs(ranker: SecondStage) -> ScorePairs:
        return lambda lines, item_rows, places: pair_scores(
            ranker, side, asking[lines], queries[lines], item_rows, places
        )

    return Products(queries, factors), scores_of_pairs


def score_sources(
    model: Model, ranker: SecondStage | None, arrays: RetrieverAndRankerData, window: EvaluationWindow
) -> dict[str, ScoreBlock]:
    """What a report has rows of, the model first: the retriever; or both stages, the retriever alone, and both where no
    item's id is known.
    """
    if ranker is None:
        return {MODEL: scores_of(model, arrays.retriever, window)}
    both = two_stages(model, ranker, arrays, window)
    return {
        MODEL: both,
        FIRST_STAGE: both.retrieved,
        "both stages without ids": two_stages(model, ranker, arrays, window, is_masked=True),
    }


def some_queries(model: Model, arrays: Dataset, at: int) -> Float32[np.ndarray, "queries dim"]:
    """Vectors of users from all over the log who ask at this moment: what an index is measured with."""
    users = len(arrays.users)
    user_rows = np.linspace(0, users - 1, min(users, CALIBRATION_QUERIES)).astype(np.int64)
    return user_vectors(model, arrays, user_rows, np.full(len(user_rows), at))


def allowed_items(attributes: pa.Table, where: str | None) -> AllowedItems | None:
    """The items that `index.where` leaves, in the order of the attributes; RecipeError if there are none."""
    if where is None:
        return None
    allowed = compile_filter(where, attributes)
    if not allowed.any():
        raise RecipeError(
            f"index.where: {where} holds of none of the {len(attributes):,} items, so nothing could be recommended. "
            f"Ask for less."
        )
    return AllowedItems(where, allowed)


def gap_case(
    model: Model, arrays: Dataset, window: EvaluationWindow, *, index: Index, listed: Vocabulary
) -> gap.GapCase:
    """The window's question, put to the trained model and to the index as it is served, whose items are `listed`."""
    returned_as = arrays.items.rows_of(listed.ids)
    line_of = np.argsort(returned_as)
    users = user_vectors(model, arrays, window.user_rows, window.query_at)
    items = item_vectors(model, arrays, int(window.query_at.min()))
    compared = items if index.score == model.score else _as_long_as(items, index.vectors[line_of])

    def answers(asked: Int64[np.ndarray, "queries"], k: int) -> Int64[np.ndarray, "queries k"]:
        seen = window.seen.of(asked)
        lines = search(index, users[asked], k, excluded=Ragged(line_of[seen.values], seen.offsets)).item_rows
        return np.where(lines < 0, -1, returned_as[lines])

    queries = {score: queries_as_products(users, score) for score in (model.score, index.score)}
    return gap.GapCase(
        relevant=window.relevant,
        seen=window.seen,
        trained=Products(queries[model.score], items_as_products(items, model.score)),
        rescored=Products(queries[index.score], items_as_products(compared, index.score)),
        stored=Products(queries[index.score], items_as_products(index.vectors, index.score)),
        returned_as=returned_as,
        search=answers,
    )


def probe_masked(model: Model, arrays: Dataset, window: EvaluationWindow, case: gap.GapCase) -> tuple[Probe, ...]:
    """What is found when no item's id is known; nothing where the item tower reads none."""
    masked = masked_item_vectors(model, arrays, int(window.query_at.min()))
    if masked is None:
        return ()
    k = primary_k(len(arrays.items))
    found, found_masked = (
        found_among(case.trained.queries, items, relevant=case.relevant, seen=case.seen, k=k)
        for items in (case.trained.items, items_as_products(masked, model.score))
    )
    return (probe_cold_items(found, found_masked, k=k),)


def _as_long_as(
    vectors: Float32[np.ndarray, "items dim"], others: Float32[np.ndarray, "items dim"]
) -> Float32[np.ndarray, "items dim"]:
    """The same directions with the lengths of others: what one score does not look at, and another does."""
    own, wanted = (np.linalg.norm(each, axis=1, keepdims=True) for each in (vectors, others))
    return np.asarray(vectors / np.maximum(own, np.finfo(np.float32).tiny) * wanted)
