"""Rules after ranking read the items as they are now: the next list follows an upsert of a column that a rule reads."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.serve.client import Client
from tests.serve.tiny import ITEMS, NOON, replace_part, scores_of, write_run
from twofold.recipe.rerank import Rerank, without_blocked
from twofold.serve.app import build_app
from twofold.serve.bundle import CONTEXT, RERANK
from twofold.serve.event_store import open_histories
from twofold.serve.live_bundle import open_live_bundle
from twofold.serve.middleware import Limits
from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.service import Service

RANKED = sorted(ITEMS, key=lambda item: -scores_of([], [])[item])  # of a user without events, at noon
Serve = Callable[..., Client]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Returns a function that serves the tiny bundle with rules."""

    def begin(rules: Sequence[dict[str, Any]]) -> Client:
        run = write_run(tmp_path / "runs" / "ruled")
        config = Rerank.model_validate({"num_candidates": 7, "rules": rules})
        replace_part(run, RERANK, lambda path: path.write_text(config.model_dump_json()))
        context = json.loads((run / "index" / CONTEXT).read_text()) | {"where": without_blocked(None, config.rules)}
        replace_part(run, CONTEXT, lambda path: path.write_text(json.dumps(context)))
        histories = open_histories(tmp_path / "histories.db")
        service = Service(open_live_bundle(run), run.parent, histories, ServiceMetrics())
        return Client(build_app(service, Limits(admin_token="admin")), "admin")

    return begin


def listed(client: Client) -> list[str]:
    status, answer = client.post("/v1/recommend", {"user_id": 30, "k": 7, "context": {"at": NOON}})
    assert status == 200, answer
    return [item["item_id"] for item in answer["items"]]


def upsert(client: Client, item: str, *, vector: Any = None, **attributes: Any) -> None:
    change = {"item_id": item, "attributes": attributes} | ({} if vector is None else {"vector": vector})
    status, answer = client.post("/v1/admin/items", {"upsert": [change]})
    assert status == 200, answer


def test_a_limit_follows_the_column_of_an_updated_item(serve: Serve) -> None:
    client = serve([{"kind": "limit", "column": "colour", "at_most": 1, "window": 2}])
    for number, item in enumerate(ITEMS):
        upsert(client, item, colour=f"colour {number}")
    assert listed(client) == RANKED
    first, second, third, *others = RANKED
    upsert(client, second, colour=f"colour {ITEMS.index(first)}")
    assert listed(client) == [first, third, second, *others]
    upsert(client, second, colour="its own")
    assert listed(client) == RANKED


def test_a_quota_follows_updated_and_new_items(serve: Serve) -> None:
    client = serve([{"kind": "quota", "when": "length_s > 50", "at_least": 1, "first": 1}])
    assert listed(client) == RANKED
    worst = RANKED[-1]
    upsert(client, worst, length_s=99.0)
    assert listed(client) == [worst, *RANKED[:-1]]
    upsert(client, worst, length_s=9.0)
    assert listed(client) == RANKED
    upsert(client, "new", vector=[0.0, 0.0, 0.0, 0.0, 1.0], length_s=99.0)
    assert listed(client)[0] == "new"


def test_a_pin_and_a_boost_follow_the_condition_of_an_updated_item(serve: Serve) -> None:
    pin = {"kind": "pin", "when": "colour = 'gold'", "place": 2}
    client = serve([pin, {"kind": "boost", "when": "length_s > 50", "add": 5.0}])
    assert listed(client) == RANKED
    upsert(client, RANKED[5], colour="gold")
    upsert(client, RANKED[6], length_s=99.0)
    assert listed(client) == [RANKED[6], RANKED[5], *RANKED[:5]]


def test_a_block_follows_the_condition_of_an_updated_item(serve: Serve) -> None:
    blocks = [{"kind": "block", "when": "colour = 'green'"}, {"kind": "boost", "when": "length_s > 50", "add": 1.0}]
    client = serve(blocks)
    assert listed(client) == RANKED
    upsert(client, RANKED[0], colour="green")
    assert listed(client) == RANKED[1:]
    upsert(client, RANKED[0], colour="red")
    assert listed(client) == RANKED
