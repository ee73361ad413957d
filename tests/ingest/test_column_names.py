import pytest

from twofold.ingest.column_roles import normalized_name
from twofold.ingest.table_profile import words


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("userId", ["user", "id"]),
        ("user_id", ["user", "id"]),
        ("User ID", ["user", "id"]),
        ("user-id:token", ["user", "id"]),
        ("item: [id] #1", ["item", "id", "1"]),
        ("USERID", ["userid"]),
        ("Größe_ms", ["grösse", "ms"]),
        ("';--", []),
    ],
)
def test_words_of_a_name(name: str, expected: list[str]) -> None:
    assert words(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("is_like", "like"),
        ("play_time_ms", "playtime"),
        ("timestamp_us", "timestamp"),
        ("isLiked", "liked"),
        ("ms", ""),
    ],
)
def test_a_spelling_has_no_unit_and_no_is(name: str, expected: str) -> None:
    assert normalized_name(name) == expected
