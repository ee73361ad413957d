"""Middleware: routing, authentication, body size, concurrency, time limit, and one log line per request.

An error reply is a status and one sentence.
"""

import asyncio
import hmac
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter
from types import MappingProxyType
from typing import Any, Final

from twofold.serve.http_errors import HttpError, internal_error, unavailable
from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.routing import JSON, Access, HttpResponse, Route, RouteTable
from twofold.serve.schemas import MAX_BODY_BYTES, Problem
from twofold.serve.tracing import TRACE, Trace, Tracing, passed_on, request_id

REQUEST_LOG: Final = "twofold.serve.requests"
CLIENT_CLOSED: Final = 499  # nginx's status for a client that disconnected before the reply
ADMIN_TIMEOUT_S: Final = 600.0  # a swap reads the whole bundle
NO_ADMIN: Final = "This route requires the admin token: start the service with TWOFOLD_ADMIN_TOKEN set."

Message = dict[str, Any]
Receive = Callable[[], Any]
Send = Callable[[Message], Any]
Lifespan = Callable[[], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class Limits:
    """Limits of one worker: requests beyond `max_waiting` are refused immediately, those over `timeout_s` are ended.

    `token` is the bearer token that requests must send, `admin_token` that of the routes that change the service or
    read what is known of a user; it is valid for all routes. Without a token everyone may read; without an admin token
    nobody may change anything. `hosts` are the values that the header Host may have, without the port; `None` means
    any: a page of another site can make a browser send requests to a name that leads to this machine.
    """

    token: str | None = None
    admin_token: str | None = None
    hosts: frozenset[str] | None = None
    max_waiting: int = 128
    timeout_s: float = 5.0
    max_body_bytes: int = MAX_BODY_BYTES


class RequestGuard:
    """The ASGI application: every request passes it on its way to a route."""

    def __init__(
        self,
        routes: Sequence[Route],
        limits: Limits,
        metrics: ServiceMetrics,
        *,
        lifespan: Lifespan,
        tracing: Tracing | None = None,
    ) -> None:
        """Starts without waiting requests; `lifespan` is entered when the server starts and left when it stops."""
        self._routes = RouteTable(routes)
        self._limits = limits
        self._metrics = metrics
        self._lifespan = lifespan
        self._tracing = tracing
        self._deadlines = _Deadlines(limits.timeout_s)
        self._admin_deadlines = _Deadlines(ADMIN_TIMEOUT_S)

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Handles one request, or the start and stop of the application."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        started = perf_counter()
        headers = dict(scope["headers"])
        reply = _Reply(send, headers)
        route: Route | None = None
        trace: Trace | None = None
        try:
            self._check_host(headers)
            route, path_id = self._routes.find(scope["method"], scope["path"])
            trace = reply.trace = self._start_trace(headers, route)
            self._check_token(headers, route.access)
            if route.is_limited:
                await self._handle(route, path_id, headers, receive, reply)
            else:
                await reply.send(await route.respond(path_id))
        except HttpError as error:
            await reply.send_error(error)
        except Exception:  # details go to the log only
            facts = {"path": scope["path"], "request": reply.request_id}
            logging.getLogger("twofold.serve").exception("failed", extra={"facts": facts})
            await reply.send_error(internal_error())
        finally:
            if trace is not None and self._tracing is not None:
                self._tracing.end(trace, reply.status)
        label = "none" if route is None else route.path
        self._metrics.count_reply(label, reply.status)
        _log_request(label, scope["method"], reply, perf_counter() - started)

    def _start_trace(self, headers: Mapping[bytes, bytes], route: Route) -> Trace | None:
        """Starts the trace of a request; `None` for pages and probes, and if nobody wants a trace."""
        if route.access == "open":
            trace = None
        elif self._tracing is None:
            trace = passed_on(headers)
        else:
            trace = self._tracing.start(headers, method=route.method, route=route.path)
        TRACE.set(trace)  # also if there is none: a task of uvicorn may inherit that of the request before
        return trace

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        step = "startup"
        try:
            async with self._lifespan():
                await send({"type": "lifespan.startup.complete"})
                step = "shutdown"
                await receive()
        except Exception:
            logging.getLogger("twofold.serve").exception("failed", extra={"facts": {"step": step}})
            await send({"type": f"lifespan.{step}.failed", "message": ""})
            return
        await send({"type": "lifespan.shutdown.complete"})

    async def _handle(
        self, route: Route, path_id: str, headers: Mapping[bytes, bytes], receive: Receive, reply: "_Reply"
    ) -> None:
        if len(self._deadlines) + len(self._admin_deadlines) >= self._limits.max_waiting:
            raise unavailable(f"{len(self._deadlines)} requests are waiting already")
        deadlines = self._admin_deadlines if route.access == "admin" else self._deadlines
        task = deadlines.add()
        try:
            argument = path_id if route.request is None else await self._body(headers, receive)
            # Requests that arrived at the same time are counted before the first of them is answered.
            await asyncio.sleep(0)
            with self._metrics.time_stage("request"):
                await reply.send(await route.respond(argument))
        except asyncio.CancelledError:
            if not deadlines.was_ended(task):
                raise
            raise unavailable(f"no answer within {deadlines.timeout_s:g} s") from None
        finally:
            deadlines.remove(task)

    def _check_host(self, headers: Mapping[bytes, bytes]) -> None:
        if self._limits.hosts is None:
            return
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
        if name not in self._limits.hosts:
            detail = f"This service has no token and answers to {', '.join(sorted(self._limits.hosts))} only, not to"
            raise HttpError(Problem(f"{detail} the host {name[:80]!r}. Set TWOFOLD_TOKEN."), status=403)

    def _check_token(self, headers: Mapping[bytes, bytes], access: Access) -> None:
        limits = self._limits
        if access == "open" or (access == "read" and limits.token is None):
            return
        if access == "admin" and limits.admin_token is None:
            raise HttpError(Problem(NO_ADMIN), status=403)
        scheme, _, sent = headers.get(b"authorization", b"").partition(b" ")
        valid = (limits.admin_token,) if access == "admin" else (limits.token, limits.admin_token)
        is_valid = [
            hmac.compare_digest(sent, token.encode())
            for token in valid
            if token is not None and scheme.lower() == b"bearer"
        ]
        if not any(is_valid):
            detail = "This service requires a token: send the header Authorization: Bearer TOKEN."
            raise HttpError(Problem(detail), status=401, headers={"www-authenticate": "Bearer"})

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != JSON.encode():  # pages of other sites can post text and forms without being asked, but not JSON
            raise HttpError(Problem("Send the header Content-Type: application/json."), status=415)
        max_bytes = self._limits.max_body_bytes
        announced = headers.get(b"content-length", b"0")
        size = int(announced.lstrip(b"0")[:20] or b"0") if announced.isdigit() else 0  # int reads 4,300 digits
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

    def __init__(self, send: Send, headers: Mapping[bytes, bytes]) -> None:
        self._send = send
        self._headers = headers
        self.status = CLIENT_CLOSED
        self.trace: Trace | None = None

    @cached_property
    def request_id(self) -> str:
        """Id of the request: that of its trace, if it has one."""
        return request_id(self._headers) if self.trace is None else self.trace.traceparent.split("-")[1]

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
            await self.send(HttpResponse(error.status, error.body(self.request_id), error.headers))


class _Deadlines:
    """The admitted tasks, each ended at its deadline. One timer serves all: one per task costs 30 µs a request."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: dict[asyncio.Task[Any], float] = {}  # oldest first
        self._ended: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._open)

    def add(self) -> asyncio.Task[Any]:
        """Adds the current task."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        self._open[task] = loop.time() + self.timeout_s
        if loop is not self._loop:
            self._loop = loop
            loop.call_later(self.timeout_s, self._end_late, loop)
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
        now, next_time = loop.time(), loop.time() + self.timeout_s
        for task, deadline in self._open.items():
            if deadline > now:
                next_time = deadline
                break
            if task not in self._ended:
                self._ended.add(task)
                task.cancel()
        loop.call_at(next_time, self._end_late, loop)


def _log_request(route: str, method: str, reply: _Reply, seconds: float) -> None:
    status = reply.status
    logger, level = logging.getLogger(REQUEST_LOG), logging.WARNING if status >= 500 else logging.INFO
    if logger.isEnabledFor(level):
        facts = {"route": route, "method": method, "status": status, "ms": round(1e3 * seconds, 2)}
        logger.log(level, "request", extra={"facts": facts | {"request": reply.request_id}})


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
