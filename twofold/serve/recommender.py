"""Bundle + request → recommendations. No HTTP here, no torch, no engine: NumPy, FAISS and a small graph."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from twofold.dataset.features import Queries, queries_at
from twofold.dataset.vocabulary import UNKNOWN, Ids, Vocabulary
from twofold.errors import RequestError
from twofold.index.item_mask import ItemMask, from_rows
from twofold.progress import progress_bar
from twofold.ragged import Ragged, chunks
from twofold.run_folder import atomic_file
from twofold.serve.bundle import Bundle, open_bundle
from twofold.serve.two_stage import EncodedUsers, RankedItems, answer, encode_users
from twofold.tables import RECOMMENDATIONS

BLOCK: Final = 8192  # users answered at once: four blocks of the search, sorted by how much they exclude
ENCODED: Final = 256  # users encoded at once: what the tower gathers for them stays in the cache


def load(run: Path) -> "Recommender":
    """Opens the bundle of a run folder, its checksums compared; RunError if it is damaged or its parts do not fit."""
    return Recommender(open_bundle(run))


@dataclass(frozen=True)
class Recommender:
    """Answers as Arrow tables (user_id, item_id, score, rank), best first, rank from 1.

    A list is shorter than k only if fewer items are eligible, never because the search missed some. The table's
    metadata say so: `short_lists` counts them, `unknown_items` the ids of a request that no item has, and `as_of` is
    the moment (UTC milliseconds) that item ages were computed for.
    """

    bundle: Bundle

    def recommend(
        self,
        users: Ids,
        *,
        k: int = 20,
        exclude_seen: bool = True,
        items: Ids | None = None,
        where: str | None = None,
        at: int | None = None,
    ) -> pa.Table:
        """The k best items of each user of the log, in the order asked; RequestError for a user it does not hold.

        `items` restricts the answers to these ids, `where` to items for which the filter holds. `at` (UTC milliseconds)
        is the moment asked for: only earlier events are known, and only they count as seen. Default: after the last.
        """
        user_rows = _user_rows(self.bundle.users, users)
        chosen, unknown = (None, 0) if items is None else _item_rows(self.bundle.items, items, field="items")
        allowed = _allowed(self.bundle, chosen, where)
        parts = list(_answers(self.bundle, user_rows, k, exclude_seen=exclude_seen, allowed=allowed, at=at))
        return _joined(self.bundle, parts, asked=len(user_rows), unknown=unknown)

    def recommend_for_history(
        self,
        history: Ids,
        *,
        negatives: Ids = (),
        k: int = 20,
        exclude_seen: bool = True,
        where: str | None = None,
        at: int | None = None,
    ) -> pa.Table:
        """The k best items for someone the log does not hold, who liked `history` (oldest first); user_id is NULL.

        `negatives` are items met and not liked. Ids that no item has are passed over and counted; RequestError if no
        other is given.
        """
        positives, unknown = _item_rows(self.bundle.items, history, field="history")
        disliked, more_unknown = _item_rows(self.bundle.items, negatives, field="negatives")
        queries = Queries(
            user_rows=np.array([UNKNOWN]),  # nobody: no attributes, counters as of the average
            at=np.array([self.bundle.as_of if at is None else at]),
            positives=(positives[None] + 1).astype(np.int32),
            negatives=(disliked[None] + 1).astype(np.int32),
        )
        seen = np.concatenate([positives, disliked]) if exclude_seen else np.empty(0, np.int64)
        found = answer(
            self.bundle,
            encode_users(self.bundle, queries),
            _at_most_all(self.bundle, k),
            allowed=_allowed(self.bundle, None, where),
            excluded=Ragged(seen, np.array([0, len(seen)])),
        )
        nobody = pa.nulls(1, self.bundle.users.ids.type)
        return _joined(self.bundle, [(_table(self.bundle, nobody, found), _short(found, k))], 1, unknown + more_unknown)

    def recommend_all(self, k: int, path: Path, *, exclude_seen: bool = True, where: str | None = None) -> int:
        """Writes the k best items of every user of the log to a Parquet file, whole or not at all; returns its rows."""
        user_rows = np.arange(len(self.bundle.users))
        allowed = _allowed(self.bundle, None, where)
        rows = 0
        with (
            atomic_file(path) as partial,
            pq.ParquetWriter(partial, _schema(self.bundle), compression="zstd") as writer,
            progress_bar("recommend", total=len(user_rows), unit="users") as advance,
        ):
            answers = _answers(self.bundle, user_rows, k, exclude_seen=exclude_seen, allowed=allowed, at=None)
            for block, (table, _) in zip(chunks(len(user_rows), BLOCK), answers, strict=True):
                writer.write_table(table)
                rows += len(table)
                advance(block.stop - block.start, "")
        return rows


# --- users → vectors → answers ----------------------------------------------------------------------------------------


def _answers(
    bundle: Bundle,
    user_rows: Int64[np.ndarray, "users"],
    k: int,
    *,
    exclude_seen: bool,
    allowed: ItemMask | None,
    at: int | None,
) -> Iterator[tuple[pa.Table, int]]:
    """Block by block: the answers, and how many lists are short."""
    for block in chunks(len(user_rows), BLOCK):
        rows = user_rows[block]
        moment = np.full(len(rows), bundle.as_of if at is None else at)
        met = bundle.events.before(rows, moment) if exclude_seen else np.zeros(len(rows), np.int64)
        found = answer(
            bundle,
            _asking(bundle, rows, moment),
            _at_most_all(bundle, k),
            allowed=allowed,
            excluded=Ragged(*bundle.events.slices(rows, met)),
        )
        yield _table(bundle, bundle.users.ids_of(rows), found), _short(found, k)


def _asking(bundle: Bundle, user_rows: Int64[np.ndarray, "users"], at: Int64[np.ndarray, "users"]) -> EncodedUsers:
    """What users of the log ask with, knowing their events strictly before `at`."""
    parts = []
    for block in chunks(len(user_rows), ENCODED):
        queries = queries_at(
            bundle.features, bundle.positives, bundle.negatives, user_rows=user_rows[block], at=at[block]
        )
        parts.append(encode_users(bundle, queries))
    users = [part.users for part in parts if part.users is not None]
    return EncodedUsers(np.concatenate([part.vectors for part in parts]), np.concatenate(users) if users else None)


def _at_most_all(bundle: Bundle, k: int) -> int:
    """k, but not more than there are items: a list cannot be longer."""
    return min(k, max(len(bundle.items), 1))


def _short(found: RankedItems, k: int) -> int:
    return int((found.counts < k).sum())


# --- ids of a request → rows ------------------------------------------------------------------------------------------


def _user_rows(vocabulary: Vocabulary, users: Ids) -> Int64[np.ndarray, "users"]:
    rows = _rows_of(vocabulary, users, field="users")
    strangers = [str(user) for user, row in zip(users, rows, strict=True) if row == UNKNOWN]
    if strangers:
        raise RequestError(
            f"{_listed('user', strangers)} not among the {len(vocabulary):,} users of this run's log. For someone new, "
            f"give a history of items instead: --history ID,ID,ID, or recommend_for_history([...]) in Python."
        )
    return rows


def _item_rows(vocabulary: Vocabulary, items: Ids, *, field: str) -> tuple[Int64[np.ndarray, "known"], int]:
    """Rows of the known ids, and how many are unknown; RequestError if ids are given and none is known."""
    rows = _rows_of(vocabulary, items, field=field)
    known = rows[rows != UNKNOWN]
    if len(rows) and not len(known):
        raise RequestError(
            f"{field}: {_listed('item', [str(item) for item in items])} not among the {len(vocabulary):,} items of "
            f"this run's catalogue. Its ids look like {', '.join(map(str, vocabulary.ids[:3].to_pylist()))}."
        )
    return known, len(rows) - len(known)


def _rows_of(vocabulary: Vocabulary, ids: Ids, *, field: str) -> Int64[np.ndarray, "asked"]:
    if isinstance(ids, str | bytes):
        raise RequestError(f"{field} must be a list of ids, not the text {ids!r}: write [{ids!r}]")
    return vocabulary.rows_of(ids)


def _listed(what: str, ids: list[str]) -> str:
    shown = ", ".join(ids[:5]) + (f" and {len(ids) - 5:,} more" if len(ids) > 5 else "")
    return f"{what} {shown} is" if len(ids) == 1 else f"{what}s {shown} are"


def _allowed(bundle: Bundle, item_rows: Int64[np.ndarray, "chosen"] | None, where: str | None) -> ItemMask | None:
    passing = bundle.eligible(where)
    if item_rows is None:
        return passing
    chosen = from_rows(item_rows, items=len(bundle.items))
    return chosen if passing is None else passing.both(chosen)


# --- rows → a table ---------------------------------------------------------------------------------------------------


def _schema(bundle: Bundle) -> pa.Schema:
    kinds = (bundle.users.ids.type, bundle.items.ids.type, pa.float32(), pa.int32())
    return pa.schema(list(zip(RECOMMENDATIONS, kinds, strict=True)))


def _table(bundle: Bundle, users: pa.Array, found: RankedItems) -> pa.Table:
    line, place = np.nonzero(found.item_rows >= 0)
    columns = [
        users.take(pa.array(line)),
        bundle.items.ids_of(found.item_rows[line, place]),
        found.scores[line, place],
        (place + 1).astype(np.int32),
    ]
    return pa.table(columns, schema=_schema(bundle))


def _joined(bundle: Bundle, parts: list[tuple[pa.Table, int]], asked: int, unknown: int) -> pa.Table:
    facts = {"lists": asked, "short_lists": sum(short for _, short in parts), "unknown_items": unknown}
    metadata = {name: str(value) for name, value in (facts | {"as_of": bundle.as_of}).items()}
    tables = [_schema(bundle).empty_table(), *(table for table, _ in parts)]
    return pa.concat_tables(tables).replace_schema_metadata(metadata)
