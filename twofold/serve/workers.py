"""Worker processes of a service, which listen on one socket, and the supervisor that starts and replaces them.

Workers are spawned: a process forked after a FAISS search hangs (3 of 3). Each has one OpenMP thread: with two threads,
200 searches took 4.9 s instead of 0.6 s. The workers share a temporary folder with the metrics and
`current.json`, the run in use since the last swap, which all workers follow, restarted ones included.
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
from twofold.serve.live_bundle import open_live_bundle
from twofold.serve.middleware import REQUEST_LOG, JsonLines, Limits, log
from twofold.serve.prometheus import SHARED_METRICS, ServiceMetrics
from twofold.serve.service import Service

TOKEN: Final = "TWOFOLD_TOKEN"
MEMORY: Final = Path("/dev/shm")
CURRENT: Final = "current.json"
READY: Final = "ready"
METRICS: Final = "metrics"
POLL_S: Final = 0.5  # longest delay until a worker follows a swap that another worker has made
GRACE_S: Final = 30.0
CANNOT_START: Final = 2  # exit code of a worker that cannot open the bundle or the histories
BACKLOG: Final = 2048


@dataclass(frozen=True)
class ServeOptions:
    """Options of a service."""

    run: Path
    histories: str
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    log_requests: bool = False


def serve(options: ServeOptions) -> None:
    """Serves until SIGTERM or SIGINT, then finishes the requests in progress. SIGHUP reopens the bundle.

    A worker that dies is replaced. RunError or RequestError if the bundle, the histories or the port cannot be opened.
    """
    # Metrics are memory-mapped files: on a full disk a worker would be killed (SIGBUS) while counting, even in a swap.
    where = MEMORY if os.access(MEMORY, os.W_OK) else None
    with (
        tempfile.TemporaryDirectory(prefix="twofold-serve-", dir=where) as folder,
        _listen(options.host, options.port) as listening,
    ):
        (Path(folder) / METRICS).mkdir()
        write_log_as_json(log_requests=options.log_requests)
        os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", SHARED_METRICS: f"{folder}/{METRICS}"}
        _Supervisor(options, Path(folder), listening).run()


class _Supervisor:
    """The parent process: starts workers, replaces dead ones, and forwards signals."""

    def __init__(self, options: ServeOptions, folder: Path, listening: socket.socket) -> None:
        self._options = options
        self._folder = folder
        self._listening = listening
        self._workers: list[BaseProcess] = []
        self._is_stopping = False

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, lambda number, frame: self._signal_workers(signal.SIGHUP))
        self._workers = [self._spawn() for _ in range(self._options.workers)]
        while not self._is_stopping:
            wait([worker.sentinel for worker in self._workers], timeout=POLL_S)
            self._replace_dead_workers()
        for worker in self._workers:
            worker.join(GRACE_S + 5)
            if worker.is_alive():
                worker.kill()

    def _spawn(self) -> BaseProcess:
        spawn = multiprocessing.get_context("spawn")
        worker = spawn.Process(target=_run_worker, args=(self._options, self._folder, self._listening))
        worker.start()
        return worker

    def _replace_dead_workers(self) -> None:
        from prometheus_client.multiprocess import mark_process_dead

        for index, worker in enumerate(self._workers):
            if worker.is_alive() or self._is_stopping:
                continue
            if worker.exitcode == CANNOT_START and not (self._folder / READY).exists():
                self._stop(signal.SIGTERM, None)
                open_service(self._options, self._folder)  # raises the worker's error here
                raise RunError("a worker could not start: the last line of its log has the cause. Start it again.")
            log("worker replaced", {"number": index, "exit": worker.exitcode})
            mark_process_dead(worker.pid, path=str(self._folder / METRICS))  # type: ignore[no-untyped-call]
            self._workers[index] = self._spawn()

    def _stop(self, number: int, frame: object) -> None:
        self._is_stopping = True
        self._signal_workers(signal.SIGTERM)

    def _signal_workers(self, number: signal.Signals) -> None:
        for worker in self._workers:
            with suppress(ProcessLookupError):
                os.kill(worker.pid or 0, number)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise RequestError(
            f"cannot listen on {host}:{port}: {error.strerror}. Choose another address with --host and --port."
        ) from None
    listening.listen(BACKLOG)
    return listening


# --- one worker -------------------------------------------------------------------------------------------------------


def open_service(options: ServeOptions, folder: Path) -> Service:
    """Opens the bundle in use since the last swap and the histories, with new metrics."""
    run, swap_file = options.run.resolve(), folder / CURRENT
    name = json.loads(swap_file.read_text(encoding="utf-8"))["run"] if swap_file.exists() else run.name
    live_bundle = open_live_bundle(run.parent / name)
    return Service(live_bundle, run.parent, open_histories(options.histories), ServiceMetrics(), swap_file)


def _run_worker(options: ServeOptions, folder: Path, listening: socket.socket) -> None:
    import uvicorn

    from twofold.serve.http_protocol import LimitedProtocol, LimitedServer

    write_log_as_json(log_requests=options.log_requests)
    last_swap = _read_swap(folder / CURRENT)
    try:
        service = open_service(options, folder)
    except TwofoldError as error:
        log("worker cannot start", {"error": str(error)})
        sys.exit(CANNOT_START)
    limits = Limits(token=os.environ.get(TOKEN) or None)
    config = uvicorn.Config(
        build_app(service, limits, background=lambda app: _follow_swaps(service, folder, last_swap)),
        log_config=None,
        access_log=False,
        lifespan="on",
        http=LimitedProtocol,
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=int(GRACE_S),
    )
    with keep_freed_memory():  # scores of a batch are megabytes: a twentieth of a request's time
        LimitedServer(config).run(sockets=[listening])


@asynccontextmanager
async def _follow_swaps(service: Service, folder: Path, last_swap: dict[str, str]) -> AsyncIterator[None]:
    """Follows the swaps of other workers and reopens the bundle on SIGHUP, while the application runs. `last_swap` is
    the content of `current.json` before the bundle was opened, so that a swap since then is followed too.
    """
    loop, supervisor = asyncio.get_running_loop(), os.getppid()
    reopening: set[asyncio.Task[None]] = set()

    async def reopen(name: str | None) -> None:
        try:
            await service.open_run(name)
        except Exception as error:  # whatever the error, the previous bundle stays in use
            if not isinstance(error, RunError):  # a RunError has been logged
                log("swap failed", {"error": repr(error)})

    def on_hangup() -> None:
        reopening.add(task := loop.create_task(reopen(None)))
        task.add_done_callback(reopening.discard)

    async def follow() -> None:
        nonlocal last_swap
        while True:
            await asyncio.sleep(POLL_S)
            service.metrics.refresh()
            if os.getppid() != supervisor:  # without a supervisor nothing stops this worker or deletes its folder
                shutil.rmtree(folder, ignore_errors=True)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            if (swap := _read_swap(folder / CURRENT)) != last_swap:
                last_swap = swap
                if swap["bundle"] != service.current.digest:
                    await reopen(swap["run"])

    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    following = loop.create_task(follow())
    (folder / READY).touch()
    current = service.current
    log("ready", {"run": current.name, "bundle": current.digest[:12], "items": len(current.bundle.items)})
    yield
    following.cancel()
    log("stopped")


def _read_swap(path: Path) -> dict[str, str]:
    swap: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return swap


def write_log_as_json(*, log_requests: bool) -> None:
    """Writes the log to stderr, one JSON object per line; requests that succeed only with `log_requests`."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.captureWarnings(True)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # not a line for every invalid request
    logging.getLogger("twofold.serve").setLevel(logging.INFO)
    logging.getLogger(REQUEST_LOG).setLevel(logging.INFO if log_requests else logging.WARNING)
