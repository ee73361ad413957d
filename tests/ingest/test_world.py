"""The synthetic world keeps its promises: each planted effect is found again in what was written."""

import json
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from twofold.errors import RequestError
from twofold.ingest import world_events as writer
from twofold.ingest.world import FIRST_ITEM_ID, FIRST_USER_ID, plant_items
from twofold.ingest.world_events import World, true_interest, write_world
from twofold.prepare.sources import open_source
from twofold.tables import DAY_MS

ROWS = 100_000
SMALL = World(rows=20_000, days=5)


@dataclass(frozen=True)
class Log:
    """A world as written: each event with what is known, and planted, of its user and item."""

    world: World
    folder: Path
    events: dict[str, np.ndarray]


def read_log(folder: Path, world: World) -> Log:
    write_world(folder, world)
    joined = f"""
        SELECT e.*, i.* EXCLUDE (item_id, length_s, language), i.length_s AS item_length_s, i.language AS item_language,
            u.language AS user_language, city, activity
        FROM read_parquet('{folder}/events/*.parquet', hive_partitioning = false) AS e
        JOIN '{folder}/items.parquet' AS i USING (item_id) JOIN '{folder}/users.parquet' AS u USING (user_id)
        ORDER BY user_id, "at"
    """
    return Log(world, folder, duckdb.execute(joined).fetchnumpy())


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return read_log(tmp_path_factory.mktemp("world") / "log", World(rows=ROWS, days=7))


def written(folder: Path) -> dict[str, pa.Table]:
    """Every table of a world, by its path in the folder."""
    return {str(path.relative_to(folder)): pq.read_table(path, partitioning=None) for path in folder.rglob("*.parquet")}


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(spearmanr(one, other).statistic)


# --- what is written --------------------------------------------------------------------------------------------------


def test_a_recipe_reads_the_tables_under_their_canonical_names(tmp_path: Path) -> None:
    source = open_source(write_world(tmp_path / "world", SMALL))
    assert source.events.columns == {
        **dict.fromkeys(("user_id", "item_id", "at"), "BIGINT"),
        **dict.fromkeys(("watch_s", "length_s"), "DOUBLE"),
        **dict.fromkeys(("clicked", "liked", "shared", "downloaded", "long_view"), "BOOLEAN"),
    }
    assert source.items.columns == {
        **{"item_id": "BIGINT", "creator_id": "BIGINT", "language": "VARCHAR", "tags": "VARCHAR[]"},
        **{"length_s": "DOUBLE", "uploaded_at": "BIGINT", "content": "FLOAT[]", "pictures": "FLOAT[]"},
    }
    assert source.users.columns == {
        "user_id": "BIGINT",
        **dict.fromkeys(("language", "city", "handset_maker"), "VARCHAR"),
        "activity": "FLOAT[]",
    }
    counts = [
        duckdb.execute(f"SELECT COUNT(*), COUNT(DISTINCT {name}_id) FROM ({sql})").fetchall()
        for name, sql in (("item", source.items.select_sql()), ("user", source.users.select_sql()))
    ]
    assert counts == [[(SMALL.items, SMALL.items)], [(SMALL.users, SMALL.users)]]


def test_every_day_has_its_file_and_the_rows_are_exactly_as_many(tmp_path: Path) -> None:
    world = World(rows=20_003, days=5, first_day=date(2024, 2, 27))
    write_world(tmp_path / "world", world)
    files = sorted((tmp_path / "world" / "events").iterdir())
    assert [file.name for file in files] == [f"day={world.first_day + timedelta(days=n)}.parquet" for n in range(5)]
    rows = [pq.read_metadata(file).num_rows for file in files]
    assert sum(rows) == 20_003
    assert set(rows) <= {20_003 // 5, 20_003 // 5 + 1}


def test_a_seed_gives_the_same_values_whatever_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_world(tmp_path / "one", SMALL)
    monkeypatch.setattr(writer.os, "cpu_count", lambda: 1)
    write_world(tmp_path / "same", SMALL)
    write_world(tmp_path / "other", World(rows=20_000, days=5, seed=1))
    one, same, other = (written(tmp_path / name) for name in ("one", "same", "other"))
    assert one == same
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one)


def test_pieces_share_the_rows_out_and_keep_a_users_sessions_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded by the piece, whatever the number of rows: many small ones stand here for many large ones."""
    monkeypatch.setattr(writer, "_PIECE", 500)
    write_world(tmp_path / "world", SMALL)
    tables = written(tmp_path / "world")
    assert len(tables["users.parquet"]) == SMALL.users
    assert tables["items.parquet"]["item_id"].to_pylist() == list(range(FIRST_ITEM_ID, FIRST_ITEM_ID + SMALL.items))
    days = [table for name, table in tables.items() if name.startswith("events")]
    assert [len(table) for table in days] == [4_000] * 5
    for table in days:
        assert table.equals(table.sort_by([("user_id", "ascending"), ("at", "ascending")]))
    file = pq.ParquetFile(next((tmp_path / "world" / "events").iterdir()))
    assert file.num_row_groups == 8
    assert max(file.metadata.row_group(number).num_rows for number in range(8)) < 2 * 500


def test_numbers_left_open_follow_from_the_rows() -> None:
    world = World(rows=1_000_000)
    assert (world.users, world.items, world.creators) == (10_000, 12_000, 1_500)
    assert World(rows=3_000_000_000).users == 1_000_000
    assert World(rows=1_000_000, users=500, items=700).creators == 700 // 8


def test_the_truth_says_what_was_planted(log: Log) -> None:
    truth = json.loads((log.folder / "truth" / "world.json").read_text(encoding="utf-8"))
    parameters = truth["world"]
    assert World(**parameters | {"first_day": date.fromisoformat(parameters["first_day"])}) == log.world
    assert {"interest", "watch_s", "length_effect", "exposure", "popularity", "actions"} <= truth["formulas"].keys()
    users, items = (pq.read_table(log.folder / "truth" / f"{name}.parquet") for name in ("users", "items"))
    assert (len(users), len(items)) == (log.world.users, log.world.items)
    lengths = pq.read_table(log.folder / "items.parquet")["length_s"].to_numpy()
    effect = items["length_effect"].to_numpy()
    np.testing.assert_allclose(effect, (lengths / 20) ** -log.world.length_bias, rtol=1e-3)
    assert users["share_of_sessions"].to_numpy().sum() == pytest.approx(1)


# --- who meets what, and when -----------------------------------------------------------------------------------------


def test_nothing_is_shown_before_its_upload(log: Log) -> None:
    age_ms = log.events["at"] - log.events["uploaded_at"]
    assert age_ms.min() >= 0
    assert (age_ms < DAY_MS).mean() > 0.02, "and new items are met on their first day"


def test_every_day_brings_new_items(log: Log) -> None:
    uploads = pq.read_table(log.folder / "items.parquet")["uploaded_at"].to_numpy()
    days, counts = np.unique((uploads - log.world.first_ms) // DAY_MS, return_counts=True)
    assert dict(zip(days[days >= 0], counts[days >= 0], strict=True)) == dict.fromkeys(range(7), log.world.new_a_day)
    assert counts[days < 0].sum() == log.world.num_old
    assert log.world.new_a_day == round(0.02 * log.world.items)


def test_users_meet_their_own_language_in_the_planted_share(log: Log) -> None:
    own = log.events["user_language"] == log.events["item_language"]
    assert own.mean() == pytest.approx(log.world.own_language, abs=4 * (0.95 * 0.05 / ROWS) ** 0.5)
    cities = np.array([int(city.removeprefix("city ")) % log.world.languages for city in log.events["city"]])
    languages = np.array([int(language.removeprefix("language ")) for language in log.events["user_language"]])
    assert 0.7 < (cities == languages).mean() < 0.95


def test_items_are_met_by_their_popularity_of_the_day(log: Log) -> None:
    items = plant_items(log.world)
    for day in (0, 6):
        start_ms = log.world.first_ms + day * DAY_MS
        met = log.events["item_id"][(log.events["at"] - log.world.first_ms) // DAY_MS == day] - FIRST_ITEM_ID
        met = met[items.uploaded_at[met] < start_ms]
        counts = np.bincount(met, minlength=log.world.items)
        weights = items.popularity(start_ms, log.world.drift) * (items.uploaded_at < start_ms)
        for language in range(log.world.languages):
            spoken = items.language == language
            expected = counts[spoken].sum() * weights[spoken] / weights[spoken].sum()
            spread = ((counts[spoken] - expected) ** 2).sum() / expected.sum()
            assert 0.5 < spread < 1.5, "counts scatter as Poisson's do: variance = mean"


def test_popularity_drifts(log: Log, tmp_path: Path) -> None:
    still = read_log(tmp_path / "still", World(rows=ROWS, days=7, drift=0.0))
    assert len(top_items(log, day=0) & top_items(log, day=6)) < 12
    assert len(top_items(still, day=0) & top_items(still, day=6)) > 12


def top_items(log: Log, *, day: int) -> set[int]:
    met = log.events["item_id"][(log.events["at"] - log.world.first_ms) // DAY_MS == day]
    items, counts = np.unique(met, return_counts=True)
    return set(items[np.argsort(-counts, kind="stable")[:20]].tolist())


def test_a_session_is_watched_item_after_item(log: Log) -> None:
    """The time between two events of a user is at least the watch time of the first; most follow at once."""
    events = log.events
    same = events["user_id"][1:] == events["user_id"][:-1]
    # A day's last session may run into the next day, whose own sessions do not wait for it.
    by_day = (events["at"] % DAY_MS)[1:] > 3 * DAY_MS // 24
    gaps = np.diff(events["at"]) - 1_000 - np.rint(1_000 * events["watch_s"][:-1]).astype(np.int64)
    assert gaps[same & by_day].min() >= 0
    assert (gaps[same] == 0).mean() == pytest.approx(1 - 1 / 8, abs=0.02), "sessions of 8 events in the mean"
    assert np.unique(events["user_id"] << 32 | events["item_id"] - FIRST_ITEM_ID).size < ROWS, "some are met again"


def test_users_come_in_the_hours_of_their_activity(log: Log) -> None:
    hours = np.bincount(log.events["at"] % DAY_MS // 3_600_000, minlength=24) / ROWS
    expected = np.mean(list(log.events["activity"]), axis=0)
    assert expected.sum() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(hours, expected, atol=0.01)


def test_activity_is_heavy_tailed(log: Log) -> None:
    counts = np.sort(np.unique(log.events["user_id"], return_counts=True)[1])[::-1]
    tenth = log.world.users // 10
    assert 0.3 < counts[:tenth].sum() / ROWS < 0.6, "the busiest tenth of the users"
    shares = pq.read_table(log.folder / "truth" / "users.parquet")["share_of_sessions"].to_numpy()
    counts = np.bincount(log.events["user_id"] - FIRST_USER_ID, minlength=log.world.users)
    spread = ((counts - ROWS * shares) ** 2).sum() / ROWS
    # A session of n events adds n² to the variance; with n geometric of mean 8 that is 2 × 8² - 8 a session.
    assert spread == pytest.approx((2 * 8**2 - 8) / 8, rel=0.2)


# --- what they do -----------------------------------------------------------------------------------------------------


def interest(log: Log) -> np.ndarray:
    return true_interest(log.folder, log.events["user_id"], log.events["item_id"])


def fraction(log: Log) -> np.ndarray:
    return np.minimum(log.events["watch_s"] / log.events["length_s"], 1)


def test_watch_time_leans_to_long_videos_its_fraction_to_short_ones_and_interest_to_neither(log: Log) -> None:
    length_s = log.events["length_s"]
    np.testing.assert_array_equal(length_s, log.events["item_length_s"])
    assert correlation(log.events["watch_s"], length_s) > 0.2
    assert correlation(fraction(log), length_s) < -0.2
    assert abs(correlation(interest(log), length_s)) < 0.05
    assert correlation(log.events["watch_s"], interest(log)) > 0.5


@pytest.mark.slow
def test_the_planted_bias_is_a_dial(tmp_path: Path) -> None:
    none, full = (read_log(tmp_path / str(bias), World(rows=ROWS, days=7, length_bias=bias)) for bias in (0.0, 1.0))
    assert abs(correlation(fraction(none), none.events["length_s"])) < 0.05
    assert abs(correlation(full.events["watch_s"], full.events["length_s"])) < 0.05


def test_actions_follow_interest_and_the_rarer_ones_are_rarer(log: Log) -> None:
    known = interest(log)
    for name, chance in {
        "clicked": known,
        "liked": 0.3 * known**2,
        "shared": 0.06 * known**2,
        "downloaded": 0.03 * known**2,
    }.items():
        done = log.events[name]
        assert done.mean() == pytest.approx(chance.mean(), abs=4 * float(chance.mean() / ROWS) ** 0.5)
        assert known[done].mean() > known[~done].mean() + 0.2


def test_long_views_and_replays_are_the_fields(log: Log) -> None:
    watch_s, length_s = log.events["watch_s"], log.events["length_s"]
    short = length_s <= 18
    expected = (short & (watch_s >= length_s)) | (~short & (watch_s >= 18))
    np.testing.assert_array_equal(log.events["long_view"], expected)
    assert 0.1 < log.events["long_view"].mean() < 0.4
    assert 0.05 < (watch_s > length_s).mean() < 0.25
    assert (watch_s / length_s).max() <= 4 + 1e-3


def test_interest_differs_by_language_and_by_topic(log: Log) -> None:
    """Groups differ in interest although their members seldom meet: the structure that folding destroys."""
    known = interest(log)
    own = log.events["user_language"] == log.events["item_language"]
    assert known[own].mean() > known[~own].mean() + 0.1
    items = pq.read_table(log.folder / "items.parquet").slice(0, 600)
    grid = np.broadcast_arrays(np.arange(FIRST_USER_ID, FIRST_USER_ID + 200)[:, None], items["item_id"].to_numpy())
    table = true_interest(log.folder, *(ids.ravel() for ids in grid)).reshape(200, 600)
    topics = np.array([tags[0] for tags in items["tags"].to_pylist()])
    by_topic = np.stack([table[:, topics == topic].mean(axis=1) for topic in np.unique(topics)])
    assert (by_topic.max(axis=0) - by_topic.mean(axis=0)).mean() > 0.2, "a user's favourite topic against all"


def test_content_tells_the_topic_pictures_the_creator_and_neither_the_language(log: Log) -> None:
    items = pq.read_table(log.folder / "items.parquet").slice(0, 1_000)
    topics = np.array([tags[0] for tags in items["tags"].to_pylist()])
    groups = {"topic": topics, "creator": np.array(items["creator_id"]), "language": np.array(items["language"])}
    excess = {}
    for vectors in ("content", "pictures"):
        table = np.array(items[vectors].to_pylist(), dtype=np.float32)
        np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, rtol=1e-5)
        nearest = (table @ table.T - 2 * np.eye(len(items), dtype=np.float32)).argmax(axis=1)
        for name, values in groups.items():
            by_chance = (np.unique(values, return_counts=True)[1] ** 2).sum() / len(values) ** 2
            excess[vectors, name] = (values == values[nearest]).mean() - by_chance
    assert excess["content", "topic"] > 0.5
    assert excess["pictures", "topic"] < 0.1
    assert excess["pictures", "creator"] > 5 * excess["content", "creator"]
    assert excess["content", "language"] == pytest.approx(0, abs=0.1)


# --- noise ------------------------------------------------------------------------------------------------------------


def test_a_clean_world_has_no_noise_and_a_noisy_one_the_stated_counts(tmp_path: Path) -> None:
    for share in (0.0, 0.03):
        folder = tmp_path / str(share)
        write_world(folder, World(rows=20_000, days=5, noise=share))
        corrupted = json.loads((folder / "truth" / "world.json").read_text(encoding="utf-8"))["corrupted_rows"]
        found = duckdb.execute(
            f"""SELECT COUNT(*), COUNT(*) FILTER (length_s = 0), COUNT(*) FILTER (watch_s IS NULL),
            COUNT(*) - (SELECT COUNT(*) FROM (SELECT DISTINCT * FROM '{folder}/events/*.parquet'))
            FROM '{folder}/events/*.parquet'"""
        ).fetchall()
        counts = (corrupted["length_s = 0"], corrupted["watch_s = NULL"], corrupted["copied"])
        assert found == [(20_000, *counts)]
        for count in counts:
            assert count == pytest.approx(20_000 * share / 3, abs=4 * (20_000 * share / 3) ** 0.5)


# --- the planted interest ---------------------------------------------------------------------------------------------


def test_interest_needs_a_finished_world_and_its_own_ids(log: Log, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no finished world: truth/world.json"):
        true_interest(tmp_path, [FIRST_USER_ID], [FIRST_ITEM_ID])
    with pytest.raises(RequestError, match="user_id 1 is not of the world in .*: there they run from 1001 to 2000"):
        true_interest(log.folder, [FIRST_USER_ID, 1], [FIRST_ITEM_ID, FIRST_ITEM_ID])
    with pytest.raises(RequestError, match="item_id 7 is not of the world"):
        true_interest(log.folder, [FIRST_USER_ID], [7])
    one = true_interest(log.folder, [FIRST_USER_ID, FIRST_USER_ID + 1], [FIRST_ITEM_ID, FIRST_ITEM_ID + 1])
    assert one.shape == (2,)
    assert ((one > 0) & (one < 1)).all()
