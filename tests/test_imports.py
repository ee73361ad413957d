"""Cost of an import: torch is named in few places, and importing does nothing."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).parents[1] / "twofold"
MAY_IMPORT_TORCH = ("model/", "train/", "dataset/batches.py")

# Run in a process of its own: what importing `argv[1]` loads, opens and starts.
WATCHED_IMPORT = """
import importlib, json, os, sys, threading

opened, started = [], []

def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        path, mode, flags = arguments
        writes = bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writes or os.path.abspath(path).startswith(os.getcwd() + os.sep):
            opened.append(path)
    elif event in ("subprocess.Popen", "os.system", "os.fork", "os.posix_spawn", "socket.connect", "socket.bind"):
        started.append(event)

sys.addaudithook(watch)
importlib.import_module(sys.argv[1])
print(json.dumps({
    "modules": sorted(sys.modules),
    "opened": opened,
    "started": started,
    "threads": threading.active_count(),
}))
"""


def test_torch_is_named_only_where_it_is_trained_or_fed() -> None:
    named = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(module == "torch" or module.startswith("torch.") for module in modules):
                named.add(path.relative_to(PACKAGE).as_posix())
    elsewhere = {path for path in named if not path.startswith(MAY_IMPORT_TORCH)}
    assert not elsewhere


@pytest.mark.parametrize(
    "module", ["twofold", "twofold.serve", "twofold.serve.recommender", "twofold.serve.workers", "twofold.recipe.load"]
)
def test_an_import_loads_no_engine_reads_no_run_and_starts_nothing(module: str, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "kuairand"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("name: kuairand\n")
    seen = import_elsewhere(module, cwd=tmp_path)
    roots = {name.partition(".")[0] for name in seen["modules"]}
    assert module in seen["modules"]
    assert not roots & {"torch", "duckdb", "pyspark", "matplotlib", "sklearn"}
    assert seen["opened"] == []
    assert seen["started"] == []
    assert seen["threads"] == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["kuairand", "recipe.yaml", "runs"]


@pytest.mark.parametrize("module", ["twofold.pipeline.prepare", "twofold.pipeline.dataset", "twofold.pipeline.job"])
def test_preparation_loads_no_torch(module: str, tmp_path: Path) -> None:
    roots = {name.partition(".")[0] for name in import_elsewhere(module, cwd=tmp_path)["modules"]}
    assert "duckdb" in roots
    assert not roots & {"torch", "onnx", "onnxruntime", "fastapi"}


def import_elsewhere(module: str, *, cwd: Path) -> dict[str, Any]:
    # -B: the interpreter's own cache of compiled files is not the module's doing.
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-B", "-c", WATCHED_IMPORT, module]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen
