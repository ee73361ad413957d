"""What `faults.py` breaks: a disk that can be filled, a Redis that can be stopped, a service that can lose workers."""

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
WORKERS: Final = 2


class Disk:
    """A file system of its own, small enough to be filled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"no disk to fill: {done.stderr.strip()} (a mount takes root)")

    def fill(self) -> None:
        """Until nothing more fits."""
        with suppress(OSError), (self.folder / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))

    def free(self) -> None:
        """As it was."""
        (self.folder / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        """Lazily: whoever still has a file open may finish."""
        subprocess.run(["umount", "-l", str(self.folder)], check=True)


class RedisServer:
    """A server of Redis whose data lie on the disk that is filled."""

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
        """Waits until it listens."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            time.sleep(0.05)
        raise SystemExit("Redis does not start")

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal, if it runs."""
        self._process.send_signal(number)

    def heal(self) -> None:
        """Goes on if it was frozen, and is started if it is gone: a full disk ends it, as `appendfsync always` says."""
        self.signal(signal.SIGCONT)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)
            self.start()

    def close(self) -> None:
        """For good."""
        self.signal(signal.SIGKILL)
        self._process.wait(30)


class Service:
    """`twofold serve` in processes of its own, and its log."""

    def __init__(self, run: Path, histories: str, disk: Path) -> None:
        self.port = free_port()
        words = ["--port", str(self.port), "--workers", str(WORKERS), "--histories", histories]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "twofold", "serve", str(run), *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"TWOFOLD_TOKEN": TOKEN, "TMPDIR": str(disk)},
        )
        self.log: list[dict[str, Any]] = []
        self._killed: set[int] = set()
        threading.Thread(target=self._read, daemon=True).start()
        while len(self.logged("ready")) < WORKERS:
            if self._process.poll() is not None:
                raise SystemExit(f"the service does not start: {self.log}")
            time.sleep(0.05)

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.log.append(json.loads(line) if line.startswith(b"{") else {"message": line.decode().rstrip()})

    def logged(self, message: str) -> list[dict[str, Any]]:
        """Lines of that message."""
        return [line for line in self.log if line["message"] == message]

    def kill_one(self) -> bool:
        """SIGKILL for a worker; False as long as not all of them are there: none would be left to answer."""
        ready = {line["process"] for line in self.logged("ready")} - self._killed
        there = [process for process in ready if Path(f"/proc/{process}").exists()]
        if len(there) < WORKERS:
            return False
        self._killed.add(chosen := random.choice(there))
        with suppress(ProcessLookupError):
            os.kill(chosen, signal.SIGKILL)
        return True

    def stop(self) -> int:
        """Its exit code after SIGTERM."""
        self._process.terminate()
        return self._process.wait(60)

    def close(self) -> None:
        """Nothing if it has been stopped; its workers end with it."""
        self._process.kill()
        self._process.wait(60)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
