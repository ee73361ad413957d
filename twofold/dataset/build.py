"""Builder of the dataset/ folder: ids become rows, histories offsets; features are fitted on the training window.

```
dataset/
├── users.parquet, items.parquet   id ↔ row
├── item_attributes.parquet        in the order of the item rows
├── user_attributes.parquet        plain columns, in the order of the user rows
├── events.*.npy                   history of each user; positives.*.npy and negatives.*.npy are parts of it
├── rows/                          one record per example and window, one array per counter and outcome
├── features/                      fitted vocabularies, scales, projections and centroids
├── vectors/                       content vectors of items, for towers that read them
├── counters/KEY/                  running totals by the hour
└── user_arrays/                   attributes of users; cluster of each item
```
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int64

from twofold.dataset.column_encoders import POSITIVES
from twofold.dataset.counters import counter_names, load_tower_counters, write_counters
from twofold.dataset.dataset import load_splits
from twofold.dataset.examples import (
    BATCH_ROWS,
    count_ids,
    distinct_ids,
    load_examples,
    write_examples,
    write_histories,
)
from twofold.dataset.features import FeatureState, fit_features, id_notes, save_features
from twofold.dataset.histories import load_histories
from twofold.dataset.id_tables import own_ids
from twofold.dataset.item_vectors import cluster_rows, fit_clusters, read_vectors, write_vectors
from twofold.dataset.npy import append_array, map_array
from twofold.dataset.tower_inputs import (
    ATTRIBUTES,
    counter_values,
    save_user_attributes,
)
from twofold.dataset.vocabulary import Vocabulary, build_vocabulary
from twofold.digest import file_stem
from twofold.ragged import chunks
from twofold.recipe.features import ClusterFeature, CounterFeature, Features, PopularityFeature
from twofold.tables import SPLITS, Split


def build_dataset(
    prepared: Path, features: Features, out: Path, *, time_zone: str, fit_on: Sequence[Split] = ("train",)
) -> dict[str, Any]:
    """Reads a prepare/ folder shard by shard, writes a dataset/ folder and returns facts for the manifest.

    `fit_on` names the windows whose events are the training examples, on which vocabularies and features are fitted.
    """
    out.mkdir(exist_ok=True)
    users, users_table = _users(prepared, features)
    items, items_table, num_own = _items(prepared, features, fit_on)
    users.save(out / "users.parquet")
    items.save(out / "items.parquet")
    last_event_at = write_histories(prepared, users, items, out=out)
    for split in SPLITS:
        windows = fit_on if split == "train" else (split,)
        write_examples(prepared, split, users, items, out=out / "rows", windows=windows)
    items_table = _with_popularity(items_table, features, out)
    vector_facts = _write_vectors(prepared, features, items, out=out)
    pq.write_table(items_table, out / "item_attributes.parquet", compression="zstd")
    pq.write_table(_without_lists(users_table), out / "user_attributes.parquet", compression="zstd")
    _write_counters(prepared, features, users_table, items_table, out=out)
    examples = load_splits(out, features)
    train = examples["train"]
    known, active = items.num_known, users_table.take(_distinct_ascending(train.user_rows))
    state = fit_features(
        features, items=items_table, users=active, train=train, num_known_items=known, time_zone=time_zone
    )
    state = _with_own_ids(state, prepared, fit_on, num_own_items=num_own)
    save_features(state, out / "features")
    save_user_attributes(state, users_table, out)
    return {
        "users": len(users),
        "items": len(items),
        "cold_items": len(items) - known,
        "notes": id_notes(state),
        "rows": {split: len(arrays) for split, arrays in examples.items()},
        "events": len(load_histories(out, "events").at),
        "last_event_at": last_event_at,
        "vectors": vector_facts,
    }


# --- ids --------------------------------------------------------------------------------------------------------------


def _users(prepared: Path, features: Features) -> tuple[Vocabulary, pa.Table]:
    """Returns the users and their table, in the order of the shards and their rows, then the users without events.

    A user's examples are then stored together. Of the list columns, the table has those that the user tower reads.
    """
    read = {feature.column for feature in features.user if isinstance(feature, ATTRIBUTES)}
    schema = pq.read_schema(prepared / "users.parquet")
    names = [column.name for column in schema if column.name in read or not pa.types.is_nested(column.type)]
    table = pq.read_table(prepared / "users.parquet", columns=names)
    listed = build_vocabulary(table["user_id"], table["user_id"]).ids
    active = distinct_ids(prepared, ["events"], "user_id", listed.type)
    idle = listed.filter(pc.invert(pc.is_in(listed, value_set=active)))
    users = Vocabulary(pa.concat_arrays([active, idle]), num_known=len(active))
    return users, table.take(_positions(users, table["user_id"]))


def _items(prepared: Path, features: Features, fit_on: Sequence[Split]) -> tuple[Vocabulary, pa.Table, int]:
    """Returns the items, their table, and how many have a row of their own in tables of ids: these come first, then the
    other items of the training examples, then the cold ones.
    """
    names = pq.read_schema(prepared / "items.parquet").names
    vectors = _listed_vectors(prepared, features)
    table = pq.read_table(prepared / "items.parquet", columns=[name for name in names if name not in vectors])
    listed = build_vocabulary(table["item_id"], table["item_id"]).ids
    parts, own = _examples_of(fit_on), None
    if features.item_ids is not None:
        own = own_ids(count_ids(prepared, parts, "item_id", listed.type), features.item_ids, field="item_ids")
    items = build_vocabulary(distinct_ids(prepared, parts, "item_id", listed.type), listed, first=own)
    num_own = items.num_known if own is None else len(own)
    return items, table.take(_positions(items, table["item_id"])), num_own


def _with_own_ids(state: FeatureState, prepared: Path, fit_on: Sequence[Split], *, num_own_items: int) -> FeatureState:
    """Returns the state with the numbers of ids that have a row of their own, which come first in a vocabulary."""
    own: dict[Literal["user", "item"], int] = {"item": num_own_items}
    vocabularies = dict(state.vocabularies)
    if state.features.user_ids is not None:
        users = vocabularies["user.id"].ids
        counts = count_ids(prepared, _examples_of(fit_on), "user_id", users.type)
        first = own_ids(counts, state.features.user_ids, field="user_ids")
        vocabularies["user.id"] = build_vocabulary(users, users, first=first)
        own["user"] = len(first)
    return replace(state, vocabularies=vocabularies, own_ids=own)


def _examples_of(windows: Sequence[Split]) -> list[str]:
    return [f"rows/split={window}" for window in windows]


def _with_popularity(items: pa.Table, features: Features, out: Path) -> pa.Table:
    """Adds the number of training positives of each item, if the recipe reads it."""
    if not any(isinstance(feature, PopularityFeature) for feature in features.item):
        return items
    train, counts = load_examples(out / "rows", "train", ()), np.zeros(len(items), np.int64)
    for block in chunks(len(train), BATCH_ROWS):
        counts += np.bincount(train.item_rows[block][train.label[block]], minlength=len(items))
    return items.append_column(POSITIVES, pa.array(counts))


def _distinct_ascending(values: Int64[np.ndarray, "_"]) -> Int64[np.ndarray, "_"]:
    """Returns the distinct values of an ascending array, which is read in chunks.

    >>> _distinct_ascending(np.array([2, 2, 3, 7, 7])).tolist()
    [2, 3, 7]
    """
    found = [np.unique(values[part]) for part in chunks(len(values), BATCH_ROWS)]
    return np.unique(np.concatenate([np.zeros(0, np.int64), *found]))


def _without_lists(table: pa.Table) -> pa.Table:
    return table.select([column.name for column in table.schema if not pa.types.is_nested(column.type)])


def _positions(vocabulary: Vocabulary, ids: pa.ChunkedArray) -> Int64[np.ndarray, "_"]:
    """Returns the position in `ids` of each row of the vocabulary."""
    return np.argsort(vocabulary.rows_of(ids))


# --- vectors and counters ---------------------------------------------------------------------------------------------


def _write_vectors(prepared: Path, features: Features, items: Vocabulary, *, out: Path) -> dict[str, Any]:
    """Writes content vectors in the order of the item rows, and the clusters that features read."""
    (out / "features").mkdir(exist_ok=True)
    (out / "user_arrays").mkdir(exist_ok=True)
    table = pq.read_table(prepared / "items.parquet", columns=["item_id", *_listed_vectors(prepared, features)])
    order = _positions(items, table["item_id"])
    facts = {}
    for name, config in features.vectors.items():
        raw = read_vectors(prepared, name, table)
        facts[name] = write_vectors(name, raw, order=order, num_known=items.num_known, pca=config.pca, out=out)
    for feature in features.user:
        if isinstance(feature, ClusterFeature):
            vectors = map_array(out / "vectors" / f"{feature.vectors}.npy")
            centroids = fit_clusters(feature.vectors, vectors, num_known=items.num_known, k=feature.num_clusters)
            np.save(out / "features" / f"centroids.{feature.clusters_key}.npy", centroids)
            np.save(out / "user_arrays" / f"clusters.{feature.clusters_key}.npy", cluster_rows(centroids, vectors))
    return facts


def _listed_vectors(prepared: Path, features: Features) -> list[str]:
    """Returns the list columns of the items that are content vectors, not attributes."""
    return [name for name in pq.read_schema(prepared / "items.parquet").names if name in features.vectors]


def _write_counters(prepared: Path, features: Features, users: pa.Table, items: pa.Table, *, out: Path) -> None:
    """Writes the running totals of every counter key, and the counter values at the time of every example."""
    for side, table, rows in ((features.user, users, "user_rows"), (features.item, items, "item_rows")):
        for key in {feature.key for feature in side if isinstance(feature, CounterFeature)}:
            write_counters(prepared, key, table[key], out=out / "counters" / file_stem(key))
        counters = load_tower_counters(side, out)
        for split in SPLITS if counters else ():
            examples = load_examples(out / "rows", split, ())
            with ExitStack() as stack:
                append = {
                    name: stack.enter_context(append_array(out / "rows" / f"{split}.{file_stem(name)}.npy", np.float32))
                    for name in counter_names(side)
                }
                for block in chunks(len(examples), BATCH_ROWS):
                    values = counter_values(side, counters, rows=getattr(examples, rows)[block], at=examples.at[block])
                    for name, piece in values.items():
                        append[name](piece)
