"""Fold-in of users for iALS: a user's vector solved from the vectors of the liked items, with NumPy alone, so that
evaluation and serving share it.

Weighted alternating least squares has a vector for every user of the training window. These vectors miss all later
events, and a new user has none, so they are used neither in evaluation nor in serving. Instead, with the item vectors Y
fixed, the user's half-step is solved again from the history at request time (Hu, Koren, Volinsky, ICDM 2008, eq. 4):

    x = (YᵀY + Yᵀ(C - I)Y + λI)⁻¹ Yᵀ C p,    c = 1 + alpha · times liked,    p = 1 where liked

Positives of a history are not weighted: each counts as an event of mean weight.
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
CHUNK_ELEMENTS: Final = 2**21  # numbers gathered or solved at once: 16 MB


@dataclass(frozen=True)
class FoldIn:
    """Item vectors and the solver that turns a history into a user vector; the score is their inner product.

    An item without training positives has the zero vector and scores 0 for every user. `default_vector` is the vector
    of a user without a history: the mean of the training users' vectors.
    """

    inputs: ClassVar[tuple[str, ...]] = ("positives",)
    """Name of the only input: table rows (item row + 1), padded with 0."""
    score: ClassVar[Literal["dot"]] = "dot"

    item_vectors: Float32[np.ndarray, "items dim"]
    default_vector: Float32[np.ndarray, "dim"]
    alpha: float
    regularization: float
    _gram: Float64[np.ndarray, "dim dim"] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Computes YᵀY + λI, which is the same for every user."""
        gram = self.regularization * np.eye(self.dim)
        for part in chunks(len(self.item_vectors), CHUNK_ELEMENTS // self.dim):
            vectors = self.item_vectors[part].astype(np.float64)
            gram += vectors.T @ vectors
        object.__setattr__(self, "_gram", gram)

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return int(self.item_vectors.shape[1])

    def vectors(self, inputs: Inputs) -> Float32[np.ndarray, "batch dim"]:
        """Returns one vector per history. The order does not matter; an item liked twice has twice the weight."""
        history = np.sort(inputs["positives"], axis=1)  # padding first, equal items adjacent
        size = max(1, CHUNK_ELEMENTS // (self.dim * max(history.shape[1], self.dim)))
        parts = [self._solved(history[part]) for part in chunks(len(history), size)]
        return np.concatenate([np.empty((0, self.dim), np.float32), *parts])

    def _solved(self, history: Int32[np.ndarray, "batch length"]) -> Float32[np.ndarray, "batch dim"]:
        longest = int((history > 0).sum(axis=1).max())
        history = history[:, history.shape[1] - longest :]
        liked = history > 0
        is_first = liked & (np.diff(history, axis=1, prepend=0) > 0)
        weight = self.alpha * liked  # C - I; padding has weight 0, so that any vector may stand at its row -1
        liked_vectors = self.item_vectors[history - 1].astype(np.float64)  # (batch, length, dim)
        left = self._gram + np.swapaxes(liked_vectors * weight[:, :, None], 1, 2) @ liked_vectors  # (batch, dim, dim)
        right = ((weight + is_first)[:, None, :] @ liked_vectors)[:, 0]  # (batch, dim)
        solved: np.ndarray = np.linalg.solve(left, right[:, :, None])[:, :, 0].astype(np.float32)
        solved[~right.any(axis=1)] = self.default_vector
        return solved


def save_factors(fold_in: FoldIn, folder: Path) -> None:
    """Writes the two files that `load_factors` reads."""
    np.save(folder / VECTORS, fold_in.item_vectors)
    save_fold_in(fold_in, folder)


def load_factors(folder: Path) -> FoldIn:
    """Reads the files that `save_factors` wrote."""
    return load_fold_in(folder, np.load(folder / VECTORS, allow_pickle=False))


def save_fold_in(fold_in: FoldIn, folder: Path) -> None:
    """Writes all but the item vectors, for a folder whose index has them."""
    write_json(
        folder / FOLD_IN,
        {
            "alpha": fold_in.alpha,
            "regularization": fold_in.regularization,
            "nobody": fold_in.default_vector.tolist(),
        },
    )


def load_fold_in(folder: Path, item_vectors: Float32[np.ndarray, "items dim"]) -> FoldIn:
    """Reads the file that `save_fold_in` wrote, for these item vectors; ValueError if the dimensions differ."""
    saved = json.loads((folder / FOLD_IN).read_text())
    default_vector = np.array(saved["nobody"], np.float32)
    if len(default_vector) != item_vectors.shape[1]:
        raise ValueError(
            f"{FOLD_IN} has {len(default_vector)} dimensions, the item vectors have {item_vectors.shape[1]}"
        )
    return FoldIn(item_vectors, default_vector, saved["alpha"], saved["regularization"])
