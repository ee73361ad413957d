"""The run folder: one folder per stage, each complete or absent.

```
runs/kuairand/
├── recipe.yaml          the recipe, with all defaults and its base resolved
├── prepare/             rows, events, items, users, funnel          + manifest.json
├── dataset/             arrays, vocabularies, fitted features       + manifest.json
├── train/               weights, training log                       + manifest.json
├── evaluate/            report.json, values of single users        + manifest.json
├── index/               the bundle: all that the service opens      + manifest.json
├── recommend/           recommendations.parquet                     + manifest.json
├── explain/             probes.json, gap.json, the map              + manifest.json
├── run.html, run.md     the run on one page, and its summary for a tracker
└── comment.md           a comment for the page
```

A stage writes into `<stage>.partial/`, which is renamed once the manifest, written last, is complete: a killed stage is
never taken for a complete one. A stage whose inputs have the digest of its manifest is not run again. Once another
recipe overwrites a run, the file `evaluate.outdated` says that the results there are not yet those of this recipe.
"""

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from twofold.digest import digest_of, file_digest
from twofold.errors import RunError
from twofold.tables import Json

MANIFEST: Final = "manifest.json"


@dataclass(frozen=True)
class Stage:
    """A complete stage: its folder, the digest of its inputs, and the facts of its manifest."""

    folder: Path
    digest: str
    facts: Mapping[str, Json]
    seconds: float
    was_reused: bool


def run_stage(
    run: Path,
    name: str,
    *,
    inputs: Json,
    work: Callable[[Path], Mapping[str, Json]],
) -> Stage:
    """Runs `work` in a partial folder and renames that to `run/name`; or finds the stage complete and unchanged.

    `inputs` is everything the result depends on, as JSON: the version of the stage's code, sections of the recipe and
    digests of earlier stages. `work` takes the partial folder and returns facts for the manifest. If an earlier attempt
    with the same inputs was killed, `work` gets the partial folder that it left, so that training can resume.
    """
    digest = digest_of({"stage": name, "inputs": inputs})
    done = _read_stage(run, name)
    if done is not None and done.digest == digest:
        _outdated(run, name).unlink(missing_ok=True)
        return done
    partial = run / f"{name}.partial"
    claim = partial / "inputs.digest"
    if not (claim.exists() and claim.read_text(encoding="utf-8") == digest):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        claim.write_text(digest, encoding="utf-8")
    started = time.perf_counter()
    facts = work(partial)
    seconds = time.perf_counter() - started
    files = {
        str(path.relative_to(partial)): {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(partial.rglob("*"))
        if path.is_file() and path != claim
    }
    manifest = {"stage": name, "digest": digest, "facts": dict(facts), "seconds": round(seconds, 3), "files": files}
    write_json(partial / MANIFEST, manifest)
    claim.unlink()
    final = run / name
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    _outdated(run, name).unlink(missing_ok=True)
    return Stage(final, digest, facts, seconds, was_reused=False)


def find_stage(run: Path, name: str) -> Stage | None:
    """Returns a complete stage of a run folder; `None` means that it is absent, outdated or its manifest damaged."""
    return None if _outdated(run, name).exists() else _read_stage(run, name)


def mark_outdated(run: Path, *names: str) -> None:
    """Marks stages as those of another recipe until `run_stage` makes them again or finds them unchanged."""
    for name in names:
        if _read_stage(run, name) is not None:
            _outdated(run, name).touch()


def _outdated(run: Path, name: str) -> Path:
    return run / f"{name}.outdated"


def _read_stage(run: Path, name: str) -> Stage | None:
    try:
        manifest = json.loads((run / name / MANIFEST).read_text(encoding="utf-8"))
        return Stage(run / name, manifest["digest"], manifest["facts"], manifest["seconds"], was_reused=True)
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        return None


def open_stage(run: Path, name: str, *, verify: bool = False) -> Stage:
    """Returns a complete stage; RunError says what is missing. `verify` compares every file with its checksum."""
    if not run.is_dir():
        raise RunError(
            f"there is no run folder {run}. Make one with `twofold run RECIPE`, or list them with `twofold runs`."
        )
    stage = find_stage(run, name)
    if stage is None:
        unfinished = " (it was begun and not finished)" if (run / f"{name}.partial").exists() else ""
        unfinished = " (the one that is there is of another recipe)" if _outdated(run, name).exists() else unfinished
        raise RunError(
            f"run {run} has no complete {name}/ stage{unfinished}. Run `twofold run` with its recipe again: "
            f"it continues."
        )
    files = json.loads((stage.folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    for relative, expected in files.items():
        path = stage.folder / relative
        if not path.is_file():
            raise RunError(
                f"{path} is missing, though the manifest lists it. Delete {stage.folder} and run `twofold run` again."
            )
        if path.stat().st_size != expected["bytes"] or (verify and file_digest(path) != expected["sha256"]):
            raise RunError(
                f"{path} is damaged: it has {path.stat().st_size} bytes and not the content of "
                f"{expected['bytes']} bytes that was written. Delete {stage.folder} and run `twofold run` again."
            )
    return stage


def read_json(path: Path) -> dict[str, Json]:
    """Returns the JSON object of a file; empty if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: Json) -> None:
    """Writes a JSON file whole or not at all: to a file beside it, flushed to disk, then renamed."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(value, indent=1, sort_keys=False, allow_nan=False) + "\n", encoding="utf-8")


def numbered(name: str, number: int) -> str:
    """Returns the name of the file of the part with this number, of several parts that are counted from 0.

    >>> numbered("fold_in.json", 0), numbered("fold_in.json", 1)
    ('fold_in.json', 'fold_in.1.json')
    """
    stem, _, ending = name.partition(".")
    return f"{stem}.{number}.{ending}" if number else name


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Gives the block a path to write to; the file becomes `path` if the block succeeds, and is deleted if not."""
    partial = path.with_name(path.name + ".writing")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keeps other processes out of a run folder while the block runs; turns a full disk into a RunError."""
    try:
        run.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise RunError(
            f"{run} cannot be a run folder: it or a folder above it is a file. Name another folder."
        ) from None
    with (run / ".lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"another process is working in {run}. Wait for it, or choose another folder with --run NAME."
            ) from None
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            free = shutil.disk_usage(run).free // 2**20
            raise RunError(
                f"the disk is full: writing {error.filename or run} failed with {free} MiB free. "
                f"No incomplete stage counts as done; free some space and give the same command again: it continues."
            ) from error
