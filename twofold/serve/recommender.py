"""Recommendations as Arrow tables, from a bundle without HTTP, torch or a SQL engine: NumPy, FAISS and ONNX Runtime."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from twofold.dataset.tower_inputs import Queries, queries_at
from twofold.dataset.vocabulary import UNKNOWN, Ids, Vocabulary
from twofold.errors import RequestError
from twofold.index.item_mask import ItemMask, from_rows
from twofold.progress import progress_bar
from twofold.ragged import Ragged, chunks
from twofold.rule_counts import Meetings
from twofold.run_folder import atomic_file
from twofold.serve.bundle import Bundle, open_bundle
from twofold.serve.two_stage import EncodedUsers, RankedItems, encode_users, retrieve_and_rank
from twofold.serve.vector_tables import similar_items, vector_table, with_reasons
from twofold.tables import RECOMMENDATIONS
from twofold.topk import concatenate_additions

CHUNK_USERS: Final = 8192  # users per search: four blocks of the index, sorted by the number of excluded items
ENCODE_CHUNK_USERS: Final = 256  # users per call of the tower: the vectors gathered for them fit in the cache


def load(run: Path) -> "Recommender":
    """Opens the bundle of a run folder and checks its checksums; RunError if it is damaged or its parts do not fit."""
    return Recommender(open_bundle(run))


@dataclass(frozen=True)
class Recommender:
    """A bundle that returns recommendations as Arrow tables (user_id, item_id, score, rank), best first, rank from 1.

    A list is shorter than k only if fewer items are eligible. The table's metadata are `lists`, `short_lists` (lists
    shorter than k), `unknown_items` (ids of the request that no item has), `at` (UTC milliseconds), the request time,
    and `as_of`, the time for which item ages were computed. The HTTP service returns the same lists for the same `at`;
    its default is now, and not `as_of`.
    """

    bundle: Bundle

    def recommend(
        self,
        users: Ids,
        *,
        k: int = 20,
        exclude_seen: bool | None = None,
        items: Ids | None = None,
        where: str | None = None,
        at: int | None = None,
    ) -> pa.Table:
        """Returns the k best items of each user, in the order of `users`; RequestError if a user is not in the log.

        `items` restricts the lists to these ids, `where` to items for which the SQL filter is true. `at` (UTC
        milliseconds) is the request time: only earlier events are read and count as seen. `None` means after the last.
        `exclude_seen=None` means as the recipe says (`index.include_seen`).
        """
        user_rows, exclude_seen = _user_rows(self.bundle.users, users), self.bundle.excludes_seen(exclude_seen)
        chosen, unknown = (None, 0) if items is None else _item_rows(self.bundle.items, items, field="items")
        allowed = _allowed(self.bundle, chosen, where)
        parts = list(_recommend_chunks(self.bundle, user_rows, k, exclude_seen=exclude_seen, allowed=allowed, at=at))
        return _concatenate(self.bundle, parts, lists=len(user_rows), unknown=unknown, at=at)

    def recommend_for_history(
        self,
        history: Ids,
        *,
        negatives: Ids = (),
        k: int = 20,
        exclude_seen: bool | None = None,
        where: str | None = None,
        at: int | None = None,
    ) -> pa.Table:
        """Returns the k best items for a user outside the log with the positives `history`, oldest first; user_id is
        NULL.

        `negatives` are items seen and not liked. Unknown item ids are skipped and counted; RequestError if a list
        has ids, but none is known.
        """
        positives, unknown = _item_rows(self.bundle.items, history, field="history")
        negative_rows, more_unknown = _item_rows(self.bundle.items, negatives, field="negatives")
        queries = Queries(
            user_rows=np.array([UNKNOWN]),  # no attributes, counters of the average user
            at=np.array([self.bundle.as_of if at is None else at]),
            positives=(positives[None] + 1).astype(np.int32),
            negatives=(negative_rows[None] + 1).astype(np.int32),
        )
        is_excluded = self.bundle.excludes_seen(exclude_seen)
        seen = np.concatenate([positives, negative_rows])
        met = Meetings(Ragged(seen, np.array([0, len(seen)])), np.full(len(seen), queries.at[0]), queries.at)
        seen = seen[: len(seen) * is_excluded]
        ranked = retrieve_and_rank(
            self.bundle,
            replace(encode_users(self.bundle, queries), met=met if self.bundle.reads_meetings else None),
            _at_most_items(self.bundle, k),
            allowed=_allowed(self.bundle, None, where),
            excluded=Ragged(seen, np.array([0, len(seen)])),
        )
        table = _table(self.bundle, pa.nulls(1, self.bundle.users.ids.type), ranked)
        parts = [(table, _count_short(ranked, k))]
        return _concatenate(self.bundle, parts, lists=1, unknown=unknown + more_unknown, at=at)

    def recommend_all(
        self, k: int, path: str | Path, *, exclude_seen: bool | None = None, where: str | None = None
    ) -> int:
        """Writes the k best items of every user of the log to a Parquet file, all or nothing; returns its rows."""
        user_rows, exclude_seen = np.arange(len(self.bundle.users)), self.bundle.excludes_seen(exclude_seen)
        allowed = _allowed(self.bundle, None, where)
        rows = 0
        with (
            atomic_file(Path(path)) as partial,
            pq.ParquetWriter(partial, _schema(self.bundle), compression="zstd") as writer,
            progress_bar("recommend", total=len(user_rows), unit="users") as advance,
        ):
            parts = _recommend_chunks(self.bundle, user_rows, k, exclude_seen=exclude_seen, allowed=allowed, at=None)
            for chunk, (table, _) in zip(chunks(len(user_rows), CHUNK_USERS), parts, strict=True):
                writer.write_table(table)
                rows += len(table)
                advance(chunk.stop - chunk.start, "")
        return rows

    def item_vectors(self) -> pa.Table:
        """Returns item_id and vector of every item, as they are searched."""
        return vector_table("item_id", self.bundle.items.ids, self.bundle.index.vectors)

    def user_vectors(self, users: Ids | None = None, *, at: int | None = None) -> pa.Table:
        """Returns user_id and vector of users as of `at` (UTC milliseconds; `None`: after the last event); `None` means
        all users of the log. RequestError if a user is not in the log.
        """
        known = self.bundle.users
        user_rows = np.arange(len(known)) if users is None else _user_rows(known, users)
        encoded = _encode_log_users(self.bundle, user_rows, np.full(len(user_rows), at or self.bundle.as_of))
        return vector_table("user_id", known.ids_of(user_rows), encoded.vectors)

    def similar(self, item: Any, *, k: int = 20, where: str | None = None) -> pa.Table:
        """Returns the k items most similar to one: item_id, score, rank; RequestError if the item is unknown."""
        (item_row,), _ = _item_rows(self.bundle.items, [item], field="item")
        allowed = _allowed(self.bundle, None, where)
        return similar_items(self.bundle, int(item_row), _at_most_items(self.bundle, k), allowed=allowed)

    def explain(self, user: Any, *, k: int = 20, where: str | None = None) -> pa.Table:
        """Returns the k best items of a user, each with the most similar items that the user liked: `because`, and
        their `similarity` (cosine).
        """
        table = self.recommend([user], k=k, where=where)
        (user_row,) = _user_rows(self.bundle.users, [user])
        positives = self.bundle.positives
        liked = positives.item_rows[positives.offsets[user_row] : positives.offsets[user_row + 1]]
        return with_reasons(self.bundle, table, np.asarray(liked, np.int64))

    def __repr__(self) -> str:
        """Returns the size of the bundle in one line."""
        bundle = self.bundle
        as_of = f"{np.datetime64(bundle.as_of, 'ms'):}"[:10]
        return f"Recommender({len(bundle.items):,} items, {len(bundle.users):,} users, as of {as_of})"


# --- users → vectors → lists ------------------------------------------------------------------------------------------


def _recommend_chunks(
    bundle: Bundle,
    user_rows: Int64[np.ndarray, "users"],
    k: int,
    *,
    exclude_seen: bool,
    allowed: ItemMask | None,
    at: int | None,
) -> Iterator[tuple[pa.Table, int]]:
    """Yields for each chunk of users the table of their lists and the number of short lists."""
    for chunk in chunks(len(user_rows), CHUNK_USERS):
        rows = user_rows[chunk]
        timestamps = np.full(len(rows), bundle.as_of if at is None else at)
        num_seen = bundle.events.before(rows, timestamps) if exclude_seen else np.zeros(len(rows), np.int64)
        met = bundle.events.meetings(rows, timestamps) if bundle.reads_meetings else None
        ranked = retrieve_and_rank(
            bundle,
            replace(_encode_log_users(bundle, rows, timestamps), met=met),
            _at_most_items(bundle, k),
            allowed=allowed,
            excluded=Ragged(*bundle.events.slices(rows, num_seen)),
        )
        yield _table(bundle, bundle.users.ids_of(rows), ranked), _count_short(ranked, k)


def _encode_log_users(
    bundle: Bundle, user_rows: Int64[np.ndarray, "users"], at: Int64[np.ndarray, "users"]
) -> EncodedUsers:
    """Encodes users of the log from their events strictly before `at`."""
    parts = []
    for chunk in chunks(len(user_rows), ENCODE_CHUNK_USERS):
        queries = queries_at(
            bundle.features, bundle.positives, bundle.negatives, user_rows=user_rows[chunk], at=at[chunk]
        )
        parts.append(encode_users(bundle, queries))
    for_ranker = [part.ranker_vectors for part in parts if part.ranker_vectors is not None]
    vectors = np.concatenate([part.vectors for part in parts])
    added = [part.added for part in parts if part.added is not None]
    likes = [part.likes for part in parts if part.likes is not None]
    return EncodedUsers(
        vectors,
        np.concatenate(for_ranker) if for_ranker else None,
        concatenate_additions(added) if added else None,
        np.concatenate(likes) if likes else None,
    )


def _at_most_items(bundle: Bundle, k: int) -> int:
    """Returns k, or the number of items if that is smaller."""
    return min(k, max(len(bundle.items), 1))


def _count_short(ranked: RankedItems, k: int) -> int:
    return int((ranked.counts < k).sum())


# --- ids of a request → rows ------------------------------------------------------------------------------------------


def _user_rows(vocabulary: Vocabulary, users: Ids) -> Int64[np.ndarray, "users"]:
    rows = _rows_of(vocabulary, users, field="users")
    unknown = [str(user) for user, row in zip(users, rows, strict=True) if row == UNKNOWN]
    if unknown:
        raise RequestError(
            f"{_list_ids('user', unknown)} not among the {len(vocabulary):,} users of this run's log. For a new user, "
            f"give a history of items instead: --history ID,ID,ID, or recommend_for_history([...]) in Python."
        )
    return rows


def _item_rows(vocabulary: Vocabulary, items: Ids, *, field: str) -> tuple[Int64[np.ndarray, "_"], int]:
    """Returns the rows of known ids and the number of unknown ones; RequestError if ids are given and none is known."""
    rows = _rows_of(vocabulary, items, field=field)
    known = rows[rows != UNKNOWN]
    if len(rows) and not len(known):
        raise RequestError(
            f"{field}: {_list_ids('item', [str(item) for item in items])} not among the {len(vocabulary):,} items of "
            f"this run's catalogue. Its ids look like {', '.join(map(str, vocabulary.ids[:3].to_pylist()))}."
        )
    return known, len(rows) - len(known)


def _rows_of(vocabulary: Vocabulary, ids: Ids, *, field: str) -> Int64[np.ndarray, "_"]:
    if isinstance(ids, str | bytes):
        raise RequestError(f"{field} must be a list of ids, not the text {ids!r}: write [{ids!r}]")
    return vocabulary.rows_of(ids)


def _list_ids(noun: str, ids: list[str]) -> str:
    shown = ", ".join(ids[:5]) + (f" and {len(ids) - 5:,} more" if len(ids) > 5 else "")
    return f"{noun} {shown} is" if len(ids) == 1 else f"{noun}s {shown} are"


def _allowed(bundle: Bundle, item_rows: Int64[np.ndarray, "_"] | None, where: str | None) -> ItemMask | None:
    eligible = bundle.eligible(where)
    if item_rows is None:
        return eligible
    requested = from_rows(item_rows, items=len(bundle.items))
    return requested if eligible is None else eligible.intersection(requested)


# --- rows → a table ---------------------------------------------------------------------------------------------------


def _schema(bundle: Bundle) -> pa.Schema:
    kinds = (bundle.users.ids.type, bundle.items.ids.type, pa.float32(), pa.int32())
    return pa.schema(list(zip(RECOMMENDATIONS, kinds, strict=True)))


def _table(bundle: Bundle, users: pa.Array, ranked: RankedItems) -> pa.Table:
    query, position = np.nonzero(ranked.item_rows >= 0)
    columns = [
        users.take(pa.array(query)),
        bundle.items.ids_of(ranked.item_rows[query, position]),
        ranked.scores[query, position],
        (position + 1).astype(np.int32),
    ]
    return pa.table(columns, schema=_schema(bundle))


def _concatenate(
    bundle: Bundle, parts: list[tuple[pa.Table, int]], *, lists: int, unknown: int, at: int | None
) -> pa.Table:
    facts = {"lists": lists, "short_lists": sum(short for _, short in parts), "unknown_items": unknown}
    times = {"at": bundle.as_of if at is None else at, "as_of": bundle.as_of}
    metadata = {name: str(value) for name, value in (facts | times).items()}
    tables = [_schema(bundle).empty_table(), *(table for table, _ in parts)]
    return pa.concat_tables(tables).replace_schema_metadata(metadata)
