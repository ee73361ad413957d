"""Clients of the service in `faults.py`: they post events, request lists, and compare every reply with the truth."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from faults_machine import TOKEN, Service
from faults_truth import ITEMS, K, Live, Truth

from twofold.serve.event_store import LiveEvent

CLIENTS = 6
BATCHED = 6  # batches at once
MAX_LIVE = 400  # events posted for one user; the store holds 500
HANGS_S = 10.0  # the service gives up after 5 s
SETTLED_S = 2.0  # after this time, all workers use the bundle of an acknowledged swap
NEAR_A_KILL_S = 3.0
NO_STORE = "the live history cannot be read now"


@dataclass
class Tally:
    """Counts of replies, failures and faults."""

    replies: Counter[str] = field(default_factory=Counter)
    ms: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unclean: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    unanswered: Counter[str] = field(default_factory=Counter)
    """Requests without a reply, by route."""
    cut: int = 0
    cut_far_from_a_kill: list[str] = field(default_factory=list)
    without_store: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    last_kill: float = -np.inf
    last_resume: float = -np.inf
    """Time at which a stopped worker went on: it may answer from the old bundle until it looks."""
    swaps: list[tuple[float, str]] = field(default_factory=list)
    """Times and bundles of the acknowledged swaps."""
    requested_bundle: str = ""
    """The bundle of a swap that is not acknowledged yet: a worker may use it already."""


@dataclass(frozen=True)
class Client:
    """A client: one connection, the expected lists of each bundle by digest, and the tally."""

    http: httpx.AsyncClient
    truths: dict[str, Truth]
    tally: Tally

    async def post(self, route: str, body: Any) -> Any:
        """Posts a body and returns the reply; `None` means a failure, which is counted."""
        tally, began = self.tally, time.monotonic()
        try:
            reply = await self.http.post(f"/v1/{route}", json=body)
        except httpx.TimeoutException as error:
            tally.unanswered[route] += 1
            since = began - tally.last_kill, began - tally.last_resume
            tally.hung.append(
                f"{route} {type(error).__name__}, s after a kill and a stop: {since[0]:.1f} {since[1]:.1f}"
            )
            return None
        except httpx.TransportError as error:
            tally.unanswered[route] += 1
            tally.cut += 1
            now = time.monotonic()
            if now - tally.last_kill > NEAR_A_KILL_S:
                tally.cut_far_from_a_kill.append(
                    f"{route} {type(error).__name__} {error!s:.100}, {now - began:.1f} s after its begin, s after a "
                    f"kill and a stop: {now - tally.last_kill:.1f} {now - tally.last_resume:.1f}"
                )
            return None
        tally.replies[f"{route} {reply.status_code}"] += 1
        is_slow = route.startswith(("admin/", "recommend:batch"))  # workers open a bundle; a batch is many requests
        tally.ms += [] if is_slow else [1e3 * (time.monotonic() - began)]
        if reply.status_code == 200:
            return reply.json()
        is_clean = reply.status_code == 503 and "retry-after" in reply.headers
        if not is_clean and not (route == "admin/swap" and reply.status_code == 409):
            tally.unclean.append(f"{route} {reply.status_code} {reply.text[:300]}")
        return None

    async def post_events(self, live: Live, draw: random.Random) -> None:
        """Posts new events, or again the events that may not have been stored."""
        if not live.unsure:
            last = live.acknowledged[-1].at if live.acknowledged else 0
            first = max(last + 1, time.time_ns() // 1_000_000)
            kinds = ["positive"] if not live.acknowledged else ["positive", "negative", "met"]
            live.unsure = [
                LiveEvent(str(draw.randrange(ITEMS) + 1), first + offset, draw.choice(kinds))
                for offset in range(draw.randint(1, 3))
            ]
        events = [{"user_id": live.user_id} | event._asdict() for event in live.unsure]
        reply = await self.post("events", {"events": events})
        if reply is not None:
            if reply["accepted"] != len(events):
                self.tally.wrong.append(f"events: {reply}")
            live.acknowledged, live.unsure = live.acknowledged + live.unsure, []

    async def recommend(self, live: Live) -> None:
        """Requests a list and compares it with the expected one."""
        began = time.monotonic()
        reply = await self.post("recommend", {"user_id": live.user_id, "k": K})
        if reply is None:
            return
        is_log_only = any(warning.startswith(NO_STORE) for warning in reply["warnings"])
        self.tally.without_store += is_log_only
        known = [[]] if is_log_only else [live.acknowledged, live.acknowledged + live.unsure]
        truth = self.truth(reply, began)
        if truth is not None and not any(truth.is_right(live.user_id, events, reply) for events in known):
            self.tally.wrong.append(f"recommend {live} {json.dumps(reply)}")

    async def similar(self, item_id: int) -> None:
        """Requests similar items and compares them with the expected ones."""
        began = time.monotonic()
        reply = await self.post("similar", {"item_id": item_id, "k": K})
        truth = None if reply is None else self.truth(reply, began)
        if truth is not None and not truth.is_similar(item_id, reply["items"]):
            self.tally.wrong.append(f"similar {item_id} {json.dumps(reply)}")

    def truth(self, reply: dict[str, Any], began: float) -> Truth | None:
        """Returns the expected lists for the bundle of a reply; an old bundle is wrong after all workers swapped."""
        acknowledged, digest = self.tally.swaps[-1]
        found = self.truths.get(reply["bundle"])
        is_old = began > max(acknowledged, self.tally.last_resume) + SETTLED_S and reply["bundle"] not in (
            digest,
            self.tally.requested_bundle,
        )
        if found is None or is_old:
            since = f"{began - acknowledged:.1f} s after its swap, {began - self.tally.last_kill:.1f} s after a kill"
            self.tally.wrong.append(f"bundle {reply['bundle']}, not {digest}, {since}")
        return found


async def run_client(client: Client, lives: list[Live], until: float, seed: int) -> None:
    """Sends requests one after another, for users that no other client uses."""
    draw = random.Random(seed)
    while time.monotonic() < until:
        live, chance = draw.choice(lives), draw.random()
        if live.unsure or (chance < 0.3 and len(live.acknowledged) < MAX_LIVE):
            await client.post_events(live, draw)
        if chance < 0.9:
            await client.recommend(live)
        else:
            await client.similar(draw.randrange(ITEMS) + 1)
        await asyncio.sleep(draw.uniform(0, 0.08))


@asynccontextmanager
async def connect(service: Service, truths: list[Truth]) -> AsyncIterator[Client]:
    headers, limits = {"authorization": f"Bearer {TOKEN}"}, httpx.Limits(max_connections=CLIENTS + BATCHED + 2)
    where = f"http://127.0.0.1:{service.port}"
    async with httpx.AsyncClient(base_url=where, headers=headers, timeout=HANGS_S, limits=limits) as http:
        tally = Tally(swaps=[(time.monotonic(), truths[0].digest)])
        yield Client(http, {truth.digest: truth for truth in truths}, tally)
