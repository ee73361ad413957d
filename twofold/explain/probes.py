"""Collapse and sameness as numbers: what "the same items for everyone" and "no variety" mean, with alarms.

Most thresholds are guesses, and say "not measured": they are where a person who looks at the lists would complain. A
picture of the vectors decides nothing; these do.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float32, Int64

from twofold.ragged import Ragged, chunks
from twofold.render.numbers import format_decimal, plural
from twofold.topk import exclude, top_k

_CELLS: Final = 2**21
HUB_SHARE: Final = 0.01  # the items that occur most, as a share of the catalogue


@dataclass(frozen=True)
class Probe:
    """One number, what it means, and when it is alarming: above `alarm_above` or below `alarm_below`.

    The value is None where it does not exist; `meaning` then says why. `source` is where the threshold comes from.
    """

    name: str
    value: float | None
    meaning: str
    alarm_above: float | None = None
    alarm_below: float | None = None
    source: str = "not measured"

    @property
    def is_alarming(self) -> bool:
        """Whether the value lies beyond its threshold."""
        if self.value is None:
            return False
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
        Probe("hub_share", top_share, f"of all places go to the commonest {plural(hubs, 'item')}", alarm_above=0.5),
        Probe("commonest_item", most, "of all lists hold the commonest item", alarm_above=0.5),
        Probe("gini", gini(counts), "0: every item equally often, 1: one item only", alarm_above=0.98),
    )


def probe_norms(vectors: Float32[np.ndarray, "items dim"], events: Int64[np.ndarray, "items"]) -> Probe:
    """Which way did the tail go: are vectors of popular items long? `events` are those of training, an item each."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if np.ptp(lengths) <= 1e-3 * lengths.max(initial=0) or np.ptp(events) == 0:
        return Probe("norm_popularity", None, "all vectors are equally long, or all items equally popular")
    return Probe(
        "norm_popularity",
        float(scipy.stats.spearmanr(lengths, events).statistic),
        "rank correlation of length and events: a bonus to the popular under dot, a penalty under distance",
    )


def probe_cold_items(found: Bool[np.ndarray, "pairs"], found_masked: Bool[np.ndarray, "pairs"], *, k: int) -> Probe:
    """How well would new items be found? `found_masked`: each pair found among k when no item's id is known."""
    with_ids = float(found.mean()) if len(found) else 0.0
    if with_ids == 0:
        return Probe("ids_masked", None, f"nothing is found among {k} even with ids")
    masked = float(found_masked.mean())
    return Probe(
        "ids_masked",
        masked / with_ids,
        f"of recall@{k} is left when item ids are masked ({format_decimal(masked)} of {format_decimal(with_ids)}): "
        "what a new item can reach",
        alarm_below=0.2,
    )


def found_among(
    queries: Float32[np.ndarray, "users dim"],
    items: Float32[np.ndarray, "items dim"],
    *,
    relevant: Ragged,
    seen: Ragged,
    k: int,
) -> Bool[np.ndarray, "pairs"]:
    """Whether each relevant item stands among a user's k best by inner product, seen items left out."""
    found = np.zeros(len(relevant.values), bool)
    for users in chunks(len(queries), max(1, _CELLS // len(items))):
        scores = queries[users] @ items.T
        exclude(scores, seen.part(users))
        answers, wanted = top_k(scores, k).item_rows, relevant.part(users)
        first = relevant.offsets[users.start]
        found[first : first + len(wanted.values)] = (answers[wanted.lines] == wanted.values[:, None]).any(axis=1)
    return found


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
