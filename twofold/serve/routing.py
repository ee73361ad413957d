"""Routes of the HTTP API: the table in which the middleware looks up a request, and its OpenAPI description."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Struct

from twofold.serve.http_errors import PROBLEM_JSON, HttpError
from twofold.serve.schemas import Problem

JSON: Final = "application/json"
ABOUT: Final = "Recommendations from a run of twofold. Ids are those of the run's log; times are UTC milliseconds."
SECURITY: Final = {"token": {"type": "http", "scheme": "bearer"}, "admin_token": {"type": "http", "scheme": "bearer"}}
PROBLEMS: Final = {
    400: "The body is not JSON.",
    401: "The token is missing or wrong.",
    403: "The route requires the admin token, or the host is not allowed.",
    404: "There is no such item.",
    408: "The request did not arrive in time.",
    409: "The bundle cannot be used; the previous one stays in use.",
    413: "The body is too large.",
    415: "The body is not declared as application/json.",
    422: "A field is invalid, or the filter does not fit the items.",
    500: "The service failed; its log has the details.",
    503: "Overloaded or stopping: try again after the time in the header Retry-After.",
    507: "The store of events refuses to write; trying again is of no use. The log of the service has the reason.",
}

Access = Literal["open", "read", "admin"]
"""Users of a route: anyone, holders of a token, or holders of the admin token."""


class HttpResponse(NamedTuple):
    """An HTTP response: status, body and headers."""

    status: int
    body: bytes
    headers: Mapping[str, str]


Respond = Callable[[Any], Awaitable[HttpResponse]]
"""Function from the body (bytes) or the id in the path (text) to the response."""


@dataclass(frozen=True)
class Route:
    """An entry of the route table. A path that ends in `{name}` takes the rest of the request's path as an id.

    `request` and `response` are the types of the bodies; a page has none. `statuses` are the errors of this route
    alone. `is_limited` routes wait their turn and have a deadline.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    respond: Respond
    access: Access = "read"
    summary: str = ""
    name: str = ""
    request: type[Struct] | None = None
    response: type[Struct] | None = None
    example: Any = None
    statuses: tuple[int, ...] = ()
    is_limited: bool = True


class RouteTable:
    """Routes by method and path."""

    def __init__(self, routes: Sequence[Route]) -> None:
        """Takes routes with distinct methods and paths."""
        self._exact: dict[tuple[str, str], Route] = {
            (route.method, route.path): route for route in routes if "{" not in route.path
        }
        self._prefixes = [(route.path.partition("{")[0], route) for route in routes if "{" in route.path]

    def find(self, method: str, path: str) -> tuple[Route, str]:
        """Returns the route and the id in the path; HttpError (404 or 405) if there is none."""
        method = "GET" if method == "HEAD" else method
        route = self._exact.get((method, path))
        if route is not None:
            return route, ""
        matches = [(route, path[len(prefix) :]) for prefix, route in self._prefixes if path.startswith(prefix)]
        matches = [(route, rest) for route, rest in matches if rest]
        for route, rest in matches:
            if route.method == method:
                return route, rest
        known = [method for method, exact in self._exact if exact == path] + [route.method for route, _ in matches]
        if known:
            problem = Problem(f"This path answers {', '.join(sorted(set(known)))}.")
            raise HttpError(problem, status=405, headers={"allow": ", ".join(sorted(set(known)))})
        raise HttpError(Problem("There is no such path. The page /docs lists all."), status=404)


# --- OpenAPI ----------------------------------------------------------------------------------------------------------


def describe_api(routes: Sequence[Route]) -> dict[str, Any]:
    """Returns the OpenAPI description of the routes that have a response type."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if route.response is not None:
            paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, route.response)
    return {
        "openapi": "3.1.0",
        "info": {"title": "twofold", "version": "1", "description": ABOUT},
        "paths": paths,
        "components": {"schemas": components(routes), "securitySchemes": SECURITY},
    }


def _operation(route: Route, response: type[Struct]) -> dict[str, Any]:
    operation: dict[str, Any] = {"operationId": route.name, "summary": route.summary}
    if "{" in route.path:
        name = route.path.partition("{")[2].rstrip("}")
        schema = {"type": "string", "minLength": 1}
        operation["parameters"] = [{"name": name, "in": "path", "required": True, "schema": schema}]
    if route.request is not None:
        content = _content(route.request, example=route.example)
        operation["requestBody"] = {"required": True, "content": content}
    statuses = [*route.statuses, 500, 503]
    statuses += [400, 408, 413, 415, 422] if route.request is not None else []
    if route.access != "open":
        statuses += [401, 403] if route.access == "admin" else [401]
        operation["security"] = [{"admin_token" if route.access == "admin" else "token": []}]
    problems = {
        str(status): {"description": PROBLEMS[status], "content": {PROBLEM_JSON: _content(Problem)[JSON]}}
        for status in sorted(statuses)
    }
    operation["responses"] = {"200": {"description": route.summary, "content": _content(response)}, **problems}
    return operation


def _content(kind: type[Struct], *, example: Any = None) -> dict[str, Any]:
    schema: dict[str, Any] = {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}
    return {JSON: schema if example is None else schema | {"example": example}}


def components(routes: Sequence[Route]) -> dict[str, Any]:
    """Returns the JSON schemas of the requests and responses of routes, for OpenAPI.

    Bounds that JavaScript cannot represent are left out: pages would show another number.
    """
    bodies = [body for route in routes for body in (route.request, route.response) if body is not None]
    kinds = dict.fromkeys([*bodies, Problem])
    _, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    return dict(_without_large_bounds(schemas))


def _without_large_bounds(schema: Any) -> Any:
    match schema:
        case dict():
            is_shown = {name: not isinstance(value, int) or abs(value) < 2**53 for name, value in schema.items()}
            return {name: _without_large_bounds(value) for name, value in schema.items() if is_shown[name]}
        case list():
            return [_without_large_bounds(value) for value in schema]
        case _:
            return schema
