"""Watch-time metrics: the order of scores (XAUC), their error, and the watch time at the top of each list.

The lists are users' own impressions, one list per user, delimited by `offsets`. A ranking score is evaluated by its
order alone; only a model that was trained to predict a number has an error.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float32, Float64, Int64

from twofold.dataset.dataset import Dataset
from twofold.dataset.examples import Examples
from twofold.evaluate.scores import ScoreBlock
from twofold.evaluate.window import EvaluationWindow, PerUser, scores_of_lists, split_of
from twofold.ragged import Ragged
from twofold.tables import LONG_VIEW_MS
from twofold.topk import tie_order

KS: Final = (5, 10)
DECILES: Final = 10
CHUNK_PAIRS: Final = 2**22  # pairs compared at a time
_BUCKETS: Final = 30  # of equal frequency, as D2Q cuts lengths (Zhan et al., KDD 2022)


@dataclass(frozen=True)
class Watched:
    """Impressions of the window's users with known watch time and length, in the order of `item_rows.values`.

    `target` is the number that the model was trained to predict; `None` means that its score only ranks.
    """

    item_rows: Ragged
    watch_s: Float32[np.ndarray, "length"]
    length_s: Float32[np.ndarray, "length"]
    gain: Float64[np.ndarray, "length"]
    target: Float32[np.ndarray, "length"] | None = None

    def where(self, keep: Bool[np.ndarray, "length"]) -> "Watched":
        """Returns the same users with some of their impressions."""
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
    """Mean and standard deviation of watch time by item length, fitted on training examples; NaN means unknown."""

    edges: Float64[np.ndarray, "_"]
    mean: Float64[np.ndarray, "bins"]
    std: Float64[np.ndarray, "bins"]


def fit_gain(watch_s: Float32[np.ndarray, "examples"], length_s: Float32[np.ndarray, "examples"]) -> GainScale:
    """Fits `gains` on examples with known watch time and length, in up to 30 buckets of equal frequency."""
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
    scale: GainScale, watch_s: Float32[np.ndarray, "examples"], length_s: Float32[np.ndarray, "examples"]
) -> Float64[np.ndarray, "examples"]:
    """Returns the watch-time gain (watch - mean) / std among items of like length (DVR; Zheng et al., MM 2022)."""
    bucket = np.searchsorted(scale.edges, length_s, side="right")
    return (watch_s - scale.mean[bucket]) / scale.std[bucket]


def is_long_view(
    watch_s: Float32[np.ndarray, "examples"], length_s: Float32[np.ndarray, "examples"]
) -> Bool[np.ndarray, "examples"]:
    """Returns whether an item of up to 18 s was watched to the end, or a longer one for at least 18 s."""
    return np.asarray(watch_s >= np.minimum(length_s, LONG_VIEW_MS / 1000))


def watched_rows(dataset: Dataset, window: EvaluationWindow, *, with_target: bool) -> Watched | None:
    """Returns the window's impressions with known watch time and length, and their gain fitted on training examples.

    `with_target` says that the model's score predicts the examples' `target`. Returns `None` if there are none.
    """
    rows = dataset.examples[split_of(window)]
    known = _is_known(rows)
    if not known.any():
        return None
    user = np.searchsorted(window.user_rows, rows.user_rows[known])  # examples are sorted by user
    offsets = np.searchsorted(user, np.arange(len(window.user_rows) + 1)).astype(np.int64)
    watch, length = np.asarray(rows.watch_s[known]), np.asarray(rows.length_s[known])
    target = np.asarray(rows.target[known]) if with_target else None
    gain = gains(training_gain(dataset), watch, length)
    return Watched(Ragged(rows.item_rows[known], offsets), watch, length, gain, target)


def training_gain(dataset: Dataset) -> GainScale:
    """Fits the gain on the training examples with known watch time and length."""
    rows = dataset.examples["train"]
    known = _is_known(rows)
    return fit_gain(np.asarray(rows.watch_s[known]), np.asarray(rows.length_s[known]))


def _is_known(rows: Examples) -> Bool[np.ndarray, "examples"]:
    return np.asarray(np.isfinite(rows.watch_s) & np.isfinite(rows.length_s) & (rows.length_s > 0))


def xauc(
    scores: Float32[np.ndarray, "length"],
    truth: Float64[np.ndarray, "length"],
    *,
    offsets: Int64[np.ndarray, "_"],
) -> Float64[np.ndarray, "users"]:
    """Returns the share of each list's pairs that the scores order as the truth does (Zhan et al., KDD 2022).

    Pairs with equal truth are dropped and equal scores count one half, so XAUC is AUC for a truth of 0 and 1. NaN if
    all truths of a list are equal.
    """
    sizes = np.diff(offsets)
    user, start = np.repeat(np.arange(len(sizes)), sizes), np.repeat(offsets[:-1], sizes)
    partners = sizes[user]
    won, pairs = np.zeros(len(sizes)), np.zeros(len(sizes))
    ends = np.cumsum(partners)
    cuts = np.searchsorted(ends, np.arange(CHUNK_PAIRS, ends[-1] if len(ends) else 0, CHUNK_PAIRS))
    for first, end in zip([0, *cuts], [*cuts, len(user)], strict=True):
        count = partners[first:end]
        one = np.repeat(np.arange(first, end), count)
        other = np.arange(len(one)) - np.repeat(np.cumsum(count) - count, count) + start[one]
        above = truth[one] > truth[other]
        one, other = one[above], other[above]
        right = (scores[one] > scores[other]) + 0.5 * (scores[one] == scores[other])
        won += np.bincount(user[one], right, minlength=len(sizes))
        pairs += np.bincount(user[one], minlength=len(sizes))
    return won / np.where(pairs > 0, pairs, np.nan)


def pooled_xauc(scores: Float32[np.ndarray, "length"], truth: Float64[np.ndarray, "length"]) -> float:
    """Returns XAUC of watch times over the pairs of all users, from Kendall's tau; NaN if all watch times are equal.

    XAUC = (1 + Somers' D) / 2, in n log n steps.

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
    offsets: Int64[np.ndarray, "_"],
) -> dict[str, Float64[np.ndarray, "users"]]:
    """Computes the gain of the first k items of each list by falling score.

    `wtg@k` and `long_view@k` are means, of the whole list if it is shorter; `dcg_wtg@k` sums gain / log2(rank + 1).
    `dcg_wtg_ln@k` is the same with the natural logarithm, as in the code of DVR: 1.44 times as much.
    """
    user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((-ties, -scores, user))
    rank = np.arange(len(order)) - offsets[user] + 1
    values = {}
    for k in KS:
        top = rank <= k
        at, owner, ranks = order[top], user[top], rank[top]

        def sum_by_user(values: np.ndarray, owner: np.ndarray = owner) -> np.ndarray:
            return np.bincount(owner, values, minlength=len(offsets) - 1)

        count = sum_by_user(np.ones(len(at)))
        count = np.where(count > 0, count, np.nan)
        discounted = sum_by_user(gain[at] / np.log2(ranks + 1)) + 0 * count
        values[f"wtg@{k}"] = sum_by_user(gain[at]) / count
        values[f"dcg_wtg@{k}"] = discounted
        values[f"dcg_wtg_ln@{k}"] = discounted / np.log(2)
        values[f"long_view@{k}"] = sum_by_user(is_long[at].astype(float)) / count
    return values


def errors(predicted: Float32[np.ndarray, "examples"], truth: Float32[np.ndarray, "examples"]) -> dict[str, float]:
    """Returns the mean absolute and the root mean square error over all examples; NaN without any.

    >>> errors(np.array([1, 2], np.float32), np.array([1, 4], np.float32))
    {'mae': 1.0, 'rmse': 1.4142135623730951}
    """
    error = predicted.astype(np.float64) - truth
    if len(error) == 0:
        return {"mae": float("nan"), "rmse": float("nan")}
    return {"mae": float(np.abs(error).mean()), "rmse": float(np.sqrt((error**2).mean()))}


def evaluate_watch_time(
    window: EvaluationWindow, score_block: ScoreBlock, watched: Watched
) -> tuple[PerUser, tuple[PerUser, ...]]:
    """Computes every metric of this module on all impressions, and on each tenth of them by length, shortest first.

    Scores are those at the user's request, the first impression of the window; a decile contains the impressions of its
    lengths alone.
    """
    scores = scores_of_lists(window, score_block, watched.item_rows)
    decile = length_decile(watched.length_s)
    parts = (_metrics_of(window, scores[at], watched.where(at)) for at in (decile == part for part in range(DECILES)))
    return _metrics_of(window, scores, watched), tuple(parts)


def length_decile(length_s: Float32[np.ndarray, "length"]) -> Int64[np.ndarray, "length"]:
    """Returns the decile of each length, 0 to 9; equal lengths stay together, so sizes of deciles may differ."""
    if len(length_s) == 0:
        return np.zeros(0, np.int64)
    edges = np.quantile(length_s, np.arange(1, DECILES) / DECILES)
    return np.searchsorted(edges, length_s, side="left").astype(np.int64)


def _metrics_of(window: EvaluationWindow, scores: Float32[np.ndarray, "length"], watched: Watched) -> PerUser:
    lists, watch = watched.item_rows, watched.watch_s.astype(np.float64)
    known = np.isfinite(watched.gain)
    num_known = np.concatenate([[0], np.cumsum(known)])
    values = {"xauc": xauc(scores, watch, offsets=lists.offsets)} | list_metrics(
        scores[known],
        watched.gain[known],
        is_long_view(watched.watch_s, watched.length_s)[known],
        ties=tie_order(window.num_items)[0][lists.values[known]],
        offsets=num_known[lists.offsets],
    )
    pooled = {"xauc_pooled": pooled_xauc(scores, watch)}
    if watched.target is not None:
        pooled |= errors(scores, watched.target)
    evaluated = int((lists.sizes > 0).sum())
    return PerUser(
        {f"watch_time/{name}": value for name, value in values.items()},
        evaluated=evaluated,
        skipped={"no impression of known watch time and length": len(lists.sizes) - evaluated},
        pooled={f"watch_time/{name}": value for name, value in pooled.items()},
    )
