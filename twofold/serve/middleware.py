"""What every request passes before its route: who it is, how large, how many at once, how long; and one line of log.

A refusal is a status and one sentence. Routes for people and for machines that watch (`OPEN`) pass without a token and
without waiting. Questions that are posted are answered from here, bytes for bytes: on their way through an application
they would spend half as long again as in ours.
"""

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final, NamedTuple

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.schemas import MOST_BODY, Problem, WireError, internal_error, unavailable

OPEN: Final = frozenset(("/", "/docs", "/openapi.json", "/health", "/ready", "/metrics"))
REQUESTS: Final = "twofold.serve.requests"
NO_REPLY: Final = 499  # nginx's word for a client that left first


@dataclass(frozen=True)
class Limits:
    """What one worker takes on. Beyond `most_waiting` a request is refused at once, beyond `timeout_s` in the end."""

    token: str | None = None
    most_waiting: int = 128
    timeout_s: float = 5.0
    most_body: int = MOST_BODY


class Answered(NamedTuple):
    """What is replied."""

    status: int
    body: bytes
    headers: Mapping[str, str]


Posted = Callable[[bytes], Awaitable[Answered]]
"""Answers the body of a POST."""


class RequestGuard:
    """Wraps an application; what is posted to a path of `posted` does not reach it."""

    def __init__(self, app: ASGIApp, limits: Limits, meters: ServiceMetrics, *, posted: Mapping[str, Posted]) -> None:
        """Lets requests through."""
        self._app = app
        self._limits = limits
        self._meters = meters
        self._posted = posted
        self._deadlines = _Deadlines(limits.timeout_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the application's start and stop."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        reply = _Reply(send)
        started = perf_counter()
        path = scope["path"]
        answer = self._posted.get(path) if scope["method"] == "POST" else None
        try:
            if path in OPEN:
                await self._app(scope, receive, reply)
            else:
                await self._admitted(scope, receive, reply, answer)
        except WireError as error:
            await reply.refuse(error)
        except Exception:  # what it was is for the log alone
            logging.getLogger("twofold.serve").exception("failed", extra={"facts": {"path": path}})
            await reply.refuse(internal_error())
        route = path if answer is not None else getattr(scope.get("route"), "path", "none")
        self._meters.replied(route, reply.status)
        requests = logging.getLogger(REQUESTS)
        level = logging.WARNING if reply.status >= 500 else logging.INFO
        if requests.isEnabledFor(level):
            ms = round(1e3 * (perf_counter() - started), 2)
            facts = {"route": route, "method": scope["method"], "status": reply.status, "ms": ms}
            requests.log(level, "request", extra={"facts": facts})

    async def _admitted(self, scope: Scope, receive: Receive, reply: "_Reply", answer: Posted | None) -> None:
        headers = dict(scope["headers"])
        self._check_token(headers)
        if len(self._deadlines) >= self._limits.most_waiting:
            raise unavailable(f"{len(self._deadlines)} requests are waiting already")
        task = self._deadlines.begin()
        try:
            body = await self._body(headers, receive)
            # Those that came at the same time are counted before the first of them is answered.
            await asyncio.sleep(0)
            with self._meters.stage("request"):
                if answer is None:
                    await self._app(scope, _replay(body, receive), reply)
                else:
                    await reply.whole(await answer(body))
        except asyncio.CancelledError:
            if not self._deadlines.has_ended(task):
                raise
            raise unavailable(f"no answer within {self._limits.timeout_s:g} s") from None
        finally:
            self._deadlines.forget(task)

    def _check_token(self, headers: Mapping[bytes, bytes]) -> None:
        if self._limits.token is None:
            return
        given = headers.get(b"authorization", b"")
        if not hmac.compare_digest(given, f"Bearer {self._limits.token}".encode()):
            detail = "This service wants a token: send the header Authorization: Bearer TOKEN."
            raise WireError(Problem(detail), status=401, headers={"www-authenticate": "Bearer"})

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        most = self._limits.most_body
        announced = headers.get(b"content-length", b"0")
        size = int(announced) if announced.isdigit() else 0
        parts: list[bytes] = []
        more = True
        while more and size <= most:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise WireError(Problem("The connection ended before the body did."), status=400)
            parts.append(message.get("body", b""))
            size = max(size, sum(map(len, parts)))
            more = message.get("more_body", False)
        if size > most:
            raise WireError(Problem(f"The body has more than {most:,} bytes: send less at once."), status=413)
        return b"".join(parts)


class _Reply:
    """Passes a reply on, and remembers its status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = NO_REPLY

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

    async def whole(self, answered: Answered) -> None:
        """All of a reply."""
        pairs = [(name.encode(), value.encode()) for name, value in answered.headers.items()]
        pairs.append((b"content-length", str(len(answered.body)).encode()))
        await self({"type": "http.response.start", "status": answered.status, "headers": pairs})
        await self({"type": "http.response.body", "body": answered.body})

    async def refuse(self, error: WireError) -> None:
        """Nothing where a reply has begun: the client sees it end."""
        if self.status == NO_REPLY:
            await self.whole(Answered(error.status, msgspec.json.encode(error.problem), error.headers))


class _Deadlines:
    """The tasks that are let in, each ended when its time is up. One timer for all: one each costs 30 µs a request."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: dict[asyncio.Task[Any], float] = {}  # the oldest first
        self._ended: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._open)

    def begin(self) -> asyncio.Task[Any]:
        """Counts the task that asks."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        self._open[task] = loop.time() + self._timeout_s
        if loop is not self._loop:
            self._loop = loop
            loop.call_later(self._timeout_s, self._look, loop)
        return task

    def has_ended(self, task: asyncio.Task[Any]) -> bool:
        """Whether it was cancelled from here; if so, it goes on with its refusal."""
        if task in self._ended:
            task.uncancel()
        return task in self._ended

    def forget(self, task: asyncio.Task[Any]) -> None:
        """It has been answered, or refused."""
        self._ended.discard(task)
        del self._open[task]

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now, following = loop.time(), loop.time() + self._timeout_s
        for task, deadline in self._open.items():
            if deadline > now:
                following = deadline
                break
            if task not in self._ended:
                self._ended.add(task)
                task.cancel()
        loop.call_at(following, self._look, loop)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receive that hands over what was read, then whatever comes after it."""
    left = [body]

    async def replayed() -> Message:
        return {"type": "http.request", "body": left.pop(), "more_body": False} if left else await receive()

    return replayed


class JsonLines(logging.Formatter):
    """A line of log as one JSON object: moment, level, message, and what else is known."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
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
