"""One contract, two stores: SQLite, and Redis where the machine has a server."""

import asyncio
import gc
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from twofold.errors import RequestError
from twofold.serve import event_store, redis_store
from twofold.serve.event_store import LiveEvent, LiveHistories, StoreError, open_histories

MAX_EVENTS = 5


async def stored(store: LiveHistories, user: str) -> list[LiveEvent]:
    (events,) = await store.read([user])
    return events


def test_events_stored_by_one_worker_are_read_by_another_oldest_first(where: str, user: str) -> None:
    async def both() -> None:
        one, other = open_histories(where), open_histories(where)
        await one.append([(user, LiveEvent("b", 20, "negative")), (user, LiveEvent("a", 10, "positive"))])
        await other.append([(user, LiveEvent("é\x1f\n", 20, "met")), (user + "'", LiveEvent("a", 1, "met"))])
        expected = [LiveEvent("a", 10, "positive"), LiveEvent("b", 20, "negative"), LiveEvent("é\x1f\n", 20, "met")]
        for store in (one, other):
            assert await store.read([user, "unknown", user + "'"]) == [expected, [], [LiveEvent("a", 1, "met")]]
            await store.close()

    asyncio.run(both())


def test_the_same_event_again_is_one_event_of_the_last_kind(where: str, user: str) -> None:
    async def posted() -> None:
        store = open_histories(where)
        for kind in ("positive", "positive", "negative"):
            await store.append([(user, LiveEvent("a", 10, kind))])
        await store.append([(user, LiveEvent("a", 11, "met")), (user, LiveEvent("a", 11, "met"))])
        assert await stored(store, user) == [LiveEvent("a", 10, "negative"), LiveEvent("a", 11, "met")]
        await store.close()

    asyncio.run(posted())


def test_the_newest_events_are_stored_in_any_order_of_posting(where: str, user: str) -> None:
    async def posted() -> None:
        store = open_histories(where, max_events=MAX_EVENTS)
        timestamps = [7, 3, 9, 1, 8, 8, 2, 6]
        for number, at in enumerate(timestamps):
            await store.append([(user, LiveEvent(f"item {number}", at, "met"))])
        expected = sorted(zip(timestamps, range(8), strict=True))[-MAX_EVENTS:]
        assert [(event.at, event.item_id) for event in await stored(store, user)] == [
            (at, f"item {n}") for at, n in expected
        ]
        await store.close()

    asyncio.run(posted())


def test_concurrent_writers_lose_nothing(where: str, user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_store, "TIMEOUT_S", 60.0)  # the disk may be busy with other tests

    async def write() -> None:
        stores = [open_histories(where) for _ in range(4)]
        posts = [
            store.append([(user, LiveEvent(f"{writer}", turn, "positive"))])
            for turn in range(20)
            for writer, store in enumerate(stores)
        ]
        await asyncio.gather(*posts)
        expected = [LiveEvent(f"{writer}", turn, "positive") for turn in range(20) for writer in range(4)]
        for store in stores:
            assert await stored(store, user) == expected
            await store.close()

    asyncio.run(write())


def test_a_canceled_request_does_not_disturb_the_next_one(where: str, user: str) -> None:
    """A reply that stays unread on a connection would be read as the reply to the next command."""

    async def canceled() -> None:
        store = open_histories(where)
        users = [f"{user} {number}" for number in range(10)]
        for number, name in enumerate(users):
            await store.append([(name, LiveEvent(str(number), number, "met"))])
        for turn in range(40):
            task = asyncio.ensure_future(
                store.read(users) if turn % 2 else store.append([(user, LiveEvent("a", turn, "met"))])
            )
            for _ in range(turn % 7):
                await asyncio.sleep(0)
            task.cancel()
            number = turn % len(users)
            assert await stored(store, users[number]) == [LiveEvent(str(number), number, "met")]
        await store.append([(user, LiveEvent("z", 100, "met"))])
        assert (await stored(store, user))[-1] == LiveEvent("z", 100, "met")
        await store.close()

    asyncio.run(canceled())


WRITER = """
import asyncio, itertools, sys
from twofold.serve.event_store import LiveEvent, open_histories

async def write():
    store = open_histories(sys.argv[1], max_events=10**6)
    for turn in itertools.count():
        await store.append([("user", LiveEvent(str(turn), turn, "positive"))])
        print(turn, flush=True)

asyncio.run(write())
"""


def test_acknowledged_events_outlive_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "histories.db"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    acknowledged = [next(writer.stdout) for _ in range(25)]
    writer.kill()
    acknowledged += writer.stdout.readlines()
    writer.wait()
    writer.stdout.close()

    async def read() -> list[LiveEvent]:
        store = open_histories(path)
        events = await stored(store, "user")
        await store.close()
        return events

    assert [event.at for event in asyncio.run(read())][: len(acknowledged)] == list(range(len(acknowledged)))


def test_a_store_that_is_dropped_or_cannot_be_opened_closes_its_files(tmp_path: Path) -> None:
    def open_files(path: Path) -> list[str]:
        names = (os.path.realpath(link) for link in Path("/proc/self/fd").iterdir())
        return [name for name in names if name.startswith(str(path))]

    path = tmp_path / "histories.db"
    store = open_histories(path)
    assert open_files(path)
    del store
    gc.collect()
    assert not open_files(path)
    (tmp_path / "file").write_text("this is no database, and longer than its header")
    with pytest.raises(RequestError, match="not a database"):
        open_histories(tmp_path / "file")
    assert not open_files(tmp_path / "file")


# --- errors -----------------------------------------------------------------------------------------------------------


def test_a_store_that_cannot_be_opened_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("this is no database, and longer than its header")
    with pytest.raises(RequestError, match=r"histories in .*file cannot be opened: .*not a database.*--histories FILE"):
        open_histories(tmp_path / "file")
    with pytest.raises(RequestError, match=r"--histories mysql://x is neither a file nor redis://HOST:PORT/DB"):
        open_histories("mysql://x")
    with pytest.raises(RequestError, match=r"--histories redis://host:port/x cannot be read.*redis://HOST:PORT/DB"):
        open_histories("redis://host:port/x")


def test_a_missing_server_raises_a_store_error_each_time(redis_url: str) -> None:
    async def run_requests() -> None:
        gone = open_histories("redis://127.0.0.1:1/0")
        with pytest.raises(StoreError, match="Redis does not respond"):
            await gone.read(["user"])
        with pytest.raises(StoreError, match="Redis does not respond"):
            await gone.append([("user", LiveEvent("a", 1, "met"))])
        await gone.close()

    asyncio.run(run_requests())


def test_a_hanging_server_is_waited_for_once_and_tried_again_later(
    redis_url: str, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(redis_store, "PAUSE_S", 0.2)

    async def run_requests() -> None:
        store = open_histories(redis_url)
        await store.append([(user, LiveEvent("a", 1, "met"))])
        with redis.Redis.from_url(redis_url) as client:
            client.client_pause(500)
        began = time.monotonic()
        with pytest.raises(StoreError, match="Redis does not respond: TimeoutError"):
            await stored(store, user)
        waited = time.monotonic()
        for _ in range(100):
            with pytest.raises(StoreError, match="Redis does not respond: the last attempt failed"):
                await stored(store, user)
        assert time.monotonic() - waited < 0.2 <= waited - began
        await asyncio.sleep(0.6)
        assert await stored(store, user) == [LiveEvent("a", 1, "met")]
        assert await stored(store, user) == [LiveEvent("a", 1, "met")]
        await store.close()

    redis = pytest.importorskip("redis")
    asyncio.run(run_requests())


def test_a_refused_command_raises_its_reason_and_later_ones_work(redis_url: str, user: str) -> None:
    async def run_requests() -> None:
        store = open_histories(redis_url)
        client = redis.Redis.from_url(redis_url)
        client.set(f"twofold:history:{user}", "of another kind")
        with pytest.raises(StoreError, match="Redis refuses the command: .*WRONGTYPE"):
            await stored(store, user)
        client.delete(f"twofold:history:{user}")
        assert await stored(store, user) == []
        client.close()
        await store.close()

    redis = pytest.importorskip("redis")
    asyncio.run(run_requests())


def test_a_locked_file_raises_a_store_error_and_works_afterwards(tmp_path: Path) -> None:
    async def run_requests() -> None:
        store = open_histories(tmp_path / "histories.db")
        blocker = sqlite3.connect(tmp_path / "histories.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="cannot be written: database is locked"):
            await store.append([("user", LiveEvent("a", 1, "met"))])
        assert await stored(store, "user") == []  # readers do not wait
        blocker.execute("ROLLBACK")
        blocker.close()
        await store.append([("user", LiveEvent("a", 1, "met"))])
        assert await stored(store, "user") == [LiveEvent("a", 1, "met")]
        await store.close()

    asyncio.run(run_requests())
