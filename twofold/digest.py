"""SHA-256 digests that identify recipes, stages and files."""

import hashlib
import json
from pathlib import Path
from typing import Any


def digest_of(value: Any) -> str:
    """Returns the SHA-256 of a value's canonical JSON: equal values have equal digests, on every machine.

    >>> digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
