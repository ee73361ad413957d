"""Ranking from scores: a running top k in user × item blocks, for one stage or for a retriever with a ranker.

Memory does not grow with the catalogue. After a first block has set each user's k-th best score, a block of items costs
its product and one comparison: of N items about k · ln(N) are compared again. The whole row of scores is never stored
or sorted. Ties are decided as in `twofold/topk.py`, so the result equals `top_k` over the whole row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from twofold.candidate_sources import (
    CandidateSources,
    MergedCandidates,
    SourceQueries,
    concatenate_candidates,
    merge_sources,
    source_lists,
)
from twofold.ragged import Ragged, chunks
from twofold.topk import NOT_ALLOWED, Additions, Products, packed_keys, packed_scores, tie_order

ScoreBlock = Callable[[slice], Float32[np.ndarray, "queries items"]]
"""Scores of a slice of the window's users for the whole catalogue; the caller may overwrite the array."""

ScorePairs = Callable[
    [Int64[np.ndarray, "queries"], Int64[np.ndarray, "queries length"], Int64[np.ndarray, "queries length _"]],
    Float32[np.ndarray, "queries length"],
]
"""Scores of the second stage from users of the window, item rows of each, and the ranks of these items in the list of
the retriever and of each further source, from 0; the number of candidates for an item that is not in a list."""
FIRST_STAGE: Final = "retriever alone"
"""Name of the report's row of the first stage, with which both stages are compared."""
CHUNK_PAIRS: Final = 2**15  # pairs that the ranker scores at a time

_Waiting = list[tuple[np.ndarray, np.ndarray]]  # queries and keys of each block's candidates, not merged yet
CHUNK_ITEMS: Final = 8192  # columns of a block: with 512 users its scores take 16 MiB
CHUNK_USERS: Final = 512
CHUNK_ELEMENTS: Final = 2**18  # keys partitioned at a time: 2 MiB, within the cache


def rank_products(
    products: Products,
    users: slice,
    k: int,
    *,
    excluded: Ragged,
    allowed: Bool[np.ndarray, "items"] | None = None,
) -> Int64[np.ndarray, "queries k"]:
    """Returns these users' best item rows by falling score, without the `excluded`; -1 if fewer than k are left.

    `allowed` flags the items that are candidates for every user; `None` means all.
    """
    chosen, repeated = products.of(np.arange(len(products.queries))[users]), products.repeated
    queries, num_items, add = chosen.queries, len(products.items), _adder(chosen.added)
    shared = queries @ products.items[repeated.firsts].T
    # One buffer for all blocks, because fresh pages cost as much as the product.
    buffer = np.empty(len(queries) * min(max(_first_items(k), CHUNK_ITEMS), num_items), np.float32)

    def score_items(items: slice) -> Float32[np.ndarray, "queries _"]:
        width = items.stop - items.start
        out = buffer[: len(queries) * width].reshape(len(queries), width)
        scores = np.matmul(queries, products.items[items].T, out=out)
        repeated.level(scores, items, shared)
        add(scores, items)
        if allowed is not None:
            scores[:, ~allowed[items]] = NOT_ALLOWED
        return scores

    return _running_top_k(score_items, k, num_items=num_items, excluded=excluded)


def _adder(added: Additions | None) -> Callable[[Float32[np.ndarray, "queries _"], slice], None]:
    """Returns a function that adds to the scores of a block of items."""
    if added is None:
        return lambda scores, items: None
    by_item = np.argsort(added.rows.values, kind="stable")
    rows, owners, values = added.rows.values[by_item], added.rows.lines[by_item], added.values[by_item]

    def add(scores: Float32[np.ndarray, "queries _"], items: slice) -> None:
        low, high = np.searchsorted(rows, (items.start, items.stop))
        scores[owners[low:high], rows[low:high] - items.start] += values[low:high]

    return add


def rank_rows(
    scores: Float32[np.ndarray, "queries items"], k: int, *, excluded: Ragged
) -> Int64[np.ndarray, "queries k"]:
    """Returns the same as `rank_products` from whole rows of scores; overwrites excluded ones."""
    return _running_top_k(lambda items: scores[:, items], k, num_items=scores.shape[1], excluded=excluded)


def user_chunks(num_users: int) -> list[slice]:
    """Returns slices of users for `rank_products`."""
    return chunks(num_users, CHUNK_USERS)


def _running_top_k(
    score_items: Callable[[slice], Float32[np.ndarray, "queries _"]], k: int, *, num_items: int, excluded: Ragged
) -> Int64[np.ndarray, "queries k"]:
    rank, row_of_rank = tie_order(num_items)
    queries, kept, first = len(excluded.offsets) - 1, min(k, num_items), min(_first_items(k), num_items)
    by_item = np.argsort(excluded.values, kind="stable")
    left_out, owners = excluded.values[by_item], excluded.lines[by_item]

    def allowed_scores(items: slice) -> Float32[np.ndarray, "queries _"]:
        scores, (low, high) = score_items(items), np.searchsorted(left_out, (items.start, items.stop))
        scores[owners[low:high], left_out[low:high] - items.start] = NOT_ALLOWED
        return scores

    best, scores = np.empty((queries, kept), np.int64), allowed_scores(slice(0, first))
    for part in chunks(queries, max(1, CHUNK_ELEMENTS // first)):
        keys = packed_keys(scores[part], rank[:first])
        keys.partition(first - kept, axis=1)
        best[part] = keys[:, first - kept :]
    waiting: _Waiting = []
    counts = np.zeros(queries, np.int64)
    floor = packed_scores(best.min(axis=1))
    for part in chunks(num_items - first, CHUNK_ITEMS):
        items = slice(first + part.start, first + part.stop)
        scores = allowed_scores(items)
        found = np.flatnonzero(scores >= floor[:, None])
        query, column = np.divmod(found, items.stop - items.start)
        waiting.append((query, packed_keys(scores.take(found), rank[items].take(column))))
        counts += np.bincount(query, minlength=queries)
        # Rare merges are cheaper, but a user whose scores rise with the row must not fill the memory in between.
        if counts.sum() > queries * kept or counts.max() > max(kept, CHUNK_ITEMS):
            best, waiting, counts[:] = _merged(best, waiting), [], 0
            floor = packed_scores(best.min(axis=1))
    best = np.sort(_merged(best, waiting), axis=1)[:, ::-1]
    item_rows = np.full((queries, k), -1)
    item_rows[:, :kept] = np.where(np.isneginf(packed_scores(best)), -1, row_of_rank[best & 0xFFFFFFFF])
    return item_rows


def _first_items(k: int) -> int:
    """Returns the size of the first block: enough items that its k-th best score rules out most others."""
    return max(16 * k, CHUNK_ITEMS // 4)


def _merged(best: Int64[np.ndarray, "queries k"], waiting: _Waiting) -> Int64[np.ndarray, "queries k"]:
    """Returns the largest keys of each query among `best` and those waiting, in no order."""
    if not waiting:
        return best
    query, keys = (np.concatenate(each) for each in zip(*waiting, strict=True))
    order = np.argsort(query.astype(np.uint16), kind="stable")  # 16 bits: a radix sort
    counts = np.bincount(query, minlength=len(best))
    width, kept = int(counts.max(initial=0)), best.shape[1]
    position = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.full((len(best), kept + width), np.iinfo(np.int64).min)
    table[:, :kept] = best
    table[query[order], kept + position] = keys[order]
    table.partition(width, axis=1)
    return table[:, width:]


@dataclass(frozen=True)
class WindowSources:
    """The sources of candidates beside the retriever, with the newest positives of each user of a window."""

    sources: CandidateSources
    likes: Int32[np.ndarray, "users length"]
    """As in `SourceQueries`."""

    def of(self, users: Int64[np.ndarray, "_"]) -> "WindowSources":
        """Returns the sources with the positives of the chosen users."""
        return WindowSources(self.sources, self.likes[users])


@dataclass(frozen=True)
class TwoStages:
    """A ScoreBlock of a retriever and a ranker: its candidates first, in the ranker's order, then all others.

    The candidates stay first whatever the ranker's scores, so recall at their number is that of the candidates; without
    further sources it is the retriever's.
    """

    retrieved: Products
    candidates: MergedCandidates
    """Candidates of each user, in the order in which they were found."""
    ranked: Int64[np.ndarray, "users k"]
    """Candidates in the ranker's order; -1 if fewer are left."""
    score_pairs: ScorePairs
    sources: WindowSources | None = None

    @property
    def found(self) -> Int64[np.ndarray, "users k"]:
        """Item rows of the candidates; -1 if fewer are left."""
        return self.candidates.item_rows

    def __call__(self, users: slice) -> Float32[np.ndarray, "queries items"]:
        """Returns scores whose order is that of both stages; their size has no meaning."""
        scores, ranked = self.retrieved(users), self.ranked[users]
        above = 1 + np.abs(scores).max(initial=0)
        query, position = np.nonzero(ranked >= 0)
        scores[query, ranked[query, position]] = above * (1 + ranked.shape[1] - position)
        return scores

    def among(self, allowed: Bool[np.ndarray, "items"], *, seen: Ragged) -> "TwoStages":
        """Returns both stages under a filter, as they are served: the candidates are the best unseen allowed items."""
        top = self.candidates.num_candidates
        candidates = find_candidates(self.retrieved, seen=seen, top=top, allowed=allowed, sources=self.sources)
        return order_candidates(self.retrieved, candidates, self.score_pairs, sources=self.sources)

    def pairs(
        self, users: Int64[np.ndarray, "pairs"], item_rows: Int64[np.ndarray, "pairs"]
    ) -> Float32[np.ndarray, "pairs"]:
        """Returns the ranker's scores of pairs, found by the retriever or not: it alone orders impressions."""
        return score_impressions(self.candidates, self.score_pairs, users, item_rows)


def score_impressions(
    candidates: MergedCandidates,
    score_pairs: ScorePairs,
    users: Int64[np.ndarray, "pairs"],
    item_rows: Int64[np.ndarray, "pairs"],
) -> Float32[np.ndarray, "pairs"]:
    """Returns the second stage's score of each pair, whether or not the item is among the `candidates`."""
    scores = np.empty(len(users), np.float32)
    for part in chunks(len(users), CHUNK_PAIRS):
        items = item_rows[part, None]
        scores[part] = score_pairs(users[part], items, candidates.of(users[part]).ranks(items))[:, 0]
    return scores


def find_best(
    retrieved: Products, *, seen: Ragged, top: int, allowed: Bool[np.ndarray, "items"] | None = None
) -> Int64[np.ndarray, "users k"]:
    """Returns every user's `top` best allowed items that are not `seen`, exactly; -1 if fewer are left."""
    users = len(retrieved.queries)
    found = np.empty((users, min(top, len(retrieved.items))), np.int64)
    for part in user_chunks(users):
        found[part] = rank_products(retrieved, part, found.shape[1], excluded=seen.part(part), allowed=allowed)
    return found


def find_candidates(
    retrieved: Products,
    *,
    seen: Ragged,
    top: int,
    allowed: Bool[np.ndarray, "items"] | None = None,
    sources: WindowSources | None = None,
    count: int | None = None,
) -> MergedCandidates:
    """Finds every user's `top` candidates among the allowed items that are not `seen`, exactly.

    They are the retriever's best, or, with `sources`, the union. `allowed` flags the candidates; `None` means all
    items. With a `count` above `top`, the retriever's next items follow the candidates.
    """
    found = find_best(retrieved, seen=seen, top=max(top, count or top), allowed=allowed)
    if sources is None:
        return merge_sources(found, (), (), top=top)
    flags, parts = sources.sources.flags, []
    for part in user_chunks(len(found)):
        queries = SourceQueries(sources.likes[part], seen.part(part), allowed)
        own, users = retrieved.of(np.arange(part.start, part.stop)), queries.excluded

        def search(condition: str, own: Products = own, users: Ragged = users) -> Int64[np.ndarray, "queries _"]:
            is_true = flags[condition] if allowed is None else flags[condition] & allowed
            return find_best(own, seen=users, top=top, allowed=is_true)

        lists = source_lists(sources.sources, queries, search)
        parts.append(merge_sources(found[part], lists, sources.sources.quotas, top=top))
    return concatenate_candidates(parts)


def order_candidates(
    retrieved: Products,
    candidates: MergedCandidates,
    score_pairs: ScorePairs,
    *,
    sources: WindowSources | None = None,
) -> TwoStages:
    """Orders candidates by the second stage. Equal scores keep the fixed order of ties."""
    found = candidates.item_rows
    rank, _ = tie_order(len(retrieved.items))
    ranked = np.empty_like(found)
    for part in user_chunks(len(found)):
        items = np.maximum(found[part], 0)
        scores = score_pairs(np.arange(part.start, part.stop), items, candidates.of(part).ranks(found[part]))
        order = np.lexsort((-rank[items], np.where(found[part] >= 0, -scores, np.inf)))
        ranked[part] = np.take_along_axis(found[part], order, axis=1)
    return TwoStages(retrieved, candidates, ranked, score_pairs, sources)


def rank_in_two_stages(
    retrieved: Products,
    score_pairs: ScorePairs,
    *,
    seen: Ragged,
    top: int,
    sources: WindowSources | None = None,
) -> TwoStages:
    """Finds every user's `top` candidates that are not `seen`, exactly, and orders them by the second stage."""
    candidates = find_candidates(retrieved, seen=seen, top=top, sources=sources)
    return order_candidates(retrieved, candidates, score_pairs, sources=sources)
