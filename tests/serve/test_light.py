"""The service imports no library of preparation or training."""

import subprocess
import sys

import pytest

HEAVY = "torch duckdb sklearn matplotlib scipy implicit pyspark pandas"


@pytest.mark.parametrize("module", ["twofold.serve.workers", "twofold.serve.app", "twofold.cli.main"])
def test_a_worker_imports_no_heavy_library(module: str) -> None:
    script = f"import sys, {module}; print(*set({HEAVY.split()}) & {{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
