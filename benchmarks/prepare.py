"""Time and memory of preparation: a world is prepared, turned into arrays and loaded; beside bare DuckDB and pandas.

    python benchmarks/prepare.py [million rows, million rows of the large one]     (default: 10 50)

Claims: 10 M rows prepared in at most 25 s and 1.5 GB; 50 M under a limit of 2 GB, spilling, at no more than 1.3 times
the time a row; 5 M rows in 12 shards with text ids of users in at most 1.3 times the time of integers; a world written
at 1 M rows/s or more; both histories loaded at 1.5 M rows/s or more in batches of 4,096.

Every part runs in a process of its own, so that its peak memory is its own. Writes `prepare.json` beside this file.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BATCH, SHARDED, SHARDS = 4096, 5_000_000, 12
# The columns that the recipe below reads: what any reader must at least look at.
READ = ("user_id", "item_id", "at", "watch_s", "length_s", "liked", "shared", "long_view")


def recipe(folder: Path) -> Any:
    """Returns the recipe of a typical experiment: two rules, two filters, windows of days, two histories."""
    from twofold.recipe.schema import Recipe

    days = {"train": (1, 26), "validation": (26, 27), "test": (27, 28)}
    split = {name: {"first": f"2024-01-{first:02}", "end": f"2024-01-{end:02}"} for name, (first, end) in days.items()}
    data = {name: folder / (name if name == "events" else f"{name}.parquet") for name in ("events", "items", "users")}
    histories = [{"kind": "history", "events": of, "max_length": 100} for of in ("positives", "negatives")]
    tree = {
        "name": "benchmark",
        "data": {"kind": "table", **data},
        "prepare": {
            "positive": "liked OR shared OR long_view",
            "negative": "watch_s < 0.2 * length_s",
            "weight": "LEAST(SQRT(watch_s), 8)",
            "filters": [
                {"kind": "items", "min_events": 3},
                {"kind": "users", "min_events": 4, "max_percentile": 99.9, "min_positives": 1},
            ],
            "split": {"kind": "temporal", **split},
        },
        "features": {"user": histories, "item": [{"kind": "id"}]},
        "retriever": {"kind": "two_tower"},
        "train": {},
    }
    return Recipe.model_validate(tree)


# --- the parts, each in its own process -------------------------------------------------------------------------------


def world(folder: Path, rows: int) -> dict[str, float]:
    """Writes the world."""
    from twofold.ingest.world_events import World, write_world

    return {"rows": rows} | timed(lambda: write_world(folder / "world", World(rows=rows)))


def scan(folder: Path) -> dict[str, float]:
    """DuckDB alone: a sum of every column that the recipe reads. What no preparation can be faster than."""
    import duckdb

    sums = ", ".join(f'SUM(CAST("{name}" AS DOUBLE))' for name in READ)
    return timed(lambda: duckdb.execute(f"SELECT {sums} FROM '{folder}/world/events/*.parquet'").fetchall())


def pandas(folder: Path) -> dict[str, float]:
    """Measures pandas on the same rules, filters, windows and counts of histories, in memory, written to Parquet."""
    import pandas as pd

    def work() -> None:
        log = pd.read_parquet(folder / "world" / "events", columns=list(READ)).drop_duplicates()
        log["positive"] = log.liked | log.shared | log.long_view
        log["negative"] = (log.watch_s < 0.2 * log.length_s) & ~log.positive
        log["weight"] = log.watch_s.pow(0.5).clip(upper=8)
        log = log.sort_values(["user_id", "at", "item_id"], ignore_index=True)
        for kind in ("positive", "negative"):
            so_far = log.groupby("user_id")[kind].cumsum() - log[kind]
            log[f"{kind}s_before"] = so_far.groupby([log.user_id, log["at"]]).transform("min")
        log.to_parquet(folder / "pandas.events.parquet")
        day = (log["at"] - log["at"].min()) // 86_400_000
        train = log[day < 25]
        train = train[train.groupby("item_id")["at"].transform("size") >= 3]
        events, positives = (train.groupby("user_id")[name].transform(how) for name, how in
                             (("at", "size"), ("positive", "sum")))  # fmt: skip
        most = train.groupby("user_id").size().quantile(0.999, interpolation="higher")
        train[(events >= 4) & (events <= most) & (positives >= 1)].to_parquet(folder / "pandas.train.parquet")
        for number in (25, 26):
            log[day == number].to_parquet(folder / f"pandas.{number}.parquet")

    return timed(work)


def prepare(folder: Path, memory: str) -> dict[str, float]:
    """The stage, with DuckDB's memory limited."""
    from twofold.prepare.duckdb_engine import duckdb_engine
    from twofold.prepare.run_plan import prepare as work

    out = folder / "prepare"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return timed(lambda: work(recipe(folder / "world"), out, partial(duckdb_engine, memory=memory)))


def texts(folder: Path) -> dict[str, float]:
    """Writes the world again, to the folder texts, with ids of users of 32 letters."""
    import duckdb

    world, out = folder / "world", folder / "texts"
    (out / "events").mkdir(parents=True)
    shutil.copy(world / "items.parquet", out)
    text = "SELECT * REPLACE (format('user-{:027d}', user_id) AS user_id) FROM"

    def work() -> None:
        for path in (*world.glob("events/*.parquet"), world / "users.parquet"):
            target = out / path.relative_to(world)
            duckdb.execute(f"COPY ({text} '{path}') TO '{target}' (FORMAT parquet, COMPRESSION zstd)")

    return timed(work)


def sharded(folder: Path, name: str) -> dict[str, float]:
    """The stage in 12 shards, of the world in the folder of that name."""
    from twofold.prepare import run_plan

    run_plan.EVENTS_PER_SHARD = -(-SHARDED // SHARDS)  # type: ignore[misc]
    out = folder / f"prepare-{name}"
    out.mkdir()
    facts: dict[str, Any] = {}
    found = timed(lambda: facts.update(run_plan.prepare(recipe(folder / name), out)))
    assert facts["shards"] == SHARDS, facts["shards"]
    return found


def dataset(folder: Path) -> dict[str, float]:
    """The next stage: tables to arrays."""
    from twofold.dataset.build import build_dataset

    out = folder / "dataset"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return timed(lambda: build_dataset(folder / "prepare", recipe(folder / "world").features, out, time_zone="UTC"))


def loader(folder: Path) -> dict[str, float]:
    """Batches of 4,096 lines in random order, both histories of 100 gathered; one thread."""
    import numpy as np
    import torch

    from twofold.dataset.batches import gather_batch
    from twofold.dataset.dataset import load_dataset
    from twofold.dataset.malloc import keep_freed_memory

    torch.set_num_threads(1)
    arrays = load_dataset(folder / "dataset")
    rows = arrays.examples["train"]
    lines = np.random.default_rng(0).permutation(len(rows))[: BATCH * 500]

    def work() -> None:
        with keep_freed_memory():  # as training does
            for first in range(0, len(lines), BATCH):
                gather_batch(arrays, rows, lines[first : first + BATCH])

    work()  # maps the files
    return timed(work) | {"rows": len(lines)}


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Wall and processor seconds of a call, and the peak memory of this process in GB."""
    before, first = os.times(), time.perf_counter()
    work()
    seconds, after = time.perf_counter() - first, os.times()
    busy = after.user + after.system - before.user - before.system
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"seconds": round(seconds, 2), "processor_s": round(busy, 2), "peak_gb": round(peak, 2)}


PARTS = {part.__name__: part for part in (world, scan, pandas, prepare, texts, sharded, dataset, loader)}


# --- all of them ------------------------------------------------------------------------------------------------------


def main(millions: int = 10, large: int = 50) -> None:
    """Runs the parts on both worlds, prints the table, saves the numbers."""
    with tempfile.TemporaryDirectory() as folder:
        rows = millions * 1_000_000
        found = {"world": in_process(folder, "world", rows), "scan": in_process(folder, "scan")}
        found |= {"prepare": in_process(folder, "prepare", "1GB"), "pandas": in_process(folder, "pandas")}
        found |= {part: in_process(folder, part) for part in ("dataset", "loader")}
    with tempfile.TemporaryDirectory() as folder:
        many = large * 1_000_000
        found |= {"large world": in_process(folder, "world", many), "large scan": in_process(folder, "scan")}
        found |= {"large prepare": in_process(folder, "prepare", "2GB"), "large dataset": in_process(folder, "dataset")}
    with tempfile.TemporaryDirectory() as folder:
        in_process(folder, "world", SHARDED)
        in_process(folder, "texts")
        found["integer ids, 12 shards"] = in_process(folder, "sharded", "world")
        found["text ids, 12 shards"] = in_process(folder, "sharded", "texts")
    # Of processor time: others on the same cores stretch the clock, and not evenly.
    growth = found["large prepare"]["processor_s"] / many / (found["prepare"]["processor_s"] / rows)
    claims = {
        f"{millions} M rows prepared, in seconds (at most 25 for 10 M)": found["prepare"]["seconds"],
        "its peak memory in GB (at most 1.5)": found["prepare"]["peak_gb"],
        f"{large} M rows under 2 GB: processor time a row against {millions} M (at most 1.3)": round(growth, 2),
        f"{SHARDED // 10**6} M rows, {SHARDS} shards: processor time of text ids over integers (at most 1.3)": round(
            found["text ids, 12 shards"]["processor_s"] / found["integer ids, 12 shards"]["processor_s"], 2
        ),
        "world, M rows/s (at least 1)": round(rows / found["world"]["seconds"] / 1e6, 2),
        "loader, M rows a processor second (at least 1.5)": round(
            found["loader"]["rows"] / found["loader"]["processor_s"] / 1e6, 2
        ),
        "preparation against a bare scan, ratio of time": round(
            found["prepare"]["seconds"] / found["scan"]["seconds"], 1
        ),
        "pandas against preparation, ratio of time": round(found["pandas"]["seconds"] / found["prepare"]["seconds"], 2),
        "pandas against preparation, ratio of memory": round(
            found["pandas"]["peak_gb"] / found["prepare"]["peak_gb"], 2
        ),
    }
    versions = {name: version(name) for name in ("twofold", "duckdb", "numpy", "pandas", "pyarrow")}
    saved = {"cores": os.cpu_count(), "versions": versions, "claims": claims, "parts": found}
    (HERE / "prepare.json").write_text(json.dumps(saved, indent=1) + "\n")
    for claim, value in claims.items():
        print(f"{value:>8}  {claim}")


def in_process(folder: str, part: str, *arguments: object) -> dict[str, float]:
    """The numbers of one part, run in a process of its own."""
    command = [sys.executable, __file__, "--part", part, folder, *(str(argument) for argument in arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{part:>10}  {found}", flush=True)
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        name, where, *rest = sys.argv[2:]
        print(json.dumps(PARTS[name](Path(where), *(int(each) if each.isdigit() else each for each in rest))))
    else:
        main(*(int(argument) for argument in sys.argv[1:3]))
