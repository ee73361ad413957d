"""Redis or Valkey as the store of events (`event_store.py`), for workers on many machines."""

import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from twofold.errors import RequestError
from twofold.serve.event_store import (
    KEEP_DAYS,
    KEY_MS,
    LASTING_RETRY_S,
    MAX_AHEAD_MS,
    MAX_EVENTS_PER_USER,
    MAX_ON_LOOP,
    TIMEOUT_S,
    Kind,
    LiveEvent,
    MarkKind,
    Marks,
    StoreError,
    now_ms,
    without_password,
)
from twofold.tables import DAY_MS

PAUSE_S: Final = 1.0  # after a failure of Redis, so that not every request waits for Redis
_SEPARATOR: Final = "\x1f"  # the unit separator of ASCII
_KINDS: Final[tuple[Kind, ...]] = ("positive", "negative", "met")
_MARKS: Final = "twofold:marks:"


class RedisHistories:
    """A Redis server with one sorted set per user, scored by timestamp.

    With `appendonly yes` and `appendfsync always`, a restart of the server loses nothing. Doubles are exact for
    milliseconds up to the year 287396. While Redis is down, one request at a time tries it again; others fail at once.
    """

    def __init__(self, url: str, *, max_events: int = MAX_EVENTS_PER_USER, keep_days: int = KEEP_DAYS) -> None:
        """Connects with the first request; RequestError if the URL is invalid or the client is not installed."""
        try:
            from redis.asyncio import Redis
        except ImportError:
            raise RequestError("--histories redis://… needs the Redis client: pip install 'twofold[redis]'.") from None
        self._max_events, self._keep_ms = max_events, keep_days * DAY_MS
        self._down_until = 0.0  # on the monotonic clock; 0 while Redis responds
        try:
            self._redis: Any = Redis.from_url(
                url, decode_responses=True, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
            )
        except ValueError as error:
            raise RequestError(
                f"--histories {without_password(url)} cannot be read: {error}. Write redis://HOST:PORT/DB."
            ) from None

    async def append(self, events: Iterable[tuple[str, LiveEvent]]) -> None:
        """Implements `LiveHistories`."""
        posted, now = list(events), now_ms()
        users = list(dict.fromkeys(user for user, _ in posted))
        async with self._redis.pipeline(transaction=False) as pipe:
            for user in users:
                pipe.zrangebyscore(_key(user), now + MAX_AHEAD_MS, "+inf")
            ahead = await self._execute(pipe)
        async with self._redis.pipeline(transaction=True) as pipe:
            for user, members in zip(users, ahead, strict=True):
                for member in members:
                    pipe.zrem(_key(user), member)
                    pipe.zadd(_key(user), {_member_of(_event_of(member)._replace(at=now)): now})
            for user, event in posted:
                pipe.zrem(_key(user), *(_member_of(event._replace(kind=kind)) for kind in _KINDS))
                pipe.zadd(_key(user), {_member_of(event): event.at})
            for user in users:
                pipe.zremrangebyrank(_key(user), 0, -self._max_events - 1)
                pipe.pexpire(_key(user), self._keep_ms)
            await self._execute(pipe)

    async def read(self, users: Sequence[str]) -> list[list[LiveEvent]]:
        """Implements `LiveHistories`; other requests are answered between blocks of users."""
        histories: list[list[LiveEvent]] = []
        for first in range(0, len(users), MAX_ON_LOOP):
            async with self._redis.pipeline(transaction=False) as pipe:
                for user in users[first : first + MAX_ON_LOOP]:
                    pipe.zrange(_key(user), 0, -1)
                histories += [[_event_of(member) for member in members] for members in await self._execute(pipe)]
        return histories

    async def remove(self, user: str, item_id: str, at: int | None) -> int:
        """Implements `LiveHistories`."""
        (events,) = await self.read([user])
        times = [event.at for event in events if event.item_id == item_id and at in (None, event.at)]
        if not times:
            return 0
        found = [event for event in events if (event.item_id, event.at) == (item_id, max(times))]
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zrem(_key(user), *map(_member_of, found))
            (removed,) = await self._execute(pipe)
        return int(removed)

    async def delete_user(self, user: str) -> int:
        """Implements `LiveHistories`."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.zcard(_key(user))
            pipe.delete(_key(user))
            pipe.sadd(f"{_MARKS}forgotten", user)
            pipe.incr(f"{_MARKS}version")
            return int((await self._execute(pipe))[0])

    async def first_time(self, key: str, now: int) -> int:
        """Implements `LiveHistories`."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(f"twofold:key:{key}", now, nx=True, px=KEY_MS)
            pipe.get(f"twofold:key:{key}")
            return int((await self._execute(pipe))[1])

    async def mark(self, kind: MarkKind, ids: Sequence[str], *, is_marked: bool) -> None:
        """Implements `LiveHistories`."""
        async with self._redis.pipeline(transaction=True) as pipe:
            (pipe.sadd if is_marked else pipe.srem)(f"{_MARKS}{kind}", *ids)
            pipe.incr(f"{_MARKS}version")
            await self._execute(pipe)

    async def marks(self, known: int) -> Marks | None:
        """Implements `LiveHistories`."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.get(f"{_MARKS}version")
            (version,) = await self._execute(pipe)
        if int(version or 0) == known:
            return None
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.get(f"{_MARKS}version")
            pipe.smembers(f"{_MARKS}withdrawn")
            pipe.smembers(f"{_MARKS}forgotten")
            version, withdrawn, forgotten = await self._execute(pipe)
        return Marks(int(version or 0), frozenset(withdrawn), frozenset(forgotten))

    async def check(self) -> None:
        """Implements `LiveHistories`."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.incr("twofold:checks")
            await self._execute(pipe)

    async def expire(self) -> None:
        """Implements `LiveHistories`: keys of Redis expire by themselves."""

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
            self._down_until = 0.0
            raise StoreError(f"Redis refuses the command: {error}", retry_s=_retry_s(error)) from error
        self._down_until = 0.0
        return replies


def _retry_s(error: Exception) -> int | None:
    """Returns when to try again: soon while a server loads or is replaced, later when its disk or memory is full."""
    from redis import exceptions

    if isinstance(error, exceptions.OutOfMemoryError) or "MISCONF" in str(error):
        return LASTING_RETRY_S
    is_passing = isinstance(error, exceptions.ReadOnlyError | exceptions.BusyLoadingError | exceptions.WatchError)
    return 1 if is_passing else None


def _key(user: str) -> str:
    return f"twofold:history:{user}"


def _member_of(event: LiveEvent) -> str:
    return _SEPARATOR.join((str(event.at), event.item_id, event.kind))


def _event_of(member: str) -> LiveEvent:
    at, _, rest = member.partition(_SEPARATOR)
    item_id, _, kind = rest.rpartition(_SEPARATOR)
    return LiveEvent(item_id, int(at), kind)  # type: ignore[arg-type]
