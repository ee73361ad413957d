"""Numbers of a synthetic world that are refused."""

from pathlib import Path
from typing import Any

import pytest

from twofold.errors import RequestError
from twofold.ingest.world_events import World, write_world


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"rows": 0}, "rows is 0; a world needs at least 1"),
        ({"rows": -5}, "rows is -5"),
        ({"users": -1}, "users is -1"),
        ({"days": 0}, "days is 0"),
        ({"languages": 0}, "languages is 0"),
        ({"users": 20_000}, "20,000 users but 10,000 rows"),
        ({"days": 10_001}, "10,001 days but 10,000 rows"),
        ({"users": 1}, "357 a user and day; 200 at most can be watched"),
        ({"creators": 5}, "5 creators for 6 languages"),
        ({"new_items": 0.5}, "uploads 600 of 1,200 items on each of 28 days"),
        ({"items": 30}, "uploads 1 of 30 items"),
        ({"own_language": 1.1}, "own_language is 1.1; it lies between 0 and 1"),
        ({"length_bias": float("nan")}, "length_bias is nan"),
        ({"noise": 0.9}, "noise is 0.9; it lies between 0 and 0.5"),
        ({"seed": -1}, "seed is -1; take 0 or more"),
    ],
)
def test_numbers_that_cannot_be_are_refused(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        World(**{"rows": 10_000} | numbers)


def test_a_folder_that_holds_another_log_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "mine.parquet").write_text("mine")
    with pytest.raises(RequestError, match="holds events of a log that is no synthetic one"):
        write_world(tmp_path, World(rows=20_000, days=5), overwrite=True)
    assert [path.name for path in tmp_path.rglob("*.parquet")] == ["mine.parquet"]
