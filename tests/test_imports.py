"""Cost of an import: torch is named in few places, and importing does nothing."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1] / "twofold"
MAY_IMPORT_TORCH = ("model/", "train/", "dataset/batches.py")

# Run in a process of its own: what importing the modules of `argv`, one after the other, loads, opens and starts.
WATCHED_IMPORT = """
import importlib, json, os, sys, threading

opened, started = [], []

def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        path, mode, flags = arguments
        # The interpreter's own cache of compiled files is not the modules' doing.
        writes = bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) and ".pyc" not in path
        if writes or os.path.abspath(path).startswith(os.getcwd() + os.sep):
            opened.append(path)
    elif event in ("subprocess.Popen", "os.system", "os.fork", "os.posix_spawn", "socket.connect", "socket.bind"):
        started.append(event)

sys.addaudithook(watch)
for module in sys.argv[1:]:
    importlib.import_module(module)
    print(json.dumps({
        "module": module,
        "packages": sorted({name.partition(".")[0] for name in sys.modules}),
        "opened": opened,
        "started": started,
        "threads": threading.active_count(),
    }))
"""


def test_torch_is_named_only_where_it_is_trained_or_fed() -> None:
    named = set()
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if "torch" in text else ():
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(module == "torch" or module.startswith("torch.") for module in modules):
                named.add(path.relative_to(PACKAGE).as_posix())
    elsewhere = {path for path in named if not path.startswith(MAY_IMPORT_TORCH)}
    assert not elsewhere


def test_an_import_loads_no_engine_reads_no_run_and_starts_nothing(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "kuairand"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("name: kuairand\n")
    serving = ["twofold.serve", "twofold.serve.recommender", "twofold.serve.workers"]
    for seen in import_elsewhere("twofold", "twofold.recipe.load", *serving, cwd=tmp_path):
        assert not {"torch", "duckdb", "pyspark", "matplotlib", "sklearn"} & set(seen["packages"]), seen["module"]
        assert (seen["opened"], seen["started"], seen["threads"]) == ([], [], 1), seen["module"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["kuairand", "recipe.yaml", "runs"]


def test_preparation_loads_no_torch(tmp_path: Path) -> None:
    stages = ["twofold.pipeline.job", "twofold.pipeline.prepare", "twofold.pipeline.dataset"]
    for seen in import_elsewhere(*stages, cwd=tmp_path):
        assert not {"torch", "onnx", "onnxruntime", "fastapi"} & set(seen["packages"]), seen["module"]
    assert "duckdb" in seen["packages"]


def import_elsewhere(*modules: str, cwd: Path) -> list[dict[str, Any]]:
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-c", WATCHED_IMPORT, *modules]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["module"] for each in seen] == list(modules)
    return seen
