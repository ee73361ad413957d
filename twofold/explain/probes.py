"""Collapse and sameness as numbers: what "the same items for everyone" and "no variety" mean, with alarms.

The thresholds are guesses, not measured: they are where a person who looks at the lists would complain. A picture of
the vectors decides nothing; these do.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float32, Int64

HUB_SHARE: Final = 0.01  # the items that occur most, as a share of the catalogue


@dataclass(frozen=True)
class Probe:
    """One number, what it means, and when it is alarming: above `alarm_above` or below `alarm_below`."""

    name: str
    value: float
    meaning: str
    alarm_above: float | None = None
    alarm_below: float | None = None

    @property
    def is_alarming(self) -> bool:
        """Whether the value lies beyond its threshold."""
        too_high = self.alarm_above is not None and self.value > self.alarm_above
        return too_high or (self.alarm_below is not None and self.value < self.alarm_below)


def probe_vectors(vectors: Float32[np.ndarray, "items dim"]) -> tuple[Probe, ...]:
    """Do the item vectors, more than one, use the space they have? Lengths do not count; zero vectors are left out."""
    dim = vectors.shape[1]
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors[lengths[:, 0] > 0] / lengths[lengths > 0][:, None]
    return (
        Probe(
            "effective_rank",
            effective_rank(vectors),
            f"directions in use, of {dim}",
            alarm_below=min(dim, len(vectors)) / 10,
        ),
        Probe("mean_cosine", mean_cosine(vectors), "of two items drawn at random; 1 is one point", alarm_above=0.5),
    )


def probe_lists(item_rows: Int64[np.ndarray, "places"], *, num_items: int, num_lists: int) -> tuple[Probe, ...]:
    """Does everyone get the same? `item_rows` are the items of all lists, one after another."""
    counts = np.bincount(item_rows, minlength=num_items)
    hubs = max(round(num_items * HUB_SHARE), 1)
    places = max(int(counts.sum()), 1)
    top_share = float(np.sort(counts)[-hubs:].sum() / places)
    most = float(counts.max() / max(num_lists, 1))
    return (
        Probe("coverage", float((counts > 0).mean()), "of the catalogue is in some list", alarm_below=0.05),
        Probe("hub_share", top_share, f"of all places go to the {hubs:,} commonest items", alarm_above=0.5),
        Probe("commonest_item", most, "of all lists hold the commonest item", alarm_above=0.5),
        Probe("gini", gini(counts), "0: every item equally often, 1: one item only", alarm_above=0.98),
    )


def effective_rank(vectors: Float32[np.ndarray, "items dim"]) -> float:
    """exp of the entropy of the normalised singular values (Roy & Vetterli, EUSIPCO 2007, definition 1).

    >>> round(effective_rank(np.eye(4, dtype=np.float32)), 3)
    4.0
    """
    singular = np.linalg.svd(vectors.astype(np.float64).T @ vectors, compute_uv=False) ** 0.5
    share = singular[singular > 0] / singular.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def mean_cosine(vectors: Float32[np.ndarray, "items dim"]) -> float:
    """Mean cosine over all pairs of different items: (‖Σv‖² − n) / (n (n − 1)) for unit vectors.

    >>> mean_cosine(np.array([[1, 0], [0, 1], [0, 1]], np.float32))
    0.3333333333333333
    """
    items = len(vectors)
    total = vectors.astype(np.float64).sum(axis=0)
    return float((total @ total - items) / (items * max(items - 1, 1)))


def gini(counts: Int64[np.ndarray, "items"]) -> float:
    """Gini coefficient of how often each item occurs, zeros included.

    >>> gini(np.array([5, 5, 5])), gini(np.array([0, 0, 0, 8]))
    (0.0, 0.75)
    """
    ordered, items = np.sort(counts), len(counts)
    weights = 2 * np.arange(1, items + 1) - items - 1
    return float((weights * ordered).sum() / (items * max(ordered.sum(), 1)))
