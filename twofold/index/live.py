"""Items added, updated and withdrawn while others search: a small exact index beside the large one.

A change makes a new `Snapshot` and puts it in the old one's place: a search sees all of a change or none of it, and one
that has begun ends on the state it began with. An answer is that of an index built of the items as they are, ties
included; what is in the large index and no longer holds is passed over there.

What this does not do: survive the process, or grow without bound. Build a bundle of the catalogue as it is, and swap.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from threading import Lock
from typing import Any, Final

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64, Integer

from twofold.dataset.vocabulary import UNKNOWN, Ids, Vocabulary
from twofold.errors import RequestError
from twofold.index.candidates import only_where
from twofold.index.item_mask import Filters, ItemMask, from_mask, from_rows, full_mask
from twofold.index.search import Index, Neighbours, build_index, search
from twofold.ragged import Ragged
from twofold.topk import tie_order

MOST_CHANGED: Final = 10_000  # items: the side index is scanned by every query, 0.1 ms at this size


@dataclass(frozen=True)
class Catalogue:
    """Items that can be searched: line i of each part is one item. `present` are those that may be answered."""

    index: Index
    attributes: pa.Table
    filters: Filters
    present: ItemMask

    def eligible(self, where: str | None, lines: Int64[np.ndarray, "chosen"] | None) -> ItemMask:
        """The lines that are present, among `lines`, and for which the filter holds."""
        found = self.present if where is None else self.filters.eligible(where)
        if where is not None and self.present.count < len(self.index):
            found = found.both(self.present)
        return found if lines is None else from_rows(lines, items=len(self.index)).both(found)


def catalogue(index: Index, attributes: pa.Table, filters: Filters | None = None) -> Catalogue:
    """All items of an index, with what filters read, and those that are kept already."""
    kept = Filters(attributes, index.vectors) if filters is None else filters
    return Catalogue(index, attributes, kept, full_mask(len(index)))


@dataclass(frozen=True)
class Snapshot:
    """One state of the items; never changes. Items that the index was built of keep their rows, new ones follow."""

    items: Vocabulary
    built: Catalogue
    added: Vocabulary
    """Ids of the new items, in the order of their rows, which begin at `len(items)`."""
    changed: Catalogue
    """New and updated items."""
    changed_rows: Int64[np.ndarray, "changed"]
    """The item row of each line of `changed`."""

    def __len__(self) -> int:
        """How many items may be answered."""
        return self.built.present.count + self.changed.present.count

    def rows_of(self, ids: Ids) -> Int64[np.ndarray, "asked"]:
        """The item row of each id, also of withdrawn ones; -1 where it was never there."""
        built, added = self.items.rows_of(ids), self.added.rows_of(ids)
        new = np.where(added != UNKNOWN, added + len(self.items), UNKNOWN)
        return np.asarray(np.where(built != UNKNOWN, built, new))

    def row_of(self, item_id: object) -> int:
        """The item row of one id, as `rows_of`."""
        row = self.items.row_of(item_id)
        new = UNKNOWN if row != UNKNOWN or len(self.added) == 0 else self.added.row_of(item_id)
        return row if new == UNKNOWN else new + len(self.items)

    def ids_of(self, item_rows: Integer[np.ndarray, "asked"]) -> pa.Array:
        """The id of each item row."""
        return pa.chunked_array([self.items.ids, self.added.ids]).take(pa.array(item_rows)).combine_chunks()

    def vectors_of(self, item_rows: Integer[np.ndarray, "asked"]) -> Float32[np.ndarray, "asked dim"]:
        """The vector of each item row, as last updated."""
        lines = self._lines_of(item_rows)
        is_new = lines >= 0
        vectors = np.empty((len(item_rows), self.built.index.dim), np.float32)
        vectors[is_new] = self.changed.index.vectors[lines[is_new]]
        vectors[~is_new] = self.built.index.vectors[item_rows[~is_new]]
        return vectors

    def attributes_of(self, item_row: int) -> dict[str, Any]:
        """What the items table says of an item, as last updated; item_id among it."""
        (line,) = self._lines_of(np.array([item_row])).tolist()
        table, place = (self.built.attributes, item_row) if line < 0 else (self.changed.attributes, line)
        (found,) = table.slice(place, 1).to_pylist()
        return dict(found)

    def search(
        self,
        queries: Float32[np.ndarray, "queries dim"],
        k: int,
        *,
        where: str | None = None,
        among: Int64[np.ndarray, "chosen"] | None = None,
        excluded: Ragged | None = None,
    ) -> Neighbours:
        """The k best items of each query, as `knn.search`; `where` is a filter, `among` the only item rows allowed."""
        if excluded is None:
            excluded = Ragged(np.empty(0, np.int64), np.zeros(len(queries) + 1, np.int64))
        own = self._lines_of(excluded.values)
        new_only, old_only = None, None
        if among is not None:
            lines = self._lines_of(among)
            new_only, old_only = lines[lines >= 0], among[(lines < 0) & (among >= 0)]
        is_whole = where is None and among is None and self.built.present.count == len(self.items)
        old = search(
            self.built.index,
            queries,
            k,
            allowed=None if is_whole else self.built.eligible(where, old_only),
            excluded=only_where(excluded, excluded.values, own < 0),
        )
        if self.changed.present.count == 0:
            return old
        new = search(
            self.changed.index,
            queries,
            k,
            allowed=self.changed.eligible(where, new_only),
            excluded=only_where(excluded, own, own >= 0),
        )
        return self._merged(old, new, k)

    def _lines_of(self, item_rows: Integer[np.ndarray, "rows"]) -> Int64[np.ndarray, "rows"]:
        """Their lines in `changed`; -1 for those that are not there."""
        if len(self.changed_rows) == 0:
            return np.full(len(item_rows), -1)
        rows, lines = self._sorted_rows
        place = np.minimum(np.searchsorted(rows, item_rows), len(rows) - 1)
        return np.where(rows[place] == item_rows, lines[place], -1)

    @cached_property
    def _sorted_rows(self) -> tuple[Int64[np.ndarray, "changed"], Int64[np.ndarray, "changed"]]:
        lines = np.argsort(self.changed_rows)
        return self.changed_rows[lines], lines

    def _merged(self, old: Neighbours, new: Neighbours, k: int) -> Neighbours:
        new_rows = np.where(new.item_rows < 0, -1, self.changed_rows[new.item_rows])
        rows, scores = np.hstack([old.item_rows, new_rows]), np.hstack([old.scores, new.scores])
        order = np.lexsort((_tie_rank(len(self.items))[rows], scores), axis=-1)[:, ::-1][:, :k]
        item_rows = np.take_along_axis(rows, order, axis=1)
        best = np.take_along_axis(scores, order, axis=1)
        return Neighbours(item_rows, best, (item_rows >= 0).sum(axis=1), old.is_exact and new.is_exact)


class LiveIndex:
    """The items as they are now. `now` is read without waiting; changes come one after another."""

    def __init__(
        self, index: Index, items: Vocabulary, attributes: pa.Table, *, filters: Filters | None = None
    ) -> None:
        """Begins with what the index was built of; `attributes` hold item_id, in the order of the item rows."""
        assert len(index) == len(items) == len(attributes)
        nothing = build_index(index.vectors[:0].copy(), score=index.score)
        self._now = Snapshot(
            items=items,
            built=catalogue(index, attributes, filters),
            added=Vocabulary(items.ids[:0], 0),
            changed=catalogue(nothing, attributes.slice(0, 0)),
            changed_rows=np.empty(0, np.int64),
        )
        self._lock = Lock()

    @property
    def now(self) -> Snapshot:
        """The last complete state: take it once for each request."""
        return self._now

    def put(self, attributes: pa.Table, vectors: Float32[np.ndarray, "items dim"]) -> Snapshot:
        """Adds or updates one item a line, all or none; what was withdrawn is back. RequestError for what cannot be.

        `attributes` has the columns of the catalogue, item_id among them.
        """
        with self._lock:
            attributes = _fitting(attributes, vectors, self._now.built)
            self._now = _with_changes(self._now, attributes, vectors)
            return self._now

    def withdraw(self, ids: Ids) -> int:
        """Answers none of these items from now on; how many it would have answered before."""
        with self._lock:
            before = self._now
            rows = before.rows_of(ids)
            lines = before._lines_of(rows)
            is_old = (rows >= 0) & (rows < len(before.items))
            self._now = replace(
                before,
                built=replace(before.built, present=before.built.present.without(rows[is_old])),
                changed=replace(before.changed, present=before.changed.present.without(lines[lines >= 0])),
            )
            return len(before) - len(self._now)


def _with_changes(now: Snapshot, attributes: pa.Table, vectors: Float32[np.ndarray, "put dim"]) -> Snapshot:
    rows = now.rows_of(attributes["item_id"])
    is_new = rows == UNKNOWN
    rows[is_new] = len(now.items) + len(now.added) + np.arange(is_new.sum())
    stays = ~np.isin(now.changed_rows, rows)
    all_rows = np.concatenate([now.changed_rows[stays], rows])
    if len(all_rows) > MOST_CHANGED:
        raise RequestError(
            f"{len(all_rows):,} items would have been added or updated since the bundle was built, and the live index "
            f"holds at most {MOST_CHANGED:,}. Build a bundle of the catalogue as it is now, and swap to it."
        )
    order = _in_tie_order(all_rows, len(now.items))
    held = pa.concat_tables([now.changed.attributes.filter(pa.array(stays)), attributes]).take(pa.array(order))
    index = build_index(np.concatenate([now.changed.index.vectors[stays], vectors])[order], score=now.built.index.score)
    present = np.concatenate([now.changed.present.mask[stays], np.ones(len(rows), bool)])[order]
    new_ids = attributes["item_id"].filter(pa.array(is_new)).combine_chunks()
    return Snapshot(
        items=now.items,
        built=replace(now.built, present=now.built.present.without(rows[rows < len(now.items)])),
        added=Vocabulary(pa.concat_arrays([now.added.ids, new_ids]), 0),
        changed=replace(catalogue(index, held), present=from_mask(present)),
        changed_rows=all_rows[order],
    )


def _fitting(attributes: pa.Table, vectors: Float32[np.ndarray, "put dim"], built: Catalogue) -> pa.Table:
    """The table with the catalogue's columns and types; RequestError if it or the vectors cannot stand beside it."""
    schema = built.attributes.schema
    missing = [name for name in schema.names if name not in attributes.column_names]
    if missing:
        raise RequestError(
            f"the new items lack {', '.join(missing)}; the catalogue has {', '.join(schema.names)}. NULL may stand "
            f"where a value is not known."
        )
    try:
        attributes = attributes.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise RequestError(
            f"the new items do not have the types of the catalogue ({schema.to_string()}): {error}"
        ) from None
    ids = attributes["item_id"]
    if ids.null_count or len(ids.unique()) < len(ids):
        raise RequestError("item_id of the new items must not be NULL, and each must be there once")
    if vectors.shape != (len(attributes), built.index.dim):
        raise RequestError(
            f"the new items have vectors of shape {vectors.shape}; {len(attributes)} x {built.index.dim} are needed: "
            f"one line an item, as wide as the index"
        )
    if not np.isfinite(vectors).all():
        raise RequestError("the vectors of the new items hold NaN or infinity")
    if built.index.score == "cosine" and (np.abs(np.linalg.norm(vectors, axis=1) - 1) > 1e-3).any():
        raise RequestError("the index compares by cosine: the vectors of the new items must have length 1")
    return attributes


def _tie_rank(items: int) -> Int64[np.ndarray, "items"]:
    """The rank that breaks ties, for as many rows as there can be: for the first of them the same as for them alone."""
    rank, _ = tie_order(items + MOST_CHANGED)
    return rank


def _in_tie_order(item_rows: Int64[np.ndarray, "changed"], items: int) -> Int64[np.ndarray, "changed"]:
    """An order of the lines in which the side index breaks ties as one index of all items would."""
    _, line_of_rank = tie_order(len(item_rows))
    order = np.empty(len(item_rows), np.int64)
    order[line_of_rank] = np.argsort(_tie_rank(items)[item_rows])
    return order
