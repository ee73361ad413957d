"""The HTTP API of the service, on a bundle whose lists can be computed by hand."""

import time
from typing import Any

import pytest

from tests.serve.client import Client
from tests.serve.tiny import NOON, best, scores_of
from twofold.serve.app import build_app
from twofold.serve.event_store import LiveEvent, SqliteHistories, StoreError
from twofold.serve.micro_batching import NO_STORE
from twofold.serve.middleware import Limits
from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.recommender import Recommender
from twofold.serve.responses import UNKNOWN_USER
from twofold.serve.service import Service

NOON_OF_DAY_0 = {"at": NOON}


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
        "is_exact": True,
    }


def test_http_and_tables_agree_for_the_same_request_time(client: Client, service: Service) -> None:
    recommender = Recommender(service.current.bundle)
    users = [10, 20, 30, 40]
    for at in (2 * 3_600_000, NOON, NOON + 1):
        table = recommender.recommend(users, k=3, at=at)
        assert int(table.schema.metadata[b"at"]) == at
        batch = client.post("/v1/recommend:batch", {"user_ids": users, "k": 3, "context": {"at": at}})[1]["answers"]
        rows = [{"user_id": answer["user_id"], **item} for answer in batch for item in answer["items"]]
        assert rows == [{**row, "score": pytest.approx(row["score"], abs=0)} for row in table.to_pylist()]


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
    now = int(time.time() * 1000)
    status, accepted = client.post("/v1/events", {"events": [{"user_id": 10, "item_id": first}]})
    assert (status, accepted) == (200, {"accepted": 1, "unknown_items": 0, "at": accepted["at"]})
    assert now <= accepted["at"] < now + 5_000
    after = client.post("/v1/recommend", {"user_id": 10, "k": 7, "explain": True})[1]
    assert first not in ids(after)
    assert after["history"][0] == {"item_id": first, "kind": "positive"}
    hour = after["at"] // 3_600_000 % 24
    scores = scores_of(["a", "cold", first], ["b"], hour=hour)
    assert ids(after) == best(scores, without=f"a b cold {first}")


def test_events_make_an_unknown_user_known(client: Client) -> None:
    events = [{"user_id": "new", "item_id": "a"}, {"user_id": "new", "item_id": "b", "kind": "negative"}]
    accepted = client.post("/v1/events", {"events": [*events, {"user_id": "new", "item_id": "gone"}]})[1]
    assert (accepted["accepted"], accepted["unknown_items"]) == (3, 1)
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


class DownStore(SqliteHistories):
    """A store that is down."""

    def __init__(self) -> None:
        return

    async def append(self, events: Any) -> None:
        raise StoreError("down")

    async def read(self, users: Any) -> list[list[LiveEvent]]:
        raise StoreError("down")

    async def check(self) -> None:
        raise StoreError("down")


def test_without_the_store_lists_have_a_warning_and_events_are_refused(service: Service) -> None:
    down = Service(service.current, service.current.folder.parent, DownStore(), ServiceMetrics())
    client = Client(build_app(down, Limits()))
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
