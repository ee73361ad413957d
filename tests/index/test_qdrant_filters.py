"""SQL conditions in Qdrant's language: the same items as by our own evaluation, NULL and NOT included."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from twofold.errors import RequestError
from twofold.index.export import export_qdrant
from twofold.index.filters import compile_filter
from twofold.index.item_index import build_index
from twofold.index.qdrant_filters import qdrant_filter

qdrant_client = pytest.importorskip("qdrant_client", reason="pip install 'twofold[qdrant]'")

ITEMS = pa.table(
    {
        "item_id": ["a", "b", "c", "d", "e", "f"],
        "language": ["hi", "ta", None, "hi", "en", "te"],
        "age_days": pa.array([0, 3, 5, None, 30, -2], pa.int64()),
        "share": pa.array([0.5, 0.1, None, 0.75, 1.0, 0.0], pa.float32()),
        "is_new": [True, False, None, True, False, False],
        "tags": [["rock", "live"], [], None, ["pop"], ["rock"], ["live", None]],
        "years": pa.array([[1, 2], [2000], [], None, [3], [-1, 1]], pa.list_(pa.int64())),
    }
)
CONDITIONS = [
    "language = 'hi'",
    "language <> 'hi'",
    "NOT language = 'hi'",
    "'hi' = language",
    "language IN ('ta', 'te')",
    "language NOT IN ('ta', 'te')",
    "language IS NULL",
    "language IS NOT NULL",
    "age_days < 5",
    "5 > age_days",
    "age_days >= -2 AND age_days <= 3",
    "age_days BETWEEN -2 AND 3",
    "age_days NOT BETWEEN 0 AND 5",
    "age_days = 3",
    "age_days IN (3, 30)",
    "age_days <> 3",
    "NOT (age_days < 5 AND language = 'hi')",
    "NOT (age_days < 5 OR language = 'hi')",
    "age_days",
    "NOT age_days",
    "share = 0.5",
    "share > 0.1",
    "share >= 0.1",
    "share <= 0.75 OR language IS NULL",
    "is_new",
    "NOT is_new",
    "is_new = TRUE",
    "is_new = FALSE",
    "is_new <> TRUE",
    "is_new = 1",
    "is_new > 0",
    "is_new IS TRUE",
    "is_new IS NOT TRUE",
    "is_new IS FALSE",
    "(age_days < 5) IS NOT TRUE",
    "(age_days < 5 OR is_new) = FALSE",
    "'rock' IN tags",
    "'rock' NOT IN tags",
    "NOT ('rock' IN tags OR 'live' IN tags)",
    "1 IN years",
    "NOT 1 IN years",
    "-1 IN years OR 'pop' IN tags",
    "TRUE",
    "FALSE",
    "NOT FALSE",
    "age_days > 3 OR NULL",
    "((language = 'hi' OR language = 'en') AND NOT (share < 0.6)) OR age_days = 5",
]


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    client = qdrant_client.QdrantClient(":memory:")
    with warnings.catch_warnings():  # Payload indexes have no effect, in this mode
        warnings.simplefilter("ignore")
        export_qdrant(build_index(np.eye(6, dtype=np.float32)), ITEMS, client)
    yield client
    client.close()


@pytest.mark.parametrize("text", CONDITIONS)
def test_a_condition_holds_for_the_same_items(client: Any, text: str) -> None:
    points, _ = client.scroll("items", qdrant_filter(text, ITEMS.schema), limit=10)
    expected = [row for row, is_true in enumerate(compile_filter(text, ITEMS)) if is_true]
    assert [point.id for point in points] == expected


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("age_days * 2 < 5", '"age_days"'),
        ("age_days < share", '"age_days"'),
        ("language < 'hi'", "language"),
        ("language LIKE 'h%'", "LIKE"),
        ("'hi' IN language", "language"),
        ("3 IN tags", "tags"),
        ("age_days = '3'", "age_days"),
        ("COALESCE(language, 'hi') = 'hi'", "COALESCE"),
        ("CASE WHEN is_new THEN TRUE ELSE FALSE END", "CASE WHEN"),
        ("(language = 'hi') IS NULL", '"language"'),
    ],
)
def test_what_qdrant_cannot_evaluate_is_refused_with_the_part(text: str, part: str) -> None:
    with pytest.raises(
        RequestError, match=r"cannot be evaluated by Qdrant, because of .*Compare a column with"
    ) as error:
        qdrant_filter(text, ITEMS.schema)
    assert part in str(error.value)
