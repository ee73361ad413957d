"""Downloads of published archives, verified by checksum, and safe unpacking of the files that a layout names."""

import gzip
import hashlib
import http.client
import os
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, Final

from twofold.errors import DataError
from twofold.progress import progress_bar

_CHUNK_BYTES: Final = 2**20
_TIMEOUT_S: Final = 30.0
# Exceptions of zipfile and tarfile for archives that are cut short, changed, locked by a password, or whose paths leave
# the folder.
_DAMAGED: Final = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, RuntimeError)


@dataclass(frozen=True)
class Archive:
    """An archive on disk: its size in bytes and its MD5 checksum."""

    path: Path
    size: int
    md5: str


def download(url: str, path: Path, *, md5: str = "", retry_command: str) -> Archive:
    """Downloads a file to `path`, unless `path` exists, and verifies its MD5 checksum if one is published.

    DataError if the URL does not answer or the content is not as published; `retry_command` is part of the message.
    """
    if path.exists():
        return _verified(path, path, md5=md5, url=url)
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _fetch(url, part)
    except (OSError, http.client.HTTPException) as error:
        part.unlink(missing_ok=True)
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        reason = error.reason if type(error) is urllib.error.URLError else error
        raise DataError(
            f"{url} cannot be downloaded ({reason}). Give the command again; or get the file in another way, and then: "
            f"{retry_command} --from {path.name}"
        ) from error
    return _verified(part, path, md5=md5, url=url)


def _fetch(url: str, part: Path) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "twofold"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response, part.open("wb") as file:
        written, size = 0, int(response.headers.get("Content-Length") or 0)
        with progress_bar("download", total=size, unit="bytes") as advance:
            while chunk := response.read(_CHUNK_BYTES):
                written += file.write(chunk)
                advance(len(chunk), part.name.removesuffix(".part"))
        if written < size:
            raise OSError(f"the connection was closed {size - written:,} bytes before the end")


def _verified(downloaded: Path, path: Path, *, md5: str, url: str) -> Archive:
    """Moves a file to `path` if it is as published; a download that is not is deleted."""
    with downloaded.open("rb") as file:
        own = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    size = downloaded.stat().st_size
    if md5 and own != md5:
        remedy = "Delete it, and give the command again"
        if downloaded != path:
            downloaded.unlink()
            remedy = "It was deleted: give the command again"
        raise DataError(
            f"{downloaded} ({size:,} bytes) has the MD5 {own}, but {url} is published with {md5}: it is damaged or "
            f"another file. {remedy}."
        )
    os.replace(downloaded, path)
    return Archive(path, size, own)


# --- unpacking --------------------------------------------------------------------------------------------------------


def is_archive(path: Path) -> bool:
    """Returns whether a path is a .zip, .tar or .tar.gz file, whatever its name."""
    return path.is_file() and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))


def is_named(name: str, pattern: str) -> bool:
    """Returns whether a file name matches a pattern in which `*` stands for any text; hidden files never match."""
    return fnmatchcase(name, pattern) and not name.startswith(".")


def unpack(archive: Path, folder: Path, *, patterns: Collection[str]) -> None:
    """Extracts the members whose file name matches a pattern into a new folder, and never outside of it.

    DataError if the archive is damaged, or if a member's path leaves the folder.
    """
    folder.mkdir()
    try:
        with archive.open("rb") as file, progress_bar("unpack", total=len(patterns), unit="files") as advance:
            for name in _extract(file, folder, patterns):
                advance(1, name)
    except _DAMAGED as error:
        raise DataError(f"{archive} cannot be unpacked ({error}): it is damaged or cut short. Get it again.") from error


def _extract(file: IO[bytes], folder: Path, patterns: Collection[str]) -> Iterator[str]:
    """Extracts the members whose file name matches a pattern, and yields each name."""

    def is_wanted(path: str) -> bool:
        return any(is_named(PurePosixPath(path).name, pattern) for pattern in patterns)

    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as packed:  # extract() drops `..` and the root from a member's path
            for info in packed.infolist():
                if not info.is_dir() and is_wanted(info.filename):
                    yield packed.extract(info, folder)
        return
    file.seek(0)
    with tarfile.open(fileobj=file) as stream:
        for entry in stream:
            if entry.isfile() and is_wanted(entry.name):
                stream.extract(entry, folder, filter="data")
                yield entry.name
        while stream.fileobj is not None and stream.fileobj.read(
            _CHUNK_BYTES
        ):  # to the end, where gzip has its checksum
            pass
