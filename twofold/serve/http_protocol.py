"""HTTP protocol and server of uvicorn with limits on what arrives before a request: headers and open connections.

uvicorn limits neither the bytes nor the time of headers: one endless header costs time quadratic in its length, and
half-sent requests hold their connections forever.
"""

import time
from http import HTTPStatus
from secrets import token_hex
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from twofold.serve.http_errors import PROBLEM_JSON, RETRY_AFTER_S, problem_body
from twofold.serve.schemas import Problem

MAX_HEADER_BYTES: Final = 2**15  # counted from the second piece of data on, so at most one piece (256 KB) more
HEADERS_TIMEOUT_S: Final = 5.0  # from the connection, or the first byte of a later request, to the end of its headers
MAX_CONNECTIONS: Final = 4_096  # of one worker
# Longer than a client or proxy keeps an idle connection (httpx 5 s, nginx 60 s): whoever closes first cannot send a
# request into a connection that the other one closes at that moment.
KEEP_ALIVE_S: Final = 75
_CONTINUE: Final = b"HTTP/1.1 100 "
TICKS_PER_CHECK: Final = 5  # ticks of uvicorn's main loop take 0.1 s


class LimitedProtocol(HttpToolsProtocol):
    """One connection. Refusals are 400, 408, 431 or 503 with one sentence; then the connection is closed."""

    def connection_made(self, transport: Any) -> None:
        """Refuses a connection beyond the limit."""
        super().connection_made(transport)
        self._refusal: tuple[int, str] | None = None
        self._header_bytes = self._piece_bytes = 0
        self._headers_since: float | None = time.monotonic()
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(503, f"There are {MAX_CONNECTIONS:,} connections already: try again in {RETRY_AFTER_S} s.")

    def data_received(self, data: bytes) -> None:
        """Counts the bytes of headers that are not complete."""
        self._piece_bytes = len(data)
        is_in_headers = self._headers_since is not None
        super().data_received(data)
        if is_in_headers and self._headers_since is not None and not self.transport.is_closing():
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self._refuse(431, f"The headers have more than {MAX_HEADER_BYTES:,} bytes.")

    def on_message_begin(self) -> None:
        """Starts the time and the count of the headers."""
        super().on_message_begin()
        self._header_bytes = 0
        self._headers_since = time.monotonic()

    def on_headers_complete(self) -> None:
        """Stops the time; headers that arrived in one large piece are counted now."""
        self._headers_since = None
        if self._piece_bytes > MAX_HEADER_BYTES:
            size = sum(len(name) + len(value) for name, value in self.headers)
            if size > MAX_HEADER_BYTES:
                self._refusal = (431, f"The headers have more than {MAX_HEADER_BYTES:,} bytes.")
                raise ValueError  # the parser passes it on to uvicorn, which calls send_400_response
        earlier = self.cycle
        super().on_headers_complete()
        if self.cycle is not earlier and self.cycle.scope["method"] != "HEAD":  # a reply to HEAD has no body
            reply: Any = WholeReply(self.transport)  # all of a transport that uvicorn's cycle calls
            self.cycle.transport = reply

    def send_400_response(self, msg: str) -> None:
        """Sends a refusal, of status 400 unless another reason is known."""
        status, detail = self._refusal or (400, "This is not an HTTP request.")
        self._refuse(status, detail)

    def end_if_late(self, now: float) -> None:
        """Refuses a request whose headers have not arrived in time."""
        if self._headers_since is not None and now - self._headers_since > HEADERS_TIMEOUT_S:
            self._refuse(408, f"The headers did not arrive within {HEADERS_TIMEOUT_S:g} s.")

    def _refuse(self, status: int, detail: str) -> None:
        body = problem_body(Problem(detail), status=status, request_id=token_hex(16))
        again = f"retry-after: {RETRY_AFTER_S}\r\n" if status == 503 else ""
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {PROBLEM_JSON}\r\n{again}"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self._headers_since = None
        if not self.transport.is_closing():
            self.transport.write(head.encode() + body)
            self.transport.close()


class WholeReply:
    """The transport of one reply, which sends the headers together with the beginning of the body.

    uvicorn writes them apart. A process that is killed in between leaves a reply of which a proxy has the headers, so
    the proxy cannot send the request to another service.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._headers = b""
        self._has_begun = False

    def write(self, data: bytes) -> None:
        """Keeps the headers until the next piece, and sends all else at once."""
        if self._has_begun or data.startswith(_CONTINUE):
            self._transport.write(data)
        elif not self._headers:
            self._headers = data
        else:
            self._has_begun = True
            self._transport.write(self._headers + data)

    def close(self) -> None:
        """Closes the connection; headers without a body are not sent."""
        self._transport.close()

    def is_closing(self) -> bool:
        """Returns whether the connection is closed or closing."""
        return bool(self._transport.is_closing())


class LimitedServer(uvicorn.Server):
    """A server that ends late requests. One check serves all connections: a timer each costs 30 µs a request."""

    async def on_tick(self, counter: int) -> bool:
        """Checks the connections now and then, and returns whether the server should stop."""
        if counter % TICKS_PER_CHECK == 0:
            now = time.monotonic()
            for connection in list(self.server_state.connections):
                if isinstance(connection, LimitedProtocol):
                    connection.end_if_late(now)
        return await super().on_tick(counter)
