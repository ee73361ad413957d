"""The HTTP application: the table of routes, and their decoding and encoding. No logic here; see `service.py`.

msgspec decodes and encodes bodies with the types of `schemas.py`. There is no framework: with one, each request took
150 µs more (measured on a shared core), and its OpenAPI description had to be written here all the same.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from importlib.resources import files
from types import FrameType
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from twofold.errors import RequestError, RunError
from twofold.index.qdrant_search import QdrantError
from twofold.serve.event_store import StoreError
from twofold.serve.http_errors import HttpError, read_body, unavailable
from twofold.serve.item_attributes import encode_json
from twofold.serve.middleware import Limits, RequestGuard
from twofold.serve.page_schemas import Explain
from twofold.serve.rank_schemas import Rank
from twofold.serve.routing import JSON, Access, HttpResponse, Respond, Route, describe_api
from twofold.serve.schemas import EventRemoval, Events, ItemChanges, Problem, Recommend, RecommendBatch, Similar, Swap
from twofold.serve.service import Service
from twofold.serve.tracing import Tracing

NO_SNIFFING: Final = {"x-content-type-options": "nosniff"}
IS_JSON: Final = {"content-type": JSON, **NO_SNIFFING}
IS_PAGE: Final = {
    "content-type": "text/html; charset=utf-8",
    "content-security-policy": (
        "default-src 'self' 'unsafe-inline'; img-src 'self' data: https: http:; frame-ancestors 'none'; base-uri 'none'"
    ),
    **NO_SNIFFING,
}
IS_SCRIPT: Final = {"content-type": "text/javascript; charset=utf-8", **NO_SNIFFING}
IS_STYLE: Final = {"content-type": "text/css; charset=utf-8", **NO_SNIFFING}
IS_TEXT: Final = {"content-type": "text/plain; version=0.0.4; charset=utf-8", **NO_SNIFFING}

Background = Callable[[], AbstractAsyncContextManager[None]]


def build_app(
    service: Service, limits: Limits, *, background: Background = nullcontext, tracing: Tracing | None = None
) -> RequestGuard:
    """Builds the application with its middleware; `background` is entered when it starts and left when it stops.

    `tracing` sends spans; `None` means that there is no collector.
    """

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await service.start()
        following = asyncio.get_running_loop().create_task(service.follow())
        async with background():
            yield
        following.cancel()
        await service.histories.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)

    routes = _routes(service)
    served = [*routes, *_pages(service, routes)]
    return RequestGuard(served, limits, service.metrics, lifespan=lifespan, tracing=tracing)


def stop_on_sigterm(service: Service, drain_s: float) -> None:
    """Makes /ready fail from SIGTERM on; uvicorn, which then accepts no more connections, gets the signal after
    `drain_s`, so that a load balancer can notice. A second signal ends the wait.
    """
    stop, loop = signal.getsignal(signal.SIGTERM), asyncio.get_running_loop()

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        is_first, service.is_stopping = not service.is_stopping, True
        if callable(stop):
            if is_first and drain_s > 0:
                loop.call_soon_threadsafe(loop.call_later, drain_s, stop, number, None)
            else:
                stop(number, frame)

    signal.signal(signal.SIGTERM, on_sigterm)


# --- the route table --------------------------------------------------------------------------------------------------


def _routes(service: Service) -> list[Route]:
    event = {"user_id": 3, "item_id": 12}
    events = {"events": [event | {"kind": "positive"}]}
    return [
        *_list_routes(service),
        *_page_routes(service),
        _post("/v1/events", "Store new events; the next list reflects them.", service.add_events, Events, events),
        _post("/v1/events:remove", "Take back one event of a user.", service.remove_events, EventRemoval, event),
        replace(_get("/v1/items/{item_id}", "Attributes and event counts of an item.", service.item), statuses=(404,)),
        _get("/v1/users", "Some users of the log.", service.some_users),
        _get("/v1/users/{user_id}", "All events of a user.", service.user, access="admin"),
        _get(
            "/v1/users/{user_id}",
            "Delete the posted events of a user, and ignore those of the log.",
            service.delete_user,
            method="DELETE",
            access="admin",
        ),
        _post("/v1/admin/swap", "Serve another bundle, if it is valid.", service.swap, Swap, {}, access="admin"),
        _post(
            "/v1/admin/items",
            "Add and update items for as long as this bundle is in use; withdraw and restore items in every bundle.",
            service.change_items,
            ItemChanges,
            {"remove": [12]},
            access="admin",
        ),
        replace(_get("/health", "The bundle in use.", service.health, access="open"), is_limited=False),
        _get("/ready", "The same; 503 unless lists are complete and events stored.", service.ready, access="open"),
    ]


def _list_routes(service: Service) -> list[Route]:
    return [
        _post("/v1/recommend", "The best items for one user.", service.recommend, Recommend, {"user_id": 3, "k": 5}),
        _post(
            "/v1/recommend:batch",
            "The best items for each of many users.",
            service.recommend_batch,
            RecommendBatch,
            {"user_ids": [3, 7], "k": 5},
        ),
        _post(
            "/v1/rank",
            "Given items in the order for one user.",
            service.rank,
            Rank,
            {"user_id": 3, "item_ids": [12, 34]},
        ),
        _post("/v1/similar", "The items most similar to one.", service.similar, Similar, {"item_id": 12, "k": 5}),
    ]


def _page_routes(service: Service) -> list[Route]:
    """Returns the routes that the live page alone needs."""
    return [
        replace(
            _post(
                "/v1/recommend:beside",
                "The best items for one user by the second bundle, if the service has one.",
                service.page.recommend_beside,
                Recommend,
                {"user_id": 3, "k": 5},
            ),
            statuses=(404,),
        ),
        _post(
            "/v1/explain",
            "The items of the history that carry the scores of some items.",
            service.page.explain,
            Explain,
            {"user_id": 3, "item_ids": [12]},
        ),
        _get("/v1/page", "Columns of the items with their statistics.", service.page.page),
        replace(_get("/v1/map", "The map of the items.", service.page.map), statuses=(404,)),
    ]


def _post(
    path: str,
    summary: str,
    handler: Callable[[Any], Awaitable[Struct]],
    request: type[Struct],
    example: Any,
    *,
    access: Access = "read",
) -> Route:
    decoder = msgspec.json.Decoder(request)
    statuses = (409,) if access == "admin" else (507,) if path.startswith("/v1/events") else ()
    return Route(
        method="POST",
        path=path,
        respond=_json(lambda body: handler(read_body(decoder, body))),
        access=access,
        summary=summary,
        name=handler.__name__,
        request=request,
        response=handler.__annotations__["return"],
        example=example,
        statuses=statuses,
    )


def _get(
    path: str,
    summary: str,
    handler: Callable[..., Awaitable[Struct]],
    *,
    method: Literal["GET", "DELETE"] = "GET",
    access: Access = "read",
) -> Route:
    return Route(
        method=method,
        path=path,
        respond=_json(lambda path_id: handler(path_id) if "{" in path else handler()),
        access=access,
        summary=summary,
        name=handler.__name__,
        response=handler.__annotations__["return"],
    )


def _json(handler: Callable[[Any], Awaitable[Struct]]) -> Respond:
    """Wraps a handler: encodes its result, and turns its errors into those of HTTP."""

    async def respond(argument: Any) -> HttpResponse:
        try:
            return HttpResponse(200, encode_json(await handler(argument)), IS_JSON)
        except (HttpError, RequestError, RunError, StoreError, QdrantError) as error:
            raise _as_http_error(error) from error

    return respond


def _as_http_error(error: HttpError | RequestError | RunError | StoreError | QdrantError) -> HttpError:
    match error:
        case HttpError():
            return error
        case StoreError(retry_s=None):
            detail = "The store of events refuses this, now and later. The log of the service has the reason."
            return HttpError(Problem(detail), status=507)
        case StoreError(retry_s=retry_s):
            return unavailable("the live histories cannot be reached", retry_s=retry_s or 1)
        case QdrantError():
            return unavailable("its index in Qdrant cannot be reached")
        case RunError():
            return HttpError(Problem(str(error)), status=409)
        case _:
            return HttpError(Problem(str(error)))


# --- pages ------------------------------------------------------------------------------------------------------------


def _pages(service: Service, routes: list[Route]) -> list[Route]:
    async def metrics(_: Any) -> HttpResponse:
        return HttpResponse(200, await asyncio.to_thread(service.metrics.page), IS_TEXT)

    shown = {
        path: (files("twofold.serve").joinpath(name).read_bytes(), kind)
        for path, name, kind in (
            ("/", "page.html", IS_PAGE),
            ("/page.js", "page.js", IS_SCRIPT),
            ("/page_items.js", "page_items.js", IS_SCRIPT),
            ("/page.css", "page.css", IS_STYLE),
            ("/docs", "docs.html", IS_PAGE),
        )
    }
    shown["/openapi.json"] = (encode_json(describe_api(routes)), IS_JSON)
    fixed = [
        Route("GET", path, _fixed(HttpResponse(200, body, headers)), access="open", is_limited=False)
        for path, (body, headers) in shown.items()
    ]
    return [*fixed, Route("GET", "/metrics", metrics, access="open")]


def _fixed(response: HttpResponse) -> Respond:
    async def respond(_: Any) -> HttpResponse:
        return response

    return respond
