"""Additions of a history to the scores of items, for what an inner product of two vectors cannot hold.

A user's vector tells neither how often the user saw an item nor exactly which items are often liked together with those
that the user liked. Both concern few items, which an index adds exactly: see `twofold/index/additions.py`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Int32

from twofold.dataset.histories import count_items
from twofold.item_neighbors import ItemNeighbors, load_neighbors
from twofold.ragged import Ragged, chunks
from twofold.run_folder import write_json
from twofold.topk import Additions, concatenate_additions, sum_additions

ADDITIONS: Final = "additions"
"""Subfolder with additions; without it there are none."""
CONSTANTS: Final = "constants.json"
CHUNK_PAIRS: Final = 2**22  # pairs of user and neighbor added up at once: about 100 MB


@dataclass(frozen=True)
class HistoryAdditions:
    """Additions for the newest positives of a user, up to `length` of them."""

    length: int
    repeats: float = 0.0
    """Addition to the score of an item for each of these positives that is of it."""
    neighbors: ItemNeighbors | None = None

    def of(self, positives: Int32[np.ndarray, "batch _"]) -> Additions:
        """Returns the additions for histories of table rows: item rows + 1, the newest last, padded with 0."""
        rows, times = count_items(positives[:, max(0, positives.shape[1] - self.length) :])
        met = Additions(rows, times).scaled(self.repeats)
        if self.neighbors is None:
            return met
        near = _sums_of_similarities(self.neighbors, rows)
        return sum_additions(met, near) if self.repeats else near


def _sums_of_similarities(neighbors: ItemNeighbors, liked: Ragged) -> Additions:
    """Returns what users who like these distinct items add to the scores of their neighbors.

    Sums are over the root of the user's number of likes, as those of `ItemSums`: scores of vectors do not grow with it.
    """
    width = neighbors.item_rows.shape[1]
    size = max(1, CHUNK_PAIRS // (width * max(1, int(liked.sizes.max(initial=1)))))
    parts = []
    for part in chunks(len(liked.sizes), size):
        own = liked.part(part)
        roots = np.sqrt(own.sizes, dtype=np.float32)[own.lines]
        near, values = neighbors.item_rows[own.values], neighbors.similarities[own.values] / roots[:, None]
        is_item = near >= 0
        offsets = np.concatenate([[0], np.cumsum(is_item.sum(axis=1))])[own.offsets]
        parts.append(sum_additions(Additions(Ragged(near[is_item].astype(np.int64), offsets), values[is_item])))
    return concatenate_additions(parts)


def save_additions(added: HistoryAdditions, folder: Path) -> None:
    """Writes the subfolder that `load_additions` reads."""
    own = folder / ADDITIONS
    own.mkdir()
    write_json(own / CONSTANTS, {"length": added.length, "repeats": added.repeats})
    if added.neighbors is not None:
        added.neighbors.save(own)


def load_additions(folder: Path) -> HistoryAdditions | None:
    """Reads what `save_additions` wrote; `None` if there is nothing."""
    own = folder / ADDITIONS
    if not own.exists():
        return None
    saved = json.loads((own / CONSTANTS).read_text(encoding="utf-8"))
    return HistoryAdditions(saved["length"], saved["repeats"], load_neighbors(own))
