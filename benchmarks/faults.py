"""Tests a service under faults: killed workers, a failing store, swaps of bundles and a full disk.

    python benchmarks/faults.py [seconds a store] [--to FILE]     (default: 600, faults.json beside this file)

Claim: under load, with a worker killed every 20 s, a bundle swapped every 30 s (each third one damaged), Redis stopped,
killed or frozen every 45 s and the disk filled every 60 s: no wrong list, no acknowledged event lost, every failure a
503 with Retry-After (409 for the damaged bundle), no request that hangs. A request whose worker is killed loses its
connection: these are counted separately, and may happen near a kill only.

Two trials of two workers: histories in SQLite, and in Redis (`appendonly yes`, `appendfsync always`). The disk is a
file system of 48 MB in memory; mounting it takes root. `faults_truth.py` computes the expected lists.
"""

import asyncio
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from faults_machine import TOKEN, WORKERS, Disk, RedisServer, Service
from faults_truth import ITEMS, UNKNOWN_USERS, USERS, K, Live, Truth, read_truth
from serve_bundle import write_run

from twofold.serve.event_store import LiveEvent, open_histories

HERE = Path(__file__).parent
CLIENTS = 6
MAX_LIVE = 400  # events posted for one user; the store holds 500
HANGS_S = 10.0  # the service gives up after 5 s
SETTLED_S = 5.0  # after this time, all workers use the bundle of an acknowledged swap
NEAR_A_KILL_S = 3.0
NO_STORE, DAMAGED = "the live history cannot be read now", "damaged"


# --- clients ----------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """Counts of replies, failures and faults."""

    replies: Counter[str] = field(default_factory=Counter)
    ms: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unclean: list[str] = field(default_factory=list)
    hung: int = 0
    cut: int = 0
    cut_far_from_a_kill: int = 0
    without_store: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    last_kill: float = -np.inf
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
        except httpx.TimeoutException:
            tally.hung += 1
            return None
        except httpx.TransportError:
            tally.cut += 1
            tally.cut_far_from_a_kill += time.monotonic() - tally.last_kill > NEAR_A_KILL_S
            return None
        tally.replies[f"{route} {reply.status_code}"] += 1
        tally.ms += [] if route == "admin/swap" else [1e3 * (time.monotonic() - began)]  # workers open a bundle
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
        is_old = began > acknowledged + SETTLED_S and reply["bundle"] not in (digest, self.tally.requested_bundle)
        if found is None or is_old:
            self.tally.wrong.append(f"bundle {reply['bundle']}, not {digest}")
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


# --- the trial --------------------------------------------------------------------------------------------------------


async def every(seconds: float, until: float, act: Callable[[int], Awaitable[None]]) -> None:
    """Repeats an action, without a pause if the last one took longer, and not near the end, so that faults heal."""
    began, turn = time.monotonic(), 0
    while (due := began + (turn + 1) * seconds) + seconds < until:
        await asyncio.sleep(due - time.monotonic())
        await act(turn)
        turn += 1


@dataclass(frozen=True)
class Trial:
    """A service with its store, and the faults injected into them."""

    service: Service
    disk: Disk
    redis: RedisServer | None
    client: Client
    seconds: float

    async def kill(self, turn: int) -> None:
        """Kills a worker, after the one killed before has been replaced."""
        async with asyncio.timeout(120):
            while not self.service.kill_one():
                await asyncio.sleep(0.1)
        self.tally.last_kill = time.monotonic()
        self.tally.faults["workers killed"] += 1

    async def swap(self, turn: int) -> None:
        """Swaps to the other bundle; each third time to a damaged one, which is refused."""
        digest = self.tally.swaps[-1][1]
        (other,) = (truth for truth in self.client.truths.values() if truth.digest != digest)
        name = DAMAGED if turn % 3 == 2 else other.name
        self.tally.requested_bundle = digest if name == DAMAGED else other.digest
        refused = self.tally.replies["admin/swap 409"]
        while (reply := await self.client.post("admin/swap", {"run": name})) is None:
            if self.tally.replies["admin/swap 409"] > refused:
                break
            await asyncio.sleep(0.1)
        self.tally.faults[f"swaps to {'a damaged' if name == DAMAGED else 'another'} bundle"] += 1
        if (reply is None) != (name == DAMAGED):
            self.tally.wrong.append(f"swap to {name}: {reply}")
        if reply is not None:
            self.tally.swaps.append((time.monotonic(), reply["bundle"]))

    async def break_redis(self, turn: int) -> None:
        """Stops, kills or freezes Redis, then heals it."""
        assert self.redis is not None
        number = (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP)[turn % 3]
        self.redis.signal(number)
        self.tally.faults[f"Redis {number.name}"] += 1
        await asyncio.sleep(min(5, self.seconds / 10))
        await asyncio.to_thread(self.redis.heal)

    async def fill_disk(self, turn: int) -> None:
        """Fills the disk for a while."""
        await asyncio.to_thread(self.disk.fill)
        self.tally.faults["disk filled"] += 1
        await asyncio.sleep(min(8, self.seconds / 10))
        self.disk.free()
        if self.redis is not None:
            await asyncio.to_thread(self.redis.heal)

    @property
    def tally(self) -> Tally:
        """Counts so far."""
        return self.client.tally

    async def run(self, lives: list[Live]) -> None:
        """Runs load and faults together; then heals everything and checks the list of each user."""
        until, seconds = time.monotonic() + self.seconds, self.seconds
        clients = [run_client(self.client, lives[number::CLIENTS], until, number) for number in range(CLIENTS)]
        faults = [
            every(min(20, seconds / 6), until, self.kill),
            every(min(30, seconds / 5), until, self.swap),
            every(min(60, seconds / 3), until, self.fill_disk),
        ]
        if self.redis is not None:
            faults.append(every(min(45, seconds / 5), until, self.break_redis))
        await asyncio.gather(*clients, *faults)
        self.disk.free()
        if self.redis is not None:
            self.redis.heal()
        await asyncio.sleep(2)
        for live in lives:
            await self.client.recommend(live)


async def lost_events(histories: str, lives: list[Live]) -> tuple[int, int]:
    """Returns the number of acknowledged events, and of those that the store does not hold as acknowledged."""
    store = open_histories(histories)
    found = await store.read([str(live.user_id) for live in lives])
    await store.close()
    lost = sum(len(set(live.acknowledged) - set(held)) for live, held in zip(lives, found, strict=True))
    return sum(len(live.acknowledged) for live in lives), lost


@asynccontextmanager
async def connect(service: Service, truths: list[Truth]) -> AsyncIterator[Client]:
    headers, limits = {"authorization": f"Bearer {TOKEN}"}, httpx.Limits(max_connections=CLIENTS + 1)
    where = f"http://127.0.0.1:{service.port}"
    async with httpx.AsyncClient(base_url=where, headers=headers, timeout=HANGS_S, limits=limits) as http:
        tally = Tally(swaps=[(time.monotonic(), truths[0].digest)])
        yield Client(http, {truth.digest: truth for truth in truths}, tally)


async def run_trial(name: str, seconds: float, folder: Path) -> dict[str, Any]:
    """Runs one trial with a store, from the first worker to the check of the last event."""
    runs = [
        write_run(folder / "runs" / run, items=ITEMS, users=USERS, seed=seed) for seed, run in enumerate(("a", "b"))
    ]
    shutil.copytree(runs[0], damaged := folder / "runs" / DAMAGED)
    (damaged / "index" / "item_vectors.npy").write_bytes(b"cut")
    lives = [Live(number + 1) for number in range(USERS + UNKNOWN_USERS)]
    with ExitStack() as opened:
        disk = opened.enter_context(closing(Disk(folder / "disk")))
        redis = opened.enter_context(closing(RedisServer(disk.folder))) if name == "redis" else None
        histories = redis.url if redis is not None else str(disk.folder / "histories.db")
        service = opened.enter_context(closing(Service(runs[0], histories, disk.folder)))
        async with connect(service, [read_truth(run) for run in runs]) as client:
            await Trial(service, disk, redis, client, seconds).run(lives)
        exit_code = service.stop()
        if redis is not None:  # events that are not on its disk are lost now
            redis.signal(signal.SIGKILL)
            redis.heal()
        acknowledged, lost = await lost_events(histories, lives)
    after = {"events_acknowledged": acknowledged, "events_lost": lost, "exit_code": exit_code}
    return figures(client.tally, service) | after


def figures(tally: Tally, service: Service) -> dict[str, Any]:
    """Returns the tally as JSON, with the first few errors."""
    exits = Counter(str(line["exit"]) for line in service.logged("worker replaced"))
    return {
        "faults": dict(tally.faults),
        "replies": dict(sorted(tally.replies.items())),
        "lists_of_the_log_alone": tally.without_store,
        "wrong": len(tally.wrong),
        "unclean": len(tally.unclean),
        "hung": tally.hung,
        "cut_by_a_kill": tally.cut,
        "cut_far_from_a_kill": tally.cut_far_from_a_kill,
        "workers_replaced_by_exit": dict(exits),
        "ms": {f"p{part}": round(float(np.percentile(tally.ms, part)), 1) for part in (50, 99, 100)},
        "first_wrong": tally.wrong[:3],
        "first_unclean": tally.unclean[:3],
    }


def main(seconds: float = 600, to: Path = HERE / "faults.json") -> None:
    """Prints and writes the results; the exit code is 1 if the claim is false."""
    stores = {}
    for name in ("sqlite", "redis"):
        folder = Path(tempfile.mkdtemp(prefix="twofold-faults-"))
        stores[name] = asyncio.run(run_trial(name, seconds, folder))
        shutil.rmtree(folder)
        print(name, json.dumps(stores[name], indent=1))
    saved = {
        "claim": "no wrong answer, no acknowledged event lost, every failure a clean status",
        "seconds_a_store": seconds,
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True
        ).stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_average": os.getloadavg(),
        "versions": {name: version(name) for name in ("uvicorn", "redis")},
        "workers": WORKERS,
        "clients": CLIENTS,
        "stores": stores,
    }
    to.write_text(json.dumps(saved, indent=1) + "\n")
    bad = ("wrong", "unclean", "hung", "cut_far_from_a_kill", "events_lost", "exit_code")
    sys.exit(any(found[name] for found in stores.values() for name in bad))


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            main()
        case [seconds]:
            main(float(seconds))
        case [seconds, "--to", to]:
            main(float(seconds), Path(to))
        case _:
            raise SystemExit(__doc__)
