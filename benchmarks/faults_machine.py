"""Parts that `faults.py` breaks: a disk that can be filled, a Redis that can be stopped, a service with workers."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

TOKEN: Final = "a token"
DISK_MB: Final = 48
MEMORY_MB: Final = 40
WORKERS: Final = 2
KEPT_LINES: Final = 20  # of the log of a trial that failed: so many about failures, and so many others
LONGEST_LINE: Final = 4_000
EXPECTED: Final = frozenset(("the store fails", "items changed"))


class Disk:
    """A separate file system, small enough to be filled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"no disk to fill: {done.stderr.strip()} (mounting needs root)")

    def fill(self) -> None:
        """Fills the disk."""
        with suppress(OSError), (self.folder / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))

    def free(self) -> None:
        """Frees the disk."""
        (self.folder / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        """Unmounts lazily: processes with an open file may finish."""
        subprocess.run(["umount", "-l", str(self.folder)], check=True)


class RedisServer:
    """A Redis server that stores its data on the disk that is filled."""

    def __init__(self, folder: Path) -> None:
        found = shutil.which("redis-server") or shutil.which("valkey-server")
        if found is None:
            raise SystemExit("benchmarks/faults.py starts a Redis: apt-get install redis-server")
        self._port = free_port()
        durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        self._command = [found, "--port", str(self._port), "--dir", str(folder), *durable]
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self.start()

    def start(self) -> None:
        """Starts the server and waits until it listens."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            time.sleep(0.05)
        raise SystemExit("Redis does not start")

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the server, if it runs."""
        self._process.send_signal(number)

    def heal(self) -> None:
        """Resumes a frozen server and restarts one that has ended, as with `appendfsync always` on a full disk."""
        self.signal(signal.SIGCONT)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)
            self.start()

    def close(self) -> None:
        """Kills the server."""
        self.signal(signal.SIGKILL)
        self._process.wait(30)


class Service:
    """`twofold serve` in its own processes, with its log."""

    def __init__(self, run: Path, histories: str, disk: Path) -> None:
        self.port = free_port()
        options = ["--port", str(self.port), "--workers", str(WORKERS), "--histories", histories]
        self.runs = run.parent
        mount = f'mount -t tmpfs -o size={MEMORY_MB}m tmpfs /dev/shm && exec "$@"'  # for this service alone
        self._process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", mount, "sh"]
            + [sys.executable, "-m", "twofold", "serve", str(run), *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"TWOFOLD_TOKEN": TOKEN, "TWOFOLD_ADMIN_TOKEN": TOKEN, "TMPDIR": str(disk)},
        )
        self.log: list[dict[str, Any]] = []
        self._killed: set[int] = set()
        threading.Thread(target=self._read, daemon=True).start()
        while len(self.logged("ready")) < WORKERS:
            if self._process.poll() is not None:
                raise SystemExit("the service does not start:\n" + "\n".join(lines_about_failures(self.log)))
            time.sleep(0.05)

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.log.append(json.loads(line) if line.startswith(b"{") else {"message": line.decode().rstrip()})

    def logged(self, message: str) -> list[dict[str, Any]]:
        """Returns the log lines with a message."""
        return [line for line in self.log if line["message"] == message]

    def alive(self) -> list[int]:
        """Returns the workers that have become ready and were not killed."""
        ready = {line["process"] for line in self.logged("ready")} - self._killed
        return [process for process in ready if Path(f"/proc/{process}").exists()]

    def kill_one(self) -> bool:
        """Kills a worker (SIGKILL), if all workers run; returns whether it did."""
        alive = self.alive()
        if len(alive) < WORKERS:
            return False
        self._killed.add(chosen := random.choice(alive))
        with suppress(ProcessLookupError):
            os.kill(chosen, signal.SIGKILL)
        return True

    def stop(self) -> int:
        """Stops the service with SIGTERM and returns its exit code."""
        self._process.terminate()
        return self._process.wait(60)

    def close(self) -> None:
        """Kills the service, if it still runs; its workers end with it."""
        self._process.kill()
        self._process.wait(60)


def lines_about_failures(log: list[dict[str, Any]]) -> list[str]:
    """Returns the last lines with a traceback, of replies with status 500, and of other than JSON, and among them the
    last lines about workers and swaps, oldest first. Left out is what the faults cause all the time.
    """
    lines = [line for line in log if line["message"] not in EXPECTED and line.get("status") != 503]
    failed = [line.get("level") == "error" or "process" not in line or line.get("status") == 500 for line in lines]
    kept = [[number for number, is_one in enumerate(failed) if is_one is kind][-KEPT_LINES:] for kind in (True, False)]
    return [_as_text(lines[number]) for number in sorted(kept[0] + kept[1])]


def _as_text(line: dict[str, Any]) -> str:
    facts = [f"{name}={value}" for name, value in line.items() if name not in ("message", "level", "traceback")]
    text = "\n".join(filter(None, (" ".join([line["message"], *facts]), line.get("traceback"))))
    return text if len(text) <= LONGEST_LINE else f"…{text[-LONGEST_LINE:]}"  # the error is at a traceback's end


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
