"""How often, and how much, up to a moment: sums over the completed hours before it, drawn towards the training window.

Hours and not exact times: a service that counts by the hour can serve what was trained on, and the sums of any span
are two look-ups in running totals.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float32, Int32, Int64

from twofold.bundle import write_json
from twofold.dataset.disk import append_arrays, map_array
from twofold.dataset.histories import search_slices
from twofold.dataset.vocabulary import UNKNOWN, Vocabulary

HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Counters:
    """Running totals by the hour of every line of a table: line r owns the hours `[first[r], end[r])`, which rise.

    There is one line more than users or items, the last, which owns none: row -1 stands for whoever is not known.
    `totals` and `priors` go by the columns of preparation: events, rate_NAME, mean_NAME (in thousandths). The arrays
    may be memory-mapped.
    """

    first: Int64[np.ndarray, "lines"]
    end: Int64[np.ndarray, "lines"]
    hour: Int32[np.ndarray, "hours"]
    totals: Mapping[str, Int64[np.ndarray, "hours"]]
    priors: Mapping[str, int]

    def values(
        self,
        rows: Int64[np.ndarray, "batch"],
        at: Int64[np.ndarray, "batch"],
        *,
        of: str,
        hours: int | None,
        alpha: float,
    ) -> Float32[np.ndarray, "batch"]:
        """(sum + alpha · prior) / (events + alpha) over the `hours` completed hours before that of `at`; None: all
        before.

        `prior` is the rate or mean of the whole training window, 0 if it holds no event.
        """
        now = at // HOUR_MS
        first, end = self.first[rows], self.end[rows]
        stop = search_slices(self.hour, first, end, now)
        start = first if hours is None else search_slices(self.hour, first, stop, now - hours)
        column, unit = (f"rate_{of}", 1.0) if f"rate_{of}" in self.totals else (f"mean_{of}", 1e-3)
        prior = unit * self.priors[column] / max(self.priors["events"], 1)
        total, events = (self._between(name, start, stop) for name in (column, "events"))
        smoothed: np.ndarray = (unit * total + alpha * prior) / (events + alpha)
        return smoothed.astype(np.float32)

    def _between(
        self, name: str, start: Int64[np.ndarray, "batch"], stop: Int64[np.ndarray, "batch"]
    ) -> Int64[np.ndarray, "batch"]:
        """Sum over the hours `[start, stop)`; `totals` hold, at an hour, the sum up to its end."""
        totals = self.totals[name]
        if len(totals) == 0:
            return np.zeros(len(start), np.int64)
        until_stop, until_start = (np.where(place > 0, totals[np.maximum(place, 1) - 1], 0) for place in (stop, start))
        return np.asarray(until_stop - until_start)


def write_counters(prepared: Path, by: str, ids: pa.ChunkedArray | pa.Array, out: Path) -> None:
    """Turns `counters/by=KEY.parquet` into running totals for the lines that `ids` are the keys of, NULL being
    nobody's.
    """
    priors = json.loads((prepared / "counters" / "priors.json").read_text())[by]
    keys, first = [], []
    seen, carry = 0, dict.fromkeys(priors, 0)
    dtypes: dict[str, type[np.generic]] = {"hour": np.int32, **{f"total.{name}": np.int64 for name in priors}}
    with append_arrays(out, "counters", dtypes) as append:
        for batch in _batches(prepared / "counters" / f"by={by}.parquet", ["key", "hour", *priors]):
            totals = {name: carry[name] + np.cumsum(np.asarray(batch[name])) for name in priors}
            append({"hour": np.asarray(batch["hour"]), **{f"total.{name}": sums for name, sums in totals.items()}})
            carry = {name: int(sums[-1]) for name, sums in totals.items()}
            runs = pc.run_end_encode(batch["key"], pa.int64())
            keys.append(runs.values)
            first.append(seen + np.concatenate([[0], np.asarray(runs.run_ends)[:-1]]))
            seen += len(batch)
    for name, places in zip(("first", "end"), _slices(keys, first, seen, ids), strict=True):
        np.save(out / f"counters.{name}.npy", places)
    write_json(out / "priors.json", priors)


def load_counters(folder: Path) -> Counters:
    """Maps what `write_counters` wrote."""
    priors = json.loads((folder / "priors.json").read_text())
    first, end, hour = (map_array(folder / f"counters.{name}.npy") for name in ("first", "end", "hour"))
    totals = {name: map_array(folder / f"counters.total.{name}.npy") for name in priors}
    return Counters(np.asarray(first), np.asarray(end), hour, totals, priors)


def _batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=2**20, columns=columns):
            if len(known := batch.filter(batch["key"].is_valid())):
                yield known


def _slices(
    keys: list[pa.Array], first: list[np.ndarray], hours: int, ids: pa.ChunkedArray | pa.Array
) -> tuple[Int64[np.ndarray, "lines"], Int64[np.ndarray, "lines"]]:
    """First and end hour of each id's key, and of nobody, who comes last and has none."""
    if not keys:
        return np.zeros(len(ids) + 1, np.int64), np.zeros(len(ids) + 1, np.int64)
    key, start = pa.concat_arrays(keys), np.concatenate(first)
    key = key.cast(pa.int64() if pa.types.is_integer(key.type) else pa.string())
    # A key whose hours lie in two batches began in the first of them.
    is_new = np.concatenate([[True], np.asarray(pc.not_equal(key[1:], key[:-1]))])
    key, start = key.filter(pa.array(is_new)), start[is_new]
    rows = np.append(Vocabulary(key, num_known=len(key)).rows_of(ids), UNKNOWN)
    of_ids = (np.where(rows == UNKNOWN, 0, places[rows]) for places in (start, np.append(start[1:], hours)))
    first_hours, end_hours = of_ids
    return first_hours, end_hours
