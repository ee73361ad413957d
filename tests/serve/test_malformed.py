"""Malformed requests get a clean status: random bodies, and requests generated from OpenAPI."""

import asyncio
import json
import random
import re
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

from tests.serve.running import TOKEN, Running
from tests.serve.tiny import write_run
from twofold.serve.app import build_app
from twofold.serve.event_store import open_histories
from twofold.serve.live_bundle import open_live_bundle
from twofold.serve.middleware import Limits, RequestGuard
from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.service import Service

IS_JSON = {"content-type": "application/json"}
ROUTES = ["recommend", "recommend:batch", "similar", "events", "admin/swap"]
FIELDS = (
    "user_id history negatives k filter exclude exclude_seen context explain describe user_ids item_id events at run"
)
VALUES: list[Any] = [
    None, True, False, 0, -1, 3, 10, 2**63, 10**40, 1.5, 1e300, "", "a", "10", "\u0000", "é", "x" * 300, "../x", [], {},
    ["a"], [[]], [None], [{}], ["a", 1, "\ud800"], {"at": 0}, {"at": "x"}, {"a": {"b": 1}}, "colour = 'red'",
    "colour = ", "1 = 1; DROP TABLE items", "colour LIKE '%'", "length_s / 0 > 1", "(" * 500, "NOT " * 200 + "TRUE",
    [{"user_id": 1, "item_id": "a"}], [{"user_id": 1, "item_id": "a", "at": -1}], [{"user_id": [], "item_id": {}}],
]  # fmt: skip


def malformed(number: int) -> tuple[str, bytes]:
    """Returns a route and a body: JSON of random fields and values, half of the time cut, spliced or overwritten."""
    draw = random.Random(number)
    body = json.dumps({name: draw.choice(VALUES) for name in draw.sample(FIELDS.split(), draw.randint(0, 4))}).encode()
    match draw.randrange(6):
        case 0:
            body = body[: draw.randrange(len(body) + 1)]
        case 1:
            position = draw.randrange(len(body))
            body = body[:position] + draw.randbytes(3) + body[position:]
        case 2:
            body = draw.randbytes(draw.randrange(40))
    return draw.choice(ROUTES), body


@pytest.fixture
def app(tmp_path: Path) -> RequestGuard:
    run = write_run(tmp_path / "tiny")
    service = Service(open_live_bundle(run), run.parent, open_histories(tmp_path / "histories.db"), ServiceMetrics())
    return build_app(service, Limits())


async def send_all(app: RequestGuard, numbers: range) -> Counter[int]:
    """Sends requests and counts the statuses; every error reply must have a message."""
    statuses: Counter[int] = Counter()
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://twofold", headers=IS_JSON
    ) as client:
        for number in numbers:
            route, body = malformed(number)
            reply = await client.post(f"/v1/{route}", content=body)
            statuses[reply.status_code] += 1
            if reply.status_code != 200:
                detail = reply.json()["detail"]
                assert detail
                assert "Traceback" not in detail
                assert ".py" not in detail
    return statuses


def test_thousands_of_malformed_bodies_get_clean_replies(app: RequestGuard) -> None:
    statuses = asyncio.run(send_all(app, range(2_000)))
    assert set(statuses) <= {200, 400, 403, 422}
    assert statuses[422] > 700
    assert statuses[400] > 100


# --- many -------------------------------------------------------------------------------------------------------------

BODIES, PIPELINED = 100_000, 50


def send_pipelined(port: int, numbers: range) -> Counter[int]:
    """Counts the statuses of requests, PIPELINED of them per write, so that the client is not the bottleneck."""
    statuses: Counter[int] = Counter()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection, connection.makefile("rb") as replies:
        for first in range(numbers.start, numbers.stop, PIPELINED):
            connection.sendall(b"".join(map(request, numbers[first - numbers.start :][:PIPELINED])))
            for _ in range(PIPELINED):
                statuses[read_status(replies)] += 1
    return statuses


def request(number: int) -> bytes:
    route, body = malformed(number)
    return f"POST /v1/{route} HTTP/1.1\r\nHost: twofold\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def read_status(replies: BinaryIO) -> int:
    """Reads the next reply to its end and returns its status."""
    status, length = int(replies.readline().split()[1]), 0
    while (header := replies.readline()) != b"\r\n":
        name, _, value = header.partition(b":")
        length = int(value) if name.lower() == b"content-length" else length
    replies.read(length)
    return status


@pytest.mark.slow
def test_a_hundred_thousand_malformed_bodies_do_not_grow_memory(tmp_path: Path) -> None:
    running = Running(write_run(tmp_path / "tiny"), token="")
    (worker,) = running.workers()

    def peak_memory() -> int:
        (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{worker}/status").read_text())
        return int(peak)  # KiB

    send_pipelined(running.port, range(BODIES // 5))
    before = peak_memory()
    statuses = send_pipelined(running.port, range(BODIES // 5, BODIES))
    assert set(statuses) <= {200, 400, 403, 422}
    assert statuses.total() == BODIES * 4 // 5
    assert peak_memory() - before < 30 * 1024
    assert running.workers() == [worker]
    assert running.stop() == 0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(write_run(tmp_path_factory.mktemp("runs") / "tiny"))
    yield running
    running.stop()


@pytest.mark.slow
def test_requests_generated_from_openapi_never_fail_the_service(service: Running) -> None:
    """Sends valid and invalid requests of every route with schemathesis; replies must fit the schemas."""
    schemathesis = pytest.importorskip("schemathesis", reason="pip install schemathesis")
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{service.port}/openapi.json")
    operations = [operation.ok() for operation in schema.get_all_operations()]
    assert len(operations) == 18

    def try_it(case: Any) -> None:
        reply = case.call(headers={"authorization": f"Bearer {TOKEN}"})
        assert reply.status_code < 500, reply.text
        if reply.status_code != 405:
            case.operation.validate_response(reply)

    modes = schemathesis.GenerationMode
    for operation in operations:
        drawn = [modes.POSITIVE, modes.NEGATIVE] if operation.method == "post" else [modes.POSITIVE]
        for cases in (operation.as_strategy(generation_mode=mode) for mode in drawn):
            settings(max_examples=40, suppress_health_check=list(HealthCheck), database=None)(given(cases)(try_it))()
