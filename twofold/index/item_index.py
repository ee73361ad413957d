"""The index of item vectors: built, written to a folder, and loaded as memory-mapped files.

Up to `MAX_FLAT` items the index is flat, and a search scans all vectors. Above, the vectors are also sorted into the
lists of an IVF index (`ivf.py`).
"""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32

from twofold.errors import RunError
from twofold.index.item_products import ItemProducts, load_item_products, save_item_products
from twofold.index.ivf import LISTS, CalibrationPoint, IvfIndex, build_ivf, load_ivf
from twofold.index.quantized_products import (
    QuantizedProducts,
    load_quantized_products,
    quantize_items,
    save_quantized_products,
)
from twofold.index.score_kinds import Score
from twofold.run_folder import write_json

MAX_FLAT: Final = 300_000  # items of a flat index: an exact search of them takes 5 ms on one busy core
CALIBRATION_QUERIES: Final = 512  # items that the IVF lists are calibrated with, beside as many users
MAX_LENGTH: Final = 1e18  # of a vector: the square of the sum of two lengths is finite in 32 bits
VECTORS: Final = "item_vectors.npy"
FACTS: Final = "index.json"


@dataclass(frozen=True)
class Index:
    """Item vectors, one row per item, ready to be searched; a loaded index is a memory-mapped file."""

    vectors: Float32[np.ndarray, "items dim"]
    score: Score
    longest: float
    """Length of the longest vector: bounds the rounding error of a score."""
    ivf: IvfIndex | None = None
    products: QuantizedProducts | ItemProducts | None = None
    """Products of queries with all items; `None` means that NumPy computes them."""

    def __len__(self) -> int:
        """Returns the number of items."""
        return len(self.vectors)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self.vectors.shape[1])

    @cached_property
    def lengths(self) -> Float32[np.ndarray, "items"]:
        """Length of each vector."""
        return np.asarray(np.linalg.norm(self.vectors, axis=1))

    @cached_property
    def squares(self) -> Float32[np.ndarray, "items"] | None:
        """Squared length ‖v‖² of each vector where the score is a distance; `None` means it is not."""
        return np.vecdot(self.vectors, self.vectors) if self.score == "negative_distance" else None

    @property
    def facts(self) -> dict[str, Any]:
        """Content of index.json: sizes, score, and the calibration of the IVF lists."""
        facts: dict[str, Any] = {"score": self.score, "items": len(self), "dim": self.dim, "longest": self.longest}
        if self.ivf is not None:
            facts["lists"] = {
                "number": self.ivf.faiss_index.nlist,
                "queries": self.ivf.num_queries,
                "measured": [asdict(each) for each in self.ivf.calibration],
            }
        return facts


def build_index(
    vectors: Float32[np.ndarray, "items dim"],
    *,
    score: Score = "cosine",
    queries: Float32[np.ndarray, "_ dim"] | None = None,
    max_flat: int = MAX_FLAT,
) -> Index:
    """Returns an index in which row i is item row i.

    Above `max_flat` items, IVF lists are built and calibrated with `queries` (vectors of users) and with items. Raises
    RunError for NaN, infinity, or cosine vectors whose length is not 1.
    """
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise RunError(
            f"{int((~finite).sum()):,} of {len(vectors):,} item vectors hold NaN or infinity (first: item row {row}): "
            f"the model has diverged. Lower train.learning_rate and run again."
        )
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(vectors, axis=1)
    if len(vectors) and lengths.max() > MAX_LENGTH:
        row = int(np.argmax(lengths))
        raise RunError(
            f"the vector of item row {row} has length {lengths[row]:.3g}; scores of vectors longer than {MAX_LENGTH:g} "
            f"are infinite in 32 bits: the model has diverged. Lower train.learning_rate and run again."
        )
    if score == "cosine" and (np.abs(lengths - 1) > 1e-3).any():
        row = int(np.argmax(np.abs(lengths - 1)))
        raise RunError(
            f"item vectors of a cosine index must have length 1; that of item row {row} has {lengths[row]:.4g}. "
            f"Normalize them, or build the index with score='dot' if the model was trained with it."
        )
    ivf = None
    if len(vectors) > max_flat:
        chosen = np.random.default_rng(0).choice(len(vectors), min(CALIBRATION_QUERIES, len(vectors)), replace=False)
        groups = [vectors[chosen], *([] if queries is None else [queries[:CALIBRATION_QUERIES]])]
        ivf = build_ivf(vectors, groups, score=score)
    return Index(vectors, score, float(lengths.max(initial=0.0)), ivf)


def save_index(index: Index, folder: Path) -> None:
    """Writes vectors, IVF lists or the graph of a flat index, and index.json; the stage's manifest has checksums."""
    np.save(folder / VECTORS, index.vectors)
    if index.ivf is not None:
        index.ivf.save(folder / LISTS)
    elif len(index):
        _save_products(index, folder)
    write_json(folder / FACTS, index.facts)


def _save_products(index: Index, folder: Path) -> None:
    if index.score != "negative_distance":
        items = quantize_items(index.vectors)
        if items.is_precise(index.vectors):
            save_quantized_products(items, folder)
            return
    save_item_products(folder / VECTORS)


def load_index(folder: Path) -> Index:
    """Maps the files of `save_index` into memory; raises RunError if they do not fit."""
    path = folder / VECTORS
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        items, dim, score, longest = (facts[name] for name in ("items", "dim", "score", "longest"))
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            f"the index in {folder} cannot be read: {error}. Delete the folder and run `twofold run` again."
        ) from error
    if vectors.shape != (items, dim) or vectors.dtype != np.float32:
        raise RunError(
            f"{path} holds {vectors.dtype} vectors of shape {vectors.shape}, but {FACTS} states "
            f"{items} x {dim} float32. They belong to two runs: delete {folder} and run `twofold run` again."
        )
    products = load_quantized_products(folder) or load_item_products(folder)
    return Index(np.asarray(vectors), score, longest, _load_lists(folder, facts), products)


def _load_lists(folder: Path, facts: dict[str, Any]) -> IvfIndex | None:
    expected = facts.get("lists")
    if expected is None:
        return None
    calibration = [CalibrationPoint(**each) for each in expected["measured"]]
    ivf = load_ivf(folder / LISTS, calibration, expected["queries"])
    items, dim, lists = ivf.faiss_index.ntotal, ivf.faiss_index.d, ivf.faiss_index.nlist
    if (items, dim, lists) != (facts["items"], facts["dim"], expected["number"]):
        raise RunError(
            f"{folder / LISTS} holds {items} x {dim} vectors in {lists} lists, but {FACTS} states "
            f"{facts['items']} x {facts['dim']} in {expected['number']}. They belong to two runs: delete {folder} and "
            f"run `twofold run` again."
        )
    return ivf
