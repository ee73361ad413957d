"""An index and its attributes → a vector database, for catalogues beyond one machine: Qdrant or LanceDB.

Vectors, score and attributes are written as they are, so that a database answers what our own index would, up to its
own approximation. Filters of LanceDB are the same SQL; those of Qdrant are objects of its client, over payload fields
that have the columns' names.

What this does not do: serve from them. Measured beside our index at 30,000 items: the engine of Qdrant's server 0.2 to
0.5 ms with any filter at recall .956 to 1; the embedded mode of its client, which the tests ask, 300 ms.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from twofold.errors import RunError
from twofold.index.search import Index
from twofold.ragged import chunks

if TYPE_CHECKING:
    from lancedb import DBConnection
    from qdrant_client import QdrantClient

BLOCK: Final = 4096  # items written at once
METRICS: Final = {"dot": "dot", "cosine": "cosine", "negative_distance": "l2"}
"""What LanceDB calls our scores: to be named in every search, or in an index that is built there."""


def export_qdrant(index: Index, attributes: pa.Table, client: "QdrantClient", *, collection: str = "items") -> None:
    """Makes a collection: point id = item row, payload = the item's attributes; RunError if there is one already."""
    assert len(index) == len(attributes)
    from qdrant_client import models

    if client.collection_exists(collection):
        raise RunError(_is_there(f"Qdrant has a collection {collection!r}", "collection"))
    distances = {
        "dot": models.Distance.DOT,
        "cosine": models.Distance.COSINE,
        "negative_distance": models.Distance.EUCLID,
    }
    client.create_collection(
        collection, vectors_config=models.VectorParams(size=index.dim, distance=distances[index.score])
    )
    attributes = _json_like(attributes)
    for name, kind in zip(attributes.column_names, attributes.schema.types, strict=True):
        # A server filters before it searches only where a field has an index of its own.
        client.create_payload_index(collection, name, field_schema=_payload_schema(kind))
    for part in chunks(len(index), BLOCK):
        points = models.Batch(
            ids=list(range(part.start, part.stop)),
            vectors=index.vectors[part].tolist(),
            payloads=attributes.slice(part.start, part.stop - part.start).to_pylist(),
        )
        client.upsert(collection, points, wait=True)


def export_lancedb(index: Index, attributes: pa.Table, database: "DBConnection", *, table: str = "items") -> None:
    """Makes a table: the attributes, `item_row` and `vector`; RunError if there is one already.

    Search it with the metric of `METRICS`; its filters are ours.
    """
    assert len(index) == len(attributes)
    if table in database.list_tables().tables:
        raise RunError(_is_there(f"{database.uri} has a table {table!r}", "table"))
    schema = pa.schema([*attributes.schema, ("item_row", pa.int64()), ("vector", pa.list_(pa.float32(), index.dim))])
    database.create_table(table, data=_record_batches(index, attributes, schema), schema=schema)


def _record_batches(index: Index, attributes: pa.Table, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for part in chunks(len(index), BLOCK):
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(index.vectors[part].ravel()), index.dim)
        held = attributes.slice(part.start, part.stop - part.start).combine_chunks()
        columns = [*(column.combine_chunks() for column in held.columns), pa.array(np.arange(part.start, part.stop))]
        yield pa.RecordBatch.from_arrays([*columns, vectors], schema=schema)


def _json_like(attributes: pa.Table) -> pa.Table:
    """The same in types that JSON has: moments as text of ISO 8601, decimals as numbers, NaN as null."""
    for place, field in enumerate(attributes.schema):
        column = attributes.column(place)
        if pa.types.is_temporal(field.type):
            column = column.cast(pa.string())
        if pa.types.is_decimal(field.type) or pa.types.is_floating(field.type):
            column = column.cast(pa.float64())
            column = pc.if_else(pc.is_nan(column), None, column)
        attributes = attributes.set_column(place, field.name, column)
    return attributes


def _payload_schema(kind: pa.DataType) -> Any:
    from qdrant_client import models

    if pa.types.is_boolean(kind):
        return models.PayloadSchemaType.BOOL
    if pa.types.is_integer(kind):
        return models.PayloadSchemaType.INTEGER
    return models.PayloadSchemaType.FLOAT if pa.types.is_floating(kind) else models.PayloadSchemaType.KEYWORD


def _is_there(what: str, kind: str) -> str:
    return f"{what} already; nothing was written. Name another {kind}, or delete that one first."
