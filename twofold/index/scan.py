"""Vectors as they lie, mapped or in memory → the best of them by score: FAISS's scan, without an index that copies.

The same loops as `IndexFlatIP` and `IndexFlatL2`, on the caller's array. What lists are measured against: searches take
the product of `product.py`, which passes over what a query may not have.
"""

import numpy as np
from jaxtyping import Float32, Int64

from twofold.index.score_kinds import Score


def scan(
    vectors: Float32[np.ndarray, "items dim"], queries: Float32[np.ndarray, "queries dim"], count: int, *, score: Score
) -> tuple[Float32[np.ndarray, "queries count"], Int64[np.ndarray, "queries count"]]:
    """The `count` highest scores of each query, best first, and their rows; where there are fewer, -inf and -1."""
    import faiss

    vectors, queries = np.ascontiguousarray(vectors), np.ascontiguousarray(queries)
    found = np.empty((len(queries), count), np.float32)
    rows = np.empty((len(queries), count), np.int64)
    sizes = queries.shape[1], len(queries), len(vectors), count
    asked, held, scores, places = (faiss.swig_ptr(array) for array in (queries, vectors, found, rows))
    if score == "negative_distance":
        faiss.knn_L2sqr(asked, held, *sizes, scores, places)
        np.negative(found, out=found)
    else:
        faiss.knn_inner_product(asked, held, *sizes, scores, places)
    found[rows < 0] = -np.inf  # FAISS fills with the lowest finite number
    return found, rows
