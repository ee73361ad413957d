"""Measures requests per second of one worker on one core, and the time of each stage.

    python benchmarks/serve.py [seconds a round] [rounds]     (default: 8, 3)

Claims (no caching of replies; 30,000 items of 64 dimensions, histories of 50, 80 items excluded, k 100, 16
connections, a core of its own): with the history-mean tower 5,000 requests a second, p99 within 8 ms; with a
transformer of two layers 2,000; with a ranker of 100 candidates 2,500; with 300,000 items 1,500; with one connection a
reply within 400 µs; more than a naive service (FastAPI with pydantic bodies around the same bundle's `recommend`,
history-mean tower).

The worker runs on core 0, the load generator (wrk, a Debian package) on core 1. Shared cores make wall-clock times
noisy, so three more figures are given: the processor time per request, the quietest round beside the median, and the
ratio to the naive service, which runs in the same rounds, in turn. `floor` is FAISS alone: `IndexFlatIP.search` of one
query, 116 candidates, in its own process.
Writes `serve.json` beside this file.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from serve_bundle import DIM, ITEMS, USERS, Kind, write_run

HERE = Path(__file__).parent
CONNECTIONS, K, PORT = 16, 100, 8765
MANY_ITEMS = 300_000
CASES: dict[str, tuple[Kind, int, int]] = {  # name: bundle, items, connections
    "mean": ("mean", ITEMS, CONNECTIONS),
    "transformer": ("transformer", ITEMS, CONNECTIONS),
    "ranked": ("ranked", ITEMS, CONNECTIONS),
    "many_items": ("mean", MANY_ITEMS, CONNECTIONS),
    "alone": ("mean", ITEMS, 1),
}
CLAIMED = {"mean": 5_000, "transformer": 2_000, "ranked": 2_500, "many_items": 1_500}  # requests per second
REQUEST = """
local count = 0
request = function()
  count = count + 1
  local body = string.format('{"user_id":%d,"k":%dMORE}', (count * 7919) % USERS + 1, K)
  return wrk.format("POST", "/v1/recommend", {["Content-Type"] = "application/json"}, body)
end
"""


def request_script(more: str = "") -> str:
    """Returns the program of wrk that draws the requests; `more` are further fields of their bodies."""
    return REQUEST.replace("USERS", str(USERS)).replace("K)", f"{K})").replace("MORE", more)


def ours(run: Path) -> list[str]:
    """Returns the command that starts the service."""
    return [sys.executable, "-m", "twofold", "serve", str(run), "--port", str(PORT)]


def naive(run: Path) -> list[str]:
    """Returns the command that starts the naive service."""
    return [sys.executable, str(HERE / "serve.py"), "naive", str(run)]


def serve_naive(run: Path) -> None:
    """Serves with FastAPI and pydantic bodies, one user per request."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    import twofold

    class Body(BaseModel):
        user_id: int
        k: int = 20

    class Item(BaseModel):
        item_id: int
        score: float
        rank: int

    class Reply(BaseModel):
        user_id: int
        items: list[Item]

    app, recommender = FastAPI(), twofold.load(run)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {}

    @app.post("/v1/recommend")
    async def recommend(body: Body) -> Reply:
        rows = recommender.recommend([body.user_id], k=body.k).to_pylist()
        return Reply(user_id=body.user_id, items=[Item.model_validate(row) for row in rows])

    uvicorn.run(app, port=PORT, log_level="error")


# --- one round --------------------------------------------------------------------------------------------------------


def loaded(command: list[str], script: Path, seconds: int, connections: int = CONNECTIONS) -> dict[str, Any]:
    """Starts a service on core 0, sends requests from core 1, and stops the service."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TWOFOLD_TOKEN": ""}
    service = subprocess.Popen(["taskset", "-c", "0", *command], env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_until_ready()
        wrk(script, 1)
        return measured(service.pid, script, seconds, connections=connections)
    finally:
        service.terminate()
        service.wait(60)


def measured(
    process: int, script: Path, seconds: int, port: int = PORT, *, connections: int = CONNECTIONS
) -> dict[str, Any]:
    """Sends requests, and returns the figures of wrk with the processor time of the service by request and stage."""
    stages, spent = stage_sums(port), processor_seconds(process)
    figures = wrk(script, seconds, port, connections=connections)
    figures["load"] = os.getloadavg()[0]
    figures["cpu_us"] = 1e6 * (processor_seconds(process) - spent) / figures["requests"]
    time.sleep(1.1)  # the page of the metrics is made at most once a second
    after = stage_sums(port)
    figures["stages_us"] = {name: 1e6 * (after[name] - stages[name]) / figures["requests"] for name in stages}
    return figures


def wait_until_ready(port: int = PORT) -> None:
    for _ in range(240):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
    raise SystemExit("the service does not respond")


def wrk(script: Path, seconds: int, port: int = PORT, *, connections: int = CONNECTIONS) -> dict[str, Any]:
    command = ["taskset", "-c", "1", "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script)]
    output = subprocess.run([*command, f"http://127.0.0.1:{port}"], capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in output, output
    return {
        "requests": int(first_match(r"(\d+) requests in", output)),
        "per_s": float(first_match(r"Requests/sec:\s+([\d.]+)", output)),
        "p50_ms": as_ms(first_match(r"\n +50%\s+(\S+)", output)),
        "p99_ms": as_ms(first_match(r"\n +99%\s+(\S+)", output)),
    }


def first_match(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match is not None, text
    return match[1]


def as_ms(text: str) -> float:
    unit = text.lstrip("0123456789.")
    return float(text.removesuffix(unit)) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]


def processor_seconds(pid: int) -> float:
    """Returns the processor time of a process and its children."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[11:13]
    own = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return own + sum(map(processor_seconds, children_of(pid)))


def children_of(pid: int) -> list[int]:
    """Returns the processes that a process has started."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


def stage_sums(port: int = PORT) -> dict[str, float]:
    """Returns the seconds by stage so far; empty for a service without these metrics."""
    try:
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    except urllib.error.HTTPError:
        return {}
    return {
        name: float(value) for name, value in re.findall(r'twofold_stage_seconds_sum{stage="(\w+)"} ([\d.e+-]+)', page)
    }


def floor_us() -> float:
    """Measures FAISS alone, in its own process on core 0."""
    return float(subprocess.run(["taskset", "-c", "0", sys.executable, __file__, "floor"], **CAUGHT).stdout)


CAUGHT: dict[str, Any] = {"capture_output": True, "text": True, "check": True}


def print_floor() -> None:
    """Prints the median µs of a search of one query."""
    import faiss

    faiss.omp_set_num_threads(1)
    draw = np.random.default_rng(0)
    index = faiss.IndexFlatIP(DIM)
    index.add(draw.standard_normal((ITEMS, DIM)).astype(np.float32))
    queries, spent = draw.standard_normal((500, 1, DIM)).astype(np.float32), []
    for query in queries:
        started = time.process_time()
        index.search(query, K + 16)
        spent.append(1e6 * (time.process_time() - started))
    print(median(spent))


def main(seconds: int = 8, rounds: int = 3) -> None:
    """Measures all services, and prints and writes the figures."""
    if shutil.which("wrk") is None:
        raise SystemExit("benchmarks/serve.py needs wrk: apt-get install wrk")
    folder = Path(tempfile.mkdtemp(prefix="twofold-bench-"))
    script = folder / "request.lua"
    script.write_text(request_script())
    runs = {
        (kind, items): write_run(folder / f"{kind}-{items}", kind, items=items) for kind, items, _ in CASES.values()
    }
    commands = {name: (ours(runs[kind, items]), connections) for name, (kind, items, connections) in CASES.items()}
    commands["naive"] = (naive(runs["mean", ITEMS]), CONNECTIONS)
    results_of: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    floors = []
    for _ in range(rounds):
        floors.append(floor_us())
        for name, (command, connections) in commands.items():
            results_of[name].append(loaded(command, script, seconds, connections))
            print(name, json.dumps(results_of[name][-1]))
    shutil.rmtree(folder)
    figures = {
        name: {field: median(one[field] for one in results) for field in ("per_s", "p50_ms", "p99_ms", "cpu_us")}
        for name, results in results_of.items()
    }
    # On shared cores, the round with the least processor time per request had the least load from others.
    quietest = {name: min(results, key=lambda one: one["cpu_us"]) for name, results in results_of.items()}
    stages = {
        name: {
            stage: median(one["stages_us"][stage] for one in results_of[name])
            for stage in results_of[name][0]["stages_us"]
        }
        for name in CASES
    }
    saved = {
        "claim": {"per_s": CLAIMED, "p99_ms": {"mean": 8.0}, "p50_ms": {"alone": 0.4}},
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, **CAUGHT).stdout.strip(),
        "load_average": os.getloadavg(),
        "versions": {name: version(name) for name in ("fastapi", "uvicorn", "msgspec", "faiss-cpu", "onnxruntime")},
        "bundle": {"dim": DIM, "users": USERS, "k": K},
        "cases": {name: {"items": items, "connections": count} for name, (_, items, count) in CASES.items()},
        "figures": figures,
        "quietest_round": {name: {f: each[f] for f in figures[name]} for name, each in quietest.items()},
        "stages_us": stages,
        "floor_us": median(floors),
        "naive_over_ours_cpu": figures["naive"]["cpu_us"] / figures["mean"]["cpu_us"],
        "rounds": results_of,
    }
    (HERE / "serve.json").write_text(json.dumps(saved, indent=1) + "\n")
    print(json.dumps({name: value for name, value in saved.items() if name != "rounds"}, indent=1))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["naive", run]:
            serve_naive(Path(run))
        case ["floor"]:
            print_floor()
        case numbers:
            main(*map(int, numbers))
