"""Agreement of workers: records that are cut off, swaps in two phases, links, and bundles that change on the disk."""

import ast
import asyncio
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import pytest

from tests.serve.tiny import add_part, other_run, write_run
from twofold import run_folder
from twofold.errors import RunError
from twofold.run_folder import MANIFEST, file_digest
from twofold.serve import bundle_swaps, item_updates, shared_state
from twofold.serve.event_store import open_histories
from twofold.serve.http_errors import HttpError
from twofold.serve.item_updates import LiveItems
from twofold.serve.live_bundle import open_live_bundle
from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.schemas import ItemUpsert, Swap
from twofold.serve.service import Service
from twofold.serve.shared_state import ChosenBundle, RecordLog, SharedFolder
from twofold.serve.workers import ServeOptions, open_service

# --- records ----------------------------------------------------------------------------------------------------------


def read(log: RecordLog) -> list[bytes]:
    with log.locked():
        return list(log.new_records())


def append(log: RecordLog, record: bytes) -> None:
    with log.locked():
        assert not list(log.new_records())
        log.append(record)


@pytest.mark.parametrize("cut", [1, 5, 8, 12])
def test_a_record_that_was_cut_off_is_removed_and_later_ones_are_read(tmp_path: Path, cut: int) -> None:
    one, other = RecordLog(tmp_path / "items.log"), RecordLog(tmp_path / "items.log")
    append(one, b"first")
    assert read(other) == [b"first"]
    with (tmp_path / "items.log").open("ab") as file:  # as by a process that was killed while it wrote
        file.write(shared_state._framed(b"second")[:cut])
    assert not other.is_read
    assert read(other) == []
    assert other.is_read
    append(one, b"third")
    assert read(other) == [b"third"]
    assert read(RecordLog(tmp_path / "items.log")) == [b"first", b"third"]


def test_a_record_that_does_not_fit_on_the_disk_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = RecordLog(tmp_path / "items.log")
    append(log, b"first")
    monkeypatch.setattr(shared_state, "SPARE_BYTES", 2**60)
    with pytest.raises(OSError, match="bytes are free"):
        append(log, b"second")
    monkeypatch.undo()
    append(log, b"third")
    assert read(RecordLog(tmp_path / "items.log")) == [b"first", b"third"]


def test_a_file_that_was_replaced_is_read_from_its_first_record(tmp_path: Path) -> None:
    one, other = RecordLog(tmp_path / "items.log"), RecordLog(tmp_path / "items.log")
    append(one, b"first")
    assert read(other) == [b"first"]
    with one.locked():
        one.replace([b"all"])
    append(one, b"more")
    assert read(other) == [b"all", b"more"]
    assert one.is_read


def test_updates_of_the_same_items_do_not_grow_the_file(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_updates, "COMPACT_FROM_BYTES", 20_000)
    workers = [open_live_bundle(run).items for _ in range(2)]
    for items in workers:
        items.follow(tmp_path / "items.log")
    one, other = workers
    sizes = []
    for number in range(60):
        one.upsert([ItemUpsert(item_id=name, attributes={"colour": f"{name}{number}"}) for name in "abc"])
        sizes.append((tmp_path / "items.log").stat().st_size)
        if number % 7 == 0:
            other.catch_up()
    assert max(sizes) < 30_000
    late = open_live_bundle(run).items
    late.follow(tmp_path / "items.log")
    other.catch_up()
    for items in (one, other, late):
        assert [colours(items, name) for name in "abcd"] == ["a59", "b59", "c59", "red"]


def colours(items: LiveItems, name: str) -> Any:
    return items.now.attributes_of(items.now.rows_of([name]))[0]["colour"]


# --- bundles ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "runs" / "tiny")


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


def worker(run: Path, folder: Path, process: int | None = None) -> Service:
    """Opens a worker as the service does; the test stands for two processes that are alive."""
    options = ServeOptions(run, str(folder / "histories.db"))
    return open_service(options, SharedFolder(folder, process))


@pytest.fixture
def two(run: Path, shared: Path) -> Iterator[tuple[Service, Service]]:
    both = worker(run, shared), worker(run, shared, os.getppid())
    yield both
    for service in both:
        asyncio.run(service.histories.close())


async def while_following(other: Service, work: Any) -> Any:
    following = asyncio.create_task(other.follow())
    try:
        return await asyncio.wait_for(work, 60)
    finally:
        for _ in range(100):
            if other.bundles.is_agreed:
                break
            await asyncio.sleep(0.05)
        following.cancel()


def test_no_worker_switches_before_all_have_opened(two: tuple[Service, Service], run: Path) -> None:
    one, other = two
    newer = other_run(run, "newer")

    async def swapped() -> Any:
        swap = asyncio.create_task(one.swap(Swap(run="newer")))
        await asyncio.sleep(0.5)
        assert not swap.done()
        assert one.current.digest == other.current.digest
        return await while_following(other, swap)

    assert asyncio.run(swapped()).was_swapped
    assert one.current.digest == other.current.digest == open_live_bundle(newer).digest


def test_a_swap_that_one_worker_cannot_follow_is_made_by_none(
    two: tuple[Service, Service], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    before = one.current.digest
    newer = other_run(run, "newer")
    opened = open_live_bundle(newer)
    calls: list[Path] = []

    def only_the_first(folder: Path, qdrant: str | None, folder_of_workers: SharedFolder | None) -> Any:
        calls.append(folder)
        if len(calls) > 1:
            raise RunError("out of memory")
        return opened

    monkeypatch.setattr(bundle_swaps, "open_live_bundle", only_the_first)
    with pytest.raises(RunError, match="another worker cannot open it: out of memory"):
        asyncio.run(while_following(other, one.swap(Swap(run="newer"))))
    assert one.current.digest == other.current.digest == before


def test_a_follower_tries_again_until_it_has_the_bundle(two: tuple[Service, Service], run: Path) -> None:
    one, other = two
    newer = other_run(run, "newer")
    opened = open_live_bundle(newer)
    one.bundles.current = opened
    SharedFolder(two[0].bundles._shared.folder).commit(  # type: ignore[union-attr]
        ChosenBundle("newer", str(newer), opened.digest)
    )
    shutil.move(newer, newer.with_name("away"))

    async def follow() -> None:
        following = asyncio.create_task(other.follow())
        await asyncio.sleep(0.5)
        assert other.current.digest != opened.digest
        with pytest.raises(HttpError, match="does not have the bundle of the other workers yet") as refused:
            await other.ready()
        assert refused.value.status == 503
        shutil.move(newer.with_name("away"), newer)
        for _ in range(200):
            if other.bundles.is_agreed:
                break
            await asyncio.sleep(0.05)
        following.cancel()
        assert (await other.ready()).run == "newer"

    asyncio.run(follow())
    assert other.current.digest == opened.digest


def test_a_swap_does_not_wait_for_a_store_that_does_not_respond(
    two: tuple[Service, Service], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    other_run(run, "newer")
    waiting = []

    async def no_reply(known: int) -> None:
        waiting.append(known)
        await asyncio.Event().wait()

    monkeypatch.setattr(other.histories, "marks", no_reply)

    async def swapped() -> None:
        following = asyncio.create_task(other.follow())
        while not waiting:
            await asyncio.sleep(0.01)
        await asyncio.wait_for(one.swap(Swap(run="newer")), 60)
        for _ in range(100):
            if other.bundles.is_agreed:
                break
            await asyncio.sleep(0.05)
        following.cancel()

    asyncio.run(swapped())
    assert one.current.name == other.current.name == "newer"


def test_other_content_with_the_same_inputs_is_another_bundle(two: tuple[Service, Service], run: Path) -> None:
    one, other = two
    before = one.current.digest
    add_part(run, "rebuilt")
    swapped = asyncio.run(while_following(other, one.swap(Swap())))
    assert swapped.was_swapped
    assert one.current.digest == other.current.digest != before


def test_a_link_is_followed_by_all_workers_and_by_later_ones(
    two: tuple[Service, Service], run: Path, shared: Path, tmp_path: Path
) -> None:
    one, other = two
    elsewhere = write_run(tmp_path / "elsewhere" / "evil")
    add_part(elsewhere, "evil")
    (run.parent / "link").symlink_to(elsewhere)
    asyncio.run(while_following(other, one.swap(Swap(run="link"))))
    later = worker(run, shared)
    assert {service.current.folder for service in (one, other, later)} == {elsewhere}
    # Where the link leads now counts for the next swap, and not for a worker that is replaced.
    (run.parent / "link").unlink()
    (run.parent / "link").symlink_to(run)
    assert worker(run, shared).current.folder == elsewhere
    asyncio.run(while_following(other, one.swap(Swap())))
    assert {service.current.folder for service in (one, other)} == {run}


def test_a_run_given_as_a_link_is_reopened_where_it_leads_now(run: Path, shared: Path) -> None:
    current = run.parent / "current"
    current.symlink_to("tiny")
    service = worker(current, shared)
    assert asyncio.run(service.health()).run == "tiny"
    other_run(run, "newer")
    current.unlink()
    current.symlink_to("newer")
    assert asyncio.run(service.swap(Swap())).run == "newer"


def test_a_bundle_overwritten_in_place_is_noticed_and_opened_anew(
    two: tuple[Service, Service], run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = two
    before = one.current.digest
    asyncio.run(one.bundles.check_files())
    assert one.current.digest == before
    note = other_run(run, "newer")
    for path in sorted((note / "index").rglob("*"), key=lambda path: path.name == "manifest.json"):
        if path.is_file():
            target = run / "index" / path.relative_to(note / "index")
            target.write_bytes(path.read_bytes())
    one.bundles._next_check = 0.0
    with caplog.at_level("INFO", "twofold.serve"):
        asyncio.run(while_following(other, one.bundles.check_files()))
    assert "bundle overwritten in place" in caplog.messages
    assert one.current.digest == other.current.digest != before


def test_a_worker_does_not_start_on_other_content_than_the_others_use(run: Path, shared: Path) -> None:
    worker(run, shared)
    add_part(run, "rebuilt")
    with pytest.raises(RunError, match="is no longer the one that the other workers use"):
        worker(run, shared)
    SharedFolder(shared).release()  # no worker is left
    assert worker(run, shared).bundles.is_agreed


def test_checksums_are_compared_by_one_worker(run: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker of four would else read a bundle of 10 GB whole."""
    compared: list[Path] = []

    def counted(path: Path) -> str:
        compared.append(path)
        return file_digest(path)

    def parsed(text: str) -> Any:
        with parser:
            return literal_eval(text)

    monkeypatch.setattr(run_folder, "file_digest", counted)
    # CPython 3.11 fails now and then where threads parse at once; each worker is a process, with a parser of its own.
    parser, literal_eval = Lock(), ast.literal_eval
    monkeypatch.setattr(ast, "literal_eval", parsed)
    other, folder = other_run(run, "other"), SharedFolder(shared)
    files = [path for path in (other / "index").rglob("*") if path.is_file() and path.name != MANIFEST]
    with ThreadPoolExecutor(4) as workers:
        opened = [*workers.map(lambda _: open_live_bundle(other, shared=folder), range(4))]
    assert {each.digest for each in opened} == {opened[0].digest}
    assert sorted(compared) == sorted(files)
    item_vectors = other / "index" / "item_vectors.npy"
    content = bytearray(item_vectors.read_bytes())
    content[-1] ^= 1
    item_vectors.write_bytes(content)  # in place, the same size
    for _ in range(2):  # a failure is no verification
        with pytest.raises(RunError, match="is damaged"):
            open_live_bundle(other, shared=folder)


def test_metrics_name_the_bundle_in_use(run: Path, tmp_path: Path) -> None:
    metrics = ServiceMetrics()
    service = Service(open_live_bundle(run), run.parent, open_histories(tmp_path / "h.db"), metrics)
    first = service.current.digest[:12]
    add_part(run, "rebuilt")
    asyncio.run(service.swap(Swap()))
    page = metrics.page().decode()
    assert f'twofold_bundle_info{{bundle="{first}"}} 0.0' in page
    assert f'twofold_bundle_info{{bundle="{service.current.digest[:12]}"}} 1.0' in page
