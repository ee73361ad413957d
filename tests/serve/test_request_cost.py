"""Cost of one request: bounded, ended with its deadline, and not paid by other requests."""

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.serve.client import Client
from tests.serve.tiny import EVENTS, ITEMS, NOON
from twofold.dataset.histories import Histories
from twofold.index.live import Snapshot
from twofold.serve import micro_batching
from twofold.serve.app import build_app
from twofold.serve.micro_batching import BLOCK_USERS
from twofold.serve.middleware import Limits
from twofold.serve.responses import ListRequest, make_lists
from twofold.serve.schemas import Recommend, RecommendBatch
from twofold.serve.service import Service

BATCH = "/v1/recommend:batch"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"user_ids": [10] * 1000, "k": 21}, "user_ids times k is 21,000: a batch has at most 20,000 items"),
        ({"user_ids": [10] * 101, "k": 50, "describe": True}, "user_ids times k is 5,050:"),
        (
            {"user_ids": [10] * 101, "k": 50, "explain": True},
            "with explain or describe 5,000. Send fewer users at once.",
        ),
    ],
)
def test_a_batch_beyond_the_budget_is_refused(client: Client, body: dict[str, Any], says: str) -> None:
    status, problem = client.post(BATCH, body)
    assert (status, problem["field"], says in problem["detail"]) == (422, "k", True), problem


def test_a_batch_within_the_budget_is_answered(service: Service) -> None:
    client = Client(build_app(service, Limits(timeout_s=60.0)))
    assert len(client.post(BATCH, {"user_ids": [10] * 1000, "k": 5, "describe": True})[1]["answers"]) == 1000


def test_a_batch_ends_with_its_deadline(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks: list[int] = []

    def slow(requests: Sequence[ListRequest], metrics: Any) -> Any:
        blocks.append(len(requests))
        time.sleep(0.05)
        return make_lists(requests, metrics)

    monkeypatch.setattr(micro_batching, "make_lists", slow)
    client = Client(build_app(service, Limits(timeout_s=0.12)))
    assert client.post(BATCH, {"user_ids": [10] * 1000, "k": 5})[0] == 503
    time.sleep(0.3)
    assert 1 <= len(blocks) <= 4  # of 16
    assert set(blocks) == {BLOCK_USERS}


def test_large_batches_are_answered_in_turn_and_small_ones_between_their_blocks(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the blocks of six full batches took turns, all six would end at their deadline."""
    blocks: list[int] = []

    def noted(requests: Sequence[ListRequest], metrics: Any) -> Any:
        blocks.append(requests[0].options.k)
        return make_lists(requests, metrics)

    monkeypatch.setattr(micro_batching, "make_lists", noted)

    async def together() -> None:
        large = [RecommendBatch(user_ids=[10] * (3 * BLOCK_USERS), k=k) for k in (1, 2, 3)]
        tasks = [asyncio.create_task(service.recommend_batch(batch)) for batch in large]
        while not blocks:
            await asyncio.sleep(0)
        await service.recommend_batch(RecommendBatch(user_ids=[20], k=4))
        await asyncio.gather(*tasks)

    asyncio.run(together())
    assert [k for k in blocks if k != 4] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert blocks.index(4) < blocks.index(2)


def test_a_canceled_batch_lets_the_next_begin(service: Service) -> None:
    async def together() -> int:
        large = RecommendBatch(user_ids=[10] * (3 * BLOCK_USERS), k=1)
        first, second = (asyncio.create_task(service.recommend_batch(large)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        return len((await second).answers)

    assert asyncio.run(together()) == 3 * BLOCK_USERS


def test_batches_do_not_occupy_the_threads_of_filters(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = threading.Event()

    def blocked(requests: Sequence[ListRequest], metrics: Any) -> Any:
        if len(requests) > 1:
            wait.wait(10)
        return make_lists(requests, metrics)

    monkeypatch.setattr(micro_batching, "make_lists", blocked)

    async def together() -> float:
        batches = [asyncio.create_task(service.recommend_batch(batch)) for _ in range(40)]
        await asyncio.sleep(0.05)
        started = time.monotonic()
        await service.recommend(single)
        took = time.monotonic() - started
        wait.set()
        await asyncio.gather(*batches)
        return took

    batch = RecommendBatch(user_ids=[10, 20])
    single = Recommend(user_id=10, filter="length_s < 31")  # compiled on a thread
    assert asyncio.run(together()) < 2


def test_a_batch_reads_and_joins_histories_on_threads(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the event loop, a thousand users with 500 live events each would stop all other requests for seconds."""
    used: dict[str, set[str]] = {"read": set(), "join": set()}
    select, lists = service.histories._select, service._batcher._lists  # type: ignore[attr-defined]

    def reading(*arguments: Any) -> Any:
        used["read"].add(threading.current_thread().name)
        return select(*arguments)

    def joining(*arguments: Any) -> Any:
        used["join"].add(threading.current_thread().name)
        return lists(*arguments)

    monkeypatch.setattr(service.histories, "_select", reading)
    monkeypatch.setattr(service._batcher, "_lists", joining)
    asyncio.run(service.recommend_batch(RecommendBatch(user_ids=[10] * 128, k=1)))
    assert (used["read"], used["join"]) == ({"histories_0"}, {"batches_0"})


def test_an_item_is_described_without_encoding_it_again(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"user_id": 30, "k": 7, "describe": True, "context": {"at": NOON}}
    first = client.post("/v1/recommend", body)[1]
    assert first["items"][0]["attributes"].keys() == {"colour", "length_s"}
    encoded: list[int] = []
    original = Snapshot.attributes_of

    def counting(items: Snapshot, item_rows: np.ndarray) -> Any:
        encoded.extend(item_rows.tolist())
        return original(items, item_rows)

    monkeypatch.setattr(Snapshot, "attributes_of", counting)
    assert client.post("/v1/recommend", body)[1] == first
    assert encoded == []


def test_the_facts_of_an_item_are_counted_once(client: Client, service: Service) -> None:
    expected = {name: sum(item == name for events in EVENTS.values() for item, _, _ in events) for name in ITEMS}
    none = Histories(np.empty(0, np.int32), np.empty(0, np.int64), service.current.bundle.events.offsets * 0)
    bundle = replace(service.current.bundle, events=none, positives=none)
    service.bundles.current = replace(service.current, bundle=bundle)
    assert {name: client.get(f"/v1/items/{name}")[1]["events"] for name in ITEMS} == expected


def test_the_fault_of_one_request_is_not_that_of_the_others(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(requests: Sequence[ListRequest], metrics: Any) -> Any:
        if any(request.user_id == 20 for request in requests):
            raise ZeroDivisionError
        return make_lists(requests, metrics)

    monkeypatch.setattr(micro_batching, "make_lists", faulty)
    client = Client(build_app(service, Limits()))
    replies = client.send(*[("POST", "/v1/recommend", {"user_id": user}) for user in (10, 20, 30, 40)])
    assert [reply.status_code for reply in replies] == [200, 500, 200, 200]
