"""Report section on the watch time of lists: how long their first items are expected to be watched.

The log has watch times of shown items alone. Those of all other items are predicted by a head of the ranker, and the
predictions are calibrated on the impressions of the window. This is the direct method of off-policy evaluation (Dudík
et al., *Doubly robust policy evaluation and learning*, ICML 2011): it is as good as the head is on items that an older
recommender did not show.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from twofold.evaluate.baseline_results import Headline
from twofold.evaluate.catalogue import ranked_lists
from twofold.evaluate.results import MODEL, ListWatchSection, Report, Row, rows_of
from twofold.evaluate.scores import ScoreBlock
from twofold.evaluate.significance import Estimate
from twofold.evaluate.summary_text import compared_with, format_estimate
from twofold.evaluate.watch_time import GainScale, Watched, gains, is_long_view
from twofold.evaluate.window import EvaluationWindow, PerUser
from twofold.ragged import Ragged
from twofold.render.numbers import format_decimal
from twofold.tables import LONG_VIEW_MS

BINS: Final = 15
SECONDS: Final = "list_watch/seconds"
REFERENCES: Final = ("popularity", "random")
"""Baselines that the lists are compared with."""
Calibrate = Callable[[Float64[np.ndarray, "length"]], Float64[np.ndarray, "length"]]


@dataclass(frozen=True)
class WatchHead:
    """A head that predicts watch time, and the lengths of the items."""

    name: str
    seconds: Callable[
        [Int64[np.ndarray, "pairs"], Int64[np.ndarray, "pairs"]],
        Float64[np.ndarray, "pairs"],
    ]
    """Predicted seconds of pairs of a user of the window and an item row."""
    length_s: Float32[np.ndarray, "items"]
    """Lengths of the items; NaN means unknown."""
    gain: GainScale
    """Watch time by length, fitted on training examples."""


@dataclass(frozen=True)
class _Predicted:
    """Predictions of pairs: seconds, and seconds as a share of the item's length and of its long view."""

    seconds: Float64[np.ndarray, "length"]
    of_length: Float64[np.ndarray, "length"]
    of_long_view: Float64[np.ndarray, "length"]

    def where(self, keep: Bool[np.ndarray, "length"]) -> "_Predicted":
        return _Predicted(self.seconds[keep], self.of_length[keep], self.of_long_view[keep])


def evaluate_list_watch(
    window: EvaluationWindow, scores: Mapping[str, ScoreBlock], head: WatchHead, shown: Watched, *, k: int
) -> ListWatchSection:
    """Predicts the watch time of the first k unseen items of every user of the window, for each row of `scores`."""
    calibrated = list_calibration(window, head, shown)
    rows = {name: calibrated(first_items(window, block, k)) for name, block in scores.items()}
    named = {
        name: PerUser(
            {f"list_watch/{metric}@{k}": values for metric, values in metrics.items()},
            evaluated=int(np.isfinite(metrics["seconds"]).sum()),
            skipped={"no item of known length": int(np.isnan(metrics["seconds"]).sum())},
        )
        for name, metrics in rows.items()
    }
    found = rows_of(named)
    sentence = _sentence(found[0].metrics, {row.name: row for row in found[1:]}, k)
    return ListWatchSection(k, named[MODEL].evaluated, head.name, len(shown.watch_s), found, sentence)


def with_list_watch(report: Report, section: ListWatchSection | None) -> Report:
    """Adds the watch time of lists to a report; its sentence follows those of the headline metrics."""
    if section is None:
        return report
    first, rest = report.verdict[: len(report.headlines)], report.verdict[len(report.headlines) :]
    return replace(report, list_watch=section, verdict=(*first, section.sentence, *rest))


def list_calibration(
    window: EvaluationWindow, head: WatchHead, shown: Watched
) -> Callable[[Ragged], dict[str, Float64[np.ndarray, "users"]]]:
    """Returns a function from one list of items per user of the window to the expected values of each list.

    Predictions of half of the users are calibrated on the impressions of the other half, so that no watch time is
    compared with itself. Of each list, the mean over its items of known length is taken.
    """
    lines = shown.item_rows.lines
    predicted = _predict(head, lines, shown.item_rows.values, shown.length_s)
    watch, length = shown.watch_s.astype(np.float64), shown.length_s.astype(np.float64)
    outcomes = watch, np.minimum(watch, length) / length, is_long_view(shown.watch_s, shown.length_s)
    halves = []
    for half in (0, 1):
        is_other = lines % 2 != half
        is_other = is_other if is_other.any() else np.ones_like(is_other)
        others, (seconds, completion, is_long) = predicted.where(is_other), (each[is_other] for each in outcomes)
        halves.append(
            (
                fit_ratio(others.seconds, seconds),
                fit_share(others.of_length, completion),
                fit_share(others.of_long_view, is_long.astype(np.float64)),
            )
        )

    def expected(lists: Ragged) -> dict[str, Float64[np.ndarray, "users"]]:
        rows, users = lists.values, lists.lines
        raw = _predict(head, users, rows, head.length_s[rows])
        values = {name: np.empty(len(rows)) for name in ("seconds", "completion", "long_view")}
        for half, fitted in enumerate(halves):
            own = users % 2 == half
            parts = raw.where(own)
            inputs = parts.seconds, parts.of_length, parts.of_long_view
            for name, calibrate, part in zip(values, fitted, inputs, strict=True):
                values[name][own] = calibrate(part)
        values["wtg"] = gains(head.gain, values["seconds"].astype(np.float32), head.length_s[rows])
        return {name: _means(value, users, len(lists.sizes)) for name, value in values.items()}

    return expected


def fit_ratio(predicted: Float64[np.ndarray, "length"], observed: Float64[np.ndarray, "length"]) -> Calibrate:
    """Returns a function that multiplies a prediction by observed : predicted of the impressions with like predictions.

    The ratio is that of bins of equal size, interpolated between their means; beyond them it is constant.
    """
    means, ratio = _bins(predicted, observed)
    ratio = ratio / np.maximum(means, 1e-9)
    return lambda values: values * np.interp(values, means, ratio)


def fit_share(predicted: Float64[np.ndarray, "length"], observed: Float64[np.ndarray, "length"]) -> Calibrate:
    """Returns a function from a prediction to the mean outcome of impressions with like predictions, as `fit_ratio`."""
    means, shares = _bins(predicted, observed)
    return lambda values: np.interp(values, means, shares)


def _bins(
    predicted: Float64[np.ndarray, "length"], observed: Float64[np.ndarray, "length"]
) -> tuple[Float64[np.ndarray, "bins"], Float64[np.ndarray, "bins"]]:
    parts = np.array_split(np.argsort(predicted, kind="stable"), min(BINS, len(predicted)))
    return np.array([predicted[part].mean() for part in parts]), np.array([observed[part].mean() for part in parts])


def _predict(
    head: WatchHead,
    users: Int64[np.ndarray, "length"],
    item_rows: Int64[np.ndarray, "length"],
    length_s: Float32[np.ndarray, "length"],
) -> _Predicted:
    """Predicts pairs; NaN where the length of the item is unknown."""
    length = np.where(length_s > 0, length_s, np.nan).astype(np.float64)
    seconds = head.seconds(users, np.ascontiguousarray(item_rows)) + 0 * length
    return _Predicted(seconds, seconds / length, seconds / np.minimum(length, LONG_VIEW_MS / 1000))


def first_items(window: EvaluationWindow, block: ScoreBlock, k: int) -> Ragged:
    """Returns the first k unseen items of every user; fewer where fewer are left."""
    found = np.full((len(window.user_rows), k), -1, np.int64)
    for users, lists in ranked_lists(window, block, k, of=np.ones(len(found), bool)):
        found[users, : lists.shape[1]] = lists
    return Ragged(found.ravel(), k * np.arange(len(found) + 1)).where((found >= 0).ravel())


def _means(
    values: Float64[np.ndarray, "length"], users: Int64[np.ndarray, "length"], num_users: int
) -> Float64[np.ndarray, "users"]:
    known = np.isfinite(values)
    count = np.bincount(users[known], minlength=num_users)
    return np.bincount(users[known], values[known], minlength=num_users) / np.where(count > 0, count, np.nan)


def _sentence(model: Mapping[str, Estimate], others: Mapping[str, Row], k: int) -> str:
    """Compares the expected watch time with that of popularity and of random lists, and adds the other figures."""
    metric = f"{SECONDS}@{k}"
    compared = [
        compared_with(Headline(metric, model[metric], name, row.metrics[metric], row.model_minus[metric]))
        for name, row in others.items()
        if name in REFERENCES
    ]
    wtg, completion, long_view = (
        format_decimal(model[f"list_watch/{name}@{k}"].value) for name in ("wtg", "completion", "long_view")
    )
    return (
        f"Expected watch time of the first {k} items {format_estimate(model[metric])} s an item: "
        f"{'; '.join(compared)}. Gain among items of like length (WTG) {wtg}, completion {completion}, long views "
        f"{long_view}."
    )
