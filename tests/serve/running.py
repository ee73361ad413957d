"""A service in its own processes, for tests over HTTP."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

TOKEN = "a token"


class Running:
    """A service in its own processes, with its log."""

    def __init__(self, run: Path, *options: str, token: str = TOKEN) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "twofold", "serve", str(run), "--port", str(self.port), *options]
        environment = os.environ | {"TWOFOLD_TOKEN": token, "TWOFOLD_ADMIN_TOKEN": token}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment)
        self.log: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.until(lambda: self.logged("ready"))

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self.log.append(json.loads(line) if line.startswith(b"{") else {"message": line.decode()})

    def logged(self, message: str) -> list[dict[str, Any]]:
        return [line for line in self.log if line["message"] == message]

    def until(self, condition: Callable[[], Any], seconds: float = 60) -> None:
        """Waits until the condition is true."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.log
            assert self.process.poll() is None, self.log
            time.sleep(0.05)

    def call(self, path: str, body: Any = None) -> Any:
        """Posts a body, or gets a page, on a new connection and returns the JSON; fails unless the status is 200."""
        reply = self.reply(path, body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def reply(self, path: str, body: Any = None) -> httpx.Response:
        method = "GET" if body is None else "POST"
        url, headers = f"http://127.0.0.1:{self.port}{path}", {"authorization": f"Bearer {TOKEN}"}
        return httpx.request(method, url, json=body, headers=headers, timeout=30)

    def workers(self) -> list[int]:
        """Process ids."""
        started = {line["process"] for line in self.logged("ready")}
        return [pid for pid in started if Path(f"/proc/{pid}").exists()]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self._reader.join()
        return code
