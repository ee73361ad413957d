"""Upserts last until another bundle is swapped in: in every worker, also when the first bundle comes back."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.client import Client
from tests.serve.tiny import DIM, add_part, other_run, write_run
from twofold.serve.app import build_app
from twofold.serve.bundle import content_digest
from twofold.serve.middleware import Limits
from twofold.serve.schemas import Swap
from twofold.serve.service import Service
from twofold.serve.shared_state import ChosenBundle, SharedFolder
from twofold.serve.workers import ServeOptions, open_service

UPSERTS = {
    "upsert": [
        {"item_id": "promo", "vector": [1.0] + [0.0] * (DIM - 1)},
        {"item_id": "b", "attributes": {"length_s": 999.0}},
    ]
}
CHANGED, BUNDLE = (True, 999.0), (False, 10.0)  # whether "promo" exists, and the length of "b"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    first = write_run(tmp_path / "runs" / "first")
    other_run(first, "second")
    (tmp_path / "shared").mkdir()
    return first


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    return tmp_path / "shared"


@pytest.fixture
def two(run: Path, shared: Path) -> Iterator[list[Service]]:
    """Two workers; the process of the tests and its parent stand for theirs, which are alive."""
    both = [worker(run, shared), worker(run, shared, os.getppid())]
    yield both
    for service in both:
        asyncio.run(service.histories.close())


def worker(run: Path, shared: Path, process: int | None = None) -> Service:
    return open_service(ServeOptions(run, str(shared / "histories.db")), SharedFolder(shared, process))


def client(service: Service) -> Client:
    return Client(build_app(service, Limits(admin_token="secret")), "secret")


def items_of(service: Service) -> tuple[bool, float]:
    asyncio.run(service._follow_store())
    one = client(service)
    status, _ = one.get("/v1/items/promo")
    return status == 200, one.get("/v1/items/b")[1]["attributes"]["length_s"]


async def _swap(one: Service, run: str, others: tuple[Service, ...]) -> Any:
    following = [asyncio.create_task(other.follow()) for other in others]
    swapped = await asyncio.wait_for(one.swap(Swap(run=run)), 60)
    async with asyncio.timeout(20):
        while not all(other.bundles.is_agreed for other in others):
            await asyncio.sleep(0.05)
    for task in following:
        task.cancel()
    return swapped


def swap(one: Service, run: str, *others: Service) -> None:
    asyncio.run(_swap(one, run, others))


def test_a_bundle_that_comes_back_has_none_of_its_earlier_upserts(two: list[Service], run: Path, shared: Path) -> None:
    one, other = two
    assert client(one).post("/v1/admin/items", UPSERTS)[0] == 200
    assert items_of(one) == items_of(other) == CHANGED
    swap(one, "second", other)
    assert items_of(one) == items_of(other) == BUNDLE
    swap(other, "first", one)
    assert items_of(one) == items_of(other) == items_of(worker(run, shared)) == BUNDLE
    assert client(other).post("/v1/admin/items", UPSERTS)[0] == 200  # new ones last again, in a replaced worker too
    assert items_of(one) == items_of(other) == items_of(worker(run, shared)) == CHANGED


def test_upserts_last_when_the_bundle_in_use_is_swapped_in(two: list[Service], run: Path, shared: Path) -> None:
    one, other = two
    assert client(one).post("/v1/admin/items", UPSERTS)[0] == 200
    (run.parent / "link").symlink_to(run)
    swap(one, "link", other)
    assert items_of(one) == items_of(other) == items_of(worker(run, shared)) == CHANGED


def test_a_worker_that_missed_both_swaps_drops_the_upserts_too(two: list[Service], run: Path, shared: Path) -> None:
    """It had opened the second bundle and did not use it before the first came back."""
    one, other = two
    assert client(one).post("/v1/admin/items", UPSERTS)[0] == 200
    assert items_of(other) == CHANGED
    first, second = content_digest(run), content_digest(run.parent / "second")
    SharedFolder(shared, os.getppid()).report(first, second, "")
    swap(one, "second")
    swap(one, "first")
    assert not other.bundles.is_agreed
    asyncio.run(other.bundles.follow())
    assert other.bundles.is_agreed
    assert items_of(one) == items_of(other) == BUNDLE


def test_upserts_outlive_all_workers_but_not_another_bundle(run: Path, shared: Path) -> None:
    """A supervisor that has no worker left releases the bundle, and the next worker opens the run again."""
    assert client(worker(run, shared)).post("/v1/admin/items", UPSERTS)[0] == 200
    SharedFolder(shared).release()
    assert items_of(worker(run, shared)) == CHANGED
    SharedFolder(shared).release()
    SharedFolder(shared).release()  # the next worker died before it had opened the bundle
    manifest = run / "index" / "manifest.json"
    before = manifest.read_text()
    add_part(run, "rebuilt")
    assert items_of(worker(run, shared)) == BUNDLE
    SharedFolder(shared).release()
    manifest.write_text(before)
    assert items_of(worker(run, shared)) == BUNDLE


def test_swaps_are_counted_where_another_bundle_follows(shared: Path, run: Path) -> None:
    folder = SharedFolder(shared)
    chosen = [ChosenBundle("run", "/runs/run", digest) for digest in ("a", "a", "b", "a")]
    assert [folder.claim(chosen[0]).swaps, *(folder.commit(each).swaps for each in chosen)] == [0, 0, 0, 1, 2]
    folder.release()
    assert (folder.claim(chosen[2]).swaps, folder.claim(chosen[0]).bundle) == (3, "b")
