"""What heads say against what came of it: of impressions that are called .7, do seven in ten come true?"""

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
    """Impressions of which a head says about the same: the means of what it says and of what came of them."""

    impressions: int
    predicted: float
    observed: float


@dataclass(frozen=True)
class Seconds:
    """What a quantile is worth as watch time; beside it, what the length alone tells: the median of items as long."""

    impressions: int
    mae: float
    xauc: float | None
    mae_of_length: float
    xauc_of_length: float | None


@dataclass(frozen=True)
class Calibration:
    """One head on the impressions of the window whose outcome is known, all users together."""

    name: str
    impressions: int
    predicted: float
    """The mean of what it says."""
    observed: float
    """The mean of what came of them."""
    ece: float
    """Expected calibration error: the mean, over impressions, of how far the two lie apart in their bin."""
    noise: float
    """The error that is expected of a head that is never wrong, because bins are small."""
    auc: float | None
    """None of an outcome that is no condition, or is always the same."""
    bins: tuple[Bin, ...]
    """Of about equally many impressions, the least likely first."""
    seconds: Seconds | None = None
    """None of an outcome that is no quantile of watch time."""

    @property
    def ratio(self) -> float | None:
        """Predicted to observed; None where nothing was observed."""
        return self.predicted / self.observed if self.observed else None


def evaluate_head(
    name: str, said: Float32[np.ndarray, "impressions"], outcome: Float32[np.ndarray, "impressions"]
) -> Calibration | None:
    """What is said against outcomes from 0 to 1, where they are known; None if none is.

    ECE as Guo et al., *On calibration of modern neural networks*, ICML 2017, equation 3, in bins of equal frequency
    (Nixon et al., *Measuring calibration in deep learning*, 2019): of bins of equal width, rare outcomes fill one.
    """
    known = np.flatnonzero(~np.isnan(outcome))
    if len(known) == 0:
        return None
    chance, truth = said[known].astype(np.float64), outcome[known].astype(np.float64)
    parts = np.array_split(np.argsort(chance, kind="stable"), min(BINS, len(known)))
    bins = tuple(Bin(len(part), float(chance[part].mean()), float(truth[part].mean())) for part in parts)
    is_condition = bool(np.isin(truth, (0, 1)).all())
    variance = chance * (1 - chance) if is_condition else (truth - chance) ** 2
    # A sum of n errors of this variance is, on average, so far from 0: sqrt(2 / pi) deviations of a normal.
    apart = sum(float(np.sqrt(2 / np.pi * variance[part].sum())) for part in parts)
    return Calibration(
        name=name,
        impressions=len(known),
        predicted=float(chance.mean()),
        observed=float(truth.mean()),
        ece=sum(each.impressions * abs(each.predicted - each.observed) for each in bins) / len(known),
        noise=apart / len(known),
        auc=pooled_auc(said[known], truth == 1) if is_condition and 0 < truth.mean() < 1 else None,
        bins=bins,
    )


def evaluate_seconds(
    table: pa.Table,
    said: Float32[np.ndarray, "impressions"],
    watch_s: Float32[np.ndarray, "impressions"],
    length_s: Float32[np.ndarray, "impressions"],
) -> Seconds | None:
    """A quantile as seconds (see `seconds_at`) against what was watched, where that and the length are known."""
    known = np.isfinite(watch_s) & np.isfinite(length_s) & (length_s > 0)
    if not known.any():
        return None
    truth, length = watch_s[known], length_s[known]
    own, middle = (
        seconds_at(table, quantile, length).astype(np.float32) for quantile in (said[known], np.full_like(length, 0.5))
    )
    xaucs = (pooled_xauc(each, truth.astype(np.float64)) for each in (own, middle))
    xauc, xauc_of_length = (None if np.isnan(each) else each for each in xaucs)
    return Seconds(len(truth), errors(own, truth)["mae"], xauc, errors(middle, truth)["mae"], xauc_of_length)


def seconds_at(
    table: pa.Table, quantile: Float32[np.ndarray, "impressions"], length_s: Float32[np.ndarray, "impressions"]
) -> Float64[np.ndarray, "impressions"]:
    """The watch time that is this quantile of those of items as long (D2Q, Zhan et al., KDD 2022): the inverse of what
    preparation fitted as `fitted/LABEL.quantile.parquet`, which `table` holds.

    Between two watch times of the training window it is between them; never below the least nor above the most.
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
    """One sentence on how far a head can be believed."""
    text = (
        f"{head.name}, on {plural(head.impressions, 'impression')}: {format_decimal(head.predicted)} predicted, "
        f"{format_decimal(head.observed)} observed ({format_decimal(head.ratio)} : 1); calibration error "
        f"{format_decimal(head.ece)}, where {format_decimal(head.noise)} is expected of chances that are right"
    )
    if head.auc is not None:
        text += f"; auc {format_decimal(head.auc)}"
    if head.seconds is not None:
        own, of_length = format_decimal(head.seconds.mae), format_decimal(head.seconds.mae_of_length)
        text += f"; as watch time off by {own} s, where who knows the length alone is off by {of_length} s"
    return f"{text}."
