"""The service imports no library of preparation or training."""

import subprocess
import sys

HEAVY = "torch duckdb sklearn matplotlib scipy pyspark pandas"
MODULES = ("twofold.cli.main", "twofold.serve.app", "twofold.serve.workers")


def test_a_worker_imports_no_heavy_library() -> None:
    report = f"set({HEAVY.split()}) & {{name.partition('.')[0] for name in sys.modules}}"
    script = "import sys\n" + "".join(f"import {module}; print({module!r}, *{report})\n" for module in MODULES)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == list(MODULES)
