"""A service whose run or store is named by a link: workers that are started after the link was changed."""

import os
import signal
from pathlib import Path

import pytest

from tests.serve.running import Running
from tests.serve.tiny import other_run, write_run

pytestmark = pytest.mark.slow


def lead_to(link: Path, target: str) -> None:
    """Changes a link in one step, as docs/deploy.md recommends for swaps."""
    (link.parent / "next").symlink_to(target)
    os.replace(link.parent / "next", link)


@pytest.mark.parametrize(
    "options", [(), ("--histories", "current/serve/histories.db")], ids=["default", "below a link"]
)
def test_a_worker_replaced_after_a_link_was_changed_has_the_store_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    run, current = write_run(tmp_path / "runs" / "A"), tmp_path / "runs" / "current"
    other_run(run, "B")
    lead_to(current, "A")
    monkeypatch.chdir(current.parent)
    service = Running(Path("current"), "--workers", "2", *options)
    try:
        service.until(lambda: len(service.workers()) == 2)
        service.call("/v1/events", {"events": [{"user_id": "new", "item_id": "a"}]})
        service.call("/v1/admin/items", {"remove": ["f"]})
        lead_to(current, "B")
        service.process.send_signal(signal.SIGHUP)
        service.until(lambda: len(service.logged("swapped")) == 2)
        for replaced, worker in enumerate(service.workers(), start=1):
            os.kill(worker, signal.SIGKILL)
            service.until(lambda count=2 + replaced: len(service.logged("ready")) == count)  # type: ignore[misc]
        reply = service.call("/v1/recommend", {"user_id": "new", "k": 7, "explain": True})
    finally:
        service.stop()
    assert [event["item_id"] for event in reply["history"]] == ["a"]
    assert "f" not in {item["item_id"] for item in reply["items"]}
    assert len(list(tmp_path.rglob("histories.db"))) == 1
