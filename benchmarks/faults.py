"""Tests a service under faults: killed and stopped workers, a failing store, swaps of bundles, a full disk, attacks.

    python benchmarks/faults.py [seconds a store] [--to FILE]     (default: 600, faults.json beside this file)

Claim: under load, with a worker killed every 20 s, one stopped for 3 s every 50 s, a bundle swapped every 30 s (to
another run, to a damaged one, by a link, to other content of the same inputs, and while its folder is away for 2 s),
Redis stopped, killed or frozen every 45 s, the disk filled every 60 s, an endless header every 7 s, 10,000 half-open
connections every 100 s, six batches of full cost every 15 s and 100 items updated every second: no wrong list, no
acknowledged event lost, every failure a 503 with Retry-After (409 for a bundle that cannot be opened), no request that
hangs, and no answer from a bundle that was replaced more than 2 s ago. A request whose worker is killed loses its
connection: these are counted separately, and may happen near a kill only. If a trial fails, `log_of_a_failure` has the
lines of the service's log that explain it: tracebacks, replies of status 500, workers and swaps.

Two trials of two workers: histories in SQLite, and in Redis (`appendonly yes`, `appendfsync always`). The disk is a
file system of 48 MB in memory, and the service sees a /dev/shm of 40 MB; mounting them takes root. `faults_truth.py`
computes the expected lists.
"""

import asyncio
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from faults_attacks import open_halves, send_endless_header, send_full_batches, update_items
from faults_clients import CLIENTS, Client, Tally, connect, run_client
from faults_machine import WORKERS, Disk, RedisServer, Service, lines_about_failures
from faults_truth import ITEMS, UNKNOWN_USERS, USERS, Live, read_truth
from serve_bundle import write_run

from twofold.run_folder import MANIFEST
from twofold.serve.event_store import open_histories

HERE = Path(__file__).parent
DAMAGED, LINK = "damaged", "link"
HALF_OPEN = 10_000
BAD = ("wrong", "unclean", "hung", "cut_far_from_a_kill", "events_lost", "exit_code")


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
    memory_mb: list[float] = field(default_factory=list)

    async def kill(self, turn: int) -> None:
        """Kills a worker, after the one killed before has been replaced."""
        async with asyncio.timeout(120):
            while not self.service.kill_one():
                await asyncio.sleep(0.1)
        self.tally.last_kill = time.monotonic()
        self.tally.faults["workers killed"] += 1

    async def stop_for_a_while(self, turn: int) -> None:
        """Stops a worker (SIGSTOP), and lets it go on before the supervisor takes it for dead."""
        process = self.service.alive()[0]
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGSTOP)
            await asyncio.sleep(min(3, self.seconds / 10))
            os.kill(process, signal.SIGCONT)
        self.tally.last_resume = time.monotonic()
        self.tally.faults["workers stopped"] += 1

    async def swap(self, turn: int) -> None:
        """Swaps to another bundle in one of five ways; one to a damaged bundle is refused."""
        truths, digest = self.client.truths, self.tally.swaps[-1][1]
        first, second, same_inputs = truths.values()
        way = ("by name", "damaged", "by link", "same inputs", "folder away")[turn % 5]
        other = first if digest != first.digest else same_inputs if way == "same inputs" else second
        name = {"damaged": DAMAGED, "by link": LINK}.get(way, other.name)
        if way == "by link":
            link = self.service.runs / "link.new"
            link.symlink_to(self.service.runs / other.name)
            link.replace(self.service.runs / LINK)
        self.tally.requested_bundle = digest if way == "damaged" else other.digest
        unanswered = self.tally.unanswered["admin/swap"]
        if way == "folder away":
            reply, _ = await asyncio.gather(self._swap_to(name), self._move_away(self.service.runs / name))
        else:
            reply = await self._swap_to(name)
        self.tally.faults[f"swaps, {way}"] += 1
        if (reply is None) != (way == "damaged") and way != "folder away":
            self.tally.wrong.append(f"swap to {name}, {way}: {reply}")
        if reply is None:
            # A swap whose connection was cut may have been made before it was tried again: both bundles are right.
            if self.tally.unanswered["admin/swap"] == unanswered:
                self.tally.requested_bundle = digest
        elif reply["bundle"] != other.digest:
            self.tally.wrong.append(f"swap to {name}, {way}: {reply}, not {other.digest}")
        else:
            self.tally.swaps.append((time.monotonic(), reply["bundle"]))

    async def _swap_to(self, name: str) -> Any:
        """Requests a swap until it is made or refused (409); `None` means refused."""
        refused = self.tally.replies["admin/swap 409"]
        while (reply := await self.client.post("admin/swap", {"run": name})) is None:
            if self.tally.replies["admin/swap 409"] > refused:
                return None
            await asyncio.sleep(0.1)
        return reply

    async def _move_away(self, folder: Path) -> None:
        """Moves a folder away for 2 s, while workers open the bundle in it."""
        await asyncio.sleep(0.03)
        away = folder.rename(folder.with_name("away"))
        await asyncio.sleep(2)
        away.rename(folder)

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

    async def look_at_memory(self, turn: int) -> None:
        """Notes the memory of the largest worker."""
        self.memory_mb.append(max((rss_mb(process) for process in self.service.alive()), default=0.0))

    @property
    def tally(self) -> Tally:
        """Counts so far."""
        return self.client.tally

    async def run(self, lives: list[Live]) -> None:
        """Runs load and faults together; then heals everything and checks the list of each user."""
        until, seconds = time.monotonic() + self.seconds, self.seconds
        clients = [run_client(self.client, lives[number::CLIENTS], until, number) for number in range(CLIENTS)]
        port, halves = self.service.port, HALF_OPEN if seconds >= 60 else HALF_OPEN // 10
        faults = [
            every(min(20, seconds / 6), until, self.kill),
            every(min(50, seconds / 4), until, self.stop_for_a_while),
            every(min(30, seconds / 7), until, self.swap),
            every(min(60, seconds / 3), until, self.fill_disk),
            every(min(7, seconds / 5), until, lambda turn: send_endless_header(port, self.tally)),
            every(min(100, seconds / 2.5), until, lambda turn: open_halves(port, halves, self.tally)),
            every(min(15, seconds / 4), until, lambda turn: send_full_batches(self.client)),
            every(1, until, lambda turn: update_items(self.client, turn)),
            every(5, until, self.look_at_memory),
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


def copy_inputs(run: Path, other: Path) -> None:
    """Gives a bundle the digest of the inputs of another one, as training the same recipe again does."""
    manifests = [each / "index" / MANIFEST for each in (run, other)]
    first, second = (json.loads(manifest.read_text()) for manifest in manifests)
    manifests[1].write_text(json.dumps(second | {"digest": first["digest"]}))


def rss_mb(process: int) -> float:
    """Returns the memory of a process in MB; 0 if it has ended."""
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return 0.0


async def lost_events(histories: str, lives: list[Live]) -> tuple[int, int]:
    """Returns the number of acknowledged events, and of those that the store does not hold as acknowledged."""
    store = open_histories(histories)
    found = await store.read([str(live.user_id) for live in lives])
    await store.close()
    lost = sum(len(set(live.acknowledged) - set(held)) for live, held in zip(lives, found, strict=True))
    return sum(len(live.acknowledged) for live in lives), lost


async def run_trial(name: str, seconds: float, folder: Path) -> dict[str, Any]:
    """Runs one trial with a store, from the first worker to the check of the last event."""
    runs = [
        write_run(folder / "runs" / run, items=ITEMS, users=USERS, seed=seed)
        for seed, run in enumerate(("a", "b", "other"))
    ]
    copy_inputs(runs[0], runs[2])
    shutil.copytree(runs[0], damaged := folder / "runs" / DAMAGED)
    (damaged / "index" / "item_vectors.npy").write_bytes(b"cut")
    lives = [Live(number + 1) for number in range(USERS + UNKNOWN_USERS)]
    with ExitStack() as opened:
        disk = opened.enter_context(closing(Disk(folder / "disk")))
        redis = opened.enter_context(closing(RedisServer(disk.folder))) if name == "redis" else None
        histories = redis.url if redis is not None else str(disk.folder / "histories.db")
        service = opened.enter_context(closing(Service(runs[0], histories, disk.folder)))
        async with connect(service, [read_truth(run) for run in runs]) as client:
            trial = Trial(service, disk, redis, client, seconds)
            await trial.run(lives)
        exit_code = service.stop()
        if redis is not None:  # events that are not on its disk are lost now
            redis.signal(signal.SIGKILL)
            redis.heal()
        acknowledged, lost = await lost_events(histories, lives)
    after = {"events_acknowledged": acknowledged, "events_lost": lost, "exit_code": exit_code}
    thirds = np.array_split(trial.memory_mb, 3)
    after["largest_worker_mb_first_and_last_third"] = [round(float(max(part, default=0))) for part in thirds[::2]]
    found = figures(client.tally, service) | after
    return found | {"log_of_a_failure": lines_about_failures(service.log) if any(found[name] for name in BAD) else []}


def figures(tally: Tally, service: Service) -> dict[str, Any]:
    """Returns the tally as JSON, with the first few errors."""
    exits = Counter(str(line["exit"]) for line in service.logged("worker replaced"))
    return {
        "faults": dict(tally.faults),
        "replies": dict(sorted(tally.replies.items())),
        "lists_of_the_log_alone": tally.without_store,
        "wrong": len(tally.wrong),
        "unclean": len(tally.unclean),
        "hung": len(tally.hung),
        "cut_by_a_kill": tally.cut,
        "cut_far_from_a_kill": len(tally.cut_far_from_a_kill),
        "workers_replaced_by_exit": dict(exits),
        "ms": {f"p{part}": round(float(np.percentile(tally.ms, part)), 1) for part in (50, 99, 100)},
        "first_cut": tally.cut_far_from_a_kill[:3],
        "first_hung": tally.hung[:3],
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
    sys.exit(any(found[name] for found in stores.values() for name in BAD))


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
