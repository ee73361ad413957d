"""Cost of each stage against the size of the log: processor time, peak memory and bytes on disk.

    python benchmarks/scale.py [million rows ...]     (default: 1 3 10)

`twofold plan` predicts from these numbers: its constants are fitted on all sizes but the largest, and the prediction
for the largest is compared with what was measured (claim: within a factor of 1.5).

Each stage runs in a process of its own. Processor time is measured, not the clock, which other programs stretch. Writes
`scale.json` beside this file.
"""

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prepare import recipe, timed

HERE = Path(__file__).parent
STAGES = ("world", "prepare", "dataset", "train")


def run_stage(folder: Path, stage: str, rows: int) -> dict[str, float]:
    """Runs one stage in this process and returns its numbers."""
    from functools import partial

    from twofold.pipeline.dataset import build_dataset
    from twofold.pipeline.job import Job
    from twofold.pipeline.prepare import prepare
    from twofold.prepare.duckdb_engine import duckdb_engine

    if stage == "world":
        from twofold.ingest.world_events import World, write_world

        return timed(lambda: write_world(folder / "world", World(rows=rows)))
    given = recipe(folder / "world")
    given = given.model_copy(update={"train": given.train.model_copy(update={"epochs": 1})})
    job = Job(given, folder / "run", partial(duckdb_engine, memory="1GB"))
    prepared = prepare(job) if stage != "prepare" else None
    if stage == "prepare":
        found = timed(lambda: prepare(job))
        facts = prepare(job).facts
        return found | {"disk": bytes_of(folder / "run" / "prepare"), "train_rows": facts["splits"]["train"]["rows"]}
    if stage == "dataset":
        found = timed(lambda: build_dataset(job, prepared))
        facts = build_dataset(job, prepared).facts
        return found | {
            "disk": bytes_of(folder / "run" / "dataset"), "users": facts["users"], "items": facts["items"],
        }  # fmt: skip
    return train(folder, given)


def train(folder: Path, given: Any) -> dict[str, float]:
    """Trains one epoch on one thread, without validation."""
    import torch

    from twofold.dataset.dataset import load_dataset
    from twofold.model.two_tower import build_two_tower
    from twofold.train.loop import fit

    torch.set_num_threads(1)
    out = folder / "train"
    out.mkdir()
    facts: dict[str, Any] = {}

    def work() -> None:
        arrays = load_dataset(folder / "run" / "dataset")
        facts.update(
            fit(
                lambda: build_two_tower(given.retriever, arrays.features, arrays.vectors),
                arrays,
                given.train,
                validate=lambda model: 0.0,
                out=out,
            )
        )

    found = timed(work)
    return found | {"disk": bytes_of(out), "examples": facts["examples"], "parameters": facts["parameters"]}


def bytes_of(folder: Path) -> int:
    """Returns the size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main(millions: list[int]) -> None:
    """Runs all stages on a world of each size and saves the numbers."""
    runs = []
    for number in millions:
        with tempfile.TemporaryDirectory() as folder:
            stages = {}
            for stage in STAGES:
                command = [sys.executable, __file__, "--stage", stage, folder, str(number * 1_000_000)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                stages[stage] = json.loads(done.stdout.splitlines()[-1])
                print(f"{number:>4} M rows, {stage}: {stages[stage]}", flush=True)
            runs.append({"rows": number * 1_000_000, **stages})
            versions = {name: version(name) for name in ("twofold", "duckdb", "numpy", "pyarrow", "torch")}
            saved = {"cores": os.cpu_count(), "versions": versions, "runs": runs}
            (HERE / "scale.json").write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stage"]:
        print(json.dumps(run_stage(Path(sys.argv[3]), sys.argv[2], int(sys.argv[4]))))
    else:
        main([int(each) for each in sys.argv[1:]] or [1, 3, 10])
