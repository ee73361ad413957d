"""Time and memory of whole runs, against what `twofold run` says before it trains.

    python benchmarks/run_cost.py              # the shipped recipe with one epoch, and drafts of the logs of tests/logs
    python benchmarks/run_cost.py shop music   # some of them; results of the others are kept

Each run has a process of its own, on one thread. Processor time is measured beside the clock, which other programs
stretch. Writes `run_cost.json` beside this file; `twofold/cost_plan.py` has constants that are fitted on it.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SAVED = HERE / "run_cost.json"
sys.path.insert(0, str(HERE.parent))  # the synthetic logs are those of the tests
SHIPPED = "kuairand"


def main(names: list[str]) -> None:
    """Runs each recipe in a process of its own and saves what it took."""
    saved = json.loads(SAVED.read_text(encoding="utf-8")) if SAVED.exists() else {"runs": {}}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--one", name, folder]
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
            found = json.loads((Path(folder) / "found.json").read_text(encoding="utf-8"))
        saved["runs"][name] = found
        saved |= {"cores": os.cpu_count(), "versions": {each: version(each) for each in ("duckdb", "numpy", "torch")}}
        SAVED.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
        print(name, {stage: each["processor_s"] for stage, each in found["stages"].items()}, found["peak_gb"])


def run_one(name: str, folder: Path) -> None:
    """Runs a recipe in this process and writes its counts, and the time of each stage, to `found.json`."""
    from twofold.pipeline.job import Job
    from twofold.pipeline.run import run_job
    from twofold.prepare.last_days import with_dates
    from twofold.recipe.load import load_recipe
    from twofold.run_folder import Stage, open_stage

    overrides = ("train.epochs=1", "train.refit=false") if name == SHIPPED else ()
    recipe = with_dates(load_recipe(_recipe_of(name, folder), overrides=overrides))
    stages: dict[str, dict[str, float]] = {}
    clock, processor = time.perf_counter(), time.process_time()

    def record(stage: Stage) -> None:
        nonlocal clock, processor
        seconds = {"seconds": time.perf_counter() - clock, "processor_s": time.process_time() - processor}
        where = stage.folder.relative_to(folder / "run").as_posix()
        stages[where] = {key: round(value, 2) for key, value in seconds.items()}
        clock, processor = time.perf_counter(), time.process_time()

    run_job(Job(recipe, folder / "run", on_stage_done=record))
    prepared, dataset = open_stage(folder / "run", "prepare").facts, open_stage(folder / "run", "dataset").facts
    fitted = ("selection", "") if recipe.train.refit else ("",)
    fits = [open_stage(folder / "run" / part, "train").facts for part in fitted]
    found: dict[str, Any] = {
        "rows": prepared["funnel"][0]["rows"],
        "examples": fits[0]["examples"],
        "users": dataset["users"],
        "items": dataset["items"],
        "batch_size": recipe.train.batch_size,
        "epochs": recipe.train.epochs,
        "patience": recipe.train.patience,
        "refit": recipe.train.refit,
        "trained_epochs": [len(each["epochs"]) for each in fits],
        "parameters": fits[0]["parameters"],
        "peak_gb": peak_gb(),
        "stages": stages,
    }
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


def _recipe_of(name: str, folder: Path) -> Path:
    if name == SHIPPED:
        return HERE.parent / "recipes" / "kuairand.yaml"
    from tests.logs.__main__ import WRITERS

    write: Callable[[Path], list[str]] = WRITERS[name]
    recipe = folder / "recipe.yaml"
    new = [sys.executable, "-m", "twofold", "recipe", "new", *write(folder), "--out", f"{recipe}", "--yes"]
    subprocess.run(new, check=True, stdout=subprocess.DEVNULL)
    return recipe


def peak_gb() -> float:
    """Returns the largest memory of this process so far, in GB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return round(int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9, 2)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        run_one(sys.argv[2], Path(sys.argv[3]))
    else:
        from tests.logs.__main__ import WRITERS

        main(sys.argv[1:] or [*WRITERS, SHIPPED])
