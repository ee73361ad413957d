"""Cost of each stage against the size of the log: processor time, peak memory and bytes on disk.

    python benchmarks/scale.py [million rows ...] [--folder FOLDER] [--out FILE]     (default: 1 3 10)

`twofold plan` predicts from these numbers: its constants are fitted on the runs of up to 30 M rows, and the prediction
for the largest run is compared with what was measured (claim: within 15 %).

A log becomes answers: it is prepared, trained on, indexed and served. Each stage runs in a process of its own.
Processor time is measured, not the clock, which other programs stretch. Peak memory is that of everything that is
resident, and of what is not a page of a file, which the system could not take back. Training takes at most 250,000
examples of an epoch: its cost is per example. Stages that FILE has are not repeated; with --folder, a killed benchmark
continues. Writes `scale.json` beside this file.
"""

import argparse
import http.client
import json
import os
import random
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
STAGES = ("world", "prepare", "dataset", "train", "index", "serve")
MAX_EXAMPLES = 250_000
REQUESTS = 1000


def run_stage(folder: Path, stage: str, rows: int) -> dict[str, Any]:
    """Runs one stage in this process and returns its numbers."""
    from twofold.pipeline.dataset import build_dataset
    from twofold.pipeline.prepare import prepare

    if stage == "world":
        from twofold.ingest.world_events import World, write_world

        found = measured(lambda: write_world(folder / "world", World(rows=rows)))
        return found | {"disk": bytes_of(folder / "world")}
    if stage == "serve":
        return serve(folder)
    job = job_of(folder)
    if stage == "prepare":
        found = measured(lambda: prepare(job))
        facts = prepare(job).facts
        return found | {"disk": bytes_of(folder / "run" / "prepare"), "train_rows": facts["splits"]["train"]["rows"]}
    prepared = prepare(job)
    if stage == "dataset":
        found = measured(lambda: build_dataset(job, prepared))
        facts = build_dataset(job, prepared).facts
        return found | {
            "disk": bytes_of(folder / "run" / "dataset"), "users": facts["users"], "items": facts["items"],
        }  # fmt: skip
    dataset = build_dataset(job, prepared)
    return train(job, dataset) if stage == "train" else index(job, dataset)


def job_of(folder: Path) -> Any:
    """Returns the run of one size: one epoch, prepared with 1 GB."""
    from functools import partial

    from twofold.pipeline.job import Job
    from twofold.prepare.duckdb_engine import duckdb_engine

    given = recipe(folder / "world")
    given = given.model_copy(update={"train": given.train.model_copy(update={"epochs": 1})})
    return Job(given, folder / "run", partial(duckdb_engine, memory="1GB"))


def train(job: Any, dataset: Any) -> dict[str, Any]:
    """Trains one epoch, or its first 250,000 examples, on one thread, without validation."""
    import torch

    from twofold.dataset.batches import epoch_batches
    from twofold.pipeline import train as pipeline
    from twofold.train import loop

    torch.set_num_threads(1)
    shutil.rmtree(job.folder / "train", ignore_errors=True)
    steps = MAX_EXAMPLES // job.recipe.train.batch_size
    times: dict[str, float] = {}

    def first_batches(*args: Any, **parts: Any) -> Iterator[Any]:
        return timed_batches(islice(epoch_batches(*args, **parts), steps), times)

    with (
        mock.patch.object(loop, "epoch_batches", first_batches),
        mock.patch.object(pipeline, "_validation_of", return_value=lambda model: 0.0),
    ):
        found = measured(lambda: pipeline.train(job, dataset))
    facts = pipeline.train(job, dataset).facts
    trained = min(facts["examples"] // job.recipe.train.batch_size, steps) * job.recipe.train.batch_size
    found |= {name: round(each, 2) for name, each in times.items()}
    return found | {
        "disk": bytes_of(job.folder / "train"), "examples": facts["examples"], "trained": trained,
        "parameters": facts["parameters"], "examples_per_s": facts["epochs"][0]["examples_per_s"],
    }  # fmt: skip


def index(job: Any, dataset: Any) -> dict[str, Any]:
    """Writes the bundle of what was trained."""
    from twofold.pipeline import index as pipeline
    from twofold.pipeline.train import train

    found = measured(lambda: pipeline.index(job, dataset, train(job, dataset), None))
    return found | {"disk": bytes_of(job.folder / "index")}


def serve(folder: Path) -> dict[str, Any]:
    """Starts `twofold serve`, and asks it for the lists of users, one after another, from first start to last answer.

    Memory is that of all processes of the service; a page of a file that two of them read counts twice.
    """
    from serve import PORT, children_of, wait_until_ready

    from twofold.dataset.vocabulary import Vocabulary

    users = Vocabulary.load(folder / "run" / "dataset" / "users.parquet").ids
    drawn = random.Random(0).sample(range(len(users)), REQUESTS)
    started = time.perf_counter()
    command = [sys.executable, "-m", "twofold", "serve", str(folder / "run"), "--port", str(PORT)]
    service = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_until_ready()
        ready_s = time.perf_counter() - started
        connection = http.client.HTTPConnection("127.0.0.1", PORT)
        ms = [answer_ms(connection, users[user].as_py()) for user in drawn]
        memory = [peak_of(pid) for pid in (service.pid, *children_of(service.pid))]
    finally:
        service.terminate()
        service.wait()
    ordered = sorted(ms)
    return {
        "ready_s": round(ready_s, 2), "first_ms": round(ms[0], 2), "median_ms": round(ordered[len(ms) // 2], 2),
        "p99_ms": round(ordered[len(ms) * 99 // 100], 2), "peak_gb": round(sum(memory) / 1e9, 2),
    }  # fmt: skip


def answer_ms(connection: http.client.HTTPConnection, user: Any) -> float:
    """Returns the milliseconds from the request for a user's list of 20 items to the answer."""
    body = json.dumps({"user_id": user, "k": 20})
    started = time.perf_counter()
    connection.request("POST", "/v1/recommend", body, {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    ms = (time.perf_counter() - started) * 1000
    assert len(answer["items"]) == 20, answer
    return ms


def peak_of(pid: int) -> int:
    """Returns the largest resident memory that a process has had, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


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


def predictions(run: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Returns what `twofold plan` predicts for a run, and what was measured."""
    from twofold import cost_plan

    given = recipe(Path("log"))
    given = given.model_copy(update={"train": given.train.model_copy(update={"epochs": 1})})
    size = run["rows"], run["dataset"]["users"], run["dataset"]["items"]
    prepare, dataset, train = cost_plan.stage_costs(
        given, cost_plan.Scale(*(float(each) for each in size), memory_gb=2.0)
    )
    trained = run["train"]["step_processor_s"] + run["train"]["read_processor_s"]
    return {
        "memory of prepare, GB": (prepare.memory_gb, run["prepare"]["peak_gb"]),
        "memory of dataset without pages of files, GB": (dataset.memory_gb, run["dataset"]["anonymous_gb"]),
        "memory of train, GB": (train.memory_gb, run["train"]["peak_gb"]),
        "files of prepare, GB": (run["rows"] * cost_plan.PREPARE_BYTES / 1e9, run["prepare"]["disk"] / 1e9),
        "files of dataset, GB": (dataset.disk_gb, run["dataset"]["disk"] / 1e9),
        "processor seconds of an epoch": (
            train.processor_h * 3600, trained / run["train"]["trained"] * run["train"]["examples"]
        ),
        "processor seconds of prepare": (prepare.processor_h * 3600, run["prepare"]["processor_s"]),
        "processor seconds of dataset": (dataset.processor_h * 3600, run["dataset"]["processor_s"]),
    }  # fmt: skip


def main(millions: list[int], folder: Path, out: Path, stages: list[str]) -> None:
    """Runs the stages on a world of each size and saves the numbers."""
    runs = json.loads(out.read_text(encoding="utf-8"))["runs"] if out.exists() else []
    for rows in (number * 1_000_000 for number in millions):
        run = next((each for each in runs if each["rows"] == rows), {"rows": rows})
        runs = sorted([*(each for each in runs if each["rows"] != rows), run], key=lambda each: each["rows"])
        for stage in (each for each in stages if each not in run):
            where = folder / str(rows)
            where.mkdir(parents=True, exist_ok=True)
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
