"""Training from a cold disk beside training from memory: speed, bytes read and resident memory.

    python benchmarks/cold_training.py [FOLDER] [--rounds 3] [--examples 100000] [--memory-gb 1.2] [--out FILE]

FOLDER is one of a size that `scale.py --folder` has kept; without it, a world of 10 M rows is made. Claims: a cold data
set is read at 80 % or more of the speed from memory; the memory of a rank that is not a page of a file is at most 1.5
GB beside tables, at every size.

Each round trains twice in a process of its own, on one thread: after the system has dropped the pages of the data set
from its cache, and after it has read them all. The speed is that of the steps of the first examples of an epoch. Other
programs stretch the clock of both, by different factors; so a second ratio is computed from the cold process alone:
its processor time over that and the time that it waited for its batches beyond what the same stretch explains. With
--memory-gb, the cold process runs in a control group that holds so much, pages of files included (Linux, as root).
Writes `cold_training.json` beside this file, one entry per size and limit. Its entries `before` are those of the order
that this one replaced, a shuffle of the whole epoch, on the same machine and day.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import scale

HERE = Path(__file__).parent
GROUPS = Path("/sys/fs/cgroup")


def one(folder: Path, examples: int) -> dict[str, Any]:
    """Trains the first examples of an epoch in this process and returns its numbers."""
    from twofold.pipeline.dataset import build_dataset
    from twofold.pipeline.prepare import prepare

    scale.MAX_EXAMPLES = examples
    job = scale.job_of(folder)
    found = scale.train(job, build_dataset(job, prepare(job)))
    counted = Path("/proc/self/io").read_text(encoding="ascii")
    read = int(counted.partition("read_bytes: ")[2].split()[0])
    return found | {"read_mb": read // 10**6}


def files_of(folder: Path) -> list[Path]:
    """Returns the files of the data set."""
    return [path for path in (folder / "run" / "dataset").rglob("*") if path.is_file()]


def drop_cache(folder: Path) -> None:
    """Drops the pages of the data set from the system's cache."""
    for path in files_of(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fill_cache(folder: Path) -> None:
    """Reads all files of the data set."""
    for path in files_of(folder):
        with path.open("rb") as file:
            while file.read(2**24):
                pass


@contextmanager
def limited(memory_gb: float) -> Iterator[None]:
    """Moves this process, and those that it starts, into a control group that holds so much memory."""
    is_old = (GROUPS / "memory").is_dir()
    parent = GROUPS / "memory" if is_old else GROUPS
    group = parent / f"twofold-{os.getpid()}"
    group.mkdir()
    before = parent / "cgroup.procs"
    try:
        limit = group / ("memory.limit_in_bytes" if is_old else "memory.max")
        limit.write_text(str(int(memory_gb * 1e9)), encoding="ascii")
        (group / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
        yield
    finally:
        before.write_text(str(os.getpid()), encoding="ascii")
        group.rmdir()


def in_process(folder: Path, examples: int, memory_gb: float | None) -> dict[str, Any]:
    """Returns the numbers of a training in a process of its own."""
    command = [sys.executable, __file__, str(folder), "--one", "--examples", str(examples)]
    context: AbstractContextManager[None] = nullcontext() if memory_gb is None else limited(memory_gb)
    with context:
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(folder: Path, rounds: int, examples: int, memory_gb: float | None) -> dict[str, Any]:
    """Runs the rounds and returns their numbers."""
    sides: dict[str, tuple[Callable[[Path], None], float | None]] = {
        "cold": (drop_cache, memory_gb), "warm": (fill_cache, None),
    }  # fmt: skip
    found: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": []}
    for _ in range(rounds):
        for name, (before, limit) in sides.items():
            before(folder)
            found[name].append(in_process(folder, examples, limit))
            print(name, found[name][-1], flush=True)
    speed = {name: [each["examples_per_s"] for each in found[name]] for name in found}
    ratios = [cold / warm for cold, warm in zip(speed["cold"], speed["warm"], strict=True)]
    bytes_ = sum(path.stat().st_size for path in files_of(folder))
    saved = {"rows": int(folder.name), "dataset_gb": round(bytes_ / 1e9, 2), "memory_gb": memory_gb}
    waits = [not_waiting(each) for each in found["cold"]]
    return saved | {"cold_over_warm": round(median(ratios), 2), "not_waiting": round(median(waits), 2), **found}


def not_waiting(run: dict[str, Any]) -> float:
    """Returns the share of the time of a training, on cores of its own, in which it did not wait for its batches."""
    stretch = run["step_s"] / run["step_processor_s"]
    waited = max(run["read_s"] / stretch - run["read_processor_s"], 0.0)
    worked = run["step_processor_s"] + run["read_processor_s"]
    return float(worked / (worked + waited))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--memory-gb", type=float)
    parser.add_argument("--out", type=Path, default=HERE / "cold_training.json")
    parser.add_argument("--one", action="store_true")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.folder, given.examples)))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            folder = given.folder or Path(temporary) / str(10 * 10**6)
            if given.folder is None:
                scale.main([10], folder.parent, folder.parent / "scale.json", ["world", "prepare", "dataset"])
            run = main(folder, given.rounds, given.examples, given.memory_gb)
        earlier = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {"runs": []}
        kept = [
            each for each in earlier["runs"] if (each["rows"], each["memory_gb"]) != (run["rows"], run["memory_gb"])
        ]
        versions = {name: version(name) for name in ("twofold", "numpy", "torch")}
        saved = earlier | {"cores": os.cpu_count(), "versions": versions, "runs": [*kept, run]}
        given.out.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
