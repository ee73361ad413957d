"""Search in Qdrant: the candidates of each query come from a server, their scores from the bundle's own vectors.

The server has a copy of the item vectors and attributes (`export.py`), named after the content of the bundle. It
searches a graph, under filters in its own language and without the items that a query excludes. What it finds is scored
again in the fixed order of summation and of ties of `exact.py`, so that equal candidates give equal lists.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64

from twofold.errors import RequestError, RunError
from twofold.index.exact import rescore_and_sort
from twofold.index.export import DISTANCES
from twofold.index.item_index import Index
from twofold.index.qdrant_filters import qdrant_filter
from twofold.index.search import SPARE, Neighbors
from twofold.ragged import Ragged

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

API_KEY: Final = "QDRANT_API_KEY"
TIMEOUT_S: Final = 2
MIN_DEPTH: Final = 512  # candidates that the server's graph keeps while it searches
NO_HEADERS: Final = dict[str, str]


class QdrantError(Exception):
    """Qdrant does not respond, or has lost the collection. The request is valid and may be sent again."""


def collection_name(digest: str) -> str:
    """Returns the name of the collection with the items of a bundle, whose content has this digest."""
    return f"twofold-{digest[:12]}"


def connect(
    url: str, *, timeout_s: int = TIMEOUT_S, headers: Callable[[], Mapping[str, str]] = NO_HEADERS
) -> "QdrantClient":
    """Opens Qdrant: a server, or a folder for the embedded mode of its client, which one process can open.

    `headers` returns further headers of a request to a server. The key of a server is the environment variable
    `QDRANT_API_KEY`. RequestError if that fails.
    """
    if find_spec("qdrant_client") is None:
        raise RequestError("Qdrant needs qdrant_client, which is not installed: pip install 'twofold[qdrant]'")
    from qdrant_client import QdrantClient

    try:
        if "://" not in url:
            return QdrantClient(path=url, force_disable_check_same_thread=True)
        key = os.environ.get(API_KEY) or None
        client = QdrantClient(url=url, api_key=key, timeout=timeout_s, check_compatibility=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise RequestError(f"{url} cannot be opened as Qdrant: {error}. Give http://HOST:6333.") from error

    def with_headers(request: Any, call_next: Callable[[Any], Any]) -> Any:
        request.headers.update(headers())
        return call_next(request)

    client.http.client.add_middleware(with_headers)
    return client


class QdrantIndex:
    """The items of a bundle in a collection of Qdrant; safe to share between threads."""

    def __init__(self, client: "QdrantClient", collection: str, index: Index, attributes: pa.Schema) -> None:
        """Takes a collection that `check` has found to fit the index; `attributes` are the columns for filters."""
        self._client, self._collection, self._index = client, collection, index
        self._filter = lru_cache(256)(lambda text: qdrant_filter(text, attributes))

    def check(self) -> None:
        """Raises QdrantError if Qdrant does not respond, RunError if the collection does not hold these items."""
        found = self._call(lambda: self._client.collection_exists(self._collection))
        items = self._call(lambda: self._client.count(self._collection, exact=True).count) if found else 0
        if not found or items != len(self._index):
            state = f"has {items:,} of {len(self._index):,} items in" if found else "has no collection"
            raise RunError(
                f"Qdrant {state} {self._collection!r}, which shall hold the items of this bundle. "
                + ("Delete it, and copy" if found else "Copy")
                + " them: twofold export RUN --to qdrant --url URL"
            )
        vectors: Any = self._call(lambda: self._client.get_collection(self._collection)).config.params.vectors
        expected = self._index.dim, DISTANCES[self._index.score]
        if (vectors.size, vectors.distance.value) != expected:
            raise RunError(
                f"Qdrant's collection {self._collection!r} has {vectors.size} dimensions and the distance "
                f"{vectors.distance.value}, this bundle {expected[0]} and {expected[1]}. Delete it, and copy the items "
                f"again: twofold export RUN --to qdrant --url URL"
            )

    def ping(self) -> None:
        """Raises QdrantError if Qdrant does not respond or has lost the collection."""
        if not self._call(lambda: self._client.collection_exists(self._collection)):
            raise QdrantError(f"Qdrant has lost the collection {self._collection!r}")

    def check_condition(self, condition: str) -> None:
        """Raises RequestError if Qdrant cannot evaluate a condition."""
        self._filter(condition)

    def search(
        self,
        queries: Float32[np.ndarray, "queries dim"],
        k: int,
        *,
        conditions: Sequence[str],
        absent: Int64[np.ndarray, "_"],
        excluded: Ragged,
    ) -> Neighbors:
        """Returns the k best items of each query, as `search`, that satisfy all conditions and are not `absent`.

        QdrantError if Qdrant does not respond. A query that finds fewer than k is sent again as an exact one, since
        only that is sure to have seen all.
        """
        filters = [self._filter(condition) for condition in conditions]
        out = [[*absent.tolist(), *excluded.of(np.array([query])).values.tolist()] for query in range(len(queries))]
        rows = self._points(queries, k, filters=filters, out=out, is_exact=False)
        short = [query for query, found in enumerate(rows) if len(found) < min(k, len(self._index) - len(out[query]))]
        if short:
            again = self._points(queries[short], k, filters=filters, out=[out[query] for query in short], is_exact=True)
            for query, found in zip(short, again, strict=True):
                rows[query] = found
        best = rescore_and_sort(
            self._index.vectors,
            queries,
            query_of=np.repeat(np.arange(len(rows)), [len(found) for found in rows]),
            rows=np.array([row for found in rows for row in found], np.int64),
            k=k,
            score=self._index.score,
        )
        return Neighbors(best.item_rows, best.scores, best.counts, is_exact=False)

    def _points(
        self,
        queries: Float32[np.ndarray, "queries dim"],
        k: int,
        *,
        filters: list[Any],
        out: list[list[Any]],
        is_exact: bool,
    ) -> list[list[int]]:
        """Returns the item rows that Qdrant finds for each query, without the rows `out`."""
        from qdrant_client import models

        depth = max(MIN_DEPTH, 4 * (k + SPARE))
        requests = [
            models.QueryRequest(
                query=query,
                limit=k + SPARE,
                filter=models.Filter(must=filters, must_not=[models.HasIdCondition(has_id=rows)] if rows else None),
                params=models.SearchParams(exact=is_exact, hnsw_ef=None if is_exact else depth),
            )
            for query, rows in zip(queries.tolist(), out, strict=True)
        ]
        replies = self._call(lambda: self._client.query_batch_points(self._collection, requests))
        return [[int(point.id) for point in reply.points] for reply in replies]

    def _call(self, request: Callable[[], Any]) -> Any:
        from qdrant_client.http.exceptions import ApiException

        try:
            return request()
        except (ApiException, OSError, ValueError, RuntimeError) as error:
            raise QdrantError(f"Qdrant does not answer: {type(error).__name__}: {error}") from error
