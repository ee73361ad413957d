"""Downloads from a server of our own: whole, continued, not as published, not there."""

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
    """`/whole` knows ranges, `/again` does not, `/cut` closes half way; anything else is not there."""

    def do_GET(self) -> None:
        if self.path not in ("/whole.zip", "/again.zip", "/cut.zip"):
            self.send_error(404)
            return
        first = 0
        asked = self.headers.get("Range")
        if asked and self.path == "/whole.zip":
            first = int(asked.removeprefix("bytes=").removesuffix("-"))
            if first >= len(CONTENT):
                self.send_error(416)
                return
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(CONTENT) - first))
        self.end_headers()
        self.wfile.write(CONTENT[first : len(CONTENT) // 2] if self.path == "/cut.zip" else CONTENT[first:])

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


def test_an_archive_is_got_once(tmp_path: Path, publisher: str) -> None:
    path = tmp_path / "data" / "a.zip"
    archive = download(f"{publisher}/whole.zip", path, md5=MD5, then="twofold data a")
    assert (archive.path, archive.size, archive.md5) == (path, len(CONTENT), MD5)
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["a.zip"]
    assert download("http://nowhere.invalid/a.zip", path, md5=MD5, then="") == archive


def test_without_a_published_checksum_its_own_is_told(tmp_path: Path, publisher: str) -> None:
    (tmp_path / "a.zip.part").write_bytes(b"of another version")
    assert download(f"{publisher}/whole.zip", tmp_path / "a.zip", then="").md5 == MD5
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


@pytest.mark.parametrize("page", ["whole.zip", "again.zip"])
@pytest.mark.parametrize("done", [1, len(CONTENT) // 2, len(CONTENT)])
def test_what_was_cut_goes_on(tmp_path: Path, publisher: str, page: str, done: int) -> None:
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:done])
    download(f"{publisher}/{page}", tmp_path / "a.zip", md5=MD5, then="")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_a_connection_that_is_cut_leaves_what_came(tmp_path: Path, publisher: str) -> None:
    with pytest.raises(
        DataError, match=rf"the connection was closed {len(CONTENT) // 2:,} bytes before the end\)\. The"
    ):
        download(f"{publisher}/cut.zip", tmp_path / "a.zip", md5=MD5, then="twofold data a")
    assert not (tmp_path / "a.zip").exists()
    download(f"{publisher}/whole.zip", tmp_path / "a.zip", md5=MD5, then="twofold data a")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_another_file_than_the_published_is_thrown_away(tmp_path: Path, publisher: str) -> None:
    wrong = MD5[::-1]
    message = (
        rf"a\.zip\.part \({len(CONTENT):,} bytes\) has the MD5 {MD5}, but .*whole\.zip is published with {wrong}: it"
    )
    with pytest.raises(
        DataError, match=message + r" is damaged or another file\. It was removed: give the command again"
    ):
        download(f"{publisher}/whole.zip", tmp_path / "a.zip", md5=wrong, then="")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.zip").write_bytes(b"the user's own")
    with pytest.raises(DataError, match=r"a\.zip \(14 bytes\) has the MD5 .*Delete it, and give the command again"):
        download(f"{publisher}/whole.zip", tmp_path / "a.zip", md5=MD5, then="")
    assert (tmp_path / "a.zip").exists()


def test_what_is_not_there_is_said_with_what_to_do(tmp_path: Path, publisher: str) -> None:
    then = "twofold data a --to data/a"
    with pytest.raises(
        DataError,
        match=r"/b\.zip cannot be fetched \(HTTP Error 404: Not Found\)\..* or get the file in another way, and then: "
        r"twofold data a --to data/a --from a\.zip",
    ):
        download(f"{publisher}/b.zip", tmp_path / "a.zip", md5=MD5, then=then)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(DataError, match=rf"http://127\.0\.0\.1:{port}/a\.zip cannot be fetched \(.*refused\)"):
        download(f"http://127.0.0.1:{port}/a.zip", tmp_path / "a.zip", md5=MD5, then=then)
    with pytest.raises(DataError, match=r"cannot be fetched \(.*(known|resolution|address).*\)"):
        download("http://nowhere.invalid/a.zip", tmp_path / "a.zip", md5=MD5, then=then)
    assert list(tmp_path.iterdir()) == []
