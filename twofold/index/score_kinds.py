"""Score functions of a query and an item, in NumPy: the scores that a model was trained for."""

from typing import Literal

import numpy as np
from jaxtyping import Float32

Score = Literal["dot", "cosine", "negative_distance"]
"""Inner product; inner product of item vectors that have length 1; or -‖query - item‖²."""


def pair_scores(
    vectors: Float32[np.ndarray, "*items dim"], queries: Float32[np.ndarray, "*queries dim"], score: Score
) -> np.ndarray:
    """Returns the score of each pair, summed independently: unlike in a matrix product, its bits do not depend on
    the other pairs.
    """
    if score == "negative_distance":
        difference = vectors - queries
        return np.asarray(-np.vecdot(difference, difference))
    return np.asarray(np.vecdot(vectors, queries))


def items_as_products(vectors: Float32[np.ndarray, "items dim"], score: Score) -> Float32[np.ndarray, "items _"]:
    """Returns vectors whose inner product with those of `queries_as_products` is the score, up to rounding.

    -‖q - v‖² = (q, ‖q‖², 1) · (2v, -1, -‖v‖²). A score that is an inner product keeps its vectors.
    """
    if score != "negative_distance":
        return vectors
    ones = np.ones((len(vectors), 1), np.float32)
    return np.hstack([2 * vectors, -ones, -np.vecdot(vectors, vectors)[:, None]])


def queries_as_products(queries: Float32[np.ndarray, "queries dim"], score: Score) -> Float32[np.ndarray, "queries _"]:
    """Returns the query side of `items_as_products`."""
    if score != "negative_distance":
        return queries
    return np.hstack([queries, np.vecdot(queries, queries)[:, None], np.ones((len(queries), 1), np.float32)])
