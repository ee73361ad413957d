"""Counters: rates and means over the completed hours before a given time, shrunk towards the training window.

Hours instead of exact times: a service that counts by the hour can serve what was trained on, and the sum over any
span is two look-ups in running totals.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Int64, Shaped

from twofold.dataset.histories import search_slices
from twofold.dataset.npy import append_array, map_array
from twofold.dataset.vocabulary import UNKNOWN, Vocabulary, id_type
from twofold.digest import file_stem
from twofold.recipe.features import CounterFeature, ItemFeature, UserFeature, feature_name
from twofold.run_folder import write_json
from twofold.tables import HOUR_MS


@dataclass(frozen=True)
class Counters:
    """Running totals by the hour for every row of a table: row r owns the hours `[first[r], end[r])`, in rising order.

    There is one row more than users or items: the last, which owns no hours, so that row -1 stands for an unknown user
    or item. `hours` are records of hour (since 1970), events, and rate_NAME or mean_NAME (in thousandths), summed up to
    the end of the hour; `priors` are the same sums over the training window.
    """

    first: Int64[np.ndarray, "_"]
    end: Int64[np.ndarray, "_"]
    hours: Shaped[np.ndarray, "_"]
    priors: Mapping[str, int]

    def values(
        self,
        rows: Int64[np.ndarray, "batch"],
        at: Int64[np.ndarray, "batch"],
        *,
        statistic: str,
        hours: int | None,
        smoothing: float,
    ) -> Float32[np.ndarray, "batch"]:
        """Returns (sum + smoothing · prior) / (events + smoothing) over the last `hours` completed hours before `at`.

        `hours=None` means all hours before. The statistic `events` is log(1 + number of events). `prior` is the rate or
        mean of the whole training window, 0 if that holds no event.
        """
        now = at // HOUR_MS
        first, end = self.first[rows], self.end[rows]
        stop = search_slices(self.hours["hour"], first, end, now)
        start = first if hours is None else search_slices(self.hours["hour"], first, stop, now - hours)
        events = self._up_to(stop, "events") - self._up_to(start, "events")
        if statistic == "events":
            return np.asarray(np.log1p(events), np.float32)
        name, unit = (f"rate_{statistic}", 1.0) if f"rate_{statistic}" in self.priors else (f"mean_{statistic}", 1e-3)
        prior = unit * self.priors[name] / max(self.priors["events"], 1)
        total = self._up_to(stop, name) - self._up_to(start, name)
        smoothed: np.ndarray = (unit * total + smoothing * prior) / (events + smoothing)
        return smoothed.astype(np.float32)

    @cached_property
    def is_single(self) -> Bool[np.ndarray, "_"]:
        """Flags of the rows that have hours which no other row shares: for a counter of item_id, all with an event."""
        flags, owners = np.zeros(len(self.first), bool), np.flatnonzero(self.end > self.first)
        _, row_of, rows = np.unique(self.first[owners], return_inverse=True, return_counts=True)
        flags[owners] = rows[row_of] == 1
        return flags

    def _up_to(self, positions: Int64[np.ndarray, "batch"], column: str) -> Int64[np.ndarray, "batch"]:
        """Returns the sum over all hours before these positions."""
        if len(self.hours) == 0:
            return np.zeros(len(positions), np.int64)
        return np.where(positions > 0, self.hours[column][np.maximum(positions, 1) - 1], 0)


def write_counters(prepared: Path, key: str, ids: pa.ChunkedArray | pa.Array, *, out: Path) -> None:
    """Turns `counters/by=KEY.parquet` into running totals: row r has the hours of key `ids[r]`, none for NULL."""
    priors = json.loads((prepared / "counters" / "priors.json").read_text(encoding="utf-8"))[key]
    keys, first = [], []
    seen, sums = 0, dict.fromkeys(priors, 0)
    dtype = np.dtype([("hour", np.int64), *((name, np.int64) for name in priors)])
    with append_array(out / "hours.npy", dtype) as append:
        for batch in _batches(prepared / "counters" / f"by={file_stem(key)}.parquet", ["key", *(dtype.names or ())]):
            hours = np.zeros(len(batch), dtype)
            hours["hour"] = batch["hour"]
            for name in priors:
                hours[name] = sums[name] + np.cumsum(np.asarray(batch[name]))
                sums[name] = int(hours[name][-1])
            append(hours)
            runs = pc.run_end_encode(batch["key"], pa.int64())
            keys.append(runs.values)
            first.append(seen + np.concatenate([[0], np.asarray(runs.run_ends)[:-1]]))
            seen += len(batch)
    for name, positions in zip(("first", "end"), _slices(keys, first, seen, ids), strict=True):
        np.save(out / f"{name}.npy", positions)
    write_json(out / "priors.json", priors)


def load_counters(folder: Path) -> Counters:
    """Maps the arrays that `write_counters` wrote."""
    first, end, hours = (map_array(folder / f"{name}.npy") for name in ("first", "end", "hours"))
    return Counters(first, end, hours, json.loads((folder / "priors.json").read_text(encoding="utf-8")))


def _batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=2**20, columns=columns):
            if len(known := batch.filter(batch["key"].is_valid())):
                yield known


def _slices(
    keys: list[pa.Array], first: list[np.ndarray], hours: int, ids: pa.ChunkedArray | pa.Array
) -> tuple[Int64[np.ndarray, "_"], Int64[np.ndarray, "_"]]:
    """Returns the first and end positions of each id's hours, and last an empty slice for an unknown id."""
    if not keys:
        return np.zeros(len(ids) + 1, np.int64), np.zeros(len(ids) + 1, np.int64)
    key, start = pa.concat_arrays(keys), np.concatenate(first)
    key = key.cast(id_type(key.type))
    # A key whose hours are in two batches begins in the first of them.
    is_new = np.concatenate([[True], np.asarray(pc.not_equal(key[1:], key[:-1]))])
    key, start = key.filter(pa.array(is_new)), start[is_new]
    rows = np.append(Vocabulary(key, num_known=len(key)).rows_of(ids), UNKNOWN)
    first_hours, end_hours = (
        np.where(rows == UNKNOWN, 0, positions[rows]) for positions in (start, np.append(start[1:], hours))
    )
    return first_hours, end_hours


def counter_names(side: tuple[UserFeature | ItemFeature, ...]) -> tuple[str, ...]:
    """Returns the names of the counter features of a tower."""
    return tuple(feature_name(feature) for feature in side if isinstance(feature, CounterFeature))


def load_tower_counters(side: tuple[UserFeature | ItemFeature, ...], folder: Path) -> dict[str, Counters]:
    """Maps the counters that the counter features of a tower read, by key column, such as user_id."""
    return {f.key: load_counters(folder / "counters" / file_stem(f.key)) for f in side if isinstance(f, CounterFeature)}
