"""Limits on headers and connections, tested with raw sockets."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn

from twofold.serve import http_protocol
from twofold.serve.http_protocol import MAX_HEADER_BYTES, LimitedProtocol, LimitedServer, WholeReply

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bytes]]


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def talk(*talks: Talk) -> list[bytes]:
    """Runs a server and one connection per talk; returns what each received."""

    async def run() -> list[bytes]:
        config = uvicorn.Config(answer, port=0, http=LimitedProtocol, lifespan="off", log_config=None)
        server = LimitedServer(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        connections = [await asyncio.open_connection("127.0.0.1", port) for _ in talks]
        replies = await asyncio.gather(
            *(each(*connection) for each, connection in zip(talks, connections, strict=True))
        )
        for _, writer in connections:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        server.should_exit = True
        await serving
        return list(replies)

    return asyncio.run(asyncio.wait_for(run(), 30))


async def receive(reader: asyncio.StreamReader) -> bytes:
    """Returns all that arrives before the end of the connection, or within 3 s."""
    received = b""
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(3):
            while piece := await reader.read(2**16):
                received += piece
    return received


def sending(*pieces: bytes) -> Talk:
    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        reply = asyncio.create_task(receive(reader))  # a reset connection loses what was not read before
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.01)
        return await reply

    return send


START = b"GET /health HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        (START + b"x: ", *[b"a" * 16_384] * 40),  # one header without end
        (START, *[b"x: a\r\n" * 2_000] * 40),
        (START + b"x: " + b"a" * (MAX_HEADER_BYTES + 1) + b"\r\n\r\n",),  # complete, in one piece
    ],
    ids=["endless", "many", "whole"],
)
def test_headers_beyond_the_limit_are_431(pieces: tuple[bytes, ...]) -> None:
    (reply,) = talk(sending(*pieces))
    assert reply.startswith(b"HTTP/1.1 431 ")
    assert b"The headers have more than 32,768 bytes." in reply


def test_headers_that_do_not_arrive_are_408_and_other_connections_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEADERS_TIMEOUT_S", 0.2)

    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(START + b"\r\n")
        await asyncio.sleep(1)
        writer.write(START + b"\r\n")
        await asyncio.sleep(0.5)
        writer.write(START + b"connection: close\r\n\r\n")
        return await receive(reader)

    silent, half, after_one, good = talk(sending(), sending(START), sending(START + b"\r\n", START), twice)
    assert silent.startswith(b"HTTP/1.1 408 ")
    assert half.startswith(b"HTTP/1.1 408 ")
    assert [after_one.count(status) for status in (b"HTTP/1.1 200 ", b"HTTP/1.1 408 ")] == [1, 1]
    assert good.count(b"HTTP/1.1 200 ") == 3


def test_a_large_body_is_no_header() -> None:
    post = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 200000\r\n\r\n"
    (reply,) = talk(sending(post + b"a" * 100_000, b"a" * 100_000))
    assert reply.startswith(b"HTTP/1.1 200 ")


def test_connections_beyond_the_limit_are_503(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "MAX_CONNECTIONS", 2)
    whole = sending(START + b"connection: close\r\n\r\n")
    replies = talk(whole, whole, whole)
    assert sorted(reply[:13] for reply in replies) == [b"HTTP/1.1 200 ", b"HTTP/1.1 200 ", b"HTTP/1.1 503 "]
    assert b"retry-after: 1" in max(replies)


def test_what_is_no_http_is_400_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    (reply,) = talk(sending(b"\x16\x03\x01 hello\r\n\r\n"))
    assert reply.startswith(b"HTTP/1.1 400 ")
    assert b"This is not an HTTP request." in reply


class Written:
    """A transport that keeps what is written to it."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.pieces.append(data)

    def close(self) -> None:
        self.pieces.append(b"closed")

    def is_closing(self) -> bool:
        return b"closed" in self.pieces


def test_headers_leave_with_the_beginning_of_the_body() -> None:
    written = Written()
    reply = WholeReply(written)
    reply.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    reply.write(b"HTTP/1.1 200 OK\r\n\r\n")
    assert written.pieces == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    reply.write(b"first")
    reply.write(b"second")
    assert written.pieces[1:] == [b"HTTP/1.1 200 OK\r\n\r\nfirst", b"second"]
    assert not reply.is_closing()
    reply.close()
    assert reply.is_closing()


def test_headers_without_a_body_are_not_sent() -> None:
    written = Written()
    reply = WholeReply(written)
    reply.write(b"HTTP/1.1 200 OK\r\n\r\n")
    reply.close()
    assert written.pieces == [b"closed"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_reply_to_head_has_its_headers_and_connections_stay_open(method: str) -> None:
    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        received = b""
        for _ in range(2):
            writer.write(f"{method} / HTTP/1.1\r\nhost: a\r\n\r\n".encode())
            received += await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            received += b"" if method == "HEAD" else await asyncio.wait_for(reader.readexactly(2), 10)
        return received

    (received,) = talk(twice)
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert received.count(b"ok") == (0 if method == "HEAD" else 2)
