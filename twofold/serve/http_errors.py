"""Errors of the HTTP API, and the decoding of bodies, whose errors name the field, its value, and the remedy."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, TypeVar

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from twofold.serve.schemas import Problem

PROBLEM_JSON: Final = "application/problem+json"
RETRY_AFTER_S: Final = 1
UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
Body = TypeVar("Body")


class HttpError(Exception):
    """An error reply: the problem, the HTTP status and the headers."""

    def __init__(self, problem: Problem, *, status: int = 422, headers: Mapping[str, str] | None = None) -> None:
        """Takes a status of 4xx, 500, or 503 with the header Retry-After."""
        super().__init__(problem.detail)
        self.problem = problem
        self.status = status
        self.headers = {"content-type": PROBLEM_JSON, **(headers or {})}

    def body(self, request_id: str) -> bytes:
        """Returns the body of the reply."""
        return problem_body(self.problem, status=self.status, request_id=request_id)


def problem_body(problem: Problem, *, status: int, request_id: str) -> bytes:
    """Returns the JSON of a problem with its title, status and the id of the request."""
    title = HTTPStatus(status).phrase
    return msgspec.json.encode(replace(problem, title=title, status=status, instance=request_id))


def unavailable(reason: str, *, retry_s: int = RETRY_AFTER_S) -> HttpError:
    """Returns HTTP 503 with Retry-After: the service is overloaded or stopping, or its store is down."""
    detail = f"The service is not available ({reason}): try again in {retry_s} s."
    return HttpError(Problem(detail), status=503, headers={"retry-after": str(retry_s)})


def internal_error() -> HttpError:
    """Returns the reply to a request that failed through a fault of the service: HTTP 500, without details."""
    return HttpError(Problem("The service failed; its log has the details."), status=500)


def invalid_field(detail: str, *, field: str, value: Any, status: int = 422) -> HttpError:
    """Returns an error for an invalid field; values of more than 200 characters are left out."""
    return HttpError(Problem(detail, field, value if len(repr(value)) <= 200 else UNSET), status=status)


def read_body(decoder: msgspec.json.Decoder[Body], body: bytes) -> Body:
    """Decodes a request body; HttpError names the invalid field and its value."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `")
        field = path.rstrip("`").removeprefix("$").removeprefix(".")
        value = _value_at(body, field)
        shown = "" if value is UNSET or isinstance(value, list | dict) else f" is {str(value)[:80]!r}"
        detail = f"{field or 'The body'}{shown}: {text[0].lower()}{text[1:]}. The page /docs lists the valid values."
        raise invalid_field(detail, field=field, value=value) from None
    except UNREADABLE as error:
        raise HttpError(Problem(f"The body is not JSON: {error}. Send a JSON object."), status=400) from None


def _value_at(body: bytes, field: str) -> Any:
    """Returns the value at a path such as `events[3].at`; UNSET if the path is not of this form."""
    try:
        value: Any = msgspec.json.decode(body)
    except UNREADABLE:  # beyond the first error: a number too large, brackets too deep, no UTF-8
        return UNSET
    for part in field.replace("[", ".[").split(".") if field else ():
        name = part.strip("[]")
        match value:
            case list() if name.isdecimal() and int(name) < len(value):
                value = value[int(name)]
            case Mapping() if name in value:
                value = value[name]
            case _:
                return UNSET
    return value
