"""What every request passes before its route: who it is, how large, how many at once, how long; and one line of log.

A refusal is a status and one sentence. Routes for people and for machines that watch (`OPEN`) pass without a token and
without waiting.
"""

import asyncio
import hmac
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twofold.serve.meters import Meters
from twofold.serve.wire import MOST_BODY, Problem, WireError, try_again

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


class Gate:
    """Wraps an application. `waiting` counts the requests that are let in and not answered."""

    def __init__(self, app: ASGIApp, limits: Limits, meters: Meters) -> None:
        """Lets requests through to `app`."""
        self._app = app
        self._limits = limits
        self._meters = meters
        self.waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the application's start and stop."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        reply = _Reply(send)
        started = perf_counter()
        try:
            if scope["path"] in OPEN:
                await self._app(scope, receive, reply)
            else:
                await self._admitted(scope, receive, reply, started)
        except WireError as error:
            await reply.refuse(error)
        except Exception:  # it has been answered with a 500; what it was is for the log alone
            logging.getLogger("twofold.serve").exception("failed", extra={"facts": {"path": scope["path"]}})
        route = getattr(scope.get("route"), "path", "none")
        self._meters.replied(route, reply.status)
        requests = logging.getLogger(REQUESTS)
        level = logging.WARNING if reply.status >= 500 else logging.INFO
        if requests.isEnabledFor(level):
            ms = round(1e3 * (perf_counter() - started), 2)
            facts = {"route": route, "method": scope["method"], "status": reply.status, "ms": ms}
            requests.log(level, "request", extra={"facts": facts})

    async def _admitted(self, scope: Scope, receive: Receive, reply: "_Reply", started: float) -> None:
        headers = dict(scope["headers"])
        self._check_token(headers)
        if self.waiting >= self._limits.most_waiting:
            raise try_again(f"{self.waiting} requests are waiting already")
        self.waiting += 1
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                body = await self._body(headers, receive)
                # Those that came at the same time are counted before the first of them is answered.
                await asyncio.sleep(0)
                with self._meters.stage("request"):
                    await self._app(scope, _replay(body, receive), reply)
        except TimeoutError:
            raise try_again(f"no answer within {self._limits.timeout_s:g} s") from None
        finally:
            self.waiting -= 1

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

    async def refuse(self, error: WireError) -> None:
        """Nothing where a reply has begun: the client sees it end."""
        if self.status != NO_REPLY:
            return
        body = msgspec.json.encode(error.problem)
        headers = error.headers | {"content-length": str(len(body))}
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": error.status, "headers": pairs})
        await self({"type": "http.response.body", "body": body})


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
