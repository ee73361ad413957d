"""The benchmark of a GPU, in small, on the CPU: it runs, and a repeated command does only what is missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # a compiler, two processes

ROOT = Path(__file__).parents[1]


def run_benchmark(out: Path) -> str:
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_parts_are_measured_once_and_the_same_device_has_the_same_weights(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert run_benchmark(out).count(": {") == 5
    saved = json.loads(out.read_text(encoding="utf-8"))
    assert saved["machine"]["float32_tflops"] > 0
    assert saved["equal"]["largest_relative_difference_of_a_parameter"] == 0
    for name in ("histories", "sequence"):
        part = saved[name]
        assert part["examples_per_s"] == pytest.approx(256e3 / part["ms_per_step"], rel=0.01)
        assert part["ms_waiting_for_batches"] < part["ms_per_step"]
        assert part["share_of_products"] > 0  # above 1 where the machine was busier while products alone were timed
        assert part["positions_per_s"] > 0
    assert saved["compiled"].keys() >= {"gain"} or "error" in saved["compiled"]  # a machine may have no compiler
    del saved["machine"]
    out.write_text(json.dumps(saved), encoding="utf-8")
    assert run_benchmark(out).count(": {") == 1
