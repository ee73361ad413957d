"""Training of the retriever `ials` by weighted alternating least squares, without gradient descent."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse
from threadpoolctl import threadpool_limits

from twofold.dataset.dataset import Dataset
from twofold.errors import DataError
from twofold.least_squares import Factors, LeastSquares, factorize
from twofold.model.fold_in import FoldIn, gram_matrix, save_factors
from twofold.progress import progress_bar
from twofold.recipe.retriever import Ials


def fit_factors(
    dataset: Dataset, config: Ials, *, seed: int, validate: Callable[[FoldIn], float] | Sequence[float], out: Path
) -> dict[str, Any]:
    """Fits vectors to the positives of the training window; writes them and the training log to `out`; returns facts.

    The last iteration is kept, because the loss falls at every step. Equal seeds give equal bytes for any number of
    threads. `validate` may be a list of known values, one per iteration.
    """
    likes = train_likes(dataset)
    records: list[dict[str, float]] = []
    with progress_bar("train", total=config.iterations, unit="iterations") as advance:

        def on_iteration(solved: FoldIn, loss: float, seconds: float) -> None:
            speed = round(likes.nnz / seconds)
            value = validate(solved) if callable(validate) else validate[len(records)]
            records.append({"epoch": len(records), "loss": loss, "validation": value, "examples_per_s": float(speed)})
            advance(1, f"loss {loss:.4f}")

        solved = solve(likes, config, seed=seed, on_iteration=on_iteration)
    save_factors(solved, out)
    pq.write_table(pa.Table.from_pylist(records), out / "training_log.parquet")
    return {
        "examples": int(likes.nnz),
        "parameters": solved.item_vectors.size,
        "best_epoch": len(records) - 1,
        "epochs": records,
    }


def train_likes(dataset: Dataset) -> scipy.sparse.csr_matrix:
    """Returns the matrix users with positives × items: sums of the weights of training positives, scaled to mean 1.

    Positives of weight 0 do not count. Raises DataError if there are none.
    """
    rows = dataset.examples["train"]
    positives = np.flatnonzero(rows.label & (rows.weight > 0))
    if not len(positives):
        raise DataError(
            "the training window holds no positive event of a weight above 0; alternating least squares needs at least "
            "one. Check prepare.positive, prepare.weight and prepare.split.train."
        )
    weight = rows.weight[positives] / rows.weight[positives].mean()
    users, user_index = np.unique(rows.user_rows[positives], return_inverse=True)
    shape = (len(users), len(dataset.items))
    return scipy.sparse.coo_matrix((weight, (user_index, rows.item_rows[positives])), shape=shape).tocsr()


def solve(
    likes: scipy.sparse.csr_matrix,
    config: Ials,
    *,
    seed: int,
    on_iteration: Callable[[FoldIn, float, float], None] = lambda solved, loss, seconds: None,
) -> FoldIn:
    """Returns the item vectors of `factorize`, with what solves a user.

    `on_iteration` receives the vectors so far, the mean loss per pair, and the seconds of the iteration.
    """
    constants = LeastSquares(config.dim, config.alpha, config.regularization, config.frequency_power, config.iterations)

    def report(factors: Factors, loss: float, seconds: float) -> None:
        on_iteration(fold_in_of(factors), loss, seconds)

    return fold_in_of(factorize(likes, constants, seed=seed, on_iteration=report))


def fold_in_of(factors: Factors) -> FoldIn:
    """Returns the item vectors with what solves a user; the vectors of the training users are left out.

    The vectors are rotated so that YᵀY is diagonal, as `FoldIn` requires; no score changes but by rounding.
    """
    constants = factors.constants
    with threadpool_limits(limits=1, user_api="blas"):  # the same bytes for any number of threads
        _, axes = np.linalg.eigh(gram_matrix(factors.item_vectors))
        rotated = (factors.item_vectors @ axes).astype(np.float32)  # products in float64
        default_vector = (factors.default_vector @ axes).astype(np.float32)
    return FoldIn(rotated, default_vector, constants.alpha, factors.user_penalty, constants.power)
