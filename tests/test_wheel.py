"""The wheel with the extra `serve` alone, installed into an empty environment by the commands of the Dockerfile."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.tiny import ITEMS, best, scores_of, write_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
ABSENT = "torch duckdb sklearn scipy pandas matplotlib seaborn plotly openTSNE vl_convert jinja2 onnx redis pytest"
BUILD, _, SERVER = DOCKERFILE.rpartition("\n\nFROM")


def lines(stage: str, word: str) -> list[str]:
    return re.findall(rf"^{word} +(.*)$", stage, re.MULTILINE)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the environment of the Dockerfile's first stage, without the extra `redis`."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for *sources, target in map(str.split, lines(BUILD, "COPY")):
        for source in sources:
            if (ROOT / source).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / source, folder / "source" / target, ignore=ignored)
            else:
                (folder / "source" / target).mkdir(exist_ok=True)
                shutil.copy(ROOT / source, folder / "source" / target)
    ask = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--quiet",
        "--dest",
        str(folder / "asked"),
        "hatchling",
    ]
    pip = subprocess.run(ask, capture_output=True, text=True, check=False)
    if pip.returncode:
        pytest.skip(f"no package index is reached from here: {pip.stderr.strip().splitlines()[-1]}")
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    for command in lines(BUILD, "RUN"):
        command = command.replace("/opt", str(folder)).replace("/wheels", str(folder / "wheels"))
        done = subprocess.run(
            ["sh", "-ec", command],
            cwd=folder / "source",
            env=os.environ | {"EXTRAS": "serve", "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return folder / "twofold"


def python(environment: Path, *words: str) -> str:
    """Runs the environment's Python, which sees nothing of this repository; its stdout."""
    command = [str(environment / "bin" / "python"), "-I", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=environment).stdout


def test_nothing_that_made_the_run_is_installed(environment: Path) -> None:
    find = f"from importlib.util import find_spec; print([name for name in {ABSENT.split()} if find_spec(name)])"
    assert python(environment, "-c", find).strip() == "[]"
    assert Path(python(environment, "-c", "import twofold; print(twofold.__file__)").strip()).is_relative_to(
        environment
    )
    assert "No broken requirements" in python(environment, "-m", "pip", "check")


def test_what_is_installed_is_the_lock(environment: Path) -> None:
    def pins(text: str) -> set[tuple[str, str]]:
        found = re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE)
        return {(re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in found}

    installed = pins(python(environment, "-m", "pip", "freeze", "--exclude", "twofold"))
    assert len(installed) > 20
    assert installed - pins((ROOT / "constraints.txt").read_text()) == set()


def test_it_brings_the_log_and_the_recipe_of_the_demo(environment: Path, tmp_path: Path) -> None:
    call = f"print(copy_shipped(Path({str(tmp_path)!r})))"
    copy = f"from pathlib import Path; from twofold.cli.demo import copy_shipped; {call}"
    recipe = Path(python(environment, "-c", copy).strip())
    assert recipe == tmp_path / "recipes" / "kuairand.yaml"
    copied = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(copied) == 6
    for path in copied:
        assert (tmp_path / path).read_bytes() == (ROOT / path).read_bytes()


@pytest.fixture
def port(environment: Path, tmp_path: Path) -> Iterator[int]:
    """Runs the image's own command on a tiny run, in that environment, and returns the port of the service."""
    run = write_run(tmp_path / "runs" / "current")
    (entry,), (rest,) = (lines(SERVER, word) for word in ("ENTRYPOINT", "CMD"))
    (store,) = re.findall(r"^ENV .*TWOFOLD_HISTORIES=/histories/(\S+)$", SERVER, re.MULTILINE)
    words = json.loads(entry)
    assert json.loads(rest) == ["/runs/current"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    command = [str(environment / "bin" / words[0]), *words[1:], str(run), "--port", str(number)]
    with (tmp_path / "log").open("w") as log:
        variables = {"TWOFOLD_TOKEN": "secret", "TWOFOLD_HISTORIES": str(tmp_path / store)}
        service = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, env=os.environ | variables)
        yield number
        service.send_signal(signal.SIGTERM)
        assert service.wait(60) == 0, (tmp_path / "log").read_text()


def ask(port: int, path: str, body: Any = None) -> Any:
    sent = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json", "authorization": "Bearer secret"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", sent, headers)
    with urllib.request.urlopen(request, timeout=30) as reply:
        return reply.read()


def test_it_answers(environment: Path, port: int) -> None:
    (check,) = re.findall(r"^HEALTHCHECK .* CMD (.*)$", SERVER, re.MULTILINE)
    words = [word.replace(":8000/", f":{port}/") for word in json.loads(check)]
    for _ in range(240):
        if subprocess.run([environment / "bin" / words[0], *words[1:]], stderr=subprocess.DEVNULL).returncode == 0:
            break
        time.sleep(0.25)
    else:
        raise AssertionError("it is never healthy")
    answer = json.loads(ask(port, "/v1/recommend", {"user_id": 20, "k": 3, "context": {"at": 43_200_000}}))
    expected = best(scores_of(["f", "e", "d", "c", "f"], []), without="c d e f", k=3)
    assert [item["item_id"] for item in answer["items"]] == expected
    assert json.loads(ask(port, "/health"))["items"] == len(ITEMS)
    assert b"<html" in ask(port, "/")


def test_the_image_runs_as_nobody_in_particular() -> None:
    assert SERVER.index("USER twofold") < SERVER.index("ENTRYPOINT")
    assert "useradd" in SERVER
