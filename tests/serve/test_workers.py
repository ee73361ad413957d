"""A service of several processes: killed workers, swaps and stops, tested over HTTP."""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.running import TOKEN, Running
from tests.serve.tiny import ITEMS, NOON, other_run, replace_part, write_run, write_tower
from twofold.errors import RequestError
from twofold.serve import bundle_swaps
from twofold.serve.bundle import USER_TOWER
from twofold.serve.event_store import LiveEvent, SqliteHistories, StoreError, open_histories
from twofold.serve.http_errors import HttpError
from twofold.serve.live_bundle import open_live_bundle
from twofold.serve.prometheus import SHARED_METRICS, ServiceMetrics
from twofold.serve.schemas import Recommend, Swap
from twofold.serve.service import Service
from twofold.serve.shared_state import ChosenBundle, SharedFolder
from twofold.serve.workers import ServeOptions, serve

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "runs" / "tiny")


@pytest.fixture
def start(run: Path) -> Iterator[Callable[..., Running]]:
    running: list[Running] = []

    def begin(*options: str) -> Running:
        running.append(Running(run, *options))
        return running[-1]

    yield begin
    for service in running:
        if service.process.poll() is None:
            service.stop()


def test_a_killed_worker_is_replaced_and_no_acknowledged_event_is_lost(start: Callable[..., Running]) -> None:
    service = start("--workers", "2")
    service.until(lambda: len(service.workers()) == 2)
    accepted = 0
    for turn in range(3):
        events = [{"user_id": "new", "item_id": item, "at": 1_000 * turn + place} for place, item in enumerate("abc")]
        accepted += service.call("/v1/events", {"events": events})["accepted"]
        os.kill(service.workers()[0], signal.SIGKILL)
        service.until(lambda turn=turn: len(service.logged("worker replaced")) == turn + 1)
        service.until(lambda turn=turn: len(service.logged("ready")) == turn + 3)
    for _ in range(10):  # from either worker
        reply = service.call("/v1/recommend", {"user_id": "new", "explain": True})
        assert (reply["source"], len(reply["history"])) == ("model", accepted)
    assert service.call("/health")["items"] == len(ITEMS)
    assert service.stop() == 0


def test_acknowledged_events_outlive_the_whole_service(start: Callable[..., Running]) -> None:
    service = start()
    service.call("/v1/events", {"events": [{"user_id": "new", "item_id": "a"}]})
    workers = service.workers()
    (folder,) = re.findall(rf"{SHARED_METRICS}=([^\0]+)", Path(f"/proc/{workers[0]}/environ").read_text())
    assert Path(folder).is_dir()
    service.process.kill()
    service.process.wait()
    for worker in workers:  # without a supervisor it stops by itself
        for _ in range(600):
            if not Path(f"/proc/{worker}").exists():
                break
            time.sleep(0.05)
        assert not Path(f"/proc/{worker}").exists()
    assert not Path(folder).exists()
    again = start()
    assert again.call("/v1/recommend", {"user_id": "new"})["source"] == "model"


def test_a_swap_reaches_all_workers_and_fails_no_request(start: Callable[..., Running], run: Path) -> None:
    other = other_run(run, "newer")
    service = start("--workers", "2")
    service.until(lambda: len(service.workers()) == 2)
    statuses: list[int] = []
    is_over = threading.Event()

    def load() -> None:
        while not is_over.is_set():
            statuses.append(service.reply("/v1/recommend", {"user_id": 10}).status_code)

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    before = service.call("/health")["bundle"]
    swapped = service.call("/v1/admin/swap", {"run": "newer"})
    assert (swapped["run"], swapped["was_swapped"]) == ("newer", True)
    service.until(lambda: len(service.logged("swapped")) == 2)
    is_over.set()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200}
    assert (
        {service.call("/v1/recommend", {"user_id": 10})["bundle"] for _ in range(10)} == {swapped["bundle"]} != {before}
    )
    # A worker that starts later uses the new bundle too.
    os.kill(service.workers()[0], signal.SIGKILL)
    service.until(lambda: len(service.logged("ready")) == 3)
    assert service.logged("ready")[-1]["run"] == other.name


def test_a_swap_while_a_worker_opens_its_bundle_reaches_it(run: Path, tmp_path: Path) -> None:
    newer = open_live_bundle(other_run(run, "newer"))
    shared = SharedFolder(tmp_path)
    service = Service(
        open_live_bundle(run), run.parent, open_histories(tmp_path / "histories.db"), ServiceMetrics(), shared
    )
    shared.commit(ChosenBundle("newer", str(newer.folder), newer.digest))
    assert not service.bundles.is_agreed

    async def begin() -> None:
        await service.start()
        await service.histories.close()

    asyncio.run(begin())
    assert service.current.name == "newer"


def test_a_worker_that_is_late_does_not_go_back_behind_a_later_swap(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opens the bundle of one swap while the next one is requested from it and made."""
    first, second = (open_live_bundle(other_run(run, name)) for name in ("first", "second"))
    shared = SharedFolder(tmp_path)
    service = Service(
        open_live_bundle(run), run.parent, open_histories(tmp_path / "histories.db"), ServiceMetrics(), shared
    )
    shared.commit(ChosenBundle("first", str(first.folder), first.digest))

    def slow(folder: Path, *_: Any) -> Any:
        monkeypatch.setattr(bundle_swaps, "open_live_bundle", lambda *_: second)
        asyncio.run_coroutine_threadsafe(service.swap(Swap(run="second")), loop).result(60)
        return first

    async def follow() -> None:
        await service.bundles.follow()
        await service.histories.close()

    monkeypatch.setattr(bundle_swaps, "open_live_bundle", slow)
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        runner.run(follow())
    assert (service.current.name, service.bundles.is_agreed) == ("second", True)


def test_a_swap_is_undone_if_the_other_workers_cannot_be_notified(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    other_run(run, "newer")
    service = Service(
        open_live_bundle(run),
        run.parent,
        open_histories(tmp_path / "histories.db"),
        ServiceMetrics(),
        SharedFolder(tmp_path),
    )
    monkeypatch.setattr(SharedFolder, "commit", full)

    async def run_requests() -> None:
        with pytest.raises(HttpError, match="the other workers cannot be notified of the swap") as refused:
            await service.swap(Swap(run="newer"))
        assert refused.value.status == 503
        await service.histories.close()

    asyncio.run(run_requests())
    assert service.current.name == run.name


def test_a_store_that_is_down_is_logged_once_a_second(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class DownStore(SqliteHistories):
        async def read(self, users: Sequence[str]) -> list[list[LiveEvent]]:
            raise StoreError("down")

    service = Service(open_live_bundle(run), run.parent, DownStore(tmp_path / "histories.db"), ServiceMetrics())

    async def run_requests() -> None:
        for _ in range(5):
            assert (await service.recommend(Recommend(user_id=10))).is_degraded
        await service.histories.close()

    with caplog.at_level("INFO", "twofold.serve"):
        asyncio.run(run_requests())
    assert [record.message for record in caplog.records].count("histories cannot be read") == 1


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda run: (run / "index" / "item_vectors.npy").write_bytes(b"cut"), "item_vectors.npy is damaged"),
        (lambda run: shutil.rmtree(run / "index"), "has no complete index/ stage"),
        (lambda run: replace_part(run, USER_TOWER, lambda path: write_tower(path, hours=3)), "a trial request fails"),
        (lambda run: replace_part(run, USER_TOWER, lambda path: write_tower(path, dim=3)), "do not belong together"),
    ],
    ids=["damaged", "missing", "failing", "foreign"],
)
def test_a_bad_bundle_is_refused_with_the_reason_and_the_old_one_stays(
    start: Callable[..., Running], run: Path, damage: Callable[[Path], Any], says: str
) -> None:
    damage(other_run(run, "bad"))
    service = start()
    request = {"user_id": 10, "context": {"at": NOON}}  # the tower reads the hour
    before = service.call("/v1/recommend", request)
    reply = service.reply("/v1/admin/swap", {"run": "bad"})
    assert reply.status_code == 409
    assert says in reply.json()["detail"]
    assert str(run.parent) not in reply.json()["detail"]
    for name in ("nothing", "..", "/etc", "../runs/tiny"):
        assert service.reply("/v1/admin/swap", {"run": name}).status_code in (409, 422)
    assert service.call("/v1/recommend", request)["items"] == before["items"]
    assert says in service.logged("swap refused")[0]["error"]


def test_a_hangup_reopens_the_bundle(start: Callable[..., Running], run: Path) -> None:
    service = start("--workers", "2")
    service.until(lambda: len(service.workers()) == 2)
    before = service.call("/health")["bundle"]
    newer = other_run(run, "newer")
    shutil.rmtree(run / "index")
    shutil.move(newer / "index", run / "index")
    service.process.send_signal(signal.SIGHUP)
    service.until(lambda: len(service.logged("swapped")) == 2)
    (after,) = {service.call("/health")["bundle"] for _ in range(10)}
    assert after != before
    (run / "index" / "index.json").unlink()
    service.process.send_signal(signal.SIGHUP)
    service.until(lambda: service.logged("swap refused"))
    assert {service.call("/health")["bundle"] for _ in range(10)} == {after}


def test_requests_in_progress_are_finished_when_the_service_stops(start: Callable[..., Running]) -> None:
    service = start("--workers", "2")
    service.until(lambda: len(service.workers()) == 2)
    url = f"http://127.0.0.1:{service.port}/v1/recommend:batch"
    body = {"user_ids": [10] * 1000, "k": 5, "explain": True, "describe": True}
    replies = []
    begun = threading.Thread(
        target=lambda: replies.append(httpx.post(url, json=body, headers={"authorization": f"Bearer {TOKEN}"}))
    )
    begun.start()
    begun_blocks = re.compile(r'twofold_stage_seconds_count{stage="store"} [1-9]')
    service.until(lambda: begun_blocks.search(service.reply("/metrics").text))
    assert service.stop() == 0
    begun.join()
    assert [(reply.status_code, len(reply.json()["answers"])) for reply in replies] == [(200, 1000)]
    assert len(service.logged("stopped")) == 2
    assert service.workers() == []


def test_an_idle_connection_outlives_the_time_that_clients_keep_one(start: Callable[..., Running]) -> None:
    with socket.create_connection(("127.0.0.1", start().port)) as connection:
        for _ in range(2):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(2**16).startswith(b"HTTP/1.1 200 ")
            time.sleep(6)  # uvicorn's own limit is 5 s


def test_metrics_of_all_workers_are_one_page(start: Callable[..., Running]) -> None:
    service = start("--workers", "2", "--log-requests")
    service.until(lambda: len(service.workers()) == 2)
    requests = 0

    def both_have_replied() -> bool:
        nonlocal requests
        requests += bool(service.call("/v1/recommend", {"user_id": 10}))
        logged = [line for line in service.logged("request") if line["route"] == "/v1/recommend"]
        return len({line["process"] for line in logged}) == 2

    service.until(both_have_replied)
    lines = service.reply("/metrics").text.splitlines()
    assert f'twofold_requests_total{{route="/v1/recommend",status="200"}} {requests}.0' in lines


def test_a_service_that_cannot_start_gives_one_message(run: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RequestError, match=rf"cannot listen on 127.0.0.1:{port}: .*in use.*--host and --port"):
            serve(ServeOptions(run, str(tmp_path / "histories.db"), port=port), on_listening=pytest.fail)
        command = [sys.executable, "-m", "twofold", "serve", "--port", f"{port}", str(run)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert (done.returncode, done.stdout) == (2, ""), "an address at which nothing answers"
    command = [sys.executable, "-m", "twofold", "serve", "--port", "0"]
    for folder, says in ((tmp_path / "nowhere", "there is no run folder"), (tmp_path, "no complete index/ stage")):
        done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 2
        assert (
            f"RunError {says}" in done.stderr.replace(str(folder), "").replace("run  has", "run has")
            or says in done.stderr
        )
        assert "Traceback" not in done.stderr
