"""Weighted alternating least squares: a retriever that is solved, not descended, on the library `implicit`.

Minimises Σ c (p - x·y)² + λ (Σ‖x‖² + Σ‖y‖²) over all pairs of user and item (Hu, Koren, Volinsky, ICDM 2008, eq. 3),
p being 1 where the user liked the item in training, c = 1 + alpha · weight there and 1 elsewhere. Every half-step is
exact (Cholesky, not the library's three steps of conjugate gradients), so the loss cannot rise.

What it does not do: scale λ by how often a user or an item was liked, as Rendle et al. (RecSys 2022) found to be
better. The library has one λ for all.
"""

from collections.abc import Callable
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
    dataset: Dataset, asked: Ials, *, seed: int, validate: Callable[[FoldIn], float], out: Path
) -> dict[str, Any]:
    """Solves for the training window's positives, writes vectors and training log into `out`, returns facts.

    The last iteration is kept: the loss falls at every step. Equal seeds give equal bytes, however many threads solve.
    """
    likes = train_likes(dataset)
    records: list[dict[str, float]] = []
    with progress_bar("train", total=asked.iterations, unit="iterations") as advance:

        def tell(solved: FoldIn, loss: float, seconds: float) -> None:
            speed = round(likes.nnz / seconds)
            records.append(
                {"epoch": len(records), "loss": loss, "validation": validate(solved), "examples_per_s": float(speed)}
            )
            advance(1, f"loss {loss:.4f}")

        solved = solve(likes, asked, seed=seed, tell=tell)
    save_factors(solved, out)
    pq.write_table(pa.Table.from_pylist(records), out / "training_log.parquet")
    return {
        "examples": int(likes.nnz),
        "parameters": solved.item_vectors.size,
        "best_epoch": len(records) - 1,
        "epochs": records,
    }


def train_likes(dataset: Dataset) -> scipy.sparse.csr_matrix:
    """Users with positives × items: the sum of the weights of the pair's training positives, whose mean is 1.

    Positives of weight 0 are none. DataError where there is not one.
    """
    rows = dataset.examples["train"]
    lines = np.flatnonzero(rows.label & (rows.weight > 0))
    if not len(lines):
        raise DataError(
            "the training window holds no positive event of a weight above 0; alternating least squares needs at least "
            "one. Check prepare.positive, prepare.weight and prepare.split.train."
        )
    weight = rows.weight[lines] / rows.weight[lines].mean()
    users, line = np.unique(rows.user_rows[lines], return_inverse=True)
    shape = (len(users), len(dataset.items))
    return scipy.sparse.coo_matrix((weight, (line, rows.item_rows[lines])), shape=shape).tocsr()


def solve(
    likes: scipy.sparse.csr_matrix,
    asked: Ials,
    *,
    seed: int,
    tell: Callable[[FoldIn, float, float], None] = lambda solved, loss, seconds: None,
) -> FoldIn:
    """Item vectors after `asked.iterations` of a users' and an items' half-step each, from small random ones.

    `tell` hears of every iteration: what is solved so far, the mean loss of a pair, and the seconds it took.
    """
    confidence = likes.astype(np.float32, copy=True)
    confidence.data = 1 + np.float32(asked.alpha) * confidence.data
    # Each thread solves whole users; threads of BLAS inside of them slow it down, which the library warns of.
    with threadpool_limits(limits=1, user_api="blas"):
        als = AlternatingLeastSquares(
            factors=asked.dim,
            regularization=asked.regularization,
            alpha=1.0,  # the library's c is alpha · weight, below 1 for small weights
            iterations=asked.iterations,
            use_cg=False,
            calculate_training_loss=True,
            random_state=seed,
        )

        def so_far() -> FoldIn:
            return FoldIn(als.item_factors, als.user_factors.mean(axis=0), asked.alpha, asked.regularization)

        als.fit(confidence, show_progress=False, callback=lambda _, seconds, loss: tell(so_far(), loss, seconds))
        return so_far()
