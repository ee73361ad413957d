"""Probes of item vectors and recommended lists: collapse, hubs and sameness as numbers, with warnings.

Most thresholds are guesses and say "not measured": they lie where a person who looks at the lists would complain. A
picture of the vectors decides nothing; these numbers do.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float32, Int64

from twofold.ragged import Ragged, chunks
from twofold.render.numbers import format_decimal
from twofold.topk import Products, packed_keys, sortable_keys, tie_order

_CHUNK_SCORES: Final = 2**21  # scores in memory at once
HUB_SHARE: Final = 0.01  # the most frequent items, as a share of the catalogue


@dataclass(frozen=True)
class Probe:
    """One number, its meaning, and when it raises a warning: above `alarm_above` or below `alarm_below`.

    A value of `None` means that the number does not exist; `meaning` then says why. `source` is where the threshold
    comes from.
    """

    name: str
    value: float | None
    meaning: str
    alarm_above: float | None = None
    alarm_below: float | None = None
    source: str = "not measured"

    @property
    def is_alarming(self) -> bool:
        """True if the value is beyond its threshold."""
        if self.value is None:
            return False
        too_high = self.alarm_above is not None and self.value > self.alarm_above
        return too_high or (self.alarm_below is not None and self.value < self.alarm_below)


def probe_vectors(vectors: Float32[np.ndarray, "items dim"]) -> tuple[Probe, ...]:
    """Measures whether the item vectors (at least two) use their space; by direction alone, without zero vectors."""
    dim = vectors.shape[1]
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors[lengths[:, 0] > 0] / lengths[lengths > 0][:, None]
    return (
        Probe(
            "effective_rank",
            effective_rank(vectors),
            f"number of directions that the item vectors use, of {dim}",
            alarm_below=min(dim, len(vectors)) / 10,
        ),
        Probe(
            "mean_cosine",
            mean_cosine(vectors),
            "mean cosine of two random items; 1 means that all vectors are one point",
            alarm_above=0.5,
        ),
    )


def probe_lists(item_rows: Int64[np.ndarray, "_"], *, num_items: int, num_lists: int) -> tuple[Probe, ...]:
    """Measures whether all users are recommended the same items; `item_rows` are the items of all lists in a row."""
    counts = np.bincount(item_rows, minlength=num_items)
    hubs = max(round(num_items * HUB_SHARE), 1)
    recommendations = max(int(counts.sum()), 1)
    top_share = float(np.sort(counts)[-hubs:].sum() / recommendations)
    most = float(counts.max() / max(num_lists, 1))
    most_frequent = "most frequent item" if hubs == 1 else f"{hubs:,} most frequent items"
    return (
        Probe("coverage", float((counts > 0).mean()), "share of the catalogue that is in some list", alarm_below=0.05),
        Probe("hub_share", top_share, f"share of all recommendations that go to the {most_frequent}", alarm_above=0.5),
        Probe("commonest_item", most, "share of lists that contain the most frequent item", alarm_above=0.5),
        Probe("gini", gini(counts), "Gini coefficient: 0 all items equally often, 1 a single item", alarm_above=0.98),
    )


def probe_norms(vectors: Float32[np.ndarray, "items dim"], events: Int64[np.ndarray, "items"]) -> Probe:
    """Measures whether popular items have long vectors; `events` counts the training events of each item."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if np.ptp(lengths) <= 1e-3 * lengths.max(initial=0) or np.ptp(events) == 0:
        return Probe("norm_popularity", None, "all vectors are equally long, or all items equally popular")
    return Probe(
        "norm_popularity",
        float(scipy.stats.spearmanr(lengths, events).statistic),
        "rank correlation of vector length and popularity: long vectors raise a dot score and lower a distance score",
    )


def new_item_probe(
    known: Products,
    new_items: Float32[np.ndarray, "items dim"],
    *,
    relevant: Ragged,
    seen: Ragged,
    k: int,
) -> Probe:
    """Measures how often a positive item would be found if it alone were new, all others being as they are.

    `known` are the scores of the window's users, `new_items` the vector that each item would have if it were new.
    """
    if len(relevant.values) == 0:
        return Probe("new_items", None, "the window has no positive")
    intact = float(found_among(known, known.items, relevant=relevant, seen=seen, k=k).mean())
    as_new = float(found_among(known, new_items, relevant=relevant, seen=seen, k=k).mean())
    chance = k / len(known.items)
    return Probe(
        "new_items",
        as_new,
        f"share of positives among the best {k} of their user if each alone were new: without its id, values that no "
        f"other item has, and its own counters; {format_decimal(intact)} with them, {format_decimal(chance)} by chance",
        alarm_below=2 * chance if intact > 4 * chance else None,
    )


def found_among(
    known: Products,
    own: Float32[np.ndarray, "items dim"],
    *,
    relevant: Ragged,
    seen: Ragged,
    k: int,
) -> Bool[np.ndarray, "pairs"]:
    """Returns whether each relevant item, with its vector in `own`, is among its user's k best, all other items having
    the vectors of `known`; without seen items.
    """
    found = np.zeros(len(relevant.values), bool)
    for users in chunks(len(known.queries), max(1, _CHUNK_SCORES // len(known.items))):
        keys, hidden, positives = sortable_keys(known(users)), seen.part(users), relevant.part(users)
        keys[hidden.lines, hidden.values] = np.iinfo(np.int64).min
        first, ranks = relevant.offsets[users.start], tie_order(len(known.items))[0]
        scores = np.vecdot(known.queries[users][positives.lines], own[positives.values])
        own_keys = packed_keys(scores, ranks[positives.values])
        for part in chunks(len(scores), len(keys)):
            row, item_rows = positives.lines[part], positives.values[part]
            above = (keys[row] > own_keys[part, None]).sum(axis=1) - (keys[row, item_rows] > own_keys[part])
            found[first + part.start : first + part.stop] = above < k
    return found


def effective_rank(vectors: Float32[np.ndarray, "items dim"]) -> float:
    """Returns exp of the entropy of the normalized singular values (Roy & Vetterli, EUSIPCO 2007, definition 1).

    >>> round(effective_rank(np.eye(4, dtype=np.float32)), 3)
    4.0
    """
    singular = np.linalg.svd(vectors.astype(np.float64).T @ vectors, compute_uv=False) ** 0.5
    share = singular[singular > 0] / singular.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def mean_cosine(vectors: Float32[np.ndarray, "items dim"]) -> float:
    """Returns the mean cosine over all pairs of different items: (‖Σv‖² − n) / (n (n − 1)) for unit vectors.

    >>> mean_cosine(np.array([[1, 0], [0, 1], [0, 1]], np.float32))
    0.3333333333333333
    """
    items = len(vectors)
    total = vectors.astype(np.float64).sum(axis=0)
    return float((total @ total - items) / (items * max(items - 1, 1)))


def gini(counts: Int64[np.ndarray, "items"]) -> float:
    """Returns the Gini coefficient of how often each item occurs, zeros included.

    >>> gini(np.array([5, 5, 5])), gini(np.array([0, 0, 0, 8]))
    (0.0, 0.75)
    """
    ordered, items = np.sort(counts), len(counts)
    weights = 2 * np.arange(1, items + 1) - items - 1
    return float((weights * ordered).sum() / (items * max(ordered.sum(), 1)))
