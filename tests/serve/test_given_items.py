"""Given items have the order that a list of these items alone has; those without a place are named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serve.client import Client
from tests.serve.tiny import ITEMS, NOON, best, replace_part, scores_of, write_run
from twofold.recipe.rerank import Rerank
from twofold.serve.app import build_app
from twofold.serve.bundle import CONTEXT, RERANK
from twofold.serve.event_store import open_histories
from twofold.serve.live_bundle import open_live_bundle
from twofold.serve.middleware import Limits
from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.recommender import load
from twofold.serve.service import Service

AT = {"context": {"at": NOON}}
PEOPLE: list[dict[str, Any]] = [
    {"user_id": 10},
    {"user_id": 20},
    {"user_id": 30},
    {"user_id": 40},
    {"user_id": "nobody"},
    {"history": ["a", "f"], "negatives": ["b"]},
]


def ranked(client: Client, person: dict[str, Any], item_ids: list[str]) -> Any:
    status, answer = client.post("/v1/rank", person | {"item_ids": item_ids} | AT)
    assert status == 200, answer
    return answer


@pytest.mark.parametrize("person", PEOPLE, ids=str)
def test_the_order_and_the_scores_are_those_of_a_list_of_these_items(client: Client, person: dict[str, Any]) -> None:
    for seed in range(8):
        given = np.random.default_rng(seed).permutation(ITEMS)[: seed + 1 if seed < 7 else 7].tolist()
        others = [item for item in ITEMS if item not in given]
        request = person | AT | {"k": 7, "exclude_seen": False, "exclude": others}
        expected = client.post("/v1/recommend", request)[1]
        answer = ranked(client, person, given)
        assert answer["items"] == expected["items"]
        assert [answer[name] for name in ("source", "at", "bundle", "warnings")] == [
            expected[name] for name in ("source", "at", "bundle", "warnings")
        ]
        assert answer["left_out"] == []


def test_the_order_is_that_of_the_tables(client: Client, run: Path) -> None:
    table = load(run).recommend([10], items=["c", "a", "e"], exclude_seen=False, at=NOON).to_pylist()
    answer = ranked(client, {"user_id": 10}, ["c", "a", "e"])
    assert [(each["item_id"], np.float32(each["score"]), each["rank"]) for each in answer["items"]] == [
        (each["item_id"], np.float32(each["score"]), each["rank"]) for each in table
    ]
    assert [each["item_id"] for each in answer["items"]] == best(scores_of(["a", "cold"], ["b"]), without="b d f cold")


def test_unknown_withdrawn_and_excluded_items_are_named_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "ruled")
    context = json.loads((run / "index" / CONTEXT).read_text()) | {"where": "length_s > 5"}  # not a
    replace_part(run, CONTEXT, lambda path: path.write_text(json.dumps(context)))
    service = Service(open_live_bundle(run), run.parent, open_histories(tmp_path / "h.db"), ServiceMetrics())
    client = Client(build_app(service, Limits(admin_token="admin")), "admin")
    assert client.post("/v1/admin/items", {"remove": ["c"]})[0] == 200
    for person in ({"user_id": 10}, {"user_id": "nobody"}):
        answer = ranked(client, person, ["a", "c", "e", "zz", "e", "zz", "a"])
        assert [each["item_id"] for each in answer["items"]] == ["e"]
        assert answer["left_out"] == [
            {"item_id": "a", "why": "excluded"},
            {"item_id": "c", "why": "withdrawn"},
            {"item_id": "zz", "why": "unknown"},
        ]
    assert ranked(client, {"user_id": 10}, ["zz"])["items"] == []


def test_the_rules_of_the_recipe_hold_among_the_given(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "ruled")
    rules = [{"kind": "quota", "when": "length_s > 30", "at_least": 1, "first": 1}]  # the cold item first
    config = Rerank.model_validate({"num_candidates": 7, "rules": rules})
    replace_part(run, RERANK, lambda path: path.write_text(config.model_dump_json()))
    service = Service(open_live_bundle(run), run.parent, open_histories(tmp_path / "h.db"), ServiceMetrics())
    client = Client(build_app(service, Limits()))
    assert ranked(client, {"user_id": 30}, ["a", "cold", "e"])["items"][0]["item_id"] == "cold"
    expected = best(scores_of([], []), without="cold b f")
    assert [each["item_id"] for each in ranked(client, {"user_id": 30}, ["a", "d", "c", "e"])["items"]] == expected


def test_an_upserted_item_is_ranked_by_its_vector(service: Service) -> None:
    client = Client(build_app(service, Limits(admin_token="admin")), "admin")
    new = {"item_id": "new", "vector": [0.0, 0.0, 0.0, 0.0, 1.0]}
    assert client.post("/v1/admin/items", {"upsert": [new]})[0] == 200
    given = ["new", "a", "cold"]
    expected = client.post("/v1/recommend", {"user_id": 30, "exclude": [*set(ITEMS) - set(given)]} | AT)[1]
    assert ranked(client, {"user_id": 30}, given)["items"] == expected["items"]


def test_links_of_an_explained_reply_lead_to_its_explanation(client: Client) -> None:
    given = {"user_id": 10, "item_ids": ["d", "c"], "explain": True} | AT
    for reply in (
        client.post("/v1/rank", given)[1],
        client.post("/v1/recommend", {"user_id": 10, "k": 2, "explain": True} | AT)[1],
        client.post("/v1/recommend", {"history": ["a"], "negatives": ["b"], "k": 2, "explain": True} | AT)[1],
    ):
        (link,) = reply["links"]
        assert (link["rel"], link["method"]) == ("explain", "POST")
        status, explained = client.post(link["href"], link["body"])
        assert (status, explained["at"]) == (200, reply["at"])
        assert [(each["item_id"], each["score"]) for each in explained["items"]] == [
            (each["item_id"], each["score"]) for each in reply["items"]
        ]
        (reason, *_) = reply["items"][0]["reasons"]
        assert client.get(reason["href"])[1]["item_id"] == reason["item_id"]
    assert client.post("/v1/recommend", {"user_id": "nobody", "explain": True})[1]["links"] == []
    assert "links" not in client.post("/v1/recommend", {"user_id": 10})[1]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"item_ids": ["a"]}, "Exactly one of user_id and history is required."),
        ({"user_id": 10, "item_ids": []}, "item_ids: expected `array` of length >= 1"),
        ({"user_id": 10, "item_ids": ["a"] * 1001}, "item_ids: expected `array` of length <= 1000"),
    ],
)
def test_a_wrong_request_gets_one_message(client: Client, body: Any, message: str) -> None:
    status, problem = client.post("/v1/rank", body)
    assert status == 422
    assert problem["detail"].startswith(message)
