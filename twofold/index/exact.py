"""Exact search: all scores by one matrix product, then the few candidates that can be among the k best, scored again.

A chunk of queries is one product; items that a query may not return are overwritten with -inf. A threshold that at
least k items reach comes from the maxima of groups of items, so only the few hundred items above the threshold are
sorted. These are scored again in one fixed order of summation, and ties are broken as in `twofold/topk.py`.

A loaded index has a graph for the product: 8-bit integers, whose error has a bound (`quantized_products.py`), or packed
floats (`item_products.py`); `benchmarks/serve_search.py` compares them. Of 30,000 items with 64 dimensions, 100 results
and 80 excluded items, 16 queries at once take 57 µs each on a core shared with another process.
"""

from typing import Final

import numpy as np
from jaxtyping import Float, Float32, Int64, Shaped

from twofold.index.item_index import Index
from twofold.index.item_mask import ItemMask
from twofold.index.quantized_products import QuantizedProducts
from twofold.index.score_kinds import Score, pair_scores
from twofold.ragged import Ragged, chunks
from twofold.topk import NOT_ALLOWED, TopK, exclude, lowest_score, packed_keys, packed_scores, tie_order

CHUNK_SCORES: Final = 2**20  # scores in memory at once, 4 MB: they stay in the cache until they are read
MIN_TOGETHER: Final = 16  # queries of a product, however many items there are: the matrix is read once for all
CHUNK_PAIRS: Final = 2**15  # pairs of query and candidate scored at once: their vectors stay in the cache
MAX_GROUP: Final = 32  # items in a group whose maximum is taken
LOWEST: Final = np.finfo(np.float32).min  # above -inf, which is "not allowed"
NO_KEY: Final = packed_keys(np.array([NOT_ALLOWED]), np.zeros(1, np.int64))


def search_exact(
    index: Index, queries: Float32[np.ndarray, "queries dim"], k: int, *, allowed: ItemMask | None, excluded: Ragged
) -> TopK:
    """Returns the k best allowed items of each query that the query does not exclude, with every such item scored."""
    vectors, products, rows, squares, mask = index.vectors, index.products, None, index.squares, None
    if allowed is not None and allowed.pool is not None:
        rows, products = allowed.pool.rows, None
        vectors = index.vectors[rows] if allowed.pool.vectors is None else allowed.pool.vectors
        squares = None if squares is None else squares[rows]
        mask = None if len(rows) == allowed.count else allowed.contains(rows)
        excluded = _positions_in(rows, excluded)
    elif allowed is not None:
        mask = allowed.mask
    rounding, best = rounding_slack(index, queries), []
    for part in chunks(len(queries), max(MIN_TOGETHER, CHUNK_SCORES // max(1, len(vectors)))):
        chunk = queries[part]
        if isinstance(products, QuantizedProducts):
            scores, units, errors = products(chunk)
            slack = errors + rounding[part] / units
        else:
            is_packed = products is not None and len(chunk) > 1  # for one query it saves nothing
            inner = products(chunk) if products is not None and is_packed else chunk @ vectors.T
            scores, slack = score_matrix(inner, chunk, squares), rounding[part]
        if mask is not None:
            np.copyto(scores, lowest_score(scores.dtype), where=~mask)
        exclude(scores, excluded.part(part))
        query_of, position = candidates_above_threshold(scores, k, slack)
        item_rows = position if rows is None else rows[position]
        best.append(rescore_and_sort(index.vectors, chunk, query_of=query_of, rows=item_rows, k=k, score=index.score))
    return concatenate(best)


def score_matrix(
    products: Float32[np.ndarray, "queries items"],
    queries: Float32[np.ndarray, "queries dim"],
    squares: Float32[np.ndarray, "items"] | None,
) -> Float32[np.ndarray, "queries items"]:
    """Returns every score up to rounding, in place of the inner products: these, or negative distances, given the
    `squares` ‖v‖².
    """
    scores = products
    if squares is not None:
        scores *= 2
        scores -= squares
        scores -= np.vecdot(queries, queries)[:, None]
    return scores


def candidates_above_threshold(
    scores: Shaped[np.ndarray, "queries items"], k: int, slack: Float[np.ndarray, "queries"]
) -> tuple[Int64[np.ndarray, "pairs"], Int64[np.ndarray, "pairs"]]:
    """Returns (query, item) pairs that include each query's k best, ordered by query; never a pair that is not allowed.

    Scores are floats, or integers that stand for them. `slack` bounds how far the exact scores are from the given ones:
    k items have at least the threshold less one slack, and an item two slacks below the threshold scores less than each
    of them.

    >>> candidates_above_threshold(np.float32([[3, 1, 2], [0, 0, -np.inf]]), 1, np.float32([0, 0]))
    (array([0, 1, 1]), array([0, 0, 1]))
    """
    threshold = _reached_by_k(scores, k) - 2 * slack
    if scores.dtype.kind == "f":
        threshold = np.maximum(threshold, LOWEST)
    else:
        threshold = np.maximum(np.floor(threshold), lowest_score(scores.dtype) + 1).astype(scores.dtype)
    query_of, items = np.divmod(np.flatnonzero(scores >= threshold[:, None]), max(1, scores.shape[1]))
    return query_of, items


def _reached_by_k(scores: Shaped[np.ndarray, "queries items"], k: int) -> Shaped[np.ndarray, "queries"]:
    """Returns a score that at least k items of the query reach: the k-th highest maximum of a group of items, or the
    lowest score if there are fewer groups.

    With several times as many groups as results, this is nearly the k-th highest score.
    """
    queries, items = scores.shape
    width = min(MAX_GROUP, max(1, items // (4 * k)))
    groups = items // width
    if groups < k:
        return np.full(queries, lowest_score(scores.dtype), scores.dtype)
    # Adjacent rows are in different groups: where good items are adjacent, the threshold stays close.
    highest = scores[:, : groups * width].reshape(queries, width, groups).max(axis=1)
    highest.partition(groups - k, axis=1)
    return np.asarray(highest[:, groups - k])


def rescore_and_sort(
    vectors: Float32[np.ndarray, "items dim"],
    queries: Float32[np.ndarray, "queries dim"],
    *,
    query_of: Int64[np.ndarray, "pairs"],
    rows: Int64[np.ndarray, "pairs"],
    k: int,
    score: Score,
) -> TopK:
    """Returns the k best of each query's candidates: pair i is query `query_of[i]`, in ascending order, and item row
    `rows[i]`.
    """
    scores = np.empty(len(rows), np.float32)
    for part in chunks(len(rows), CHUNK_PAIRS):
        scores[part] = pair_scores(vectors.take(rows[part], axis=0), queries.take(query_of[part], axis=0), score)
    rank, row_of_rank = tie_order(max(1, len(vectors)))
    sizes = np.bincount(query_of, minlength=len(queries))
    keys = np.repeat(NO_KEY, len(queries) * max(k, int(sizes.max(initial=0)))).reshape(len(queries), -1)
    keys[query_of, np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)] = packed_keys(scores, rank[rows])
    keys = np.sort(keys, axis=1)[:, : -k - 1 : -1]
    counts = np.minimum(sizes, k)
    item_rows = np.where(np.arange(k) < counts[:, None], row_of_rank[keys & 0xFFFFFFFF], -1)
    return TopK(item_rows, packed_scores(keys), counts)


def rounding_slack(index: Index, queries: Float32[np.ndarray, "queries dim"]) -> Float32[np.ndarray, "queries"]:
    """Returns how far two orders of summation of a score can differ, per query.

    Two sums of `dim` float32 products differ by at most dim · 2^-23 · |q| · |v| (Higham 2002, section 3.1). A distance
    is summed as ‖q‖² - 2 q · v + ‖v‖², whose terms are at most (|q| + |v|)² together.
    """
    lengths = np.linalg.norm(queries, axis=1)
    size = (lengths + index.longest) ** 2 if index.score == "negative_distance" else lengths * index.longest
    return np.asarray((index.dim + 2) * 2.0**-23 * size, np.float32)


def _positions_in(rows: Int64[np.ndarray, "_"], excluded: Ragged) -> Ragged:
    """Returns the excluded items that are in the pool, as positions in the pool's rows."""
    if len(rows) == 0 or len(excluded.values) == 0:
        return excluded.where(np.zeros(len(excluded.values), bool))
    positions = np.minimum(np.searchsorted(rows, excluded.values), len(rows) - 1)
    return excluded.where(rows[positions] == excluded.values, positions)


def concatenate(parts: list[TopK]) -> TopK:
    """Returns the results of consecutive chunks of queries as one."""
    if len(parts) == 1:
        return parts[0]
    return TopK(
        np.concatenate([part.item_rows for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.counts for part in parts]),
    )
