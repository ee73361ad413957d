"""Progress on stderr: lines at intervals and the results of epochs in a file, a clock in a terminal."""

import io
import sys
import time

import pytest

from twofold import progress


def test_work_that_may_stop_says_at_most() -> None:
    line = progress._Work("train", 400, "examples", 0, 100, may_stop=True).line(50.0)
    assert line == "train       25%  2 examples/s  at most 2 min 30 s left"


def test_a_file_gets_lines_at_intervals_and_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.05)
    with progress.progress_bar("train", total=1000, unit="examples") as advance:
        advance(250, "loss 2.1")
        time.sleep(0.4)
        advance(0, "epoch 1 of at most 2: validation 0.3")
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("train       25%") and line.endswith("left  loss 2.1") for line in lines)
    assert lines[-1] == "train       epoch 1 of at most 2: validation 0.3"


def test_a_step_without_units_says_that_it_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.05)
    with progress.heartbeat("index"):
        time.sleep(0.4)
    assert "index       running for 0 s" in capsys.readouterr().err
    with progress.progress_bar("index", total=2, unit="steps"):
        pass
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_since_when_a_step_without_units_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress.heartbeat("index"):
        time.sleep(0.2)
    assert "index" in terminal.getvalue()
    assert "0:00:00" in terminal.getvalue()
