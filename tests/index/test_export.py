"""Export to Qdrant in its embedded mode: the results are those of our own index."""

import datetime

import numpy as np
import pyarrow as pa
import pytest

from twofold.errors import RunError
from twofold.index.export import export_qdrant
from twofold.index.filters import Filters
from twofold.index.item_index import Index, build_index
from twofold.index.score_kinds import Score
from twofold.index.search import search

ITEMS, K = 300, 10
SCORES: list[Score] = ["dot", "cosine", "negative_distance"]
ATTRIBUTES = pa.table(
    {
        "item_id": pa.array([f"item {row}" for row in range(ITEMS)]),
        "language": pa.array(["hi", "ta", None] * (ITEMS // 3)),
        "age_days": pa.array(range(ITEMS), pa.int64()),
        "share": pa.array([0.5, float("nan")] * (ITEMS // 2)),
        "is_new": pa.array([True, False] * (ITEMS // 2)),
        "day": pa.array([datetime.date(2024, 5, 1)] * ITEMS),
    }
)
QUERIES = np.random.default_rng(1).standard_normal((5, 8), np.float32)


def index_of(score: Score) -> Index:
    vectors = np.random.default_rng(0).standard_normal((ITEMS, 8), np.float32)
    if score == "cosine":
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return build_index(vectors, score=score)


def expected(index: Index, where: str | None) -> list[list[int]]:
    allowed = None if where is None else Filters(ATTRIBUTES).eligible(where)
    found: list[list[int]] = search(index, QUERIES, K, allowed=allowed).item_rows.tolist()
    return found


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect")
@pytest.mark.parametrize("score", SCORES)
def test_qdrant_returns_what_our_index_returns(score: Score) -> None:
    qdrant_client = pytest.importorskip("qdrant_client")
    models = qdrant_client.models
    index = index_of(score)
    client = qdrant_client.QdrantClient(":memory:")
    export_qdrant(index, ATTRIBUTES, client)
    hindi = models.FieldCondition(key="language", match=models.MatchValue(value="hi"))
    young = models.FieldCondition(key="age_days", range=models.Range(lt=100))
    for where, condition in (
        (None, None),
        ("language = 'hi' AND age_days < 100", models.Filter(must=[hindi, young])),
    ):
        results = [
            client.query_points("items", query.tolist(), limit=K, query_filter=condition).points for query in QUERIES
        ]
        assert [[point.id for point in points] for points in results] == expected(index, where)
    (first,) = client.retrieve("items", [1])
    assert first.payload == {
        "item_id": "item 1",
        "language": "ta",
        "age_days": 1,
        "share": None,
        "is_new": False,
        "day": "2024-05-01",
    }
    with pytest.raises(RunError, match=r"has a collection 'items' already; nothing was written. Name another"):
        export_qdrant(index, ATTRIBUTES, client)
    client.close()
