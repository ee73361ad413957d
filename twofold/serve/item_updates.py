"""Live item updates: items upserted and removed while serving, posted to one worker, read by all from a shared file.

A change is a line of an append-only file that the workers of one service share. Each worker reads on from its last
position, so all of them, restarted ones included, apply the same changes in the same order. Vectors belong to the
bundle that they were made for: another bundle takes over the removals only, because it was built from newer items.

Changes are lost when the service stops, and do not reach other machines. To make them permanent, build a bundle of the
current catalogue and swap to it.
"""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from jaxtyping import Float32
from msgspec import Struct

from twofold.dataset.vocabulary import UNKNOWN
from twofold.errors import RequestError
from twofold.index.live import LiveIndex, Snapshot
from twofold.serve.schemas import ItemChanges, ItemUpsert


class ChangeRecord(Struct, frozen=True):
    """A line of the file: the digest of the changed bundle, and the changes."""

    bundle: str
    changes: ItemChanges


class LiveItems:
    """The current items of one bundle, kept in step with a file. Threads may share it."""

    def __init__(self, live_index: LiveIndex, *, bundle: str, has_ranker: bool) -> None:
        """Keeps changes in this process until `follow` names a file. `bundle` is the bundle's digest."""
        self._live_index, self._bundle, self._has_ranker = live_index, bundle, has_ranker
        self._path: Path | None = None
        self._bytes_read = 0
        self._lock = Lock()

    def follow(self, path: Path) -> None:
        """Applies the changes in a file, and writes its own changes there."""
        self._path = path
        self.catch_up()

    @property
    def now(self) -> Snapshot:
        """The last complete state."""
        return self._live_index.now

    def change(self, changes: ItemChanges) -> tuple[int, int]:
        """Applies changes, all or none; returns the numbers of items upserted and removed. RequestError if a change is
        invalid.
        """
        with self._lock, self._locked_file() as file:
            self._apply_new_lines(file)
            removed = self._apply(changes)
            if file is not None:
                self._bytes_read += file.write(msgspec.json.encode(ChangeRecord(self._bundle, changes)) + b"\n")
        return len(changes.upsert), removed

    def catch_up(self) -> None:
        """Applies the changes that other workers have written since."""
        if self._path is None or not self._path.exists() or self._path.stat().st_size == self._bytes_read:
            return
        with self._lock, self._locked_file() as file:
            self._apply_new_lines(file)

    @contextmanager
    def _locked_file(self) -> Iterator[Any]:
        if self._path is None:
            yield None
            return
        with self._path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
            yield file

    def _apply_new_lines(self, file: Any) -> None:
        if file is None:
            return
        file.seek(self._bytes_read)
        for line in file:
            record = msgspec.json.decode(line, type=ChangeRecord)
            is_own = record.bundle == self._bundle
            self._apply(record.changes if is_own else ItemChanges(remove=record.changes.remove))
            self._bytes_read += len(line)

    def _apply(self, changes: ItemChanges) -> int:
        if changes.upsert:
            if self._has_ranker:
                raise RequestError(
                    "this bundle has a ranker, which cannot score items that are added or changed while it serves. "
                    "Remove items only, or build a bundle of the current catalogue and swap to it."
                )
            self._live_index.upsert(*_as_arrays(self._live_index.now, changes.upsert))
        return self._live_index.remove(changes.remove) if changes.remove else 0


def _as_arrays(items: Snapshot, upserts: Sequence[ItemUpsert]) -> tuple[pa.Table, Float32[np.ndarray, "items dim"]]:
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
        attributes.append(current | upsert.attributes | {"item_id": item_id})
        is_kept = upsert.vector is None
        vectors.append(items.vectors_of(np.array([row]))[0] if is_kept else np.array(upsert.vector, np.float32))
    try:
        return pa.Table.from_pylist(attributes, schema=schema), np.stack(vectors)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise RequestError(f"an attribute does not have the catalogue's type ({schema.to_string()}): {error}") from None


def _check_upsert(upsert: ItemUpsert, item_id: Any, items: Snapshot, *, is_new: bool) -> None:
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
