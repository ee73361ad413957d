"""Live item updates: items upserted while serving are written to a file that all workers of a service read.

A record of the file holds whole items: the columns of the items table and the vectors. Each worker reads on from its
last position, so that all of them, restarted ones included, apply the same changes in the same order; a change is
written before it is applied. The file holds little more than the last state of each changed item. The vectors belong to
the bundle that they were made for, and another bundle starts without them. So does the first one when it comes back:
records hold the number of swaps before them, which is written together with the bundle in use.

Upserts are lost when the service stops, and do not reach other machines. To make them permanent, build a bundle of the
current catalogue and swap to it. Withdrawn items are in the store of events (`event_store.py`).
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
from jaxtyping import Float32
from msgspec import Struct

from twofold.dataset.column_encoders import days_since
from twofold.dataset.vocabulary import UNKNOWN
from twofold.errors import RequestError
from twofold.index.live import LiveIndex, Snapshot
from twofold.ragged import chunks
from twofold.recipe.rerank import AGE
from twofold.serve.schemas import ItemUpsert
from twofold.serve.shared_state import RecordLog

COMPACT_FROM_BYTES: Final = 2**21
GROWTH: Final = 2  # the file is rewritten when it is this many times as large as after the last time
RECORD_ITEMS: Final = 1_000  # items in a record of a rewritten file


class UpsertRecord(Struct, frozen=True):
    """A record: the digest of the bundle and the number of swaps before it was swapped in, the rows of the items table
    as an Arrow stream, and the vectors.
    """

    bundle: str
    swaps: int
    table: bytes
    vectors: bytes


class LiveItems:
    """The current items of one bundle, kept in step with a file. Threads may share it."""

    def __init__(self, live_index: LiveIndex, *, bundle: str, as_of: int, has_ranker: bool) -> None:
        """Keeps changes in this process until `follow` names a file. `bundle` is the bundle's digest, `as_of` the time
        for which the ages of its items were computed.
        """
        self._as_of = as_of
        self._live_index, self._bundle, self._has_ranker = live_index, bundle, has_ranker
        self._log: RecordLog | None = None
        self._swaps, self._is_outdated = 0, False
        self._compacted_bytes = COMPACT_FROM_BYTES // GROWTH
        self._lock = Lock()

    def follow(self, path: Path, *, swaps: int = 0) -> None:
        """Applies the changes in a file that were made after so many swaps, and writes its own changes there."""
        self._log, self._swaps = RecordLog(path), swaps
        self.catch_up()

    @property
    def now(self) -> Snapshot:
        """The last complete state."""
        return self._live_index.now

    def upsert(self, upserts: Sequence[ItemUpsert]) -> None:
        """Adds and updates items, all or none; RequestError if one is invalid, OSError if they cannot be written."""
        if self._has_ranker:
            raise RequestError(
                "this bundle has a ranker, which cannot score items that are added or changed while it serves. "
                "Withdraw items only, or build a bundle of the current catalogue and swap to it."
            )
        with self._lock, nullcontext() if self._log is None else self._log.locked():
            self._apply_new_records()
            table, vectors = _as_arrays(self._live_index.now, upserts, self._as_of)
            self._live_index.upsert(table, vectors, record=lambda: self._append(table, vectors))
            self._compact()

    def set_withdrawn(self, item_ids: Iterable[str]) -> int:
        """Withdraws exactly these items; returns how many became unavailable."""
        return self._live_index.set_withdrawn(item_ids)

    def catch_up(self) -> None:
        """Applies the changes that other workers have written since."""
        if self._log is not None and not self._log.is_read:
            with self._lock, self._log.locked():
                self._apply_new_records()

    def _apply_new_records(self) -> None:
        if self._log is None:
            return
        for data in self._log.new_records():
            record = msgspec.msgpack.decode(data, type=UpsertRecord)
            if (record.bundle, record.swaps) == (self._bundle, self._swaps):
                table = pa.ipc.open_stream(record.table).read_all()
                vectors = np.frombuffer(record.vectors, np.float32).reshape(len(table), -1)
                self._live_index.upsert(table, vectors)
            self._is_outdated |= record.swaps > self._swaps

    def _append(self, table: pa.Table, vectors: Float32[np.ndarray, "items dim"]) -> None:
        if self._log is not None:
            self._log.append(self._record(table, vectors))

    def _compact(self) -> None:
        """Rewrites the file with the last state of each item, once it has grown.

        A worker that has not followed a swap yet does not know the items of the next bundle, so it rewrites nothing.
        """
        if self._log is None or self._is_outdated or self._log.size < GROWTH * self._compacted_bytes:
            return
        changed = self._live_index.now.changed
        parts = chunks(len(changed.index), RECORD_ITEMS)
        tables = ((changed.attributes.slice(part.start, part.stop - part.start), part) for part in parts)
        self._log.replace(self._record(table, changed.index.vectors[part]) for table, part in tables)
        self._compacted_bytes = max(self._log.size, COMPACT_FROM_BYTES // GROWTH)

    def _record(self, table: pa.Table, vectors: Float32[np.ndarray, "items dim"]) -> bytes:
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
        rows, numbers = stream.getvalue().to_pybytes(), np.ascontiguousarray(vectors).tobytes()
        return msgspec.msgpack.encode(UpsertRecord(self._bundle, self._swaps, rows, numbers))


def _as_arrays(
    items: Snapshot, upserts: Sequence[ItemUpsert], as_of: int
) -> tuple[pa.Table, Float32[np.ndarray, "items dim"]]:
    """Returns attributes and vectors, with missing values taken from the current item; RequestError names an invalid
    value.
    """
    schema = items.built.attributes.schema
    ids = items.items.typed([upsert.item_id for upsert in upserts])
    item_rows, attributes, vectors = items.rows_of(ids).tolist(), [], []
    for upsert, item_id, row in zip(upserts, ids.to_pylist(), item_rows, strict=True):
        if item_id is None:
            raise RequestError(
                f"item_id {upsert.item_id!r} does not have the catalogue's type, {items.items.ids.type}."
            )
        _check_upsert(upsert, item_id, items, is_new=row == UNKNOWN)
        current = {} if row == UNKNOWN else items.attributes_of(np.array([row]))[0]
        aged = _age(upsert, as_of) if AGE in schema.names else {}
        attributes.append(current | aged | upsert.attributes | {"item_id": item_id})
        is_kept = upsert.vector is None
        vectors.append(items.vectors_of(np.array([row]))[0] if is_kept else _as_vector(upsert, item_id))
    try:
        table = pa.Table.from_pylist(attributes, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise RequestError(f"an attribute does not have the catalogue's type ({schema.to_string()}): {error}") from None
    for upsert, stored in zip(upserts, table.to_pylist(), strict=True):
        for name, value in upsert.attributes.items():
            if name != "item_id":
                _check_stored(upsert.item_id, schema.field(name), value, stored[name])
    return table, np.stack(vectors)


def _age(upsert: ItemUpsert, as_of: int) -> dict[str, float]:
    """Returns the age of an item whose upload is given, as that of the bundle's items."""
    uploaded_at = upsert.attributes.get("uploaded_at")
    return {AGE: float(days_since(uploaded_at, as_of))} if isinstance(uploaded_at, int) else {}


def _as_vector(upsert: ItemUpsert, item_id: Any) -> Float32[np.ndarray, "dim"]:
    with np.errstate(over="ignore"):
        vector = np.array(upsert.vector, np.float32)
    if not np.isfinite(vector).all():
        raise RequestError(f"item {item_id}: the vector has a number that is not finite as 32-bit float.")
    return vector


def _check_stored(item_id: Any, column: pa.Field, value: Any, stored: Any) -> None:
    """Raises RequestError where Arrow stores another value than was given: it cuts 1.5 to 1 in a column of integers."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_kept = stored is None if value is None else is_number and pa.types.is_floating(column.type)
    if not is_kept and (stored != value or isinstance(stored, bool) != isinstance(value, bool)):
        raise RequestError(f"item {item_id}: {column.name} is {value!r}, but the column holds {column.type}.")


def _check_upsert(upsert: ItemUpsert, item_id: Any, items: Snapshot, *, is_new: bool) -> None:
    if "\0" in str(item_id):  # NumPy drops it at the end of a text, so that two ids would be one
        raise RequestError(f"item_id {item_id[:80]!r} holds the character NUL: give it an id without that.")
    names, dim = items.built.attributes.schema.names, items.built.index.dim
    unknown = sorted(upsert.attributes.keys() - set(names) - {"item_id"})
    if unknown:
        raise RequestError(
            f"item {item_id}: there is no attribute {', '.join(unknown)}; the catalogue has "
            f"{', '.join(name for name in names if name != 'item_id')}."
        )
    if upsert.vector is None and is_new:
        raise RequestError(f"item {item_id} is new: give its vector, {dim} numbers from this bundle's item tower.")
    if upsert.vector is not None and len(upsert.vector) != dim:
        raise RequestError(
            f"item {item_id}: the vector has {len(upsert.vector)} numbers; vectors of this bundle have {dim}."
        )
