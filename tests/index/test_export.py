"""Exports, each asked in the database's embedded mode: the answers are those of our own index."""

import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from twofold.errors import RunError
from twofold.index.export import METRICS, export_lancedb, export_qdrant
from twofold.index.item_mask import Filters
from twofold.index.score_kinds import Score
from twofold.index.search import Index, build_index, search

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


def made(score: Score) -> Index:
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
def test_qdrant_answers_what_our_index_answers(score: Score) -> None:
    qdrant_client = pytest.importorskip("qdrant_client")
    models = qdrant_client.models
    index = made(score)
    client = qdrant_client.QdrantClient(":memory:")
    export_qdrant(index, ATTRIBUTES, client)
    hindi = models.FieldCondition(key="language", match=models.MatchValue(value="hi"))
    young = models.FieldCondition(key="age_days", range=models.Range(lt=100))
    for where, condition in (
        (None, None),
        ("language = 'hi' AND age_days < 100", models.Filter(must=[hindi, young])),
    ):
        answers = [
            client.query_points("items", query.tolist(), limit=K, query_filter=condition).points for query in QUERIES
        ]
        assert [[point.id for point in points] for points in answers] == expected(index, where)
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


@pytest.mark.parametrize("score", SCORES)
def test_lancedb_answers_what_our_index_answers(score: Score, tmp_path: Path) -> None:
    lancedb = pytest.importorskip("lancedb")
    index = made(score)
    database = lancedb.connect(tmp_path)
    export_lancedb(index, ATTRIBUTES, database)
    table = database.open_table("items")
    for where in (None, "language = 'hi' AND age_days < 100"):
        answers = []
        for query in QUERIES:
            asked = table.search(query).distance_type(METRICS[score]).limit(K)
            answers.append((asked if where is None else asked.where(where, prefilter=True)).to_arrow())
        assert [answer["item_row"].to_pylist() for answer in answers] == expected(index, where)
    assert (
        table.to_arrow().select(ATTRIBUTES.column_names).slice(0, 1).to_pylist() == ATTRIBUTES.slice(0, 1).to_pylist()
    )
    with pytest.raises(RunError, match=r"has a table 'items' already; nothing was written. Name another table"):
        export_lancedb(index, ATTRIBUTES, database)
