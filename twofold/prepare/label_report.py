"""Label report: how the share of positives and the mean target depend on length, on validation rows."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.dataset as ds
from jaxtyping import Float

from twofold.recipe.labels import ItemBuckets, WatchTimeGain
from twofold.recipe.prepare import Prepare
from twofold.tables import Json

# A rank correlation of a million rows has a standard error of .001.
MAX_ROWS: Final = 1_000_000


@dataclass(frozen=True)
class LengthDecile:
    """A decile of validation rows by length: from the shortest to the longest, in seconds."""

    first_s: float
    last_s: float
    rows: int
    positive_share: float
    mean_target: float


@dataclass(frozen=True)
class LabelReport:
    """A label's dependence on length: Spearman's correlation of label and target with length, and values by decile.

    Completion (PCC) favours short items and raw watch time long ones; watch-time gain should favour neither.
    """

    rows: int
    label_with_length: float | None
    target_with_length: float | None
    deciles: tuple[LengthDecile, ...]
    warnings: tuple[str, ...]


def describe_labels(prepare: Prepare, folder: Path) -> Json:
    """Returns the report on the validation window as JSON; `None` means that the log has no lengths."""
    columns = ["label", "target", "length_s"]
    table = ds.dataset(folder, partitioning=None).head(MAX_ROWS, columns=columns)
    label, target, length = (np.asarray(table[name].to_numpy(zero_copy_only=False), np.float64) for name in columns)
    known = ~np.isnan(length) & ~np.isnan(target)
    if not known.any():
        return None
    return asdict(label_report(label[known], target[known], length[known], warnings=_warnings(prepare)))


def label_report(
    label: Float[np.ndarray, "examples"],
    target: Float[np.ndarray, "examples"],
    length_s: Float[np.ndarray, "examples"],
    *,
    warnings: tuple[str, ...] = (),
) -> LabelReport:
    """Computes the report; deciles have about equal sizes, and rows with one length stay together."""
    edges = np.unique(np.quantile(length_s, np.arange(1, 10) / 10))
    decile = np.searchsorted(edges, length_s, side="left")
    parts = [np.flatnonzero(decile == number) for number in np.unique(decile)]
    return LabelReport(
        rows=len(label),
        label_with_length=_spearman(label, length_s),
        target_with_length=_spearman(target, length_s),
        deciles=tuple(
            LengthDecile(
                first_s=float(length_s[part].min()),
                last_s=float(length_s[part].max()),
                rows=len(part),
                positive_share=float(label[part].mean()),
                mean_target=float(target[part].mean()),
            )
            for part in parts
        ),
        warnings=warnings,
    )


def _spearman(values: Float[np.ndarray, "examples"], length_s: Float[np.ndarray, "examples"]) -> float | None:
    """Computes the rank correlation; `None` means that one side is constant."""
    from scipy.stats import spearmanr

    if values.min() == values.max() or length_s.min() == length_s.max():
        return None
    result: Any = spearmanr(values, length_s)
    return float(result.statistic)


def _warnings(prepare: Prepare) -> tuple[str, ...]:
    return tuple(
        f"{name} is near 0 on average for every item: it says what a view was worth, not what an item is"
        for name, label in prepare.labels.items()
        if isinstance(label, WatchTimeGain) and isinstance(label.buckets, ItemBuckets)
    )
