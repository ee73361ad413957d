"""Beyond accuracy: how the served lists spread over items, how alike they are, and what they are made of.

Lists are item rows, a list a user, of at most K items each; users without a list count for nothing.
"""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from twofold.explain.folding import Grouping
from twofold.explain.probes import Probe
from twofold.ragged import Ragged
from twofold.render.numbers import format_decimal

TENTHS: Final = 10
_COUPLES: Final = 10_000  # of users drawn for the overlap: known within .005


def probe_served(
    lists: Ragged, events: Int64[np.ndarray, "items"], *, is_cold: Bool[np.ndarray, "items"], seed: int = 0
) -> tuple[Probe, ...]:
    """Does everyone get the popular? `events` are the positives of training, an item each."""
    shares, usual = served_shares(lists, events), served_shares(_all_events(events), events)
    places = max(len(lists.values), 1)
    return (
        Probe(
            "served_top_tenth",
            float(shares[-1]),
            "of places go to the most popular tenth of items, which had "
            f"{format_decimal(float(usual[-1]))} of the positives",
            alarm_above=(1 + float(usual[-1])) / 2,
        ),
        Probe(
            "served_cold", float(is_cold[lists.values].sum() / places), "of places go to items without training event"
        ),
        Probe(
            "novelty",
            novelty(lists, events),
            "mean bits of surprise of an item served: -log2 of its share of positives",
        ),
        Probe(
            "overlap", overlap(lists, seed=seed), "of a list is in the list of another user as well", alarm_above=0.5
        ),
    )


def served_shares(lists: Ragged, events: Int64[np.ndarray, "items"]) -> Float64[np.ndarray, "tenths"]:
    """How the places of all lists spread over tenths of the catalogue, the least popular first."""
    order = np.argsort(events, kind="stable")
    tenth = np.empty(len(events), np.int64)
    tenth[order] = np.arange(len(events)) * TENTHS // len(events)
    counts = np.bincount(tenth[lists.values], minlength=TENTHS)
    shares: Float64[np.ndarray, " tenths"] = counts / max(counts.sum(), 1)
    return shares


def novelty(lists: Ragged, events: Int64[np.ndarray, "items"]) -> float | None:
    """Mean self-information -log2 p of what is served (Zhou et al., PNAS 2010), p with one event added to each item."""
    if len(lists.values) == 0:
        return None
    share = (events + 1) / (events.sum() + len(events))
    return float(-np.log2(share[lists.values]).mean())


def overlap(lists: Ragged, *, seed: int = 0) -> float | None:
    """The share of a user's list that another user, drawn at random, is served too; None below two lists."""
    users = np.flatnonzero(lists.sizes)
    if len(users) < 2:
        return None
    rng = np.random.default_rng(seed)
    one = rng.integers(0, len(users), _COUPLES)
    other = (one + rng.integers(1, len(users), _COUPLES)) % len(users)
    return float(_shared(lists.of(users[one]), lists.of(users[other])).mean())


def intra_list_similarity(lists: Ragged, vectors: Float32[np.ndarray, "items dim"]) -> float | None:
    """Mean cosine of two items of one list (Ziegler et al., WWW 2005), over lists of two items and more.

    `vectors` describe content, not taste: those of a model would praise its own folds. Items whose vector is zero or
    NaN are left out.
    """
    lengths = np.linalg.norm(vectors, axis=1)
    kept = (lengths[lists.values] > 0) & np.isfinite(lengths[lists.values])
    line, rows = lists.lines[kept], lists.values[kept]
    if len(rows) == 0:
        return None
    count = np.bincount(line, minlength=len(lists.sizes))
    unit = vectors[rows].astype(np.float64) / lengths[rows, None]
    starts = np.flatnonzero(np.concatenate([[True], line[1:] != line[:-1]]))
    sums = np.add.reduceat(unit, starts)
    several = count[line[starts]]
    pairs = several * (several - 1)
    alike = ((sums**2).sum(axis=1) - several)[pairs > 0] / pairs[pairs > 0]
    return float(alike.mean()) if len(alike) else None


def probe_lists_of_groups(lists: Ragged, creators: Grouping) -> Probe:
    """Do a few creators get everything?"""
    group = creators.group[lists.values]
    counts = np.bincount(group[group >= 0], minlength=creators.group.max(initial=0) + 1)
    top = max(round(len(counts) / 100), 1)
    share = float(np.sort(counts)[-top:].sum() / max(counts.sum(), 1))
    return Probe(
        f"{creators.name}/top_share",
        share,
        f"of places go to the {f'{top:,} ' if top > 1 else ''}commonest of {len(counts):,}",
        alarm_above=0.5,
    )


def probe_content(lists: Ragged, name: str, vectors: Float32[np.ndarray, "items dim"]) -> Probe:
    """How alike are the items of one list, by what they show?"""
    value = intra_list_similarity(lists, vectors)
    return Probe(f"{name}/list_similarity", value, "mean cosine of two items of a list, by content", alarm_above=0.9)


def _shared(one: Ragged, other: Ragged) -> Float64[np.ndarray, "lists"]:
    """The share of each list of `one` that the same line of `other` holds."""
    width = max(int(one.values.max(initial=0)), int(other.values.max(initial=0))) + 1
    held = np.isin(one.lines * width + one.values, other.lines * width + other.values)
    shares: Float64[np.ndarray, " lists"] = np.bincount(one.lines, held, minlength=len(one.sizes)) / one.sizes
    return shares


def _all_events(events: Int64[np.ndarray, "items"]) -> Ragged:
    """All events as one list."""
    return Ragged(np.repeat(np.arange(len(events)), events), np.array([0, events.sum()]))
