"""Qdrant's own engine (`pip install qdrant-edge-py`) behind the calls of its client that a search makes.

The embedded mode of the client scans all points; the engine, which is that of the server, searches a graph.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from qdrant_client import models

from twofold.index.item_index import Index

edge: Any = pytest.importorskip("qdrant_edge")  # doctests import this module where it is not installed
CHUNK = 2_000


class Engine:
    """A shard with the items of an index, its graph built."""

    def __init__(self, folder: Path, index: Index, attributes: pa.Table) -> None:
        folder.mkdir()
        vectors = edge.EdgeVectorParams(index.dim, edge.Distance.Cosine)
        optimizers = edge.EdgeOptimizersConfig(default_segment_number=1, indexing_threshold=1_000)
        graph = edge.HnswIndexConfig(16, 100, 1_000)  # the server's defaults, but for the size that is scanned (KB)
        self._shard = edge.EdgeShard.create(
            str(folder), edge.EdgeConfig(vectors, hnsw_config=graph, optimizers=optimizers)
        )
        for name in attributes.column_names:
            kind = edge.PayloadSchemaType
            schema = kind.Integer if pa.types.is_integer(attributes.schema.field(name).type) else kind.Keyword
            self._shard.update(edge.UpdateOperation.create_field_index(name, schema))
        payloads = attributes.to_pylist()
        for first in range(0, len(index), CHUNK):
            rows = range(first, min(first + CHUNK, len(index)))
            points = [edge.Point(row, index.vectors[row].tolist(), payloads[row]) for row in rows]
            self._shard.update(edge.UpdateOperation.upsert_points(points))
        self._shard.optimize()
        self.indexed = self._shard.info().indexed_vectors_count

    def query_batch_points(self, collection: str, requests: list[models.QueryRequest]) -> list[Any]:
        return [SimpleNamespace(points=self._shard.query(_request(request))) for request in requests]

    def close(self) -> None:
        self._shard.close()


def _request(request: models.QueryRequest) -> Any:
    assert request.params is not None
    return edge.QueryRequest(
        request.limit,
        query=edge.Query.Nearest(request.query),
        filter=None if request.filter is None else _filter(request.filter),
        params=edge.SearchParams(request.params.hnsw_ef, bool(request.params.exact)),
    )


def _filter(written: models.Filter) -> Any:
    parts = {name: getattr(written, name) for name in ("must", "should", "must_not")}
    return edge.Filter(**{name: [_condition(each) for each in part] for name, part in parts.items() if part})


def _condition(written: Any) -> Any:
    match written:
        case models.Filter():
            return _filter(written)
        case models.HasIdCondition():
            return edge.HasIdCondition(set(written.has_id))
        case models.IsEmptyCondition():
            return edge.IsEmptyCondition(written.is_empty.key)
        case models.FieldCondition(match=None):
            return edge.FieldCondition(written.key, range=edge.RangeFloat(**written.range.model_dump()))
        case models.FieldCondition():
            return edge.FieldCondition(written.key, match=edge.MatchValue(written.match.value))
    raise AssertionError(written)
