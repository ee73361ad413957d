"""A run, its service, and a client of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.client import Client
from tests.serve.redis_server import redis_in
from tests.serve.tiny import write_run
from twofold.serve.app import build_app
from twofold.serve.event_store import open_histories
from twofold.serve.live_bundle import open_live_bundle
from twofold.serve.middleware import Limits
from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.service import Service


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture
def service(run: Path, tmp_path: Path) -> Service:
    return Service(open_live_bundle(run), run.parent, open_histories(tmp_path / "histories.db"), ServiceMetrics())


@pytest.fixture
def client(service: Service) -> Client:
    return Client(build_app(service, Limits()))


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_in(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(params=["sqlite", "redis"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Returns the address of a store: each opening stands for a worker."""
    return (
        str(tmp_path / "serve" / "histories.db") if request.param == "sqlite" else request.getfixturevalue("redis_url")
    )


@pytest.fixture
def user(request: pytest.FixtureRequest) -> str:
    return request.node.name
