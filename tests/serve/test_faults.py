"""A short run of `benchmarks/faults.py`: kills, swaps, a failing Redis, a full disk, attacks; every list is right."""

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "faults.py"
SECONDS = 20  # with each of the two stores


@pytest.mark.slow
def test_under_load_and_faults_every_list_is_right_and_every_failure_clean(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("a disk to fill is mounted by root alone")
    if shutil.which("redis-server") is None and shutil.which("valkey-server") is None:
        pytest.skip("no redis-server on this machine: apt-get install redis-server")
    command = [sys.executable, str(SCRIPT), str(SECONDS), "--to", str(tmp_path / "faults.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    if "no disk to fill" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert (tmp_path / "faults.json").exists(), f"{done.stdout}\n{done.stderr}"
    for store, found in json.loads((tmp_path / "faults.json").read_text())["stores"].items():
        shown = {name: found[name] for name in ("first_wrong", "first_unclean", "first_hung")}
        why = "\n".join([f"{store}: {json.dumps(shown, indent=1)}", *found["log_of_a_failure"]])
        wrong = {name: found[name] for name in ("wrong", "events_lost", "cut_far_from_a_kill", "exit_code")}
        assert wrong == dict.fromkeys(wrong, 0), why
        # Where other tests take the cores, a reply or the end of half-open connections may be late.
        assert found["hung"] <= 0.02 * sum(found["replies"].values()), why
        assert all("half-open" in text for text in found["first_unclean"]), why
        assert found["events_acknowledged"] > 100
        assert found["replies"]["recommend 200"] > 200
        faults = {
            "workers killed",
            "workers stopped",
            "disk filled",
            "swaps, by name",
            "swaps, damaged",
            "items updated",
        }
        faults |= {"endless headers", "half-open connections", "batches of full cost"}
        redis = {"Redis SIGTERM", "Redis SIGKILL"} if store == "redis" else set()
        assert faults | redis <= found["faults"].keys()


def test_the_log_of_a_failure_is_short_and_has_what_explains_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    machine = import_module("faults_machine")
    swapped = [{"level": "info", "message": "swapped", "process": 7, "run": str(run)} for run in range(500)]
    expected = [
        {"level": "warning", "message": "request", "process": 7, "status": 503},
        {"level": "info", "message": "the store fails", "process": 7, "error": "no space"},
    ]
    traceback = "Traceback (most recent call last):\n" + "a frame\n" * 1000 + "KeyError: 3"
    failed = {"level": "error", "message": "failed", "process": 7, "path": "/v1/admin/swap", "traceback": traceback}
    reply = {"level": "warning", "message": "request", "process": 7, "status": 500}
    lines = machine.lines_about_failures([failed, {"message": "Bus error"}, reply, *swapped, *expected])
    assert [line.split()[0] for line in lines[1:]] == ["Bus", "request", *["swapped"] * 20]
    assert lines[0].startswith("…")
    assert lines[0].endswith("KeyError: 3")
    assert "status=500" in lines[2]
    assert lines[-1] == "swapped process=7 run=499"
    assert sum(map(len, lines)) < 2 * machine.LONGEST_LINE
