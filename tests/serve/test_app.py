"""The HTTP API of the service, on a bundle whose lists can be computed by hand."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.tiny import EVENTS, NOON, best, scores_of, write_run
from twofold.serve.app import build_app
from twofold.serve.event_store import LiveEvent, StoreError, open_histories
from twofold.serve.live_bundle import open_live_bundle
from twofold.serve.middleware import Limits
from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.responses import UNKNOWN_USER
from twofold.serve.service import NO_STORE, Service

NOON_OF_DAY_0 = {"at": NOON}


class Client:
    """An HTTP client of an application in this process; `post` and `get` return (status, body)."""

    def __init__(self, app: Any, token: str | None = None) -> None:
        self.headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self._transport = httpx.ASGITransport(app)

    def send(self, *requests: tuple[str, str, Any]) -> list[httpx.Response]:
        async def together() -> list[httpx.Response]:
            async with httpx.AsyncClient(transport=self._transport, base_url="http://twofold") as client:
                pending = [
                    client.request(
                        method,
                        path,
                        headers=self.headers,
                        content=body if isinstance(body, bytes) else json.dumps(body),
                    )
                    for method, path, body in requests
                ]
                return await asyncio.gather(*pending)

        return asyncio.run(together())

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        (reply,) = self.send(("POST", path, body))
        return reply.status_code, reply.json()

    def get(self, path: str) -> tuple[int, Any]:
        (reply,) = self.send(("GET", path, b""))
        return reply.status_code, reply.json()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture
def service(run: Path, tmp_path: Path) -> Service:
    return Service(open_live_bundle(run), run.parent, open_histories(tmp_path / "histories.db"), ServiceMetrics())


@pytest.fixture
def client(service: Service) -> Client:
    return Client(build_app(service, Limits()))


def ids(reply: dict[str, Any]) -> list[Any]:
    return [item["item_id"] for item in reply["items"]]


# --- recommendations --------------------------------------------------------------------------------------------------


def test_the_best_unseen_items_of_a_user(client: Client, service: Service) -> None:
    status, reply = client.post("/v1/recommend", {"user_id": 10, "k": 3, "context": NOON_OF_DAY_0})
    expected = scores_of(["a", "cold"], ["b"])
    assert status == 200
    assert ids(reply) == best(expected, without="a b cold", k=3)
    assert [item["rank"] for item in reply["items"]] == [1, 2, 3]
    assert [item["score"] for item in reply["items"]] == pytest.approx(
        [expected[item] for item in ids(reply)], abs=1e-5
    )
    rest = {name: value for name, value in reply.items() if name != "items"}
    assert rest == {
        "user_id": 10,
        "source": "model",
        "is_degraded": False,
        "warnings": [],
        "unknown_items": 0,
        "at": NOON,
        "bundle": service.current.digest[:12],
    }


def test_a_posted_history_gives_the_list_of_a_user_with_the_same_history(client: Client) -> None:
    posted = {"history": ["a", "cold", "gone"], "negatives": ["b"], "k": 3, "context": NOON_OF_DAY_0}
    _, reply = client.post("/v1/recommend", posted)
    _, known = client.post("/v1/recommend", {"user_id": "10", "k": 3, "context": NOON_OF_DAY_0})
    assert reply["items"] == known["items"]
    assert (reply["user_id"], reply["unknown_items"]) == (None, 1)


def test_filter_and_exclusions_are_obeyed(client: Client) -> None:
    body = {"user_id": 30, "filter": "colour = 'red'", "exclude": ["a", "nothing"], "context": NOON_OF_DAY_0}
    _, reply = client.post("/v1/recommend", body)
    assert ids(reply) == best(scores_of([], []), without="a b c e")
    assert reply["unknown_items"] == 1
    _, seen = client.post("/v1/recommend", {"user_id": 40, "exclude_seen": False, "k": 7, "context": NOON_OF_DAY_0})
    assert ids(seen) == best(scores_of(["a", "b"], ["d", "e", "f", "cold"]))
    assert client.post("/v1/recommend", {"user_id": 40})[1]["items"] == []


def test_an_unknown_user_gets_popular_items_and_a_warning(client: Client) -> None:
    for body in ({"user_id": "unknown"}, {"history": []}, {"history": ["gone"]}):
        status, reply = client.post("/v1/recommend", body | {"k": 2, "filter": "length_s < 32"})
        assert (status, reply["source"], reply["is_degraded"]) == (200, "popularity", True)
        assert reply["warnings"] == [UNKNOWN_USER]
        assert len(reply["items"]) == 2


def test_an_explained_list_has_history_reasons_and_attributes(client: Client) -> None:
    _, reply = client.post("/v1/recommend", {"user_id": 10, "k": 1, "explain": True, "describe": True})
    (item,) = reply["items"]
    assert [reason["item_id"] for reason in item["reasons"]] == sorted(
        ["a", "cold"], key=lambda other: -next(r["similarity"] for r in item["reasons"] if r["item_id"] == other)
    )
    assert set(item["attributes"]) == {"colour", "length_s"}
    assert [(known["item_id"], known["kind"]) for known in reply["history"]] == [
        ("cold", "positive"),
        ("b", "negative"),
        ("a", "positive"),
    ]


def test_a_batch_has_the_list_that_each_user_gets_alone(client: Client) -> None:
    users = [40, 20, "unknown", 30, 10, 20]
    options = {"k": 3, "filter": "length_s < 32", "context": NOON_OF_DAY_0}
    _, together = client.post("/v1/recommend:batch", {"user_ids": users, **options})
    alone = [client.post("/v1/recommend", {"user_id": user, **options})[1] for user in users]
    assert together["answers"] == alone


def test_concurrent_requests_get_the_same_replies_as_single_ones(client: Client) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"k": 3},
        {"filter": "colour = 'red'"},
        {"filter": "colour = 'red'", "exclude": ["a"], "exclude_seen": False},
        {"explain": True, "describe": True},
    ]
    users = [{"user_id": user} for user in (10, 20, 30, 40, "unknown")] + [{"history": ["a", "b"]}]
    requests = [
        ("POST", "/v1/recommend", {**who, **how, "context": NOON_OF_DAY_0}) for who in users for how in variants
    ]
    together = client.send(*requests)
    assert [reply.json() for reply in together] == [client.post(path, body)[1] for _, path, body in requests]


def test_similar_items_and_the_facts_of_one(client: Client) -> None:
    _, reply = client.post("/v1/similar", {"item_id": "a", "k": 9, "filter": "colour = 'red'", "describe": True})
    assert sorted(ids(reply)) == ["cold", "d", "f"]
    assert reply["items"][0]["attributes"]["colour"] == "red"
    assert client.get("/v1/items/cold") == (
        200,
        {
            "item_id": "cold",
            "attributes": {"colour": "red", "length_s": 35.0},
            "is_cold": True,
            "events": 2,
            "positives": 1,
        },
    )


# --- live histories ---------------------------------------------------------------------------------------------------


def test_a_posted_event_is_in_the_next_list_and_counts_as_seen(client: Client) -> None:
    before = client.post("/v1/recommend", {"user_id": 10, "k": 7})[1]
    first = ids(before)[0]
    assert client.post("/v1/events", {"events": [{"user_id": 10, "item_id": first}]}) == (
        200,
        {"accepted": 1, "unknown_items": 0},
    )
    after = client.post("/v1/recommend", {"user_id": 10, "k": 7, "explain": True})[1]
    assert first not in ids(after)
    assert after["history"][0] == {"item_id": first, "kind": "positive"}
    hour = after["at"] // 3_600_000 % 24
    scores = scores_of(["a", "cold", first], ["b"], hour=hour)
    assert ids(after) == best(scores, without=f"a b cold {first}")


def test_events_make_an_unknown_user_known(client: Client) -> None:
    events = [{"user_id": "new", "item_id": "a"}, {"user_id": "new", "item_id": "b", "kind": "negative"}]
    assert client.post("/v1/events", {"events": [*events, {"user_id": "new", "item_id": "gone"}]})[1] == {
        "accepted": 3,
        "unknown_items": 1,
    }
    _, reply = client.post("/v1/recommend", {"user_id": "new", "context": {"at": int(time.time() * 1000) + 1000}})
    scores = scores_of(["a"], ["b"], hour=reply["at"] // 3_600_000 % 24)
    assert (reply["source"], ids(reply)) == ("model", best(scores, without="a b"))
    # Before the events, the user was unknown.
    assert client.post("/v1/recommend", {"user_id": "new", "context": {"at": 1000}})[1]["source"] == "popularity"


def test_an_event_of_tomorrow_is_refused(client: Client) -> None:
    tomorrow = int(time.time() * 1000) + 24 * 3_600_000
    events = [{"user_id": 1, "item_id": "a"}, {"user_id": 1, "item_id": "a", "at": tomorrow}]
    status, problem = client.post("/v1/events", {"events": events})
    assert (status, problem["field"], problem["value"]) == (422, "events[1].at", tomorrow)
    assert f"events[1].at is {tomorrow}: that is after now" in problem["detail"]


class DownStore:
    """A store that is down."""

    async def append(self, events: Any) -> None:
        raise StoreError("down")

    async def read(self, users: Any) -> list[list[LiveEvent]]:
        raise StoreError("down")

    async def close(self) -> None:
        return


def test_without_the_store_lists_have_a_warning_and_events_are_refused(service: Service) -> None:
    service.histories = DownStore()
    client = Client(build_app(service, Limits()))
    status, reply = client.post("/v1/recommend", {"user_id": 10, "k": 3, "context": NOON_OF_DAY_0})
    assert (status, reply["is_degraded"], reply["warnings"]) == (200, True, [NO_STORE])
    assert ids(reply) == best(scores_of(["a", "cold"], ["b"]), without="a b cold", k=3)
    for request in (("POST", "/v1/events", {"events": [{"user_id": 1, "item_id": "a"}]}), ("GET", "/ready", b"")):
        (reply,) = client.send(request)
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert client.get("/health")[0] == 200


def test_the_service_is_ready_until_it_stops(client: Client, service: Service) -> None:
    assert client.get("/ready") == client.get("/health")
    service.is_stopping = True
    status, problem = client.get("/ready")
    assert (status, "it is stopping" in problem["detail"]) == (503, True)
    assert client.get("/health")[0] == 200


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
        ("admin/swap", {}, 403, None, "start the service with TWOFOLD_TOKEN set"),
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

    monkeypatch.setattr("twofold.serve.service.make_lists", fail)
    assert Client(build_app(service, Limits())).post("/v1/recommend", {"user_id": 10}) == (
        500,
        {"detail": "The service failed; its log has the details."},
    )


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
            return await chunked.post("/v1/recommend", content=parts())

    reply = asyncio.run(streamed())
    assert (reply.status_code, reply.json()["detail"]) == (
        413,
        "The body has more than 1,000 bytes: send less at once.",
    )


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
    client.post("/v1/recommend", {"user_id": 10, "k": 2, "context": NOON_OF_DAY_0})
    client.post("/v1/recommend", {"user_id": "unknown", "k": 9, "exclude": ["gone"]})
    (page,) = client.send(("GET", "/metrics", b""))
    lines = dict(line.rsplit(" ", 1) for line in page.text.splitlines() if not line.startswith("#"))
    assert lines['twofold_requests_total{route="/v1/recommend",status="200"}'] == "2.0"
    assert lines['twofold_unknown_ids_total{of="user"}'] == lines['twofold_unknown_ids_total{of="item"}'] == "1.0"
    assert lines["twofold_short_lists_total"] == "1.0"
    assert lines['twofold_lists_total{source="popularity"}'] == "1.0"
    assert lines['twofold_stage_seconds_count{stage="encode"}'] == "1.0"
    assert lines["twofold_served_share"] == "1.0"  # a list of all seven
    assert float(lines["twofold_exposure_of_top_items"]) == pytest.approx(2 / 9)  # one item was in both lists


def test_openapi_lists_every_route_and_its_types(client: Client) -> None:
    _, page = client.get("/openapi.json")
    assert set(page["paths"]) == {
        "/v1/recommend",
        "/v1/recommend:batch",
        "/v1/similar",
        "/v1/events",
        "/v1/items/{item_id}",
        "/v1/users",
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
