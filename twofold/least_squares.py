"""Weighted alternating least squares (iALS) of a matrix of likes, with NumPy.

Minimises Σ c (p - x·y)² + Σ λ_u ‖x_u‖² + Σ λ_i ‖y_i‖² over all pairs of user and item (Hu, Koren, Volinsky, ICDM 2008,
eq. 3), where p = 1 and c = 1 + alpha · weight if the user liked the item, otherwise p = 0 and c = 1. A half-step fixes
one side and takes `STEPS` steps of conjugate gradients for the other from where it was (Takács, Pilászy, Tikk, RecSys
2011), so the loss cannot rise.

The penalty λ of a row with likes of weight n is proportional to n^power: with a power of 0 all rows have the same
(ICDM 2008), with 1 rows of many likes are held as firmly as those of few (Zhou et al., AAIM 2008, section 3.1; Rendle
et al., RecSys 2022, section 3.3). Its mean over the rows of each side that have likes is `regularization`.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Final

import numpy as np
import scipy.sparse
from jaxtyping import Float32, Int32, Int64
from threadpoolctl import threadpool_limits

STEPS: Final = 3
_THREADS: Final = 2
_GROUP_LIKES: Final = 4096  # vectors gathered at once: 2 MB of 128 dimensions stay in the cache
_START: Final = 0.01


@dataclass(frozen=True)
class LeastSquares:
    """Constants of the factorization: see the beginning of the module."""

    dim: int
    alpha: float
    regularization: float
    power: float
    iterations: int


@dataclass(frozen=True)
class Factors:
    """Vectors of users and items whose inner product is a score; a row without likes has the zero vector."""

    user_vectors: Float32[np.ndarray, "users dim"]
    item_vectors: Float32[np.ndarray, "items dim"]
    constants: LeastSquares
    user_penalty: float
    """λ of a user with one like of weight 1; that of another is this times the sum of the user's weights ^ power."""

    @property
    def default_vector(self) -> Float32[np.ndarray, "dim"]:
        """Mean of the vectors of the users with likes: the vector of a user of whom nothing is known."""
        known = self.user_vectors[self.user_vectors.any(axis=1)]
        mean: Float32[np.ndarray, "dim"] = known.mean(axis=0) if len(known) else np.zeros(self.user_vectors.shape[1])
        return mean.astype(np.float32)


@dataclass(frozen=True)
class _Side:
    """One side of the matrix, users or items, prepared for its half-steps."""

    likes: scipy.sparse.csr_matrix
    penalty: Float32[np.ndarray, "_"]
    one_like: float
    """Penalty of a row with one like of weight 1."""
    groups: list[Int64[np.ndarray, "_"]]
    """Rows with about as many likes, which are solved at once."""


def factorize(
    likes: scipy.sparse.csr_matrix,
    constants: LeastSquares,
    *,
    seed: int = 0,
    on_iteration: Callable[[Factors, float, float], None] | None = None,
) -> Factors:
    """Returns the vectors after iterations of a half-step for users and one for items, from small random vectors.

    `likes` holds weights of users × items. Equal seeds give equal bytes for any number of threads. `on_iteration`
    receives the vectors so far, the mean loss per pair of user and item, and the seconds of the iteration.
    """
    likes = likes.astype(np.float32).tocsr()
    users, items = (_side(each, constants) for each in (likes, likes.T.tocsr()))
    draw = np.random.default_rng(seed)
    x, y = (np.float32(_START) * (draw.random((rows, constants.dim), dtype=np.float32) - 0.5) for rows in likes.shape)
    with threadpool_limits(limits=1, user_api="blas"):  # a thread solves whole groups
        for _ in range(constants.iterations):
            started = perf_counter()
            x = _half_step(users, x, y, constants.alpha)
            y = _half_step(items, y, x, constants.alpha)
            if on_iteration is not None:
                seconds = perf_counter() - started
                loss = _mean_loss(users, items, x, y, constants.alpha)
                on_iteration(Factors(x, y, constants, users.one_like), loss, seconds)
    return Factors(x, y, constants, users.one_like)


def _side(likes: scipy.sparse.csr_matrix, constants: LeastSquares) -> _Side:
    weights = np.asarray(likes.sum(axis=1), np.float64).reshape(-1)
    has_likes = np.diff(likes.indptr) > 0
    strength = np.where(has_likes, np.maximum(weights, 1e-9) ** constants.power, 1.0)
    one_like = constants.regularization / (strength[has_likes].mean() if has_likes.any() else 1.0)
    return _Side(likes, (one_like * strength).astype(np.float32), float(one_like), _groups(likes.indptr))


def _groups(offsets: Int32[np.ndarray, "_"]) -> list[Int64[np.ndarray, "_"]]:
    """Returns rows by their number of likes, cut so that a group padded to its longest row holds `_GROUP_LIKES`."""
    sizes = np.diff(offsets)
    order = np.argsort(sizes, kind="stable")
    order = order[sizes[order] > 0]
    groups, first = [], 0
    while first < len(order):
        ahead = sizes[order[first : first + _GROUP_LIKES]]
        fits = int(np.count_nonzero(np.arange(1, len(ahead) + 1) * ahead <= _GROUP_LIKES))
        groups.append(order[first : first + max(fits, 1)])
        first += max(fits, 1)
    return groups


def _half_step(
    side: _Side, own: Float32[np.ndarray, "_ dim"], other: Float32[np.ndarray, "_ dim"], alpha: float
) -> Float32[np.ndarray, "_ dim"]:
    """Returns better vectors of one side for fixed vectors of the other."""
    solved = np.zeros_like(own)
    solve = partial(_solve_group, side, own, other, other.T @ other, alpha)
    with ThreadPoolExecutor(_THREADS) as pool:  # NumPy's products leave the other thread free
        for rows, vectors in zip(side.groups, pool.map(solve, side.groups), strict=True):
            solved[rows] = vectors
    return solved


def _solve_group(
    side: _Side,
    own: Float32[np.ndarray, "_ dim"],
    other: Float32[np.ndarray, "_ dim"],
    gram: Float32[np.ndarray, "dim dim"],
    alpha: float,
    rows: Int64[np.ndarray, "batch"],
) -> Float32[np.ndarray, "batch dim"]:
    first, sizes = side.likes.indptr[rows], np.diff(side.likes.indptr)[rows]
    place = np.arange(sizes.max())
    is_like = place < sizes[:, None]
    at = np.where(is_like, first[:, None] + place, first[:, None])  # padding repeats a like, with weight 0
    liked = other[side.likes.indices[at]]  # (batch, length, dim)
    weight = np.where(is_like, np.float32(alpha) * side.likes.data[at], np.float32(0))
    penalty = side.penalty[rows, None]

    def product(vectors: Float32[np.ndarray, "batch dim"]) -> Float32[np.ndarray, "batch dim"]:
        scores = (liked @ vectors[:, :, None])[:, :, 0]
        return vectors @ gram + penalty * vectors + ((weight * scores)[:, None, :] @ liked)[:, 0]

    right = ((weight + is_like)[:, None, :].astype(np.float32) @ liked)[:, 0]
    return _conjugate_gradients(product, right, own[rows])


def _conjugate_gradients(
    product: Callable[[Float32[np.ndarray, "batch dim"]], Float32[np.ndarray, "batch dim"]],
    right: Float32[np.ndarray, "batch dim"],
    start: Float32[np.ndarray, "batch dim"],
) -> Float32[np.ndarray, "batch dim"]:
    """Returns `start` moved by `STEPS` steps towards the solutions of product(x) = right, each row for itself."""
    tiny = np.float32(1e-30)  # keeps a row that is solved already where it is
    solution, residual = start.copy(), right - product(start)
    direction, squared = residual.copy(), (residual * residual).sum(axis=1, keepdims=True)
    for _ in range(STEPS):
        image = product(direction)
        step = squared / np.maximum((direction * image).sum(axis=1, keepdims=True), tiny)
        solution += step * direction
        residual -= step * image
        before, squared = squared, (residual * residual).sum(axis=1, keepdims=True)
        direction = residual + squared / np.maximum(before, tiny) * direction
    return solution


def _mean_loss(
    users: _Side,
    items: _Side,
    x: Float32[np.ndarray, "users dim"],
    y: Float32[np.ndarray, "items dim"],
    alpha: float,
) -> float:
    loss = float(np.sum((x.T @ x).astype(np.float64) * (y.T @ y)))  # (x·y)² of all pairs, as if nobody liked anything
    for rows in users.groups:
        part = users.likes[rows]
        scores = np.einsum("pd,pd->p", x[np.repeat(rows, np.diff(part.indptr))], y[part.indices]).astype(np.float64)
        loss += float(np.sum((1 + alpha * part.data) * (1 - scores) ** 2 - scores**2))
    for side, vectors in ((users, x), (items, y)):
        loss += float(side.penalty @ (vectors * vectors).sum(axis=1))
    return loss / (len(x) * len(y))
