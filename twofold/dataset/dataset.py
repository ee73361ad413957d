"""The dataset: a dataset/ folder as memory-mapped arrays, which training and evaluation read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32

from twofold.dataset.counters import counter_names, load_tower_counters
from twofold.dataset.examples import Examples, load_examples
from twofold.dataset.features import FeatureState, load_features
from twofold.dataset.histories import Histories, load_histories
from twofold.dataset.npy import map_array
from twofold.dataset.tower_inputs import ItemArrays, UserArrays, item_arrays, load_user_arrays
from twofold.dataset.vocabulary import Vocabulary
from twofold.recipe.features import Features
from twofold.tables import SPLITS, Side, Split, split_side


@dataclass(frozen=True)
class Dataset:
    """Everything that training and evaluation read.

    `events` are the events of all windows; `positives` and `negatives` are parts of them. `vectors` has one row per
    item row.
    """

    folder: Path
    users: Vocabulary
    items: Vocabulary
    examples: Mapping[Split, Examples]
    events: Histories
    positives: Histories
    negatives: Histories
    features: FeatureState
    item_arrays: ItemArrays
    user_arrays: UserArrays
    vectors: Mapping[str, Float32[np.ndarray, "items _"]]


def load_dataset(folder: Path, features: Features | None = None) -> Dataset:
    """Maps a folder that `build_dataset` wrote, with the arrays that these features need, by default all."""
    state = load_features(folder / "features")
    state = state if features is None else state.with_features(features)
    vectors = {name: map_array(folder / "vectors" / f"{name}.npy") for name in state.features.vectors}
    counters = load_tower_counters(state.features.item, folder)
    return Dataset(
        folder=folder,
        users=Vocabulary.load(folder / "users.parquet"),
        items=Vocabulary.load(folder / "items.parquet"),
        examples=load_splits(folder, state.features, is_read_at_random=True),
        events=load_histories(folder, "events"),
        positives=load_histories(folder, "positives"),
        negatives=load_histories(folder, "negatives"),
        features=state,
        item_arrays=item_arrays(state, item_attributes(folder), vectors=vectors, counters=counters),
        user_arrays=load_user_arrays(state.features, folder),
        vectors=vectors,
    )


def item_attributes(folder: Path) -> pa.Table:
    """Reads the items table, in the order of the item rows."""
    return pq.read_table(folder / "item_attributes.parquet")


def attribute_column(folder: Path, name: str) -> tuple[Side, pa.ChunkedArray]:
    """Reads a column of the items or the users, in the order of their rows; of the items if both have it, unless the
    name begins with `user.`.
    """
    side, column = split_side(name)
    side = side or ("item" if name in pq.read_schema(folder / "item_attributes.parquet").names else "user")
    return side, pq.read_table(folder / f"{side}_attributes.parquet", columns=[column])[column]


def load_splits(folder: Path, features: Features, *, is_read_at_random: bool = False) -> dict[Split, Examples]:
    """Maps the examples of every window, with the counters of these features."""
    names = counter_names(features.user) + counter_names(features.item)
    return {
        split: load_examples(folder / "rows", split, names, is_read_at_random=is_read_at_random) for split in SPLITS
    }
