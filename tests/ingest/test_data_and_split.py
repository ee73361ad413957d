"""The data section and the split that a draft chooses."""

from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest

from tests.ingest.test_column_roles import integer, log, moment, text
from twofold.errors import DataError
from twofold.ingest.column_roles import guess_roles
from twofold.ingest.draft_split import choose_split, count_judged
from twofold.ingest.inspect_log import data_section
from twofold.ingest.table_profile import Column, Day, EventFacts, TableProfile
from twofold.recipe.data import Table
from twofold.recipe.split import LastEvents, TemporalSplit
from twofold.render.numbers import plural

FIRST = (date(2024, 1, 1) - date(1970, 1, 1)).days


def events(daily: list[int], *, positives: int | None = None) -> EventFacts:
    """A log of so many events a day from 1 January 2024 on; days without any are not there."""
    days = tuple(
        Day(FIRST + number, count, count if positives is None else positives)
        for number, count in enumerate(daily)
        if count
    )
    rows = max(sum(daily), 1)
    return EventFacts(
        rows=rows,
        positives=sum(day.positives for day in days),
        users=50,
        items=80,
        lone_items=7,
        median_events=20,
        busiest_events=90,
        compared=rows,
        duplicates=0,
        repeats=0,
        days=days,
        hours=24,
    )


# --- windows ----------------------------------------------------------------------------------------------------------


def windows(daily: list[int], *, positives: int | None = None) -> tuple[list[int], str]:
    """First day of train, validation, test, and the day after them, counted from 1 January; and why."""
    split, reason = choose_split(events(daily, positives=positives))
    assert isinstance(split, TemporalSplit)
    days = split.train.first, split.validation.first, split.test.first, split.test.end
    assert (split.train.end, split.validation.end) == days[1:3]
    return [(day - date(2024, 1, 1)).days for day in days], reason


def test_the_last_day_tests_and_the_one_before_validates() -> None:
    assert windows([100] * 10) == (
        [0, 8, 9, 10],
        "test: last day; validation: the day before; train: everything earlier",
    )


def test_three_days_are_enough_if_half_of_the_events_teach() -> None:
    assert windows([100, 40, 40])[0] == [0, 1, 2, 3]


def test_a_last_day_that_is_cut_short_is_left_out() -> None:
    assert windows([100] * 9 + [50])[0] == [0, 8, 9, 10]  # half a day is a day
    bounds, reason = windows([100] * 9 + [49])
    assert bounds == [0, 7, 8, 9]
    assert reason.endswith("2024-01-10 is left out: it is incomplete")


def test_thin_days_are_joined_to_weeks() -> None:
    bounds, reason = windows([1] * 400)  # a day is a quarter of a percent
    assert bounds == [0, 400 - 14, 400 - 7, 400]
    assert reason.startswith("test: last week")


@pytest.mark.parametrize(
    ("users_a_day", "everybody", "days"),
    [
        (1_000, 5_000, 1),  # a day has enough
        (600, 5_000, 3),
        (800, 1_200, 3),  # two thirds of all users are not enough where there are 1,000
        (200, 5_000, 7),
        (450, 900, 1),  # of fewer users than 1,000, half are enough
        (400, 900, 7),
    ],
)
def test_the_window_is_as_long_as_a_thousand_users_need(users_a_day: int, everybody: int, days: int) -> None:
    daily = [100] * 60
    users = tuple(min(everybody, users_a_day * min(60 - day, 7)) for day in range(60))
    facts = replace(events(daily), users_from=users)
    split, _ = choose_split(facts)
    assert isinstance(split, TemporalSplit)
    assert (split.test.end - split.test.first).days == days
    assert count_judged(facts) == users[60 - days]


def test_days_without_events_count_as_days() -> None:
    assert windows([10, 0, 0, 0, 10, 10, 6, 6])[0] == [0, 6, 7, 8]


def test_a_day_of_a_huge_log_need_not_be_a_hundredth() -> None:
    assert windows([100_000] * 365)[0] == [0, 363, 364, 365]


@pytest.mark.parametrize(
    ("daily", "positives", "reason"),
    [
        ([], None, "the order of events is known, their days are not"),
        ([10, 10], None, "the log covers 2 days: too few to train, validate and test on days apart"),
        ([10], None, "the log covers 1 day: too few"),
        ([1, 50, 50], None, "no cut in time leaves 1 % of the events"),
        ([100] * 10, 0, "no cut in time leaves"),
    ],
)
def test_where_days_do_not_serve_the_last_events_are_judged(
    daily: list[int], positives: int | None, reason: str
) -> None:
    split, why = choose_split(events(daily, positives=positives))
    assert split == LastEvents(kind="last_n", test=1, validation=1)
    assert why.startswith(reason)


def test_days_are_utc() -> None:
    assert Day(FIRST, 1, 0).date == date(2024, 1, 1)
    assert Day(FIRST + 366, 1, 0).date == date(2024, 1, 1) + timedelta(days=366)
    assert [plural(number, "day") for number in (0, 1, 2000)] == ["0 days", "1 day", "2,000 days"]


# --- data -------------------------------------------------------------------------------------------------------------


def data(events: TableProfile, *, items: TableProfile | None = None, users: TableProfile | None = None) -> Table:
    return data_section(events, items, users, guess_roles(events))


def side(*columns: Column) -> TableProfile:
    return TableProfile(Path("side.csv"), 80, columns)


def test_only_what_is_called_otherwise_is_mapped() -> None:
    assert data(log(integer("user_id"), integer("item_id"), moment("at"))).columns == {}
    mapped = data(log(integer("uid"), integer("movieId"), moment("ts")))
    assert mapped.columns == {"user_id": "uid", "item_id": "movieId", "at": "ts"}
    assert mapped.at_unit == "s"


def test_columns_in_the_way_get_other_names() -> None:
    columns = integer("uid"), integer("user_id", distinct=0), integer("iid"), moment("ts"), text("At")
    assert data(log(*columns)).columns == {
        "user_id": "uid",
        "item_id": "iid",
        "at": "ts",
        "user_id_of_log": "user_id",
        "at_of_log": "At",
    }


def test_a_derived_name_is_free_in_every_table() -> None:
    events = log(integer("user_id"), integer("item_id"), moment("at"), integer("play_ms"), integer("watch_ms"))
    items = side(integer("item_id"), integer("watch_s"), text("uploaded_at"))
    assert data(events, items=items).columns == {"watch_s_of_log": "watch_s", "uploaded_at_of_log": "uploaded_at"}


def test_side_tables_share_the_keys_of_the_log() -> None:
    events = log(integer("uid"), integer("video_id"), moment("at"))
    items, users = side(integer("video_id"), integer("x")), side(integer("uid"), integer("y"))
    assert data(events, items=items, users=users).columns == {"user_id": "uid", "item_id": "video_id"}
    assert data(events, items=side(integer("item_id"))).columns == {"user_id": "uid", "item_id": "video_id"}
    ours = log(integer("user_id"), integer("item_id"), moment("at"))
    assert data(ours, items=side(integer("id"))).columns == {"item_id": "id"}
    both = data(events, items=side(integer("video_id"), integer("item_id")))
    assert both.columns["item_id_of_log"] == "item_id"


def test_a_side_table_without_a_key_is_refused() -> None:
    events = log(integer("user_id"), integer("video_id"), moment("at"))
    with pytest.raises(
        DataError,
        match=r"side\.csv has no column video_id, as log\.csv calls the item; its id may be the key\. ",
    ):
        data(events, items=side(integer("id"), text("title")))
    with pytest.raises(DataError, match=r"calls the user. One name must serve both.* Its columns: x"):
        data(events, users=side(integer("x")))


def test_the_upload_time_is_read_where_a_recipe_can() -> None:
    events = log(integer("user_id"), integer("item_id"), moment("at"))
    assert data(events, items=side(integer("item_id"), moment("created_at"))).columns == {"uploaded_at": "created_at"}
    in_ms = data(events, items=side(integer("item_id"), integer("created_at", 1.7e12, 1.71e12)))
    assert in_ms.columns == {"uploaded_at": "created_at"}
    assert (in_ms.at_unit, in_ms.uploaded_at_unit) == ("s", "ms")
    stamped = replace(text("publish_time"), kind="timestamp", type="TIMESTAMP")
    assert data(events, items=side(integer("item_id"), stamped)).columns == {"uploaded_at": "publish_time"}
