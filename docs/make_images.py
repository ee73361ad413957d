"""Writes the pictures of README.md: the page of a run, its map and the live page of the service, by Chromium.

python docs/make_images.py runs/kuairand
"""

import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

IMAGES = Path(__file__).with_name("images")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--disable-sync"]
PORT = 8642


def main(run: Path) -> None:
    """Takes the three pictures; the service is started for the last one and stopped again."""
    IMAGES.mkdir(exist_ok=True)
    picture((run / "run.html").resolve().as_uri(), "run", size="1280,1050")
    picture((run / "explain" / "map.html").resolve().as_uri(), "map", size="1000,1050")
    server = subprocess.Popen([sys.executable, "-m", "twofold", "serve", str(run), "--port", str(PORT)])
    try:
        wait_until_ready(f"http://127.0.0.1:{PORT}/ready")
        picture(f"http://127.0.0.1:{PORT}/?user=3", "live", size="1000,1050")
    finally:
        server.terminate()
        server.wait()


def picture(url: str, name: str, *, size: str) -> None:
    """Writes docs/images/NAME.png: the first screen of the page."""
    assert CHROMIUM is not None, "install Chromium (Debian: apt-get install chromium)"
    with tempfile.TemporaryDirectory() as profile:
        command = [
            CHROMIUM,
            *FLAGS,
            f"--user-data-dir={profile}",
            f"--window-size={size}",
            "--virtual-time-budget=8000",
        ]
        subprocess.run([*command, f"--screenshot={IMAGES / name}.png", url], check=True, capture_output=True)


def wait_until_ready(url: str) -> None:
    """Returns when the address answers; TimeoutError after 60 s."""
    for _ in range(120):
        try:
            urllib.request.urlopen(url, timeout=1)
            return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(url)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
