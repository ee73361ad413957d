"""Store of live events: what users did after the log ended, posted one by one and read for every request.

Two stores follow one contract. When `append` returns, every worker can read the event, and the event outlives a killed
process. The same (user, item, timestamp) posted again is one event with the kind of the last post. The newest
`max_events` of each user are stored: older ones are in the log by then, or lost. Ids are stored as text, because the
next bundle numbers its rows differently.
"""

import asyncio
import sqlite3
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol, runtime_checkable

from twofold.errors import RequestError

Kind = Literal["positive", "negative", "met"]
"""Liked; not liked; or neither: then the item only counts as seen."""

MAX_EVENTS_PER_USER: Final = 500
TIMEOUT_S: Final = 2.0  # for a lock, or for a reply from Redis
MAX_ON_LOOP: Final = 32  # users read on the event loop, at most 500 events each
PAUSE_S: Final = 1.0  # after a failure of Redis, so that not every request waits for Redis


class LiveEvent(NamedTuple):
    """One event of a user: the item, the timestamp (UTC milliseconds), and the outcome."""

    item_id: str
    at: int
    kind: Kind


class StoreError(Exception):
    """The store does not respond or cannot write. The request is valid and may be sent again."""


@runtime_checkable
class LiveHistories(Protocol):
    """Interface of a store."""

    async def append(self, events: Iterable[tuple[str, LiveEvent]]) -> None:
        """Stores events of users durably, all or none; StoreError if that fails."""

    async def read(self, users: Sequence[str]) -> list[list[LiveEvent]]:
        """Returns the stored events of each user by timestamp, then item id; empty for an unknown user."""

    async def close(self) -> None:
        """Closes files and connections."""


def open_histories(where: str | Path, *, max_events: int = MAX_EVENTS_PER_USER) -> LiveHistories:
    """Opens a SQLite file, created if missing, or Redis: `redis://HOST:PORT/DB`; RequestError if that fails."""
    text = str(where)
    if text.startswith(("redis://", "rediss://", "unix://")):
        return RedisHistories(text, max_events=max_events)
    if "://" in text:
        raise RequestError(f"--histories {text} is neither a file nor redis://HOST:PORT/DB: these are the two stores.")
    return SqliteHistories(Path(where), max_events=max_events)


# --- SQLite -----------------------------------------------------------------------------------------------------------

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS events (
    user_id TEXT NOT NULL, at INTEGER NOT NULL, item_id TEXT NOT NULL, kind TEXT NOT NULL,
    PRIMARY KEY (user_id, at, item_id)
) WITHOUT ROWID
"""
_UPSERT: Final = "INSERT INTO events VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET kind = excluded.kind"
_DELETE_OLDEST: Final = """
DELETE FROM events WHERE user_id = ?1 AND (at, item_id) <= (
    SELECT at, item_id FROM events WHERE user_id = ?1 ORDER BY at DESC, item_id DESC LIMIT 1 OFFSET ?2
)
"""
_SELECT: Final = "SELECT item_id, at, kind FROM events WHERE user_id = ? ORDER BY at, item_id"


class SqliteHistories:
    """A SQLite file beside the run, shared by the workers of one machine.

    Readers never wait for a writer (write-ahead log), and a commit is on the disk when it returns (synchronous FULL).
    A read of one user takes about 10 µs and runs on the event loop, a read of many users on a thread. A write waits for
    the disk on a thread of its own, which finishes the write even if the request has been canceled.
    """

    def __init__(self, path: Path, *, max_events: int = MAX_EVENTS_PER_USER) -> None:
        """Opens or creates the file."""
        self._max_events = max_events
        self._write_thread, self._read_thread = ThreadPoolExecutor(1, "events"), ThreadPoolExecutor(1, "histories")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer, self._reader, self._batch_reader = (self._connect(path) for _ in range(3))
        except (sqlite3.Error, OSError) as error:
            raise RequestError(
                f"the histories in {path} cannot be opened: {error}. Name another file with --histories FILE, or "
                f"delete this one with all posted events."
            ) from error

    @staticmethod
    def _connect(path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=TIMEOUT_S, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(_SCHEMA)
        return connection

    async def append(self, events: Iterable[tuple[str, LiveEvent]]) -> None:
        """Implements `LiveHistories`."""
        rows = [(user, event.at, event.item_id, event.kind) for user, event in events]
        await asyncio.get_running_loop().run_in_executor(self._write_thread, self._write, rows)

    def _write(self, rows: list[tuple[str, int, str, Kind]]) -> None:
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                self._writer.executemany(_UPSERT, rows)
                self._writer.executemany(
                    _DELETE_OLDEST, [(user, self._max_events) for user in {row[0] for row in rows}]
                )
                self._writer.execute("COMMIT")
            except sqlite3.Error:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StoreError(f"events cannot be written: {error}") from error

    async def read(self, users: Sequence[str]) -> list[list[LiveEvent]]:
        """Implements `LiveHistories`."""
        if len(users) <= MAX_ON_LOOP:
            return self._select(self._reader, users)
        return await asyncio.get_running_loop().run_in_executor(
            self._read_thread, self._select, self._batch_reader, users
        )

    def _select(self, reader: sqlite3.Connection, users: Sequence[str]) -> list[list[LiveEvent]]:
        try:
            return [[LiveEvent._make(row) for row in reader.execute(_SELECT, (user,))] for user in users]
        except sqlite3.Error as error:
            raise StoreError(f"events cannot be read: {error}") from error

    async def close(self) -> None:
        """Implements `LiveHistories`."""
        for thread in (self._write_thread, self._read_thread):
            await asyncio.to_thread(thread.shutdown)
        for connection in (self._reader, self._batch_reader, self._writer):
            connection.close()


# --- Redis ------------------------------------------------------------------------------------------------------------

_SEPARATOR: Final = "\x1f"  # the unit separator of ASCII
_KINDS: Final[tuple[Kind, ...]] = ("positive", "negative", "met")


class RedisHistories:
    """Redis or Valkey, for workers on many machines: one sorted set per user, scored by timestamp.

    With `appendonly yes` and `appendfsync always`, a restart of the server loses nothing. Doubles are exact for
    milliseconds up to the year 287396. While Redis is down, one request at a time tries it again; others fail at once.
    """

    def __init__(self, url: str, *, max_events: int = MAX_EVENTS_PER_USER) -> None:
        """Connects with the first request."""
        from redis.asyncio import Redis

        self._max_events = max_events
        self._down_until = 0.0  # on the monotonic clock; 0 while Redis responds
        try:
            self._redis: Any = Redis.from_url(
                url, decode_responses=True, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
            )
        except ValueError as error:
            raise RequestError(f"--histories {url} cannot be read: {error}. Write redis://HOST:PORT/DB.") from error

    async def append(self, events: Iterable[tuple[str, LiveEvent]]) -> None:
        """Implements `LiveHistories`."""
        async with self._redis.pipeline(transaction=True) as pipe:
            for user, event in events:
                members = {kind: _SEPARATOR.join((str(event.at), event.item_id, kind)) for kind in _KINDS}
                pipe.zrem(_key(user), *members.values())
                pipe.zadd(_key(user), {members[event.kind]: event.at})
                pipe.zremrangebyrank(_key(user), 0, -self._max_events - 1)
            await self._execute(pipe)

    async def read(self, users: Sequence[str]) -> list[list[LiveEvent]]:
        """Implements `LiveHistories`."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for user in users:
                pipe.zrange(_key(user), 0, -1)
            return [[_event_of(member) for member in members] for members in await self._execute(pipe)]

    async def close(self) -> None:
        """Implements `LiveHistories`."""
        await self._redis.aclose()

    async def _execute(self, pipe: Any) -> Any:
        from redis import exceptions

        if self._down_until:
            if (now := time.monotonic()) < self._down_until:
                raise StoreError("Redis does not respond: the last attempt failed a moment ago")
            self._down_until = now + TIMEOUT_S + PAUSE_S  # only this request tries
        try:
            replies = await pipe.execute()
        except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
            self._down_until = time.monotonic() + PAUSE_S
            raise StoreError(f"Redis does not respond: {type(error).__name__}") from error
        except exceptions.RedisError as error:
            raise StoreError(f"Redis refuses the command: {error}") from error
        self._down_until = 0.0
        return replies


def _key(user: str) -> str:
    return f"twofold:history:{user}"


def _event_of(member: str) -> LiveEvent:
    at, _, rest = member.partition(_SEPARATOR)
    item_id, _, kind = rest.rpartition(_SEPARATOR)
    return LiveEvent(item_id, int(at), kind)  # type: ignore[arg-type]
