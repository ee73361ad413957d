"""Probes of item vectors: collapse, crowding, hubs, and items that cannot be found while they are new.

A number says little alone, so each probe stands beside the same number of something known: of the popularity row, of
what users liked in the test window, or of vectors in random directions. A warning follows from these, not from a
guessed constant, and says what to do next. A picture of the vectors decides nothing.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.special
import scipy.stats
from jaxtyping import Bool, Float32, Int64

from twofold.ragged import Ragged, chunks
from twofold.render.numbers import format_decimal
from twofold.topk import Products, packed_keys, sortable_keys, tie_order

_CHUNK_SCORES: Final = 2**21  # scores in memory at once
_PAIRS: Final = 100_000  # drawn for the share of near pairs, which is then known within .002
_NEAR: Final = 0.9  # a cosine at which two items have the same neighbors
_CROWDED: Final = 0.2  # near pairs: with fewer than 5 places for all items, places and not tastes decide
MARGIN: Final = 0.05
"""Least difference that counts: two shares that are nearer to each other are the same."""


@dataclass(frozen=True)
class Probe:
    """A measured number beside the same number of known references. It raises a warning above `alarm_above` or below
    `alarm_below`.

    `popularity` is the number of the lists of the most popular items, `positives` that of what users liked in the test
    window; `None` means that there is none. A value of `None` means that the number does not exist; `meaning` then says
    why. `source` is where the limit comes from, `next_step` what to do about a warning.
    """

    name: str
    value: float | None
    meaning: str
    popularity: float | None = None
    positives: float | None = None
    alarm_above: float | None = None
    alarm_below: float | None = None
    source: str = ""
    next_step: str = ""

    @property
    def is_alarming(self) -> bool:
        """True if the value is beyond its limit."""
        if self.value is None:
            return False
        too_high = self.alarm_above is not None and self.value > self.alarm_above
        return too_high or (self.alarm_below is not None and self.value < self.alarm_below)


def halfway(bad: float | None, good: float | None) -> float | None:
    """Returns the limit between a bad and a good reference: a warning means that the value is nearer to the bad one.

    `None` if one of them is unknown, or if they differ by less than `MARGIN`, so that nothing can be told.

    >>> halfway(1.0, 0.6), halfway(0.62, 0.6), halfway(None, 0.6)
    (0.8, None, None)
    """
    return None if bad is None or good is None or abs(bad - good) < MARGIN else (bad + good) / 2


def halfway_above(bad: float | None, good: float | None) -> float | None:
    """Returns the same limit where the bad reference is the larger one, else `None`.

    >>> halfway_above(1.0, 0.6), halfway_above(0.6, 1.0)
    (0.8, None)
    """
    return halfway(bad, good) if bad is not None and good is not None and bad > good else None


def probe_vectors(vectors: Float32[np.ndarray, "items dim"]) -> tuple[Probe, ...]:
    """Measures whether the item vectors use their space; by direction alone, without zero vectors."""
    dim = vectors.shape[1]
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors[lengths[:, 0] > 0] / lengths[lengths > 0][:, None]
    rng, items = np.random.default_rng(0), len(vectors)
    if items == 0:
        return tuple(Probe(name, None, "no item has a vector") for name in ("effective_rank", "near_pairs"))
    one = rng.integers(0, items, _PAIRS)
    other = (one + rng.integers(1, max(items, 2), _PAIRS)) % items
    near = float((np.vecdot(vectors[one], vectors[other]) > _NEAR).mean()) if items > 1 else 0.0
    by_chance = near_by_chance(dim)
    return (
        Probe(
            "effective_rank",
            effective_rank(vectors),
            f"number of directions that the item vectors use, of {dim}",
            alarm_below=min(dim, items) / 8,
            source="an eighth of the directions that random vectors use",
            next_step="Add negatives, train.loss: {kind: in_batch_softmax, uniform_negatives: 512}; or lower "
            "retriever.dim, if recall stays.",
        ),
        Probe(
            "near_pairs",
            near,
            f"share of pairs of items with a cosine above {_NEAR}; {format_decimal(by_chance)} for random directions; "
            f"the mean cosine is {format_decimal(mean_cosine(vectors))}",
            alarm_above=by_chance + _CROWDED,
            source=f"{_CROWDED} above random directions; half of the items in one place give 0.25",
            next_step="Many items share one place. Lower retriever.score.temperature, or mix easy negatives in: "
            "train.hard_negatives.easy_per_hard: 100.",
        ),
    )


def near_by_chance(dim: int) -> float:
    """Returns the share of pairs of random directions with a cosine above 0.9: half a beta distribution.

    >>> round(near_by_chance(2), 3), round(near_by_chance(16), 6)
    (0.144, 0.0)
    """
    if dim < 2:
        return 0.5
    return float(scipy.special.betainc((dim - 1) / 2, 0.5, 1 - _NEAR**2) / 2)


def probe_norms(vectors: Float32[np.ndarray, "items dim"], events: Int64[np.ndarray, "items"]) -> tuple[Probe, ...]:
    """Measures whether popular items have long vectors; `events` counts the training events of each item. Nothing if
    all vectors are equally long, as with cosine.
    """
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if np.ptp(lengths) <= 1e-3 * lengths.max(initial=0) or np.ptp(events) == 0:
        return ()
    correlation = float(scipy.stats.spearmanr(lengths, events).statistic)
    meaning = "rank correlation of vector length and popularity: long vectors raise a dot score, lower a distance score"
    return (Probe("norm_popularity", correlation, meaning),)


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
    own = Products(known.queries, new_items)  # nothing is added to a new item for histories
    intact = float(found_among(known, known, relevant=relevant, seen=seen, k=k).mean())
    as_new = float(found_among(known, own, relevant=relevant, seen=seen, k=k).mean())
    chance = k / len(known.items)
    return Probe(
        "new_items",
        as_new,
        f"share of positives among the best {k} of their user if each alone were new, without its id, values that no "
        f"other item has, and its own counters; at most, since training did see its other features; "
        f"{format_decimal(intact)} with them, {format_decimal(chance)} by chance",
        alarm_below=halfway(chance, intact),
        source="halfway from chance to what is found with them",
        next_step="Set unknown_rate: 0.3 on {kind: id}, add features that a new item has (tags, {kind: vector}), and "
        "measure it: prepare.new_items: 0.05, as in recipes/studies/new-items.yaml.",
    )


def found_among(
    known: Products,
    own: Products,
    *,
    relevant: Ragged,
    seen: Ragged,
    k: int,
) -> Bool[np.ndarray, "pairs"]:
    """Returns whether each relevant item, with its score in `own`, is among its user's k best, all other items having
    the scores of `known`; without seen items.
    """
    found = np.zeros(len(relevant.values), bool)
    for users in chunks(len(known.queries), max(1, _CHUNK_SCORES // len(known.items))):
        keys, hidden, positives = sortable_keys(known(users)), seen.part(users), relevant.part(users)
        keys[hidden.lines, hidden.values] = np.iinfo(np.int64).min
        first, ranks = relevant.offsets[users.start], tie_order(len(known.items))[0]
        scores = own.pairs(users.start + positives.lines, positives.values)
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
