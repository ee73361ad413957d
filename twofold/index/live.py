"""Live index: items are upserted and removed while others search, in a small exact index beside the built one.

A change makes a new `Snapshot` and replaces the old one: a search sees all of a change or none of it, and a search that
has begun ends on the snapshot it began with. A result is that of an index built of the current items, ties included;
items of the built index that were updated or removed are skipped there.

What this does not do: survive the process, or grow without bound. Build a bundle of the current catalogue, and swap.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Lock
from typing import Any, Final

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int64, Integer

from twofold.dataset.vocabulary import UNKNOWN, Ids, Vocabulary
from twofold.errors import RequestError
from twofold.index.additions import keep_additions, merge_additions
from twofold.index.filters import Filters
from twofold.index.item_index import Index, build_index
from twofold.index.item_mask import full_mask
from twofold.index.qdrant_search import QdrantIndex
from twofold.index.search import Neighbors, search
from twofold.index.searchable_catalogue import Catalogue, whole_catalogue
from twofold.index.similar import search_similar
from twofold.ragged import Ragged
from twofold.topk import Additions, best_of, tie_order

MAX_CHANGED: Final = 10_000  # items: every query scans the changed items, 0.1 ms at this size


@dataclass(frozen=True)
class Snapshot:
    """One state of the items, which never changes. Items of the built index keep their rows; new ones follow."""

    items: Vocabulary
    built: Catalogue
    added: Vocabulary
    """Ids of the new items, in the order of their item rows, which begin at `len(items)`."""
    changed: Catalogue
    """New and updated items."""
    changed_rows: Int64[np.ndarray, "items"]
    """Item row of each row of `changed`."""
    withdrawn: frozenset[Any] = frozenset()
    """Ids that are never returned, whatever is upserted; some may be in no catalogue yet."""
    remote: QdrantIndex | None = None
    """Copy of the built index that is searched in its place; `None` means that there is none."""

    def __len__(self) -> int:
        """Returns the number of items that may be returned."""
        return self.built.present.count + self.changed.present.count

    def rows_of(self, ids: Ids) -> Int64[np.ndarray, "items"]:
        """Returns the item row of each id, of removed items too; -1 where the id was never in the catalogue."""
        built, added = self.items.rows_of(ids), self.added.rows_of(ids)
        new = np.where(added != UNKNOWN, added + len(self.items), UNKNOWN)
        return np.asarray(np.where(built != UNKNOWN, built, new))

    def row_of(self, item_id: object) -> int:
        """Returns the item row of one id, as `rows_of`."""
        row = self.items.row_of(item_id)
        new = UNKNOWN if row != UNKNOWN or len(self.added) == 0 else self.added.row_of(item_id)
        return row if new == UNKNOWN else new + len(self.items)

    def ids_of(self, item_rows: Integer[np.ndarray, "items"]) -> pa.Array:
        """Returns the id of each item row."""
        return pa.chunked_array([self.items.ids, self.added.ids]).take(pa.array(item_rows)).combine_chunks()

    def vectors_of(self, item_rows: Integer[np.ndarray, "items"]) -> Float32[np.ndarray, "items dim"]:
        """Returns the current vector of each item row."""
        changed = self._changed_of(item_rows)
        is_changed = changed >= 0
        vectors = np.empty((len(item_rows), self.built.index.dim), np.float32)
        vectors[is_changed] = self.changed.index.vectors[changed[is_changed]]
        vectors[~is_changed] = self.built.index.vectors[item_rows[~is_changed]]
        return vectors

    def attributes_of(self, item_rows: Integer[np.ndarray, "items"]) -> list[dict[str, Any]]:
        """Returns the current row of the items table of each item, item_id included."""
        changed = self._changed_of(item_rows)
        is_changed = changed >= 0
        built = iter(self.built.attributes.take(pa.array(item_rows[~is_changed])).to_pylist())
        updated = iter(self.changed.attributes.take(pa.array(changed[is_changed])).to_pylist())
        return [next(updated if is_new else built) for is_new in is_changed.tolist()]

    def is_changed(self, item_rows: Integer[np.ndarray, "items"]) -> Bool[np.ndarray, "items"]:
        """Returns whether each item was added or updated since the index was built."""
        return self._changed_of(item_rows) >= 0

    def search(
        self,
        queries: Float32[np.ndarray, "queries dim"],
        k: int,
        *,
        where: str | None = None,
        when: str | None = None,
        excluded: Ragged | None = None,
        added: Additions | None = None,
    ) -> Neighbors:
        """Returns the k best items of each query, as `search`; only those that satisfy the filter `where` and the
        condition `when` of a rule.
        """
        if excluded is None:
            excluded = Ragged(np.empty(0, np.int64), np.zeros(len(queries) + 1, np.int64))
        if added is not None:
            others = self.search(queries, k, where=where, when=when, excluded=excluded.joined(added.rows))
            own = keep_additions(added, excluded, self.eligible(where, when)[added.rows.values])
            return self._with_additions(others, own, queries)
        excluded_changed = self._changed_of(excluded.values)
        built_best = self._search_built(queries, k, where, when, excluded.where(excluded_changed < 0))
        if self.changed.present.count == 0:
            return built_best
        changed_best = search(
            self.changed.index,
            queries,
            k,
            allowed=self.changed.eligible(where, when),
            excluded=excluded.where(excluded_changed >= 0, excluded_changed),
        )
        return self._merge(built_best, changed_best, k)

    def similar(self, item_row: int, k: int, *, where: str | None = None) -> Neighbors:
        """Returns the k other items most similar to one, by the cosine of the vectors, or by distance where that is the
        score. Cosines of an index of inner products are computed here, even if there is a remote copy.
        """
        vector, itself = self.vectors_of(np.array([item_row])), Ragged(np.array([item_row]), np.array([0, 1]))
        if self.built.index.score != "dot":
            return self.search(vector, k, where=where, excluded=itself)
        changed_row = self._changed_of(itself.values)
        own = itself.where(changed_row < 0)
        built = search_similar(self.built.index, vector, k, allowed=self.built.eligible(where), excluded=own)
        if self.changed.present.count == 0:
            return built
        own = itself.where(changed_row >= 0, changed_row)
        changed = search_similar(self.changed.index, vector, k, allowed=self.changed.eligible(where), excluded=own)
        return self._merge(built, changed, k)

    def _search_built(
        self,
        queries: Float32[np.ndarray, "queries dim"],
        k: int,
        where: str | None,
        when: str | None,
        excluded: Ragged,
    ) -> Neighbors:
        """Returns the k best items of the built index that are present."""
        is_present = self.built.present.count == len(self.items)
        if self.remote is not None:
            absent = np.empty(0, np.int64) if is_present else np.flatnonzero(~self.built.present.mask)
            conditions = [condition for condition in (where, when) if condition is not None]
            return self.remote.search(queries, k, conditions=conditions, absent=absent, excluded=excluded)
        is_whole = where is when is None and is_present
        allowed = None if is_whole else self.built.eligible(where, when)
        return search(self.built.index, queries, k, allowed=allowed, excluded=excluded)

    def _with_additions(
        self, others: Neighbors, own: Additions, queries: Float32[np.ndarray, "queries dim"]
    ) -> Neighbors:
        score = self.built.index.score
        best = merge_additions(others, own, self.vectors_of, queries, score=score, rank=self.tie_rank)
        return Neighbors(best.item_rows, best.scores, best.counts, others.is_exact)

    def eligible(self, *conditions: str | None) -> Bool[np.ndarray, "items"]:
        """Returns for each item row, new items included, whether a list under the conditions may contain the item."""
        mask = np.zeros(len(self.items) + len(self.added), bool)
        mask[: len(self.items)] = self.built.eligible(*conditions).mask
        mask[self.changed_rows] = self.changed.eligible(*conditions).mask
        return mask

    @property
    def attributes(self) -> pa.Table:
        """The current items table, in the order of the item rows, new items included."""
        if len(self.changed_rows) == 0:
            return self.built.attributes
        row = np.arange(len(self.items) + len(self.added))
        row[self.changed_rows] = len(self.items) + np.arange(len(self.changed_rows))
        return pa.concat_tables([self.built.attributes, self.changed.attributes]).take(pa.array(row))

    @property
    def tie_rank(self) -> Int64[np.ndarray, "_"]:
        """Rank of each item row among equal scores."""
        return _tie_rank(len(self.items))

    def _changed_of(self, item_rows: Integer[np.ndarray, "items"]) -> Int64[np.ndarray, "items"]:
        """Returns the row of each item in `changed`; -1 where the item was not changed."""
        if len(self.changed_rows) == 0:
            return np.full(len(item_rows), -1)
        sorted_rows, changed = self._sorted_rows
        position = np.minimum(np.searchsorted(sorted_rows, item_rows), len(sorted_rows) - 1)
        return np.where(sorted_rows[position] == item_rows, changed[position], -1)

    @cached_property
    def _sorted_rows(self) -> tuple[Int64[np.ndarray, "items"], Int64[np.ndarray, "items"]]:
        order = np.argsort(self.changed_rows)
        return self.changed_rows[order], order

    def _merge(self, built: Neighbors, changed: Neighbors, k: int) -> Neighbors:
        changed_rows = np.where(changed.item_rows < 0, -1, self.changed_rows[changed.item_rows])
        rows, scores = np.hstack([built.item_rows, changed_rows]), np.hstack([built.scores, changed.scores])
        best = best_of(rows, scores, k, rank=self.tie_rank)
        return Neighbors(best.item_rows, best.scores, best.counts, built.is_exact and changed.is_exact)


class LiveIndex:
    """The current items. `now` is read without waiting; changes are made one after another."""

    def __init__(
        self,
        index: Index,
        items: Vocabulary,
        attributes: pa.Table,
        *,
        filters: Filters | None = None,
        remote: QdrantIndex | None = None,
    ) -> None:
        """Starts with the items of the index; `attributes` holds item_id, in the order of the item rows."""
        assert len(index) == len(items) == len(attributes)
        no_items = build_index(index.vectors[:0].copy(), score=index.score)
        self._now = Snapshot(
            items=items,
            built=whole_catalogue(index, attributes, filters),
            added=Vocabulary(items.ids[:0], 0),
            changed=whole_catalogue(no_items, attributes.slice(0, 0)),
            changed_rows=np.empty(0, np.int64),
            remote=remote,
        )
        self._lock = Lock()

    @property
    def now(self) -> Snapshot:
        """The last complete snapshot: take it once for each request."""
        return self._now

    def upsert(
        self,
        attributes: pa.Table,
        vectors: Float32[np.ndarray, "items dim"],
        *,
        record: Callable[[], None] = lambda: None,
    ) -> Snapshot:
        """Adds or updates one item per row, all or none; withdrawn items stay withdrawn.

        `attributes` has the columns of the catalogue, item_id among them. Raises RequestError if they do not fit it.
        `record` is called once the change is known to be valid; if it raises, nothing changes.
        """
        with self._lock:
            attributes = _check_and_cast(attributes, vectors, self._now.built)
            changed = _with_changes(self._now, attributes, vectors)
            record()
            self._now = changed
            return self._now

    def set_withdrawn(self, ids: Iterable[Any]) -> int:
        """Withdraws exactly these items from all later results; returns how many became unavailable."""
        with self._lock:
            before = self._now
            self._now = _present(replace(before, withdrawn=frozenset(before.items.typed([*ids]).to_pylist()) - {None}))
            return len(before) - len(self._now)


def _with_changes(now: Snapshot, attributes: pa.Table, vectors: Float32[np.ndarray, "items dim"]) -> Snapshot:
    rows = now.rows_of(attributes["item_id"])
    is_new = rows == UNKNOWN
    rows[is_new] = len(now.items) + len(now.added) + np.arange(is_new.sum())
    stays = ~np.isin(now.changed_rows, rows)
    all_rows = np.concatenate([now.changed_rows[stays], rows])
    if len(all_rows) > MAX_CHANGED:
        raise RequestError(
            f"{len(all_rows):,} items would have been added or updated since the bundle was built, and the live index "
            f"holds at most {MAX_CHANGED:,}. Build a bundle of the current catalogue, and swap to it."
        )
    order = _in_tie_order(all_rows, len(now.items))
    table = pa.concat_tables([now.changed.attributes.filter(pa.array(stays)), attributes]).take(pa.array(order))
    index = build_index(np.concatenate([now.changed.index.vectors[stays], vectors])[order], score=now.built.index.score)
    new_ids = attributes["item_id"].filter(pa.array(is_new)).combine_chunks()
    added = Vocabulary(pa.concat_arrays([now.added.ids, new_ids]), 0)
    changed = whole_catalogue(index, table)
    return _present(replace(now, added=added, changed=changed, changed_rows=all_rows[order]))


def _present(snapshot: Snapshot) -> Snapshot:
    """Returns the snapshot with the items that may be returned: each item once, and no withdrawn item."""
    rows = snapshot.rows_of([*snapshot.withdrawn])
    changed = snapshot._changed_of(rows)
    gone = np.concatenate([rows, snapshot.changed_rows])
    built = full_mask(len(snapshot.items)).without_rows(gone[(gone >= 0) & (gone < len(snapshot.items))])
    others = full_mask(len(snapshot.changed_rows)).without_rows(changed[changed >= 0])
    return replace(
        snapshot,
        built=replace(snapshot.built, present=built),
        changed=replace(snapshot.changed, present=others),
    )


def _check_and_cast(attributes: pa.Table, vectors: Float32[np.ndarray, "_ _"], built: Catalogue) -> pa.Table:
    """Returns the table with the catalogue's columns and types; raises RequestError if it or the vectors do not fit."""
    schema = built.attributes.schema
    missing = [name for name in schema.names if name not in attributes.column_names]
    if missing:
        raise RequestError(
            f"the new items lack {', '.join(missing)}; the catalogue has {', '.join(schema.names)}. Give NULL where a "
            f"value is not known."
        )
    try:
        attributes = attributes.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise RequestError(
            f"the new items do not have the types of the catalogue ({schema.to_string()}): {error}"
        ) from None
    ids = attributes["item_id"]
    if ids.null_count or len(ids.unique()) < len(ids):
        raise RequestError("item_id of the new items must not be NULL, and must not occur twice")
    if vectors.shape != (len(attributes), built.index.dim):
        raise RequestError(
            f"the new items have vectors of shape {vectors.shape}; {len(attributes)} x {built.index.dim} are needed: "
            f"one row per item, as wide as the index"
        )
    if not np.isfinite(vectors).all():
        raise RequestError("the vectors of the new items hold NaN or infinity")
    if built.index.score == "cosine" and (np.abs(np.linalg.norm(vectors, axis=1) - 1) > 1e-3).any():
        raise RequestError("the index compares by cosine: the vectors of the new items must have length 1")
    return attributes


def _tie_rank(items: int) -> Int64[np.ndarray, "_"]:
    """Returns the tie rank of every row there can be; the first `items` are ranked as they would be alone."""
    rank, _ = tie_order(items + MAX_CHANGED)
    return rank


def _in_tie_order(item_rows: Int64[np.ndarray, "items"], built_items: int) -> Int64[np.ndarray, "items"]:
    """Returns an order in which the index of changed items breaks ties as one index of all items would."""
    _, row_of_rank = tie_order(len(item_rows))
    order = np.empty(len(item_rows), np.int64)
    order[row_of_rank] = np.argsort(_tie_rank(built_items)[item_rows])
    return order
