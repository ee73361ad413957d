"""Retrievers that read nothing but liked items: iALS with fold-in of users, and item-item models of low rank.

Both are computed with NumPy alone, so that evaluation and serving share them.

**iALS.** Weighted alternating least squares has a vector for every user of the training window. These vectors miss all
later events, and a new user has none, so they are used neither in evaluation nor in serving. Instead, with the item
vectors Y fixed, the user's half-step is solved again from the history at request time (Hu, Koren, Volinsky, ICDM 2008,
eq. 4):

    x = (YᵀY + Yᵀ(C - I)Y + λI)⁻¹ Yᵀ C p,    c = 1 + alpha · times liked,    p = 1 where liked,

with λ = regularization · (number of likes)^power, as in `twofold.least_squares`.

Positives of a history are not weighted: each counts as an event of mean weight.

Only C depends on which items were liked. The vectors are therefore kept in a basis in which YᵀY is diagonal (scores do
not depend on the basis), so that D = YᵀY + λI is inverted at once. With U, the vectors of the n items of a history,

    x = D⁻¹ Uᵀ (I + alpha · U D⁻¹ Uᵀ)⁻¹ r,    r = alpha + 1 for the first of equal items, alpha for its repeats,

which is a system of n unknowns instead of one an axis (the push-through identity; Woodbury, 1950). With 256 dimensions
and 30 items a user takes an eighth of the time.

**Item-item models** (EASE, item-kNN) score an item by the sum of a column of weights W over the liked items. With
W ≈ L·Rᵀ of low rank, a user's vector is the sum of the rows of L, divided by the root of their number, and an item's
vector is its row of R, so that an index serves them like towers. The root, a constant for each user, changes no order;
it keeps the scores of users with many likes in proportion to those of other models in a sum.

**Recency** is one more number of each vector: 1 for a user, `RecencyPrior.values` for an item.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count, takewhile
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, assert_never

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64

from twofold.dataset.tower_inputs import LIKED, Inputs
from twofold.ragged import chunks
from twofold.run_folder import numbered, write_json

FOLD_IN: Final = "fold_in.json"
LEFT: Final = "left_vectors.npy"
VECTORS: Final = "item_vectors.npy"
CHUNK_ELEMENTS: Final = 2**21  # numbers gathered or solved at once: 16 MB
_ROUNDING: Final = 1e-4  # of an inner product of two columns of float32, relative to their lengths


@dataclass(frozen=True)
class RecencyPrior:
    """A part of the score that is equal for all users: the sum of weight · log(1 + positives of the item in the last
    days) over some numbers of days.
    """

    weights: tuple[float, ...]
    days: tuple[int, ...]

    def values(self, counts: Sequence[Int64[np.ndarray, "items"]]) -> Float32[np.ndarray, "items"]:
        """Returns the sum for each item, from its number of positives in the last `days` days, for each of `days`."""
        return np.asarray(sum(w * np.log1p(n) for w, n in zip(self.weights, counts, strict=True)), np.float32)


@dataclass(frozen=True)
class FoldIn:
    """Item vectors and the solver that turns a history into a user vector; the score is their inner product.

    The basis of the vectors is one in which YᵀY is diagonal: `fold_in_of` in `twofold.train.als` rotates them there.
    An item without training positives has the zero vector and scores 0 for every user. `default_vector` is the vector
    of a user without a history: the mean of the training users' vectors.
    """

    inputs: ClassVar[tuple[str, ...]] = ("positives",)
    """Name of the only input: table rows (item row + 1), padded with 0; see `LIKED`."""
    score: ClassVar[Literal["dot"]] = "dot"

    item_vectors: Float32[np.ndarray, "items dim"]
    default_vector: Float32[np.ndarray, "dim"]
    alpha: float
    regularization: float
    """λ of a user with one like."""
    power: float = 0.0
    prior: RecencyPrior | None = None
    weight: float = 1.0
    """Factor of the user vectors, and so of all scores: the weight of this model in a sum of scores."""
    _gram: Float64[np.ndarray, "dim"] = field(init=False, repr=False, compare=False)
    """Diagonal of YᵀY, which is the same for every user."""

    def __post_init__(self) -> None:
        """Computes YᵀY; ValueError if it is not diagonal."""
        gram = gram_matrix(self.item_vectors)
        diagonal = np.diag(gram).copy()
        bound = _ROUNDING * np.sqrt(np.outer(diagonal, diagonal)) + _ROUNDING**2 * diagonal.sum()
        if (np.abs(gram - np.diag(diagonal)) > bound).any():
            raise ValueError("YᵀY of the item vectors is not diagonal, as iALS needs it to solve a user's vector")
        object.__setattr__(self, "_gram", diagonal)

    @property
    def dim(self) -> int:
        """Dimension of the vectors, the prior included."""
        return _dim(self.item_vectors, self.prior)

    def vectors(self, inputs: Inputs) -> Float32[np.ndarray, "batch _"]:
        """Returns one vector per history. The order does not matter; an item liked twice has twice the weight."""
        history = np.sort(_liked(inputs), axis=1)  # padding first, equal items adjacent
        dim = self.item_vectors.shape[1]
        size = max(1, CHUNK_ELEMENTS // (dim * max(history.shape[1], dim)))
        parts = [self._solved(history[part]) for part in chunks(len(history), size)]
        solved = np.concatenate([np.empty((0, dim), np.float32), *parts])
        return _weighted(solved, self.prior, self.weight)

    def _solved(self, history: Int32[np.ndarray, "batch length"]) -> Float32[np.ndarray, "batch dim"]:
        longest = int((history > 0).sum(axis=1).max())
        history = history[:, history.shape[1] - longest :]
        liked = history > 0
        liked_vectors = self.item_vectors[history - 1].astype(np.float64)  # (batch, length, dim)
        liked_vectors *= liked[:, :, None]  # padding read row -1
        right = self.alpha * liked + _first_of_equals(history)  # (batch, length)
        likes = np.maximum(liked.sum(axis=1), 1).astype(np.float64)
        diagonal = self._gram + (self.regularization * likes**self.power)[:, None]  # (batch, dim)
        solve = _solve_by_items if longest < self.item_vectors.shape[1] else _solve_by_axes
        solved = solve(diagonal, liked_vectors, right, self.alpha).astype(np.float32)
        solved[~solved.any(axis=1)] = self.default_vector
        return solved


def gram_matrix(vectors: Float32[np.ndarray, "_ dim"]) -> Float64[np.ndarray, "dim dim"]:
    """Returns the inner products of the columns."""
    dim = vectors.shape[1]
    gram = np.zeros((dim, dim))
    for part in chunks(len(vectors), CHUNK_ELEMENTS // dim):
        rows = vectors[part].astype(np.float64)
        gram += rows.T @ rows
    return gram


def _solve_by_items(
    diagonal: Float64[np.ndarray, "batch dim"],
    liked_vectors: Float64[np.ndarray, "batch length dim"],
    right: Float64[np.ndarray, "batch length"],
    alpha: float,
) -> Float64[np.ndarray, "batch dim"]:
    """Solves (D + alpha · UᵀU) x = Uᵀ r as a system of the history's length."""
    scaled = liked_vectors / diagonal[:, None, :]
    left = alpha * (scaled @ np.swapaxes(liked_vectors, 1, 2))  # (batch, length, length)
    np.einsum("bii->bi", left)[...] += 1.0  # + I, in place
    solved: np.ndarray = np.linalg.solve(left, right[:, :, None])
    return (np.swapaxes(solved, 1, 2) @ scaled)[:, 0]


def _solve_by_axes(
    diagonal: Float64[np.ndarray, "batch dim"],
    liked_vectors: Float64[np.ndarray, "batch length dim"],
    right: Float64[np.ndarray, "batch length"],
    alpha: float,
) -> Float64[np.ndarray, "batch dim"]:
    """Solves (D + alpha · UᵀU) x = Uᵀ r as a system of the dimension."""
    left = alpha * (np.swapaxes(liked_vectors, 1, 2) @ liked_vectors)  # (batch, dim, dim)
    np.einsum("bii->bi", left)[...] += diagonal  # + D, in place
    solved: np.ndarray = np.linalg.solve(left, np.swapaxes(right[:, None, :] @ liked_vectors, 1, 2))
    return solved[:, :, 0]


@dataclass(frozen=True)
class ItemSums:
    """An item-item model of low rank: a user's vector is the sum of the left vectors of the liked items, over the root
    of their number. Vectors of width 0 leave the recency prior alone.
    """

    inputs: ClassVar[tuple[str, ...]] = ("positives",)
    """Name of the only input: table rows (item row + 1), padded with 0; see `LIKED`."""
    score: ClassVar[Literal["dot"]] = "dot"

    item_vectors: Float32[np.ndarray, "items dim"]
    left_vectors: Float32[np.ndarray, "items dim"]
    prior: RecencyPrior | None = None
    weight: float = 1.0
    """Factor of the user vectors, as in `FoldIn`."""

    @property
    def dim(self) -> int:
        """Dimension of the vectors, the prior included."""
        return _dim(self.item_vectors, self.prior)

    def vectors(self, inputs: Inputs) -> Float32[np.ndarray, "batch _"]:
        """Returns one vector per history; an item that was liked several times counts once."""
        history = np.sort(_liked(inputs), axis=1)  # padding first, equal items adjacent
        is_first = _first_of_equals(history)
        sums = np.zeros((len(history), self.left_vectors.shape[1]), np.float32)
        for part in chunks(len(history), max(1, CHUNK_ELEMENTS // max(1, history.shape[1] * sums.shape[1]))):
            rows = self.left_vectors[history[part] - 1]  # (chunk, length, dim)
            sums[part] = (is_first[part].astype(np.float32)[:, None, :] @ rows)[:, 0]
        sums /= np.sqrt(np.maximum(is_first.sum(axis=1), 1), dtype=np.float32)[:, None]
        return _weighted(sums, self.prior, self.weight)


HistoryModel = FoldIn | ItemSums


def _dim(item_vectors: Float32[np.ndarray, "items dim"], prior: RecencyPrior | None) -> int:
    return int(item_vectors.shape[1]) + (prior is not None)


def _liked(inputs: Inputs) -> Int32[np.ndarray, "batch length"]:
    """Returns the history as table rows of items, though towers may read rows that several items share."""
    history: Int32[np.ndarray, "batch length"] = inputs[LIKED] if LIKED in inputs else inputs["positives"]
    return history


def _first_of_equals(history: Int32[np.ndarray, "batch length"]) -> Bool[np.ndarray, "batch length"]:
    """Marks the first entry of every liked item in sorted histories, whose padding comes first."""
    return np.diff(history, axis=1, prepend=0) > 0


def _weighted(
    vectors: Float32[np.ndarray, "batch dim"], prior: RecencyPrior | None, weight: float
) -> Float32[np.ndarray, "batch _"]:
    if prior is not None:
        vectors = np.concatenate([vectors, np.ones((len(vectors), 1), np.float32)], axis=1)
    return vectors * np.float32(weight)


def save_factors(model: HistoryModel, folder: Path, *, number: int = 0) -> None:
    """Writes the files that `load_factors` reads; `number` counts the models of one retriever."""
    np.save(folder / numbered(VECTORS, number), model.item_vectors)
    save_fold_in(model, folder, number=number)


def load_factors(folder: Path) -> list[HistoryModel]:
    """Reads the models whose files `save_factors` wrote; ValueError if the dimensions differ."""
    return [
        _model(folder, number, saved, np.load(folder / numbered(VECTORS, number), allow_pickle=False))
        for number, saved in enumerate(_saved_models(folder))
    ]


def save_fold_in(model: HistoryModel, folder: Path, *, number: int = 0) -> None:
    """Writes all but the item vectors, for a folder whose index has them."""
    prior = None if model.prior is None else asdict(model.prior)
    match model:
        case FoldIn():
            own = {
                "alpha": model.alpha,
                "regularization": model.regularization,
                "power": model.power,
                "nobody": model.default_vector.tolist(),
            }
        case ItemSums():
            own = {}
            np.save(folder / numbered(LEFT, number), model.left_vectors)
        case _:
            assert_never(model)
    saved = {**own, "dim": model.dim, "prior": prior, "weight": model.weight}
    write_json(folder / numbered(FOLD_IN, number), saved)


def load_fold_ins(folder: Path, item_vectors: Float32[np.ndarray, "items dim"]) -> list[HistoryModel]:
    """Reads the models that `save_fold_in` wrote, whose item vectors are columns of an index, one after another;
    ValueError if there are more or fewer columns.

    The last column of each is its recency prior, if it has one.
    """
    found, rest, models = list[HistoryModel](), item_vectors, _saved_models(folder)
    for number, saved in enumerate(models):
        own, rest = (rest, rest) if number == len(models) - 1 else np.split(rest, [saved["dim"]], axis=1)
        found.append(_model(folder, number, saved, own if saved["prior"] is None else own[:, :-1]))
    return found


def _saved_models(folder: Path) -> list[dict[str, Any]]:
    """Returns what `save_fold_in` wrote of each model in a folder."""
    paths = takewhile(Path.exists, (folder / numbered(FOLD_IN, number) for number in count()))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def _model(
    folder: Path, number: int, saved: Mapping[str, Any], item_vectors: Float32[np.ndarray, "items dim"]
) -> HistoryModel:
    """Returns a saved model with its item vectors, without the column of the prior."""
    constants = saved["prior"]
    prior = None if constants is None else RecencyPrior(tuple(constants["weights"]), tuple(constants["days"]))
    width = saved["dim"] - (prior is not None)
    if width != item_vectors.shape[1]:
        raise ValueError(f"{FOLD_IN} has {width} dimensions, the item vectors have {item_vectors.shape[1]}")
    if "nobody" not in saved:
        left = np.load(folder / numbered(LEFT, number), mmap_mode="r", allow_pickle=False)
        return ItemSums(item_vectors, left, prior, saved["weight"])
    unknown, weight = np.array(saved["nobody"], np.float32), saved["weight"]
    return FoldIn(item_vectors, unknown, saved["alpha"], saved["regularization"], saved["power"], prior, weight)
