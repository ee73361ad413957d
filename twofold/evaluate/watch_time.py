"""Scores against how long people watched: order (XAUC), size of the error, and what the top of each list was worth.

The lists are users' own impressions, one list a user, cut by `offsets`. A ranking score is judged by order alone; only
one that was taught a number has an error in it.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float32, Float64, Int64

from twofold.dataset.dataset import Dataset
from twofold.evaluate.scores import ScoreBlock
from twofold.evaluate.window import EvaluationWindow, PerUser, scores_of_lists, split_of
from twofold.ragged import Ragged
from twofold.tables import LONG_VIEW_MS
from twofold.topk import tie_order

KS: Final = (5, 10)
DECILES: Final = 10
_PAIRS: Final = 2**22
_BUCKETS: Final = 30  # of equal frequency, as D2Q cuts lengths (Zhan et al., KDD 2022)


@dataclass(frozen=True)
class Watched:
    """Impressions of judged users whose watch time and length are known: entry i of `item_rows.values` was watched so.

    `target` is what the model was taught to predict, None where its score only orders.
    """

    item_rows: Ragged
    watch_s: Float32[np.ndarray, "length"]
    length_s: Float32[np.ndarray, "length"]
    gain: Float64[np.ndarray, "length"]
    target: Float32[np.ndarray, "length"] | None = None

    def where(self, keep: Bool[np.ndarray, "length"]) -> "Watched":
        """The same users with some of their impressions."""
        kept = np.concatenate([[0], np.cumsum(keep)])
        return Watched(
            Ragged(self.item_rows.values[keep], kept[self.item_rows.offsets]),
            self.watch_s[keep],
            self.length_s[keep],
            self.gain[keep],
            None if self.target is None else self.target[keep],
        )


@dataclass(frozen=True)
class GainScale:
    """Mean and deviation of the watch time of items of one length, fitted on training rows; NaN: unknown."""

    edges: Float64[np.ndarray, "edges"]
    mean: Float64[np.ndarray, "buckets"]
    std: Float64[np.ndarray, "buckets"]


def fit_gain(watch_s: Float32[np.ndarray, "rows"], length_s: Float32[np.ndarray, "rows"]) -> GainScale:
    """Fits `gains` on rows whose watch time and length are known; 30 buckets of equal frequency, equal edges merged."""
    if len(length_s) == 0:
        return GainScale(np.zeros(0), np.full(1, np.nan), np.full(1, np.nan))
    edges = np.unique(np.quantile(length_s.astype(np.float64), np.arange(1, _BUCKETS) / _BUCKETS))
    bucket = np.searchsorted(edges, length_s, side="right")
    count = np.bincount(bucket, minlength=len(edges) + 1)
    watch = watch_s.astype(np.float64)
    many = np.where(count > 1, count, np.nan)
    mean = np.bincount(bucket, watch, minlength=len(count)) / many
    std = np.sqrt(np.bincount(bucket, (watch - mean[bucket]) ** 2, minlength=len(count)) / many)
    return GainScale(edges, mean, np.where(std > 0, std, np.nan))


def gains(
    scale: GainScale, watch_s: Float32[np.ndarray, "rows"], length_s: Float32[np.ndarray, "rows"]
) -> Float64[np.ndarray, "rows"]:
    """Watch-time gain (watch - mean) / std among items as long (DVR; Zheng et al., MM 2022)."""
    bucket = np.searchsorted(scale.edges, length_s, side="right")
    gain: Float64[np.ndarray, " rows"] = (watch_s - scale.mean[bucket]) / scale.std[bucket]
    return gain


def is_long_view(
    watch_s: Float32[np.ndarray, "rows"], length_s: Float32[np.ndarray, "rows"]
) -> Bool[np.ndarray, "rows"]:
    """Up to 18 s watched whole, or 18 s of something longer."""
    return np.asarray(watch_s >= np.minimum(length_s, LONG_VIEW_MS / 1000))


def watched_rows(dataset: Dataset, window: EvaluationWindow, *, with_target: bool) -> Watched | None:
    """The window's impressions of known watch time and length, their gain fitted on training; None if there are none.

    `with_target`: the model's score is a number that it was taught, the rows' `target`.
    """
    rows, train = dataset.examples[split_of(window)], dataset.examples["train"]
    known, learned = (
        np.isfinite(part.watch_s) & np.isfinite(part.length_s) & (part.length_s > 0) for part in (rows, train)
    )
    if not known.any():
        return None
    line = np.searchsorted(window.user_rows, rows.user_rows[known])  # rows are sorted by user
    offsets = np.searchsorted(line, np.arange(len(window.user_rows) + 1)).astype(np.int64)
    watch, length = np.asarray(rows.watch_s[known]), np.asarray(rows.length_s[known])
    scale = fit_gain(np.asarray(train.watch_s[learned]), np.asarray(train.length_s[learned]))
    target = np.asarray(rows.target[known]) if with_target else None
    return Watched(Ragged(rows.item_rows[known], offsets), watch, length, gains(scale, watch, length), target)


def xauc(
    scores: Float32[np.ndarray, "length"],
    truth: Float64[np.ndarray, "length"],
    *,
    offsets: Int64[np.ndarray, "offsets"],
) -> Float64[np.ndarray, "users"]:
    """Share of a list's pairs that the scores order as the truth does (Zhan et al., KDD 2022).

    Pairs of equal truth are dropped, equal scores count one half: of a truth of 0 and 1 it is the AUC. NaN where all
    are equal.
    """
    sizes = np.diff(offsets)
    line, start = np.repeat(np.arange(len(sizes)), sizes), np.repeat(offsets[:-1], sizes)
    partners = sizes[line]
    won, pairs = np.zeros(len(sizes)), np.zeros(len(sizes))
    ends = np.cumsum(partners)
    cuts = np.searchsorted(ends, np.arange(_PAIRS, ends[-1] if len(ends) else 0, _PAIRS))
    for first, end in zip([0, *cuts], [*cuts, len(line)], strict=True):
        count = partners[first:end]
        one = np.repeat(np.arange(first, end), count)
        other = np.arange(len(one)) - np.repeat(np.cumsum(count) - count, count) + start[one]
        above = truth[one] > truth[other]
        one, other = one[above], other[above]
        right = (scores[one] > scores[other]) + 0.5 * (scores[one] == scores[other])
        won += np.bincount(line[one], right, minlength=len(sizes))
        pairs += np.bincount(line[one], minlength=len(sizes))
    share: Float64[np.ndarray, " users"] = won / np.where(pairs > 0, pairs, np.nan)
    return share


def pooled_xauc(scores: Float32[np.ndarray, "length"], truth: Float64[np.ndarray, "length"]) -> float:
    """XAUC over the pairs of all users: (1 + Somers' D) / 2, from Kendall's tau in n log n steps; NaN for one value.

    >>> round(pooled_xauc(np.array([1, 2, 2], np.float32), np.array([1.0, 2.0, 3.0])), 3)
    0.833
    """
    pairs = len(truth) * (len(truth) - 1) / 2
    ordered, tied = (pairs - _equal_pairs(each) for each in (truth, scores))
    if ordered == 0 or tied == 0:
        return 0.5 if ordered else float("nan")
    tau = float(scipy.stats.kendalltau(scores, truth).statistic)
    return 0.5 + 0.5 * tau * float(np.sqrt(ordered * tied)) / ordered


def _equal_pairs(values: np.ndarray) -> float:
    count = np.unique(values, return_counts=True)[1].astype(np.float64)
    return float((count * (count - 1) / 2).sum())


def list_metrics(
    scores: Float32[np.ndarray, "length"],
    gain: Float64[np.ndarray, "length"],
    is_long: Bool[np.ndarray, "length"],
    *,
    ties: Int64[np.ndarray, "length"],
    offsets: Int64[np.ndarray, "offsets"],
) -> dict[str, Float64[np.ndarray, "users"]]:
    """What the first k of each list, by falling score, were worth: `wtg@k` and `long_view@k` are means, of the whole
    list where it is shorter; `dcg_wtg@k` sums gain / log2(rank + 1).

    `dcg_wtg_ln@k` is the same with the natural logarithm, as in the code of DVR: 1.44 times as much.
    """
    line = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((-ties, -scores, line))
    rank = np.arange(len(order)) - offsets[line] + 1
    values = {}
    for k in KS:
        top = rank <= k
        at, whose, places = order[top], line[top], rank[top]

        def total(what: np.ndarray, whose: np.ndarray = whose) -> np.ndarray:
            return np.bincount(whose, what, minlength=len(offsets) - 1)

        some = total(np.ones(len(at)))
        some = np.where(some > 0, some, np.nan)
        discounted = total(gain[at] / np.log2(places + 1)) + 0 * some
        values[f"wtg@{k}"] = total(gain[at]) / some
        values[f"dcg_wtg@{k}"] = discounted
        values[f"dcg_wtg_ln@{k}"] = discounted / np.log(2)
        values[f"long_view@{k}"] = total(is_long[at].astype(float)) / some
    return values


def errors(predicted: Float32[np.ndarray, "rows"], truth: Float32[np.ndarray, "rows"]) -> dict[str, float]:
    """Mean absolute and root mean square error over all rows; NaN without any.

    >>> errors(np.array([1, 2], np.float32), np.array([1, 4], np.float32))
    {'mae': 1.0, 'rmse': 1.4142135623730951}
    """
    off = predicted.astype(np.float64) - truth
    if len(off) == 0:
        return {"mae": float("nan"), "rmse": float("nan")}
    return {"mae": float(np.abs(off).mean()), "rmse": float(np.sqrt((off**2).mean()))}


def evaluate_watch_time(
    window: EvaluationWindow, score_block: ScoreBlock, watched: Watched
) -> tuple[PerUser, tuple[PerUser, ...]]:
    """Every metric of this file on all impressions, and on those of each tenth of them by length, shortest first.

    Users ask once, at their first impression of the window; a decile is made of that length's impressions alone.
    """
    scores = scores_of_lists(window, score_block, watched.item_rows)
    decile = length_decile(watched.length_s)
    parts = (_judge(window, scores[at], watched.where(at)) for at in (decile == part for part in range(DECILES)))
    return _judge(window, scores, watched), tuple(parts)


def length_decile(length_s: Float32[np.ndarray, "length"]) -> Int64[np.ndarray, "length"]:
    """0 for the shortest tenth to 9; equal lengths stay together, so that tenths need not be equal."""
    if len(length_s) == 0:
        return np.zeros(0, np.int64)
    edges = np.quantile(length_s, np.arange(1, DECILES) / DECILES)
    return np.searchsorted(edges, length_s, side="left").astype(np.int64)


def _judge(window: EvaluationWindow, scores: Float32[np.ndarray, "length"], watched: Watched) -> PerUser:
    lists, watch = watched.item_rows, watched.watch_s.astype(np.float64)
    known = np.isfinite(watched.gain)
    kept = np.concatenate([[0], np.cumsum(known)])
    values = {"xauc": xauc(scores, watch, offsets=lists.offsets)} | list_metrics(
        scores[known],
        watched.gain[known],
        is_long_view(watched.watch_s, watched.length_s)[known],
        ties=tie_order(window.num_items)[0][lists.values[known]],
        offsets=kept[lists.offsets],
    )
    pooled = {"xauc_pooled": pooled_xauc(scores, watch)}
    if watched.target is not None:
        pooled |= errors(scores, watched.target)
    judged = int((lists.sizes > 0).sum())
    return PerUser(
        {f"watch_time/{name}": value for name, value in values.items()},
        judged=judged,
        skipped={"no impression of known watch time and length": len(lists.sizes) - judged},
        pooled={f"watch_time/{name}": value for name, value in pooled.items()},
    )
