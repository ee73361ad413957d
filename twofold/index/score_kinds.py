"""How a query and an item compare: the scores that a model was trained for, in NumPy."""

from typing import Literal

import numpy as np
from jaxtyping import Float32

Score = Literal["dot", "cosine", "negative_distance"]
"""Inner product; the same, of item vectors that are promised to be of length 1; or -‖query - item‖²."""


def pair_scores(
    vectors: Float32[np.ndarray, "*items dim"], queries: Float32[np.ndarray, "*queries dim"], score: Score
) -> np.ndarray:
    """Scores pair by pair, each summed by itself: the same bits for one pair or a million, unlike a product."""
    if score == "negative_distance":
        apart = vectors - queries
        return np.asarray(-np.vecdot(apart, apart))
    return np.asarray(np.vecdot(vectors, queries))


def items_as_products(vectors: Float32[np.ndarray, "items dim"], score: Score) -> Float32[np.ndarray, "items wide"]:
    """Vectors whose inner product with those of `queries_as_products` is the score, up to rounding.

    -‖q - v‖² = (q, ‖q‖², 1) · (2v, -1, -‖v‖²): the same for a score that is an inner product.
    """
    if score != "negative_distance":
        return vectors
    ones = np.ones((len(vectors), 1), np.float32)
    return np.hstack([2 * vectors, -ones, -np.vecdot(vectors, vectors)[:, None]])


def queries_as_products(
    queries: Float32[np.ndarray, "queries dim"], score: Score
) -> Float32[np.ndarray, "queries wide"]:
    """See `items_as_products`."""
    if score != "negative_distance":
        return queries
    return np.hstack([queries, np.vecdot(queries, queries)[:, None], np.ones((len(queries), 1), np.float32)])
