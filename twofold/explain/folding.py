"""Folding: unrelated groups of items (languages, creators, tags) share a region, because nothing pushed them apart.

Whether two groups are unrelated is not for us to say: users do. Where people seldom like items of two groups, and the
vectors put them side by side all the same, something was never taught. So neighbours' leaks are held against chance on
one side and against what users do on the other.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.stats
from jaxtyping import Float32, Int64

from twofold.explain.probes import HUB_SHARE, Probe
from twofold.ragged import Ragged, chunks
from twofold.render.numbers import format_decimal
from twofold.topk import NOT_ALLOWED, top_k

NEIGHBOURS: Final = 10
_SAMPLE: Final = 10_000  # items, as queries and as neighbours: 1e8 cosines
_CELLS: Final = 2**21
_UNRELATED: Final = 0.5  # users cross groups at most half as often as chance would
_RIDGE: Final = 1e-3


@dataclass(frozen=True)
class Grouping:
    """A group for each item row, -1 where it is not known."""

    name: str
    group: Int64[np.ndarray, "items"]


@dataclass(frozen=True)
class Neighbourhood:
    """Items of a sample, the nearest of each within the sample by cosine, as places in `items`."""

    items: Int64[np.ndarray, "sample"]
    vectors: Float32[np.ndarray, "sample dim"]
    nearest: Int64[np.ndarray, "sample k"]


def find_neighbours(vectors: Float32[np.ndarray, "items dim"], *, seed: int = 0) -> Neighbourhood:
    """The nearest 10 of each item, among at most 10,000 drawn by the seed; zero vectors are left out."""
    lengths = np.linalg.norm(vectors, axis=1)
    known = np.flatnonzero(lengths > 0)
    items = np.sort(np.random.default_rng(seed).permutation(known)[:_SAMPLE])
    unit = np.ascontiguousarray(vectors[items] / lengths[items, None])
    width = min(NEIGHBOURS, max(len(items) - 1, 1))
    return Neighbourhood(items, unit, nearest_by_cosine(unit, width)[0])


def nearest_by_cosine(
    unit: Float32[np.ndarray, "items dim"], k: int
) -> tuple[Int64[np.ndarray, "items k"], Float32[np.ndarray, "items k"]]:
    """The k nearest of each line, itself left out, and their distances 1 - cosine; vectors are of length 1."""
    nearest, apart = np.zeros((len(unit), k), np.int64), np.zeros((len(unit), k), np.float32)
    for part in chunks(len(unit), max(1, _CELLS // max(len(unit), 1))) if k else []:
        cosine = unit[part] @ unit.T
        cosine[np.arange(len(cosine)), np.arange(part.start, part.stop)] = NOT_ALLOWED
        found = top_k(cosine, k)
        nearest[part], apart[part] = found.item_rows, np.maximum(1 - found.scores, 0)
    return nearest, apart


def probe_hubs(near: Neighbourhood) -> tuple[Probe, ...]:
    """Are a few items the neighbours of everything?"""
    if len(near.items) <= NEIGHBOURS:
        return (Probe("hub_skew", None, f"fewer than {NEIGHBOURS + 1} items with a vector have no hubs"),)
    counts = np.bincount(near.nearest.reshape(-1), minlength=len(near.items))
    hubs = np.argsort(-counts, kind="stable")[: max(round(HUB_SHARE * len(counts)), 1)]
    holding = float(np.isin(near.nearest, hubs).any(axis=1).mean())
    skew = float(scipy.stats.skew(counts)) if np.ptp(counts) else 0.0
    return (
        Probe(
            "hub_skew",
            skew,
            f"skewness of how often an item is among the {NEIGHBOURS} nearest of another",
            alarm_above=1.4,
            source="Feldbauer and Flexer, KAIS 2019: above 1.4 there is hubness",
        ),
        Probe(
            "hub_lists",
            holding,
            "of all items have one of the commonest hundredth among their nearest",
            alarm_above=0.5,
        ),
    )


def probe_groups(
    near: Neighbourhood, grouping: Grouping, likes: Ragged, *, served: Ragged | None = None
) -> tuple[Probe, ...]:
    """How far items of other groups leak into an item's neighbours, and into what a user is served.

    `likes` and `served` are item rows, a list a user, of the same users. An alarm needs groups that users keep apart:
    where they cross them at least half as often as chance would, mixing them is no fault.
    """
    group = grouping.group[near.items]
    own = np.flatnonzero(group >= 0)
    counts = np.bincount(group[own]) if len(own) else np.zeros(1, np.int64)
    if (counts > 0).sum() < 2:
        return (Probe(f"{grouping.name}/purity", None, "fewer than two groups"),)
    around = group[near.nearest[own]]
    known = around >= 0
    leak = float(((around != group[own, None]) & known).sum() / max(known.sum(), 1))
    chance = float(1 - ((counts[group[own]] - 1) / max(len(own) - 1, 1)).mean())
    crossing, chance_of_users = _crossing(grouping, likes)
    usual = 1.0 if crossing is None or chance_of_users == 0 else min(crossing / chance_of_users, 1.0)
    apart = usual < _UNRELATED
    users = (
        "no user likes two items" if crossing is None else f"users cross groups {usual:.0%} as often as chance would"
    )
    folding = (leak / chance - usual) / (1 - usual) if apart and chance > 0 else None
    accuracy, commonest = _linear_probe(near.vectors[own], group[own])
    probes = [
        Probe(
            f"{grouping.name}/purity",
            1 - leak,
            f"of an item's nearest are of its group; by chance {format_decimal(1 - chance)}",
        ),
        Probe(
            f"{grouping.name}/folding",
            folding,
            f"0: neighbours cross groups as seldom as users do, 1: as often as chance; {users}",
            alarm_above=0.5,
        ),
        Probe(
            f"{grouping.name}/linear_probe",
            accuracy,
            "of held-out items get their group from a linear probe; the commonest group holds "
            f"{format_decimal(commonest)}",
            alarm_below=(1 + commonest) / 2 if apart else None,
        ),
    ]
    return (*probes, *([_served_crossing(grouping, likes, served, apart)] if served is not None else []))


def _crossing(grouping: Grouping, lists: Ragged) -> tuple[float | None, float]:
    """The share of pairs of one list that are of two groups, mean over lists; and that of pairs of all lists."""
    group = grouping.group[lists.values]
    kept = group >= 0
    line, group = lists.lines[kept], group[kept]
    count = np.bincount(line, minlength=len(lists.sizes)).astype(np.float64)
    cell = np.unique(line * (grouping.group.max(initial=0) + 1) + group, return_counts=True)
    same = np.bincount(cell[0] // (grouping.group.max(initial=0) + 1), cell[1] * (cell[1] - 1.0), minlength=len(count))
    several = count > 1
    shares = np.bincount(group) / max(len(group), 1)
    chance = float(1 - (shares**2).sum()) if len(group) else 0.0
    if not several.any():
        return None, chance
    return float((1 - same[several] / (count[several] * (count[several] - 1))).mean()), chance


def _served_crossing(grouping: Grouping, likes: Ragged, served: Ragged, apart: bool) -> Probe:
    """The share of served places whose group the user likes nothing of."""
    width = grouping.group.max(initial=0) + 1
    liked = np.unique(likes.lines * width + grouping.group[likes.values])
    has_likes = likes.sizes > 0
    line, group = served.lines, grouping.group[served.values]
    kept = (group >= 0) & has_likes[line]
    name = f"{grouping.name}/served_other"
    if not kept.any():
        return Probe(name, None, "nobody who likes something is served anything of a known group")
    other = ~np.isin(line[kept] * width + group[kept], liked)
    meaning = "of served places hold a group of which the user likes nothing"
    return Probe(name, float(other.mean()), meaning, alarm_above=0.5 if apart else None)


def _linear_probe(vectors: Float32[np.ndarray, "items dim"], group: Int64[np.ndarray, "items"]) -> tuple[float, float]:
    """Accuracy on every second item of ridge regression on one-hot groups learned from the others; share of the
    commonest group.
    """
    names, coded = np.unique(group, return_inverse=True)
    features = np.hstack([vectors, np.ones((len(vectors), 1), np.float32)]).astype(np.float64)
    learn, test = slice(0, None, 2), slice(1, None, 2)
    gram = features[learn].T @ features[learn] + _RIDGE * np.eye(features.shape[1])
    sums = np.zeros((features.shape[1], len(names)))
    np.add.at(sums.T, coded[learn], features[learn])
    guessed = (features[test] @ np.linalg.solve(gram, sums)).argmax(axis=1)
    commonest = float(np.bincount(coded[test]).max(initial=0) / max(len(coded[test]), 1))
    return float((guessed == coded[test]).mean()) if len(guessed) else 0.0, commonest
