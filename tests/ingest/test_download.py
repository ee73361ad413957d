"""Downloads from a local server: complete, cut, not as published, missing."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from twofold.errors import DataError
from twofold.ingest.download import download

CONTENT = bytes(range(256)) * 100
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


class Publisher(BaseHTTPRequestHandler):
    """Serves `/whole.zip`, and `/cut.zip`, whose connection closes half way; answers 404 to anything else."""

    def do_GET(self) -> None:
        if self.path not in ("/whole.zip", "/cut.zip"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if self.path == "/cut.zip" else CONTENT)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def publisher() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Publisher) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_archive_is_downloaded_once(tmp_path: Path, publisher: str) -> None:
    path = tmp_path / "data" / "a.zip"
    archive = download(f"{publisher}/whole.zip", path, md5=MD5, retry_command="twofold data a")
    assert (archive.path, archive.size, archive.md5) == (path, len(CONTENT), MD5)
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["a.zip"]
    assert download("http://nowhere.invalid/a.zip", path, md5=MD5, retry_command="") == archive


def test_without_a_published_checksum_its_own_is_told(tmp_path: Path, publisher: str) -> None:
    assert download(f"{publisher}/whole.zip", tmp_path / "a.zip", retry_command="").md5 == MD5
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_a_connection_that_is_cut_leaves_nothing(tmp_path: Path, publisher: str) -> None:
    with pytest.raises(
        DataError, match=rf"the connection was closed {len(CONTENT) // 2:,} bytes before the end\)\. Give"
    ):
        download(f"{publisher}/cut.zip", tmp_path / "a.zip", md5=MD5, retry_command="twofold data a")
    assert list(tmp_path.iterdir()) == []
    download(f"{publisher}/whole.zip", tmp_path / "a.zip", md5=MD5, retry_command="twofold data a")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_another_file_than_the_published_is_deleted(tmp_path: Path, publisher: str) -> None:
    wrong = MD5[::-1]
    message = (
        rf"a\.zip\.part \({len(CONTENT):,} bytes\) has the MD5 {MD5}, but .*whole\.zip is published with {wrong}: it"
    )
    with pytest.raises(
        DataError, match=message + r" is damaged or another file\. It was deleted: give the command again"
    ):
        download(f"{publisher}/whole.zip", tmp_path / "a.zip", md5=wrong, retry_command="")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.zip").write_bytes(b"the user's own")
    with pytest.raises(DataError, match=r"a\.zip \(14 bytes\) has the MD5 .*Delete it, and give the command again"):
        download(f"{publisher}/whole.zip", tmp_path / "a.zip", md5=MD5, retry_command="")
    assert (tmp_path / "a.zip").exists()


def test_what_is_not_there_is_said_with_what_to_do(tmp_path: Path, publisher: str) -> None:
    command = "twofold data a --to data/a"
    with pytest.raises(
        DataError,
        match=r"/b\.zip cannot be downloaded \(HTTP Error 404: Not Found\)\..* or get the file in another "
        r"way, and then: twofold data a --to data/a --from a\.zip",
    ):
        download(f"{publisher}/b.zip", tmp_path / "a.zip", md5=MD5, retry_command=command)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(DataError, match=rf"http://127\.0\.0\.1:{port}/a\.zip cannot be downloaded \(.*refused\)"):
        download(f"http://127.0.0.1:{port}/a.zip", tmp_path / "a.zip", md5=MD5, retry_command=command)
    with pytest.raises(DataError, match=r"cannot be downloaded \(.*(known|resolution|address).*\)"):
        download("http://nowhere.invalid/a.zip", tmp_path / "a.zip", md5=MD5, retry_command=command)
    assert list(tmp_path.iterdir()) == []
