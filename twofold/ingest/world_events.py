"""Events of the synthetic short-video log, and its tables, written as Parquet; of any size, with planted truth.

Rows are drawn and written in pieces of at most a quarter of a million, so memory does not grow with their number; a
piece draws from a stream of its own, so threads and their timing change nothing.
"""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Float64, Int32, Int64

from twofold.errors import RequestError
from twofold.ingest.world import (
    EVENTS,
    FIRST_ITEM_ID,
    FIRST_USER_ID,
    FORMULAS,
    LONG_MS,
    MEAN_SESSION,
    MOST_REPLAYS,
    RATES,
    SWIPE_MS,
    WATCH_NOISE,
    Items,
    Users,
    World,
    daily_rhythm,
    interest_of,
    plant_items,
    plant_users,
    true_interest,
)
from twofold.recipe.data import Table
from twofold.tables import DAY_MS, HOUR_MS

__all__ = ["World", "true_interest", "write_world"]

# Rows drawn at once: the temporaries, a megabyte each, stay in the cache and in memory that is used again.
_PIECE: Final = 2**18
_USER_BITS: Final = 30  # a user's day in ms, and eleven more should it run over
_EVENTS: Final = pa.schema(
    dict.fromkeys(("user_id", "item_id", "at"), pa.int64())
    | dict.fromkeys(("watch_s", "length_s"), pa.float64())
    | dict.fromkeys(("clicked", *RATES, "long_view"), pa.bool_())
)
# Integers that rise or cluster: 132 ns a row and 14 bytes, against 221 ns and 16 bytes with dictionaries.
_TABLES: Final = ("events", "items.parquet", "users.parquet", "truth")
_ENCODING: Final = dict.fromkeys(("user_id", "item_id", "at"), "DELTA_BINARY_PACKED")


def write_world(folder: Path, world: World, *, overwrite: bool = False) -> Table:
    """Writes events (a file a day), items, users and their planted `truth/`; returns the recipe part that reads them.

    Rows of a file are ordered by user and time. `truth/world.json` comes last: where it is, the world is complete.
    Memory: 100 MB a thread (one a processor), 100 bytes a user and 300 an item, none of it by rows. RequestError if
    the folder holds such tables; `overwrite` replaces those of a world. Other files in the folder stay.
    """
    _clear(folder, overwrite=overwrite)
    for name in ("events", "truth"):
        (folder / name).mkdir(parents=True)
    users, items = plant_users(world), plant_items(world)
    _write_users(folder, users)
    _write_items(folder, items)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        days = pool.map(lambda number: _write_day(folder, world, users, items, number=number), range(world.days))
        corrupted = np.sum(list(days), axis=0)
    truth = {
        "world": asdict(world) | {"first_day": world.first_day.isoformat()},
        "corrupted_rows": dict(zip(("copied", "length_s = 0", "watch_s = NULL"), corrupted.tolist(), strict=True)),
        "formulas": FORMULAS,
    }
    text = json.dumps(truth, indent=2, ensure_ascii=False) + "\n"
    (folder / "truth" / "world.json").write_text(text, encoding="utf-8")
    return Table(kind="table", events=folder / "events", items=folder / "items.parquet", users=folder / "users.parquet")


def _clear(folder: Path, *, overwrite: bool) -> None:
    """Deletes the tables of a world; RequestError if they may not be deleted, or are those of another log."""
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder} is a file; name a folder for the tables with --to.")
    found = [folder / name for name in _TABLES if (folder / name).exists()]
    if not found:
        return
    if not (folder / "truth").is_dir():
        raise RequestError(
            f"{folder} holds {found[0].name} of a log that is no synthetic one. Name another folder with --to."
        )
    if not overwrite:
        raise RequestError(
            f"{folder} holds a synthetic log already. Replace it with --overwrite, or name another folder with --to."
        )
    # This file first: where it is missing, the world is not complete.
    (folder / "truth" / "world.json").unlink(missing_ok=True)
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Day:
    """A day of a world. A draw among `slots` gives an item in proportion to its popularity that day.

    A row of `slots` is a language; `settled` leaves out what is uploaded on the day itself.
    """

    world: World
    users: Users
    items: Items
    start_ms: int
    upload_ms: Int32[np.ndarray, "items"]  # after the day's start; 0 for what was there before
    slots: Int32[np.ndarray, "_ _"]
    settled: Int32[np.ndarray, "_ _"]


@dataclass(frozen=True)
class _Sessions:
    """Sessions ordered by user and planned start (ms of the day); `ends` counts impressions up to the end of each."""

    user: Int64[np.ndarray, "_"]
    start_ms: Int64[np.ndarray, "_"]
    ends: Int64[np.ndarray, "_"]

    def per_row(self, values: np.ndarray) -> np.ndarray:
        """Repeats a value per session for each of its impressions."""
        return np.repeat(values, np.diff(self.ends, prepend=0))


def _write_day(folder: Path, world: World, users: Users, items: Items, *, number: int) -> Int64[np.ndarray, "3"]:
    """Writes the sessions begun on a day; returns how many rows are copied, without length, without watch time."""
    rows = world.rows * (number + 1) // world.days - world.rows * number // world.days
    pieces = -(-rows // _PIECE)
    # A piece is a run of users, with as many rows as is their share of all sessions.
    first_users = np.arange(pieces + 1) * world.users // pieces
    first_rows = np.rint(np.append(0.0, users.reach)[first_users] * rows).astype(np.int64)
    day = _day(world, users, items, number)
    path = folder / "events" / f"day={world.first_day + timedelta(days=number)}.parquet"
    corrupted = np.zeros(3, np.int64)
    with pq.ParquetWriter(path, _EVENTS, use_dictionary=False, column_encoding=_ENCODING) as file:
        for piece, num in enumerate(np.diff(first_rows).tolist()):
            draw = world.draws(EVENTS, number, 1 + piece)
            sessions = _sessions(users, draw, range(*first_users[piece : piece + 2].tolist()), num)
            batch, in_piece = _corrupt(_impressions(day, draw, sessions), world.noise, draw)
            file.write_batch(batch)
            corrupted += in_piece
    return corrupted


def _day(world: World, users: Users, items: Items, number: int) -> _Day:
    start_ms = world.first_ms + number * DAY_MS
    draw = world.draws(EVENTS, number, 0)
    popularity = items.popularity(start_ms, world.drift)
    upload_ms = np.clip(items.uploaded_at - start_ms, 0, DAY_MS).astype(np.int32)
    slots = _slots(items.language, popularity, world.languages, draw)
    settled = _slots(items.language, popularity * (upload_ms == 0), world.languages, draw)
    return _Day(world, users, items, start_ms, upload_ms, slots, settled)


def _slots(
    language: Int32[np.ndarray, "items"],
    weights: Float64[np.ndarray, "items"],
    num_languages: int,
    draw: np.random.Generator,
) -> Int32[np.ndarray, "_ _"]:
    """Returns item numbers repeated in proportion to their weights, one row per language: a draw is one look-up.

    Systematic sampling: an item has its expected number of slots, rounded up or down at random.
    """
    num = 2 ** min(max(len(language) * 8 - 1, 2**14 - 1).bit_length(), 20)
    slots = np.empty((num_languages, num), np.int32)
    for spoken in range(num_languages):
        rows = np.flatnonzero(language == spoken)
        reach = weights[rows].cumsum()
        last = np.floor(reach / reach[-1] * num + draw.random(dtype=np.float32))
        slots[spoken] = np.repeat(rows, np.diff(last.astype(np.int64), prepend=0))
    return slots


def _sessions(users: Users, draw: np.random.Generator, chosen: range, rows: int) -> _Sessions:
    """Draws the sessions of a range of users, ordered by user and start, with `rows` impressions in total."""
    lengths = draw.geometric(1 / MEAN_SESSION, size=rows // MEAN_SESSION * 5 // 4 + 64)
    ends = np.minimum(lengths.cumsum(), rows)
    ends = ends[: np.searchsorted(ends, rows) + 1]
    ends[-1] = rows
    reach = users.reach[chosen.start : chosen.stop]
    before = users.reach[chosen.start - 1] if chosen.start else 0.0
    who = np.searchsorted(reach, np.sort(draw.uniform(before, reach[-1], size=len(ends))), side="right")
    user = chosen.start + np.minimum(who, len(reach) - 1)
    hour = users.peak_hour[user] + np.searchsorted(daily_rhythm().cumsum()[:-1], draw.random(len(ends)), side="right")
    start_ms = hour % 24 * HOUR_MS + draw.integers(HOUR_MS, size=len(ends))
    key = np.sort(user << _USER_BITS | start_ms)
    return _Sessions(key >> _USER_BITS, key & (2**_USER_BITS - 1), ends)


def _impressions(day: _Day, draw: np.random.Generator, sessions: _Sessions) -> dict[str, np.ndarray]:
    """Returns the columns of the events of some sessions."""
    user = sessions.per_row(sessions.user)
    item = _shown(day, draw, sessions)
    users, items = day.users, day.items
    interest = interest_of(users.latent.take(user, 0), items.latent.take(item, 0), items.quality.take(item))
    length_ms = items.length_ms.take(item)
    noise = np.exp(WATCH_NOISE * draw.standard_normal(len(item), dtype=np.float32))
    fraction = np.minimum(interest * items.length_effect.take(item) * noise, MOST_REPLAYS)
    watch_ms = np.rint(length_ms * fraction).astype(np.int64)
    chances = {"clicked": interest} | {name: rate * interest * interest for name, rate in RATES.items()}
    return {
        "user_id": user + FIRST_USER_ID,
        "item_id": item + FIRST_ITEM_ID,
        "at": day.start_ms + _times(sessions, watch_ms + SWIPE_MS),
        "watch_s": watch_ms / 1000,
        "length_s": length_ms / 1000,
        **{name: draw.random(len(item), dtype=np.float32) < chance for name, chance in chances.items()},
        "long_view": watch_ms >= np.minimum(length_ms, LONG_MS),
    }


def _shown(day: _Day, draw: np.random.Generator, sessions: _Sessions) -> Int64[np.ndarray, "_"]:
    """Draws the item of each impression: mostly in the user's language, by popularity, uploaded before the session."""
    language = sessions.per_row(day.users.language.astype(np.int64)[sessions.user])
    num_languages, num_slots = day.slots.shape
    if num_languages > 1:
        foreign = np.flatnonzero(draw.random(len(language), dtype=np.float32) >= day.world.own_language)
        language[foreign] += draw.integers(1, num_languages, size=len(foreign))
        language[foreign] %= num_languages
    place = language * num_slots + draw.integers(num_slots, size=len(language), dtype=np.uint32)
    item: Int64[np.ndarray, "_"] = day.slots.reshape(-1).take(place).astype(np.int64)
    early = np.flatnonzero(day.upload_ms.take(item) > sessions.per_row(sessions.start_ms))
    place = language[early] * num_slots + draw.integers(num_slots, size=len(early), dtype=np.uint32)
    item[early] = day.settled.reshape(-1).take(place)
    return item


def _times(sessions: _Sessions, taken_ms: Int64[np.ndarray, "_"]) -> Int64[np.ndarray, "_"]:
    """Returns the start of each impression in ms of the day; a session waits until the user's previous one ends.

    With T(i) the time that all sessions before i take, begin(i) = max(start(i), end(i - 1)) is the running maximum of
    start - T, plus T. Users are 2^30 ms apart, so that none waits for another.
    """
    before = np.cumsum(taken_ms) - taken_ms
    first_rows = np.append(0, sessions.ends[:-1])
    apart = sessions.user << _USER_BITS
    lead = np.maximum.accumulate(apart + sessions.start_ms - before[first_rows]) - apart
    return before + sessions.per_row(lead)


def _corrupt(
    columns: dict[str, np.ndarray], share: float, draw: np.random.Generator
) -> tuple[pa.RecordBatch, Int64[np.ndarray, "3"]]:
    """Corrupts rows (copies, lengths of 0, NULL watch times: a third of `share` each), and counts them."""
    kind = draw.random(len(columns["at"])) if share else np.ones(len(columns["at"]))
    copied, zero, missing = ((kind >= third * share / 3) & (kind < (third + 1) * share / 3) for third in range(3))
    copied[0] = False
    copied[1:] &= ~copied[:-1]
    source = np.arange(len(kind)) - copied
    columns = {name: values[source] for name, values in columns.items()} if share else columns
    zero, missing = zero[source], missing[source]
    columns["length_s"] = np.where(zero, 0.0, columns["length_s"])
    arrays = [pa.array(values, mask=missing if name == "watch_s" else None) for name, values in columns.items()]
    return pa.RecordBatch.from_arrays(arrays, schema=_EVENTS), np.array([copied.sum(), zero.sum(), missing.sum()])


# --- items and users --------------------------------------------------------------------------------------------------


def _write_users(folder: Path, users: Users) -> None:
    def seen(rows: slice) -> dict[str, Any]:
        return {
            "user_id": np.arange(rows.start, rows.stop) + FIRST_USER_ID,
            "language": _numbered_texts("language", users.language[rows]),
            "city": _numbered_texts("city", users.city[rows]),
            "handset_maker": _numbered_texts("maker", users.handset_maker[rows]),
            "activity": _vectors(users.activity(rows)),
        }

    def planted(rows: slice) -> dict[str, Any]:
        share = np.diff(users.reach[rows], prepend=users.reach[rows.start - 1] if rows.start else 0.0)
        return {
            "user_id": np.arange(rows.start, rows.stop) + FIRST_USER_ID,
            "share_of_sessions": share,
            "latent": _vectors(users.latent[rows]),
        }

    _write_pieces(folder / "users.parquet", len(users.reach), seen)
    _write_pieces(folder / "truth" / "users.parquet", len(users.reach), planted)


def _write_items(folder: Path, items: Items) -> None:
    def seen(rows: slice) -> dict[str, Any]:
        has = items.topics[rows] >= 0
        names = _numbered_texts("topic", items.topics[rows][has])
        return {
            "item_id": np.arange(rows.start, rows.stop) + FIRST_ITEM_ID,
            "creator_id": items.creator[rows].astype(np.int64) + 1,
            "language": _numbered_texts("language", items.language[rows]),
            "tags": pa.ListArray.from_arrays(np.append(0, has.sum(axis=1).cumsum()).astype(np.int32), names),
            "length_s": items.length_ms[rows] / 1000,
            "uploaded_at": items.uploaded_at[rows],
            "content": _vectors(items.content[rows]),
            "pictures": _vectors(items.pictures[rows]),
        }

    def planted(rows: slice) -> dict[str, Any]:
        return {
            "item_id": np.arange(rows.start, rows.stop) + FIRST_ITEM_ID,
            "quality": items.quality[rows],
            "appeal": items.appeal[rows],
            "peak_age_days": items.peak_age_days[rows],
            "length_effect": items.length_effect[rows],
            "latent": _vectors(items.latent[rows]),
        }

    _write_pieces(folder / "items.parquet", len(items.appeal), seen)
    _write_pieces(folder / "truth" / "items.parquet", len(items.appeal), planted)


def _write_pieces(path: Path, num: int, columns: Callable[[slice], dict[str, Any]]) -> None:
    """Writes a table of `num` rows piece by piece; `columns` gives those of a slice."""
    starts = range(0, num, _PIECE)
    pieces = (pa.table(columns(slice(start, min(start + _PIECE, num)))) for start in starts)
    first = next(pieces)
    with pq.ParquetWriter(path, first.schema) as file:
        for table in chain([first], pieces):
            file.write_table(table)


def _numbered_texts(kind: str, numbers: Int32[np.ndarray, "_"]) -> pa.Array:
    """Returns a text column that names each number: "topic 3" for kind "topic"."""
    listed = pa.array([f"{kind} {number}" for number in range(int(numbers.max(initial=0)) + 1)])
    return listed.take(pa.array(numbers))


def _vectors(values: Float32[np.ndarray, "pairs dim"]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
