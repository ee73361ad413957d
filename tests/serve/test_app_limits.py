"""Invalid requests, the middleware, metrics and pages of the service."""

import asyncio
import re
from typing import Any

import httpx
import pytest

from tests.serve.client import Client
from tests.serve.tiny import EVENTS, NOON
from twofold.serve.app import build_app
from twofold.serve.event_store import LiveEvent
from twofold.serve.middleware import Limits
from twofold.serve.service import Service

# --- invalid requests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "field", "says"),
    [
        ("recommend", {}, 422, "user_id", "Exactly one of user_id and history is required."),
        ("recommend", {"user_id": 1, "history": []}, 422, "user_id", "Exactly one of"),
        ("recommend", {"user_id": 10, "k": 0}, 422, "k", "k is '0': expected `int` >= 1."),
        ("recommend", b"{", 400, None, "The body is not JSON"),
        ("recommend", {"user_id": 10, "filter": "color = 'red'"}, 422, None, "nearest: `colour`"),
        ("recommend", {"user_id": 10, "filter": "colour = 3"}, 422, None, "does not fit the columns' types"),
        ("recommend", {"user_id": 10, "filter": "read_text('/etc/passwd') = ''"}, 422, None, "read_text"),
        ("similar", {"item_id": "z"}, 422, "item_id", "no item of the catalogue has it. Its ids look like a, b, c."),
        ("events", {"events": []}, 422, "events", "events: expected `array` of length >= 1."),
        ("admin/swap", {}, 403, None, "start the service with TWOFOLD_ADMIN_TOKEN set"),
    ],
)
def test_an_invalid_request_gets_one_message(
    client: Client, path: str, body: Any, status: int, field: str | None, says: str
) -> None:
    actual_status, problem = client.post(f"/v1/{path}", body)
    assert actual_status == status
    assert says in problem["detail"]
    assert problem.get("field") == field


def test_an_unknown_path_is_404_and_a_wrong_method_405(client: Client) -> None:
    assert client.get("/v1/items/z")[0] == 404
    assert client.get("/nothing")[0] == 404
    assert client.get("/v1/recommend")[0] == 405


def test_an_internal_error_has_no_details_in_the_reply(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("/secret/path")

    monkeypatch.setattr("twofold.serve.micro_batching.make_lists", fail)
    status, problem = Client(build_app(service, Limits())).post("/v1/recommend", {"user_id": 10})
    assert (status, problem.pop("instance").isalnum()) == (500, True)
    assert problem == {
        "detail": "The service failed; its log has the details.",
        "type": "about:blank",
        "title": "Internal Server Error",
        "status": 500,
    }


# --- middleware -------------------------------------------------------------------------------------------------------


def test_a_token_is_required_if_one_is_set(service: Service) -> None:
    app = build_app(service, Limits(token="secret"))
    for wrong in (None, "other", "secre", "secrets"):
        status, problem = Client(app, wrong).post("/v1/recommend", {"user_id": 10})
        assert (status, problem["detail"][:30]) == (401, "This service requires a token:")
    assert Client(app, "secret").post("/v1/recommend", {"user_id": 10})[0] == 200
    for path in ("/health", "/ready", "/openapi.json"):
        assert Client(app).get(path)[0] == 200


def test_a_large_body_is_refused_with_and_without_a_content_length(service: Service) -> None:
    client = Client(build_app(service, Limits(max_body_bytes=1000)))
    assert client.post("/v1/recommend", {"history": ["a"] * 500})[0] == 413

    async def parts() -> Any:
        for _ in range(20):
            yield b"[" * 100

    async def streamed() -> httpx.Response:
        async with httpx.AsyncClient(transport=client._transport, base_url="http://twofold") as chunked:
            return await chunked.post("/v1/recommend", content=parts(), headers=client.headers)

    reply = asyncio.run(streamed())
    assert (reply.status_code, reply.json()["detail"]) == (
        413,
        "The body has more than 1,000 bytes: send less at once.",
    )


@pytest.mark.parametrize(("length", "status"), [("0" * 5000 + "2", 200), ("0" * 5000 + "2000", 413), ("9" * 5000, 413)])
def test_a_content_length_of_thousands_of_digits_is_read(service: Service, length: str, status: int) -> None:
    client = Client(build_app(service, Limits(max_body_bytes=1000)))
    client.headers["content-length"] = length
    reply_status, reply = client.post("/v1/recommend", {"user_id": 10})
    assert reply_status == status
    assert ("items" in reply) if status == 200 else reply["detail"].startswith("The body has more than 1,000 bytes")


def test_requests_beyond_the_limit_get_503_with_retry_after(service: Service) -> None:
    client = Client(build_app(service, Limits(max_waiting=4)))
    replies = client.send(*[("POST", "/v1/recommend", {"user_id": 10})] * 10, ("GET", "/health", b""))
    assert [reply.status_code for reply in replies] == [200] * 4 + [503] * 6 + [200]
    refused = replies[5]
    assert refused.headers["retry-after"] == "1"
    assert "4 requests are waiting already" in refused.json()["detail"]
    assert client.post("/v1/recommend", {"user_id": 10})[0] == 200


def test_a_request_beyond_the_time_limit_is_ended(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(users: Any) -> list[list[LiveEvent]]:
        await asyncio.sleep(60)
        return []

    monkeypatch.setattr(service.histories, "read", slow)
    client = Client(build_app(service, Limits(timeout_s=0.05)))
    status, problem = client.post("/v1/recommend", {"user_id": 10})
    assert (status, "no answer within 0.05 s" in problem["detail"]) == (503, True)


# --- metrics, OpenAPI, pages ------------------------------------------------------------------------------------------


def test_metrics_count_time_short_lists_and_unknown_ids(client: Client) -> None:
    client.post("/v1/recommend", {"user_id": 10, "k": 2, "context": {"at": NOON}})
    client.post("/v1/recommend", {"user_id": "unknown", "k": 9, "exclude": ["gone"]})
    (page,) = client.send(("GET", "/metrics", b""))
    lines = dict(line.rsplit(" ", 1) for line in page.text.splitlines() if not line.startswith("#"))
    assert lines['twofold_requests_total{route="/v1/recommend",status="200"}'] == "2.0"
    assert lines['twofold_unknown_ids_total{of="user"}'] == lines['twofold_unknown_ids_total{of="item"}'] == "1.0"
    assert lines['twofold_unknown_ids_total{of="posted_item"}'] == "0.0"
    assert lines["twofold_short_lists_total"] == "1.0"
    assert lines['twofold_lists_total{source="popularity"}'] == "1.0"
    assert lines['twofold_stage_seconds_count{stage="encode"}'] == "1.0"
    assert lines["twofold_served_share"] == "1.0"  # a list of all seven
    assert float(lines["twofold_exposure_of_top_items"]) == pytest.approx(2 / 9)  # one item was in both lists


def test_unknown_items_of_events_are_counted_apart_from_those_of_other_requests(client: Client) -> None:
    """The alert divides them by the posted events."""
    assert client.post("/v1/rank", {"user_id": 10, "item_ids": ["a", "gone", "lost"]})[0] == 200
    assert client.post("/v1/recommend", {"history": ["a", "gone"], "exclude": ["lost"]})[0] == 200
    client.post("/v1/events", {"events": [{"user_id": 10, "item_id": item} for item in ("a", "gone", "b")]})
    (page,) = client.send(("GET", "/metrics", b""))
    counts = dict(re.findall(r'^twofold_unknown_ids_total\{of="(\w+)"\} (\S+)$', page.text, re.MULTILINE))
    assert (counts["posted_item"], counts["item"]) == ("1.0", "4.0")


def test_openapi_lists_every_route_and_its_types(client: Client) -> None:
    _, page = client.get("/openapi.json")
    assert set(page["paths"]) == {
        "/v1/recommend",
        "/v1/recommend:batch",
        "/v1/recommend:beside",
        "/v1/rank",
        "/v1/explain",
        "/v1/page",
        "/v1/map",
        "/v1/similar",
        "/v1/events",
        "/v1/events:remove",
        "/v1/items/{item_id}",
        "/v1/users",
        "/v1/users/{user_id}",
        "/v1/admin/swap",
        "/v1/admin/items",
        "/health",
        "/ready",
    }
    schema = page["paths"]["/v1/recommend"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/Recommend"}
    assert page["components"]["schemas"]["Recommend"]["properties"]["k"]["maximum"] == 1000


def test_pages_load_nothing_from_other_hosts(client: Client) -> None:
    for path in ("/", "/docs"):
        (page,) = client.send(("GET", path, b""))
        assert page.headers["content-type"].startswith("text/html")
        assert "http://" not in page.text.replace("http://www.w3.org", "")
        assert "https://" not in page.text
    assert client.get("/v1/users") == (200, {"user_ids": list(EVENTS)})
