"""Store of what must outlive a worker: live events of users, withdrawn items, and users to be forgotten.

Live events are what users did after the log ended, posted one by one and read for every request. Two stores follow one
contract, `LiveHistories`: SQLite (here) for the workers of one machine, Redis (`redis_store.py`) for many machines.
When a write returns, every worker can read it, and it outlives a killed process. The same (user, item, timestamp)
posted again is one event with the kind of the last post. The newest `max_events` of each user are stored: older ones
are in the log by then, or lost. Ids are stored as text, because the next bundle numbers its rows differently.
"""

import asyncio
import os
import re
import sqlite3
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol, runtime_checkable

from twofold.errors import RequestError
from twofold.tables import DAY_MS

Kind = Literal["positive", "negative", "met"]
"""Liked; not liked; or neither: then the item only counts as seen."""

MarkKind = Literal["withdrawn", "forgotten"]
"""An item that no list may contain; or a user whose events in the log are ignored."""

MAX_EVENTS_PER_USER: Final = 500
KEEP_DAYS: Final = 90
MAX_AHEAD_MS: Final = 60_000  # tolerance for fast clocks: an event of next year would be its user's last for a year
KEY_MS: Final = DAY_MS  # an idempotency key is remembered for a day
TIMEOUT_S: Final = 2.0  # for a lock, or for a reply from Redis
MAX_ON_LOOP: Final = 32  # users read on the event loop, at most 500 events each
MAX_STORE_BYTES: Final = 2**33  # of a SQLite file; then it refuses as a full disk does
LASTING_RETRY_S: Final = 30


class LiveEvent(NamedTuple):
    """One event of a user: the item, the timestamp (UTC milliseconds), and the outcome."""

    item_id: str
    at: int
    kind: Kind


class Marks(NamedTuple):
    """Withdrawn items and forgotten users; every change gives another version."""

    version: int
    withdrawn: frozenset[str]
    forgotten: frozenset[str]


NO_MARKS: Final = Marks(0, frozenset(), frozenset())


class StoreError(Exception):
    """The store does not respond or cannot write. The request is valid, and may be sent again after `retry_s` seconds;
    `None` means that sending it again is of no use.
    """

    def __init__(self, message: str, *, retry_s: int | None = 1) -> None:
        """Takes the reason, for the log."""
        super().__init__(message)
        self.retry_s = retry_s


@runtime_checkable
class LiveHistories(Protocol):
    """Interface of a store. Every method raises StoreError if the store fails; a write is made whole or not at all."""

    async def append(self, events: Iterable[tuple[str, LiveEvent]]) -> None:
        """Stores events of users durably. Stored events that are ahead of the clock are set to now: it was wrong then,
        and they would stay their user's newest.
        """

    async def read(self, users: Sequence[str]) -> list[list[LiveEvent]]:
        """Returns the stored events of each user by timestamp, then item id; empty for an unknown user."""

    async def remove(self, user: str, item_id: str, at: int | None) -> int:
        """Removes a user's event with an item at a time, the newest if `at` is `None`; returns how many there were."""

    async def delete_user(self, user: str) -> int:
        """Deletes all events of a user and marks the user as forgotten; returns how many events there were."""

    async def first_time(self, key: str, now: int) -> int:
        """Returns the time at which an idempotency key was first used: `now`, unless it is known."""

    async def mark(self, kind: MarkKind, ids: Sequence[str], *, is_marked: bool) -> None:
        """Marks ids, or takes the marks away."""

    async def marks(self, known: int) -> Marks | None:
        """Returns all marks; `None` means that their version is still `known`."""

    async def check(self) -> None:
        """Writes a value: StoreError if nothing can be written."""

    async def expire(self) -> None:
        """Deletes the events of users without a post for longer than the store keeps them."""

    async def close(self) -> None:
        """Closes files and connections."""


def open_histories(
    where: str | Path, *, max_events: int = MAX_EVENTS_PER_USER, keep_days: int = KEEP_DAYS
) -> LiveHistories:
    """Opens a SQLite file, created if missing, or Redis: `redis://HOST:PORT/DB`; RequestError if that fails.

    Events of a user are deleted `keep_days` after the user's last post.
    """
    text = str(where)
    if text.startswith(("redis://", "rediss://", "unix://")):
        from twofold.serve.redis_store import RedisHistories

        return RedisHistories(text, max_events=max_events, keep_days=keep_days)
    if "://" in text:
        shown = without_password(text)
        raise RequestError(f"--histories {shown} is neither a file nor redis://HOST:PORT/DB: these are the two stores.")
    return SqliteHistories(Path(where), max_events=max_events, keep_days=keep_days)


def resolved_store(where: str) -> str:
    """Returns the URL of a store as it is, and a file's path with every link followed: a worker that is started later
    opens the same file, even if a link leads elsewhere by then.

    >>> resolved_store("redis://10.0.0.9:6379/0"), resolved_store("/no/such/../h.db")
    ('redis://10.0.0.9:6379/0', '/no/h.db')
    """
    return where if "://" in where else os.path.realpath(where)


def without_password(url: str) -> str:
    """Returns a URL with its user and password masked.

    >>> without_password("redis://:secret@10.0.0.9:6379/0")
    'redis://***@10.0.0.9:6379/0'
    """
    return re.sub(r"://.*@", "://***@", url)


def now_ms() -> int:
    """Returns the time of the clock (UTC milliseconds)."""
    return time.time_ns() // 1_000_000


# --- SQLite -----------------------------------------------------------------------------------------------------------

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS events (
    user_id TEXT NOT NULL, at INTEGER NOT NULL, item_id TEXT NOT NULL, kind TEXT NOT NULL,
    PRIMARY KEY (user_id, at, item_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS last_posts (user_id TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS keys (key TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS marks (kind TEXT NOT NULL, id TEXT NOT NULL, PRIMARY KEY (kind, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
# Named parameters: Python 3.12.0 to 3.12.3 warn of numbered ones (CPython issue 117995).
_NOT_AHEAD: Final = "UPDATE OR REPLACE events SET at = :now WHERE user_id = :user AND at > :now + :ahead"
_UPSERT: Final = "INSERT INTO events VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET kind = excluded.kind"
_POSTED: Final = "INSERT OR REPLACE INTO last_posts VALUES (?, ?)"
_DELETE_OLDEST: Final = """
DELETE FROM events WHERE user_id = :user AND (at, item_id) <= (
    SELECT at, item_id FROM events WHERE user_id = :user ORDER BY at DESC, item_id DESC LIMIT 1 OFFSET :most
)
"""
_SELECT: Final = "SELECT item_id, at, kind FROM events WHERE user_id = ? ORDER BY at, item_id"
_REMOVE: Final = """
DELETE FROM events WHERE user_id = :user AND item_id = :item
AND at = COALESCE(:at, (SELECT MAX(at) FROM events WHERE user_id = :user AND item_id = :item))
"""
_EXPIRED: Final = "SELECT user_id FROM last_posts WHERE at < ?"
_MARK, _UNMARK = "INSERT OR IGNORE INTO marks VALUES (?, ?)", "DELETE FROM marks WHERE kind = ? AND id = ?"
_COUNT_UP: Final = "INSERT INTO numbers VALUES (?, 1) ON CONFLICT DO UPDATE SET value = value + 1"


class SqliteHistories:
    """A SQLite file beside the run, shared by the workers of one machine.

    Readers never wait for a writer (write-ahead log), and a commit is on the disk when it returns (synchronous FULL).
    A read of one user takes about 10 µs and runs on the event loop, a read of many users on a thread. A write waits for
    the disk on a thread of its own, which finishes the write even if the request has been canceled.
    """

    def __init__(self, path: Path, *, max_events: int = MAX_EVENTS_PER_USER, keep_days: int = KEEP_DAYS) -> None:
        """Opens or creates the file."""
        self._max_events, self._keep_ms = max_events, keep_days * DAY_MS
        self._write_thread, self._read_thread = ThreadPoolExecutor(1, "events"), ThreadPoolExecutor(1, "histories")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer, self._reader, self._batch_reader = (self._connect(path) for _ in range(3))
        except (sqlite3.Error, OSError) as error:
            raise RequestError(
                f"the histories in {path} cannot be opened: {error}. Name another file with --histories FILE, or "
                f"delete this one with all posted events."
            ) from error
        # A store that is dropped without `close` closes its files: Python 3.13 warns of those that it has to close.
        self._close = weakref.finalize(self, _close_all, (self._reader, self._batch_reader, self._writer))

    @staticmethod
    def _connect(path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
            connection.execute(f"PRAGMA max_page_count = {MAX_STORE_BYTES // page_bytes}")
            connection.executescript(_SCHEMA)
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    async def append(self, events: Iterable[tuple[str, LiveEvent]]) -> None:
        """Implements `LiveHistories`."""
        rows = [(user, event.at, event.item_id, event.kind) for user, event in events]
        users, now = {row[0] for row in rows}, now_ms()

        def write(writer: sqlite3.Connection) -> None:
            writer.executemany(_NOT_AHEAD, [{"user": user, "now": now, "ahead": MAX_AHEAD_MS} for user in users])
            writer.executemany(_UPSERT, rows)
            writer.executemany(_DELETE_OLDEST, [{"user": user, "most": self._max_events} for user in users])
            writer.executemany(_POSTED, [(user, now) for user in users])

        await self._write(write)

    async def _write(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        """Runs `work` in a transaction on the thread of the writer and returns its result."""

        def write() -> Any:
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                try:
                    result = work(self._writer)
                    self._writer.execute("COMMIT")
                except sqlite3.Error:
                    if self._writer.in_transaction:
                        self._writer.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                name = getattr(error, "sqlite_errorname", "")
                is_full = name in ("SQLITE_FULL", "SQLITE_IOERR_WRITE")
                is_lasting = name.startswith(("SQLITE_READONLY", "SQLITE_CORRUPT", "SQLITE_NOTADB"))
                retry_s = None if is_lasting else LASTING_RETRY_S if is_full else 1
                raise StoreError(f"the histories cannot be written: {error}", retry_s=retry_s) from error
            return result

        return await asyncio.get_running_loop().run_in_executor(self._write_thread, write)

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
            raise StoreError(f"the histories cannot be read: {error}") from error

    async def remove(self, user: str, item_id: str, at: int | None) -> int:
        """Implements `LiveHistories`."""
        removed = {"user": user, "item": item_id, "at": at}
        return int(await self._write(lambda writer: writer.execute(_REMOVE, removed).rowcount))

    async def delete_user(self, user: str) -> int:
        """Implements `LiveHistories`."""

        def write(writer: sqlite3.Connection) -> int:
            deleted = writer.execute("DELETE FROM events WHERE user_id = ?", (user,)).rowcount
            writer.execute("DELETE FROM last_posts WHERE user_id = ?", (user,))
            writer.execute(_MARK, ("forgotten", user))
            writer.execute(_COUNT_UP, ("marks",))
            return int(deleted)

        return int(await self._write(write))

    async def first_time(self, key: str, now: int) -> int:
        """Implements `LiveHistories`."""

        def write(writer: sqlite3.Connection) -> int:
            writer.execute("DELETE FROM keys WHERE key = ? AND at < ?", (key, now - KEY_MS))
            writer.execute("INSERT OR IGNORE INTO keys VALUES (?, ?)", (key, now))
            (first,) = writer.execute("SELECT at FROM keys WHERE key = ?", (key,)).fetchone()
            return int(first)

        return int(await self._write(write))

    async def mark(self, kind: MarkKind, ids: Sequence[str], *, is_marked: bool) -> None:
        """Implements `LiveHistories`."""

        def write(writer: sqlite3.Connection) -> None:
            writer.executemany(_MARK if is_marked else _UNMARK, [(kind, each) for each in ids])
            writer.execute(_COUNT_UP, ("marks",))

        await self._write(write)

    async def marks(self, known: int) -> Marks | None:
        """Implements `LiveHistories`."""
        try:
            row = self._reader.execute("SELECT value FROM numbers WHERE name = 'marks'").fetchone()
            if (version := 0 if row is None else row[0]) == known:
                return None
            marks = self._reader.execute("SELECT kind, id FROM marks").fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"the marks cannot be read: {error}") from error
        ids = {name: frozenset(each for kind, each in marks if kind == name) for name in ("withdrawn", "forgotten")}
        return Marks(version, ids["withdrawn"], ids["forgotten"])

    async def check(self) -> None:
        """Implements `LiveHistories`."""
        await self._write(lambda writer: writer.execute(_COUNT_UP, ("checks",)))

    async def expire(self) -> None:
        """Implements `LiveHistories`."""
        now = now_ms()

        def write(writer: sqlite3.Connection) -> None:
            writer.execute(f"DELETE FROM events WHERE user_id IN ({_EXPIRED})", (now - self._keep_ms,))
            writer.execute("DELETE FROM last_posts WHERE at < ?", (now - self._keep_ms,))
            writer.execute("DELETE FROM keys WHERE at < ?", (now - KEY_MS,))

        await self._write(write)

    async def close(self) -> None:
        """Implements `LiveHistories`."""
        for thread in (self._write_thread, self._read_thread):
            await asyncio.to_thread(thread.shutdown)
        self._close()


def _close_all(connections: Iterable[sqlite3.Connection]) -> None:
    for connection in connections:
        connection.close()
