"""Calibration of the ranker's heads: of impressions with a predicted probability of .7, are seven in ten positive?"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Float64

from twofold.evaluate.metrics import pooled_auc
from twofold.evaluate.watch_time import errors, pooled_xauc
from twofold.render.numbers import format_decimal, plural

BINS: Final = 15


@dataclass(frozen=True)
class Bin:
    """Impressions with about the same prediction, and the means of their predictions and outcomes."""

    impressions: int
    predicted: float
    observed: float


@dataclass(frozen=True)
class Seconds:
    """Errors of a predicted quantile as watch time, and those of the median watch time of items of the same length."""

    impressions: int
    mae: float
    xauc: float | None
    mae_of_length: float
    xauc_of_length: float | None


@dataclass(frozen=True)
class Calibration:
    """Calibration of one head on the impressions of the window with a known outcome, all users together."""

    name: str
    impressions: int
    predicted: float
    """Mean prediction."""
    observed: float
    """Mean outcome."""
    ece: float
    """Expected calibration error: mean over impressions of |prediction − outcome|, both averaged in bins."""
    noise: float
    """Expected calibration error of a perfectly calibrated head: above 0, because bins are small."""
    auc: float | None
    """AUC; `None` means that the outcome is not binary, or is always the same."""
    bins: tuple[Bin, ...]
    """Bins of about equal size, lowest prediction first."""
    seconds: Seconds | None = None
    """Errors as watch time; `None` means that the outcome is no quantile of watch time."""

    @property
    def ratio(self) -> float | None:
        """Mean prediction over mean outcome; `None` means that the mean outcome is 0."""
        return self.predicted / self.observed if self.observed else None


def evaluate_head(
    name: str, predicted: Float32[np.ndarray, "length"], outcome: Float32[np.ndarray, "length"]
) -> Calibration | None:
    """Compares predictions with outcomes from 0 to 1, where these are known; returns `None` if none is.

    ECE as Guo et al., *On calibration of modern neural networks*, ICML 2017, equation 3, in bins of equal frequency
    (Nixon et al., *Measuring calibration in deep learning*, 2019): with bins of equal width, rare outcomes fill one.
    """
    known = np.flatnonzero(~np.isnan(outcome))
    if len(known) == 0:
        return None
    prediction, truth = predicted[known].astype(np.float64), outcome[known].astype(np.float64)
    parts = np.array_split(np.argsort(prediction, kind="stable"), min(BINS, len(known)))
    bins = tuple(Bin(len(part), float(prediction[part].mean()), float(truth[part].mean())) for part in parts)
    is_binary = bool(np.isin(truth, (0, 1)).all())
    variance = prediction * (1 - prediction) if is_binary else (truth - prediction) ** 2
    # The mean absolute value of a normal variable is sqrt(2 / pi) standard deviations.
    expected = sum(float(np.sqrt(2 / np.pi * variance[part].sum())) for part in parts)
    return Calibration(
        name=name,
        impressions=len(known),
        predicted=float(prediction.mean()),
        observed=float(truth.mean()),
        ece=sum(each.impressions * abs(each.predicted - each.observed) for each in bins) / len(known),
        noise=expected / len(known),
        auc=pooled_auc(predicted[known], truth == 1) if is_binary and 0 < truth.mean() < 1 else None,
        bins=bins,
    )


def evaluate_seconds(
    table: pa.Table,
    predicted: Float32[np.ndarray, "length"],
    watch_s: Float32[np.ndarray, "length"],
    length_s: Float32[np.ndarray, "length"],
) -> Seconds | None:
    """Compares a quantile as seconds (see `seconds_at`) with the watch time, where that and the length are known."""
    known = np.isfinite(watch_s) & np.isfinite(length_s) & (length_s > 0)
    if not known.any():
        return None
    truth, length = watch_s[known], length_s[known]
    own, median = (
        seconds_at(table, quantile, length).astype(np.float32)
        for quantile in (predicted[known], np.full_like(length, 0.5))
    )
    xaucs = (pooled_xauc(each, truth.astype(np.float64)) for each in (own, median))
    xauc, xauc_of_length = (None if np.isnan(each) else each for each in xaucs)
    return Seconds(len(truth), errors(own, truth)["mae"], xauc, errors(median, truth)["mae"], xauc_of_length)


def seconds_at(
    table: pa.Table, quantile: Float32[np.ndarray, "length"], length_s: Float32[np.ndarray, "length"]
) -> Float64[np.ndarray, "length"]:
    """Returns the watch time at this quantile of items of the same length (D2Q, Zhan et al., KDD 2022).

    `table` is `fitted/LABEL.quantile.parquet`, whose function this inverts. Watch times of the training window are
    interpolated linearly and never exceeded.
    """
    buckets, watch_ms, known = (np.asarray(table[name]) for name in ("bucket", "watch_ms", "quantile"))
    edges, first = np.unique(buckets, return_index=True)
    length_ms = np.floor(length_s.astype(np.float64) * 1000 + 0.5)
    bucket = np.maximum(np.searchsorted(edges, length_ms, side="right") - 1, 0)
    seconds = np.empty(len(quantile))
    for number, part in enumerate(np.split(np.arange(len(buckets)), first[1:])):
        own = bucket == number
        seconds[own] = np.interp(quantile[own], known[part], watch_ms[part]) / 1000
    return seconds


def head_sentence(head: Calibration) -> str:
    """Returns one sentence on the calibration of a head."""
    text = (
        f"{head.name}, on {plural(head.impressions, 'impression')}: mean prediction {format_decimal(head.predicted)}, "
        f"mean outcome {format_decimal(head.observed)} (ratio {format_decimal(head.ratio)}); calibration error "
        f"{format_decimal(head.ece)}, where a perfectly calibrated prediction has {format_decimal(head.noise)}"
    )
    if head.auc is not None:
        text += f"; AUC {format_decimal(head.auc)}"
    if head.seconds is not None:
        own, of_length = format_decimal(head.seconds.mae), format_decimal(head.seconds.mae_of_length)
        text += f"; mean error as watch time {own} s, against {of_length} s from the length of the item alone"
    return f"{text}."
