"""The ranker of a run, whichever it is: the one place that asks which."""

from pathlib import Path
from typing import Final, TypeAlias, assert_never

import numpy as np
from jaxtyping import Float32, Int64

from twofold.dataset.batches import query_batches
from twofold.dataset.dataset import Dataset
from twofold.errors import RecipeError
from twofold.model.ranker import (
    ItemSide,
    Ranker,
    RetrieverAndRankerData,
    describe_ranker,
    encode_item_side,
    load_ranker,
    rank_scores,
    save_ranker,
)
from twofold.model.retriever import Model
from twofold.model.trees import Trees, item_columns, load_trees, user_columns
from twofold.model.weights import encode
from twofold.ragged import chunks
from twofold.recipe import ranker as ranking
from twofold.run_folder import Stage
from twofold.tables import ModelPart

SecondStage: TypeAlias = Ranker | Trees
_CELLS: Final = 2**22  # numbers of items' vectors gathered at once: 16 MiB


def load_second_stage(
    asked: ranking.Ranker | None, arrays: RetrieverAndRankerData, ranked: Stage | None, *, retriever: Model
) -> SecondStage | None:
    """What the stage train/ranker/ made of what this retriever finds; None where none is asked for."""
    if asked is None or ranked is None:
        return None
    match asked:
        case ranking.Mlp():
            return load_ranker(asked, arrays, ranked.folder, retrieved=ranked.facts["width"], retriever=retriever)
        case ranking.LambdaMart():
            return load_trees(asked, arrays.ranker.features.features, ranked.folder)
        case _:
            assert_never(asked)


def save_second_stage(
    ranker: SecondStage,
    arrays: RetrieverAndRankerData,
    vectors: Float32[np.ndarray, "items wide"],
    *,
    at: int,
    folder: Path,
) -> None:
    """Writes what a server ranks with at one moment; RecipeError for trees, which none does."""
    match ranker:
        case Ranker():
            save_ranker(ranker, arrays, vectors, at=at, folder=folder)
        case Trees():
            raise RecipeError(
                "ranker.kind is lambdamart, which is judged and not served: the run ends with its report, which "
                "`twofold evaluate RUN` prints. To serve two stages write ranker.kind: mlp; to serve the retriever "
                "alone, delete ranker."
            )
        case _:
            assert_never(ranker)


def describe_second_stage(ranker: SecondStage) -> list[ModelPart]:
    """Every block and layer; or, of trees, what each column is asked for: its part of the gain, and how often."""
    match ranker:
        case Ranker():
            return describe_ranker(ranker)
        case Trees(booster=booster, columns=columns, used=used):
            gains, splits = (booster.feature_importance(kind, iteration=used) for kind in ("gain", "split"))
            parts = [
                ModelPart("ranker", name, f"{gain / max(gains.sum(), 1e-12):.0%} of the gain", int(count))
                for name, gain, count in zip(columns, gains, splits, strict=True)
            ]
            return [*parts, ModelPart("ranker", "leaves", f"{used} trees", int(splits.sum()) + used)]
        case _:
            assert_never(ranker)


def item_side(
    ranker: SecondStage, dataset: Dataset, vectors: Float32[np.ndarray, "items wide"], at: int, *, is_masked: bool
) -> ItemSide:
    """Of the whole catalogue at one moment; `is_masked`: as if nobody knew an item's id, and `vectors` say so too."""
    match ranker:
        case Ranker():
            return encode_item_side(ranker, dataset, vectors, at, is_masked=is_masked)
        case Trees():
            item_rows = np.arange(len(dataset.items))
            return ItemSide(vectors, item_columns(dataset, item_rows, np.full(len(item_rows), at)))
        case _:
            assert_never(ranker)


def user_side(
    ranker: SecondStage, dataset: Dataset, user_rows: Int64[np.ndarray, "queries"], at: Int64[np.ndarray, "queries"]
) -> Float32[np.ndarray, "queries _"]:
    """What it makes of users who ask at these moments."""
    match ranker:
        case Ranker():
            return encode(ranker.user, query_batches(dataset, user_rows, at))
        case Trees():
            return user_columns(dataset, user_rows, at)
        case _:
            assert_never(ranker)


def pair_scores(
    ranker: SecondStage,
    items: ItemSide,
    users: Float32[np.ndarray, "queries _"],
    user_vectors: Float32[np.ndarray, "queries wide"],
    item_rows: Int64[np.ndarray, "queries length"],
    places: Int64[np.ndarray, "queries length"],
) -> Float32[np.ndarray, "queries length"]:
    """Scores of each query's items, which stand at these `places` of the retriever's order, from 0."""
    queries, length = item_rows.shape
    scores = np.empty((queries, length), np.float32)
    for part in chunks(queries, max(_CELLS // max(items.vectors.shape[1] * length, 1), 1)):
        asking, factors, rows, held = users[part], user_vectors[part], item_rows[part], places[part]
        match ranker:
            case Ranker():
                scores[part] = rank_scores(ranker, items, asking, factors, rows, held)
            case Trees():
                met = np.vecdot(factors[:, None], items.vectors[rows])
                scores[part] = ranker.scores(asking, items.encoded[rows], met, held)
            case _:
                assert_never(ranker)
    return scores
