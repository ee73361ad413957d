"""Weighted alternating least squares (iALS), by the library `implicit`: a retriever without gradient descent.

Minimises Σ c (p - x·y)² + λ (Σ‖x‖² + Σ‖y‖²) over all pairs of user and item (Hu, Koren, Volinsky, ICDM 2008, eq. 3),
where p = 1 and c = 1 + alpha · weight if the user liked the item in training, otherwise p = 0 and c = 1. Every
half-step is exact (Cholesky, not the library's three steps of conjugate gradients), so the loss cannot rise.

λ is not scaled by how often a user or an item was liked, which Rendle et al. (RecSys 2022) found to be better: the
library has one λ for all.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse
from implicit.cpu.als import AlternatingLeastSquares
from threadpoolctl import threadpool_limits

from twofold.dataset.dataset import Dataset
from twofold.errors import DataError
from twofold.model.fold_in import FoldIn, save_factors
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
    """Returns item vectors after `iterations` of a half-step for users and one for items, from small random vectors.

    `on_iteration` receives the vectors so far, the mean loss per pair, and the seconds of the iteration.
    """
    confidence = likes.astype(np.float32, copy=True)
    confidence.data = 1 + np.float32(config.alpha) * confidence.data
    # Each thread solves whole users; threads of BLAS inside of them slow it down, which the library warns of.
    with threadpool_limits(limits=1, user_api="blas"):
        als = AlternatingLeastSquares(
            factors=config.dim,
            regularization=config.regularization,
            alpha=1.0,  # the library's c is alpha · weight, below 1 for small weights
            iterations=config.iterations,
            use_cg=False,
            calculate_training_loss=True,
            random_state=seed,
        )

        def so_far() -> FoldIn:
            return FoldIn(als.item_factors, als.user_factors.mean(axis=0), config.alpha, config.regularization)

        als.fit(
            confidence, show_progress=False, callback=lambda _, seconds, loss: on_iteration(so_far(), loss, seconds)
        )
        return so_far()
