"""Search in Qdrant, in the embedded mode of its client: the lists of our exact index, with filters and live items."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from twofold.dataset.vocabulary import Vocabulary
from twofold.errors import RequestError, RunError
from twofold.index.export import export_qdrant
from twofold.index.item_index import Index, build_index
from twofold.index.live import LiveIndex
from twofold.index.qdrant_search import QdrantError, QdrantIndex, collection_name, connect
from twofold.index.score_kinds import Score
from twofold.ragged import Ragged
from twofold.topk import Additions

qdrant_client = pytest.importorskip("qdrant_client", reason="pip install 'twofold[qdrant]'")
pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect", "ignore:Local mode")

DIM, K, QUERIES = 32, 10, 6
SCORES: list[Score] = ["dot", "cosine", "negative_distance"]


def catalogue(items: int, score: Score) -> tuple[Index, Vocabulary, pa.Table]:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((items, DIM), np.float32)
    vectors[items // 2] = vectors[0]  # a tie
    if score == "cosine":
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = pa.array([f"item {row}" for row in range(items)])
    language = pa.array(np.array(["hi", "ta", None], object)[rng.integers(0, 3, items)])
    age_days = pa.array(rng.integers(0, 100, items))
    table = pa.table({"item_id": ids, "language": language, "age_days": age_days})
    return build_index(vectors, score=score), Vocabulary(ids, items), table


def copied(index: Index, table: pa.Table) -> tuple[Any, QdrantIndex]:
    client = qdrant_client.QdrantClient(":memory:", force_disable_check_same_thread=True)
    export_qdrant(index, table, client, collection="twofold-x")
    return client, QdrantIndex(client, "twofold-x", index, table.schema)


@pytest.fixture(params=SCORES)
def both(request: pytest.FixtureRequest) -> Iterator[tuple[LiveIndex, LiveIndex]]:
    """Yields the same items twice: searched here, and in Qdrant."""
    index, items, table = catalogue(400, request.param)
    client, remote = copied(index, table)
    remote.check()
    yield LiveIndex(index, items, table), LiveIndex(index, items, table, remote=remote)
    client.close()


def vectors(number: int = QUERIES, seed: int = 1) -> np.ndarray:
    found: np.ndarray = np.random.default_rng(seed).standard_normal((number, DIM), np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def assert_equal_lists(both: tuple[LiveIndex, LiveIndex], queries: np.ndarray, **options: Any) -> None:
    here, there = (each.now.search(queries, K, **options) for each in both)
    np.testing.assert_array_equal(there.item_rows, here.item_rows)
    np.testing.assert_array_equal(there.scores, here.scores)
    np.testing.assert_array_equal(there.counts, here.counts)
    assert (here.is_exact, there.is_exact) == (True, False)


@pytest.mark.parametrize(
    ("where", "when"),
    [(None, None), ("language = 'hi'", None), ("age_days < 50", "language IS NOT NULL"), ("age_days = 7", None)],
)
def test_lists_are_those_of_the_exact_index(both: tuple[LiveIndex, LiveIndex], where: Any, when: Any) -> None:
    seen = np.random.default_rng(2).integers(0, 400, (QUERIES, 30))
    excluded = Ragged(np.sort(seen).ravel(), np.arange(QUERIES + 1) * 30)
    assert_equal_lists(both, vectors(), where=where, when=when, excluded=excluded)
    assert_equal_lists(both, vectors(1), where=where, when=when)


def test_updated_and_withdrawn_items_and_additions(both: tuple[LiveIndex, LiveIndex]) -> None:
    queries = vectors()
    best = both[0].now.search(queries, 3).item_rows
    ids = [f"item {row}" for row in best[0]]
    changed = pa.table({"item_id": [ids[0], "new"], "language": ["ta", "hi"], "age_days": [1, 2]})
    for each in both:
        each.set_withdrawn(ids[1:2])
        each.upsert(changed, np.stack([-queries[0], queries[0] * (10 if each.now.built.index.score == "dot" else 1)]))
    assert both[1].now.search(queries[:1], 1).item_rows.tolist() == [[400]]
    assert_equal_lists(both, queries)
    assert_equal_lists(both, queries, where="language = 'hi'")
    rows = np.sort(best[:, :2]).ravel()
    met = Additions(Ragged(rows, np.arange(QUERIES + 1) * 2), np.full(len(rows), -5, np.float32))
    assert_equal_lists(both, queries, added=met)


def test_a_list_that_the_graph_left_short_is_searched_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    index, items, table = catalogue(400, "cosine")
    client, remote = copied(index, table)
    query_batch, is_exact = client.query_batch_points, []

    def short(collection: str, requests: Any) -> Any:
        is_exact.append([request.params.exact for request in requests])
        replies = query_batch(collection, requests)
        for request, reply in zip(requests, replies, strict=True):
            if not request.params.exact:
                del reply.points[3:]
        return replies

    monkeypatch.setattr(client, "query_batch_points", short)
    assert_equal_lists((LiveIndex(index, items, table), LiveIndex(index, items, table, remote=remote)), vectors(2))
    assert is_exact == [[False, False], [True, True]]
    client.close()


@pytest.mark.slow
def test_a_hundred_thousand_items_are_found_with_recall_99(tmp_path: Path) -> None:
    """By the server's engine: the embedded mode of the client scans all items, which takes minutes."""
    pytest.importorskip("qdrant_edge", reason="the server's engine is not installed: pip install qdrant-edge-py")
    from tests.index.qdrant_engine import Engine

    index, items, table = catalogue(100_000, "cosine")
    client: Any = Engine(tmp_path / "shard", index, table)
    remote = QdrantIndex(client, "twofold-x", index, table.schema)
    assert client.indexed >= 90_000
    here, there = LiveIndex(index, items, table), LiveIndex(index, items, table, remote=remote)
    queries, seen = vectors(20), np.sort(np.random.default_rng(2).integers(0, 100_000, (20, 200)))
    excluded = Ragged(seen.ravel(), np.arange(21) * 200)
    for where in (None, "language = 'hi'", "language = 'hi' AND NOT age_days >= 30", "age_days = 7"):
        expected, found = (
            each.now.search(queries, 100, where=where, excluded=excluded).item_rows for each in (here, there)
        )
        same = [len(np.intersect1d(*pair)) for pair in zip(expected, found, strict=True)]
        assert np.mean(same) >= 99
        assert not any(np.isin(row, own).any() for row, own in zip(found, seen, strict=True))
    client.close()


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_collection_that_is_missing_or_of_other_items_is_named() -> None:
    index, _, table = catalogue(40, "cosine")
    client, remote = copied(index, table)
    missing = QdrantIndex(client, collection_name("a" * 64), index, table.schema)
    with pytest.raises(RunError, match=r"has no collection 'twofold-aaaaaaaaaaaa'.*Copy them: twofold export RUN --to"):
        missing.check()
    with pytest.raises(QdrantError, match="lost the collection"):
        missing.ping()
    remote.ping()
    other = QdrantIndex(client, "twofold-x", build_index(index.vectors[:30].copy()), table.schema)
    with pytest.raises(RunError, match=r"has 40 of 30 items in 'twofold-x'.*Delete it, and copy them"):
        other.check()
    distance = QdrantIndex(client, "twofold-x", build_index(index.vectors.copy(), score="dot"), table.schema)
    with pytest.raises(
        RunError, match=r"has 32 dimensions and the distance Cosine, this bundle 32 and Dot\. Delete it"
    ):
        distance.check()
    client.close()


def test_a_server_that_is_away_is_one_error() -> None:
    index, _, table = catalogue(40, "cosine")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    remote = QdrantIndex(connect(url), "x", index, table.schema)
    no_rows, nobody = np.empty(0, np.int64), Ragged(np.empty(0, np.int64), np.zeros(2, np.int64))
    with pytest.raises(QdrantError, match="Qdrant does not answer"):
        remote.search(vectors(1), K, conditions=[], absent=no_rows, excluded=nobody)
    with pytest.raises(QdrantError, match="Qdrant does not answer"):
        remote.check()


def test_a_missing_client_and_a_wrong_address_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match=r"nonsense://there cannot be opened as Qdrant.*Give http://HOST:6333"):
        connect("nonsense://there")
    monkeypatch.setattr("twofold.index.qdrant_search.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"pip install 'twofold\[qdrant\]'"):
        connect("http://localhost:6333")


def test_a_server_gets_the_headers_and_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            received.append({name.lower(): value for name, value in self.headers.items()})
            body = b'{"time": 0.1, "status": "ok", "result": {"exists": true}}'
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    index, _, table = catalogue(40, "cosine")
    monkeypatch.setenv("QDRANT_API_KEY", "secret")
    with pytest.warns(UserWarning, match="Api key is used with an insecure connection"):
        client = connect(f"http://127.0.0.1:{server.server_port}", headers=lambda: {"traceparent": "00-1-2-01"})
    QdrantIndex(client, "x", index, table.schema).ping()
    client.close()
    server.shutdown()
    thread.join()
    server.server_close()
    assert [(each["traceparent"], each["api-key"]) for each in received] == [("00-1-2-01", "secret")]
