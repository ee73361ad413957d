"""The parent process: back-off, giving up, silent workers, and the time between SIGTERM and the end."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.tiny import write_run
from twofold.errors import RunError
from twofold.serve import workers
from twofold.serve.app import stop_on_sigterm
from twofold.serve.service import Service
from twofold.serve.shared_state import ChosenBundle, SharedFolder
from twofold.serve.workers import LIVED_S, MAX_PAUSE_S, METRICS, READY, SILENCE_S, ServeOptions, _Supervisor


class Worker:
    """A worker process that is alive until `ends_at`, on the clock of the test."""

    def __init__(self, clock: "Clock", lives_s: float, exitcode: int = 1) -> None:
        self._clock, self.ends_at, self.exitcode = clock, clock.now + lives_s, exitcode
        self.pid = 2**30  # of no process: the supervisor sends signals
        self.was_killed = False

    def is_alive(self) -> bool:
        return self._clock.now < self.ends_at

    def kill(self) -> None:
        self.was_killed = True


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(workers, "time", clock)
    return clock


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[_Supervisor]:
    (tmp_path / METRICS).mkdir()
    with socket.socket() as listening:
        yield _Supervisor(ServeOptions(tmp_path / "run", str(tmp_path / "h.db")), tmp_path, listening)


def starts(supervisor: _Supervisor, clock: Clock, lives_s: float, seconds: float) -> list[float]:
    """Runs the loop of the supervisor with workers that live so long; returns the times of the starts."""
    times: list[float] = []

    def spawn() -> Any:
        times.append(clock.now - 1_000)
        return Worker(clock, lives_s)

    supervisor._spawn = spawn  # type: ignore[method-assign]
    supervisor._workers, supervisor._pauses, supervisor._started = [spawn()], [0.0], [clock.now]
    while clock.now < 1_000 + seconds:
        clock.now += 0.25
        supervisor._replace_if_dead(0)
    return times


def test_a_worker_that_dies_at_once_is_started_after_longer_and_longer_pauses(
    supervisor: _Supervisor, clock: Clock, tmp_path: Path
) -> None:
    (tmp_path / READY).touch()
    times = starts(supervisor, clock, 0.2, 200)
    pauses = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    assert pauses[:6] == [1, 2, 4, 8, 16, MAX_PAUSE_S]
    assert max(pauses) == MAX_PAUSE_S  # 11 starts in 8 s before, 1,047 in 16 minutes
    assert len(times) < 13


def test_a_worker_that_has_lived_is_replaced_at_once(supervisor: _Supervisor, clock: Clock, tmp_path: Path) -> None:
    (tmp_path / READY).touch()
    times = starts(supervisor, clock, LIVED_S + 1, 60)
    assert [later - earlier for earlier, later in zip(times, times[1:], strict=False)] == [LIVED_S + 1] * 5


@pytest.mark.parametrize("exitcode", [1, -7, -9])
def test_a_service_whose_workers_were_never_ready_gives_up(
    supervisor: _Supervisor, clock: Clock, exitcode: int
) -> None:
    supervisor._workers, supervisor._pauses, supervisor._started = [Worker(clock, -1, exitcode)], [0.0], [clock.now]
    with pytest.raises(RunError, match=rf"no worker could start \(exit code {exitcode}\)"):
        supervisor._replace_if_dead(0)


def test_the_message_of_a_worker_that_cannot_start_is_that_of_the_service(
    supervisor: _Supervisor, clock: Clock, tmp_path: Path
) -> None:
    (tmp_path / workers.REASON).write_text("there is no run folder")
    supervisor._workers, supervisor._pauses, supervisor._started = [Worker(clock, -1, 2)], [0.0], [clock.now]
    with pytest.raises(RunError, match="there is no run folder"):
        supervisor._replace_if_dead(0)


def test_the_last_worker_frees_the_bundle_for_the_next(supervisor: _Supervisor, clock: Clock, tmp_path: Path) -> None:
    (tmp_path / READY).touch()
    supervisor._shared.commit(ChosenBundle("run", "/runs/run", "abc"))
    supervisor._workers, supervisor._pauses = [Worker(clock, -1), Worker(clock, 9)], [0.0] * 2
    supervisor._started = [clock.now] * 2
    supervisor._replace_if_dead(0)
    assert supervisor._shared.current == ChosenBundle("run", "/runs/run", "abc")
    clock.now += 10
    supervisor._spawn = lambda: Worker(clock, -1)  # type: ignore[method-assign, return-value, assignment]
    supervisor._replace_if_dead(1)
    assert supervisor._shared.current == ChosenBundle("run", released="abc")


def test_a_worker_without_a_heartbeat_is_killed(supervisor: _Supervisor, clock: Clock, tmp_path: Path) -> None:
    worker = Worker(clock, 1e9)
    supervisor._workers = [worker]  # type: ignore[list-item]
    shared = SharedFolder(tmp_path, worker.pid)
    supervisor._end_silent_workers()  # it has not begun
    shared.report("abc", "", "")
    supervisor._end_silent_workers()
    shared.beat()
    supervisor._end_silent_workers()
    assert not worker.was_killed
    late = time.monotonic() - SILENCE_S - 1
    os.utime(tmp_path / f"worker-{worker.pid}.json", (late, late))
    supervisor._end_silent_workers()
    assert worker.was_killed


@pytest.mark.parametrize(("drain_s", "signals", "waits"), [(0.0, 1, False), (0.2, 1, True), (60.0, 2, False)])
def test_the_service_says_that_it_stops_before_it_refuses_connections(
    service: Service, drain_s: float, signals: int, waits: bool
) -> None:
    async def stop() -> tuple[bool, float]:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        signal.signal(signal.SIGTERM, lambda number, frame: loop.call_soon_threadsafe(ended.set))
        stop_on_sigterm(service, drain_s)
        started = time.monotonic()
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.02)
        was_open = service.is_stopping and not ended.is_set()
        await asyncio.wait_for(ended.wait(), 30)
        return was_open, time.monotonic() - started

    before = signal.getsignal(signal.SIGTERM)
    try:
        was_open, seconds = asyncio.run(stop())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert was_open == waits
    assert seconds >= drain_s or signals == 2


def test_a_worker_opens_the_bundle_that_was_claimed_first(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "tiny")
    shared = SharedFolder(tmp_path)
    first = workers.open_service(ServeOptions(run, str(tmp_path / "h.db")), shared)
    agreed = shared.current
    assert agreed is not None
    assert (agreed.run, agreed.folder, agreed.bundle) == ("tiny", str(run), first.current.digest)
    asyncio.run(first.histories.close())
