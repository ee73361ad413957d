"""What users met since the log ended: posted one by one, read before every answer.

Two stores keep one contract. An event is known to every worker when `append` returns, and outlives a killed process.
The same (user, item, moment) posted again is one event, whose kind is that of the last post. Of each user the newest
`kept` are held: what is older is in the log by then, or forgotten. Ids are text, as the next bundle numbers its rows
anew.
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
"""Liked; not liked; or neither, so that it only counts as seen."""

KEPT: Final = 500
WAIT_S: Final = 2.0  # for a lock, or for an answer from Redis
REST_S: Final = 1.0  # that a Redis which is away is left alone: a service must not wait for it at every question


class LiveEvent(NamedTuple):
    """One event of a user: the item, the moment (UTC milliseconds), and what they made of it."""

    item_id: str
    at: int
    kind: Kind


class StoreError(Exception):
    """The store does not answer, or cannot write. Nobody's mistake in a request: it may be tried again."""


@runtime_checkable
class LiveHistories(Protocol):
    """What a store does."""

    async def append(self, events: Iterable[tuple[str, LiveEvent]]) -> None:
        """Keeps events of users, all or none; StoreError if it cannot. When it returns they are safe."""

    async def of(self, users: Sequence[str]) -> list[list[LiveEvent]]:
        """The kept events of each user, oldest first; those of one moment by item id. Empty for a stranger."""

    async def close(self) -> None:
        """Lets go of files and connections."""


def open_histories(where: str | Path, *, kept: int = KEPT) -> LiveHistories:
    """A SQLite file, made if it is not there, or Redis: `redis://HOST:PORT/DB`; RequestError if it cannot be opened."""
    text = str(where)
    if text.startswith(("redis://", "rediss://", "unix://")):
        return RedisHistories(text, kept=kept)
    if "://" in text:
        raise RequestError(f"--histories {text} is neither a file nor redis://HOST:PORT/DB, the two stores there are.")
    return SqliteHistories(Path(where), kept=kept)


# --- SQLite -----------------------------------------------------------------------------------------------------------

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS events (
    user_id TEXT NOT NULL, at INTEGER NOT NULL, item_id TEXT NOT NULL, kind TEXT NOT NULL,
    PRIMARY KEY (user_id, at, item_id)
) WITHOUT ROWID
"""
_KEEP: Final = "INSERT INTO events VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET kind = excluded.kind"
_FORGET: Final = """
DELETE FROM events WHERE user_id = ?1 AND (at, item_id) <= (
    SELECT at, item_id FROM events WHERE user_id = ?1 ORDER BY at DESC, item_id DESC LIMIT 1 OFFSET ?2
)
"""
_READ: Final = "SELECT item_id, at, kind FROM events WHERE user_id = ? ORDER BY at, item_id"


class SqliteHistories:
    """One file beside the run, for the workers of one machine.

    Readers never wait for a writer (write-ahead log), and a commit is on the disk when it returns (synchronous FULL).
    A read takes some 10 µs and is done on the spot; a write waits for the disk, on a thread of its own that finishes
    what it began, whether or not someone still waits for it.
    """

    def __init__(self, path: Path, *, kept: int = KEPT) -> None:
        """Opens or makes the file."""
        self._kept = kept
        self._writing = ThreadPoolExecutor(1, "histories")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer, self._reader = (self._connect(path) for _ in range(2))
        except (sqlite3.Error, OSError) as error:
            raise RequestError(
                f"the histories in {path} cannot be opened: {error}. Give another file with --histories FILE, or "
                f"delete this one to forget what was posted."
            ) from error

    @staticmethod
    def _connect(path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(_SCHEMA)
        return connection

    async def append(self, events: Iterable[tuple[str, LiveEvent]]) -> None:
        """See `LiveHistories`."""
        rows = [(user, met.at, met.item_id, met.kind) for user, met in events]
        await asyncio.get_running_loop().run_in_executor(self._writing, self._write, rows)

    def _write(self, rows: list[tuple[str, int, str, Kind]]) -> None:
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                self._writer.executemany(_KEEP, rows)
                self._writer.executemany(_FORGET, [(user, self._kept) for user in {row[0] for row in rows}])
                self._writer.execute("COMMIT")
            except sqlite3.Error:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StoreError(f"events cannot be written: {error}") from error

    async def of(self, users: Sequence[str]) -> list[list[LiveEvent]]:
        """See `LiveHistories`."""
        try:
            return [[LiveEvent._make(row) for row in self._reader.execute(_READ, (user,))] for user in users]
        except sqlite3.Error as error:
            raise StoreError(f"events cannot be read: {error}") from error

    async def close(self) -> None:
        """See `LiveHistories`."""
        await asyncio.to_thread(self._writing.shutdown)
        self._reader.close()
        self._writer.close()


# --- Redis ------------------------------------------------------------------------------------------------------------

_BETWEEN: Final = "\x1f"  # the unit separator of ASCII
_KINDS: Final[tuple[Kind, ...]] = ("positive", "negative", "met")


class RedisHistories:
    """Redis or Valkey, for workers of many machines: a sorted set a user, its scores the moments.

    That a restart of the server loses nothing is the server's business: `appendonly yes`, `appendfsync always`. Doubles
    hold milliseconds exactly up to the year 287396. While it is away one question at a time finds out whether it is
    back; the others are told at once.
    """

    def __init__(self, url: str, *, kept: int = KEPT) -> None:
        """Connects at the first question."""
        from redis.asyncio import Redis

        self._kept = kept
        self._away_until = 0.0  # on the monotonic clock; 0 while it answers
        try:
            self._redis: Any = Redis.from_url(
                url, decode_responses=True, socket_timeout=WAIT_S, socket_connect_timeout=WAIT_S
            )
        except ValueError as error:
            raise RequestError(f"--histories {url} cannot be read: {error}. Write redis://HOST:PORT/DB.") from error

    async def append(self, events: Iterable[tuple[str, LiveEvent]]) -> None:
        """See `LiveHistories`."""
        async with self._redis.pipeline(transaction=True) as pipe:
            for user, met in events:
                members = {kind: _BETWEEN.join((str(met.at), met.item_id, kind)) for kind in _KINDS}
                pipe.zrem(_key(user), *members.values())
                pipe.zadd(_key(user), {members[met.kind]: met.at})
                pipe.zremrangebyrank(_key(user), 0, -self._kept - 1)
            await self._answer(pipe)

    async def of(self, users: Sequence[str]) -> list[list[LiveEvent]]:
        """See `LiveHistories`."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for user in users:
                pipe.zrange(_key(user), 0, -1)
            return [[_met(member) for member in members] for members in await self._answer(pipe)]

    async def close(self) -> None:
        """See `LiveHistories`."""
        await self._redis.aclose()

    async def _answer(self, pipe: Any) -> Any:
        from redis import exceptions

        if self._away_until:
            if (now := time.monotonic()) < self._away_until:
                raise StoreError("Redis does not answer: it did not a moment ago")
            self._away_until = now + WAIT_S + REST_S  # this question finds out; the next one waits for what it finds
        try:
            answer = await pipe.execute()
        except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
            self._away_until = time.monotonic() + REST_S
            raise StoreError(f"Redis does not answer: {type(error).__name__}") from error
        except exceptions.RedisError as error:
            raise StoreError(f"Redis refuses: {error}") from error
        self._away_until = 0.0
        return answer


def _key(user: str) -> str:
    return f"twofold:history:{user}"


def _met(member: str) -> LiveEvent:
    at, _, rest = member.partition(_BETWEEN)
    item_id, _, kind = rest.rpartition(_BETWEEN)
    return LiveEvent(item_id, int(at), kind)  # type: ignore[arg-type]
