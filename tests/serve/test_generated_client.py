"""A client that a public generator makes from /openapi.json calls the service."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.running import TOKEN, Running
from tests.serve.tiny import NOON, best, scores_of, write_run

pytestmark = pytest.mark.slow

GENERATOR = shutil.which("openapi-python-client")
SCRIPT = """
import json, sys
from twofold_client import AuthenticatedClient
from twofold_client.api.default import add_events, item, rank, recommend, recommend_batch
from twofold_client.models import Context, Event, Events, Rank, Recommend, RecommendBatch

client = AuthenticatedClient(base_url=sys.argv[1], token=sys.argv[2])
at = Context(at=int(sys.argv[3]))
wanted = Recommend(user_id=30, k=7, context=at, explain=True, describe=True)
before = recommend.sync(client=client, body=wanted)
stored = add_events.sync(client=client, body=Events(events=[Event(user_id=30, item_id=before.items[0].item_id, at=1)]))
after = recommend.sync(client=client, body=wanted)
ranked = rank.sync(client=client, body=Rank(user_id=10, item_ids=["c", "zz", "e"], context=at))
lists = recommend_batch.sync(client=client, body=RecommendBatch(user_ids=[10, 20], k=2, context=at))
refused = recommend.sync(client=client, body=Recommend(user_id=30, history=["a"]))
found = {
    "before": [each.item_id for each in before.items],
    "attributes": before.items[0].attributes.to_dict(),
    "accepted": stored.accepted,
    "after": [each.item_id for each in after.items],
    "reasons": [each.item_id for each in after.items[0].reasons],
    "ranked": [each.item_id for each in ranked.items],
    "left_out": [(each.item_id, str(each.why)) for each in ranked.left_out],
    "lists": [len(each.items) for each in lists.answers],
    "refused": [type(refused).__name__, refused.status, refused.field],
    "unknown": item.sync_detailed(client=client, item_id="zz").status_code,
}
print(json.dumps(found))
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Running]:
    running = Running(write_run(tmp_path / "runs" / "tiny"))
    yield running
    running.stop()


@pytest.mark.skipif(GENERATOR is None, reason="no openapi-python-client: pip install openapi-python-client")
def test_a_generated_client_calls_the_service(service: Running, tmp_path: Path) -> None:
    assert GENERATOR is not None
    page, folder = tmp_path / "openapi.json", tmp_path / "twofold_client"
    page.write_bytes(service.reply("/openapi.json").content)
    options = ["--path", str(page), "--meta", "none", "--output-path", str(folder), "--fail-on-warning"]
    made = subprocess.run([GENERATOR, "generate", *options], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    python = (
        Path(os.path.realpath(GENERATOR, strict=True)).parent / "python"
    )  # its environment has what the client needs
    called = subprocess.run(
        [python, "-c", SCRIPT, f"http://127.0.0.1:{service.port}", TOKEN, str(NOON)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        check=False,
    )
    assert called.returncode == 0, called.stderr
    found, expected = json.loads(called.stdout), best(scores_of([], []))
    assert found["before"] == expected
    assert found["attributes"].keys() == {"colour", "length_s"}
    assert found["accepted"] == 1
    assert found["after"] == best(scores_of([expected[0]], []), without=expected[0])
    assert found["reasons"] == [expected[0]]
    assert found["ranked"] == best(scores_of(["a", "cold"], ["b"]), without="a b d f cold")
    assert found["left_out"] == [["zz", "unknown"]]
    assert found["lists"] == [2, 2]
    assert found["refused"] == ["Problem", 422, "user_id"]
    assert found["unknown"] == 404
