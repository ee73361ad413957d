"""How fast does the index find, how much does it miss, and what does a filter cost? Beside bare FAISS.

    python benchmarks/index.py [thousand items]     (default: 1000)

Claims (64 dimensions, cosine, 100 answers, one query at a time on one thread): exact search of 300,000 items within 1.3
times of FAISS's flat index; a million in at most 1 ms at recall .99; recall .99 and no short list under filters of
50 %, 5 %, .5 %, and of 5 % that goes with the query or against it; a million ready in at most 3 s, mapped: what a
process holds for itself is small.

The world: items around places, each place speaking one of 20 languages; users are drawn like items. Every part runs in
a process of its own. Times of two things that are compared are taken in turn. Writes `index.json` beside this file.
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
from twofold.index.item_mask import Filters
from twofold.index.live import LiveIndex
from twofold.index.search import build_index, load_index, save_index, search

HERE = Path(__file__).parent
DIM, LANGUAGES, K, ASKED = 64, 20, 100, 200
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
    """Unit vectors around a place for each 300 items, and what filters read."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(0)
    speaks = fixed.integers(0, LANGUAGES, 3000)
    places = fixed.standard_normal((3000, DIM), np.float32)
    places += 1.2 * fixed.standard_normal((LANGUAGES, DIM), np.float32)[speaks]
    own = rng.integers(0, len(places), items)
    vectors = places[own] + 0.8 * rng.standard_normal((items, DIM), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    language = speaks[own]
    names = np.array([f"l{number}" for number in range(LANGUAGES)])
    columns = {"item_id": np.arange(items), "language": names[language], "language_row": language}
    return vectors, pa.table(columns | {"noise": rng.random(items)})


def each(ask: Callable[[np.ndarray], Any], queries: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """The answer to each query alone, and its milliseconds; the first is asked once before."""
    ask(queries[:1])
    answers, times = [], []
    for line in range(len(queries)):
        first = time.perf_counter()
        answers.append(ask(queries[line : line + 1]))
        times.append(1000 * (time.perf_counter() - first))
    return answers, np.array(times)


def quantiles(times: np.ndarray) -> dict[str, float]:
    """What is said of times."""
    return {f"p{q}_ms": round(float(np.percentile(times, q)), 3) for q in (10, 50, 99)}


# --- the parts, each in its own process -------------------------------------------------------------------------------


def exact(_: Path, items: int) -> dict[str, Any]:
    """Exact search beside `IndexFlatIP`, in turn."""
    vectors, _ = world(items, 1)
    queries, _ = world(ASKED, 2)
    index, flat = build_index(vectors, flat_most=items), faiss.IndexFlatIP(DIM)
    flat.add(vectors)
    rounds = [(each(lambda q: search(index, q, K), queries)[1], each(lambda q: flat.search(q, K), queries)[1])
              for _ in range(3)]  # fmt: skip
    ours, theirs = (np.concatenate(times) for times in zip(*rounds, strict=True))
    ratio = float(np.median(ours) / np.median(theirs))
    return {"ours": quantiles(ours), "faiss": quantiles(theirs), "ratio": round(ratio, 2)}


def build(folder: Path, items: int) -> dict[str, Any]:
    """Lists are fitted, measured and written."""
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    vectors, attributes = world(items, 1)
    pq.write_table(attributes, folder / "attributes.parquet")
    first = time.perf_counter()
    index = build_index(vectors, queries=world(512, 3)[0])
    seconds = time.perf_counter() - first
    save_index(index, folder)
    return {"seconds": round(seconds, 1)} | index.facts


def load(folder: Path, _: int) -> dict[str, Any]:
    """From files to the first answer, and what the process then holds for itself."""
    queries, before = world(ASKED, 2)[0], private_mb()
    first = time.perf_counter()
    index = load_index(folder)
    search(index, queries[:1], K)
    seconds = time.perf_counter() - first
    each(lambda q: search(index, q, K), queries)
    return {"seconds": round(seconds, 3), "private_mb": round(private_mb() - before, 1), "files_mb": files_mb(folder)}


def filters(folder: Path, _: int) -> dict[str, Any]:
    """Every filter: compiled, found again, and searched with; beside FAISS's lists told the filter, at equal probes."""
    index, attributes = load_index(folder), pq.read_table(folder / "attributes.parquet")
    queries, _ = world(ASKED, 2)
    kept = Filters(attributes, index.vectors)
    every_score = queries @ index.vectors.T
    found: dict[str, Any] = {}
    for name, text in FILTERS.items():
        first = time.perf_counter()
        allowed = None if text is None else kept.eligible(text)
        compiled_ms = 1000 * (time.perf_counter() - first)
        scores = every_score if allowed is None else np.where(allowed.mask, every_score, -np.inf)
        truth = np.argpartition(-scores, K, axis=1)[:, :K]
        answers, times = each(lambda q, allowed=allowed: search(index, q, K, allowed=allowed), queries)
        found[name] = quantiles(times) | {
            "recall": recall(np.concatenate([answer.item_rows for answer in answers]), truth),
            "short": int(sum(answer.counts[0] < K for answer in answers)),
            "exact": int(sum(answer.is_exact for answer in answers)),
        }
        if allowed is not None and index.lists is not None:
            selector = faiss.IDSelectorBitmap(allowed.bits)
            how = faiss.SearchParametersIVF(nprobe=index.lists.probes(K), sel=selector)
            told, times = each(lambda q, how=how: index.lists.ivf.search(q, K, params=how)[1], queries)
            found[name] |= {"told_lists": quantiles(times) | {"recall": recall(np.concatenate(told), truth)}}
            again = np.median([timed_us(lambda text=text: kept.eligible(text)) for _ in range(1000)])
            found[name] |= {"compiled_ms": round(compiled_ms, 1), "again_us": round(float(again), 1)}
    return found


def live(folder: Path, _: int) -> dict[str, Any]:
    """A thousand items added and a thousand withdrawn: what a change costs, and a query."""
    index, attributes = load_index(folder), pq.read_table(folder / "attributes.parquet")
    queries, _ = world(ASKED, 2)
    ids = attributes["item_id"].combine_chunks()
    items = LiveIndex(index, Vocabulary(ids, len(ids)), attributes)
    vectors, new = world(1000, 5)
    new = new.set_column(0, "item_id", pa.array(np.arange(1000) + len(index)))
    _, before = each(lambda q: items.now.search(q, K), queries)
    items.put(new, vectors)
    items.withdraw(list(range(1000)))
    _, after = each(lambda q: items.now.search(q, K), queries)
    changes = [
        timed_us(lambda line=line: items.put(new.slice(line, 1), vectors[line : line + 1])) for line in range(50)
    ]
    return {"before": quantiles(before), "after": quantiles(after), "a_change_ms": round(np.median(changes) / 1000, 2)}


def recall(rows: np.ndarray, truth: np.ndarray) -> float:
    """The share of the right items that was found."""
    return round(float(np.mean([len(np.intersect1d(*pair)) / K for pair in zip(rows, truth, strict=True)])), 4)


def timed_us(work: Callable[[], Any]) -> float:
    """Microseconds of a call."""
    first = time.perf_counter()
    work()
    return 1e6 * (time.perf_counter() - first)


def private_mb() -> float:
    """Memory of this process alone: not that of mapped files, which all processes share."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024


def files_mb(folder: Path) -> float:
    """What the index takes on disk."""
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
        "least recall@100 under a filter (at least .99)": min(line["recall"] for line in filtered.values()),
        "lists that came short": sum(line["short"] for line in filtered.values()),
        "files to first answer in s (at most 3)": found["load"]["seconds"],
        "memory of a process beside what is mapped, MB": found["load"]["private_mb"],
        "a filter asked again, µs": filtered["5 %"]["again_us"],
    }
    versions = {name: version(name) for name in ("twofold", "faiss-cpu", "numpy", "pyarrow")}
    describe = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
    saved = {"cores": os.cpu_count(), "commit": commit, "versions": versions, "claims": claims, "parts": found}
    (HERE / "index.json").write_text(json.dumps(saved, indent=1) + "\n")
    for claim, value in claims.items():
        print(f"{value:>10}  {claim}")


def in_process(folder: str, part: str, items: int) -> dict[str, Any]:
    """The numbers of one part, run in a process of its own on one thread, but for building."""
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
