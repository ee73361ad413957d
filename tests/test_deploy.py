"""Runs docs/deploy.md: two services behind nginx that share histories, and a service that searches in a database."""

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.redis_server import DURABLE, redis_in
from tests.serve.running import TOKEN, Running
from tests.serve.tiny import write_run
from twofold.cli.serving import Database, export
from twofold.serve.prometheus import SHARED_METRICS

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[1] / "docs" / "deploy.md").read_text(encoding="utf-8")
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def services(tmp_path: Path) -> Iterator[list[Running]]:
    """Two services that share a Redis."""
    run = write_run(tmp_path / "runs" / "tiny")
    assert " ".join(DURABLE).replace("--save  ", '--save "" ') in PAGE
    with redis_in(tmp_path) as url:
        both = [Running(run, "--histories", url) for _ in range(2)]
        yield both
        for service in both:
            if service.process.poll() is None:
                service.stop()


@pytest.fixture
def front(services: list[Running], tmp_path: Path) -> Iterator[httpx.Client]:
    """nginx with the configuration of the page, with the addresses of this test."""
    if NGINX is None:
        pytest.skip("no nginx on this machine: apt-get install nginx-light")
    port = free_port()
    shown = block("nginx").replace("listen 80;", f"listen 127.0.0.1:{port};")
    for number, service in enumerate(services, start=1):
        assert f"10.0.0.{number}:8000" in shown
        shown = shown.replace(f"10.0.0.{number}:8000", f"127.0.0.1:{service.port}")
    temporary = "".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    as_root = "user root;" if os.geteuid() == 0 else ""
    around = f"pid {tmp_path}/pid; error_log {tmp_path}/error.log; daemon off; {as_root} events {{}}\n"
    inside = f"access_log off; client_body_temp_path {tmp_path}/body; {temporary}\n{shown}"
    (tmp_path / "nginx.conf").write_text(f"{around}http {{ {inside} }}\n")
    command = [NGINX, "-p", str(tmp_path), "-e", str(tmp_path / "error.log"), "-c", str(tmp_path / "nginx.conf")]
    output = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert output.returncode == 0, output.stderr
    nginx = subprocess.Popen(command)
    headers = {"authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30) as client:
        until(lambda: is_up(client))
        yield client
    nginx.send_signal(signal.SIGQUIT)
    assert nginx.wait(30) == 0


def is_up(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def until(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_services_behind_nginx_answer_as_one(front: httpx.Client, services: list[Running]) -> None:
    for place, item in enumerate("abc"):
        event = {"user_id": "new", "item_id": item, "at": 1_000 + place}
        assert front.post("/v1/events", json={"events": [event]}).json()["accepted"] == 1
        for _ in range(4):  # from either service
            answer = front.post("/v1/recommend", json={"user_id": "new", "explain": True}).json()
            assert [known["item_id"] for known in answer["history"]] == list("cba")[-place - 1 :]
    pages = [service.reply("/metrics").text for service in services]
    assert all('twofold_requests_total{route="/v1/recommend",status="200"}' in page for page in pages)
    assert front.get("/").text.startswith("<!doctype html>")
    assert (front.get("/metrics").status_code, front.post("/v1/admin/swap", json={}).status_code) == (403, 403)


def test_a_dead_service_fails_no_request_and_two_give_a_clean_503(front: httpx.Client, services: list[Running]) -> None:
    statuses: list[int] = []
    is_over = threading.Event()

    def load() -> None:
        while not is_over.is_set():
            statuses.append(front.post("/v1/recommend", json={"user_id": 10}).status_code)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: len(statuses) > 50)
    kill(services[0])
    answered = len(statuses)
    until(lambda: len(statuses) > answered + 200)
    is_over.set()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200}
    kill(services[1])
    for path in ("/v1/recommend", "/v1/events"):
        gone = front.post(path, json={"user_id": 10})
        assert (gone.status_code, gone.headers["retry-after"]) == (503, "1")
        assert gone.json()["detail"] == "No service answers: try again in 1 s."


def kill(service: Running) -> None:
    """Kills the supervisor and its worker together, so that neither deletes the temporary folder."""
    (worker,) = service.workers()
    (metrics,) = re.findall(rf"{SHARED_METRICS}=([^\0]+)", Path(f"/proc/{worker}/environ").read_text())
    for process in (service.process.pid, worker):
        os.kill(process, signal.SIGKILL)
    service.process.wait()
    shutil.rmtree(Path(metrics).parent)


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect")
def test_a_service_that_searches_in_a_database_gives_the_same_replies(services: list[Running], tmp_path: Path) -> None:
    pytest.importorskip("qdrant_client", reason="pip install 'twofold[qdrant]'")
    run, database = tmp_path / "runs" / "tiny", str(tmp_path / "database")
    export(run, Database.qdrant, database)
    searching = Running(run, "--qdrant", database, "--histories", str(tmp_path / "h.db"))
    try:
        requests = [{"user_id": user, "k": 4, "context": {"at": 43_200_000}} for user in (10, 20, 40)]
        for request in [*requests, requests[0] | {"filter": "length_s < 31 AND NOT colour = 'blue'"}]:
            own, other = (each.call("/v1/recommend", request) for each in (services[0], searching))
            assert (own.pop("is_exact"), other.pop("is_exact")) == (True, False)
            assert own == other
        assert searching.call("/ready")["items"] == 7
    finally:
        assert searching.stop() == 0
