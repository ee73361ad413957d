"""Every line that a service writes to stderr is a JSON object, whatever happens to its processes."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.serve.running import Running
from tests.serve.tiny import write_run

pytestmark = pytest.mark.slow


def lines_that_are_no_json(service: Running) -> list[str]:
    return [line["message"] for line in service.log if "level" not in line]


def test_warnings_kills_and_bad_requests_are_json_lines_or_none(tmp_path: Path) -> None:
    service = Running(write_run(tmp_path / "runs" / "tiny"), "--workers", "2")
    service.until(lambda: len(service.logged("ready")) == 2)
    huge = {"upsert": [{"item_id": "a", "vector": [1e39, 0, 0, 0, 0]}]}  # beyond 32-bit floats
    assert service.reply("/v1/admin/items", huge).status_code == 422
    before = len(service.log)
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            connection.sendall(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
            connection.recv(100)
    assert len(service.log) - before < 10  # a stranger cannot fill the log
    os.kill(service.workers()[0], signal.SIGKILL)
    service.until(lambda: len(service.logged("ready")) == 3)
    assert service.stop() == 0
    assert lines_that_are_no_json(service) == []


def test_a_service_without_its_supervisor_ends_without_a_traceback(tmp_path: Path) -> None:
    service = Running(write_run(tmp_path / "runs" / "tiny"), "--workers", "2")
    service.until(lambda: len(service.logged("ready")) == 2)
    workers = service.workers()
    service.process.kill()
    service.process.wait(30)
    end = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < end:
        time.sleep(0.1)
    service._reader.join(30)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert lines_that_are_no_json(service) == []


def test_a_service_that_is_stopped_while_it_starts_a_worker_writes_no_traceback(tmp_path: Path) -> None:
    """A worker that is just being spawned reads its orders from its parent, which may be gone by then."""
    service = Running(write_run(tmp_path / "runs" / "tiny"), "--workers", "2")
    service.until(lambda: len(service.logged("ready")) == 2)
    os.kill(service.workers()[0], signal.SIGKILL)
    service.until(lambda: service.logged("worker replaced"))
    assert service.stop() == 0
    assert lines_that_are_no_json(service) == []
