"""A service whose items are searched in Qdrant: the replies of the bundle's own index, and what happens without it."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.client import Client
from twofold.cli.serving import Database, export
from twofold.errors import RunError
from twofold.index.qdrant_search import QdrantError
from twofold.serve.app import build_app
from twofold.serve.event_store import open_histories
from twofold.serve.live_bundle import open_client, open_live_bundle
from twofold.serve.middleware import Limits
from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.service import Service

pytest.importorskip("qdrant_client", reason="pip install 'twofold[qdrant]'")
pytestmark = pytest.mark.filterwarnings(
    "ignore:Payload indexes have no effect",
    "ignore:Local mode",
    # Qdrant 1.20 leaves a connection to SQLite, with which it asks for its abilities, to the garbage collector.
    "ignore:unclosed database:ResourceWarning",
)
REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/v1/recommend", {"user_id": 10, "k": 3, "context": {"at": 43_200_000}}),
    ("POST", "/v1/recommend", {"user_id": 20, "k": 3, "context": {"at": 43_200_000}, "filter": "colour = 'red'"}),
    ("POST", "/v1/recommend", {"history": ["a", "b"], "k": 7, "filter": "NOT length_s < 20", "context": {"at": 1}}),
    ("POST", "/v1/recommend", {"user_id": "stranger", "k": 3, "context": {"at": 43_200_000}}),
    ("POST", "/v1/recommend:batch", {"user_ids": [10, 20, 40], "k": 5, "context": {"at": 43_200_000}}),
    ("POST", "/v1/similar", {"item_id": "a", "k": 4, "filter": "colour IS NOT NULL"}),
]


@pytest.fixture(scope="module")
def database(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yields a folder of Qdrant's embedded mode with the items of `run`."""
    folder = str(tmp_path_factory.mktemp("qdrant"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twofold.cli.serving.print", lambda *_: None, raising=False)
        export(run, Database.qdrant, folder)
    yield folder
    open_client(folder).close()
    open_client.cache_clear()


@pytest.fixture
def asking(run: Path, database: str, tmp_path: Path) -> Service:
    histories = open_histories(tmp_path / "asking.db")
    return Service(open_live_bundle(run, database), run.parent, histories, ServiceMetrics())


def test_replies_are_those_of_the_own_index_and_say_that_they_may_not_be_exact(client: Client, asking: Service) -> None:
    expected, replies = client.send(*REQUESTS), Client(build_app(asking, Limits())).send(*REQUESTS)
    assert [reply.status_code for reply in expected] == [200] * len(REQUESTS)
    for own, reply in zip(expected, replies, strict=True):
        text = reply.text.replace('"is_exact":false', '"is_exact":true')
        assert text == own.text
    is_exact = [answer["is_exact"] for reply in replies for answer in reply.json().get("answers", [reply.json()])]
    assert is_exact == [False, False, False, True, False, False, False, False]  # by popularity, without a search


def test_items_that_change_and_new_events_are_followed(client: Client, service: Service, asking: Service) -> None:
    both = [Client(build_app(each, Limits(admin_token="admin")), "admin") for each in (service, asking)]
    change = {
        "upsert": [{"item_id": "new", "attributes": {"colour": "red"}, "vector": [1.0, 0, 0, 0, 0]}],
        "remove": ["c"],
    }
    event = {"events": [{"user_id": 10, "item_id": "d", "at": 40_000_000}]}
    for each in both:
        assert each.post("/v1/admin/items", change)[0] == 200
        assert each.post("/v1/events", event)[0] == 200
    own, other = (each.post("/v1/recommend", REQUESTS[0][2] | {"k": 7})[1] for each in both)
    assert other["items"] == own["items"]
    assert not {"c", "d"} & {item["item_id"] for item in own["items"]}


def test_a_filter_that_qdrant_cannot_evaluate_is_422(asking: Service) -> None:
    client = Client(build_app(asking, Limits()))
    status, problem = client.post("/v1/recommend", {"user_id": 10, "filter": "length_s * 2 < 30"})
    assert (status, "cannot be evaluated by Qdrant" in problem["detail"]) == (422, True)
    assert client.post("/v1/recommend", {"user_id": 10, "filter": "no_column = 2"})[0] == 422


def test_without_qdrant_lists_are_503_and_the_service_is_not_ready(
    asking: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise QdrantError("Qdrant does not answer: ConnectError")

    client, remote = Client(build_app(asking, Limits())), asking.current.items.now.remote
    assert client.get("/ready")[0] == 200
    for name in ("search", "ping"):
        monkeypatch.setattr(remote, name, away)
    asking._checked_at = -10.0
    caplog.set_level("INFO", "twofold.serve")
    replies = client.send(*REQUESTS[:2], REQUESTS[4], REQUESTS[5], ("GET", "/ready", b""), ("GET", "/health", b""))
    assert [reply.status_code for reply in replies] == [503, 503, 503, 503, 503, 200]
    assert all("Qdrant cannot be reached" in reply.json()["detail"] for reply in replies[:5])
    assert all(reply.headers["retry-after"] == "1" for reply in replies[:5])
    assert client.post("/v1/recommend", REQUESTS[3][2])[0] == 200  # a stranger's list needs no search
    facts = [record.facts for record in caplog.records if record.message == "Qdrant cannot be reached"]  # type: ignore[attr-defined]
    assert facts == [{"error": "Qdrant does not answer: ConnectError"}]


def test_a_bundle_without_a_copy_is_refused_and_the_next_step_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no collection 'twofold-.*Copy them: twofold export RUN --to qdrant"):
        open_live_bundle(run, str(tmp_path))


@pytest.mark.slow
def test_a_service_without_its_qdrant_ends_with_code_2(run: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "twofold", "serve", str(run), "--port", "0", "--qdrant", url]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"It should be at {url}: start it there, or serve without --qdrant." in " ".join(done.stderr.split())
