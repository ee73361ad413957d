"""Middleware: authentication, body size, concurrency, time limit, and one log line per request.

An error reply is a status and one sentence. The pages and the monitoring routes (`OPEN_PATHS`) need no token and never
wait. POST requests are answered here directly, because the way through the application would make them half as slow
again.
"""

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.schemas import MAX_BODY_BYTES, HttpError, Problem, internal_error, unavailable

OPEN_PATHS: Final = frozenset(("/", "/docs", "/openapi.json", "/health", "/ready", "/metrics"))
REQUEST_LOG: Final = "twofold.serve.requests"
CLIENT_CLOSED: Final = 499  # nginx's status for a client that disconnected before the reply


@dataclass(frozen=True)
class Limits:
    """Limits of one worker: requests beyond `max_waiting` are refused immediately, those over `timeout_s` are ended.

    `token` is the bearer token that requests must send; `None` means no authentication.
    """

    token: str | None = None
    max_waiting: int = 128
    timeout_s: float = 5.0
    max_body_bytes: int = MAX_BODY_BYTES


class HttpResponse(NamedTuple):
    """An HTTP response: status, body and headers."""

    status: int
    body: bytes
    headers: Mapping[str, str]


PostHandler = Callable[[bytes], Awaitable[HttpResponse]]
"""Function from the body of a POST to its response."""


class RequestGuard:
    """An ASGI application around another; POST requests to a path of `post_handlers` do not reach the inner one."""

    def __init__(
        self, app: ASGIApp, limits: Limits, metrics: ServiceMetrics, *, post_handlers: Mapping[str, PostHandler]
    ) -> None:
        """Starts without waiting requests."""
        self._app = app
        self._limits = limits
        self._metrics = metrics
        self._post_handlers = post_handlers
        self._deadlines = _Deadlines(limits.timeout_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request, or the start and stop of the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        reply = _Reply(send)
        started = perf_counter()
        path = scope["path"]
        handler = self._post_handlers.get(path) if scope["method"] == "POST" else None
        try:
            if path in OPEN_PATHS:
                await self._app(scope, receive, reply)
            else:
                await self._handle(scope, receive, reply, handler)
        except HttpError as error:
            await reply.send_error(error)
        except Exception:  # details go to the log only
            logging.getLogger("twofold.serve").exception("failed", extra={"facts": {"path": path}})
            await reply.send_error(internal_error())
        route = path if handler is not None else getattr(scope.get("route"), "path", "none")
        self._metrics.count_reply(route, reply.status)
        _log_request(route, scope["method"], reply.status, perf_counter() - started)

    async def _handle(self, scope: Scope, receive: Receive, reply: "_Reply", handler: PostHandler | None) -> None:
        headers = dict(scope["headers"])
        self._check_token(headers)
        if len(self._deadlines) >= self._limits.max_waiting:
            raise unavailable(f"{len(self._deadlines)} requests are waiting already")
        task = self._deadlines.add()
        try:
            body = await self._body(headers, receive)
            # Requests that arrived at the same time are counted before the first of them is answered.
            await asyncio.sleep(0)
            with self._metrics.time_stage("request"):
                if handler is None:
                    await self._app(scope, _replay(body, receive), reply)
                else:
                    await reply.send(await handler(body))
        except asyncio.CancelledError:
            if not self._deadlines.was_ended(task):
                raise
            raise unavailable(f"no answer within {self._limits.timeout_s:g} s") from None
        finally:
            self._deadlines.remove(task)

    def _check_token(self, headers: Mapping[bytes, bytes]) -> None:
        if self._limits.token is None:
            return
        authorization = headers.get(b"authorization", b"")
        if not hmac.compare_digest(authorization, f"Bearer {self._limits.token}".encode()):
            detail = "This service requires a token: send the header Authorization: Bearer TOKEN."
            raise HttpError(Problem(detail), status=401, headers={"www-authenticate": "Bearer"})

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        max_bytes = self._limits.max_body_bytes
        announced = headers.get(b"content-length", b"0")
        size = int(announced) if announced.isdigit() else 0
        parts: list[bytes] = []
        more = True
        while more and size <= max_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise HttpError(Problem("The connection ended before the body did."), status=400)
            parts.append(message.get("body", b""))
            size = max(size, sum(map(len, parts)))
            more = message.get("more_body", False)
        if size > max_bytes:
            raise HttpError(Problem(f"The body has more than {max_bytes:,} bytes: send less at once."), status=413)
        return b"".join(parts)


class _Reply:
    """The sending side of a request; stores the status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = CLIENT_CLOSED

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

    async def send(self, response: HttpResponse) -> None:
        """Sends a whole response."""
        pairs = [(name.encode(), value.encode()) for name, value in response.headers.items()]
        pairs.append((b"content-length", str(len(response.body)).encode()))
        await self({"type": "http.response.start", "status": response.status, "headers": pairs})
        await self({"type": "http.response.body", "body": response.body})

    async def send_error(self, error: HttpError) -> None:
        """Sends an error, unless a reply has begun: then the client sees the reply end."""
        if self.status == CLIENT_CLOSED:
            await self.send(HttpResponse(error.status, msgspec.json.encode(error.problem), error.headers))


class _Deadlines:
    """The admitted tasks, each ended at its deadline. One timer serves all: one per task costs 30 µs a request."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: dict[asyncio.Task[Any], float] = {}  # oldest first
        self._ended: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._open)

    def add(self) -> asyncio.Task[Any]:
        """Adds the current task."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        self._open[task] = loop.time() + self._timeout_s
        if loop is not self._loop:
            self._loop = loop
            loop.call_later(self._timeout_s, self._end_late, loop)
        return task

    def was_ended(self, task: asyncio.Task[Any]) -> bool:
        """Returns whether the task was canceled at its deadline; if so, the task continues with its error reply."""
        if task in self._ended:
            task.uncancel()
        return task in self._ended

    def remove(self, task: asyncio.Task[Any]) -> None:
        """Removes a task that has replied."""
        self._ended.discard(task)
        del self._open[task]

    def _end_late(self, loop: asyncio.AbstractEventLoop) -> None:
        now, next_time = loop.time(), loop.time() + self._timeout_s
        for task, deadline in self._open.items():
            if deadline > now:
                next_time = deadline
                break
            if task not in self._ended:
                self._ended.add(task)
                task.cancel()
        loop.call_at(next_time, self._end_late, loop)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Returns a receive function that gives the body that was read, then all later messages."""
    left = [body]

    async def replayed() -> Message:
        return {"type": "http.request", "body": left.pop(), "more_body": False} if left else await receive()

    return replayed


def _log_request(route: str, method: str, status: int, seconds: float) -> None:
    logger, level = logging.getLogger(REQUEST_LOG), logging.WARNING if status >= 500 else logging.INFO
    if logger.isEnabledFor(level):
        facts = {"route": route, "method": method, "status": status, "ms": round(1e3 * seconds, 2)}
        logger.log(level, "request", extra={"facts": facts})


def log(message: str, facts: Mapping[str, object] = MappingProxyType({})) -> None:
    """Writes one line to the log of the service."""
    logging.getLogger("twofold.serve").info(message, extra={"facts": facts})


class JsonLines(logging.Formatter):
    """A log format with one JSON object per line: time, level, message, process, and the facts of the message."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns one line."""
        line: dict[str, Any] = {
            "at": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "process": record.process,
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
