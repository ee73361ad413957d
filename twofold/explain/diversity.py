"""Probes beyond accuracy: how recommended lists spread over items, how alike they are, and their content.

A list holds the item rows recommended to one user, at most K; users without a list are ignored.
"""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from twofold.explain.folding import Grouping
from twofold.explain.probes import Probe
from twofold.ragged import Ragged
from twofold.render.numbers import format_decimal

TENTHS: Final = 10
_USER_PAIRS: Final = 10_000  # drawn for the overlap, which is then known within .005


def probe_served(
    lists: Ragged, events: Int64[np.ndarray, "items"], *, is_cold: Bool[np.ndarray, "items"], seed: int = 0
) -> tuple[Probe, ...]:
    """Measures whether all users are recommended popular items; `events` counts the training positives of each item."""
    shares, shares_of_log = served_shares(lists, events), served_shares(_all_events(events), events)
    recommendations = max(len(lists.values), 1)
    return (
        Probe(
            "served_top_tenth",
            float(shares[-1]),
            "share of recommendations from the most popular tenth of items, which had "
            f"{format_decimal(float(shares_of_log[-1]))} of the positives",
            alarm_above=(1 + float(shares_of_log[-1])) / 2,
        ),
        Probe(
            "served_cold",
            float(is_cold[lists.values].sum() / recommendations),
            "share of recommendations of items without a training event",
        ),
        Probe(
            "novelty",
            novelty(lists, events),
            "mean surprise of a recommended item in bits: -log2 of its share of positives",
        ),
        Probe(
            "overlap",
            overlap(lists, seed=seed),
            "share of a list that is also in the list of another random user",
            alarm_above=0.5,
        ),
    )


def served_shares(lists: Ragged, events: Int64[np.ndarray, "items"]) -> Float64[np.ndarray, "_"]:
    """Returns the share of recommendations from each tenth of the catalogue, least popular tenth first."""
    order = np.argsort(events, kind="stable")
    tenth = np.empty(len(events), np.int64)
    tenth[order] = np.arange(len(events)) * TENTHS // len(events)
    counts = np.bincount(tenth[lists.values], minlength=TENTHS)
    shares: Float64[np.ndarray, " _"] = counts / max(counts.sum(), 1)
    return shares


def novelty(lists: Ragged, events: Int64[np.ndarray, "items"]) -> float | None:
    """Returns the mean self-information -log2 p of recommended items (Zhou et al., PNAS 2010), with one event added to
    each item; `None` means there are no lists.
    """
    if len(lists.values) == 0:
        return None
    share = (events + 1) / (events.sum() + len(events))
    return float(-np.log2(share[lists.values]).mean())


def overlap(lists: Ragged, *, seed: int = 0) -> float | None:
    """Returns the share of a user's list that another random user is recommended too; `None` means under two lists."""
    users = np.flatnonzero(lists.sizes)
    if len(users) < 2:
        return None
    rng = np.random.default_rng(seed)
    one = rng.integers(0, len(users), _USER_PAIRS)
    other = (one + rng.integers(1, len(users), _USER_PAIRS)) % len(users)
    return float(_shared(lists.of(users[one]), lists.of(users[other])).mean())


def intra_list_similarity(lists: Ragged, vectors: Float32[np.ndarray, "items dim"]) -> float | None:
    """Returns the mean cosine of two items of one list (Ziegler et al., WWW 2005), over lists of two items and more.

    `vectors` must describe content, not taste: those of a model would rate its own faults as diversity. Items whose
    vector is zero or NaN are left out. `None` means there is no list of two items.
    """
    lengths = np.linalg.norm(vectors, axis=1)
    kept = (lengths[lists.values] > 0) & np.isfinite(lengths[lists.values])
    list_of, rows = lists.lines[kept], lists.values[kept]
    if len(rows) == 0:
        return None
    count = np.bincount(list_of, minlength=len(lists.sizes))
    unit = vectors[rows].astype(np.float64) / lengths[rows, None]
    starts = np.flatnonzero(np.concatenate([[True], list_of[1:] != list_of[:-1]]))
    sums = np.add.reduceat(unit, starts)
    sizes = count[list_of[starts]]
    pairs = sizes * (sizes - 1)
    similarity = ((sums**2).sum(axis=1) - sizes)[pairs > 0] / pairs[pairs > 0]
    return float(similarity.mean()) if len(similarity) else None


def probe_lists_of_groups(lists: Ragged, grouping: Grouping) -> Probe:
    """Measures whether few groups (creators, say) receive most recommendations."""
    group = grouping.group[lists.values]
    counts = np.bincount(group[group >= 0], minlength=grouping.group.max(initial=0) + 1)
    top = max(round(len(counts) / 100), 1)
    share = float(np.sort(counts)[-top:].sum() / max(counts.sum(), 1))
    return Probe(
        f"{grouping.name}/top_share",
        share,
        f"share of recommendations from the {f'{top:,} ' if top > 1 else ''}most frequent of {len(counts):,} values",
        alarm_above=0.5,
    )


def probe_content(lists: Ragged, name: str, vectors: Float32[np.ndarray, "items dim"]) -> Probe:
    """Measures how alike the items of one list are by content."""
    value = intra_list_similarity(lists, vectors)
    return Probe(f"{name}/list_similarity", value, "mean cosine of two items of a list, by content", alarm_above=0.9)


def _shared(one: Ragged, other: Ragged) -> Float64[np.ndarray, "_"]:
    """Returns the share of each list of `one` that the same list of `other` contains."""
    width = max(int(one.values.max(initial=0)), int(other.values.max(initial=0))) + 1
    is_shared = np.isin(one.lines * width + one.values, other.lines * width + other.values)
    shares: Float64[np.ndarray, " _"] = np.bincount(one.lines, is_shared, minlength=len(one.sizes)) / one.sizes
    return shares


def _all_events(events: Int64[np.ndarray, "items"]) -> Ragged:
    """Returns all events as one list."""
    return Ragged(np.repeat(np.arange(len(events)), events), np.array([0, events.sum()]))
