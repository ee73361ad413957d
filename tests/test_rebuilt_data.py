"""Data sets rebuilt as Parquet, on the files at hand where there are any."""

import os
from pathlib import Path

import pytest

from data.rebuilt_data import SETS
from tests.ingest.packed import rows, table
from twofold.ingest.public import find_set, make_tables

AT_HAND = Path(os.environ.get("TWOFOLD_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
needs_files = pytest.mark.skipif(
    not AT_HAND.is_dir(), reason=f"no data sets at {AT_HAND}; TWOFOLD_DATA may name the folder that holds them"
)


def made_at_hand(name: str, folder: str, to: Path) -> Path:
    origin = AT_HAND / folder
    if not origin.exists():
        pytest.skip(f"{origin} is not there")
    make_tables(SETS.get(name) or find_set(name), origin, to)
    return to


@needs_files
def test_the_shipped_log_is_made_of_the_pieces(tmp_path: Path, kuairand_folder: Path) -> None:
    made = made_at_hand("kuairand-pure", "kuairand-pure", tmp_path)
    for name in ("events", "items", "users"):
        ours, shipped = (f"FROM read_parquet('{folder / name}.parquet')" for folder in (made, kuairand_folder))
        for one, other in ((ours, shipped), (shipped, ours)):
            assert rows(f"SELECT COUNT(*) FROM (SELECT * {one} EXCEPT ALL SELECT * {other})") == [(0,)]


@needs_files
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("ml-latest-small", (100_836, 610, 9_724)),
        ("ml-1m", (1_000_209, 6_040, 3_706)),
    ],
)
def test_movielens_at_hand_is_whole(tmp_path: Path, name: str, counts: tuple[int, int, int]) -> None:
    made = made_at_hand(name, name, tmp_path)
    assert table(made, "events", "COUNT(*), COUNT(DISTINCT user_id), COUNT(DISTINCT item_id)") == [counts]
    lost = f"SELECT COUNT(*) FROM '{made}/events.parquet' ANTI JOIN '{made}/items.parquet' USING (item_id)"
    assert rows(lost) == [(0,)]
    ties = 'COUNT("at") - COUNT(DISTINCT (user_id, "at")) FILTER ("at" IS NOT NULL), COUNT(*) FILTER ("at" IS NULL)'
    assert table(made, "events", ties) == [(0, 537 if name == "ml-1m" else 0)]
    no_year, no_genre = table(made, "items", "COUNT(*) FILTER (year IS NULL), COUNT(*) FILTER (genres = [])")[0]
    assert (no_year, no_genre) == {"ml-latest-small": (12, 34), "ml-1m": (0, 0)}[name]


@needs_files
def test_the_published_order_of_ties_survives(tmp_path: Path) -> None:
    made = made_at_hand("ml-1m", "ml-1m", tmp_path)
    published = f"read_parquet('{AT_HAND}/ml-1m/ml-1m.parquet')"
    ordered = f"""
        SELECT "at", LAG("at") OVER (PARTITION BY user_id ORDER BY pos) AS before, at_is_estimated, "timestamp"
        FROM '{made}/events.parquet' JOIN {published} AS own ON user_id = own."user" AND item_id = own.item
        WHERE pos IS NOT NULL
    """
    assert rows(f'SELECT COUNT(*), COUNT(*) FILTER ("at" <= before) FROM ({ordered})') == [(999_611, 0)]
    exact = 'COUNT(*) FILTER (at_is_estimated = ("timestamp" IS NOT NULL)), COUNT("timestamp")'
    wrong = 'COUNT(*) FILTER ("timestamp" <> "at" // 1000)'
    assert rows(f"SELECT {exact}, {wrong} FROM ({ordered})") == [(0, 105_471 - 61, 0)]


@needs_files
def test_the_sequence_and_ncf_files_at_hand(tmp_path: Path) -> None:
    sequences = made_at_hand("sequences", "loo-sequences/ml-1m_sasrec.txt", tmp_path / "sequences")
    counts = "COUNT(*), COUNT(DISTINCT user_id), COUNT(DISTINCT item_id)"
    assert table(sequences, "events", counts) == [(999_611, 6_040, 3_416)]
    (tmp_path / "both").mkdir()
    for path in (*(AT_HAND / "ncf-ml-1m").iterdir(), AT_HAND / "ml-1m" / "ml-1m.parquet"):
        (tmp_path / "both" / path.name).symlink_to(path)
    ncf = made_at_hand("ncf", str(tmp_path / "both"), tmp_path / "ncf")
    by_kind = rows(
        f"SELECT is_test, COUNT(*), BOOL_AND(at_is_estimated), BOOL_OR(at_is_estimated) FROM '{ncf}/events.parquet' "
        "GROUP BY 1 ORDER BY 1"
    )
    assert by_kind == [(False, 994_169, True, True), (True, 6_040, False, False)]
    last = f"SELECT ARG_MAX(is_test, \"at\") AS is_test FROM '{ncf}/events.parquet' GROUP BY user_id"
    assert rows(f"SELECT COUNT(*), BOOL_AND(is_test) FROM ({last})") == [(6_040, True)]
    own = f"""
        SELECT COUNT(*), MIN(LEN(negatives.item_id)), COUNT(*) FILTER (LIST_CONTAINS(negatives.item_id, events.item_id))
        FROM '{ncf}/published_negatives.parquet' AS negatives JOIN '{ncf}/events.parquet' AS events USING (user_id)
        WHERE is_test
    """
    assert rows(own) == [(6_040, 99, 156)]  # 156 sampled negatives are the positive itself, as published


@needs_files
def test_the_pairs_of_gowalla_at_hand(tmp_path: Path) -> None:
    made = made_at_hand("gowalla", "gowalla", tmp_path)
    day = '("at" - 946684800000) // 86400000'
    counts = rows(f"SELECT {day}, COUNT(*) FROM '{made}/events.parquet' GROUP BY 1 ORDER BY 1")
    assert [count for _, count in counts[2:]] == [217_242]
    assert sum(count for _, count in counts[:2]) == 810_128
    assert 0.095 < counts[1][1] / 810_128 < 0.105
