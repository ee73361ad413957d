"""Probes for folding: unrelated groups of items (languages, creators, tags) share a region of the vector space.

Training never pushed such groups apart, because no user sees both. Users decide which groups are unrelated: where few
users like items of two groups and the vectors place them together all the same, the model was not trained to separate
them. So the share of neighbors in other groups is compared with chance and with how often users cross groups.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.stats
from jaxtyping import Float32, Int64

from twofold.explain.probes import HUB_SHARE, Probe
from twofold.ragged import Ragged, chunks
from twofold.render.numbers import format_decimal, percent
from twofold.topk import NOT_ALLOWED, top_k

NEIGHBORS: Final = 10
_SAMPLE: Final = 10_000  # items, as queries and as neighbors: 1e8 cosines
_CHUNK_SCORES: Final = 2**21  # cosines in memory at once
_UNRELATED: Final = 0.5  # groups that users cross at most half as often as chance are unrelated
_RIDGE: Final = 1e-3


@dataclass(frozen=True)
class Grouping:
    """The group of each item row, -1 where it is not known."""

    name: str
    group: Int64[np.ndarray, "items"]


@dataclass(frozen=True)
class Neighborhood:
    """A sample of items with their unit vectors, and the nearest others of each by cosine, as positions in `items`."""

    items: Int64[np.ndarray, "items"]
    vectors: Float32[np.ndarray, "items dim"]
    nearest: Int64[np.ndarray, "items k"]


def find_neighbors(vectors: Float32[np.ndarray, "items dim"], *, seed: int = 0) -> Neighborhood:
    """Finds the 10 nearest of each item, among at most 10,000 drawn by the seed; zero vectors are left out."""
    lengths = np.linalg.norm(vectors, axis=1)
    known = np.flatnonzero(lengths > 0)
    items = np.sort(np.random.default_rng(seed).permutation(known)[:_SAMPLE])
    unit = np.ascontiguousarray(vectors[items] / lengths[items, None])
    width = min(NEIGHBORS, max(len(items) - 1, 1))
    return Neighborhood(items, unit, nearest_by_cosine(unit, width)[0])


def nearest_by_cosine(
    unit: Float32[np.ndarray, "items dim"], k: int
) -> tuple[Int64[np.ndarray, "items k"], Float32[np.ndarray, "items k"]]:
    """Returns the k nearest others of each item and their distances 1 - cosine; `unit` vectors have length 1."""
    nearest, distances = np.zeros((len(unit), k), np.int64), np.zeros((len(unit), k), np.float32)
    for part in chunks(len(unit), max(1, _CHUNK_SCORES // max(len(unit), 1))) if k else []:
        cosine = unit[part] @ unit.T
        cosine[np.arange(len(cosine)), np.arange(part.start, part.stop)] = NOT_ALLOWED
        best = top_k(cosine, k)
        nearest[part], distances[part] = best.item_rows, np.maximum(1 - best.scores, 0)
    return nearest, distances


def probe_hubs(near: Neighborhood) -> tuple[Probe, ...]:
    """Measures whether a few items are the neighbors of most others."""
    if len(near.items) <= NEIGHBORS:
        return (Probe("hub_skew", None, f"fewer than {NEIGHBORS + 1} items have a vector"),)
    counts = np.bincount(near.nearest.reshape(-1), minlength=len(near.items))
    hubs = np.argsort(-counts, kind="stable")[: max(round(HUB_SHARE * len(counts)), 1)]
    with_hub = float(np.isin(near.nearest, hubs).any(axis=1).mean())
    skew = float(scipy.stats.skew(counts)) if np.ptp(counts) else 0.0
    return (
        Probe(
            "hub_skew",
            skew,
            f"skewness of how often an item is among the {NEIGHBORS} nearest of another",
            alarm_above=1.4,
            source="Feldbauer and Flexer, KAIS 2019: above 1.4 there is hubness",
        ),
        Probe(
            "hub_lists",
            with_hub,
            f"share of items whose nearest include a hub ({len(hubs):,} items that are nearest to most others)",
            alarm_above=0.5,
        ),
    )


def probe_groups(
    near: Neighborhood, grouping: Grouping, likes: Ragged, *, served: Ragged | None = None
) -> tuple[Probe, ...]:
    """Measures how far items of other groups leak into an item's neighbors, and into a user's recommendations.

    `likes` and `served` hold item rows, one list per user, of the same users. A warning needs groups that users keep
    apart: where users cross groups at least half as often as chance, mixed neighbors are no fault.
    """
    group = grouping.group[near.items]
    own = np.flatnonzero(group >= 0)
    counts = np.bincount(group[own]) if len(own) else np.zeros(1, np.int64)
    if (counts > 0).sum() < 2:
        return (Probe(f"{grouping.name}/purity", None, "fewer than two groups"),)
    neighbors = group[near.nearest[own]]
    known = neighbors >= 0
    leak = float(((neighbors != group[own, None]) & known).sum() / max(known.sum(), 1))
    chance = float(1 - ((counts[group[own]] - 1) / max(len(own) - 1, 1)).mean())
    crossing, chance_of_users = _crossing(grouping, likes)
    usual = 1.0 if crossing is None or chance_of_users == 0 else min(crossing / chance_of_users, 1.0)
    is_apart = usual < _UNRELATED
    users = "no user likes two items" if crossing is None else f"users cross groups {percent(usual)} as often as chance"
    purity = Probe(
        f"{grouping.name}/purity",
        1 - leak,
        f"share of an item's nearest items in its own group; {format_decimal(1 - chance)} by chance",
    )
    folding = Probe(
        f"{grouping.name}/folding",
        (leak / chance - usual) / (1 - usual) if is_apart and chance > 0 else None,
        f"0 means that neighbors cross groups as seldom as users do, 1 as often as chance; {users}",
        alarm_above=0.5,
    )
    probes = (purity, folding, _linear_probe(grouping.name, near.vectors[own], group[own], is_apart=is_apart))
    return probes if served is None else (*probes, _served_crossing(grouping, likes, served, is_apart=is_apart))


def _crossing(grouping: Grouping, lists: Ragged) -> tuple[float | None, float]:
    """Returns the share of pairs of one list that are of two groups, as mean over lists, and the share by chance.

    `None` means that no list has two items of a known group.
    """
    group = grouping.group[lists.values]
    kept = group >= 0
    list_of, group = lists.lines[kept], group[kept]
    count = np.bincount(list_of, minlength=len(lists.sizes)).astype(np.float64)
    width = grouping.group.max(initial=0) + 1
    cell, size = np.unique(list_of * width + group, return_counts=True)
    same = np.bincount(cell // width, size * (size - 1.0), minlength=len(count))
    several = count > 1
    shares = np.bincount(group) / max(len(group), 1)
    chance = float(1 - (shares**2).sum()) if len(group) else 0.0
    if not several.any():
        return None, chance
    return float((1 - same[several] / (count[several] * (count[several] - 1))).mean()), chance


def _served_crossing(grouping: Grouping, likes: Ragged, served: Ragged, *, is_apart: bool) -> Probe:
    """Measures the share of recommendations from groups of which the user likes nothing."""
    width = grouping.group.max(initial=0) + 1
    liked = np.unique(likes.lines * width + grouping.group[likes.values])
    has_likes = likes.sizes > 0
    user, group = served.lines, grouping.group[served.values]
    kept = (group >= 0) & has_likes[user]
    name = f"{grouping.name}/served_other"
    if not kept.any():
        return Probe(name, None, "no user with likes is recommended an item of a known group")
    other = ~np.isin(user[kept] * width + group[kept], liked)
    meaning = "share of recommendations from a group of which the user never liked an item"
    return Probe(name, float(other.mean()), meaning, alarm_above=0.5 if is_apart else None)


def _linear_probe(
    name: str, vectors: Float32[np.ndarray, "items dim"], group: Int64[np.ndarray, "items"], *, is_apart: bool
) -> Probe:
    """Measures how well ridge regression on one-hot groups, fitted to every second item, classifies the others."""
    names, coded = np.unique(group, return_inverse=True)
    features = np.hstack([vectors, np.ones((len(vectors), 1), np.float32)]).astype(np.float64)
    train, test = slice(0, None, 2), slice(1, None, 2)
    gram = features[train].T @ features[train] + _RIDGE * np.eye(features.shape[1])
    sums = np.zeros((features.shape[1], len(names)))
    np.add.at(sums.T, coded[train], features[train])
    predicted = (features[test] @ np.linalg.solve(gram, sums)).argmax(axis=1)
    largest = float(np.bincount(coded[test]).max(initial=0) / max(len(coded[test]), 1))
    return Probe(
        f"{name}/linear_probe",
        float((predicted == coded[test]).mean()) if len(predicted) else 0.0,
        f"accuracy of a linear probe for the group, on held-out items; the largest group has {format_decimal(largest)}",
        alarm_below=(1 + largest) / 2 if is_apart else None,
    )
