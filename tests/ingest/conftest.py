"""A short-video log that several tests inspect."""

from pathlib import Path

import numpy as np
import pytest

from tests.ingest.test_inspect_log import ROWS, keys, write


@pytest.fixture
def short_video(tmp_path: Path) -> Path:
    """A log as KuaiRand publishes it, with two rows written twice."""
    key, numbers = keys(), np.arange(ROWS)
    columns = {
        "user_id": key["user"],
        "video_id": key["item"],
        "date": np.full(ROWS, 20240101),
        "time_ms": key["seconds"] * 1000,
        "is_click": numbers % 2,
        "is_like": (numbers % 10 == 0).astype(int),
        "is_hate": (numbers % 300 == 0).astype(int),
        "play_time_ms": numbers * 10 % 200_000,
        "duration_ms": 5_000 + numbers % 30 * 1000,
        "tab": numbers % 5,
    }
    twice = {name: np.concatenate([values, values[:2]]) for name, values in columns.items()}
    return write(tmp_path / "log.parquet", twice)
