"""Watch time of lists: the head that predicts it, the section of the report, and the values of formulas in a search."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Float64, Int64

from twofold.dataset.dataset import Dataset
from twofold.errors import RunError
from twofold.evaluate.baselines import popularity, random_scores
from twofold.evaluate.calibration import seconds_at
from twofold.evaluate.headline_metrics import primary_k
from twofold.evaluate.list_watch_time import WatchHead, evaluate_list_watch, first_items, list_calibration
from twofold.evaluate.peers import Interactions
from twofold.evaluate.results import ListWatchSection
from twofold.evaluate.scores import ScoreBlock
from twofold.evaluate.watch_time import training_gain, watched_rows
from twofold.evaluate.window import SEED, EvaluationWindow
from twofold.pipeline.adapters import PredictPairs, head_predictions, two_stages, window_of
from twofold.pipeline.dataset import build_dataset
from twofold.pipeline.item_table import described_items
from twofold.pipeline.job import Job
from twofold.pipeline.prepare import prepare
from twofold.pipeline.train import train, train_ranker
from twofold.pipeline.trained_models import load_models
from twofold.recipe.prepare import Prepare
from twofold.recipe.ranker import RELEVANCE

_COLUMNS: Final = ("item_rows", "length_s")


def watch_head(
    heads: Mapping[str, PredictPairs], arrays: Dataset, items: pa.Table, *, prepare: Prepare, fitted: Path
) -> WatchHead | None:
    """Returns the first head that predicts a quantile of watch time; `None` if there is none.

    `fitted` is the folder in which preparation stores the quantiles, and `items` the items table in the order of rows.
    """
    names = [(name, label) for name in heads if (label := prepare.quantile_of(name)) is not None]
    if not names:
        return None
    (name, label), *_ = names
    table, parts = pq.read_table(fitted / f"{label}.quantile.parquet"), arrays.examples.values()
    item_rows, lengths = (np.concatenate([np.asarray(getattr(part, name)) for part in parts]) for name in _COLUMNS)
    length = item_lengths(items, item_rows.astype(np.int64), lengths)

    def seconds(users: Int64[np.ndarray, "pairs"], rows: Int64[np.ndarray, "pairs"]) -> Float64[np.ndarray, "pairs"]:
        return seconds_at(table, heads[name](users, rows), length[rows])

    return WatchHead(name, seconds, length, training_gain(arrays))


def item_lengths(
    items: pa.Table, item_rows: Int64[np.ndarray, "length"], length_s: Float32[np.ndarray, "length"]
) -> Float32[np.ndarray, "items"]:
    """Returns the length of each item: that of the items table, else the mean over these events; NaN if unknown."""
    known = np.flatnonzero(np.nan_to_num(length_s) > 0)
    count = np.bincount(item_rows[known], minlength=len(items))
    length = np.bincount(item_rows[known], length_s[known], minlength=len(items)) / np.where(count > 0, count, np.nan)
    if "length_s" in items.column_names:
        stated = items["length_s"].cast(pa.float64()).to_numpy(zero_copy_only=False)
        length = np.where(np.nan_to_num(stated) > 0, stated, length)
    return length.astype(np.float32)


def list_watch_section(
    head: WatchHead | None,
    arrays: Dataset,
    window: EvaluationWindow,
    scores: Mapping[str, ScoreBlock],
    positives: Interactions,
) -> ListWatchSection | None:
    """Returns the expected watch time of the first items of each row of `scores`, of popularity and of random lists.

    `None` means that no head predicts it, or that the window has no watch times to calibrate the head on.
    """
    if head is None or (shown := watched_rows(arrays, window, with_target=False)) is None:
        return None
    baselines = {"random": random_scores(window.num_items, seed=SEED), "popularity": popularity(positives)}
    return evaluate_list_watch(window, {**scores, **baselines}, head, shown, k=list_length(window))


def list_length(window: EvaluationWindow) -> int:
    """Returns the number of first items whose watch time counts: 10, and fewer in a small catalogue."""
    return min(10, primary_k(window.num_items))


def watch_time_by_formula(job: Job) -> Callable[[str | None], float]:
    """Trains both stages of a job, and returns a function from a formula of the ranker to the expected seconds of the
    first items on the validation window.

    All formulas are compared with the same weights and the same predictions of watch time. Raises RunError if the
    validation window has no watch times.
    """
    prepared = prepare(job)
    dataset = build_dataset(job, prepared)
    retriever = train(job, dataset)
    models = load_models(job, dataset, retriever, train_ranker(job, dataset, retriever))
    ranker, arrays = models.ranker, models.data.retriever
    assert ranker is not None, "the recipe checks that there is a ranker"
    window = window_of(job.recipe, arrays, "validation")
    items = described_items(job.recipe, dataset.folder, arrays, as_of=int(window.query_at.min()))
    predictions, fitted = head_predictions(models, window), prepared.folder / "fitted"
    head = watch_head(predictions, arrays, items, prepare=job.recipe.prepare, fitted=fitted)
    shown = watched_rows(arrays, window, with_target=False)
    if head is None or shown is None:
        raise RunError(
            "tune.goal is watch_time, and no event of the validation window has a watch time and a length. Add "
            "watch_s and length_s to the log, or write goal: recall."
        )
    expected, k = list_calibration(window, head, shown), list_length(window)

    def seconds_of(formula: str | None) -> float:
        scores = two_stages(models, ranker.with_formula(formula or RELEVANCE), window)
        return float(np.nanmean(expected(first_items(window, scores, k))["seconds"]))

    return seconds_of
