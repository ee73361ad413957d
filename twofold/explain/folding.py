"""Probes for folding: unrelated groups of items (languages, creators, tags) share a region of the vector space.

Training never pushed such groups apart, because no user sees both. Users decide which groups are unrelated: where few
users like items of two groups and the vectors place them together all the same, the model was not trained to separate
them. So the share of neighbors in other groups is compared with chance and with how often users cross groups, group by
group: an average over items hides small groups that are folded into a large one.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.stats
from jaxtyping import Float32, Float64, Int64

from twofold.explain.probes import Probe, halfway_above
from twofold.ragged import Ragged, chunks
from twofold.render.numbers import format_decimal
from twofold.topk import NOT_ALLOWED, top_k

NEIGHBORS: Final = 10
_SAMPLE: Final = 10_000  # items, as queries and as neighbors: 1e8 cosines
_CHUNK_SCORES: Final = 2**21  # cosines in memory at once
_UNRELATED: Final = 0.5  # groups that users cross at most half as often as chance are unrelated


@dataclass(frozen=True)
class Grouping:
    """The group of each item row, -1 where it is not known, and the value that each group stands for."""

    name: str
    group: Int64[np.ndarray, "items"]
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Neighborhood:
    """A sample of items with their unit vectors, and the nearest others of each by cosine, as positions in `items`."""

    items: Int64[np.ndarray, "items"]
    vectors: Float32[np.ndarray, "items dim"]
    nearest: Int64[np.ndarray, "items k"]


def find_neighbors(vectors: Float32[np.ndarray, "items dim"]) -> Neighborhood:
    """Finds the 10 nearest of each item, among at most 10,000 drawn by chance; zero vectors are left out."""
    lengths = np.linalg.norm(vectors, axis=1)
    known = np.flatnonzero(lengths > 0)
    items = np.sort(np.random.default_rng(0).permutation(known)[:_SAMPLE])
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


def probe_hubs(near: Neighborhood) -> Probe:
    """Measures whether a few items are the neighbors of most others."""
    if len(near.items) <= NEIGHBORS:
        return Probe("hub_skew", None, f"fewer than {NEIGHBORS + 1} items have a vector")
    counts = np.bincount(near.nearest.reshape(-1), minlength=len(near.items))
    return Probe(
        "hub_skew",
        float(scipy.stats.skew(counts)) if np.ptp(counts) else 0.0,
        f"skewness of how often an item is among the {NEIGHBORS} nearest of another; 0 if all are equally often",
        alarm_above=1.4,
        source="Feldbauer and Flexer, KAIS 2019: above 1.4 there is hubness",
        next_step="Some items are near to very many. See whether they crowd the lists too (top_tenth, overlap); if so, "
        "train.loss: {kind: in_batch_softmax, uniform_negatives: 512} pushes them away.",
    )


@dataclass(frozen=True)
class _Groups:
    """Per group: number of items with a vector, share of their neighbors in other groups and that by chance; share of
    pairs of a user's likes that leave the group, over that by chance. NaN where there is nothing to count.
    """

    items: Int64[np.ndarray, "_"]
    leak: Float64[np.ndarray, "_"]
    leak_by_chance: Float64[np.ndarray, "_"]
    crossing: Float64[np.ndarray, "_"]

    @property
    def folding(self) -> Float64[np.ndarray, "_"]:
        """0 where neighbors leave the group as seldom as users do, 1 where as often as chance; NaN where users cross
        groups about as often as chance, so that mixed neighbors are no fault.
        """
        is_apart = (self.crossing < _UNRELATED) & (self.items > NEIGHBORS) & (self.leak_by_chance > 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            folding = (self.leak / self.leak_by_chance - self.crossing) / (1 - self.crossing)
        return np.where(is_apart, folding, np.nan)


def probe_folding(near: Neighborhood, grouping: Grouping, likes: Ragged) -> Probe:
    """Measures how far items of other groups leak into an item's neighbors, for the worst of the groups that users keep
    apart and have more than 10 items. `likes` holds item rows, one list per user.
    """
    name = f"{grouping.name}/folding"
    groups = _measure_groups(near, grouping, likes)
    if (groups.items > 0).sum() < 2:
        return Probe(name, None, "fewer than two groups")
    known = groups.items > 0
    mean = float(np.average(groups.leak[known], weights=groups.items[known]))
    overall = f"on average {format_decimal(1 - mean)} of an item's nearest are of its own group"
    folding = groups.folding
    if np.isnan(folding).all():
        return Probe(name, None, f"no group with more than {NEIGHBORS} items is kept apart by users; {overall}")
    worst = int(np.nanargmax(folding))
    value = f" {grouping.values[worst]!r}" if grouping.values else f" number {worst}"
    return Probe(
        name,
        float(folding[worst]),
        f"worst group,{value}: 0 if its items have neighbors in other groups as seldom as users cross, 1 if as often "
        f"as chance; {format_decimal(1 - float(groups.leak[worst]))} of their nearest are of the group, {overall}",
        alarm_above=0.5,
        source="halfway from what users do to chance",
        next_step=f"Items of {grouping.name}{value} lie among unrelated ones. Add negatives of all groups: train.loss: "
        "{kind: in_batch_softmax, uniform_negatives: 512}, or separate the towers: retriever.separate_towers_by.",
    )


def _measure_groups(near: Neighborhood, grouping: Grouping, likes: Ragged) -> _Groups:
    width = int(grouping.group.max(initial=-1)) + 1
    group = grouping.group[near.items]
    own = np.flatnonzero(group >= 0)
    items = np.bincount(group[own], minlength=width)
    neighbors = group[near.nearest[own]]
    known = neighbors >= 0
    others = np.bincount(group[own], ((neighbors != group[own, None]) & known).sum(axis=1), minlength=width)
    with np.errstate(invalid="ignore", divide="ignore"):
        leak = others / np.bincount(group[own], known.sum(axis=1), minlength=width)
        by_chance = 1 - (items - 1) / max(len(own) - 1, 1)
    return _Groups(items, np.nan_to_num(leak), by_chance, _crossing(grouping, likes, width=width))


def _crossing(grouping: Grouping, lists: Ragged, *, width: int) -> Float64[np.ndarray, "_"]:
    """Returns how often pairs of a list that begin in each group leave it, over the share by chance; at most 1."""
    group = grouping.group[lists.values]
    list_of, group = lists.lines[group >= 0], group[group >= 0]
    count = np.bincount(list_of, minlength=len(lists.sizes)).astype(np.float64)
    cell, size = np.unique(list_of * max(width, 1) + group, return_counts=True)
    owner, group_of_cell = cell // max(width, 1), cell % max(width, 1)
    leaving = np.bincount(group_of_cell, size * (count[owner] - size), minlength=width)
    pairs = np.bincount(group_of_cell, size * (count[owner] - 1), minlength=width)
    share = np.bincount(group, minlength=width) / max(len(group), 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.minimum(leaving / pairs / (1 - share), 1)


def probe_off_group(grouping: Grouping, likes: Ragged, *, served: Ragged, popular: Ragged, liked: Ragged) -> Probe:
    """Measures the share of recommendations from groups of which the user liked nothing. `likes` are those before the
    test window; the other lists are of the same users.
    """
    shares = [_off_group_share(grouping, likes, each) for each in (served, popular, liked)]
    return Probe(
        f"{grouping.name}/off_group",
        shares[0],
        f"share of recommendations from a value of {grouping.name} of which the user never liked an item before",
        shares[1],
        shares[2],
        alarm_above=halfway_above(shares[1], shares[2]),
        source="halfway from what people like to the most popular items",
        next_step=f"Lists leave the user's own {grouping.name}. Add {{kind: category, column: {grouping.name}}} to "
        f"features.item, or filter by it when you ask the service.",
    )


def _off_group_share(grouping: Grouping, likes: Ragged, lists: Ragged) -> float | None:
    """Returns the share among users with likes; `None` means there is no such entry of a known group."""
    width = int(grouping.group.max(initial=0)) + 1
    own = grouping.group[likes.values]
    liked = np.unique((likes.lines * width + own)[own >= 0])
    user, group = lists.lines, grouping.group[lists.values]
    kept = (group >= 0) & (likes.sizes > 0)[user]
    return float((~np.isin(user[kept] * width + group[kept], liked)).mean()) if kept.any() else None
