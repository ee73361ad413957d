"""Vectors as they lie, mapped or in memory → the best of them by score: FAISS's scan, without an index that copies.

The same loops as `IndexFlatIP` and `IndexFlatL2`, on the caller's array: a mapped file is searched in place, and all
processes that map it share one copy.
"""

from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from twofold.index.eligible import Eligible
from twofold.index.scores import Score


def scan(
    vectors: Float32[np.ndarray, "items dim"],
    queries: Float32[np.ndarray, "queries dim"],
    count: int,
    *,
    score: Score,
    only: Int64[np.ndarray, "chosen"] | Eligible | None = None,
) -> tuple[Float32[np.ndarray, "queries count"], Int64[np.ndarray, "queries count"]]:
    """The `count` highest scores of each query, best first, and their rows; where there are fewer, -inf and -1.

    `only` restricts to the rows listed, which are picked out one by one, or to those of a bitmap, which is asked at
    each. FAISS has a fast path for many queries without it only.
    """
    import faiss

    vectors, queries = np.ascontiguousarray(vectors), np.ascontiguousarray(queries)
    found = np.empty((len(queries), count), np.float32)
    rows = np.empty((len(queries), count), np.int64)
    sizes = queries.shape[1], len(queries), len(vectors), count
    asked, held, scores, places = (faiss.swig_ptr(array) for array in (queries, vectors, found, rows))
    if score == "negative_distance":
        faiss.knn_L2sqr(asked, held, *sizes, scores, places, None, _selector(only))
        np.negative(found, out=found)
    else:
        faiss.knn_inner_product(asked, held, *sizes, scores, places, _selector(only))
    found[rows < 0] = -np.inf  # FAISS fills with the lowest finite number
    return found, rows


def _selector(only: Int64[np.ndarray, "chosen"] | Eligible | None) -> Any:
    """FAISS's form of it; it points into the caller's array, which outlives the scan."""
    import faiss

    match only:
        case None:
            return None
        case Eligible():
            return faiss.IDSelectorBitmap(only.bits)  # type: ignore[call-arg, arg-type]  # stubs know only C++'s form
        case rows:
            return faiss.IDSelectorArray(rows)
