"""The processes of a service: one that watches, and workers that listen on one socket.

Workers are spawned: one that is forked after FAISS has searched hangs (3 of 3). Each has one OpenMP thread: two of them
took 4.9 s for 200 searches against 0.6 s. What they must agree on is in a folder of their own: the meters, and
`current.json`, the run that answers since the last swap, so that all of them follow, and so does one that is started
anew.
"""

import asyncio
import json
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

from twofold.dataset.malloc import keep_freed_memory
from twofold.errors import RequestError, RunError, TwofoldError
from twofold.serve.app import build_app
from twofold.serve.event_store import open_histories
from twofold.serve.middleware import REQUESTS, JsonLines, Limits
from twofold.serve.prometheus import SHARED_METERS, ServiceMetrics
from twofold.serve.service import Service, log
from twofold.serve.user_state import open_live_bundle

TOKEN: Final = "TWOFOLD_TOKEN"
MEMORY: Final = Path("/dev/shm")
CURRENT: Final = "current.json"
READY: Final = "ready"
METERS: Final = "meters"
LOOK_S: Final = 0.5  # how long a worker may answer from another bundle than the one that took the swap
GRACE_S: Final = 30.0
REFUSED: Final = 2  # exit code of a worker that cannot open the bundle or the histories
BACKLOG: Final = 2048


@dataclass(frozen=True)
class ServeOptions:
    """What a service is started with."""

    run: Path
    histories: str
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    log_requests: bool = False


def serve(asked: ServeOptions) -> None:
    """Answers until SIGTERM or SIGINT, then finishes what it has begun. SIGHUP opens the bundle anew.

    A worker that dies is replaced. RunError or RequestError if the bundle, the histories or the port cannot be had.
    """
    # Meters are mapped files: on a full disk a worker that counts would be ended (SIGBUS), and a swap cut in half.
    where = MEMORY if os.access(MEMORY, os.W_OK) else None
    with (
        tempfile.TemporaryDirectory(prefix="twofold-serve-", dir=where) as folder,
        _bound(asked.host, asked.port) as listening,
    ):
        (Path(folder) / METERS).mkdir()
        write_log_as_json(log_requests=asked.log_requests)
        os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", SHARED_METERS: f"{folder}/{METERS}"}
        _Watch(asked, Path(folder), listening).until_stopped()


class _Watch:
    """The process that watches: it starts workers, replaces them, and passes signals on."""

    def __init__(self, asked: ServeOptions, folder: Path, listening: socket.socket) -> None:
        self._asked = asked
        self._folder = folder
        self._listening = listening
        self._workers: list[BaseProcess] = []
        self._is_stopping = False

    def until_stopped(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, lambda number, frame: self._pass_on(signal.SIGHUP))
        self._workers = [self._spawn() for _ in range(self._asked.workers)]
        while not self._is_stopping:
            wait([worker.sentinel for worker in self._workers], timeout=LOOK_S)
            self._replace_the_dead()
        for worker in self._workers:
            worker.join(GRACE_S + 5)
            if worker.is_alive():
                worker.kill()

    def _spawn(self) -> BaseProcess:
        spawn = multiprocessing.get_context("spawn")
        worker = spawn.Process(target=_work, args=(self._asked, self._folder, self._listening))
        worker.start()
        return worker

    def _replace_the_dead(self) -> None:
        from prometheus_client.multiprocess import mark_process_dead

        for place, worker in enumerate(self._workers):
            if worker.is_alive() or self._is_stopping:
                continue
            if worker.exitcode == REFUSED and not (self._folder / READY).exists():
                self._stop(signal.SIGTERM, None)
                open_service(self._asked, self._folder)  # says why, as it did to the worker
                raise RunError("a worker could not start: its last line of log says why. Start the service again.")
            log("worker replaced", {"number": place, "exit": worker.exitcode})
            mark_process_dead(worker.pid, path=str(self._folder / METERS))  # type: ignore[no-untyped-call]
            self._workers[place] = self._spawn()

    def _stop(self, number: int, frame: object) -> None:
        self._is_stopping = True
        self._pass_on(signal.SIGTERM)

    def _pass_on(self, number: signal.Signals) -> None:
        for worker in self._workers:
            with suppress(ProcessLookupError):
                os.kill(worker.pid or 0, number)


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise RequestError(
            f"cannot listen on {host}:{port}: {error.strerror}. Choose another with --host and --port."
        ) from None
    listening.listen(BACKLOG)
    return listening


# --- one worker -------------------------------------------------------------------------------------------------------


def open_service(asked: ServeOptions, folder: Path) -> Service:
    """The bundle that answers since the last swap, the histories, and fresh meters."""
    run = asked.run.resolve()
    swapped = folder / CURRENT
    name = json.loads(swapped.read_text())["run"] if swapped.exists() else run.name
    return Service(
        open_live_bundle(run.parent / name), run.parent, open_histories(asked.histories), ServiceMetrics(), swapped
    )


def _work(asked: ServeOptions, folder: Path, listening: socket.socket) -> None:
    import uvicorn

    write_log_as_json(log_requests=asked.log_requests)
    seen = _read(folder / CURRENT)
    try:
        service = open_service(asked, folder)
    except TwofoldError as error:
        log("worker cannot start", {"error": str(error)})
        sys.exit(REFUSED)
    limits = Limits(token=os.environ.get(TOKEN) or None)
    config = uvicorn.Config(
        build_app(service, limits, run_beside=lambda app: _following(service, folder, seen)),
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=int(GRACE_S),
    )
    with keep_freed_memory():  # scores of a batch are megabytes: a twentieth of a request's time
        uvicorn.Server(config).run(sockets=[listening])


@asynccontextmanager
async def _following(service: Service, folder: Path, seen: dict[str, str]) -> AsyncIterator[None]:
    """Does as other workers do, and as SIGHUP says, for as long as the application runs.

    `seen` is what `current.json` said before the bundle was opened: a swap since then is followed too.
    """
    loop, watching = asyncio.get_running_loop(), os.getppid()
    reopened: set[asyncio.Task[None]] = set()

    async def reopen(name: str | None) -> None:
        try:
            await service.open_run(name)
        except Exception as error:  # whatever it is, what answered before goes on
            if not isinstance(error, RunError):  # that has been logged
                log("swap failed", {"error": repr(error)})

    def on_hangup() -> None:
        reopened.add(task := loop.create_task(reopen(None)))
        task.add_done_callback(reopened.discard)

    async def follow() -> None:
        nonlocal seen
        while True:
            await asyncio.sleep(LOOK_S)
            service.meters.refresh()
            if os.getppid() != watching:  # nobody would replace this worker, stop it, or clear away behind it
                shutil.rmtree(folder, ignore_errors=True)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            if (now := _read(folder / CURRENT)) != seen:
                seen = now
                if now["bundle"] != service.current.digest:
                    await reopen(now["run"])

    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    following = loop.create_task(follow())
    (folder / READY).touch()
    bundle = service.current
    log("ready", {"run": bundle.name, "bundle": bundle.digest[:12], "items": len(bundle.bundle.items)})
    yield
    following.cancel()
    log("stopped")


def _read(path: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    return found


def write_log_as_json(*, log_requests: bool) -> None:
    """Log goes to stderr, a JSON object a line; requests that went well only if they are asked for."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("twofold.serve").setLevel(logging.INFO)
    logging.getLogger(REQUESTS).setLevel(logging.INFO if log_requests else logging.WARNING)
