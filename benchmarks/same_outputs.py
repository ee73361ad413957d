"""Compares what two checkouts make of the shipped log and of one world: reports, facts, index files and replies.

    python benchmarks/same_outputs.py BASE_CHECKOUT NEW_CHECKOUT FOLDER [--only kuairand,world,kuairand-ranked]

Each checkout runs its own recipes with this Python. Runs that FOLDER holds already are not run again. Values must be
equal to the last bit; a key may have the new name of `RENAMED`; times, commits, digests and sentences are left out.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

RENAMED = {
    "headline": "primary_metric",
    "remarks": "warnings",
    "because": "reasons",
    "kept": "accepted",
    "to_find": "relevant_digest",
    "passing": "filtered",
    "told_apart": "significant",
    "last": "max_length",
    "over": "vectors",
    "table": "share_item_embedding",
    "expand": "hidden_dim",
    "dropout": "unknown_rate",
    "by": "key",
    "alpha": "smoothing",
    "put": "upserted",
    "withdrawn": "removed",
}
LEFT_OUT = {
    "files",
    "commit",
    "hardware",
    "versions",
    "seconds",
    "recipe_digest",
    "digest",
    "epochs",
    "made_at",
    "alarm_words",
}
SENTENCES = {
    "cause",
    "largest",
    "meaning",
    "verdict",
    "sentence",
    "remark",
    "words",
    "text",
    "about",
    "told",
    "what",
    "name",
    "summary",
    "label",
    "candidates",
    "excluded",
    "left_out",
}
RUNS = ("kuairand", "world", "kuairand-ranked")
AT = 1652000000000
REQUESTS = (
    {"user_id": 3, "k": 20, "context": {"at": AT}},
    {"history": [12, 34, 56], "k": 10, "context": {"at": AT}, "explain": True},
    {"user_id": 7, "k": 15, "filter": "length_s < 60", "context": {"at": AT}, "describe": True},
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default=",".join(RUNS))
    options = parser.parse_args()
    differences: list[str] = []
    for name in options.only.split(","):
        runs = [
            make_run(checkout, options.folder / side, name) for side, checkout in vars(options).items() if side in SIDES
        ]
        differences += [f"{name}: {line}" for line in compare_runs(*runs)]
        replies = [replies_of(checkout, run) for checkout, run in zip((options.base, options.new), runs, strict=True)]
        differences += [f"{name}: reply {line}" for line in compare(*replies, at="")]
        print(f"{name}: {len(differences)} differences so far", flush=True)
    print("\n".join(differences[:100]))
    return bool(differences)


SIDES = ("base", "new")


def command(checkout: Path, *arguments: object) -> None:
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    line = [sys.executable, "-m", "twofold", *map(str, arguments)]
    done = subprocess.run(line, cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)} failed:\n{done.stderr[-2000:]}")


def make_run(checkout: Path, folder: Path, name: str) -> Path:
    """Runs a recipe of the checkout, if the folder does not hold the finished run."""
    folder.mkdir(parents=True, exist_ok=True)
    run = folder.resolve() / name
    if (run / "explain" / "manifest.json").exists():
        return run
    recipe: Path = checkout.resolve() / "recipes" / f"{name}.yaml"
    if name == "world":
        world = folder.resolve() / "world-data"
        if not world.exists():
            command(checkout, "data", "world", "--rows", 150_000, "--to", world)
        recipe = world / "recipe.yaml"
        command(checkout, "recipe", "new", "--log", world / "events", "--out", recipe)
    command(checkout, "run", recipe, "--runs", folder.resolve(), "--run", name)
    return run


def compare_runs(base: Path, new: Path) -> list[str]:
    """Differences of facts, reports and stored arrays of two run folders."""
    found: list[str] = []
    for file in sorted(base.rglob("*.json")):
        name = file.relative_to(base)
        if not (new / name).exists():
            found.append(f"{name} is missing")
        else:
            found += compare(*(json.loads((run / name).read_text()) for run in (base, new)), at=str(name))
    for pattern in ("index/*.npy", "index/*.parquet", "recommend/*.parquet", "dataset/*.npy", "prepare/**/*.parquet"):
        for file in sorted(base.glob(pattern)):
            name = file.relative_to(base)
            if not (new / name).exists():
                found.append(f"{name} is missing")
            elif file.read_bytes() != (new / name).read_bytes():
                found.append(f"{name} has other bytes")
    return found


def compare(one: Any, other: Any, *, at: str) -> list[str]:
    """Differences of two JSON values, by path."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = []
        for key, value in one.items():
            if key in LEFT_OUT:
                continue
            new_key = key if key in other else RENAMED.get(key, key)
            if new_key not in other:
                found.append(f"{at}.{key} is missing")
            elif key in SENTENCES and isinstance(value, str | list):
                continue
            else:
                found += compare(value, other[new_key], at=f"{at}.{key}")
        return found
    if isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            return [f"{at} has {len(one)} and {len(other)} entries"]
        return [
            line
            for number, pair in enumerate(zip(one, other, strict=True))
            for line in compare(*pair, at=f"{at}[{number}]")
        ]
    return [] if one == other or (one != one and other != other) else [f"{at}: {one!r} and {other!r}"]


def replies_of(checkout: Path, run: Path) -> list[Any]:
    """Replies of the service to fixed requests."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    line = [sys.executable, "-m", "twofold", "serve", str(run), "--port", str(port)]
    server = subprocess.Popen(line, cwd=checkout, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=1)
                break
            except OSError:
                time.sleep(0.5)
        return [post(port, request) for request in REQUESTS]
    finally:
        server.terminate()
        server.wait()


def post(port: int, request: dict[str, object]) -> Any:
    body = json.dumps(request).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/recommend", data=body, headers={"content-type": "application/json"}
    )
    try:
        return json.loads(urllib.request.urlopen(request, timeout=30).read())
    except urllib.error.HTTPError as error:
        return {"status": error.code}


if __name__ == "__main__":
    sys.exit(main())
