"""A published archive, whole or not at all: what is cut continues, what is not as published is thrown away."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from twofold.errors import DataError
from twofold.progress import progress_bar

_CHUNK: Final = 2**20
_WAIT_S: Final = 30.0


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
