"""Benchmark of the index beside bare FAISS: speed, recall, and the cost of filters.

    python benchmarks/index.py [thousand items]     (default: 1000)

Claims (64 dimensions, cosine, 100 results, one query at a time on one thread): exact search of 300,000 items within 1.3
times of FAISS's flat index; a million in at most 1 ms at recall .99; recall .99 and no short list under filters of
50 %, 5 %, .5 %, and of 5 % that is correlated with the query or against it; a million items ready in at most 3 s,
mapped, with little memory private to the process.

The data: items around centres, each centre with one of 20 languages; users are drawn like items. Every part runs in a
process of its own. Times that are compared are taken in turn. Writes `index.json` beside this file.
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

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twofold.dataset.vocabulary import Vocabulary
from twofold.index.filters import Filters
from twofold.index.item_index import build_index, load_index, save_index
from twofold.index.live import LiveIndex
from twofold.index.search import search

HERE = Path(__file__).parent
DIM, LANGUAGES, K, QUERIES = 64, 20, 100, 200
FILTERS = {
    "no filter": None,
    "50 %": "noise < 0.5",
    "5 %": "noise < 0.05",
    "0.5 %": "noise < 0.005",
    "one language, about 5 %": "language = 'l3'",
    "one language and half of it": "language = 'l3' AND noise < 0.5",
    "ten languages, about 50 %": "language_row < 10",
}


def world(items: int, seed: int) -> tuple[np.ndarray, pa.Table]:
    """Unit vectors around one of 3,000 centres, and the columns that filters read."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(0)
    language_of = fixed.integers(0, LANGUAGES, 3000)
    centres = fixed.standard_normal((3000, DIM), np.float32)
    centres += 1.2 * fixed.standard_normal((LANGUAGES, DIM), np.float32)[language_of]
    own = rng.integers(0, len(centres), items)
    vectors = centres[own] + 0.8 * rng.standard_normal((items, DIM), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    language = language_of[own]
    names = np.array([f"l{number}" for number in range(LANGUAGES)])
    columns = {"item_id": np.arange(items), "language": names[language], "language_row": language}
    return vectors, pa.table(columns | {"noise": rng.random(items)})


def each(search_one: Callable[[np.ndarray], Any], queries: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """The result of each query alone, and its milliseconds; the first query runs once before, to warm up."""
    search_one(queries[:1])
    results, times = [], []
    for row in range(len(queries)):
        first = time.perf_counter()
        results.append(search_one(queries[row : row + 1]))
        times.append(1000 * (time.perf_counter() - first))
    return results, np.array(times)


def quantiles(times: np.ndarray) -> dict[str, float]:
    """Percentiles of the times."""
    return {f"p{q}_ms": round(float(np.percentile(times, q)), 3) for q in (10, 50, 99)}


# --- the parts, each in its own process -------------------------------------------------------------------------------


def exact(_: Path, items: int) -> dict[str, Any]:
    """Exact search beside `IndexFlatIP`, in turn."""
    vectors, _ = world(items, 1)
    queries, _ = world(QUERIES, 2)
    index, flat = build_index(vectors, max_flat=items), faiss.IndexFlatIP(DIM)
    flat.add(vectors)
    rounds = [(each(lambda q: search(index, q, K), queries)[1], each(lambda q: flat.search(q, K), queries)[1])
              for _ in range(3)]  # fmt: skip
    ours, theirs = (np.concatenate(times) for times in zip(*rounds, strict=True))
    ratio = float(np.median(ours) / np.median(theirs))
    return {"ours": quantiles(ours), "faiss": quantiles(theirs), "ratio": round(ratio, 2)}


def build(folder: Path, items: int) -> dict[str, Any]:
    """Builds, calibrates and writes the IVF lists."""
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    vectors, attributes = world(items, 1)
    pq.write_table(attributes, folder / "attributes.parquet")
    first = time.perf_counter()
    index = build_index(vectors, queries=world(512, 3)[0])
    seconds = time.perf_counter() - first
    save_index(index, folder)
    return {"seconds": round(seconds, 1)} | index.facts


def load(folder: Path, _: int) -> dict[str, Any]:
    """Time from files to the first result, and the private memory of the process then."""
    queries, before = world(QUERIES, 2)[0], private_mb()
    first = time.perf_counter()
    index = load_index(folder)
    search(index, queries[:1], K)
    seconds = time.perf_counter() - first
    each(lambda q: search(index, q, K), queries)
    return {"seconds": round(seconds, 3), "private_mb": round(private_mb() - before, 1), "files_mb": files_mb(folder)}


def filters(folder: Path, _: int) -> dict[str, Any]:
    """Compiles, caches and searches with every filter; beside FAISS's IVF given the filter, at equal probes."""
    index, attributes = load_index(folder), pq.read_table(folder / "attributes.parquet")
    queries, _ = world(QUERIES, 2)
    cache = Filters(attributes, index.vectors)
    every_score = queries @ index.vectors.T
    found: dict[str, Any] = {}
    for name, text in FILTERS.items():
        first = time.perf_counter()
        allowed = None if text is None else cache.eligible(text)
        compiled_ms = 1000 * (time.perf_counter() - first)
        scores = every_score if allowed is None else np.where(allowed.mask, every_score, -np.inf)
        truth = np.argpartition(-scores, K, axis=1)[:, :K]
        results, times = each(lambda q, allowed=allowed: search(index, q, K, allowed=allowed), queries)
        found[name] = quantiles(times) | {
            "recall": recall(np.concatenate([result.item_rows for result in results]), truth),
            "short": int(sum(result.counts[0] < K for result in results)),
            "exact": int(sum(result.is_exact for result in results)),
        }
        if allowed is not None and index.ivf is not None:
            selector = faiss.IDSelectorBitmap(allowed.bits)  # type: ignore[call-arg]
            params = faiss.SearchParametersIVF(nprobe=index.ivf.probes(K), sel=selector)  # type: ignore[call-arg]
            rows, times = each(lambda q, params=params: index.ivf.faiss_index.search(q, K, params=params)[1], queries)
            found[name] |= {"told_lists": quantiles(times) | {"recall": recall(np.concatenate(rows), truth)}}
            again = np.median([timed_us(lambda text=text: cache.eligible(text)) for _ in range(1000)])
            found[name] |= {"compiled_ms": round(compiled_ms, 1), "again_us": round(float(again), 1)}
    return found


def live(folder: Path, _: int) -> dict[str, Any]:
    """Adds a thousand items and withdraws a thousand: the cost of a change, and of a query."""
    index, attributes = load_index(folder), pq.read_table(folder / "attributes.parquet")
    queries, _ = world(QUERIES, 2)
    ids = attributes["item_id"].combine_chunks()
    items = LiveIndex(index, Vocabulary(ids, len(ids)), attributes)
    vectors, new = world(1000, 5)
    new = new.set_column(0, "item_id", pa.array(np.arange(1000) + len(index)))
    _, before = each(lambda q: items.now.search(q, K), queries)
    items.upsert(new, vectors)
    items.set_withdrawn(range(1000))
    _, after = each(lambda q: items.now.search(q, K), queries)
    changes = [timed_us(lambda row=row: items.upsert(new.slice(row, 1), vectors[row : row + 1])) for row in range(50)]
    return {"before": quantiles(before), "after": quantiles(after), "a_change_ms": round(np.median(changes) / 1000, 2)}


def recall(rows: np.ndarray, truth: np.ndarray) -> float:
    """The share of the right items that were found."""
    return round(float(np.mean([len(np.intersect1d(*pair)) / K for pair in zip(rows, truth, strict=True)])), 4)


def timed_us(work: Callable[[], Any]) -> float:
    """Microseconds of a call."""
    first = time.perf_counter()
    work()
    return 1e6 * (time.perf_counter() - first)


def private_mb() -> float:
    """Private memory of this process: without mapped files, which all processes share."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024


def files_mb(folder: Path) -> float:
    """Size of the index on disk."""
    return round(sum((folder / name).stat().st_size for name in ("item_vectors.npy", "item_lists.faiss")) / 2**20, 1)


PARTS = {part.__name__: part for part in (exact, build, load, filters, live)}


# --- all of them ------------------------------------------------------------------------------------------------------


def main(thousands: int = 1000) -> None:
    """Runs the parts, prints the claims, saves the numbers."""
    items = 1000 * thousands
    with tempfile.TemporaryDirectory() as folder:
        found = {part: in_process(folder, part, 300_000 if part == "exact" else items) for part in PARTS}
    filtered = found["filters"]
    claims = {
        "exact search of 300,000 over FAISS flat, ratio of time (at most 1.3)": found["exact"]["ratio"],
        f"{items:,} items, p50 in ms (at most 1)": filtered["no filter"]["p50_ms"],
        "its recall@100 (at least .99)": filtered["no filter"]["recall"],
        "least recall@100 under a filter (at least .99)": min(each["recall"] for each in filtered.values()),
        "results with fewer than 100 items": sum(each["short"] for each in filtered.values()),
        "files to first result in s (at most 3)": found["load"]["seconds"],
        "private memory of a process, MB": found["load"]["private_mb"],
        "a cached filter, µs": filtered["5 %"]["again_us"],
    }
    versions = {name: version(name) for name in ("twofold", "faiss-cpu", "numpy", "pyarrow")}
    describe = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
    saved = {"cores": os.cpu_count(), "commit": commit, "versions": versions, "claims": claims, "parts": found}
    (HERE / "index.json").write_text(json.dumps(saved, indent=1) + "\n")
    for claim, value in claims.items():
        print(f"{value:>10}  {claim}")


def in_process(folder: str, part: str, items: int) -> dict[str, Any]:
    """The numbers of one part, run in a process of its own; on one thread, except for building."""
    command = [sys.executable, __file__, "--part", part, folder, str(items)]
    threads = {} if part == "build" else {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | threads)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{part:>10}  {found}", flush=True)
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        print(json.dumps(PARTS[sys.argv[2]](Path(sys.argv[3]), int(sys.argv[4]))))
    else:
        main(*map(int, sys.argv[1:2]))
