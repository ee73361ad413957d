"""The nearest items of each item, as item-kNN computes them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float32, Int32

_FILE: Final = "item_neighbors.{}.npy"


@dataclass(frozen=True)
class ItemNeighbors:
    """The nearest items of each item, by falling similarity, padded with -1."""

    item_rows: Int32[np.ndarray, "items _"]
    similarities: Float32[np.ndarray, "items _"]

    def scaled(self, factor: float) -> "ItemNeighbors":
        """Returns the same neighbors with each similarity times a factor."""
        return ItemNeighbors(self.item_rows, np.float32(factor) * self.similarities)

    def save(self, folder: Path) -> None:
        """Writes the two arrays that `load_neighbors` reads."""
        for name in ("item_rows", "similarities"):
            np.save(folder / _FILE.format(name), getattr(self, name))


def load_neighbors(folder: Path) -> ItemNeighbors | None:
    """Maps what `ItemNeighbors.save` wrote; `None` if there is nothing."""
    paths = [folder / _FILE.format(name) for name in ("item_rows", "similarities")]
    if not paths[0].exists():
        return None
    return ItemNeighbors(*(np.load(path, mmap_mode="r", allow_pickle=False) for path in paths))
