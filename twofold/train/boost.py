"""fit_trees(): the rival of the ranker, taught on the same requests and lists."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import lightgbm
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Int64

from twofold.dataset.dataset import Dataset
from twofold.model.ranker import RetrieverAndRankerData
from twofold.model.retriever import Model
from twofold.model.trees import (
    Trees,
    category_columns,
    column_names,
    item_columns,
    pair_columns,
    save_trees,
    user_columns,
)
from twofold.progress import progress_bar
from twofold.ragged import chunks
from twofold.recipe.ranker import Candidates, LambdaMart
from twofold.train.ranker_examples import MINED, Requests, draw_lists, mine_requests

AT_ONCE: Final = 1024
"""Requests whose lists are gathered together."""
TRIED: Final = 10
"""Numbers of trees that are judged: so many parts of all."""


@dataclass(frozen=True)
class Table:
    """The lists of all requests, one below the other."""

    lines: Float32[np.ndarray, "lines columns"]
    is_positive: Bool[np.ndarray, "lines"]
    weight: Float32[np.ndarray, "lines"]
    """Of the request."""
    lengths: Int64[np.ndarray, "requests"]


def fit_trees(
    retriever: Model,
    arrays: RetrieverAndRankerData,
    *,
    asked: LambdaMart,
    validate: Callable[[Trees], float],
    out: Path,
) -> dict[str, Any]:
    """Mines, grows, and writes `trees.txt`, as many of them as are best on validation, and `training_log.parquet`;
    returns facts. A killed training mines no second time, and grows anew.

    The negatives are drawn once. Equal seeds give equal bytes, whatever the number of threads.
    """
    mined, dataset = out / MINED, arrays.ranker
    requests = mine_requests(retriever, arrays.retriever, asked.candidates, seed=asked.seed, out=mined)
    table, features = gather_table(requests, dataset, asked.candidates, seed=asked.seed), dataset.features.features
    started = time.monotonic()
    booster, losses = _grow(table, asked, categories=category_columns(features))
    speed = round(len(requests) * len(losses) / (time.monotonic() - started))
    trees = Trees(booster, column_names(features), asked.candidates.num_candidates, len(losses))
    tried = sorted({-(-len(losses) * part // TRIED) for part in range(1, TRIED + 1)})
    records = [
        {"epoch": number, "loss": losses[used - 1], "validation": validate(trees.cut(used)), "examples_per_s": speed}
        for number, used in enumerate(tried)
    ]
    best = max(range(len(tried)), key=lambda number: records[number]["validation"])
    save_trees(trees.cut(tried[best]), out)
    pq.write_table(pa.Table.from_pylist(records), out / "training_log.parquet")
    shutil.rmtree(mined)
    return {
        "requests": len(requests),
        "found_share": requests.found_share,
        "trees": tried[best],
        "parameters": 2 * int(booster.feature_importance("split", iteration=tried[best]).sum()) + tried[best],
        "width": requests.users.shape[1],
        "best_epoch": best,
        "epochs": records,
    }


def gather_table(requests: Requests, dataset: Dataset, asked: Candidates, *, seed: int) -> Table:
    """Columns as of each request's own moment, with negatives that `seed` draws; a list in the retriever's order.

    LightGBM begins with all scores equal, and then takes the lines as they stand for the order it is to mend: with the
    positive first there would be nothing to mend.
    """
    parts = []
    for part in chunks(len(requests), AT_ONCE):
        which = np.arange(part.start, part.stop)
        parts.append(_gather(requests, dataset, which, asked, rng=np.random.default_rng((seed, 1, part.start))))
    return Table(*(np.concatenate([getattr(part, name) for part in parts]) for name in Table.__annotations__))


def _gather(
    requests: Requests,
    dataset: Dataset,
    which: Int64[np.ndarray, "requests"],
    asked: Candidates,
    *,
    rng: np.random.Generator,
) -> Table:
    lists = draw_lists(requests, dataset, which, asked, rng=rng)
    rows, at = dataset.examples["train"].take(requests.lines[which]), requests.at[which]
    (num, length), moments = lists.item_rows.shape, requests.moments[which][:, None]
    score = np.vecdot(requests.users[which][:, None], requests.items[moments, lists.item_rows])
    users = user_columns(dataset, np.ascontiguousarray(rows.user_rows), at)
    items = item_columns(dataset, lists.item_rows.ravel(), np.repeat(at, length)).reshape(num, length, -1)
    order = np.argsort(lists.places, axis=1, kind="stable")
    chosen = (order + np.arange(num)[:, None] * length)[np.take_along_axis(lists.competing, order, axis=1)]
    return Table(
        pair_columns(users, items, score, lists.places)[chosen],
        chosen % length == 0,
        rows.weight[chosen // length].astype(np.float32),
        lists.competing.sum(axis=1),
    )


def _grow(table: Table, asked: LambdaMart, *, categories: list[int]) -> tuple[lightgbm.Booster, list[float]]:
    """The trees, and 1 - NDCG@10 of the lists after each."""
    settings = {
        "objective": "lambdarank",
        "metric": "ndcg",
        "eval_at": [10],
        "num_leaves": asked.leaves,
        "min_data_in_leaf": asked.min_in_leaf,
        "learning_rate": asked.learning_rate,
        "seed": asked.seed,
        "deterministic": True,
        "force_row_wise": True,  # else the faster way is found by trying, and they round differently
        "verbosity": -1,
    }
    given = lightgbm.Dataset(
        table.lines,
        table.is_positive,
        group=table.lengths,
        weight=table.weight / (table.weight.mean() or 1.0),
        categorical_feature=categories,
        params=settings,
    )
    told: dict[str, dict[str, list[float]]] = {}
    with progress_bar("rank", total=asked.trees, unit="trees") as advance:
        booster = lightgbm.train(
            settings,
            given,
            asked.trees,
            valid_sets=[given],
            valid_names=["lists"],
            callbacks=[lightgbm.record_evaluation(told), lambda _: advance(1, "")],
        )
    return booster, [1 - value for value in told["lists"]["ndcg@10"][: booster.num_trees()]]
