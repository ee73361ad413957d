"""A user's vector, solved from the vectors of the items they liked: NumPy alone, so that judging and serving share it.

Weighted alternating least squares holds a vector for every user it met. They know nothing of what came later, and a
user who was not there has none. So nobody is judged or served by them: with the item vectors Y held fixed, the user's
half-step is solved anew from the history at the moment asked for (Hu, Koren, Volinsky, ICDM 2008, eq. 4):

    x = (YᵀY + Yᵀ(C - I)Y + λI)⁻¹ Yᵀ C p,    c = 1 + alpha · times liked,    p = 1 where liked

What it does not do: weigh the positives of a history. Each counts as one of mean weight.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, Literal

import numpy as np
from jaxtyping import Float32, Float64, Int32

from twofold.dataset.tower_inputs import Inputs
from twofold.ragged import chunks
from twofold.run_folder import write_json

FOLD_IN: Final = "fold_in.json"
VECTORS: Final = "item_vectors.npy"
_CELLS: Final = 2**21  # numbers gathered or solved at once: 16 MB


@dataclass(frozen=True)
class FoldIn:
    """Item vectors and what turns a history into a vector of the same space; the score is their inner product.

    An item without training positives has the zero vector, and scores 0 with everyone: behind all that the history
    speaks for. `nobody` is what someone without a history asks with: the mean of the training users' vectors.
    """

    inputs: ClassVar[tuple[str, ...]] = ("positives",)
    """The one feature it reads: table rows, item row + 1, 0 where there is none."""
    score: ClassVar[Literal["dot"]] = "dot"

    item_vectors: Float32[np.ndarray, "items dim"]
    nobody: Float32[np.ndarray, "dim"]
    alpha: float
    regularization: float
    _everywhere: Float64[np.ndarray, "dim dim"] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """YᵀY + λI, which every user shares."""
        gram = self.regularization * np.eye(self.dim)
        for part in chunks(len(self.item_vectors), _CELLS // self.dim):
            held = self.item_vectors[part].astype(np.float64)
            gram += held.T @ held
        object.__setattr__(self, "_everywhere", gram)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self.item_vectors.shape[1])

    def vectors(self, inputs: Inputs) -> Float32[np.ndarray, "batch dim"]:
        """One vector a line. The order of a history does not matter; an item liked twice weighs twice."""
        history = np.sort(inputs["positives"], axis=1)  # none first; a repeated item beside itself
        size = max(1, _CELLS // (self.dim * max(history.shape[1], self.dim)))
        parts = [self._solved(history[part]) for part in chunks(len(history), size)]
        return np.concatenate([np.empty((0, self.dim), np.float32), *parts])

    def _solved(self, history: Int32[np.ndarray, "batch length"]) -> Float32[np.ndarray, "batch dim"]:
        longest = int((history > 0).sum(axis=1).max())
        history = history[:, history.shape[1] - longest :]
        liked = history > 0
        is_first = liked & (np.diff(history, axis=1, prepend=0) > 0)
        weight = self.alpha * liked  # C - I; none weighs nothing, so its row, -1, may be anything
        held = self.item_vectors[history - 1].astype(np.float64)  # (batch, length, dim)
        left = self._everywhere + np.swapaxes(held * weight[:, :, None], 1, 2) @ held  # (batch, dim, dim)
        right = ((weight + is_first)[:, None, :] @ held)[:, 0]  # (batch, dim)
        solved: np.ndarray = np.linalg.solve(left, right[:, :, None])[:, :, 0].astype(np.float32)
        solved[~right.any(axis=1)] = self.nobody
        return solved


def save_factors(fold_in: FoldIn, folder: Path) -> None:
    """Writes two files that `load_factors` reads."""
    np.save(folder / VECTORS, fold_in.item_vectors)
    save_fold_in(fold_in, folder)


def load_factors(folder: Path) -> FoldIn:
    """Reads what `save_factors` wrote."""
    return load_fold_in(folder, np.load(folder / VECTORS, allow_pickle=False))


def save_fold_in(fold_in: FoldIn, folder: Path) -> None:
    """Writes all but the item vectors: beside an index, which has them."""
    write_json(
        folder / FOLD_IN,
        {
            "alpha": fold_in.alpha,
            "regularization": fold_in.regularization,
            "nobody": fold_in.nobody.tolist(),
        },
    )


def load_fold_in(folder: Path, item_vectors: Float32[np.ndarray, "items dim"]) -> FoldIn:
    """Reads what `save_fold_in` wrote, over the vectors it belongs to; ValueError if their widths differ."""
    held = json.loads((folder / FOLD_IN).read_text())
    nobody = np.array(held["nobody"], np.float32)
    if len(nobody) != item_vectors.shape[1]:
        raise ValueError(f"{FOLD_IN} is of {len(nobody)} dimensions, the item vectors of {item_vectors.shape[1]}")
    return FoldIn(item_vectors, nobody, held["alpha"], held["regularization"])
