"""Pointer to a bundle: a file on shared storage that services on many hosts follow, each by a swap of its own.

```
shared/
├── current.json                     {"run": "kuairand-0f3a92c1d4e5", "bundle": "0f3a92c1d4e5…"}
└── kuairand-0f3a92c1d4e5/index/     the bundle that it names
```

The pointer holds the digest of the bundle's content, so that a bundle which is still being copied, or was overwritten,
is never used. A service copies the bundle to the folder of its own runs, unless that is the folder of the pointer.
"""

import asyncio
import logging
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from twofold.errors import RequestError, RunError
from twofold.run_folder import open_stage, write_json
from twofold.serve.bundle import content_digest
from twofold.serve.bundle_swaps import MAX_PAUSE_S, BundleSwitch
from twofold.serve.http_errors import UNREADABLE, HttpError
from twofold.serve.middleware import log
from twofold.serve.shared_state import SharedFolder

POINTER_POLL_S: Final = 2.0  # longest delay until a service begins to follow a new pointer
SHORT_DIGEST: Final = 12  # characters of a digest in the name of a folder
RUN_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")


class Pointer(Struct, frozen=True, forbid_unknown_fields=True):
    """The name of a run beside the pointer's file, and the digest of its bundle's content."""

    run: str
    bundle: str


def read_pointer(file: Path) -> Pointer:
    """Reads a pointer; RunError if there is none, or if it names anything but a folder beside it."""
    try:
        pointer = msgspec.json.decode(file.read_bytes(), type=Pointer)
    except OSError as error:
        raise RunError(
            f"the pointer {file} cannot be read: {error.strerror}. Write it with `twofold publish`."
        ) from error
    except UNREADABLE as error:
        raise RunError(f"the pointer {file} is damaged: {error}. Write it again with `twofold publish`.") from error
    if not RUN_NAME.fullmatch(pointer.run):
        raise RunError(
            f"the pointer {file} names the run {pointer.run[:80]!r}: the name of a folder beside it is needed, of "
            f"ASCII letters, digits and _ . -"
        )
    return pointer


def publish(run: Path, file: Path) -> Pointer:
    """Copies a run's bundle to the folder of the pointer, unless it is there, and makes the pointer name it.

    RunError if the bundle is incomplete or damaged; RequestError if no pointer can hold the run's name, or if the
    folder cannot be written. The pointer is replaced last and whole.
    """
    open_stage(run, "index", verify=True)
    digest, runs, whole = content_digest(run), file.parent, run.resolve()
    name = whole.name if whole.parent == runs.resolve() else f"{whole.name}-{digest[:SHORT_DIGEST]}"
    if not RUN_NAME.fullmatch(name):
        raise RequestError(
            f"the run's folder is named {whole.name[:80]!r}: services follow pointers to names of ASCII letters, "
            f"digits and _ . - that begin with a letter, a digit or _. Rename the folder, and publish it again."
        )
    try:
        if not _has(runs / name, digest):
            _copy(run, runs / name, digest)
        write_json(file, {"run": name, "bundle": digest})
    except OSError as error:
        raise RequestError(
            f"{runs} cannot be written: {error}. Name a pointer in an existing folder that every host can read."
        ) from error
    return Pointer(name, digest)


def fetch(file: Path, runs: Path) -> Path:
    """Returns the run folder in `runs` with the bundle that a pointer names, copied there if it was missing.

    RunError if the bundle is incomplete, damaged, or not the one of the pointer; OSError if it cannot be copied.
    """
    pointer = read_pointer(file)
    short = f"{pointer.run.removesuffix('-' + pointer.bundle[:SHORT_DIGEST])}-{pointer.bundle[:SHORT_DIGEST]}"
    for folder in (runs / pointer.run, runs / short):
        if _has(folder, pointer.bundle):
            return folder
    source = file.parent / pointer.run
    if not _has(source, pointer.bundle):
        raise RunError(
            f"the pointer {file} names the bundle {pointer.bundle[:SHORT_DIGEST]}, but {source} does not hold it. Copy "
            f"the run there, or write the pointer again with `twofold publish`."
        )
    _copy(source, runs / short, pointer.bundle)
    return runs / short


def _has(run: Path, digest: str) -> bool:
    try:
        return content_digest(run) == digest
    except RunError:
        return False


def _copy(run: Path, target: Path, digest: str) -> None:
    """Copies the bundle of a run, and compares every file of the copy with its checksum before it gets its name."""
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=target.parent) as folder:
        copy = Path(folder) / target.name
        copy.mkdir()
        shutil.copytree(run / "index", copy / "index")
        open_stage(copy, "index", verify=True)
        if content_digest(copy) != digest:
            raise RunError(f"the bundle of {run} was replaced while it was copied. It is copied again.")
        try:
            os.rename(copy, target)
        except OSError:
            if not _has(target, digest):  # another service of this host was faster
                raise


async def follow_pointer(file: Path, runs: Path, *, bundles: BundleSwitch, shared: SharedFolder) -> None:
    """Swaps to the bundle of the pointer whenever it is another, until the task is canceled.

    One worker of a service swaps, that with the lowest process id; all of them state whether they lag behind. After a
    failure the previous bundle stays in use, and the next attempt follows after a pause that doubles.
    """
    pause_s = POINTER_POLL_S
    while True:
        await asyncio.sleep(pause_s)
        try:
            await _follow_once(file, runs, bundles=bundles, shared=shared)
            pause_s = POINTER_POLL_S
        except Exception as error:  # one that nobody foresaw must not end the task: the next pointer is followed
            bundles.metrics.pointer_lag.set(1)
            if isinstance(error, RunError | HttpError | OSError):
                log("pointer cannot be followed", {"error": str(error)})
            else:
                logging.getLogger("twofold.serve").exception(
                    "pointer cannot be followed", extra={"facts": {"error": repr(error)}}
                )
            pause_s = min(2 * pause_s, MAX_PAUSE_S)


async def _follow_once(file: Path, runs: Path, *, bundles: BundleSwitch, shared: SharedFolder) -> None:
    lag = bundles.metrics.pointer_lag
    pointer = await asyncio.to_thread(read_pointer, file)
    lags = pointer.bundle != bundles.current.digest
    lag.set(lags)
    if lags and os.getpid() == min(worker.process for worker in shared.workers()):
        folder = await asyncio.to_thread(fetch, file, runs)
        await bundles.swap(folder.name)
        lag.set(bundles.current.digest != pointer.bundle)
