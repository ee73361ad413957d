from dataclasses import replace
from pathlib import Path

import pytest

from twofold.errors import DataError
from twofold.ingest.column_roles import GivenColumns, Roles, guess_key, guess_roles
from twofold.ingest.table_profile import Column, TableProfile, look_of, printable, rule_name

SECONDS = (1_700_000_000.0, 1_700_864_000.0)  # ten days of November 2023


def integer(name: str, low: float = 0, high: float = 999, distinct: int = 500, nulls: float = 0.0) -> Column:
    ends = (f"{low:g}", f"{high:g}")
    column = Column(name, "BIGINT", "integer", nulls, distinct, float(low), float(high), is_whole=True, range=ends)
    return replace(column, high_99=0.99 * high)


def fraction(name: str, low: float, high: float, distinct: int = 500) -> Column:
    return Column(name, "DOUBLE", "fraction", 0.0, distinct, float(low), float(high))


def flag(name: str) -> Column:
    return integer(name, 0, 1, distinct=2)


def text(name: str, *most_frequent: str, distinct: int = 500, dates: float = 0, separator: str | None = None) -> Column:
    facts = {"dates": float(dates), "separator": separator, "most_frequent": most_frequent}
    return Column(name, "VARCHAR", "text", 0.0, distinct, **facts)


def moment(name: str) -> Column:
    return integer(name, *SECONDS, distinct=900)


def log(*columns: Column) -> TableProfile:
    return TableProfile(Path("log.csv"), 1000, columns)


def roles(*columns: Column, given_columns: GivenColumns | None = None, items: TableProfile | None = None) -> Roles:
    """The roles of a log that has a user, an item, a time and these."""
    events = log(integer("user_id"), integer("item_id"), moment("ts"), *columns)
    return guess_roles(events, given_columns or GivenColumns(), items=items)


# --- what values look like --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "looks"),
    [
        (integer("x", *SECONDS), "timestamp (s)"),
        (integer("x", *(value * 1e3 for value in SECONDS)), "timestamp (ms)"),
        (integer("x", *(value * 1e6 for value in SECONDS)), "timestamp (us)"),
        (integer("x", *(value * 1e9 for value in SECONDS)), "timestamp (ns)"),
        (replace(integer("x"), kind="timestamp", type="TIMESTAMP"), "timestamp"),
        (replace(integer("x"), kind="day", type="DATE"), "day"),
        (text("x", "2024-01-01T10:00:00Z", dates=1), "timestamp as text"),
        (integer("x", 20220425, 20220508), "day (yyyymmdd)"),
        (integer("x", 0, 1, distinct=2), "flag"),
        (integer("x", 1, 1, distinct=1), "constant"),
        (integer("x", distinct=0), "empty"),
        (fraction("x", 0, 1), "share 0..1"),
        (fraction("x", 0.5, 5, distinct=10), "rating"),
        (fraction("x", -3, 5), "number"),
        (integer("x"), "whole number"),
        (integer("author_id"), "id"),
        (text("x", "a", distinct=20), "category"),
        (text("x", "a", distinct=100_000), "text"),
        (text("x", "a|b", separator="|"), "list as text"),
        (Column("x", "VARCHAR[]", "list", 0.0, 9), "list"),
        (Column("x", "BLOB", "other", 0.0, 9), "other"),
    ],
)
def test_values_look_like(column: Column, looks: str) -> None:
    assert look_of(column) == looks


# --- user, item, time -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["user_id", "uid", "userId", "user", "member", "reviewerID", "user_id:token", "listener_uuid", "candidate"]
    + ["CustomerNo", "reader_hash", "client"],
)
def test_the_usual_names_of_users_are_known(name: str) -> None:
    assert guess_roles(log(integer("x"), integer(name), integer("item_id"), moment("ts"))).user == name


@pytest.mark.parametrize(
    "name",
    ["item_id", "video_id", "movieId", "iid", "asin", "photo_id", "business_id", "Item", "track", "StockCode"]
    + ["job_ref", "product_number", "vacancy"],
)
def test_the_usual_names_of_items_are_known(name: str) -> None:
    assert guess_roles(log(integer("x"), integer("user_id"), integer(name), moment("ts"))).item == name


@pytest.mark.parametrize("name", ["timestamp", "time_ms", "ts", "at", "event_time", "date", "unixReviewTime"])
def test_the_usual_names_of_times_are_known(name: str) -> None:
    found = guess_roles(log(integer("user_id"), integer("item_id"), moment("expires"), moment(name)))
    assert (found.time, found.at_unit) == (name, "s")


def test_a_time_needs_values_that_are_moments() -> None:
    found = guess_roles(log(integer("user_id"), integer("item_id"), integer("time", 0, 2, distinct=3), moment("zeit")))
    assert found.time == "zeit"


def test_a_column_that_is_mostly_null_is_no_time() -> None:
    mostly = replace(moment("timestamp"), nulls=0.9)
    found = guess_roles(log(integer("user_id"), integer("item_id"), mostly, moment("timestamp_est")))
    assert found.time == "timestamp_est"


def test_a_likelier_name_wins() -> None:
    columns = integer("user"), integer("user_id"), integer("movie"), integer("item"), moment("date"), moment("ts")
    found = guess_roles(log(*columns))
    assert (found.user, found.item, found.time) == ("user_id", "item", "ts")


def test_artists_are_the_items_of_a_log_without_tracks() -> None:
    plays = (text("user"), text("artist_id"), text("city"), moment("ts"))
    assert guess_roles(log(*plays)).item == "artist_id"
    assert guess_roles(log(*plays, text("track_id"))).item == "track_id"
    assert guess_key(TableProfile(Path("tracks.csv"), 500, (text("id"), text("artist"))), "item") == "id"


def test_a_key_that_the_log_shares_with_a_table_decides_where_names_do_not() -> None:
    events = log(text("who"), text("what"), text("where", distinct=9), moment("ts"))
    things = TableProfile(Path("things.csv"), 510, (text("what"), text("where", distinct=9), text("name")))
    people = TableProfile(Path("people.csv"), 500, (text("who"), text("town", distinct=30)))
    found = guess_roles(events, items=things, users=people)
    assert (found.user, found.item) == ("who", "what")
    with pytest.raises(DataError, match="could not find the user column"):
        guess_roles(events, items=things)
    both = replace(things, columns=(text("what"), text("where")))  # each is unique in the table
    with pytest.raises(DataError, match="could not find the item column"):
        guess_roles(log(text("user"), text("what"), text("where"), moment("ts")), items=both)
    both_named = log(text("user"), text("show"), text("episode"), moment("ts"))
    episodes = TableProfile(Path("episodes.csv"), 500, (text("episode"), text("show", distinct=60)))
    assert guess_roles(both_named, items=episodes).item == "episode"
    assert guess_roles(both_named, GivenColumns(item="show"), items=episodes).item == "show"


def test_a_quantity_below_zero_is_a_return() -> None:
    found = roles(integer("Quantity", -3, 12))
    assert (found.signals.positive, found.taken_as["Quantity"]) == ("Quantity > 0", "quantity")
    assert roles(integer("Quantity", 1, 12)).signals.positive == "TRUE"
    assert roles(integer("Quantity", -3, 12), flag("liked")).signals.positive == "liked"


def test_equally_likely_columns_are_asked_for() -> None:
    columns = integer("user_id"), integer("userId"), integer("item_id"), moment("ts"), moment("timestamp")
    with pytest.raises(
        DataError,
        match=r"(?s)which column is the user\? Equally likely are\n  user_id  BIGINT.*userId.*"
        r"Choose one: --user user_id",
    ):
        guess_roles(log(*columns))
    with pytest.raises(DataError, match=r"which column is the time\?"):
        guess_roles(log(*columns), GivenColumns(user="userId"))
    found = guess_roles(log(*columns), GivenColumns(user="userId", time="ts"))
    assert (found.user, found.time) == ("userId", "ts")


def test_what_cannot_be_found_is_answered_with_what_is_left() -> None:
    with pytest.raises(
        DataError,
        match=r"(?s)item of an event by both its name and its values\. Choose one: --item COL\. Columns:\n  thing",
    ):
        guess_roles(log(integer("user_id"), integer("thing"), moment("ts"), flag("liked")))
    with pytest.raises(
        DataError,
        match=r"time of an event by both its name and its values\. A log without times needs a column of whole",
    ):
        guess_roles(log(integer("user_id"), integer("item_id"), flag("liked")))


def test_a_column_that_is_asked_for_must_exist() -> None:
    with pytest.raises(DataError, match=r"--user user: log\.csv has no such column \(nearest: user_id; its columns: "):
        roles(given_columns=GivenColumns(user="user"))


def test_the_three_are_three_columns() -> None:
    with pytest.raises(DataError, match=r"are user_id, user_id and ts; name three different columns"):
        roles(given_columns=GivenColumns(item="user_id"))


def test_an_order_may_stand_for_the_time_if_asked_for() -> None:
    found = roles(integer("pos"), given_columns=GivenColumns(time="pos"))
    assert (found.time, found.at_unit, found.has_clock) == ("pos", "ms", False)
    assert found.taken_as["pos"] == "time (order only)"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            (integer("user_id"), integer("item_id"), fraction("ts", *SECONDS)),
            r'ts, is DOUBLE; .*CAST\("ts" \* 1000 AS BIGINT\)',
        ),
        (
            (replace(fraction("user_id", 0, 99), is_whole=True), integer("item_id"), moment("ts")),
            r'user, user_id, is DOUBLE; a recipe reads it as whole numbers or as text.*CAST\("user_id" AS BIGINT\)',
        ),
    ],
)
def test_a_type_that_no_recipe_reads_is_answered_with_what_mends_it(columns: tuple[Column, ...], message: str) -> None:
    with pytest.raises(DataError, match=f"(?s){message}.*then --log log-converted"):
        guess_roles(log(*columns))


def test_keys_of_side_tables() -> None:
    items = log(integer("id"), integer("author_id"), text("title"))
    assert guess_key(items, "item") == "id"
    assert guess_key(log(integer("x")), "item") is None
    assert guess_key(log(integer("video_id"), integer("movie_id")), "item") is None  # which, nobody knows
    assert guess_key(log(text("member")), "user") == "member"


# --- what was liked ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "positive"),
    [
        ((), "TRUE"),
        ((flag("is_like"), flag("is_click"), flag("is_hate"), flag("long_view")), "is_like OR long_view"),
        ((flag("like"), flag("is fav")), '"like" OR "is fav"'),
        ((flag("is_click"),), "is_click"),
        ((integer("rating", 1, 5, 5),), "rating >= 4"),
        ((fraction("Stars", 0.5, 5, 10),), "Stars >= 4"),
        ((integer("score", 1, 10, 10),), "score >= 8"),
        (
            (text("event_type", "view", "purchase", "add_to_cart", distinct=3),),
            "event_type IN ('purchase', 'add_to_cart', 'view')",
        ),
        ((text("event", "view", "'like'", distinct=2),), "event IN ('''like''', 'view')"),
        ((text("event", "shown", "skip", "buy", distinct=3),), "event = 'buy'"),
        ((text("kind_of", "view", "wish", "order", distinct=3),), "kind_of IN ('order', 'wish', 'view')"),
        ((flag("rating"),), "rating"),  # true or false
        ((fraction("watch_ratio", 0, 12),), "watch_ratio >= 0.8"),
        ((integer("played_ratio_pct", 0, 100),), "played_ratio_pct >= 80"),
        ((integer("dwell"),), "watch_s >= 18"),
        ((replace(integer("dwell"), median=200.0),), "watch_s >= 200"),
        (
            (replace(integer("ms_played", 0, 9e5), median=1.5e5), replace(integer("track_length_s"), median=210.0)),
            "watch_s >= 0.8 * length_s AND length_s > 0",
        ),
        ((integer("watch_s"), integer("length_s")), "watch_s >= LEAST(length_s, 18) AND length_s > 0"),
        ((flag("like\u202e"), integer("liked", 1, 1, 1)), "TRUE"),  # no rule can name it; a constant tells nothing
    ],
)
def test_positive_is_what_the_log_says_of_liking(columns: tuple[Column, ...], positive: str) -> None:
    assert roles(*columns).signals.positive == positive


@pytest.mark.parametrize(
    ("watch", "length", "derive"),
    [
        (
            integer("play_time_ms", 0, 9e5),
            integer("duration_ms", 0, 9e5),
            {"watch_s": "play_time_ms / 1000", "length_s": "duration_ms / 1000"},
        ),
        (
            integer("watch time", 0, 900),
            integer("runtime_min", 1, 200),
            {"watch_s": '"watch time"', "length_s": "runtime_min * 60"},
        ),
        (
            integer("play_duration", 0, 5e5),
            integer("video_duration", 0, 5e5),
            {"watch_s": "play_duration / 1000", "length_s": "video_duration / 1000"},
        ),
        (integer("watch_s"), integer("length_ms", 0, 9e5), {"length_s": "length_ms / 1000"}),
        (
            integer("play_ms", 0, 9e5),
            integer("video_ms", 0, 9e5),
            {"watch_s": "play_ms / 1000", "length_s": "video_ms / 1000"},
        ),
    ],
)
def test_seconds_are_derived(watch: Column, length: Column, derive: dict[str, str]) -> None:
    found = roles(watch, length)
    assert found.signals.derive == derive
    assert found.taken_as[watch.name].startswith("watch time")
    assert found.taken_as[length.name].startswith("length")


def test_a_length_that_stands_in_both_tables_is_no_watch_time() -> None:
    both = integer("video_ms", 0, 9e5)
    assert roles(both, items=log(integer("item_id"), both)).signals.derive == {}
    assert roles(integer("duration"), items=log(integer("item_id"), integer("length"))).signals.derive == {
        "watch_s": "duration",
        "length_s": "length",
    }


def test_a_length_alone_and_a_flag_called_watched_derive_nothing() -> None:
    assert roles(integer("duration")).signals.derive == {}
    assert roles(flag("watched"), integer("duration")).signals.derive == {}


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_name_as_a_rule_writes_it() -> None:
    assert [rule_name(name) for name in ("liked", "like", 'a "b"', "TRUE")] == [
        "liked",
        '"like"',
        '"a ""b"""',
        '"TRUE"',
    ]
    assert rule_name("a\u202eb") is None  # text that reads backwards is refused in rules


def test_invisible_characters_are_shown() -> None:
    assert printable("a\n\x1b[31mb\u2028") == "a··[31mb·"
