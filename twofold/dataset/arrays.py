"""Prepared tables → arrays on disk: ids become rows, histories become offsets, features are fitted on the training
window.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Int64

from twofold.dataset.features import (
    FeatureState,
    ItemArrays,
    fit_features,
    item_arrays,
    load_features,
    save_features,
)
from twofold.dataset.histories import Histories, load_histories, map_array
from twofold.dataset.vocabulary import UNKNOWN, Vocabulary, build_vocabulary
from twofold.errors import DataError
from twofold.recipe.features import Features
from twofold.tables import SPLITS, Split


@dataclass(frozen=True)
class Rows:
    """One window's rows, sorted by (user, at, item): what is trained on, or judged. Arrays may be memory-mapped."""

    user_rows: Int64[np.ndarray, "rows"]
    item_rows: Int64[np.ndarray, "rows"]
    at: Int64[np.ndarray, "rows"]
    at_is_known: Bool[np.ndarray, "rows"]
    label: Bool[np.ndarray, "rows"]
    weight: Float32[np.ndarray, "rows"]
    positives_before: Int64[np.ndarray, "rows"]
    negatives_before: Int64[np.ndarray, "rows"]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.at)


@dataclass(frozen=True)
class Dataset:
    """Everything the towers and the judges read. `events` are all events of all windows; the other two are parts of
    it.
    """

    users: Vocabulary
    items: Vocabulary
    rows: Mapping[Split, Rows]
    events: Histories
    positives: Histories
    negatives: Histories
    features: FeatureState
    item_arrays: ItemArrays


def build_dataset(prepared: Path, features: Features, out: Path, *, utc_offset_h: int) -> dict[str, Any]:
    """Reads a prepare/ folder, writes a dataset/ folder, returns facts for the manifest."""
    tables = {split: _read(prepared / "rows" / f"split={split}") for split in SPLITS}
    events, items_table, users_table = (
        _read(prepared / "events"),
        pq.read_table(prepared / "items.parquet"),
        pq.read_table(prepared / "users.parquet"),
    )
    train = tables["train"]
    items = build_vocabulary(train["item_id"], items_table["item_id"])
    # Users in rising order of id whatever they did: rows of a user then lie together in both tables and arrays.
    users = build_vocabulary(users_table["user_id"], users_table["user_id"])
    in_order = items_table.take(pa.array(np.argsort(items.rows_of(items_table["item_id"]))))

    histories = _histories(events, users, items)
    rows = {split: _rows(table, users, items) for split, table in tables.items()}
    _refuse_unsorted(_known(users, events["user_id"]), histories["events"].at, prepared, "events")
    for split, arrays in rows.items():
        _refuse_unsorted(arrays.user_rows, arrays.at, prepared, f"rows/split={split}")
    state = fit_features(
        features,
        in_order,
        num_known_items=items.num_known,
        train_item_rows=rows["train"].item_rows,
        train_at=rows["train"].at,
        utc_offset_h=utc_offset_h,
    )
    for split, arrays in rows.items():
        (out / "rows").mkdir(exist_ok=True)
        for field in fields(arrays):
            np.save(out / "rows" / f"{split}.{field.name}.npy", getattr(arrays, field.name))
    for name, history in histories.items():
        history.save(out, name)
    users.save(out / "users.parquet")
    items.save(out / "items.parquet")
    pq.write_table(in_order, out / "item_attributes.parquet", compression="zstd")
    save_features(state, out / "features")
    return {
        "users": len(users),
        "items": len(items),
        "cold_items": len(items) - items.num_known,
        "rows": {split: len(arrays) for split, arrays in rows.items()},
        "events": len(histories["events"].at),
        "last_event_at": int(histories["events"].at.max(initial=0)),
    }


def load_dataset(folder: Path) -> Dataset:
    """Maps what `build_dataset` wrote."""
    state = load_features(folder / "features")
    rows = {
        split: Rows(*(map_array(folder / "rows" / f"{split}.{field.name}.npy") for field in fields(Rows)))
        for split in SPLITS
    }
    return Dataset(
        users=Vocabulary.load(folder / "users.parquet"),
        items=Vocabulary.load(folder / "items.parquet"),
        rows=rows,
        events=load_histories(folder, "events"),
        positives=load_histories(folder, "positives"),
        negatives=load_histories(folder, "negatives"),
        features=state,
        item_arrays=item_arrays(state, item_attributes(folder)),
    )


def item_attributes(folder: Path) -> pa.Table:
    """The items table in the order of the item rows."""
    return pq.read_table(folder / "item_attributes.parquet")


def _read(folder: Path) -> pa.Table:
    shards = sorted(folder.glob("shard=*.parquet"))
    return pa.concat_tables(pq.read_table(path) for path in shards)


def _refuse_unsorted(
    user_rows: Int64[np.ndarray, "events"], at: Int64[np.ndarray, "events"], stage: Path, part: str
) -> None:
    """A partitioned writer can lose the order in silence (DuckDB's did), and every history would be wrong."""
    falls = np.flatnonzero((np.diff(user_rows) < 0) | ((np.diff(user_rows) == 0) & (np.diff(at) < 0)))
    if len(falls):
        line = int(falls[0]) + 1
        raise DataError(
            f"{stage / part} is not sorted by user and time: line {line} (at {at[line]}) belongs before the one "
            f"above it. It was changed after preparation; delete {stage} and run `twofold run` again."
        )


def _rows(table: pa.Table, users: Vocabulary, items: Vocabulary) -> Rows:
    known = ~np.asarray(table["at_is_estimated"])
    return Rows(
        user_rows=_known(users, table["user_id"]),
        item_rows=_known(items, table["item_id"]),
        at=np.asarray(table["at"]),
        at_is_known=known,
        label=np.asarray(table["label"]),
        weight=np.asarray(table["weight"], np.float32),
        positives_before=np.asarray(table["positives_before"], np.int64),
        negatives_before=np.asarray(table["negatives_before"], np.int64),
    )


def _histories(events: pa.Table, users: Vocabulary, items: Vocabulary) -> dict[str, Histories]:
    user_rows = _known(users, events["user_id"])
    offsets = np.searchsorted(user_rows, np.arange(len(users) + 1)).astype(np.int64)
    everything = Histories(_known(items, events["item_id"]).astype(np.int32), np.asarray(events["at"]), offsets)
    return {
        "events": everything,
        "positives": everything.only(np.asarray(events["is_positive"])),
        "negatives": everything.only(np.asarray(events["is_negative"])),
    }


def _known(vocabulary: Vocabulary, ids: pa.ChunkedArray) -> Int64[np.ndarray, "rows"]:
    rows = vocabulary.rows_of(ids)
    assert not (rows == UNKNOWN).any(), "preparation lists every user and item of the log"
    return rows
