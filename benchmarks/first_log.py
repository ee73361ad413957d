"""Transcript of the first minutes with a CSV file of one's own: README.md quotes it.

    python benchmarks/first_log.py

Writes the log of the shop of `tests/logs` as a user has it, types the commands of the README in a temporary folder, and
saves what they print as `first_log.json` beside this file.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the synthetic logs are those of the tests
from tests.logs.shop import write_shop
from twofold.environment import commit, hardware

SAVED = Path(__file__).with_suffix(".json")
COMMANDS = (
    "twofold recipe new shop/events.csv --items shop/items.csv --out shop.yaml",
    "twofold run shop.yaml",
    "twofold recommend runs/shop --user C00000 -k 3",
)
SERVED = "twofold serve runs/shop"
BODY = '{"user_id": "C00000", "k": 3}'
REQUEST = f"curl -s localhost:8000/v1/recommend -H 'Content-Type: application/json' -d '{BODY}'"


def main() -> None:
    """Types the commands, asks the service, and saves what was printed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "shop").mkdir()
        write_shop(folder / "shop")
        printed = {command: typed(command, folder) for command in COMMANDS}
        printed[REQUEST] = [reply(folder)]
    facts = {"commit": commit(), "hardware": hardware(), "printed": printed}
    SAVED.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def typed(command: str, folder: Path) -> list[str]:
    """Returns the lines that a command prints."""
    program, *arguments = shlex.split(command)
    assert program == "twofold"
    environment = os.environ | {"COLUMNS": "100", "PYTHONPATH": str(Path(__file__).parents[1])}
    result = subprocess.run(
        [sys.executable, "-m", "twofold", *arguments],
        cwd=folder,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return [line.rstrip() for line in result.stdout.splitlines()]


def reply(folder: Path, port: int = 8000) -> str:
    """Returns what the service replies to the request; it is started and stopped again."""
    _, *arguments = shlex.split(SERVED)
    server = subprocess.Popen([sys.executable, "-m", "twofold", *arguments, "--port", f"{port}"], cwd=folder)
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/recommend", BODY.encode(), {"Content-Type": "application/json"}
    )
    try:
        for _ in range(120):
            try:
                return urllib.request.urlopen(request, timeout=10).read().decode()
            except OSError:
                time.sleep(0.5)
        raise TimeoutError("the service did not start")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
