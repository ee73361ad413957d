"""What was watched, and what a watch time is worth among items as long."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Float64

from twofold.ragged import Ragged
from twofold.tables import LONG_VIEW_MS

_LONG_S: Final = LONG_VIEW_MS / 1000
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
    return np.asarray(watch_s >= np.minimum(length_s, _LONG_S))
