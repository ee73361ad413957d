"""Probes beyond accuracy: how recommended lists spread over items and groups, how alike they are, and their content.

Every number is computed three times: for the recommended lists, for lists of the most popular items of the same length,
and for what the same users liked in the test window. A list holds item rows of one user; users without a list are
ignored.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Float64, Int64

from twofold.dataset.dataset import Dataset
from twofold.explain.folding import Grouping
from twofold.explain.probes import MARGIN, Probe, halfway, halfway_above
from twofold.ragged import Ragged, chunks
from twofold.render.numbers import format_decimal, plural

Value = TypeVar("Value")
TENTHS: Final = 10
_USER_PAIRS: Final = 10_000  # drawn for the overlap, which is then known within .005
_CHUNK_FLAGS: Final = 2**24  # flags of users × popular items in memory at once


@dataclass(frozen=True)
class ComparedLists:
    """Lists of the same users: the recommended ones, the most popular items that they have not seen, and their
    positives of the test window.
    """

    served: Ragged
    popular: Ragged
    liked: Ragged

    def measured(self, measure: Callable[[Ragged], Value]) -> tuple[Value, Value, Value]:
        """Returns what `measure` finds in the recommended, the popular and the liked lists."""
        return measure(self.served), measure(self.popular), measure(self.liked)


def read_lists(path: Path, dataset: Dataset) -> Ragged:
    """Reads a file of recommendations as item rows, one list per user row, best first."""
    table = pq.read_table(path, columns=["user_id", "item_id", "rank"])
    users, items = dataset.users.rows_of(table["user_id"]), dataset.items.rows_of(table["item_id"])
    order = np.lexsort((np.asarray(table["rank"]), users))
    offsets = np.searchsorted(users[order], np.arange(len(dataset.users) + 1)).astype(np.int64)
    return Ragged(items[order], offsets)


def popular_lists(counts: Int64[np.ndarray, "items"], seen: Ragged, lengths: Int64[np.ndarray, "users"]) -> Ragged:
    """Returns the most popular items that each user has not seen, as many as `lengths` says, best first."""
    order = np.argsort(-counts, kind="stable")
    rank = np.empty(len(counts), np.int64)
    rank[order] = np.arange(len(counts))
    longest = min(int(lengths.max(initial=0) + seen.sizes.max(initial=0)), len(counts))
    item_rows = []
    for users in chunks(len(lengths), max(1, _CHUNK_FLAGS // max(longest, 1))):
        hidden = seen.part(users)
        is_free = np.ones((users.stop - users.start, longest), bool)
        ranks = rank[hidden.values]
        is_free[hidden.lines[ranks < longest], ranks[ranks < longest]] = False
        is_free &= np.cumsum(is_free, axis=1) <= lengths[users, None]
        item_rows.append((is_free.sum(axis=1), order[np.nonzero(is_free)[1]]))
    sizes = np.concatenate([each for each, _ in item_rows])
    return Ragged(np.concatenate([each for _, each in item_rows]), np.concatenate([[0], np.cumsum(sizes)]))


def probe_lists(
    lists: ComparedLists, events: Int64[np.ndarray, "items"], *, is_cold: Bool[np.ndarray, "items"]
) -> tuple[Probe, ...]:
    """Measures whether users are recommended the same, or popular, items; `events` counts the training positives of
    each item.
    """
    return (
        _coverage(lists, num_items=len(events)),
        _top_tenth(lists, events),
        _overlap(lists, num_items=len(events)),
        _cold(lists, is_cold),
    )


def _coverage(lists: ComparedLists, *, num_items: int) -> Probe:
    served, popular, liked = lists.measured(lambda each: len(np.unique(each.values)) / num_items)
    is_larger = len(lists.served.values) >= len(lists.liked.values) > 0
    return Probe(
        "coverage",
        served,
        f"share of the catalogue that is in some list, with {len(lists.served.values):,} recommendations; "
        f"{len(lists.liked.values):,} positives",
        popular,
        liked if len(lists.liked.values) else None,
        alarm_below=liked / 2 if is_larger else None,
        source="half as many different items as people like",
        next_step="Fewer items are recommended than people like. Add histories to features.user, and compare with "
        "train.loss: {kind: in_batch_softmax, log_q: none}, which favors rare items.",
    )


def _top_tenth(lists: ComparedLists, events: Int64[np.ndarray, "items"]) -> Probe:
    served, popular, liked = lists.measured(
        lambda each: float(served_shares(each, events)[-1]) if len(each.values) else None
    )
    return Probe(
        "top_tenth",
        served,
        "share of recommendations from the most popular tenth of items",
        popular,
        liked,
        alarm_above=halfway_above(popular, liked),
        source="halfway from what people like to the most popular items",
        next_step="Popular items crowd out the rest. Compare with train.loss: {kind: in_batch_softmax, log_q: none}, "
        "and look at the recall of the tenths of items under Groups.",
    )


def _overlap(lists: ComparedLists, *, num_items: int) -> Probe:
    served, popular, liked = lists.measured(overlap)
    sizes = lists.served.sizes[lists.served.sizes > 0]
    by_chance = float(sizes.mean() / num_items) if len(sizes) else 0.0
    return Probe(
        "overlap",
        served,
        f"share of a list that is also in the list of another random user; {format_decimal(by_chance)} by chance",
        popular,
        liked,
        alarm_above=halfway_above(popular, by_chance),
        source="halfway from random lists to one list for all",
        next_step="Everybody gets nearly the same list. Add histories to features.user, or use retriever.score: "
        "{kind: cosine, temperature: 0.1} in place of dot.",
    )


def _cold(lists: ComparedLists, is_cold: Bool[np.ndarray, "items"]) -> Probe:
    served, popular, liked = lists.measured(
        lambda each: float(is_cold[each.values].mean()) if len(each.values) else None
    )
    return Probe(
        "cold_items",
        served,
        "share of recommendations of items without a training event",
        popular,
        liked,
        alarm_below=liked / 2 if liked is not None and liked >= MARGIN / 2 else None,
        source="half of their share of what people like",
        next_step="Items without events are not recommended. Set unknown_rate: 0.3 on {kind: id}, and add features "
        "that a new item has: tags, {kind: vector}, {kind: age}.",
    )


def probe_group_share(lists: ComparedLists, grouping: Grouping) -> Probe:
    """Measures whether few groups (creators, say) receive most recommendations."""
    served, popular, liked = lists.measured(lambda each: _share_of_top_groups(each, grouping))
    count = int(grouping.group.max(initial=-1)) + 1
    top = max(round(count / 100), 1)
    return Probe(
        f"{grouping.name}/top_share",
        served,
        f"share of recommendations from the {plural(top, 'most frequent value')} of {count:,}",
        popular,
        liked,
        alarm_above=halfway_above(popular, liked),
        source="halfway from what people like to the most popular items",
        next_step=f"Few values of {grouping.name} get most of the places. Limit them per list in your service, or "
        "compare with train.loss: {kind: in_batch_softmax, log_q: none}.",
    )


def probe_content(lists: ComparedLists, name: str, vectors: Float32[np.ndarray, "items dim"]) -> Probe:
    """Measures how alike the items of one list are by content."""
    served, popular, liked = lists.measured(lambda each: intra_list_similarity(each, vectors))
    return Probe(
        f"{name}/list_similarity",
        served,
        "mean cosine of two items of a list, by content",
        popular,
        liked,
        alarm_above=None if liked is None else halfway(1.0, liked),
        source="halfway from what people like to one item repeated",
        next_step=f"Lists repeat one kind of item. Drop {name} from features.item, or spread the list in your service.",
    )


def _share_of_top_groups(lists: Ragged, grouping: Grouping) -> float | None:
    """Returns the share of entries from the most frequent hundredth of all groups, at least one."""
    group = grouping.group[lists.values]
    counts = np.bincount(group[group >= 0], minlength=int(grouping.group.max(initial=0)) + 1)
    top = max(round(len(counts) / 100), 1)
    return float(np.sort(counts)[-top:].sum() / counts.sum()) if counts.sum() else None


def served_shares(lists: Ragged, events: Int64[np.ndarray, "items"]) -> Float64[np.ndarray, "_"]:
    """Returns the share of recommendations from each tenth of the catalogue, least popular tenth first."""
    order = np.argsort(events, kind="stable")
    tenth = np.empty(len(events), np.int64)
    tenth[order] = np.arange(len(events)) * TENTHS // len(events)
    counts = np.bincount(tenth[lists.values], minlength=TENTHS)
    return counts / max(counts.sum(), 1)


def overlap(lists: Ragged) -> float | None:
    """Returns the share of a user's list that another random user is recommended too; `None` means under two lists."""
    users = np.flatnonzero(lists.sizes)
    if len(users) < 2:
        return None
    rng = np.random.default_rng(0)
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


def _shared(one: Ragged, other: Ragged) -> Float64[np.ndarray, "_"]:
    """Returns the share of each list of `one` that the same list of `other` contains."""
    is_shared = other.contains(one.lines, one.values)
    return np.bincount(one.lines, is_shared, minlength=len(one.sizes)) / one.sizes
