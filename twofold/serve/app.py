"""Routes of the HTTP API: a request is decoded, handled by `service.py`, and its response encoded. No logic here.

FastAPI holds the table of routes and their OpenAPI description. msgspec decodes and encodes bodies with the types of
`schemas.py`: a body that passes pydantic costs more than the rest of the framework. The middleware answers POST
requests without FastAPI, which would add 150 µs to each (measured on a shared core).
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from importlib.resources import files
from types import FrameType
from typing import Any, Final

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from msgspec import Struct

from twofold.errors import RequestError, RunError
from twofold.serve.event_store import StoreError
from twofold.serve.middleware import HttpResponse, Limits, RequestGuard
from twofold.serve.schemas import (
    Events,
    EventsAccepted,
    Health,
    HttpError,
    ItemChanges,
    ItemFacts,
    ItemsChanged,
    Problem,
    Recommend,
    Recommendations,
    RecommendationsBatch,
    RecommendBatch,
    Similar,
    SimilarItems,
    SomeUsers,
    Swap,
    Swapped,
    components,
    internal_error,
    read_body,
    unavailable,
)
from twofold.serve.service import Service

ABOUT: Final = "Recommendations from a run of twofold. Ids are those of the run's log; times are UTC milliseconds."
JSON: Final = "application/json"
IS_JSON: Final = {"content-type": JSON}
TOKEN: Final = {"type": "http", "scheme": "bearer"}
NO_TOKEN: Final = (
    "This route requires a token: start the service with TWOFOLD_TOKEN set. To swap without a token, send SIGHUP."
)
PROBLEMS: Final[dict[int | str, str]] = {
    400: "The body is not JSON.",
    401: "The token is missing or wrong.",
    403: "The route requires a token, and the service was started without one.",
    404: "There is no such item.",
    409: "The bundle cannot be used; the previous one stays in use.",
    413: "The body is too large.",
    422: "A field is invalid, or the filter does not fit the items.",
    503: "Overloaded or stopping: try again after the time in the header Retry-After.",
}

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class Route:
    """An entry of the route table. `handler` takes the decoded body of a POST, or the path parameters of a GET."""

    path: str
    summary: str
    handler: Callable[..., Awaitable[Struct]]
    response: type[Struct]
    request: type[Struct] | None = None
    example: Any = None
    needs_token: bool = False


def build_app(service: Service, limits: Limits, *, background: Lifespan | None = None) -> RequestGuard:
    """Builds the application with its middleware; `background` is entered when it starts and left when it stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        mark_stopping_on_sigterm(service)
        following = asyncio.get_running_loop().create_task(service.follow_items())
        async with background(app) if background is not None else nullcontext():
            yield
        following.cancel()
        await service.histories.close()

    app = FastAPI(title="twofold", description=ABOUT, docs_url=None, redoc_url=None, lifespan=lifespan)
    routes = [(route, _json_route(route, limits)) for route in _routes(service)]
    for route, handler in routes:
        _add_route(app, route, handler)
    _add_pages(app, service)
    app.add_exception_handler(Exception, _internal_error)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    post_handlers = {route.path: handler for route, handler in routes if route.request is not None}
    return RequestGuard(app, limits, service.metrics, post_handlers=post_handlers)


def mark_stopping_on_sigterm(service: Service) -> None:
    """Makes /ready fail from SIGTERM on, before uvicorn stops the service."""
    stop = signal.getsignal(signal.SIGTERM)

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        service.is_stopping = True
        if callable(stop):
            stop(number, frame)

    signal.signal(signal.SIGTERM, on_sigterm)


# --- the route table --------------------------------------------------------------------------------------------------


def _routes(service: Service) -> list[Route]:
    batch, events = {"user_ids": [3, 7], "k": 5}, {"events": [{"user_id": 3, "item_id": 12, "kind": "positive"}]}
    user, item, removal = {"user_id": 3, "k": 5}, {"item_id": 12, "k": 5}, {"remove": [12]}
    about_batch, about_events = (
        "The best items for each of many users.",
        "Store new events; the next list reflects them.",
    )
    about_swap = "Serve another bundle, if it is valid."
    about_items = "Add, update or remove items, for as long as this bundle is in use."
    about_ready = "The bundle in use, if the store can be reached; 503 while the service is stopping."
    return [
        Route("/v1/recommend", "The best items for one user.", service.recommend, Recommendations, Recommend, user),
        Route("/v1/recommend:batch", about_batch, service.recommend_batch, RecommendationsBatch, RecommendBatch, batch),
        Route("/v1/similar", "The items most similar to one.", service.similar, SimilarItems, Similar, item),
        Route("/v1/events", about_events, service.add_events, EventsAccepted, Events, events),
        Route("/v1/items/{item_id}", "Attributes and event counts of an item.", service.item, ItemFacts),
        Route("/v1/users", "Some users of the log.", service.some_users, SomeUsers),
        Route("/v1/admin/swap", about_swap, service.swap, Swapped, Swap, {}, needs_token=True),
        Route(
            "/v1/admin/items", about_items, service.change_items, ItemsChanged, ItemChanges, removal, needs_token=True
        ),
        Route("/health", "The bundle in use.", service.health, Health),
        Route("/ready", about_ready, service.ready, Health),
    ]


class _Bytes(APIRoute):
    """A route whose endpoint maps the request to the response, with nothing parsed or validated in between."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint


def _json_route(route: Route, limits: Limits) -> Callable[..., Awaitable[HttpResponse]]:
    """Wraps a route's handler: decodes the body of a POST, encodes the result, and turns errors into responses.

    The handler of a GET gets the path parameters as they are.
    """
    encode = msgspec.json.Encoder(decimal_format="number").encode
    decoder = None if route.request is None else msgspec.json.Decoder(route.request)

    async def respond(*arguments: Any) -> HttpResponse:
        try:
            if route.needs_token and limits.token is None:
                raise HttpError(Problem(NO_TOKEN), status=403)
            decoded = arguments if decoder is None else (read_body(decoder, arguments[0]),)
            return HttpResponse(200, encode(await route.handler(*decoded)), IS_JSON)
        except (HttpError, RequestError, RunError, StoreError) as error:
            http_error = _as_http_error(error)
            return HttpResponse(http_error.status, encode(http_error.problem), http_error.headers)

    return respond


def _add_route(app: FastAPI, route: Route, handler: Callable[..., Awaitable[HttpResponse]]) -> None:
    async def endpoint(request: Request) -> Response:
        arguments = request.path_params.values() if route.request is None else [await request.body()]
        response = await handler(*arguments)
        return Response(response.body, response.status, response.headers)

    statuses: tuple[int | str, ...] = (401, 404, 503) if route.request is None else (400, 401, 403, 409, 413, 422, 503)
    app.router.add_api_route(
        route.path,
        endpoint,
        route_class_override=_Bytes,
        methods=["GET" if route.request is None else "POST"],
        summary=route.summary,
        name=route.path.rpartition("/")[2],
        responses={status: _content(Problem, PROBLEMS[status]) for status in statuses}
        | {200: _content(route.response, route.summary)},
        openapi_extra=_parameters(route),
    )


def _parameters(route: Route) -> dict[str, Any]:
    if route.request is not None:
        content = _content(route.request, "", example=route.example)["content"]
        return {"requestBody": {"required": True, "content": content}}
    has_item = "{item_id}" in route.path
    parameter = {"name": "item_id", "in": "path", "required": True, "schema": {"type": "string"}}
    return {"parameters": [parameter] * has_item}


def _content(kind: type[Struct], about: str, *, example: Any = None) -> Any:
    schema: dict[str, Any] = {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}
    return {"description": about, "content": {JSON: schema if example is None else schema | {"example": example}}}


def _as_http_error(error: HttpError | RequestError | RunError | StoreError) -> HttpError:
    match error:
        case HttpError():
            return error
        case StoreError():
            return unavailable("the live histories cannot be reached")
        case RunError():
            return HttpError(Problem(str(error)), status=409)
        case _:
            return HttpError(Problem(str(error)))


async def _internal_error(request: Request, error: Exception) -> Response:
    return Response(msgspec.json.encode(internal_error().problem), 500, IS_JSON)


def _openapi(app: FastAPI) -> dict[str, Any]:
    page = get_openapi(title=app.title, version="1", description=app.description, routes=app.routes)
    page["components"] = {"schemas": components(), "securitySchemes": {"token": TOKEN}}
    return page


# --- pages ------------------------------------------------------------------------------------------------------------


def _add_pages(app: FastAPI, service: Service) -> None:
    for path, name in (("/", "page.html"), ("/docs", "docs.html")):
        page = files("twofold.serve").joinpath(name).read_bytes()

        async def show(page: bytes = page) -> Response:
            return Response(page, media_type="text/html; charset=utf-8")

        app.add_api_route(path, show, include_in_schema=False)

    async def metrics() -> Response:
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.add_api_route("/metrics", metrics, include_in_schema=False)
