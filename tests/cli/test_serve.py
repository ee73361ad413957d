"""The store of live events that `twofold serve` chooses: what it holds stays through a swap by a link or by names."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_runs import begun
from twofold.cli import main as cli
from twofold.runs import list_runs
from twofold.serve import workers
from twofold.serve.event_store import LiveEvent, Marks, open_histories


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `runs` with the runs A and B, in the working folder."""
    for name in "AB":
        begun(tmp_path / "runs" / name)  # type: ignore[no-untyped-call]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TWOFOLD_HISTORIES", raising=False)
    return tmp_path / "runs"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Returns the store that `twofold serve RUN` would open."""
    opened: list[workers.ServeOptions] = []
    monkeypatch.setattr(workers, "serve", lambda options, on_listening: opened.append(options))

    def chosen(run: str) -> str:
        cli.app(["serve", run], standalone_mode=False)
        return opened[-1].histories

    return chosen


async def fill(where: str) -> None:
    histories = open_histories(where)
    await histories.append([("new", LiveEvent("a", 1, "positive"))])
    await histories.mark("withdrawn", ["b"], is_marked=True)
    await histories.delete_user("gone")
    await histories.close()


async def content(where: str) -> tuple[list[LiveEvent], Marks | None]:
    histories = open_histories(where)
    (events,), marks = await histories.read(["new"]), await histories.marks(-1)
    await histories.close()
    return events, marks


KEPT = ([LiveEvent("a", 1, "positive")], Marks(2, frozenset("b"), frozenset({"gone"})))


def test_bundles_swapped_by_a_link_or_by_names_have_the_same_store(runs: Path, store: Callable[[str], str]) -> None:
    (runs / "current").symlink_to("A")
    for name in ("current", "A"):
        asyncio.run(fill(store(f"runs/{name}")))
    (runs / "next").symlink_to("B")
    os.replace(runs / "next", runs / "current")
    (runs / "A").rename(runs / "old")
    (runs / "B").rename(runs / "A")
    for name in ("current", "A", "A/"):
        assert asyncio.run(content(store(f"runs/{name}"))) == KEPT
    assert store("runs/A") != store("runs/current")


def test_the_store_is_no_run(runs: Path, store: Callable[[str], str]) -> None:
    asyncio.run(fill(store("runs/A")))
    assert [run.name for run in list_runs(runs)] == ["A", "B"]
    assert sorted(path.name for path in runs.iterdir()) == ["A", "A.serve", "B"]


def test_a_store_inside_the_run_is_refused_with_the_command_that_moves_it(
    runs: Path, store: Callable[[str], str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (runs / "of today").symlink_to("A")
    asyncio.run(fill(str(runs / "A" / "serve" / "histories.db")))
    for name in ("histories.db-wal", "histories.db-shm"):  # as a killed service leaves them
        (runs / "A" / "serve" / name).touch()
    monkeypatch.setattr(sys, "argv", ["twofold", "serve", "runs/of today"])
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    said = capsys.readouterr().err
    assert f"deleted users of this service are in {runs}/of today/serve/histories.db, where a swap would lose" in said
    _, _, command = said.strip().partition("move it: ")
    subprocess.run(["sh", "-ec", command], check=True)
    assert list((runs / "A" / "serve").iterdir()) == []
    assert asyncio.run(content(store("runs/of today"))) == KEPT


def test_a_second_run_is_found_before_workers_start(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[workers.ServeOptions] = []
    monkeypatch.setattr(workers, "serve", lambda options, on_listening: opened.append(options))
    (runs / "second").symlink_to("B")
    cli.app(["serve", "runs/A", "--beside", "runs/second"], standalone_mode=False)
    cli.app(["serve", "runs/A"], standalone_mode=False)
    assert [options.beside for options in opened] == [(runs / "B").resolve(), None]
