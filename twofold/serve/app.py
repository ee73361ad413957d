"""Routes: bytes → a question, an answer → bytes. No logic here.

FastAPI keeps the table of routes and their description; bodies are read and written by msgspec, and the schemas are
those of `wire.py`: a body that goes through pydantic costs more than the rest of the frame together. The gate answers
what is posted without asking FastAPI, which adds 150 µs to a request (measured on a shared core).
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
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
from twofold.serve.middleware import Answered, Limits, RequestGuard
from twofold.serve.schemas import (
    Changed,
    Changes,
    Events,
    EventsAccepted,
    Health,
    ItemFacts,
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
    WireError,
    components,
    internal_error,
    read_body,
    unavailable,
)
from twofold.serve.service import Service

ABOUT: Final = "Recommendations from a run of twofold. Ids are those of its log; moments are UTC milliseconds."
JSON: Final = "application/json"
IS_JSON: Final = {"content-type": JSON}
TOKEN: Final = {"type": "http", "scheme": "bearer"}
NO_TOKEN: Final = "This wants a token: start the service with TWOFOLD_TOKEN set. To swap without one, send it SIGHUP."
PROBLEMS: Final[dict[int | str, str]] = {
    400: "The body is not JSON.",
    401: "The token is missing or wrong.",
    403: "The service was started without a token, which this wants.",
    404: "There is no such item.",
    409: "The bundle cannot be used; what answered before goes on.",
    413: "The body is too large.",
    422: "A field holds what cannot be, or a filter does not fit the items.",
    503: "Overloaded or stopping: try again after the header Retry-After.",
}

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class Route:
    """A line of the table of routes: `answer` takes the question of a body, or what the path holds."""

    path: str
    about: str
    answer: Callable[..., Awaitable[Struct]]
    answers: type[Struct]
    asks: type[Struct] | None = None
    example: Any = None
    wants_token: bool = False


def build_app(service: Service, limits: Limits, *, run_beside: Lifespan | None = None) -> RequestGuard:
    """The application, behind its gate; `run_beside` is entered when it starts and left when it stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        mark_stopping_on_sigterm(service)
        following = asyncio.get_running_loop().create_task(service.follow_items())
        async with run_beside(app) if run_beside is not None else _nothing():
            yield
        following.cancel()
        await service.histories.close()

    app = FastAPI(title="twofold", description=ABOUT, docs_url=None, redoc_url=None, lifespan=lifespan)
    answers = [(route, _json_route(route, limits)) for route in _routes(service)]
    for route, answer in answers:
        _add(app, route, answer)
    _add_pages(app, service)
    app.add_exception_handler(Exception, _failed)
    app.openapi = lambda: _description(app)  # type: ignore[method-assign]
    posted = {route.path: answer for route, answer in answers if route.asks is not None}
    return RequestGuard(app, limits, service.meters, posted=posted)


def mark_stopping_on_sigterm(service: Service) -> None:
    """From SIGTERM on, which uvicorn stops at, /ready says so."""
    stop = signal.getsignal(signal.SIGTERM)

    def noticed(number: int, frame: FrameType | None) -> None:
        service.is_stopping = True
        if callable(stop):
            stop(number, frame)

    signal.signal(signal.SIGTERM, noticed)


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield


# --- the table --------------------------------------------------------------------------------------------------------


def _routes(service: Service) -> list[Route]:
    batch, events = {"user_ids": [3, 7], "k": 5}, {"events": [{"user_id": 3, "item_id": 12, "kind": "positive"}]}
    of_user, of_item = {"user_id": 3, "k": 5}, {"item_id": 12, "k": 5}
    about_items = "Items added, updated or withdrawn, for as long as this bundle answers."
    about_ready = "What answers, once it does and its store can be reached; 503 while it stops."
    gone: dict[str, Any] = {"withdraw": [12]}
    about_batch, about_swap = "The best items for each of many users.", "Answer from another bundle, if it is sound."
    return [
        Route("/v1/recommend", "The best items for one.", service.recommend, Recommendations, Recommend, of_user),
        Route("/v1/recommend:batch", about_batch, service.recommend_batch, RecommendationsBatch, RecommendBatch, batch),
        Route("/v1/similar", "The items most like one.", service.similar, SimilarItems, Similar, of_item),
        Route(
            "/v1/events",
            "What users just met: the next answer reflects it.",
            service.keep,
            EventsAccepted,
            Events,
            events,
        ),
        Route("/v1/items/{item_id}", "What is known of an item.", service.item, ItemFacts),
        Route("/v1/users", "Some users of the log.", service.some_users, SomeUsers),
        Route("/v1/admin/swap", about_swap, service.swap, Swapped, Swap, {}, wants_token=True),
        Route("/v1/admin/items", about_items, service.change, Changed, Changes, gone, wants_token=True),
        Route("/health", "What answers.", service.health, Health),
        Route("/ready", about_ready, service.ready, Health),
    ]


class _Bytes(APIRoute):
    """A route whose endpoint takes the request and gives the response, with nothing read or checked in between."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint


def _json_route(route: Route, limits: Limits) -> Callable[..., Awaitable[Answered]]:
    """Bytes → a question → its answer → bytes; where nothing is posted, what the path holds takes the question's place.

    Whatever is wrong with the question is an answer too.
    """
    encode = msgspec.json.Encoder(decimal_format="number").encode
    decoder = None if route.asks is None else msgspec.json.Decoder(route.asks)

    async def answer(*given: Any) -> Answered:
        try:
            if route.wants_token and limits.token is None:
                raise WireError(Problem(NO_TOKEN), status=403)
            asked = given if decoder is None else (read_body(decoder, given[0]),)
            return Answered(200, encode(await route.answer(*asked)), IS_JSON)
        except (WireError, RequestError, RunError, StoreError) as error:
            refused = _refusal(error)
            return Answered(refused.status, encode(refused.problem), refused.headers)

    return answer


def _add(app: FastAPI, route: Route, answer: Callable[..., Awaitable[Answered]]) -> None:
    async def endpoint(request: Request) -> Response:
        given = request.path_params.values() if route.asks is None else [await request.body()]
        answered = await answer(*given)
        return Response(answered.body, answered.status, answered.headers)

    possible: tuple[int | str, ...] = (401, 404, 503) if route.asks is None else (400, 401, 403, 409, 413, 422, 503)
    app.router.add_api_route(
        route.path,
        endpoint,
        route_class_override=_Bytes,
        methods=["GET" if route.asks is None else "POST"],
        summary=route.about,
        name=route.path.rpartition("/")[2],
        responses={status: _content(Problem, PROBLEMS[status]) for status in possible}
        | {200: _content(route.answers, route.about)},
        openapi_extra=_parameters(route),
    )


def _parameters(route: Route) -> dict[str, Any]:
    if route.asks is not None:
        content = _content(route.asks, "", example=route.example)["content"]
        return {"requestBody": {"required": True, "content": content}}
    named = "{item_id}" in route.path
    return {"parameters": [{"name": "item_id", "in": "path", "required": True, "schema": {"type": "string"}}] * named}


def _content(kind: type[Struct], about: str, *, example: Any = None) -> Any:
    schema: dict[str, Any] = {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}
    return {"description": about, "content": {JSON: schema if example is None else schema | {"example": example}}}


def _refusal(error: WireError | RequestError | RunError | StoreError) -> WireError:
    match error:
        case WireError():
            return error
        case StoreError():
            return unavailable("the live histories cannot be reached")
        case RunError():
            return WireError(Problem(str(error)), status=409)
        case _:
            return WireError(Problem(str(error)))


async def _failed(request: Request, error: Exception) -> Response:
    return Response(msgspec.json.encode(internal_error().problem), 500, IS_JSON)


def _description(app: FastAPI) -> dict[str, Any]:
    described = get_openapi(title=app.title, version="1", description=app.description, routes=app.routes)
    described["components"] = {
        "schemas": components(),
        "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
    }
    return described


# --- pages ------------------------------------------------------------------------------------------------------------


def _add_pages(app: FastAPI, service: Service) -> None:
    for path, name in (("/", "page.html"), ("/docs", "docs.html")):
        page = files("twofold.serve").joinpath(name).read_bytes()

        async def show(page: bytes = page) -> Response:
            return Response(page, media_type="text/html; charset=utf-8")

        app.add_api_route(path, show, include_in_schema=False)

    async def metrics() -> Response:
        return Response(service.meters.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.add_api_route("/metrics", metrics, include_in_schema=False)
