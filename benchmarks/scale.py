"""Cost of each stage against the size of the log: processor time, peak memory and bytes on disk.

    python benchmarks/scale.py [million rows ...] [--folder FOLDER] [--out FILE]     (default: 1 3 10)

`twofold plan` predicts from these numbers: its constants are fitted on the runs of up to 30 M rows, and the prediction
for the largest run is compared with what was measured (claim: within 15 %).

Each stage runs in a process of its own. Processor time is measured, not the clock, which other programs stretch. Peak
memory is that of everything that is resident, and of what is not a page of a file, which the system could not take
back. Training takes at most 250,000 examples of an epoch: its cost is per example. Stages that FILE has are not
repeated; with --folder, a killed benchmark continues. Writes `scale.json` beside this file.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

from prepare import recipe, timed

HERE = Path(__file__).parent
STAGES = ("world", "prepare", "dataset", "train")
MAX_EXAMPLES = 250_000


def run_stage(folder: Path, stage: str, rows: int) -> dict[str, Any]:
    """Runs one stage in this process and returns its numbers."""
    from functools import partial

    from twofold.pipeline.dataset import build_dataset
    from twofold.pipeline.job import Job
    from twofold.pipeline.prepare import prepare
    from twofold.prepare.duckdb_engine import duckdb_engine

    if stage == "world":
        from twofold.ingest.world_events import World, write_world

        found = measured(lambda: write_world(folder / "world", World(rows=rows)))
        return found | {"disk": bytes_of(folder / "world")}
    given = recipe(folder / "world")
    given = given.model_copy(update={"train": given.train.model_copy(update={"epochs": 1})})
    job = Job(given, folder / "run", partial(duckdb_engine, memory="1GB"))
    if stage == "prepare":
        found = measured(lambda: prepare(job))
        facts = prepare(job).facts
        return found | {"disk": bytes_of(folder / "run" / "prepare"), "train_rows": facts["splits"]["train"]["rows"]}
    if stage == "dataset":
        prepared = prepare(job)
        found = measured(lambda: build_dataset(job, prepared))
        facts = build_dataset(job, prepared).facts
        return found | {
            "disk": bytes_of(folder / "run" / "dataset"), "users": facts["users"], "items": facts["items"],
        }  # fmt: skip
    return train(folder, given)


def train(folder: Path, given: Any) -> dict[str, Any]:
    """Trains one epoch, or its first 250,000 examples, on one thread, without validation."""
    import torch

    from twofold.dataset.batches import epoch_batches
    from twofold.dataset.dataset import load_dataset
    from twofold.model.two_tower import build_two_tower
    from twofold.train import loop

    torch.set_num_threads(1)
    out = folder / "train"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    facts: dict[str, Any] = {}
    steps = MAX_EXAMPLES // given.train.batch_size
    times: dict[str, float] = {}

    def first_batches(*args: Any, **parts: Any) -> Iterator[Any]:
        return timed_batches(islice(epoch_batches(*args, **parts), steps), times)

    def work() -> None:
        arrays = load_dataset(folder / "run" / "dataset")
        facts.update(
            loop.fit(
                lambda: build_two_tower(given.retriever, arrays.features, arrays.vectors),
                arrays,
                given.train,
                validate=lambda model: 0.0,
                out=out,
            )
        )

    with mock.patch.object(loop, "epoch_batches", first_batches):
        found = measured(work)
    trained = min(facts["examples"] // given.train.batch_size, steps) * given.train.batch_size
    found |= {name: round(each, 2) for name, each in times.items()}
    return found | {
        "disk": bytes_of(out), "examples": facts["examples"], "trained": trained, "parameters": facts["parameters"],
        "examples_per_s": facts["epochs"][0]["examples_per_s"],
    }  # fmt: skip


def timed_batches(batches: Iterator[Any], times: dict[str, float]) -> Iterator[Any]:
    """Yields the batches; adds up the clock and the processor time of reading them, and of what is done between."""
    clock, processor = time.perf_counter(), time.thread_time()
    while True:
        batch = next(batches, None)
        for part in ("read", "step"):
            if part == "step":
                if batch is None:
                    return
                yield batch
            now, used = time.perf_counter(), time.thread_time()
            times[f"{part}_s"] = times.get(f"{part}_s", 0.0) + now - clock
            times[f"{part}_processor_s"] = times.get(f"{part}_processor_s", 0.0) + used - processor
            clock, processor = now, used


def measured(work: Callable[[], Any]) -> dict[str, Any]:
    """Returns the time and the peak memory of a call, and the peak of its memory that is not a page of a file."""
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            status = Path("/proc/self/status").read_text(encoding="ascii")
            peak = max(peak, int(status.partition("RssAnon:")[2].split()[0]) * 1024)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return timed(work) | {"anonymous_gb": round(peak / 1e9, 2)}
    finally:
        done.set()
        watcher.join()


def bytes_of(folder: Path) -> int:
    """Returns the size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main(millions: list[int], folder: Path, out: Path, stages: list[str]) -> None:
    """Runs the stages on a world of each size and saves the numbers."""
    runs = json.loads(out.read_text(encoding="utf-8"))["runs"] if out.exists() else []
    for rows in (number * 1_000_000 for number in millions):
        run = next((each for each in runs if each["rows"] == rows), {"rows": rows})
        runs = sorted([*(each for each in runs if each["rows"] != rows), run], key=lambda each: each["rows"])
        for stage in (each for each in stages if each not in run):
            where = folder / str(rows)
            where.mkdir(exist_ok=True)
            command = [sys.executable, __file__, "--stage", stage, str(where), str(rows)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            run[stage] = json.loads(done.stdout.splitlines()[-1])
            print(f"{rows // 1_000_000:>4} M rows, {stage}: {run[stage]}", flush=True)
            versions = {name: version(name) for name in ("twofold", "duckdb", "numpy", "pyarrow", "torch")}
            saved = {"cores": os.cpu_count(), "versions": versions, "runs": runs}
            out.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stage"]:
        print(json.dumps(run_stage(Path(sys.argv[3]), sys.argv[2], int(sys.argv[4]))))
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("millions", type=int, nargs="*", default=[1, 3, 10])
        parser.add_argument("--folder", type=Path, help="folder of the worlds and runs, which are then kept")
        parser.add_argument("--out", type=Path, default=HERE / "scale.json")
        parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
        given = parser.parse_args()
        with tempfile.TemporaryDirectory() as temporary:
            main(given.millions, given.folder or Path(temporary), given.out, given.stages)
