"""SHA-256 digests of recipes, stages and files, and the state by which a file is known to have changed."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

FileState = tuple[int, int, int]
"""Inode, size and time of writing of a file, which tell whether it has changed."""


def digest_of(value: Any) -> str:
    """Returns the SHA-256 of a value's canonical JSON: equal values have equal digests, on every machine.

    >>> digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_stem(name: str) -> str:
    """Returns the part of a file's name that stands for a name from a log or a recipe, whatever characters it has.

    Names of letters, digits and `_` stand for themselves, others are replaced by their digest: `../x` would lead out of
    the folder.

    >>> file_stem("author_id")
    'author_id'
    >>> file_stem("genre/sub")
    'name-dad599af99f9ded6'
    """
    is_plain = re.fullmatch(r"[A-Za-z0-9_]{1,150}", name)
    return name if is_plain else f"name-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_state(status: os.stat_result) -> FileState:
    """Returns what tells whether a file has changed, without reading it."""
    return status.st_ino, status.st_size, status.st_mtime_ns
