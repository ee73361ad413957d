"""Tables of public data sets: their content, and refusals before anything is written."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.ingest.packed import MOVIES_CSV, RATINGS_CSV, SECOND, table, tarred, write, zipped
from twofold.errors import DataError
from twofold.ingest.public import PUBLIC_SETS, data_block, find_set, make_tables
from twofold.prepare.sources import open_source

# --- what is written --------------------------------------------------------------------------------------------------


def small_20m(folder: Path) -> Path:
    return write(folder, {"ratings.csv": RATINGS_CSV, "movies.csv": MOVIES_CSV})


def test_the_same_pieces_give_the_same_bytes_sorted_by_time(tmp_path: Path) -> None:
    origin = small_20m(tmp_path / "it's [ml]")
    for folder in ("a", "b"):
        make_tables(find_set("ml-20m"), origin, tmp_path / folder)
    for name in ("events.parquet", "items.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    at = pq.read_table(tmp_path / "a" / "events.parquet")["at"].to_pylist()
    assert at == sorted(at)


def test_a_recipe_reads_what_was_written(tmp_path: Path) -> None:
    made = make_tables(find_set("ml-20m"), small_20m(tmp_path / "ml"), tmp_path / "out")
    source = open_source(made.data)
    assert source.events.columns == {"user_id": "BIGINT", "item_id": "BIGINT", "at": "BIGINT", "rating": "DOUBLE"}
    assert source.items.columns["genres"] == "VARCHAR[]"
    out = (tmp_path / "out").resolve()
    assert data_block(made.data) == (
        f"data:\n  kind: table\n  events: {out}/events.parquet\n  items: {out}/items.parquet\n"
    )


def test_tables_that_are_there_are_given_up_only_when_asked(tmp_path: Path) -> None:
    origin, to = small_20m(tmp_path / "ml"), tmp_path / "out"
    make_tables(find_set("ml-20m"), origin, to)
    with pytest.raises(
        DataError, match=r"out/events\.parquet exists already\. Give another folder \(--to\), or --overwr"
    ):
        make_tables(find_set("ml-20m"), origin, to)
    write(origin, {"ratings.csv": RATINGS_CSV + f"3,2,1.0,{SECOND}\n"})
    assert make_tables(find_set("ml-20m"), origin, to, replace=True).rows["events"] == 5
    assert len(table(to, "events")) == 5


def test_tables_of_another_set_in_the_folder_are_not_those_of_the_one_that_overwrote_it(tmp_path: Path) -> None:
    to, sequences = tmp_path / "out", write(tmp_path / "seq", {"a.txt": "1 2\n1 3\n"})
    make_tables(find_set("ml-20m"), small_20m(tmp_path / "ml"), to)
    data = make_tables(find_set("sequences"), sequences, to, replace=True).data
    assert (data.events, data.items) == ((to / "events.parquet").resolve(), None)


def test_nothing_is_left_of_a_conversion_that_failed(tmp_path: Path) -> None:
    origin, to = small_20m(tmp_path / "ml"), tmp_path / "out"
    write(origin, {"movies.csv": "movieId,title,genres\nnine,Babylon 5,Sci-Fi\n"})
    with pytest.raises(
        DataError, match=r"ml cannot be converted to tables: .*nine.*Either one of its files is damaged or"
    ):
        make_tables(find_set("ml-20m"), origin, to)
    assert not to.exists()
    write(origin, {"movies.csv": "id,title,genres\n9,Babylon 5,Sci-Fi\n"})
    with pytest.raises(DataError, match=r"cannot be converted to tables: .*movieId"):
        make_tables(find_set("ml-20m"), origin, to)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        DataError, match=r"there is no data set ml20m \(nearest: ml-20m.*data sets: kuairand-pure, kuai"
    ):
        find_set("ml20m")
    with pytest.raises(DataError, match=r"of a recipe's log: twofold recipe check RECIPE --columns"):
        find_set("recipes/kuairand.yaml")


def test_a_missing_member_is_named_and_so_is_where_to_get_it(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "ml-20m.zip", {"ml-20m/ratings.csv": RATINGS_CSV})
    with pytest.raises(
        DataError,
        match=r"ml-20m\.zip lacks movies\.csv of ml-20m, which is ratings\.csv, movies\.csv in one folder\. The "
        r"archive: https://files\.grouplens\.org/datasets/movielens/ml-20m\.zip",
    ):
        make_tables(find_set("ml-20m"), archive, tmp_path / "out")
    with pytest.raises(DataError, match=r"there is nothing at .*nowhere\. --from is a folder or an archive of ml-20m"):
        make_tables(find_set("ml-20m"), tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(DataError, match=r"ncf is not published as an archive\. Name your folder or file: --from PATH"):
        make_tables(find_set("ncf"), None, tmp_path / "out")


def test_a_set_that_is_there_twice_is_not_chosen_from(tmp_path: Path) -> None:
    for name in ("ml-20m", "ml-25m"):
        small_20m(tmp_path / name)
    with pytest.raises(DataError, match=r"holds ml-25m 2 times, in .*ml-20m and .*ml-25m\. Name one"):
        make_tables(find_set("ml-25m"), tmp_path, tmp_path / "out")
    assert make_tables(find_set("ml-25m"), tmp_path / "ml-25m", tmp_path / "out").rows["events"] == 4


@pytest.mark.parametrize("name", ["../ratings.csv", "/ratings.csv", "ml-20m/../../ratings.csv", "..\\x/ratings.csv"])
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_cannot_write_outside(tmp_path: Path, name: str, pack: Any) -> None:
    archive = pack(tmp_path / "ml-20m.zip", {name: RATINGS_CSV})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"cannot be unpacked|lacks"):
        make_tables(find_set("ml-20m"), archive, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/ratings.csv").exists()


def test_members_that_no_layout_names_are_not_unpacked(tmp_path: Path) -> None:
    files = {"ml/ratings.csv": RATINGS_CSV, "ml/movies.csv": MOVIES_CSV, "../../evil.sh": "rm"}
    assert make_tables(find_set("ml-20m"), zipped(tmp_path / "a.zip", files), tmp_path / "out").rows["events"] == 4
    assert not list(tmp_path.rglob("evil.sh"))


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_damaged_archive_is_named(tmp_path: Path, pack: Any) -> None:
    lines = "".join(f"{user},2,5.0,{SECOND + user * 7919 % 1_000_003}\n" for user in range(20_000))
    archive = pack(tmp_path / "ml-20m.zip", {"ratings.csv": RATINGS_CSV + lines, "movies.csv": MOVIES_CSV})
    content = bytearray(archive.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 100] = bytes(100)
    archive.write_bytes(content)
    with pytest.raises(
        DataError, match=r"ml-20m\.zip cannot be unpacked \(.*\): it is damaged or cut short\. Get it again"
    ):
        make_tables(find_set("ml-20m"), archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_set_says_where_it_is_and_on_what_terms() -> None:
    for public in PUBLIC_SETS:
        assert public.terms
        assert public.url.startswith("https://") or not public.url
        assert len(public.md5) in (0, 32)
