"""Data of people in the service: read, taken back, deleted, counted once; and the reason of a failed write."""

import time
from pathlib import Path
from typing import Any

import pytest

from tests.serve.client import Client
from tests.serve.test_app import ids
from tests.serve.tiny import EVENTS, NOON
from twofold.serve.app import build_app
from twofold.serve.event_store import SqliteHistories, StoreError, open_histories
from twofold.serve.live_bundle import open_live_bundle
from twofold.serve.middleware import Limits
from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.service import Service


@pytest.fixture
def client(service: Service) -> Client:
    return Client(build_app(service, Limits(admin_token="admin")), "admin")


def post(client: Client, *events: dict[str, Any], **options: Any) -> Any:
    status, reply = client.post("/v1/events", {"events": list(events), **options})
    assert status == 200, reply
    return reply


def test_all_events_of_a_user_can_be_read(client: Client) -> None:
    post(client, {"user_id": 10, "item_id": "f", "at": NOON, "kind": "negative"})
    data = client.get("/v1/users/10")[1]
    kinds = {True: "positive", False: "negative"}
    logged = [{"item_id": item, "at": at, "kind": kinds[positive]} for item, at, positive in EVENTS[10]]
    posted = [{"item_id": "f", "at": NOON, "kind": "negative"}]
    assert data == {"user_id": "10", "logged": logged, "posted": posted, "is_forgotten": False}
    assert client.get("/v1/users/unknown")[1]["logged"] == []


def test_a_deleted_user_is_a_stranger_in_every_bundle_and_worker(
    client: Client, service: Service, run: Path, tmp_path: Path
) -> None:
    post(client, {"user_id": 10, "item_id": "f"})
    assert client.delete("/v1/users/10") == (200, {"removed": 1})
    stranger = client.post("/v1/recommend", {"user_id": "unknown", "context": {"at": NOON}})[1]
    reply = client.post("/v1/recommend", {"user_id": 10, "context": {"at": NOON}})[1]
    assert (reply["source"], reply["items"]) == ("popularity", stranger["items"])
    again = Service(open_live_bundle(run), run.parent, open_histories(tmp_path / "histories.db"), ServiceMetrics())
    other = Client(build_app(again, Limits(admin_token="admin")), "admin")
    other.post("/v1/admin/items", {"remove": ["b"]})  # it reads the marks then
    assert other.post("/v1/recommend", {"user_id": "10"})[1]["source"] == "popularity"
    assert client.get("/v1/users/10")[1] == {"user_id": "10", "logged": [], "posted": [], "is_forgotten": True}
    post(client, {"user_id": 10, "item_id": "a"})  # a new user of the same name
    assert client.post("/v1/recommend", {"user_id": 10})[1]["source"] == "model"


def test_an_event_can_be_taken_back(client: Client) -> None:
    before = client.post("/v1/recommend", {"user_id": 10, "context": {"at": NOON}})[1]
    first = ids(before)[0]
    post(client, {"user_id": 10, "item_id": first, "at": NOON - 2}, {"user_id": 10, "item_id": first, "at": NOON - 1})
    removal = {"user_id": "10", "item_id": first}
    assert client.post("/v1/events:remove", removal) == (200, {"removed": 1})
    assert first not in ids(client.post("/v1/recommend", {"user_id": 10, "context": {"at": NOON}})[1])
    assert client.post("/v1/events:remove", removal | {"at": NOON - 1}) == (200, {"removed": 0})
    assert client.post("/v1/events:remove", removal | {"at": NOON - 2}) == (200, {"removed": 1})
    assert client.post("/v1/recommend", {"user_id": 10, "context": {"at": NOON}})[1] == before


def test_a_request_that_is_repeated_with_its_key_counts_once(client: Client) -> None:
    event = {"user_id": "new", "item_id": "a"}
    first = post(client, event, idempotency_key="one")
    time.sleep(0.01)
    assert post(client, event, idempotency_key="one") == first
    assert len(client.get("/v1/users/new")[1]["posted"]) == 1
    time.sleep(0.01)
    post(client, event, idempotency_key="two")
    assert len(client.get("/v1/users/new")[1]["posted"]) == 2


@pytest.mark.parametrize("text", ["03", " 3 ", "+3", "0_3", "\uff11\uff10", "010"])
def test_a_user_has_one_name(client: Client, text: str) -> None:
    """An event of "03" must not be missing from the next list of user 3."""
    post(client, {"user_id": text, "item_id": "f"})
    reply = client.post("/v1/recommend", {"user_id": text, "explain": True})[1]
    assert [item["item_id"] for item in reply["history"]] == ["f"]  # a user of their own
    known = client.post("/v1/recommend", {"user_id": 10, "explain": True})[1]
    assert "f" not in [item["item_id"] for item in known["history"]]


def test_a_number_and_its_text_are_one_user(client: Client) -> None:
    post(client, {"user_id": "10", "item_id": "f"})
    reply = client.post("/v1/recommend", {"user_id": 10, "explain": True})[1]
    assert reply["history"][0]["item_id"] == "f"


class FailingStore(SqliteHistories):
    """A store whose writes fail."""

    error = StoreError("database or disk is full", retry_s=30)

    async def append(self, events: Any) -> None:
        raise self.error

    async def check(self) -> None:
        raise self.error


def test_why_a_write_failed_is_logged_and_the_service_is_not_ready(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twofold.serve.service.STORE_LOG_S", 60.0)
    service = Service(open_live_bundle(run), run.parent, FailingStore(tmp_path / "h.db"), ServiceMetrics())
    client = Client(build_app(service, Limits()))
    event = ("POST", "/v1/events", {"events": [{"user_id": 1, "item_id": "a"}]})
    with caplog.at_level("INFO", "twofold.serve"):
        for request in (event, event, ("GET", "/ready", b"")):
            (reply,) = client.send(request)
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "30")
    facts = [record.facts for record in caplog.records if record.message == "the store fails"]  # type: ignore[attr-defined]
    assert facts == [{"error": "database or disk is full"}]


def test_a_write_that_will_never_succeed_is_507(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FailingStore, "error", StoreError("attempt to write a readonly database", retry_s=None))
    service = Service(open_live_bundle(run), run.parent, FailingStore(tmp_path / "h.db"), ServiceMetrics())
    (reply,) = Client(build_app(service, Limits())).send(
        ("POST", "/v1/events", {"events": [{"user_id": 1, "item_id": "a"}]})
    )
    assert reply.status_code == 507
    assert "retry-after" not in reply.headers
