"""Prepared tables → arrays on disk: ids become rows, histories become offsets, features are fitted on the training
window.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float32, Int64

from twofold.dataset.counters import write_counters
from twofold.dataset.examples import BATCH_ROWS, Examples, distinct_ids, load_examples, write_examples, write_histories
from twofold.dataset.features import (
    ATTRIBUTES,
    FeatureState,
    ItemArrays,
    UserArrays,
    cluster_key,
    counter_values,
    fit_features,
    item_arrays,
    load_counters_of,
    load_features,
    load_user_arrays,
    save_features,
    save_user_attributes,
)
from twofold.dataset.histories import Histories, load_histories
from twofold.dataset.item_vectors import cluster_rows, fit_clusters, read_vectors, write_vectors
from twofold.dataset.npy import append_array, map_array
from twofold.dataset.vocabulary import Vocabulary, build_vocabulary
from twofold.ragged import chunks
from twofold.recipe.features import (
    ClusterFeature,
    CounterFeature,
    Features,
    ItemFeature,
    UserFeature,
    feature_name,
)
from twofold.tables import SPLITS, Split


@dataclass(frozen=True)
class Dataset:
    """Everything the towers and the judges read. `events` are all events of all windows; the other two are parts of
    it. `vectors` has a line an item row.
    """

    folder: Path
    users: Vocabulary
    items: Vocabulary
    rows: Mapping[Split, Examples]
    events: Histories
    positives: Histories
    negatives: Histories
    features: FeatureState
    item_arrays: ItemArrays
    user_arrays: UserArrays
    vectors: Mapping[str, Float32[np.ndarray, "items _"]]


def build_dataset(prepared: Path, features: Features, out: Path, *, utc_offset_h: int) -> dict[str, Any]:
    """Reads a prepare/ folder shard by shard, writes a dataset/ folder, returns facts for the manifest.

    ```
    dataset/
    ├── users.parquet, items.parquet   id ↔ row
    ├── item_attributes.parquet        in the order of the item rows
    ├── user_attributes.parquet        plain columns, in the order of the user rows
    ├── events.*.npy                   what each user met; positives.*.npy and negatives.*.npy are parts of it
    ├── rows/                          a record a row and window, and an array a counter or outcome
    ├── features/                      what is fitted
    ├── vectors/                       of items, for towers that read them
    ├── counters/KEY/                  running totals by the hour
    └── user_arrays/                   attributes of users; the cluster of each item
    ```
    """
    out.mkdir(exist_ok=True)
    users, users_table = _users(prepared, features)
    items, items_table = _items(prepared, features)
    users.save(out / "users.parquet")
    items.save(out / "items.parquet")
    last_event_at = write_histories(prepared, users, items, out=out)
    for split in SPLITS:
        write_examples(prepared, split, users, items, out=out / "rows")
    vector_facts = _write_vectors(prepared, features, items, out=out)
    pq.write_table(items_table, out / "item_attributes.parquet", compression="zstd")
    pq.write_table(_plain(users_table), out / "user_attributes.parquet", compression="zstd")
    _write_counters(prepared, features, users_table, items_table, out=out)
    rows = _load_rows(out, features)
    state = fit_features(
        features,
        items=items_table,
        users=users_table.take(np.unique(rows["train"].user_rows)),
        train=rows["train"],
        num_known_items=items.num_known,
        utc_offset_h=utc_offset_h,
    )
    save_features(state, out / "features")
    save_user_attributes(state, users_table, out)
    return {
        "users": len(users),
        "items": len(items),
        "cold_items": len(items) - items.num_known,
        "rows": {split: len(arrays) for split, arrays in rows.items()},
        "events": len(load_histories(out, "events").at),
        "last_event_at": last_event_at,
        "vectors": vector_facts,
    }


def load_dataset(folder: Path, features: Features | None = None) -> Dataset:
    """Maps what `build_dataset` wrote; of its features those that are read, by default all."""
    state = load_features(folder / "features")
    state = state if features is None else state.reading(features)
    vectors = {name: map_array(folder / "vectors" / f"{name}.npy") for name in state.features.vectors}
    counters = load_counters_of(state.features.item, folder)
    return Dataset(
        folder=folder,
        users=Vocabulary.load(folder / "users.parquet"),
        items=Vocabulary.load(folder / "items.parquet"),
        rows=_load_rows(folder, state.features),
        events=load_histories(folder, "events"),
        positives=load_histories(folder, "positives"),
        negatives=load_histories(folder, "negatives"),
        features=state,
        item_arrays=item_arrays(state, item_attributes(folder), vectors=vectors, counters=counters),
        user_arrays=load_user_arrays(state.features, folder),
        vectors=vectors,
    )


def item_attributes(folder: Path) -> pa.Table:
    """The items table in the order of the item rows."""
    return pq.read_table(folder / "item_attributes.parquet")


def attribute_column(folder: Path, name: str) -> tuple[Literal["item", "user"], pa.ChunkedArray]:
    """Whose column it is, the items' where both have it, and its values in the order of the rows."""
    of: Literal["item", "user"] = "item" if name in pq.read_schema(folder / "item_attributes.parquet").names else "user"
    return of, pq.read_table(folder / f"{of}_attributes.parquet", columns=[name])[name]


# --- ids --------------------------------------------------------------------------------------------------------------


def _users(prepared: Path, features: Features) -> tuple[Vocabulary, pa.Table]:
    """Users in the order of the shards and their lines, so that rows of a user lie together; then those without events.

    And their columns, of the lists those that the user tower reads, in that order.
    """
    read = {feature.column for feature in features.user if isinstance(feature, ATTRIBUTES)}
    schema = pq.read_schema(prepared / "users.parquet")
    names = [column.name for column in schema if column.name in read or not pa.types.is_nested(column.type)]
    table = pq.read_table(prepared / "users.parquet", columns=names)
    listed = build_vocabulary(table["user_id"], table["user_id"]).ids
    active = distinct_ids(prepared, "events", "user_id", listed.type)
    idle = listed.filter(pc.invert(pc.is_in(listed, value_set=active)))
    users = Vocabulary(pa.concat_arrays([active, idle]), num_known=len(active))
    return users, table.take(_lines(users, table["user_id"]))


def _items(prepared: Path, features: Features) -> tuple[Vocabulary, pa.Table]:
    """Items of the training window first, then the cold ones; and their attributes in that order."""
    names = pq.read_schema(prepared / "items.parquet").names
    vectors = _listed_vectors(prepared, features)
    table = pq.read_table(prepared / "items.parquet", columns=[name for name in names if name not in vectors])
    listed = build_vocabulary(table["item_id"], table["item_id"]).ids
    items = build_vocabulary(distinct_ids(prepared, "rows/split=train", "item_id", listed.type), listed)
    return items, table.take(_lines(items, table["item_id"]))


def _plain(table: pa.Table) -> pa.Table:
    return table.select([column.name for column in table.schema if not pa.types.is_nested(column.type)])


def _lines(vocabulary: Vocabulary, ids: pa.ChunkedArray) -> Int64[np.ndarray, "ids"]:
    """The line of each row of the vocabulary."""
    return np.argsort(vocabulary.rows_of(ids))


# --- what is computed from them ---------------------------------------------------------------------------------------


def _write_vectors(prepared: Path, features: Features, items: Vocabulary, *, out: Path) -> dict[str, Any]:
    """Vectors in the order of the item rows, and the clusters of those that a feature reads clusters of."""
    (out / "features").mkdir(exist_ok=True)
    (out / "user_arrays").mkdir(exist_ok=True)
    table = pq.read_table(prepared / "items.parquet", columns=["item_id", *_listed_vectors(prepared, features)])
    order = _lines(items, table["item_id"])
    facts = {}
    for name, asked in features.vectors.items():
        given = read_vectors(prepared, name, table)
        facts[name] = write_vectors(name, given, order=order, num_known=items.num_known, pca=asked.pca, out=out)
    for feature in features.user:
        if isinstance(feature, ClusterFeature):
            vectors = map_array(out / "vectors" / f"{feature.vectors}.npy")
            centroids = fit_clusters(feature.vectors, vectors, num_known=items.num_known, k=feature.num_clusters)
            np.save(out / "features" / f"centroids.{cluster_key(feature)}.npy", centroids)
            np.save(out / "user_arrays" / f"clusters.{cluster_key(feature)}.npy", cluster_rows(centroids, vectors))
    return facts


def _listed_vectors(prepared: Path, features: Features) -> list[str]:
    """The list columns of the items that are vectors and no attributes."""
    return [name for name in pq.read_schema(prepared / "items.parquet").names if name in features.vectors]


def _write_counters(prepared: Path, features: Features, users: pa.Table, items: pa.Table, *, out: Path) -> None:
    """Running totals of all that features count by, and what they say at the moment of every row."""
    for side, table, who in ((features.user, users, "user_rows"), (features.item, items, "item_rows")):
        for by in {feature.key for feature in side if isinstance(feature, CounterFeature)}:
            write_counters(prepared, by, table[by], out=out / "counters" / by)
        counters = load_counters_of(side, out)
        for split in SPLITS if counters else ():
            rows = load_examples(out / "rows", split, ())
            with ExitStack() as stack:
                append = {
                    name: stack.enter_context(append_array(out / "rows" / f"{split}.{name}.npy", np.float32))
                    for name in _counted_names(side)
                }
                for block in chunks(len(rows), BATCH_ROWS):
                    values = counter_values(side, counters, rows=getattr(rows, who)[block], at=rows.at[block])
                    for name, piece in values.items():
                        append[name](piece)


def _counted_names(side: tuple[UserFeature | ItemFeature, ...]) -> tuple[str, ...]:
    return tuple(feature_name(feature) for feature in side if isinstance(feature, CounterFeature))


def _load_rows(folder: Path, features: Features) -> dict[Split, Examples]:
    names = _counted_names(features.user) + _counted_names(features.item)
    return {split: load_examples(folder / "rows", split, names) for split in SPLITS}
