"""Embedding tables of ids: which row an id reads, and how many ids have none of their own."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int32

from twofold.errors import DataError
from twofold.recipe.id_rows import IdRows
from twofold.render.numbers import plural
from twofold.tables import DAY_MS


@dataclass(frozen=True)
class IdTable:
    """The rows of an embedding table of ids, by their rows in the vocabulary + 1.

    The first `num_own` ids of the vocabulary have a row each, the others up to `num_known` share `shared_rows`, and the
    rest read row 0, which is none. `num_buckets` is the number of rows that all of these share in turn; `None` means
    that they do not.
    """

    num_known: int
    num_own: int
    shared_rows: int = 0
    num_buckets: int | None = None

    @property
    def num_rows(self) -> int:
        """Number of rows of the table, row 0 included."""
        rows = self.num_own + min(self.shared_rows, self.num_known - self.num_own)
        return 1 + min(rows, self.num_buckets or rows)

    @property
    def is_plain(self) -> bool:
        """True if each known id reads a row of its own, which is its row in the vocabulary + 1."""
        return self.num_own == self.num_known and self.num_buckets is None

    @property
    def trains_unknown(self) -> bool:
        """True if examples of the training window read row 0."""
        return self.num_own < self.num_known and self.shared_rows == 0

    def rows(self, table_rows: Int32[np.ndarray, "*batch"]) -> Int32[np.ndarray, "*batch"]:
        """Returns the rows of the embedding table.

        >>> IdTable(num_known=5, num_own=5).rows(np.array([0, 1, 5, 6], np.int32)).tolist()
        [0, 1, 5, 0]
        >>> IdTable(num_known=5, num_own=5, num_buckets=3).rows(np.array([0, 1, 3, 4, 6], np.int32)).tolist()
        [0, 1, 3, 1, 0]
        >>> IdTable(num_known=5, num_own=2, shared_rows=2).rows(np.arange(7, dtype=np.int32)).tolist()
        [0, 1, 2, 3, 4, 3, 0]
        """
        rows = table_rows * (table_rows <= (self.num_known if self.shared_rows else self.num_own))
        if self.shared_rows and self.num_own < self.num_known:
            first = self.num_own + 1
            rows = np.where(rows < first, rows, first + (rows - first) % self.shared_rows)
        if self.num_buckets is not None:
            rows = np.where(rows > 0, 1 + (rows - 1) % self.num_buckets, 0)
        return rows.astype(table_rows.dtype, copy=False)

    def sentences(self, ids: str, limits: IdRows | None) -> list[str]:
        """Says how many of the known ids have no row of their own, and how many share one; nothing if each has one."""
        found = []
        if (others := self.num_known - self.num_own) and limits is not None:
            count = f"{others:,} of {self.num_known:,} {ids} have no row of their own ({_reason(limits)})"
            shares = f"share {plural(self.shared_rows, 'row')}" if self.shared_rows else "read the unknown row"
            found.append(f"{count}: they {shares}")
        if self.num_buckets is not None:
            rows = self.rows(np.arange(1, self.num_known + 1, dtype=np.int32))
            held = np.bincount(rows, minlength=self.num_rows)[1:]
            together = int(held[held > 1].sum())
            found.append(f"{together:,} of {self.num_known:,} {ids} share a row of num_buckets: {self.num_buckets:,}")
        return found


def own_ids(counts: pa.Table, limits: IdRows, *, field: str) -> pa.Array:
    """Returns the ids that have a row of their own. `counts` has the number of training examples of each `id` and the
    time `last` of the newest; DataError if no id remains.
    """
    keep = pc.greater_equal(counts["examples"], limits.min_count)
    if limits.max_age_days is not None:
        oldest = (pc.max(counts["last"]).as_py() or 0) - limits.max_age_days * DAY_MS
        keep = pc.and_(keep, pc.greater_equal(counts["last"], oldest))
    ids = counts["id"].filter(keep).combine_chunks()
    if len(ids) == 0 and limits.shared_rows == 0:
        raise DataError(
            f"features.{field} leaves none of {len(counts):,} ids a row: the most frequent has "
            f"{pc.max(counts['examples']).as_py() or 0:,} training examples, and min_count is {limits.min_count:,}. "
            f"Lower it, or raise max_age_days."
        )
    return ids


def _reason(limits: IdRows) -> str:
    reasons: Mapping[str, bool] = {
        f"fewer than {limits.min_count:,} training examples": limits.min_count > 1,
        f"none in the last {plural(limits.max_age_days or 0, 'day')} of training": limits.max_age_days is not None,
    }
    return ", or ".join(text for text, applies in reasons.items() if applies)
