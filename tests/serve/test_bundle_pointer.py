"""The pointer that services of many hosts follow: published, fetched with its content checked, and followed."""

import asyncio
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.serve.running import Running
from tests.serve.tiny import other_run, write_run
from twofold.cli.serving import publish as publish_command
from twofold.errors import RequestError, RunError
from twofold.serve import bundle_pointer
from twofold.serve.bundle import content_digest
from twofold.serve.bundle_pointer import Pointer, fetch, follow_pointer, publish, read_pointer
from twofold.serve.bundle_swaps import BundleSwitch
from twofold.serve.live_bundle import open_live_bundle
from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.shared_state import SharedFolder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "trained" / "tiny")


@pytest.fixture
def pointer(tmp_path: Path) -> Path:
    (tmp_path / "shared").mkdir()
    (tmp_path / "host").mkdir()
    return tmp_path / "shared" / "current.json"


def test_a_published_run_is_fetched_once_with_the_content_that_the_pointer_names(run: Path, pointer: Path) -> None:
    digest, host = content_digest(run), pointer.parents[1] / "host"
    published = publish(run, pointer)
    assert published == read_pointer(pointer) == Pointer(f"tiny-{digest[:12]}", digest)
    folder = fetch(pointer, host)
    assert (folder, content_digest(folder)) == (host / f"tiny-{digest[:12]}", digest)
    assert [path.name for path in folder.iterdir()] == ["index"]
    marker = folder / "index" / "manifest.json"
    written = marker.stat().st_mtime_ns
    assert fetch(pointer, host) == folder
    assert marker.stat().st_mtime_ns == written
    assert publish(run, pointer) == published
    assert fetch(pointer, pointer.parent) == pointer.parent / published.run  # no copy beside the pointer
    assert sorted(path.name for path in host.iterdir()) == [published.run]


def test_a_run_beside_the_pointer_keeps_its_name(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run.parent / "current.json"
    publish_command(run, file)
    assert capsys.readouterr().out == f"{file} names tiny, bundle {content_digest(run)[:12]}\n"
    assert fetch(file, run.parent) == run


def test_a_copy_that_is_damaged_is_not_used(run: Path, pointer: Path) -> None:
    published, host = publish(run, pointer), pointer.parents[1] / "host"
    vectors = pointer.parent / published.run / "index" / "item_vectors.npy"
    content = bytearray(vectors.read_bytes())
    content[-1] ^= 1
    vectors.write_bytes(content)
    with pytest.raises(RunError, match=r"item_vectors.npy is damaged"):
        fetch(pointer, host)
    assert [*host.iterdir()] == []


def test_another_bundle_under_the_name_of_the_pointer_is_not_used(run: Path, pointer: Path) -> None:
    published, host = publish(run, pointer), pointer.parents[1] / "host"
    shutil.rmtree(pointer.parent / published.run)
    shutil.copytree(other_run(run, "other"), pointer.parent / published.run)
    message = rf"names the bundle {published.bundle[:12]}, but .* does not hold it\. Copy .* `twofold publish`"
    with pytest.raises(RunError, match=message):
        fetch(pointer, host)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"the pointer .*current.json cannot be read: No such file.*`twofold publish`"),
        ("{", r"the pointer .*current.json is damaged: .*Write it again"),
        (json.dumps({"run": "tiny"}), r"is damaged: Object missing required field `bundle`"),
        (
            json.dumps({"run": "../trained/tiny", "bundle": "a"}),
            r"names the run '../trained/tiny': the name of a folder",
        ),
        (b'{"run": "tiny\xe9", "bundle": "a"}', r"is damaged: 'utf-8' codec can't decode .*Write it again"),
        (json.dumps({"run": "..", "bundle": "a"}), r"names the run '..': the name of a folder beside it is needed"),
    ],
)
def test_a_pointer_that_names_no_folder_beside_it_is_refused(
    pointer: Path, content: str | bytes | None, message: str
) -> None:
    if content is not None:
        pointer.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(RunError, match=message):
        read_pointer(pointer)


def test_a_damaged_run_and_a_missing_folder_are_refused_before_the_pointer_changes(run: Path, pointer: Path) -> None:
    publish(run, pointer)
    before = pointer.read_text()
    damaged = other_run(run, "damaged")
    (damaged / "index" / "user_tower.onnx").unlink()
    with pytest.raises(RunError, match=r"user_tower.onnx is missing"):
        publish(damaged, pointer)
    assert pointer.read_text() == before
    with pytest.raises(RequestError, match=r"missing cannot be written: .*Name a pointer in an existing folder"):
        publish(run, pointer.parent / "missing" / "current.json")


@pytest.mark.parametrize("name", ["my run", "lauf-ä", "v1+b", ".hidden"])
def test_a_run_whose_name_no_pointer_may_hold_is_refused_before_anything_is_copied(
    run: Path, pointer: Path, name: str
) -> None:
    publish(run, pointer)
    before, folders = pointer.read_text(), sorted(pointer.parent.iterdir())
    message = r"the run's folder is named '{}': services .* letters, digits and _ \. -.*Rename .* publish it again"
    other = other_run(run, name)
    for file in (pointer, run.parent / "current.json"):  # to be copied, and beside the pointer
        with pytest.raises(RequestError, match=message.format(re.escape(name))):
            publish(other, file)
    assert (pointer.read_text(), sorted(pointer.parent.iterdir())) == (before, folders)
    assert not (run.parent / "current.json").exists()


# --- followed by one worker -------------------------------------------------------------------------------------------


@pytest.fixture
def bundles(run: Path, tmp_path: Path) -> BundleSwitch:
    (tmp_path / "workers").mkdir()
    host = tmp_path / "host"
    return BundleSwitch(open_live_bundle(run), host, ServiceMetrics(), SharedFolder(tmp_path / "workers"))


async def follow_until(pointer: Path, bundles: BundleSwitch, digest: str, *, mend: Callable[[], object]) -> None:
    """Follows a pointer until the lag is 1, mends what was wrong, and ends when the bundle is used."""
    assert bundles._shared is not None
    task = asyncio.create_task(follow_pointer(pointer, bundles._runs, bundles=bundles, shared=bundles._shared))
    async with asyncio.timeout(20):
        while not lags(bundles):
            assert not task.done()
            await asyncio.sleep(0.01)
        mend()
        while bundles.current.digest != digest or lags(bundles):
            assert not task.done()
            await asyncio.sleep(0.01)
    task.cancel()


def lags(bundles: BundleSwitch) -> bool:
    return "twofold_pointer_lag 1.0" in bundles.metrics.page().decode()


def test_a_pointer_with_a_bad_byte_is_logged_and_the_next_one_is_followed(
    run: Path, pointer: Path, bundles: BundleSwitch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bundle_pointer, "POINTER_POLL_S", 0.01)
    other = other_run(run, "other")
    pointer.write_bytes(b'{"run": "tiny\xe9", "bundle": "a"}')
    with caplog.at_level(logging.INFO, "twofold.serve"):
        asyncio.run(follow_until(pointer, bundles, content_digest(other), mend=lambda: publish(other, pointer)))
    (logged, *_) = [record for record in caplog.records if record.getMessage() == "pointer cannot be followed"]
    assert "can't decode byte 0xe9" in vars(logged)["facts"]["error"]


def test_an_unforeseen_error_is_logged_with_its_lines_and_the_pointer_is_followed_on(
    run: Path, pointer: Path, bundles: BundleSwitch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(file: Path) -> Pointer:
        raise ZeroDivisionError("unforeseen")

    other = other_run(run, "other")
    publish(other, pointer)
    monkeypatch.setattr(bundle_pointer, "POINTER_POLL_S", 0.01)
    monkeypatch.setattr(bundle_pointer, "read_pointer", fail)
    with caplog.at_level(logging.INFO, "twofold.serve"):
        asyncio.run(follow_until(pointer, bundles, content_digest(other), mend=monkeypatch.undo))
    (logged, *_) = [record for record in caplog.records if record.getMessage() == "pointer cannot be followed"]
    assert vars(logged)["facts"]["error"] == "ZeroDivisionError('unforeseen')"
    assert logged.exc_info is not None


# --- services ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def services(run: Path, pointer: Path) -> Iterator[list[Running]]:
    """Two services, each with runs of its own, as on two hosts; neither has a run to start with."""
    publish(run, pointer)
    hosts = [pointer.parents[1] / name for name in ("host", "host2")]
    hosts[1].mkdir()
    options = ("--workers", "2", "--follow", str(pointer))
    running = [Running(host / "none", *options, "--histories", str(host / "histories.db")) for host in hosts]
    yield running
    for service in running:
        if service.process.poll() is None:
            assert service.stop() == 0


@pytest.mark.slow
def test_services_of_two_hosts_follow_the_pointer(services: list[Running], run: Path, pointer: Path) -> None:
    first, other = content_digest(run)[:12], other_run(run, "other")
    second = content_digest(other)[:12]
    for service in services:
        service.until(lambda service=service: len(service.workers()) == 2)
        assert bundles_of(service) == {first}
        refused = service.reply("/v1/admin/swap", {"run": "tiny"})
        assert refused.status_code == 409
        assert "follows the pointer current.json: name the run there (twofold publish)" in refused.json()["detail"]
    publish(other, pointer)
    for service in services:
        service.until(lambda service=service: bundles_of(service) == {second})
        service.until(lambda service=service: "twofold_pointer_lag 0.0" in service.reply("/metrics").text)
    third = publish(other_run(run, "third"), pointer)
    (pointer.parent / third.run / "index" / "user_tower.onnx").write_bytes(b"damaged")
    for service in services:
        service.until(
            lambda service=service: service.logged("pointer cannot be followed") or bundles_of(service) != {second}
        )
        service.until(lambda service=service: "twofold_pointer_lag 1.0" in service.reply("/metrics").text)
        assert bundles_of(service) == {second}
    shutil.rmtree(pointer.parent / third.run)
    publish(run.parent / "third", pointer)
    for service in services:
        service.until(lambda service=service: bundles_of(service) == {third.bundle[:12]})


def bundles_of(service: Running) -> set[str]:
    """Returns the bundles that a number of requests on new connections are answered by."""
    return {httpx.get(f"http://127.0.0.1:{service.port}/health", timeout=30).json()["bundle"] for _ in range(12)}
