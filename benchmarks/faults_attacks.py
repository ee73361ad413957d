"""Attacks on the service in `faults.py`: endless headers, half-open connections, batches of full cost, item updates."""

import asyncio
import socket
import time
from contextlib import suppress

from faults_clients import BATCHED, Client, Tally
from faults_truth import ITEMS, USERS, K

UPDATED_ITEMS = 100  # of one request
MAX_BATCH = 20_000  # items of all lists of a batch
HEADER_BYTES = 2**24
ENDED_S = 20.0  # in which the service must have ended half-open connections; it waits 5 s for headers


async def send_endless_header(port: int, tally: Tally) -> None:
    """Sends one header without an end; the service must refuse it."""
    reply = await asyncio.to_thread(_endless_header, port)
    tally.faults["endless headers"] += 1
    if not reply.startswith((b"HTTP/1.1 431", b"HTTP/1.1 503")) and reply:
        tally.unclean.append(f"endless header: {reply[:100]!r}")


def _endless_header(port: int) -> bytes:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        with suppress(ConnectionError):
            connection.sendall(b"GET /health HTTP/1.1\r\nX: ")
            for _ in range(HEADER_BYTES // 2**12):
                connection.sendall(b"a" * 2**12)
            raise SystemExit(f"the service has read a header of {HEADER_BYTES:,} bytes")
        return connection.recv(200)
    return b""  # reset, or cut by a kill


async def open_halves(port: int, number: int, tally: Tally) -> None:
    """Opens many connections with half a request each; the service must have ended all of them soon."""
    left, opened = await asyncio.to_thread(_half_open, port, number)
    tally.faults["half-open connections"] += opened
    if left:
        tally.unclean.append(f"{left} of {opened} half-open connections lived longer than {ENDED_S:g} s")


def _half_open(port: int, number: int) -> tuple[int, int]:
    """Returns how many of the opened connections still live after a while, and how many were opened."""
    opened = []
    for _ in range(number):
        connection = socket.socket()
        connection.settimeout(5)
        try:
            connection.connect(("127.0.0.1", port))
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        except OSError:  # the service accepts no more now, or a worker was killed
            connection.close()
        else:
            opened.append(connection)
    end, alive = time.monotonic() + ENDED_S, list(opened)
    while alive and time.monotonic() < end:
        time.sleep(0.5)
        alive = [connection for connection in alive if not _has_ended(connection)]
    for connection in opened:
        connection.close()
    return len(alive), len(opened)


def _has_ended(connection: socket.socket) -> bool:
    """Reads a refusal; returns whether the other side has closed the connection."""
    connection.setblocking(False)
    try:
        while connection.recv(2**12):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


async def send_full_batches(client: Client) -> None:
    """Sends batches of the largest allowed cost, all at once; each is answered whole, or refused with 503."""
    users = MAX_BATCH // K
    body = {"user_ids": [1 + number % USERS for number in range(users)], "k": K}
    replies = await asyncio.gather(*(client.post("recommend:batch", body) for _ in range(BATCHED)))
    client.tally.faults["batches of full cost"] += BATCHED
    for reply in replies:
        if reply is not None and [len(answer["items"]) for answer in reply["answers"]] != [K] * users:
            client.tally.wrong.append("a batch lacks items")


async def update_items(client: Client, turn: int) -> None:
    """Upserts items as they are: lists must stay the same, and what the workers share must not grow."""
    first = turn * UPDATED_ITEMS % (ITEMS // 4)
    items = [{"item_id": first + number + 1} for number in range(UPDATED_ITEMS)]
    reply = await client.post("admin/items", {"upsert": items})
    client.tally.faults["items updated"] += UPDATED_ITEMS
    if reply is not None and (reply["upserted"], reply["items"]) != (UPDATED_ITEMS, ITEMS):
        client.tally.wrong.append(f"items: {reply}")
