"""Candidate sources beside the retriever: item-kNN of the last likes, recent popularity, items under a condition.

Each source lists its best items, best first. The retriever's list gives up the last places of the candidates to them:
each source fills as many as its quota with the best of its items that are not there yet. What a source leaves free, the
retriever fills again, so the number of candidates is the same with and without sources. Training, evaluation and
serving call this module, so that all have the same candidates.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, assert_never

import numpy as np
from jaxtyping import Bool, Int32, Int64, Integer

from twofold.item_neighbors import ItemNeighbors
from twofold.ragged import Ragged, chunks
from twofold.recipe.ranker import Candidates, ConditionSource, ItemKnnSource, PopularitySource
from twofold.topk import packed_keys, tie_order

RETRIEVER: Final = "retriever"
NUM_NEIGHBORS: Final = 100
"""Number of nearest items that item-kNN keeps of each item."""
CHUNK_QUERIES: Final = 512  # users listed at a time: with ten likes and a hundred neighbors each, 4 MB of item rows


def by_popularity(counts: Int64[np.ndarray, "items"]) -> Int64[np.ndarray, "_"]:
    """Returns the rows of the items with a count, the largest first; ties have their fixed order.

    >>> by_popularity(np.array([0, 2, 5])).tolist()
    [2, 1]
    """
    order = np.lexsort((-tie_order(len(counts))[0], -counts))
    return order[: int((counts > 0).sum())]


@dataclass(frozen=True)
class CandidateSources:
    """The sources of a recipe, with what they read as of one time."""

    config: Candidates
    neighbors: ItemNeighbors | None
    """`None` means that no source reads them."""
    popular: Mapping[int, Int64[np.ndarray, "_"]]
    """By number of last days: rows of the items with a positive in these days, those with most positives first."""
    flags: Mapping[str, Bool[np.ndarray, "items"]]
    """Whether a condition is true, by the text of the condition."""
    num_items: int

    @property
    def quotas(self) -> tuple[int, ...]:
        """Quota of each source."""
        return tuple(source.quota for source in self.config.sources)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the lists: the retriever, then each source."""
        return (RETRIEVER, *(source.name for source in self.config.sources))


@dataclass(frozen=True)
class SourceQueries:
    """Inputs of the sources for some users, and the items that may be listed."""

    likes: Int32[np.ndarray, "queries length"]
    """Newest positives as table rows (item row + 1), newest last, padded with 0 on the left."""
    excluded: Ragged
    """Item rows that a user's list may not hold."""
    allowed: Bool[np.ndarray, "items"] | None = None
    """`None` means all items."""

    def part(self, queries: slice) -> "SourceQueries":
        """Returns those of a slice of the users."""
        return SourceQueries(self.likes[queries], self.excluded.part(queries), self.allowed)


@dataclass(frozen=True)
class MergedCandidates:
    """The items of each query: the first `num_candidates` are the candidates, the others follow in the retriever's
    order. Item rows are -1 where there is no item.
    """

    item_rows: Int64[np.ndarray, "queries k"]
    brought_by: Int64[np.ndarray, "queries k"]
    """Index of the list that brought an item: 0 for the retriever, then the sources in the order of the recipe."""
    lists: tuple[Int64[np.ndarray, "queries length"], ...]
    """Best items of the retriever and of each source, as many as there are candidates; -1 after the last one."""

    @property
    def num_candidates(self) -> int:
        """Number of candidates; an item has this rank in a list that does not hold it."""
        return int(self.lists[0].shape[1])

    def of(self, queries: slice | Int64[np.ndarray, "_"]) -> "MergedCandidates":
        """Returns those of some queries."""
        lists = tuple(each[queries] for each in self.lists)
        return MergedCandidates(self.item_rows[queries], self.brought_by[queries], lists)

    def ranks(self, item_rows: Int64[np.ndarray, "queries length"]) -> Int64[np.ndarray, "queries length _"]:
        """Returns the rank of any items in the retriever's list and in that of each source: see `ranks_in`."""
        return np.stack([ranks_in(each, item_rows) for each in self.lists], axis=2)


def ranks_in(
    best: Integer[np.ndarray, "queries k"], item_rows: Integer[np.ndarray, "queries length"]
) -> Int64[np.ndarray, "queries length"]:
    """Returns the rank of each item in its row of `best`, from 0; k if it is not there, or is no item.

    >>> ranks_in(np.array([[7, 8, -1]]), np.array([[8, 3, -1]])).tolist()
    [[1, 3, 3]]
    """
    k, width = best.shape[1], int(max(best.max(initial=0), item_rows.max(initial=0))) + 2
    first = np.arange(len(best))[:, None] * width + 1  # an item row of -1 has a key of its own
    keys = (first + best).ravel()
    order = np.argsort(keys, kind="stable")
    wanted = first + item_rows
    place = np.minimum(np.searchsorted(keys, wanted, sorter=order), max(len(keys) - 1, 0))
    if not len(keys):
        return np.full(item_rows.shape, k)
    found = order[place]
    return np.asarray(np.where((keys[found] == wanted) & (item_rows >= 0), found % max(k, 1), k))


# --- the lists --------------------------------------------------------------------------------------------------------


def source_lists(
    sources: CandidateSources,
    queries: SourceQueries,
    search: Callable[[str], Int64[np.ndarray, "queries _"]],
) -> list[Int64[np.ndarray, "queries length"]]:
    """Returns the best items of each source, as many as there are candidates; -1 after the last one.

    `search` returns the retriever's best items among those for which a condition is true.
    """
    lists = []
    for source in sources.config.sources:
        match source:
            case ItemKnnSource():
                found = _in_chunks(partial(_nearest, sources, source), queries)
            case PopularitySource():
                found = _in_chunks(partial(_most_popular, sources, source), queries)
            case ConditionSource():
                found = search(source.when)
            case _:
                assert_never(source)
        lists.append(_of_width(found, sources.config.num_candidates))
    return lists


def _in_chunks(
    list_items: Callable[[SourceQueries], Int64[np.ndarray, "queries length"]], queries: SourceQueries
) -> Int64[np.ndarray, "queries length"]:
    parts = [list_items(queries.part(part)) for part in chunks(len(queries.likes), CHUNK_QUERIES)]
    return np.concatenate(parts) if parts else np.empty((0, 0), np.int64)


def _nearest(
    sources: CandidateSources, source: ItemKnnSource, queries: SourceQueries
) -> Int64[np.ndarray, "queries length"]:
    """Returns the items with the largest sum of similarities to the likes; an item liked twice counts twice."""
    neighbors, likes = sources.neighbors, queries.likes[:, max(queries.likes.shape[1] - source.last_likes, 0) :]
    assert neighbors is not None
    lines, places = np.nonzero(likes)
    liked = likes[lines, places] - 1
    is_known = liked < len(neighbors.item_rows)
    lines, liked = lines[is_known], liked[is_known]
    rows = neighbors.item_rows[liked].astype(np.int64)
    keys = (lines[:, None] * sources.num_items + rows)[rows >= 0]
    # The sums of a user do not depend on the other users: terms are added in the order of the user's likes.
    pairs, term_of = np.unique(keys, return_inverse=True)
    sums = np.bincount(term_of, neighbors.similarities[liked][rows >= 0], minlength=len(pairs)).astype(np.float32)
    query, item = np.divmod(pairs, sources.num_items)
    kept = _may_be_listed(query, item, queries)
    query, item, sums = query[kept], item[kept], sums[kept]
    order = np.lexsort((-packed_keys(sums, tie_order(sources.num_items)[0][item]), query))
    return _padded(query[order], item[order], len(likes), sources.config.num_candidates)


def _most_popular(
    sources: CandidateSources, source: PopularitySource, queries: SourceQueries
) -> Int64[np.ndarray, "queries length"]:
    """Returns the most popular items that each user's list may hold."""
    popular = sources.popular[source.days]
    if queries.allowed is not None:
        popular = popular[queries.allowed[popular]]
    num_queries = len(queries.likes)
    popular = popular[: sources.config.num_candidates + int(queries.excluded.sizes.max(initial=0))]
    query, item = np.repeat(np.arange(num_queries), len(popular)), np.tile(popular, num_queries)
    kept = _may_be_listed(query, item, queries)
    return _padded(query[kept], item[kept], num_queries, sources.config.num_candidates)


def _may_be_listed(
    query: Int64[np.ndarray, "pairs"], item: Int64[np.ndarray, "pairs"], queries: SourceQueries
) -> Bool[np.ndarray, "pairs"]:
    is_free = np.ones(len(item), bool) if queries.allowed is None else queries.allowed[item]
    return is_free & ~queries.excluded.contains(query, item)


def _padded(
    query: Int64[np.ndarray, "pairs"], item: Int64[np.ndarray, "pairs"], num_queries: int, width: int
) -> Int64[np.ndarray, "queries _"]:
    """Returns the first items of each query, whose pairs are adjacent, as rows that end with -1."""
    place = np.arange(len(query)) - np.searchsorted(query, query)
    is_in, rows = place < width, np.full((num_queries, width), -1)
    rows[query[is_in], place[is_in]] = item[is_in]
    return rows


def _of_width(rows: Int64[np.ndarray, "queries _"], width: int) -> Int64[np.ndarray, "queries length"]:
    missing = width - rows.shape[1]
    return rows[:, :width] if missing <= 0 else np.pad(rows, ((0, 0), (0, missing)), constant_values=-1)


# --- their union ------------------------------------------------------------------------------------------------------


def merge_sources(
    retrieved: Int64[np.ndarray, "queries k"],
    lists: Sequence[Int64[np.ndarray, "queries length"]],
    quotas: Sequence[int],
    *,
    top: int,
) -> MergedCandidates:
    """Merges the retriever's list with those of the sources, each item once; there are as many items as retrieved.

    The first `top` are the candidates: the retriever's best, then those of each source, then the retriever's next.
    """
    kept = tuple(_of_width(each, top) for each in (retrieved, *lists))
    if not lists:
        return MergedCandidates(retrieved, np.zeros_like(retrieved), kept)
    rows = retrieved[:, : top - sum(quotas)]
    brought_by = np.zeros_like(rows)
    for number, (quota, listed) in enumerate(zip(quotas, lists, strict=True), start=1):
        chosen = _compacted(_without(listed, rows))[:, :quota]
        rows = np.hstack([rows, chosen])
        brought_by = np.hstack([brought_by, np.where(chosen >= 0, number, 0)])
    rest = _without(retrieved[:, top - sum(quotas) :], rows)
    rows, brought_by = np.hstack([rows, rest]), np.hstack([brought_by, np.zeros_like(rest)])
    order = np.argsort(rows < 0, axis=1, kind="stable")[:, : retrieved.shape[1]]
    return MergedCandidates(
        np.take_along_axis(rows, order, axis=1), np.take_along_axis(brought_by, order, axis=1), kept
    )


def concatenate_candidates(parts: Sequence[MergedCandidates]) -> MergedCandidates:
    """Returns the candidates of several groups of queries, one group after another."""
    lists = tuple(np.concatenate(each) for each in zip(*(part.lists for part in parts), strict=True))
    rows, brought_by = (np.concatenate([getattr(part, name) for part in parts]) for name in ("item_rows", "brought_by"))
    return MergedCandidates(rows, brought_by, lists)


def _without(
    rows: Int64[np.ndarray, "queries _"], others: Int64[np.ndarray, "queries _"]
) -> Int64[np.ndarray, "queries _"]:
    """Returns the items of each row that are not in another, and -1 in the place of the others."""
    return np.where(ranks_in(others, rows) == others.shape[1], rows, -1)


def _compacted(rows: Int64[np.ndarray, "queries _"]) -> Int64[np.ndarray, "queries _"]:
    """Returns each row with the items first, in their order, and -1 after the last one."""
    return np.take_along_axis(rows, np.argsort(rows < 0, axis=1, kind="stable"), axis=1)
