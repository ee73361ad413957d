"""Compares the processor time per request of two source trees, in turn, in one run.

    python benchmarks/serve_compare.py OTHER_TREE [--cases mean,mean:describe] [--seconds 2] [--rounds 8]

Other work on the machine moves the figures of one minute by a third, but it moves those of both trees: their services
run side by side, each gets a short round of requests in turn, and the ratio is the median over the pairs of rounds.
Bundles, clients and requests are those of `serve.py`; each tree writes its own bundles, from the same draw. Writes
`serve_compare.json` beside this file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import serve as one

HERE = Path(__file__).parent
PORTS = {"before": 8771, "after": 8772}


def start(tree: Path, run: Path, port: int) -> subprocess.Popen[bytes]:
    """Starts the service of a source tree on core 0."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TWOFOLD_TOKEN": "", "PYTHONPATH": str(tree)}
    command = ["taskset", "-c", "0", sys.executable, "-m", "twofold", "serve", str(run), "--port", str(port)]
    histories = ["--histories", str(Path(tempfile.mkdtemp(prefix="twofold-bench-")) / "events.db")]
    return subprocess.Popen([*command, *histories], env=environment, stdout=subprocess.DEVNULL, cwd=tree)


def write_bundle(tree: Path, run: Path, kind: str, items: int) -> None:
    """Writes a bundle with the code of a source tree, unless it is there already."""
    if not run.exists():
        paths = os.pathsep.join((str(tree), str(tree / "benchmarks")))
        call = f"write_run(Path({str(run)!r}), {kind!r}, items={items})"
        code = f"from pathlib import Path; from serve_bundle import write_run; {call}"
        subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths}, check=True)


def compare(
    runs: dict[str, Path], trees: dict[str, Path], script: Path, *, seconds: int, rounds: int, connections: int
) -> dict[str, Any]:
    """Returns the processor µs per request of both trees and their ratio, with those of the stages."""
    services = {name: start(tree, runs[name], PORTS[name]) for name, tree in trees.items()}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    try:
        for name in trees:
            one.wait_until_ready(PORTS[name])
            one.wrk(script, 1, PORTS[name])
        for number in range(rounds):
            for name in sorted(trees, reverse=number % 2 == 1):
                process, port = services[name].pid, PORTS[name]
                found[name].append(one.measured(process, script, seconds, port, connections=connections))
    finally:
        for service in services.values():
            service.terminate()
        for service in services.values():
            service.wait(60)
    pairs = zip(found["before"], found["after"], strict=True)
    return {
        "before_over_after_cpu": median(before["cpu_us"] / after["cpu_us"] for before, after in pairs),
        **{name: summary(rounds_of_tree) for name, rounds_of_tree in found.items()},
    }


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the medians of rounds, and the least processor time per request."""
    figures = {
        field: round(median(one[field] for one in rounds), 2) for field in ("per_s", "p50_ms", "p99_ms", "cpu_us")
    }
    stages = {name: round(median(one["stages_us"][name] for one in rounds), 1) for name in rounds[0]["stages_us"]}
    return figures | {"least_cpu_us": round(min(one["cpu_us"] for one in rounds), 1), "stages_us": stages}


def main() -> None:
    """Compares the trees for each case of `serve.py`, and prints and writes the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("other", type=Path)
    parser.add_argument("--cases", default="mean,mean:describe,transformer,ranked,many_items,alone")
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--bundles", type=Path, default=None, help="folder of the bundles, kept between two runs")
    options = parser.parse_args()
    folder = options.bundles or Path(tempfile.mkdtemp(prefix="twofold-bench-"))
    script = Path(tempfile.mkdtemp(prefix="twofold-bench-")) / "request.lua"
    trees = {"before": options.other.resolve(), "after": HERE.parent}
    figures: dict[str, Any] = {}
    for name in options.cases.split(","):
        case, _, field = name.partition(":")
        kind, items, connections = one.CASES[case]
        script.write_text(one.request_script(f',"{field}":true' if field else ""))
        runs = {side: folder / side / f"{kind}-{items}" for side in trees}
        for side, tree in trees.items():
            write_bundle(tree, runs[side], kind, items)
        figures[name] = compare(
            runs, trees, script, seconds=options.seconds, rounds=options.rounds, connections=connections
        )
        print(name, json.dumps(figures[name]))
    commits = {
        name: subprocess.run(["git", "rev-parse", "HEAD"], cwd=tree, **one.CAUGHT).stdout.strip()
        for name, tree in trees.items()
    }
    saved = {"commits": commits, "load_average": os.getloadavg(), "figures": figures}
    (HERE / "serve_compare.json").write_text(json.dumps(saved, indent=1) + "\n")


if __name__ == "__main__":
    main()
