"""Export of an index and its attributes to the vector database Qdrant, for catalogues beyond one machine.

Vectors, score and attributes are written unchanged, so the database returns what our own index would, up to its own
approximation. Its filters are objects of its client, over payload fields named like the columns; `qdrant_search.py`
serves from the copy.

Measured beside our index at 30,000 items: the engine of Qdrant's server takes 0.2 to 0.5 ms with any filter at recall
.956 to 1; the embedded mode of its client, which the tests use, 300 ms.
"""

from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from twofold.errors import RunError
from twofold.index.item_index import Index
from twofold.index.score_kinds import Score
from twofold.ragged import chunks

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

CHUNK_ITEMS: Final = 4096  # items per request
DISTANCES: Final[dict[Score, str]] = {"dot": "Dot", "cosine": "Cosine", "negative_distance": "Euclid"}
"""Qdrant's name of each score."""


def export_qdrant(index: Index, attributes: pa.Table, client: "QdrantClient", *, collection: str = "items") -> None:
    """Creates a collection: the point id is the item row, the payload its attributes; RunError if it exists already."""
    assert len(index) == len(attributes)
    from qdrant_client import models

    if client.collection_exists(collection):
        raise RunError(
            f"Qdrant has a collection {collection!r} already; nothing was written. Name another collection, or delete "
            f"that one first."
        )
    distance = models.Distance(DISTANCES[index.score])
    client.create_collection(collection, vectors_config=models.VectorParams(size=index.dim, distance=distance))
    attributes = _json_types(attributes)
    for name, kind in zip(attributes.column_names, attributes.schema.types, strict=True):
        # A server filters before it searches only where a field has an index of its own.
        client.create_payload_index(collection, name, field_schema=_payload_schema(kind))
    for part in chunks(len(index), CHUNK_ITEMS):
        points = models.Batch(
            ids=list(range(part.start, part.stop)),
            vectors=index.vectors[part].tolist(),
            payloads=_payloads(attributes.slice(part.start, part.stop - part.start)),
        )
        client.upsert(collection, points, wait=True)


def _payloads(attributes: pa.Table) -> list[dict[str, Any]]:
    """Returns the attributes of each item; without the NULLs in a list, which Qdrant takes for no list at all."""
    return [
        {
            name: [each for each in value if each is not None] if isinstance(value, list) else value
            for name, value in row.items()
        }
        for row in attributes.to_pylist()
    ]


def _json_types(attributes: pa.Table) -> pa.Table:
    """Returns the table in types that JSON has: times as text of ISO 8601, decimals as numbers, NaN as null."""
    for position, field in enumerate(attributes.schema):
        column = attributes.column(position)
        if pa.types.is_temporal(field.type):
            column = column.cast(pa.string())
        if pa.types.is_decimal(field.type) or pa.types.is_floating(field.type):
            column = column.cast(pa.float64())
            column = pc.if_else(pc.is_nan(column), None, column)
        attributes = attributes.set_column(position, field.name, column)
    return attributes


def _payload_schema(kind: pa.DataType) -> Any:
    from qdrant_client import models

    if pa.types.is_list(kind) or pa.types.is_large_list(kind):  # indexed by the values
        kind = kind.value_type
    if pa.types.is_boolean(kind):
        return models.PayloadSchemaType.BOOL
    if pa.types.is_integer(kind):
        return models.PayloadSchemaType.INTEGER
    return models.PayloadSchemaType.FLOAT if pa.types.is_floating(kind) else models.PayloadSchemaType.KEYWORD
