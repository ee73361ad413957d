"""The rest of the contract of both stores: removed events, marks, keys, expiry, clocks, and what an error says."""

import asyncio
import sys
from pathlib import Path

import pytest

from tests.serve.test_event_store import MAX_EVENTS, stored
from twofold.errors import RequestError
from twofold.serve import event_store, redis_store
from twofold.serve.event_store import LASTING_RETRY_S, LiveEvent, StoreError, open_histories
from twofold.tables import DAY_MS


def test_an_event_ahead_of_the_clock_is_set_back_and_pushes_no_real_one_out(
    where: str, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without that, events of a time when the clock was wrong would stay the newest, and new ones would be dropped."""

    def clock(now: int) -> None:
        for module in (event_store, redis_store):
            monkeypatch.setattr(module, "now_ms", lambda: now)

    async def posted() -> None:
        store, right, wrong = open_histories(where, max_events=MAX_EVENTS), 1_000_000_000, 9_000_000_000
        clock(wrong)
        await store.append([(user, LiveEvent(f"ahead {number}", wrong + number, "met")) for number in range(5)])
        clock(right)
        for number in range(1, 5):
            await store.append([(user, LiveEvent(f"real {number}", right + number, "positive"))])
        events = await stored(store, user)
        assert max(event.at for event in events) <= right + 4
        assert [event.item_id for event in events[-4:]] == [f"real {number}" for number in range(1, 5)]
        await store.close()

    asyncio.run(posted())


def test_an_event_is_removed_and_a_user_deleted(where: str, user: str) -> None:
    async def removed() -> None:
        store, other = open_histories(where), open_histories(where)
        await store.append([(user, LiveEvent("a", at, "met")) for at in (1, 2, 3)])
        await store.append([(user, LiveEvent("b", 9, "met")), (user + "'", LiveEvent("a", 3, "met"))])
        assert await store.remove(user, "a", None) == 1
        assert await store.remove(user, "a", 1) == 1
        assert await store.remove(user, "a", 7) == await store.remove(user, "c", None) == 0
        assert await stored(other, user) == [LiveEvent("a", 2, "met"), LiveEvent("b", 9, "met")]
        assert await store.delete_user(user) == 2
        assert await stored(other, user) == []
        assert await stored(other, user + "'") == [LiveEvent("a", 3, "met")]
        marks = await other.marks(-1)
        assert marks is not None
        assert user in marks.forgotten
        for each in (store, other):
            await each.close()

    asyncio.run(removed())


def test_marks_are_seen_by_other_workers_and_outlive_them(where: str, user: str) -> None:
    async def marked() -> None:
        store = open_histories(where)
        before = await store.marks(-1)
        assert before is not None
        assert await store.marks(before.version) is None
        await store.mark("withdrawn", [user, "b"], is_marked=True)
        await store.mark("withdrawn", ["b", "never"], is_marked=False)
        await store.close()
        other = open_histories(where)
        after = await other.marks(before.version)
        assert after is not None
        assert after.withdrawn - before.withdrawn == {user}
        assert await other.marks(after.version) is None
        await other.close()

    asyncio.run(marked())


def test_an_idempotency_key_has_its_first_time(where: str, user: str) -> None:
    async def used() -> None:
        store = open_histories(where)
        assert [await store.first_time(user, now) for now in (5, 6, 7)] == [5, 5, 5]
        assert await store.first_time(user + "'", 8) == 8
        await store.check()
        await store.close()

    asyncio.run(used())


def test_events_expire_after_the_last_post_of_their_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def posted() -> None:
        store = open_histories(tmp_path / "h.db", keep_days=10)
        for day, user in ((0, "old"), (0, "active"), (5, "active")):
            monkeypatch.setattr(event_store, "now_ms", lambda day=day: day * DAY_MS)
            await store.append([(user, LiveEvent(str(day), day, "met"))])
        monkeypatch.setattr(event_store, "now_ms", lambda: 11 * DAY_MS)
        await store.expire()
        assert await store.read(["old", "active"]) == [[], [LiveEvent("0", 0, "met"), LiveEvent("5", 5, "met")]]
        await store.close()

    asyncio.run(posted())


def test_events_in_redis_expire_too(redis_url: str, user: str) -> None:
    async def posted() -> int:
        store = open_histories(redis_url, keep_days=10)
        await store.append([(user, LiveEvent("a", 1, "met"))])
        remaining = await store._redis.pttl(f"twofold:history:{user}")  # type: ignore[attr-defined]
        await store.close()
        return int(remaining)

    assert 9 * DAY_MS < asyncio.run(posted()) <= 10 * DAY_MS


def test_a_file_that_cannot_be_written_is_named_and_trying_again_is_of_no_use(tmp_path: Path) -> None:
    async def posted() -> None:
        store = open_histories(tmp_path / "h.db")
        store._writer.execute("PRAGMA query_only = 1")  # type: ignore[attr-defined]
        with pytest.raises(StoreError, match="cannot be written: attempt to write a readonly database") as refused:
            await store.append([("10", LiveEvent("a", 1, "met"))])
        assert refused.value.retry_s is None
        store._writer.execute("PRAGMA query_only = 0")  # type: ignore[attr-defined]
        store._writer.execute("PRAGMA max_page_count = 1")  # type: ignore[attr-defined]
        with pytest.raises(StoreError, match="database or disk is full") as full:
            await store.append([("10", LiveEvent("a" * 100, at, "met")) for at in range(1_000)])
        assert full.value.retry_s == 30
        await store.close()

    asyncio.run(posted())


def test_a_refused_command_says_why(redis_url: str, user: str) -> None:
    async def posted() -> None:
        store = open_histories(redis_url)
        await store._redis.set(f"twofold:history:{user}", "no history")  # type: ignore[attr-defined]
        with pytest.raises(StoreError, match="Redis refuses the command: .*WRONGTYPE") as refused:
            await store.read([user])
        assert refused.value.retry_s is None
        await store.close()

    asyncio.run(posted())


@pytest.mark.parametrize("url", ["redis://:hunter2@10.0.0.9:port/0", "mysql://root:hunter2@host/db"])
def test_a_password_is_not_printed(url: str) -> None:
    with pytest.raises(RequestError, match=r"--histories \w+://\*\*\*@") as refused:
        open_histories(url)
    assert "hunter2" not in str(refused.value)


def test_without_the_client_of_redis_one_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(RequestError, match=r"pip install 'twofold\[redis\]'"):
        open_histories("redis://localhost/0")


def test_a_file_has_a_largest_size_and_refuses_beyond_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_store, "MAX_STORE_BYTES", 2**18)

    async def fill() -> None:
        store, number = open_histories(tmp_path / "histories.db"), 0
        events = [LiveEvent("x" * 200, at, "met") for at in range(100)]
        try:
            for number in range(20):
                await store.append([(f"user {number}", event) for event in events])
        except StoreError as full:
            assert full.retry_s == LASTING_RETRY_S  # noqa: PT017
        assert 0 < number < 19
        assert (await store.read(["user 0"]))[0] == events  # what is stored stays readable
        await store.close()

    asyncio.run(fill())
