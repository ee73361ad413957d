"""Published archives, whole or not at all: what is cut goes on, what is not as published is thrown away, and of what is
inside only the files that are named come out.
"""

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
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, Final

from twofold.errors import DataError
from twofold.progress import progress_bar

_CHUNK: Final = 2**20
_WAIT_S: Final = 30.0
# What zipfile and tarfile say of archives that are cut, changed or locked by a password.
_DAMAGED: Final = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, RuntimeError)


@dataclass(frozen=True)
class Archive:
    """An archive on disk, and what it is: bytes and MD5, as read."""

    path: Path
    size: int
    md5: str


def download(address: str, path: Path, *, md5: str = "", then: str) -> Archive:
    """Gets what is published at an address; what lies at `path` already, and is that, is not got again.

    Bytes gather in `<path>.part`, where the next attempt goes on. DataError if the address does not answer or holds
    something else: it says which file to put where, and `then`, the command to go on with. Without a published `md5`
    nothing is compared: the archive's own is returned, to be told.
    """
    if path.exists():
        return _checked(path, path, md5=md5, address=address)
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not md5:
        part.unlink(missing_ok=True)  # nothing would tell if it went on with another version
    try:
        _fetch(address, part)
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if type(error) is urllib.error.URLError else error
        raise DataError(
            f"{address} cannot be fetched ({reason}). The same command goes on where it stopped; or get the file "
            f"in another way, and then: {then} --from {path.name}"
        ) from error
    return _checked(part, path, md5=md5, address=address)


def _fetch(address: str, part: Path) -> None:
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address, headers={"User-Agent": "twofold"})
    if done:
        request.add_header("Range", f"bytes={done}-")
    try:
        answer = urllib.request.urlopen(request, timeout=_WAIT_S)
    except urllib.error.HTTPError as error:
        with error:  # closes the connection
            if error.code == 416:  # nothing lies beyond what is here: it was cut after the last byte
                return
            raise
    with answer:
        is_continued = answer.status == 206
        done = done if is_continued else 0
        rest = int(answer.headers.get("Content-Length") or 0)
        name = part.name.removesuffix(".part")
        with (
            part.open("ab" if is_continued else "wb") as file,
            progress_bar("download", total=done + rest, unit="bytes", done=done) as advance,
        ):
            left = rest
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                left -= len(chunk)
                advance(len(chunk), name)
        if rest and left > 0:
            raise OSError(f"the connection was closed {left:,} bytes before the end")


def _checked(found: Path, path: Path, *, md5: str, address: str) -> Archive:
    """The archive under its name, if it is as published; else it is removed, so that the next attempt begins anew."""
    with found.open("rb") as file:
        own = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    size = found.stat().st_size
    if md5 and own != md5:
        if found != path:
            found.unlink()
        remedy = "It was removed: give the command again" if found != path else "Delete it, and give the command again"
        raise DataError(
            f"{found} ({size:,} bytes) has the MD5 {own}, but {address} is published with {md5}: it is damaged or "
            f"another file. {remedy}."
        )
    os.replace(found, path)
    return Archive(path, size, own)


# --- what is inside ---------------------------------------------------------------------------------------------------


def is_archive(path: Path) -> bool:
    """Whether there is a file that can be unpacked here: .zip, .tar or .tar.gz, whatever it is called."""
    return path.is_file() and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))


def is_named(name: str, pattern: str) -> bool:
    """Whether a file name fits a pattern in which `*` stands for anything; hidden files fit none."""
    return fnmatchcase(name, pattern) and not name.startswith(".")


def unpack(archive: Path, into: Path, *, patterns: Collection[str], address: str) -> None:
    """Writes the members whose file name fits a pattern, and no other, each below `into`, which is made.

    DataError if the archive is damaged, or if such a member would be written elsewhere.
    """
    into.mkdir()
    told = 0
    try:
        with archive.open("rb") as raw, progress_bar("unpack", total=archive.stat().st_size, unit="bytes") as advance:
            for name, member in _members(raw, patterns):
                place = PurePosixPath(name)
                if place.is_absolute() or ".." in place.parts or "\\" in name:
                    raise DataError(
                        f"{archive} holds {name}, a path that leaves the folder it is unpacked in: no publisher writes "
                        f"that. Nothing is kept of it; get the archive from {address or 'its publisher'}."
                    )
                (into / place).parent.mkdir(parents=True, exist_ok=True)
                with (into / place).open("wb") as file:
                    while chunk := member.read(_CHUNK):
                        file.write(chunk)
                        advance(raw.tell() - told, place.name)
                        told = raw.tell()
    except _DAMAGED as error:
        raise DataError(f"{archive} cannot be unpacked ({error}): it is damaged or cut short. Get it again.") from error


def _members(raw: IO[bytes], patterns: Collection[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """Path and content of the members whose file name fits, in the order of the archive."""
    if zipfile.is_zipfile(raw):
        with zipfile.ZipFile(raw) as packed:
            for info in sorted(packed.infolist(), key=lambda info: info.header_offset):
                if not info.is_dir() and _is_wanted(info.filename, patterns):
                    with packed.open(info) as member:
                        yield info.filename, member
        return
    raw.seek(0)
    is_packed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    with gzip.open(raw) if is_packed else nullcontext(raw) as plain, tarfile.open(fileobj=plain, mode="r|") as stream:
        for entry in stream:
            content = stream.extractfile(entry) if entry.isfile() and _is_wanted(entry.name, patterns) else None
            if content is not None:
                yield entry.name, content
        while plain.read(_CHUNK):  # to the end, where the checksum is
            pass


def _is_wanted(path: str, patterns: Collection[str]) -> bool:
    return any(is_named(PurePosixPath(path).name, pattern) for pattern in patterns)
