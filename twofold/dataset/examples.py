"""Training examples and histories on disk, written shard by shard from the prepared files in a checked order."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Int32, Int64, Shaped

from twofold.dataset.npy import append_array, map_array
from twofold.dataset.vocabulary import UNKNOWN, Vocabulary
from twofold.digest import file_stem
from twofold.errors import DataError
from twofold.tables import OUTCOME, Split

BATCH_ROWS = 2**18
"""Number of rows that are in memory at once, whatever the size of the log."""

ROW: Final = np.dtype(
    [
        ("user_rows", np.int64),
        ("item_rows", np.int64),
        ("at", np.int64),
        ("weight", np.float32),
        ("target", np.float32),
        ("watch_s", np.float32),
        ("length_s", np.float32),
        ("positives_before", np.int32),
        ("negatives_before", np.int32),
        ("label", np.bool_),
        ("is_relevant", np.bool_),
        ("at_is_known", np.bool_),
    ],
    align=True,
)
"""One record per example: a shuffled epoch then reads one place of the file per example, not twelve."""
_AS_PREPARED: Final = tuple(name for name in ROW.names or () if not name.endswith(("_rows", "_known")))
_HISTORIES: Final[Mapping[str, str | None]] = {
    "events": None,
    "positives": "is_positive",
    "negatives": "is_negative",
}


@dataclass(frozen=True)
class Examples:
    """Examples of one window, sorted by (user, at, item), for training or evaluation. Arrays may be memory-mapped.

    `counter_values` are counters of the user and of the item up to the example's hour, by the name of the feature.
    `outcomes` are further outcomes of the event, from 0 to 1, by their names in the recipe; NaN where unknown.
    """

    records: Shaped[np.ndarray, "examples"]
    counter_values: Mapping[str, Float32[np.ndarray, "examples"]]
    outcomes: Mapping[str, Float32[np.ndarray, "examples"]] = field(default_factory=dict)
    user_rows: Int64[np.ndarray, "examples"] = field(init=False)
    item_rows: Int64[np.ndarray, "examples"] = field(init=False)
    at: Int64[np.ndarray, "examples"] = field(init=False)
    weight: Float32[np.ndarray, "examples"] = field(init=False)
    target: Float32[np.ndarray, "examples"] = field(init=False)
    watch_s: Float32[np.ndarray, "examples"] = field(init=False)
    length_s: Float32[np.ndarray, "examples"] = field(init=False)
    positives_before: Int32[np.ndarray, "examples"] = field(init=False)
    negatives_before: Int32[np.ndarray, "examples"] = field(init=False)
    label: Bool[np.ndarray, "examples"] = field(init=False)
    is_relevant: Bool[np.ndarray, "examples"] = field(init=False)
    at_is_known: Bool[np.ndarray, "examples"] = field(init=False)

    def __post_init__(self) -> None:
        """Sets the columns, which are views of the records."""
        for name in ROW.names or ():
            object.__setattr__(self, name, self.records[name])

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self.records)

    def take(self, indices: Int64[np.ndarray, "batch"]) -> "Examples":
        """Returns the examples at these indices, in this order."""
        counter_values, outcomes = (
            {name: values.take(indices) for name, values in part.items()}
            for part in (self.counter_values, self.outcomes)
        )
        return Examples(self.records.take(indices), counter_values, outcomes)


def write_examples(
    prepared: Path, split: Split, users: Vocabulary, items: Vocabulary, *, out: Path, windows: Sequence[Split]
) -> None:
    """Writes the prepared rows of `windows` together, by user and time, under the name `split`: one array of records,
    and one of each outcome, such as the seconds watched.
    """
    parts = [f"rows/split={window}" for window in windows]
    columns = ["at_is_estimated", *(name for name in _AS_PREPARED if name != "at")]
    named = pq.read_schema(shards[0]).names if (shards := _shards(*(prepared / part for part in parts))) else []
    with ExitStack() as stack:
        append = stack.enter_context(append_array(out / f"{split}.npy", ROW))
        outcomes = {
            name: stack.enter_context(append_array(out / f"{split}.{name}.npy", np.float32))
            for name in named
            if name.startswith(OUTCOME)
        }
        for user_rows, item_rows, batch in _in_order(prepared, parts, users, items, columns=[*columns, *outcomes]):
            records = np.zeros(len(batch), ROW)
            records["user_rows"], records["item_rows"] = user_rows, item_rows
            records["at_is_known"] = ~batch["at_is_estimated"].to_numpy(zero_copy_only=False)
            for name in _AS_PREPARED:
                records[name] = batch[name].to_numpy(zero_copy_only=False)
            append(records)
            for name, append_outcome in outcomes.items():
                append_outcome(batch[name].to_numpy(zero_copy_only=False))


def load_examples(
    folder: Path, split: Split, counters: tuple[str, ...], *, is_read_at_random: bool = False
) -> Examples:
    """Maps the examples that `write_examples` wrote, and the values of these counter features."""
    map_rows = partial(map_array, is_read_at_random=is_read_at_random)
    outcomes = {path.stem.partition(f".{OUTCOME}")[2]: path for path in folder.glob(f"{split}.{OUTCOME}*.npy")}
    return Examples(
        map_rows(folder / f"{split}.npy"),
        {name: map_rows(folder / f"{split}.{file_stem(name)}.npy") for name in counters},
        {name: map_rows(path) for name, path in outcomes.items()},
    )


def write_histories(prepared: Path, users: Vocabulary, items: Vocabulary, *, out: Path) -> int:
    """Writes the histories `events`, and its parts `positives` and `negatives`; returns the time of the last event."""
    counts = {name: np.zeros(len(users) + 1, np.int64) for name in _HISTORIES}
    flags = [flag for flag in _HISTORIES.values() if flag]
    last_at = 0
    with ExitStack() as stack:
        item_rows_of, at_of = (
            {name: stack.enter_context(append_array(out / f"{name}.{part}.npy", dtype)) for name in _HISTORIES}
            for part, dtype in (("item_rows", np.int32), ("at", np.int64))
        )
        for user_rows, item_rows, batch in _in_order(prepared, ["events"], users, items, columns=flags):
            at = np.asarray(batch["at"])
            last_at = max(last_at, int(at.max()))
            for name, flag in _HISTORIES.items():
                keep = batch[flag].to_numpy(zero_copy_only=False) if flag else np.ones(len(at), bool)
                item_rows_of[name](item_rows[keep])
                at_of[name](at[keep])
                _count(counts[name], user_rows[keep])
    for name, per_user in counts.items():
        np.save(out / f"{name}.offsets.npy", np.cumsum(per_user))
    return last_at


def distinct_ids(prepared: Path, parts: Sequence[str], column: str, kind: pa.DataType) -> pa.Array:
    """Returns the distinct ids of a column of the prepared files, in the order of the shards and their rows."""
    found, waiting = pa.array([], kind), list[pa.Array]()
    for path in (path for part in parts for path in _shards(prepared / part)):
        for batch in _batches(path, [column]):
            waiting.append(pc.unique(batch[column]).cast(kind))
            if sum(map(len, waiting)) >= len(found):  # so that merges together cost a few of the result
                found, waiting = _distinct([found, *waiting]), []
    return _distinct([found, *waiting])


def _distinct(parts: Sequence[pa.Array]) -> pa.Array:
    """Returns the distinct values of all parts. Arrow cannot join arrays that hold 2 GiB of text together."""
    return pc.unique(pa.chunked_array(parts))


def count_ids(prepared: Path, parts: Sequence[str], column: str, kind: pa.DataType) -> pa.Table:
    """Returns the number of rows `examples` of each `id` of a column of the prepared files, and the time `last` of its
    newest row.
    """
    empty = {"id": pa.array([], kind), "examples": pa.array([], pa.int64()), "last": pa.array([], pa.int64())}
    merged, waiting = pa.table(empty), list[pa.Table]()
    for path in (path for part in parts for path in _shards(prepared / part)):
        for batch in _batches(path, [column, "at"]):
            ones = pa.array(np.ones(len(batch), np.int64))
            more = pa.table({"id": batch[column].cast(kind), "examples": ones, "last": batch["at"]})
            waiting.append(_sums_by_id([more]))
            if sum(map(len, waiting)) >= len(merged):  # so that merges together cost a few of the result
                merged, waiting = _sums_by_id([merged, *waiting]), []
    return _sums_by_id([merged, *waiting])


def _sums_by_id(counts: Sequence[pa.Table]) -> pa.Table:
    sums = pa.concat_tables(counts).group_by("id").aggregate([("examples", "sum"), ("last", "max")])
    return sums.select(["id", "examples_sum", "last_max"]).rename_columns(["id", "examples", "last"])


def _in_order(
    prepared: Path, parts: Sequence[str], users: Vocabulary, items: Vocabulary, *, columns: list[str]
) -> Iterator[tuple[Int64[np.ndarray, "events"], Int64[np.ndarray, "events"], pa.RecordBatch]]:
    """Yields user rows, item rows and record batches; DataError if a file is not sorted by user and time.

    With several parts, each shard of theirs is merged in memory. A partitioned writer can lose the order without an
    error (DuckDB's did), and every history would be wrong.
    """
    last_user, last_at = -1, 0
    read = ["user_id", "item_id", "at", *columns]
    for path in _shards(*(prepared / part for part in parts)):
        num_read, files = 0, [prepared / part / path.name for part in parts]
        for batch in _merged(users, files, read) if len(files) > 1 else _batches(path, read):
            user_rows, at = _rows_of(users, batch["user_id"]), np.asarray(batch["at"])
            steps = np.diff(user_rows, prepend=last_user)
            falls = np.flatnonzero((steps < 0) | ((steps == 0) & (np.diff(at, prepend=last_at) < 0)))
            if len(falls):
                raise DataError(
                    f"{path} is not sorted by user and time: row {num_read + falls[0] + 1} (at {at[falls[0]]}) belongs "
                    f"before the one above it. It was changed after preparation; delete {prepared} and run "
                    f"`twofold run` again."
                )
            yield user_rows, _rows_of(items, batch["item_id"]), batch
            last_user, last_at, num_read = int(user_rows[-1]), int(at[-1]), num_read + len(batch)


def _shards(*folders: Path) -> list[Path]:
    """Returns one file of each shard, in the order of the shards."""
    files = {path.name: path for folder in reversed(folders) for path in folder.glob("shard=*.parquet")}
    return sorted(files.values(), key=lambda path: int(path.stem.removeprefix("shard=")))


def _merged(users: Vocabulary, paths: list[Path], columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yields the rows of several files of one shard by user and time; of equal ones, those of the first file first."""
    table = pa.concat_tables(pq.read_table(path, columns=columns) for path in paths if path.exists())
    table = table.combine_chunks()
    user_rows = _rows_of(users, table["user_id"].combine_chunks())
    yield from table.take(np.lexsort((table["at"].to_numpy(), user_rows))).combine_chunks().to_batches(BATCH_ROWS)


def _batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        yield from (batch for batch in file.iter_batches(BATCH_ROWS, columns=columns) if len(batch))


def _rows_of(vocabulary: Vocabulary, ids: pa.Array) -> Int64[np.ndarray, "events"]:
    encoded = ids.dictionary_encode()  # each id is looked up once
    rows = vocabulary.rows_of(encoded.dictionary)
    assert not (rows == UNKNOWN).any(), "preparation lists every user and item of the log"
    return np.asarray(rows[np.asarray(encoded.indices)])


def _count(counts: Int64[np.ndarray, "_"], user_rows: Int64[np.ndarray, "events"]) -> None:
    """Adds to the count of each user, which is stored at user row + 1: the running sum of the counts is the offsets."""
    if len(user_rows):
        first = int(user_rows[0]) + 1
        added = np.bincount(user_rows - user_rows[0])
        counts[first : first + len(added)] += added
