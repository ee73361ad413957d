"""Worker processes of a service, which listen on one socket, and the supervisor that starts and replaces them.

Workers are spawned: a process forked after a FAISS search hangs (3 of 3). Each has one OpenMP thread: with two threads,
200 searches took 4.9 s instead of 0.6 s. The workers share a temporary folder with the metrics and the state that all
of them agree on (`shared_state.py`).
"""

import asyncio
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from twofold.dataset.malloc import keep_freed_memory
from twofold.errors import RequestError, RunError, TwofoldError
from twofold.run_folder import open_stage
from twofold.serve.app import build_app, stop_on_sigterm
from twofold.serve.bundle_pointer import fetch, follow_pointer
from twofold.serve.bundle_swaps import POLL_S
from twofold.serve.event_store import KEEP_DAYS, open_histories, resolved_store
from twofold.serve.live_bundle import open_live_bundle
from twofold.serve.middleware import REQUEST_LOG, JsonLines, Limits, log
from twofold.serve.prometheus import SHARED_METRICS, ServiceMetrics
from twofold.serve.service import Service
from twofold.serve.shared_state import ChosenBundle, SharedFolder
from twofold.serve.tracing import check_traces, open_tracing

TOKEN: Final = "TWOFOLD_TOKEN"
ADMIN_TOKEN: Final = "TWOFOLD_ADMIN_TOKEN"
LOOPBACK: Final = frozenset(("localhost", "127.0.0.1", "[::1]"))
MEMORY: Final = Path("/dev/shm")
MIN_MEMORY_BYTES: Final = 2**25  # for metrics and item changes; with less, they are stored on the disk
READY: Final = "ready"
METRICS: Final = "metrics"
REASON: Final = "reason.txt"
GRACE_S: Final = 30.0
SILENCE_S: Final = 30.0  # a worker without a heartbeat for so long has stopped and is replaced
LIVED_S: Final = 10.0
MAX_PAUSE_S: Final = 30.0  # before a worker is started again that died within `LIVED_S`
CANNOT_START: Final = 2  # exit code of a worker that cannot open the bundle or the histories, and wrote `REASON`
BACKLOG: Final = 2048
MAX_FILES: Final = 65_536


@dataclass(frozen=True)
class ServeOptions:
    """Options of a service. After SIGTERM, connections are accepted for `drain_s`, while /ready says no."""

    run: Path
    histories: str
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    log_requests: bool = False
    keep_days: int = KEEP_DAYS
    drain_s: float = 0.0
    beside: Path | None = None
    follow: Path | None = None
    """The pointer that names the bundle to serve; `None` means that `run` is served."""
    traces: str | None = None
    """Address of the collector of spans; `None` means that there is none."""
    qdrant: str | None = None
    """Address of the Qdrant that searches; `None` means that the bundle's index is searched."""


def serve(options: ServeOptions, *, on_listening: Callable[[int], None] = lambda port: None) -> None:
    """Serves until SIGTERM or SIGINT, then finishes the requests in progress. SIGHUP reopens the bundle.

    `on_listening` is called with the port, once that is taken.

    A worker that dies is replaced. RunError or RequestError if the bundle, the histories or the port cannot be opened.
    """
    _check_token(options.host)
    if options.traces is not None:
        check_traces(options.traces)
    if options.follow is not None:
        options = replace(options, run=_followed_run(options.follow, options.run))
    for run in filter(None, (options.run, options.beside)):
        open_stage(run, "index")  # before anything is written beside it
    options = replace(options, histories=resolved_store(options.histories))  # before workers, which may start later
    asyncio.run(open_histories(options.histories).close())  # its error is the service's, and not that of each worker
    # Metrics are memory-mapped files: on a full disk a worker would be killed (SIGBUS) while counting, even in a swap.
    where = MEMORY if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= MIN_MEMORY_BYTES else None
    with (
        tempfile.TemporaryDirectory(prefix="twofold-serve-", dir=where) as folder,
        _listen(options.host, options.port) as listening,
    ):
        on_listening(listening.getsockname()[1])
        (Path(folder) / METRICS).mkdir()
        write_log_as_json(log_requests=options.log_requests)
        os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", SHARED_METRICS: f"{folder}/{METRICS}"}
        _Supervisor(options, Path(folder), listening).run()


def _followed_run(pointer: Path, run: Path) -> Path:
    """Returns the run that the pointer names or, if it cannot be had now, the run of the command line."""
    try:
        return fetch(pointer, Path(os.path.abspath(run)).parent)
    except (RunError, OSError) as error:
        if not (run / "index").is_dir():
            raise RunError(f"{error} And there is no bundle in {run} to start with.") from error
        write_log_as_json(log_requests=False)
        log("pointer cannot be followed", {"error": str(error), "served": run.name})
        return run


def _check_token(host: str) -> None:
    """Raises RequestError if other machines could reach a service that has no token."""
    if f"[{host}]" not in LOOPBACK and host not in LOOPBACK and not os.environ.get(TOKEN):
        raise RequestError(
            f"--host {host} accepts other machines, and everyone there could read and write without a token. Set the "
            f"environment variable {TOKEN} (and {ADMIN_TOKEN} for swaps and item changes), or listen on 127.0.0.1."
        )


@runtime_checkable
class _Process(Protocol):
    """A process that may have ended."""

    @property
    def exitcode(self) -> int | None: ...

    @property
    def pid(self) -> int | None: ...


class _Supervisor:
    """The parent process: starts workers, replaces dead ones, and forwards signals."""

    def __init__(self, options: ServeOptions, folder: Path, listening: socket.socket) -> None:
        self._options = options
        self._folder = folder
        self._shared = SharedFolder(folder)
        self._listening = listening
        self._workers: list[BaseProcess | None] = []
        self._started: list[float] = []
        self._pauses: list[float] = []
        self._is_stopping = False

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, lambda number, frame: self._reopen())
        count, checked = self._options.workers, time.monotonic()
        self._workers, self._pauses = [self._spawn() for _ in range(count)], [0.0] * count
        self._started = [time.monotonic()] * count
        while not self._is_stopping:
            wait([worker.sentinel for worker in self._workers if worker is not None], timeout=0.5)
            if time.monotonic() - checked < SILENCE_S / 2:  # else this process itself was stopped
                self._end_silent_workers()
            checked = time.monotonic()
            for index in range(count):
                self._replace_if_dead(index)
        for worker in filter(None, self._workers):
            worker.join(self._options.drain_s + GRACE_S + 5)
            if worker.is_alive():
                worker.kill()

    def _spawn(self) -> BaseProcess:
        spawn = multiprocessing.get_context("spawn")
        worker = spawn.Process(target=_run_worker, args=(self._options, self._folder, self._listening))
        worker.start()
        return worker

    def _replace_if_dead(self, index: int) -> None:
        worker, now = self._workers[index], time.monotonic()
        if self._is_stopping or (worker is not None and worker.is_alive()):
            return
        if worker is not None:
            self._clear_away(index, worker)
        if not self._is_stopping and now >= self._started[index] + self._pauses[index]:
            self._started[index] = now
            self._workers[index] = self._spawn()

    def _clear_away(self, index: int, worker: _Process) -> None:
        """Forgets a dead worker; the pause before the next start doubles while its workers die soon."""
        from prometheus_client.multiprocess import mark_process_dead

        if not (self._folder / READY).exists():  # no worker has ever been ready
            self._give_up(worker)
            return
        has_lived = time.monotonic() - self._started[index] > LIVED_S
        self._pauses[index] = 0.0 if has_lived else min(max(1.0, 2 * self._pauses[index]), MAX_PAUSE_S)
        facts = {"number": index, "exit": worker.exitcode, "pause_s": self._pauses[index]}
        log("worker replaced", facts)
        mark_process_dead(worker.pid, path=str(self._folder / METRICS))  # type: ignore[no-untyped-call]
        self._shared.forget(worker.pid or 0)
        self._workers[index] = None
        if not any(other is not None and other.is_alive() for other in self._workers):
            self._shared.release()

    def _give_up(self, worker: _Process) -> None:
        self._stop(signal.SIGTERM, None)
        if (code := worker.exitcode) == CANNOT_START:
            raise RunError((self._folder / REASON).read_text(encoding="utf-8"))
        raise RunError(f"no worker could start (exit code {code}): the log has the cause. Mend that, and start again.")

    def _end_silent_workers(self) -> None:
        for worker in filter(None, self._workers):
            if worker.is_alive() and self._shared.silent_s(worker.pid or 0) > SILENCE_S:
                log("worker does not respond", {"process": worker.pid})
                worker.kill()

    def _stop(self, number: int, frame: object) -> None:
        self._is_stopping = True
        self._signal_workers(signal.SIGTERM)

    def _reopen(self) -> None:
        """Asks one worker to swap; the others follow it."""
        for worker in self._shared.workers()[:1]:
            with suppress(ProcessLookupError):
                os.kill(worker.process, signal.SIGHUP)

    def _signal_workers(self, number: signal.Signals) -> None:
        for worker in filter(None, self._workers):
            with suppress(ProcessLookupError):
                os.kill(worker.pid or 0, number)


def _listen(host: str, port: int) -> socket.socket:
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_FILES if most_files == resource.RLIM_INFINITY else min(most_files, MAX_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most_files))  # a connection is a file
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


def open_service(options: ServeOptions, shared: SharedFolder) -> Service:
    """Opens the bundle that the other workers use, or the run of the options, and the histories, with new metrics."""
    run = Path(os.path.abspath(options.run))  # without following a link, which may lead elsewhere later
    current = shared.current or ChosenBundle(run.name)
    folder = Path(current.folder) if current.folder else run.parent / current.run
    live_bundle = open_live_bundle(folder, options.qdrant, shared)
    agreed = shared.claim(ChosenBundle(current.run, str(live_bundle.folder), live_bundle.digest))
    if agreed.bundle != live_bundle.digest:
        live_bundle = open_live_bundle(Path(agreed.folder), options.qdrant, shared)
    if agreed.bundle != live_bundle.digest:
        raise RunError(f"the bundle in {agreed.folder} is no longer the one that the other workers use: swap to it.")
    histories = open_histories(options.histories, keep_days=options.keep_days)
    beside = open_live_bundle(options.beside, shared=shared) if options.beside else None  # the page compares with it
    service = Service(live_bundle, run.parent, histories, ServiceMetrics(), shared, beside)
    service.pointer = options.follow
    return service


def _run_worker(options: ServeOptions, folder: Path, listening: socket.socket) -> None:
    import uvicorn

    from twofold.serve.http_protocol import KEEP_ALIVE_S, LimitedProtocol, LimitedServer

    write_log_as_json(log_requests=options.log_requests)
    shared = SharedFolder(folder)
    try:
        service = open_service(options, shared)
    except TwofoldError as error:
        log("worker cannot start", {"error": str(error)})
        (folder / REASON).write_text(str(error), encoding="utf-8")
        sys.exit(CANNOT_START)
    except Exception as error:
        logging.getLogger("twofold.serve").exception("worker cannot start", extra={"facts": {"error": repr(error)}})
        sys.exit(1)
    token, admin_token = (os.environ.get(name) or None for name in (TOKEN, ADMIN_TOKEN))
    limits = Limits(token, admin_token, hosts=LOOPBACK if token is None else None)
    tracing = None if options.traces is None else open_tracing(options.traces)
    config = uvicorn.Config(
        build_app(service, limits, background=lambda: _beside_requests(service, shared, options), tracing=tracing),
        log_config=None,
        access_log=False,
        lifespan="on",
        http=LimitedProtocol,
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(GRACE_S),
    )
    with keep_freed_memory():  # scores of a batch are megabytes: a twentieth of a request's time
        LimitedServer(config).run(sockets=[listening])


@asynccontextmanager
async def _beside_requests(service: Service, shared: SharedFolder, options: ServeOptions) -> AsyncIterator[None]:
    """Reopens the bundle on SIGHUP, and tells the supervisor that the worker is alive, while the application runs."""
    loop, supervisor = asyncio.get_running_loop(), os.getppid()
    reopening: set[asyncio.Task[None]] = set()

    def on_hangup() -> None:
        reopening.add(task := loop.create_task(service.reopen()))
        task.add_done_callback(reopening.discard)

    async def beat() -> None:
        while True:
            shared.beat()
            if os.getppid() != supervisor:  # without a supervisor nothing stops this worker or deletes its folder
                shutil.rmtree(shared.folder, ignore_errors=True)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            await asyncio.sleep(POLL_S)

    stop_on_sigterm(service, options.drain_s)
    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    tasks = [loop.create_task(beat())]
    if options.follow is not None:
        runs = Path(os.path.abspath(options.run)).parent
        following = follow_pointer(options.follow, runs, bundles=service.bundles, shared=shared)
        tasks.append(loop.create_task(following))
    (shared.folder / READY).touch()
    current = service.current
    log("ready", {"run": current.name, "bundle": current.digest[:12], "items": len(current.bundle.items)})
    yield
    for task in tasks:
        task.cancel()
    log("stopped")


def write_log_as_json(*, log_requests: bool) -> None:
    """Writes the log to stderr, one JSON object per line; requests that succeed only with `log_requests`."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.captureWarnings(True)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # not a line for every invalid request
    logging.getLogger("twofold.serve").setLevel(logging.INFO)
    logging.getLogger(REQUEST_LOG).setLevel(logging.INFO if log_requests else logging.WARNING)
