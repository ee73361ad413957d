"""Items added, updated and withdrawn while serving: posted to one worker, learnt by all through one file.

A change is a line of a file that the workers of one service share. Each worker reads on from where it stopped, so all
apply the same changes in the same order, and so does one that is started anew. Vectors belong to the bundle they were
made for: another bundle takes over what was withdrawn, and nothing else, since it was built of newer items.

What this does not do: outlive the service, or reach another machine. Build a bundle of the catalogue as it is, and
swap to it.
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
from twofold.serve.schemas import Changes, ItemUpsert


class Line(Struct, frozen=True):
    """What stands in the file: the digest of the bundle that was changed, and how."""

    bundle: str
    changes: Changes


class LiveItems:
    """The items of one bundle as they are now, kept in step with a file. Threads may share it."""

    def __init__(self, live: LiveIndex, *, bundle: str, has_ranker: bool) -> None:
        """Tells nobody else, until it follows a file. `bundle` is its digest."""
        self._live, self._bundle, self._has_ranker = live, bundle, has_ranker
        self._path: Path | None = None
        self._read = 0  # bytes of the file
        self._lock = Lock()

    def follow(self, path: Path) -> None:
        """Does as the file says, and writes its own changes there."""
        self._path = path
        self.catch_up()

    @property
    def now(self) -> Snapshot:
        """The last complete state."""
        return self._live.now

    def change(self, changes: Changes) -> tuple[int, int]:
        """How many were put, and how many are no longer answered; RequestError, and nothing done, if it cannot be."""
        with self._lock, self._shared() as file:
            self._apply_rest(file)
            withdrawn = self._apply(changes)
            if file is not None:
                file.seek(0, 2)
                file.write(msgspec.json.encode(Line(self._bundle, changes)) + b"\n")
                self._read = file.tell()
        return len(changes.put), withdrawn

    def catch_up(self) -> None:
        """Applies what others were told since."""
        if self._path is None or not self._path.exists() or self._path.stat().st_size == self._read:
            return
        with self._lock, self._shared() as file:
            self._apply_rest(file)

    @contextmanager
    def _shared(self) -> Iterator[Any]:
        if self._path is None:
            yield None
            return
        with self._path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # let go of when the file is closed
            yield file

    def _apply_rest(self, file: Any) -> None:
        if file is None:
            return
        file.seek(self._read)
        for text in file:
            line = msgspec.json.decode(text, type=Line)
            is_own = line.bundle == self._bundle
            self._apply(line.changes if is_own else Changes(withdraw=line.changes.withdraw))
        self._read = file.tell()

    def _apply(self, changes: Changes) -> int:
        if changes.put:
            if self._has_ranker:
                raise RequestError(
                    "this bundle has a ranker, which knows nothing of items that are added or changed while it serves. "
                    "Withdraw items, or build a bundle of the catalogue as it is and swap to it."
                )
            self._live.put(*_as_arrays(self._live.now, changes.put))
        return self._live.withdraw(changes.withdraw) if changes.withdraw else 0


def _as_arrays(now: Snapshot, puts: Sequence[ItemUpsert]) -> tuple[pa.Table, Float32[np.ndarray, "puts dim"]]:
    """Attributes and vectors, what is not given taken from the item as it is; RequestError names what does not fit."""
    schema, dim = now.built.attributes.schema, now.built.index.dim
    ids = now.items.typed([put.item_id for put in puts])
    rows, lines, vectors = now.rows_of(ids).tolist(), [], []
    for put, item_id, row in zip(puts, ids.to_pylist(), rows, strict=True):
        if item_id is None:
            raise RequestError(f"item_id {put.item_id!r} is not of the catalogue's type, {now.items.ids.type}.")
        strange = sorted(put.attributes.keys() - set(schema.names) - {"item_id"})
        if strange:
            raise RequestError(
                f"item {item_id}: there is no attribute {', '.join(strange)}; the catalogue has "
                f"{', '.join(name for name in schema.names if name != 'item_id')}."
            )
        if put.vector is None and row == UNKNOWN:
            raise RequestError(f"item {item_id} is new: give its vector, {dim} numbers of this bundle's item tower.")
        if put.vector is not None and len(put.vector) != dim:
            raise RequestError(f"item {item_id}: the vector has {len(put.vector)} numbers; this bundle's have {dim}.")
        known = {} if row == UNKNOWN else now.attributes_of(row)
        lines.append(known | put.attributes | {"item_id": item_id})
        vectors.append(now.vectors_of(np.array([row]))[0] if put.vector is None else np.array(put.vector, np.float32))
    try:
        return pa.Table.from_pylist(lines, schema=schema), np.stack(vectors)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise RequestError(f"an attribute does not have the catalogue's type ({schema.to_string()}): {error}") from None
