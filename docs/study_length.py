"""Length of items in study C: what is told of it by labels, item vectors, orders and lists, for study_runs.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from twofold.dataset.dataset import Dataset, item_attributes
from twofold.evaluate.impressions import evaluate_impressions
from twofold.evaluate.significance import across_seeds, mean_intervals
from twofold.evaluate.watch_time import is_long_view, watched_rows
from twofold.evaluate.window import DayBounds, EvaluationWindow, scores_of_lists
from twofold.index.item_index import load_index
from twofold.pipeline.adapters import catalogue_scores, window_of
from twofold.pipeline.job import Job, reopen
from twofold.pipeline.trained_models import load_models
from twofold.run_folder import open_stage
from twofold.topk import tie_order

TENTHS: Final = 10
FIRST: Final = 5
"""Number of a user's own impressions, best score first, whose watching is measured."""
PLACES: Final = 10
"""Number of items of a recommended list."""
DAILY: Final = ("impressions/recall@5", "impressions/map", "impressions/auc")
"""Metrics of each test day, on the users' own impressions."""
WATCHING: Final = ("gain", "completion", "long_view", "seconds", "length_s")
"""Measurements of the first impressions: the gain in watch time among items of like length, the share of the length
that was watched, at most 1, long views, seconds watched, and the length of the items.
"""
_FOLDS: Final = 5
_HIDDEN: Final = 64  # as the adversary
_DECAY: Final = 10.0  # of the network's weights: the best of 1, 10, 30 and 100 for the base
_DRAWS: Final = 1000
_ALPHAS: Final = tuple(10.0**power for power in range(-2, 5))
_FEW: Final = 20  # examples of an item whose share of positives is counted

Values = dict[str, np.ndarray]
"""Values of each user by metric, NaN where a user has none; `users` are their ids."""


@dataclass(frozen=True)
class LengthOfRun:
    """Measurements of one run. Shares are of tenths of the test impressions by length, the shortest first."""

    edges: np.ndarray
    """Lengths in seconds at which the tenths end, but for the last."""
    tenths: Mapping[str, Sequence[float | None]]
    numbers: Mapping[str, float]
    watching: Values
    days: Mapping[str, Values]


def length_figures(own: Sequence[Path], against: Sequence[Path] | None) -> dict[str, Any]:
    """Returns the figures of an experiment, one run for each seed, and its differences from another one.

    Shares and probes are means over the seeds; differences have intervals over users and, with several seeds, seeds.
    """
    runs, others = [_read(each) for each in own], [_read(each) for each in against or ()]
    return {
        "edges_s": [float(each) for each in np.mean([run.edges for run in runs], axis=0)],
        "tenths": {name: _means([run.tenths[name] for run in runs]) for name in runs[0].tenths},
        "numbers": {name: float(np.mean([run.numbers[name] for run in runs])) for name in runs[0].numbers},
        "watching": _compared([run.watching for run in runs], [run.watching for run in others]),
        "days": {
            day: _compared([run.days[day] for run in runs], [run.days[day] for run in others]) for day in runs[0].days
        },
    }


def _means(values: Sequence[Sequence[float | None]]) -> list[float]:
    return [float(each) for each in np.mean(np.asarray(values, np.float64), axis=0)]


def _compared(own: Sequence[Values], others: Sequence[Values]) -> dict[str, Any]:
    """Returns the mean of each metric over users and seeds with the interval over users, and the paired difference."""
    found = {}
    for metric in (name for name in own[0] if name != "users"):
        mine = _paired([*own, *others], metric)
        mean = mean_intervals(mine[: len(own)].mean(axis=0)[:, None])
        value = [float(mean.value[0]), float(mean.low[0]), float(mean.high[0])]
        found[metric] = {"value": value, "minus": _difference(mine[: len(own)], mine[len(own) :]) if others else None}
    return found


def _paired(runs: Sequence[Values], metric: str) -> np.ndarray:
    """Returns the values of the users that all runs have, a line for each run."""
    users = runs[0]["users"]
    for run in runs[1:]:
        users = np.intersect1d(users, run["users"])
    return np.stack([run[metric][np.searchsorted(run["users"], users)] for run in runs])


def _difference(own: np.ndarray, other: np.ndarray) -> list[float | None]:
    if len(own) > 1:
        claim = across_seeds(own, other)
        return [claim.difference, claim.low, claim.high]
    minus = mean_intervals((own[0] - other[0])[:, None])
    return [float(minus.value[0]), float(minus.low[0]), float(minus.high[0])]


# --- one run ----------------------------------------------------------------------------------------------------------


@cache
def _read(folder: Path) -> LengthOfRun:
    job = reopen(folder)
    models = load_models(job, open_stage(folder, "dataset"), open_stage(folder, "train"))
    dataset = models.data.retriever
    window = window_of(job.recipe, dataset, "test")
    edges = _edges(np.asarray(dataset.examples["test"].length_s))
    watching, first = _watching(dataset, window, scores=catalogue_scores(models.retriever, dataset, window))
    length = np.asarray(item_attributes(folder / "dataset")["length_s"].to_numpy(), np.float64)
    numbers, tenths = _label(dataset, edges)
    served = _served(folder, dataset)
    numbers["served_known"] = float((served < dataset.items.num_known).mean())
    return LengthOfRun(
        edges,
        tenths | {"shown": _shares(dataset.examples["test"].length_s, edges), "first": _shares(first, edges)}
        | {"served": _shares(length[served], edges)},
        numbers | _probes(folder, dataset, length),
        watching,
        {f"{day}": _day(job, models.retriever, dataset, day) for day in job.recipe.evaluate.windows},
    )  # fmt: skip


def _edges(length_s: np.ndarray) -> np.ndarray:
    return np.unique(np.quantile(length_s[length_s > 0], np.arange(1, TENTHS) / TENTHS))


def _shares(length_s: np.ndarray, edges: np.ndarray) -> list[float]:
    """Returns the share of each tenth."""
    known = np.asarray(length_s)[np.asarray(length_s) > 0]
    return list(np.bincount(np.searchsorted(edges, known), minlength=len(edges) + 1) / len(known))


def _label(dataset: Dataset, edges: np.ndarray) -> tuple[dict[str, float], dict[str, Sequence[float | None]]]:
    """Describes the training examples: by tenth of length, and how much of the label's variance lies between items."""
    rows = dataset.examples["train"]
    known = np.asarray((rows.length_s > 0) & np.isfinite(rows.watch_s))
    watch, length, label, item = (
        np.asarray(each)[known] for each in (rows.watch_s, rows.length_s, rows.label, rows.item_rows)
    )
    tenth, columns = np.searchsorted(edges, length), {
        "positives": label, "completion": np.minimum(watch, length) / length, "long_view": is_long_view(watch, length),
        "seconds": watch,
    }  # fmt: skip
    count = np.bincount(tenth, minlength=TENTHS)
    tenths = {name: list(np.bincount(tenth, each, minlength=TENTHS) / count) for name, each in columns.items()}
    return {"between_items": _between(label.astype(np.float64), item)}, tenths


def _between(values: np.ndarray, group: np.ndarray) -> float:
    """Returns the share of the variance that lies between groups, without what chance alone puts there (the intraclass
    correlation of one-way analysis of variance, of groups with at least `_FEW` values).
    """
    often = np.flatnonzero(np.bincount(group) >= _FEW)
    keep = np.isin(group, often)
    values, group = values[keep], np.searchsorted(often, group[keep])
    count = np.bincount(group)
    means = np.bincount(group, values) / count
    between = (count * (means - values.mean()) ** 2).sum() / (len(count) - 1)
    within = ((values - means[group]) ** 2).sum() / (len(values) - len(count))
    size = (len(values) - (count**2).sum() / len(values)) / (len(count) - 1)
    return float((between - within) / (between + (size - 1) * within))


def _probes(folder: Path, dataset: Dataset, length: np.ndarray) -> dict[str, float]:
    """Returns how well log(length) of an item is told by its vector, when fitted on other items: R² of a ridge
    regression with its interval over items, R² and error of a network like the adversary's, and R² of a ridge
    regression from the content vector alone. Items without a training event are left out.
    """
    rows = np.flatnonzero((length > 0) & (np.arange(len(length)) < dataset.items.num_known))
    vectors = np.asarray(load_index(open_stage(folder, "index").folder).vectors, np.float64)[rows]
    content, log = np.asarray(dataset.vectors["content"], np.float64)[rows], np.log(length[rows])
    network = MLPRegressor(
        hidden_layer_sizes=(_HIDDEN,), solver="lbfgs", alpha=_DECAY, tol=1e-2, max_iter=2000, random_state=0
    )
    linear, wide = (_held_out(model, vectors, log) for model in (RidgeCV(_ALPHAS), network))
    drawn = np.random.default_rng(0).integers(0, len(log), (_DRAWS, len(log)))
    low, high = np.quantile([_r2(linear[each], log[each]) for each in drawn], (0.025, 0.975))
    return {
        "ridge_r2": _r2(linear, log), "ridge_low": float(low), "ridge_high": float(high),
        "network_r2": _r2(wide, log), "network_rmse": float(np.sqrt(((wide - log) ** 2).mean())),
        "content_r2": _r2(_held_out(RidgeCV(_ALPHAS), content, log), log), "length_std": float(log.std()),
        "probed_items": len(rows),
    }  # fmt: skip


def _held_out(model: Any, vectors: np.ndarray, log: np.ndarray) -> np.ndarray:
    """Returns the prediction of every item by a model that was fitted without it."""
    folds = KFold(_FOLDS, shuffle=True, random_state=0)
    mean, std = log.mean(), log.std()
    return mean + std * cross_val_predict(make_pipeline(StandardScaler(), model), vectors, (log - mean) / std, cv=folds)


def _r2(predicted: np.ndarray, truth: np.ndarray) -> float:
    return float(1 - ((predicted - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())


def _watching(dataset: Dataset, window: EvaluationWindow, *, scores: Any) -> tuple[Values, np.ndarray]:
    """Returns how the first of each user's own impressions were watched, and the lengths of these impressions."""
    watched = watched_rows(dataset, window, with_target=False)
    assert watched is not None, "study C is of logs with watch times"
    lines, rows = watched.item_rows.lines, watched.item_rows.values
    score = scores_of_lists(window, scores, watched.item_rows)
    order = np.lexsort((-tie_order(window.num_items)[0][rows], -score, lines))
    rank = np.arange(len(order)) - watched.item_rows.offsets[lines[order]]
    best = order[rank < FIRST]
    watch, length = watched.watch_s[best].astype(np.float64), watched.length_s[best].astype(np.float64)
    measured = (watched.gain[best], np.minimum(watch, length) / length, is_long_view(watch, length), watch, length)
    users = len(window.user_rows)
    found = {
        name: np.bincount(lines[best], each, minlength=users) / np.maximum(np.bincount(lines[best], minlength=users), 1)
        for name, each in zip(WATCHING, measured, strict=True)
    }
    return _by_id(dataset, window, found), length


def _by_id(dataset: Dataset, window: EvaluationWindow, values: Mapping[str, np.ndarray]) -> Values:
    ids = np.asarray(dataset.users.ids.to_numpy(zero_copy_only=False))[window.user_rows]
    order = np.argsort(ids, kind="stable")
    return {"users": ids[order]} | {name: each[order] for name, each in values.items()}


def _day(job: Job, model: Any, dataset: Dataset, day: Any) -> Values:
    """Returns the metrics of one test day, on the users' own impressions of the day."""
    first_at, end_at = job.recipe.prepare.day_ms(day)
    window = window_of(job.recipe, dataset, "test", DayBounds(f"{day}", first_at, end_at))
    found = evaluate_impressions(window, catalogue_scores(model, dataset, window)).values
    return _by_id(dataset, window, {metric: found[metric] for metric in DAILY})


def _served(folder: Path, dataset: Dataset) -> np.ndarray:
    """Returns the item rows of all recommended lists, one for each of the first places."""
    lists = pq.read_table(open_stage(folder, "recommend").folder / "recommendations.parquet")
    return dataset.items.rows_of(lists.filter(pc.less_equal(lists["rank"], PLACES))["item_id"])
