"""Every layout on a few hand-written lines, and the shipped log."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.ingest.packed import MOVIES_CSV, RATINGS_CSV, SECOND, rows, table, tarred, write, zipped
from twofold.errors import DataError
from twofold.ingest.public import find_set, make_tables

# --- KuaiRand ---------------------------------------------------------------------------------------------------------

LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
)
EARLY = LOG + "0,10,20220411,1900,1649675512388,1,0,0,0,0,0,1,209900,209900,0,0,0,0,1\n"
LATE = LOG + 2 * "1,20,20220425,100,1650816000123,0,1,1,1,1,1,0,1500,0,2000,250,1,0,4\n"
RANDOM = LOG + "1,30,20220430,100,1651248000000,0,0,0,0,0,0,0,0,7000,0,0,0,1,0\n"
VIDEOS = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
    "music_id,music_type,tag\n"
    '10,123,NORMAL,2022-04-10,LongImport,0.0,87433.0,720.0,1280.0,9155697141.0,9.0,"39,2"\n'
    "20,456,AD,,Kmovie,0.0,,720.0,1280.0,,9.0,unknown\n"
    "30,789,NORMAL,2022-04-09,Web,0.0,9233.0,720.0,1280.0,6618412736.0,4.0,\n"
)
PEOPLE = "user_id,user_active_degree,is_live_streamer,onehot_feat12\n0,full_active,0,1.0\n1,UNKNOWN,-124,\n"
CLICKED, WATCHED = 'user_id, item_id, "at", clicked, liked, long_view, watch_s, length_s', "profile_s, comments_s, tab"


def test_kuairand_as_published_in_its_archive(tmp_path: Path) -> None:
    names = ("log_standard_4_08_to_4_21", "log_standard_4_22_to_5_08", "log_random_4_22_to_5_08")
    files = {
        f"KuaiRand-Pure/data/{name}_pure.csv": text for name, text in zip(names, (EARLY, LATE, RANDOM), strict=True)
    }
    files["KuaiRand-Pure/data/video_features_basic_pure.csv"] = VIDEOS
    files["KuaiRand-Pure/data/video_features_statistic_pure.csv"] = "video_id,show_cnt\n10,99\n"
    files["KuaiRand-Pure/data/user_features_pure.csv"] = PEOPLE
    to = tmp_path / "out"
    made = make_tables(find_set("kuairand-pure"), tarred(tmp_path / "KuaiRand-Pure.tar.gz", files), to)
    assert made.rows == {"events": 3, "items": 3, "users": 2, "random_events": 1}
    assert table(to, "events", CLICKED) == [
        (0, 10, 1649675512388, True, False, True, 209.9, 209.9),
        (1, 20, 1650816000123, False, True, False, 1.5, 0.0),
        (1, 20, 1650816000123, False, True, False, 1.5, 0.0),  # exact duplicates stay
    ]
    assert table(to, "events", WATCHED)[1:] == [(2.0, 0.25, 4), (2.0, 0.25, 4)]
    assert table(to, "random_events", 'user_id, item_id, "at"') == [(1, 30, 1651248000000)]
    midnight = 1649520000000  # 10 April 2022, 00:00 in Beijing
    assert table(to, "items", "item_id, author_id, tags, length_s, uploaded_at, video_type, music_id") == [
        (10, 123, ["39", "2"], 87.433, midnight, "NORMAL", 9155697141),
        (20, 456, [], None, None, "AD", None),
        (30, 789, [], 9.233, midnight - 86_400_000, "NORMAL", 6618412736),
    ]
    assert table(to, "users") == [(0, "full_active", 0, 1.0), (1, "UNKNOWN", -124, None)]
    assert sorted(path.name for path in to.iterdir()) == [f"{name}.parquet" for name in sorted(made.rows)]


def test_kuairand_27k_comes_in_parts(tmp_path: Path) -> None:
    files = {f"log_standard_4_08_to_4_21_27k_part{part}.csv": EARLY for part in (1, 2)}
    files |= {f"log_standard_4_22_to_5_08_27k_part{part}.csv": LATE for part in (1, 2)}
    files |= {"video_features_basic_27k.csv": VIDEOS, "user_features_27k.csv": PEOPLE}
    made = make_tables(find_set("kuairand-27k"), write(tmp_path / "data", files), tmp_path / "out")
    assert made.rows == {"events": 2 * 1 + 2 * 2, "items": 3, "users": 2}
    (tmp_path / "data" / "log_standard_4_22_to_5_08_27k_part2.csv").unlink()
    with pytest.raises(
        DataError, match=r"data lacks log_standard_4_22_to_5_08_27k_part2\.csv of kuairand-27k, which is"
    ):
        make_tables(find_set("kuairand-27k"), tmp_path / "data", tmp_path / "other")


# --- MovieLens --------------------------------------------------------------------------------------------------------


def test_movielens_20m_as_published_in_its_zip(tmp_path: Path) -> None:
    files = {"ml-20m/ratings.csv": RATINGS_CSV, "ml-20m/movies.csv": MOVIES_CSV, "ml-20m/tags.csv": "userId\n1\n"}
    files["__MACOSX/ml-20m/._ratings.csv"] = "what a Mac leaves behind"
    to = tmp_path / "out"
    made = make_tables(find_set("ml-20m"), zipped(tmp_path / "ml-20m.zip", files), to)
    assert made.rows == {"events": 4, "items": 3}
    assert table(to, "events", order='user_id, "at"') == [
        (1, 5, (SECOND - 1) * 1000, 0.5),
        (1, 9, SECOND * 1000, 3.5),  # the order of the file breaks the tie
        (1, 2, SECOND * 1000 + 1, 4.0),
        (2, 2, SECOND * 1000, 5.0),
    ]
    assert table(to, "items") == [
        (2, 'American "President", The (1995)', 1995, ["Comedy", "Drama"]),
        (5, "Death Note: Desu nôto (2006–2007)", 2006, []),
        (9, "Babylon 5", None, ["Sci-Fi"]),
    ]


def test_more_ties_than_a_second_has_milliseconds_stay_in_their_second(tmp_path: Path) -> None:
    lines = "".join(f"1,{item},5,{SECOND}\n" for item in range(1_002))
    files = {"ratings.csv": f"userId,movieId,rating,timestamp\n{lines}", "movies.csv": MOVIES_CSV}
    make_tables(find_set("ml-25m"), write(tmp_path / "ml-25m", files), tmp_path / "out")
    places = [at - SECOND * 1000 for (at,) in table(tmp_path / "out", "events", '"at"', "item_id")]
    assert places == [*range(1_000), 999, 999]


def test_movielens_1m_has_double_colons_and_latin_1(tmp_path: Path) -> None:
    files = {
        "ratings.dat": f"1::1193::5::{SECOND}\n1::661::3::{SECOND}\n",
        "movies.dat": '661::"Nuits" (1957)::Drama\n1193::Misérables, Les (1995)::Drama|Musical\n',
        "users.dat": "1::F::1::10::02460\n",
    }
    to = tmp_path / "out"
    make_tables(find_set("ml-1m"), write(tmp_path / "ml-1m", files, "latin-1"), to)
    assert table(to, "events", order='"at"') == [(1, 1193, SECOND * 1000, 5.0), (1, 661, SECOND * 1000 + 1, 3.0)]
    assert table(to, "items") == [
        (661, '"Nuits" (1957)', 1957, ["Drama"]),
        (1193, "Misérables, Les (1995)", 1995, ["Drama", "Musical"]),
    ]
    assert table(to, "users") == [(1, "F", 1, 10, "02460")]


def test_movielens_100k_has_a_column_for_each_genre(tmp_path: Path) -> None:
    def film(start: str, *genres: int) -> str:
        return start + "".join(f"|{int(number in genres)}" for number in range(19)) + "\n"

    address = "http://us.imdb.com/M/title"
    files = {
        "ml-100k/u.data": f"7\t267\t3\t{SECOND}\n7\t1\t5\t{SECOND}\n",
        "ml-100k/u.item": film(f"1|Misérables (1995)|01-Jan-1995||{address}", 4, 15) + film("267|unknown|||", 0),
        "ml-100k/u.user": "7|57|M|administrator|91344\n",
    }
    to = tmp_path / "out"
    make_tables(find_set("ml-100k"), write(tmp_path, files, "latin-1"), to)
    assert table(to, "events", order='"at"') == [(7, 267, SECOND * 1000, 3.0), (7, 1, SECOND * 1000 + 1, 5.0)]
    assert table(to, "items") == [(1, "Misérables (1995)", 1995, ["Children's", "Sci-Fi"]), (267, "unknown", None, [])]
    assert table(to, "users") == [(7, 57, "M", "administrator", "91344")]


# --- files of papers --------------------------------------------------------------------------------------------------


def test_a_sequence_file_knows_order_alone(tmp_path: Path) -> None:
    write(tmp_path, {"ml.txt": "1 7\n1 3\n2 7\n1 7\n"})
    made = make_tables(find_set("sequences"), tmp_path / "ml.txt", tmp_path / "out")
    assert made.rows == {"events": 4}
    first = 946_684_800_000  # 1 January 2000
    assert table(tmp_path / "out", "events", order='user_id, "at"') == [
        (1, 7, first),
        (1, 3, first + 1000),
        (1, 7, first + 2000),
        (2, 7, first),
    ]
    write(tmp_path, {"also.txt": "1 1\n"})
    with pytest.raises(
        DataError, match=r"lacks a single \*\.txt \(the folder has also\.txt, ml\.txt: name one\) of sequences"
    ):
        make_tables(find_set("sequences"), tmp_path, tmp_path / "other")


def test_pairs_without_an_order_train_on_one_day_and_test_on_the_third(tmp_path: Path) -> None:
    lines = "".join(f"{user} {' '.join(map(str, range(100)))}\n" for user in range(20))
    write(tmp_path, {"train.txt": lines + "20 7\n21\n", "test.txt": "0 100 101\n1 \n20 8\n"})
    made = make_tables(find_set("pairs"), tmp_path, tmp_path / "out")
    assert made.rows == {"events": 2004}
    events = table(tmp_path / "out", "events", 'user_id, item_id, ("at" - 946684800000) // 86400000')
    by_day = Counter(day for _, _, day in events)
    assert by_day.keys() == {0, 1, 2}
    assert 150 < by_day[1] < 250  # a tenth of 2,001
    assert len({user for user, _, day in events if day == 1}) == 20
    assert sorted((user, item) for user, item, day in events if day == 2) == [(0, 100), (0, 101), (20, 8)]
    again = make_tables(find_set("pairs"), tmp_path, tmp_path / "again")
    assert (tmp_path / "again" / "events.parquet").read_bytes() == (tmp_path / "out" / "events.parquet").read_bytes()
    assert again.rows == made.rows


def test_ncf_keeps_its_test_item_last_and_its_negatives(tmp_path: Path) -> None:
    files = {
        "ml-1m.train.rating": f"0\t32\t4\t{SECOND}\n0\t34\t3\t{SECOND}\n0\t4\t5\t{SECOND - 9}\n",
        "ml-1m.test.rating": f"0\t25\t5\t{SECOND}\n",
        "ml-1m.test.negative": "(0,25)\t1064\t174\t2791\n",
    }
    to = tmp_path / "out"
    assert make_tables(find_set("ncf"), write(tmp_path, files), to).rows == {"events": 4, "published_negatives": 1}
    assert table(to, "events", order='"at"') == [
        (0, 4, (SECOND - 9) * 1000, 5.0, False),
        (0, 32, SECOND * 1000, 4.0, False),
        (0, 34, SECOND * 1000 + 1, 3.0, False),
        (0, 25, SECOND * 1000 + 2, 5.0, True),
    ]
    assert table(to, "published_negatives") == [(0, [1064, 174, 2791])]


# --- the shipped log --------------------------------------------------------------------------------------------------


def test_the_shipped_log_is_as_published(kuairand_folder: Path) -> None:
    events = f"read_parquet('{kuairand_folder}/events.parquet')"
    counts = f"SELECT COUNT(*), COUNT(DISTINCT user_id), COUNT(DISTINCT item_id) FROM {events} WHERE "
    assert rows(counts + "NOT at_is_estimated") == [(228_329, 25_156, 6_361)]
    assert rows(counts + "at_is_estimated") == [(817_187, 26_469, 7_462)]
    log = f"(SELECT * FROM {events} WHERE NOT at_is_estimated)"
    assert rows(f"SELECT COUNT(*) FROM (SELECT DISTINCT * FROM {log})") == [(228_329 - 5_460,)]
    odd = "COUNT(*) FILTER (length_s = 0), COUNT(*) FILTER (watch_s = 0), COUNT(*) FILTER (watch_s > length_s)"
    assert rows(f"SELECT {odd} FROM {log}") == [(3_568, 22_263, 34_254)]
    for name, count in (("items", 7_583), ("users", 27_285)):
        distinct = f"COUNT(DISTINCT {name[:-1]}_id)"
        assert table(kuairand_folder, name, f"COUNT(*), {distinct}") == [(count, count)]
    assert sum(path.stat().st_size for path in kuairand_folder.iterdir()) < 9e6


def test_tails_rise_in_their_order_and_end_before_the_log(kuairand_folder: Path) -> None:
    log = f"read_parquet('{kuairand_folder}/events.parquet')"
    tails = f"{log} WHERE at_is_estimated"
    window_first, log_first = 1_649_433_600_000, 1_650_812_741_436  # 9 April, 00:00 in Beijing; the log's first event
    first, last = rows(f'SELECT MIN("at"), MAX("at") FROM {tails}')[0]
    assert window_first < first
    assert last < log_first + 86_400_000  # the users' last times, not the log's first
    # no two events of a user share a time, so the order of the tail is the order of time
    assert rows(f'SELECT COUNT(*) FROM (SELECT user_id, "at" FROM {tails} GROUP BY ALL HAVING COUNT(*) > 1)') == [(0,)]
    meet = f"""
        SELECT COUNT(*) FILTER (last > first), COUNT(*) FILTER (last = first)
        FROM (SELECT user_id, MAX("at") AS last FROM {tails} GROUP BY 1)
        JOIN (SELECT user_id, MIN("at") AS first FROM {log} WHERE NOT at_is_estimated GROUP BY 1) USING (user_id)
    """
    assert rows(meet) == [(0, 3)]


def test_items_have_tags_length_and_age_and_no_platform_aggregates(kuairand_folder: Path) -> None:
    midnight = 1_649_520_000_000  # 10 April 2022, 00:00 in Beijing
    found = table(kuairand_folder, "items", "item_id, author_id, uploaded_at")[:2]
    assert found == [(0, 7_349_781, midnight), (1, 2_103_883, midnight)]
    odd = "COUNT(*) FILTER (tags IS NULL OR list_contains(tags, 'unknown')), COUNT(*) FILTER (length_s IS NULL)"
    assert table(kuairand_folder, "items", odd) == [(0, 239)]
    shipped = pq.read_schema(kuairand_folder / "items.parquet").names
    assert not [name for name in shipped if name.endswith(("_cnt", "_num", "counts"))]
