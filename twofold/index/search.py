"""Nearest-neighbor search: the k best items of each query, under filters and exclusions.

| allowed items | search |
|---|---|
| few, up to an eighth | `pool`: scores those rows alone, exact; a cached filter has their vectors in one block |
| more, and the index has IVF lists | `lists`: searches so deep that enough of the candidates are allowed, then counts |
| otherwise | `all`: scores everything and overwrites the items that are not allowed, exact |

Where the count finds too few, as under a filter that keeps only items far from the query, the query is searched again
without the lists. An approximate search that is given the filter instead, and takes a full list for an answer, finds .2
to .6 of the right items under such filters; HNSW finds a handful.

Candidates are scored again in one fixed order of summation, and ties are broken as in `twofold/topk.py`. So a result
does not depend on the other queries of its batch (a matrix product sums in another order there), and items with equal
vectors are not returned in catalogue order.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Final, Literal

import numpy as np
from jaxtyping import Bool, Float32, Int64

from twofold.errors import RequestError
from twofold.index.additions import keep_additions, merge_additions
from twofold.index.exact import concatenate, rescore_and_sort, rounding_slack, search_exact
from twofold.index.item_index import Index
from twofold.index.item_mask import ItemMask, from_mask
from twofold.index.ivf import IvfIndex
from twofold.ragged import Ragged, chunks
from twofold.topk import NOT_ALLOWED, Additions, TopK, tie_order

CHUNK_QUERIES: Final = 256  # queries that a thread looks up in IVF lists before its next chunk
CHUNK_MARKED: Final = 64  # queries whose excluded items are marked at once, one byte per item
SPARE: Final = 16  # candidates beyond k: without ties one would do
DEPTH_FACTOR: Final = 1.25  # allowed items are rarely spread evenly: searches this much deeper than if they were


@dataclass(frozen=True)
class Neighbors(TopK):
    """Item rows by descending score. Where fewer than k items are eligible, the tail is -1 with score -inf.

    `counts` is the number of real results of each query: always min(k, eligible items). `is_exact` means that no query
    can have missed an item; otherwise each found at least .99 of its items, on average over the calibration queries.
    """

    is_exact: bool


def search(
    index: Index,
    queries: Float32[np.ndarray, "queries dim"],
    k: int,
    *,
    allowed: ItemMask | Bool[np.ndarray, "items"] | None = None,
    excluded: Ragged | None = None,
    added: Additions | None = None,
) -> Neighbors:
    """Returns the k best items of each query among the `allowed` ones, without those the query excludes.

    `added` is added to the scores. Where `is_exact`, the result equals `top_k` over all scores. A mask of
    `Filters.eligible` is faster than an array. Raises RequestError for k < 1, NaN, or vectors of another width.
    """
    _check(index, queries, k)
    if len(queries) == 0:
        return Neighbors(np.empty((0, k), np.int64), np.empty((0, k), np.float32), np.empty(0, np.int64), True)
    mask = from_mask(allowed) if isinstance(allowed, np.ndarray) else allowed
    if excluded is None:
        excluded = Ragged(np.empty(0, np.int64), np.zeros(len(queries) + 1, np.int64))
    if added is not None:
        return _search_with_additions(index, queries, k, allowed=mask, excluded=excluded, added=added)
    if index.ivf is None:
        best = search_exact(index, queries, k, allowed=mask, excluded=excluded)
        return Neighbors(best.item_rows, best.scores, best.counts, is_exact=True)
    # Queries that exclude more need more candidates; in sorted chunks they do not slow the others down.
    order = np.argsort(excluded.sizes, kind="stable")

    def search_chunk(chosen: Int64[np.ndarray, "_"]) -> tuple[TopK, bool]:
        with _one_thread():
            return _search_lists(index, queries[chosen], k, allowed=mask, excluded=excluded.of(chosen))

    results = _run_chunks(search_chunk, [order[part] for part in chunks(len(order), CHUNK_QUERIES)])
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    best = concatenate([best for best, _ in results])
    is_exact = all(is_exact for _, is_exact in results)
    return Neighbors(best.item_rows[position], best.scores[position], best.counts[position], is_exact)


def _search_with_additions(
    index: Index,
    queries: Float32[np.ndarray, "queries dim"],
    k: int,
    *,
    allowed: ItemMask | None,
    excluded: Ragged,
    added: Additions,
) -> Neighbors:
    others = search(index, queries, k, allowed=allowed, excluded=excluded.joined(added.rows))
    is_allowed = np.ones(len(added.values), bool) if allowed is None else allowed.contains(added.rows.values)
    own = keep_additions(added, excluded, is_allowed)
    rank, _ = tie_order(len(index))
    best = merge_additions(others, own, lambda rows: index.vectors[rows], queries, score=index.score, rank=rank)
    return Neighbors(best.item_rows, best.scores, best.counts, others.is_exact)


def _check(index: Index, queries: Float32[np.ndarray, "queries dim"], k: int) -> None:
    if k < 1:
        raise RequestError(f"k must be at least 1, not {k}")
    if queries.shape[1] != index.dim:
        raise RequestError(
            f"query vectors have {queries.shape[1]} dimensions, the index has {index.dim}: they belong to two models"
        )
    if not np.isfinite(queries).all():
        row = int(np.argmin(np.isfinite(queries).all(axis=1)))
        raise RequestError(f"query vector {row} holds NaN or infinity: the model has diverged; lower the learning rate")


def _run_chunks(
    search_chunk: Callable[[Int64[np.ndarray, "_"]], tuple[TopK, bool]], parts: list[Int64[np.ndarray, "_"]]
) -> list[tuple[TopK, bool]]:
    """Searches the chunks on as many threads as OpenMP would use, each limited to one OpenMP thread.

    Two OpenMP threads wait for each other at every small product: where another process held a core, they took 4.9 s
    for 200 single queries against 0.6 s.
    """
    import faiss

    if len(parts) == 1:
        return [search_chunk(parts[0])]
    with ThreadPoolExecutor(faiss.omp_get_max_threads()) as threads:
        return [*threads.map(search_chunk, parts)]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limits OpenMP to one thread, for calls from this thread only."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


# --- by IVF lists -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """A search method; for IVF lists, also the number of candidates and of probed lists per query."""

    method: Literal["pool", "all", "lists"]
    depth: int = 0
    probes: int = 0


def plan_search(items: int, candidates: int, *, allowed: ItemMask | None = None, ivf: IvfIndex | None = None) -> Plan:
    """Returns the plan for queries that need so many `candidates` each; without IVF lists it is an exact one."""
    if allowed is not None and allowed.pool is not None:
        return Plan("pool")
    share = 1.0 if allowed is None else allowed.count / items
    depth = ceil(candidates * (1 + DEPTH_FACTOR * (1 - share) / share))
    probes = None if ivf is None else ivf.probes(depth)
    return Plan("all") if probes is None else Plan("lists", min(depth, items), probes)


def _search_lists(
    index: Index, queries: Float32[np.ndarray, "queries dim"], k: int, *, allowed: ItemMask | None, excluded: Ragged
) -> tuple[TopK, bool]:
    """Returns the results and whether all of them are exact: they are where the lists cannot answer."""
    assert index.ivf is not None
    candidates = k + SPARE + int(excluded.sizes.max(initial=0))
    plan = plan_search(len(index), candidates, allowed=allowed, ivf=index.ivf)
    if plan.method != "lists":
        return search_exact(index, queries, k, allowed=allowed, excluded=excluded), True
    scores, rows = index.ivf.search(queries, plan.depth, plan.probes)
    floor = scores[:, -1]  # items that score below were not looked at
    if allowed is not None or len(excluded.values):
        count = min(k + SPARE, plan.depth)
        last, rows = first_allowed(scores, rows, excluded, count=count, items=len(index), allowed=allowed)
        floor = np.maximum(floor, last)
    query_of, position = np.nonzero(rows >= 0)
    pairs = rows[query_of, position]
    best = rescore_and_sort(index.vectors, queries, query_of=query_of, rows=pairs, k=k, score=index.score)
    # An item that scored at the floor or below could, but for rounding, be among the k best.
    is_tied = np.isfinite(floor) & (best.scores[:, -1] <= floor + rounding_slack(index, queries))
    uncertain = np.flatnonzero((best.counts < k) | is_tied)
    if len(uncertain):
        again = search_exact(index, queries[uncertain], k, allowed=allowed, excluded=excluded.of(uncertain))
        best.item_rows[uncertain], best.scores[uncertain] = again.item_rows, again.scores
        best.counts[uncertain] = again.counts
    return best, len(uncertain) == len(queries)


def first_allowed(
    scores: Float32[np.ndarray, "queries k"],
    candidates: Int64[np.ndarray, "queries k"],
    excluded: Ragged,
    *,
    count: int,
    items: int,
    allowed: ItemMask | None = None,
) -> tuple[Float32[np.ndarray, "queries"], Int64[np.ndarray, "queries _"]]:
    """Returns the best `count` candidates of each query that are allowed and not excluded, and the score of the last.

    Where there are fewer, the tail is -1 and that score is -inf: no candidate was cut off. Candidate -1 means none.
    """
    kept = np.full((len(candidates), count), -1, np.int64)
    floor = np.full(len(candidates), NOT_ALLOWED)
    for part in chunks(len(candidates), CHUNK_MARKED):
        stays = candidates[part] >= 0 if allowed is None else allowed.contains(candidates[part])
        own = excluded.part(part)
        if len(own.values):
            is_excluded = np.zeros((part.stop - part.start, items), bool)
            is_excluded[own.lines, own.values] = True
            stays &= ~np.take_along_axis(is_excluded, candidates[part], axis=1)
        first = np.argsort(~stays, axis=1, kind="stable")[:, :count]  # those that stay, in their order
        is_real = np.take_along_axis(stays, first, axis=1)
        kept[part, : first.shape[1]] = np.where(is_real, np.take_along_axis(candidates[part], first, axis=1), -1)
        if first.shape[1] == count:
            last = np.take_along_axis(scores[part], first[:, -1:], axis=1)
            floor[part] = np.where(is_real[:, -1], last[:, 0], NOT_ALLOWED)
    return floor, kept
