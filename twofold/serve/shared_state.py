"""State that the workers of a service agree on: the bundle in use, and the items upserted while serving.

The workers share a folder in memory:

```
├── current.json         the bundle in use; a worker that starts opens this bundle and no other
├── proposed.json        a bundle that every worker opens beside its own, before all of them switch
├── worker-PID.json      what a worker uses and has opened; the modification time is its heartbeat
├── items.log            records of item changes, each with its length and checksum
├── verified-DIGEST      marks that the files of a bundle have their checksums, by a digest of their sizes and times
└── lock, swap.lock, verify.lock     held while a file is changed, during a swap, and while checksums are compared
```
"""

import fcntl
import os
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar
from zlib import crc32

import msgspec
from msgspec import Struct

from twofold.run_folder import write_json

State = TypeVar("State", bound=Struct)


class ChosenBundle(Struct, frozen=True):
    """A bundle: the name of the run as it was requested, its folder, and the digest of its content.

    The folder is where the name led when the bundle was opened: a link may lead elsewhere by now. An empty digest means
    that no worker has opened the bundle yet; `released` is the digest that the last workers used then. `proposer` is
    the process that proposes it. `swaps` counts how often another bundle has replaced the current one: a bundle that
    comes back has another number, and none of its earlier upserts.
    """

    run: str
    folder: str = ""
    bundle: str = ""
    proposer: int = 0
    swaps: int = 0
    released: str = ""


class WorkerState(Struct, frozen=True):
    """Digests of the bundle that a worker uses and of the one it has opened beside it, or why it cannot open that."""

    process: int
    bundle: str
    opened: str = ""
    error: str = ""


class SharedFolder:
    """The folder that the workers of a service share, as one process sees it."""

    def __init__(self, folder: Path, process: int | None = None) -> None:
        """Takes an existing folder; `None` means the id of this process."""
        self.folder = folder
        self.process = os.getpid() if process is None else process

    @property
    def current(self) -> ChosenBundle | None:
        """The bundle in use; `None` means that no worker has started yet."""
        return _read(self.folder / "current.json", ChosenBundle)

    @property
    def proposed(self) -> ChosenBundle | None:
        """The bundle that every worker shall open; `None` means none, or that the proposing worker has died."""
        proposed = _read(self.folder / "proposed.json", ChosenBundle)
        return proposed if proposed is not None and _is_alive(proposed.proposer) else None

    def claim(self, bundle: ChosenBundle) -> ChosenBundle:
        """Makes a bundle the current one unless another has been; returns the current one."""
        with _locked(self.folder / "lock"):
            current = self.current
            if current is not None and current.bundle:
                return current
            return self.commit(bundle)

    def commit(self, bundle: ChosenBundle) -> ChosenBundle:
        """Makes a bundle the current one, and returns it with the number of swaps; OSError if it cannot be written."""
        if (last := self.current) is not None:
            is_other = (last.bundle or last.released) not in ("", bundle.bundle)
            bundle = msgspec.structs.replace(bundle, swaps=last.swaps + is_other)
        _write(self.folder / "current.json", bundle)
        return bundle

    def release(self) -> None:
        """Lets the next worker that starts open the current run again: no worker is left that uses its old content."""
        if (current := self.current) is not None:
            last = current.bundle or current.released
            _write(self.folder / "current.json", ChosenBundle(current.run, swaps=current.swaps, released=last))

    @contextmanager
    def proposing(self, bundle: ChosenBundle) -> Iterator[None]:
        """Proposes a bundle while the block runs; OSError if that cannot be written, as on a full disk."""
        _write(self.folder / "proposed.json", msgspec.structs.replace(bundle, proposer=self.process))
        try:
            yield
        finally:
            (self.folder / "proposed.json").unlink(missing_ok=True)

    @contextmanager
    def swap_turn(self) -> Iterator[bool]:
        """Holds the turn to swap while the block runs; gives False if another worker holds it."""
        with (self.folder / "swap.lock").open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    @contextmanager
    def verifying(self, files: str) -> Iterator[bool]:
        """Gives whether files with this digest of their sizes and times still have to be verified; if the block
        raises no error, they are verified then. One worker at a time is in the block.
        """
        done = self.folder / f"verified-{files[:16]}"
        with _locked(self.folder / "verify.lock"):
            yield not done.exists()
            done.touch()

    # --- workers ------------------------------------------------------------------------------------------------------

    def report(self, bundle: str, opened: str, error: str) -> None:
        """Writes the state of this worker (`WorkerState`)."""
        _write(self._path_of(self.process), WorkerState(self.process, bundle, opened, error))

    def beat(self) -> None:
        """Records that this worker is alive, on the clock that never jumps."""
        with suppress(FileNotFoundError):
            os.utime(self._path_of(self.process), (time.monotonic(),) * 2)

    def silent_s(self, process: int) -> float:
        """Returns the seconds since the last heartbeat of a worker; 0 before its first."""
        try:
            return time.monotonic() - self._path_of(process).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def others(self) -> list[WorkerState]:
        """Returns the states of the other workers that are alive."""
        return [worker for worker in self.workers() if worker.process != self.process]

    def workers(self) -> list[WorkerState]:
        """Returns the states of the workers that are alive."""
        states = (_read(path, WorkerState) for path in sorted(self.folder.glob("worker-*.json")))
        return [state for state in states if state is not None and _is_alive(state.process)]

    def forget(self, process: int) -> None:
        """Deletes the state of a worker that has ended."""
        self._path_of(process).unlink(missing_ok=True)

    def _path_of(self, process: int) -> Path:
        return self.folder / f"worker-{process}.json"


def _read(path: Path, kind: type[State]) -> State | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None


def _write(path: Path, state: Struct) -> None:
    write_json(path, msgspec.to_builtins(state))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
        yield


# --- records ----------------------------------------------------------------------------------------------------------

_HEAD: Final = struct.Struct("<II")  # length and checksum of a record
SPARE_BYTES: Final = 2**23  # left free on the disk: on a full disk, the memory-mapped metrics would kill the workers


class RecordLog:
    """A file of records that several processes append to and read on from. Threads must not share it.

    A record that was cut off by a full disk or a killed process has a wrong checksum. It was never acknowledged, and is
    removed by the next process that reads or appends. All methods but `is_read` are called under `locked`.
    """

    def __init__(self, path: Path) -> None:
        """Starts before the first record."""
        self._path = path
        self._file_id = self._bytes_read = 0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out while the block runs."""
        with _locked(self._path.with_suffix(".lock")):
            yield

    @property
    def is_read(self) -> bool:
        """True if nothing was written since the last `new_records`."""
        facts = self._stat()
        return facts is None or (facts.st_ino, facts.st_size) == (self._file_id, self._bytes_read)

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        facts = self._stat()
        return 0 if facts is None else facts.st_size

    def new_records(self) -> Iterator[bytes]:
        """Yields the records since the last call; all records if the file was replaced. Cuts off a damaged tail."""
        if (facts := self._stat()) is None:
            return
        if facts.st_ino != self._file_id:
            self._file_id, self._bytes_read = facts.st_ino, 0
        with self._path.open("r+b") as file:
            file.seek(self._bytes_read)
            while (record := _next_record(file)) is not None:
                self._bytes_read += _HEAD.size + len(record)
                yield record
            file.truncate(self._bytes_read)

    def append(self, record: bytes) -> None:
        """Appends a record whole or not at all, after all records have been read; OSError if the disk is full."""
        free = os.statvfs(self._path.parent)
        if free.f_bavail * free.f_frsize < len(record) + SPARE_BYTES:
            raise OSError(28, f"less than {len(record) + SPARE_BYTES:,} bytes are free in {self._path.parent}")
        framed = _framed(record)
        with self._path.open("ab", buffering=0) as file:
            try:
                if file.write(framed) < len(framed):
                    raise OSError(28, f"the disk of {self._path.parent} is full")
            except OSError:
                file.truncate(self._bytes_read)
                raise
            self._file_id = os.fstat(file.fileno()).st_ino
        self._bytes_read += _HEAD.size + len(record)

    def replace(self, records: Iterable[bytes]) -> None:
        """Replaces all records by these, whole or not at all; other processes read them from the first on."""
        partial = self._path.with_suffix(".writing")
        try:
            with partial.open("wb") as file:
                file.writelines(map(_framed, records))
            os.replace(partial, self._path)
        finally:
            partial.unlink(missing_ok=True)
        facts = self._path.stat()
        self._file_id, self._bytes_read = facts.st_ino, facts.st_size

    def _stat(self) -> os.stat_result | None:
        try:
            return self._path.stat()
        except FileNotFoundError:
            return None


def _framed(record: bytes) -> bytes:
    return _HEAD.pack(len(record), crc32(record)) + record


def _next_record(file: Any) -> bytes | None:
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    length, checksum = _HEAD.unpack(head)
    record: bytes = file.read(length)
    return record if len(record) == length and crc32(record) == checksum else None
