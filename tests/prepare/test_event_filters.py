"""Filters round after round, percentiles, samples of users, ratios and last events, on tables worked out by hand."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.prepare.tables import (
    JUDGED,
    TEST,
    THREE_USERS,
    TRAIN,
    VALIDATION,
    column,
    events_of,
    funnel_of,
    log_of,
    prepared,
    rows_of,
)
from tests.worlds import DAY_MS
from twofold.prepare.event_filters import filter_name
from twofold.recipe.prepare import ItemFilter, UserFilter


def meetings(pairs: list[tuple[int, int]], liked: bool = True) -> pa.Table:
    """A log of (user, item) in training, one a second."""
    return log_of([(user, item, TRAIN + 1000 * n, liked) for n, (user, item) in enumerate(pairs)])


# --- rounds and percentiles -------------------------------------------------------------------------------------------

# Users 1 and 2 share items 0 and 1. User 3 has one of them and item 2, which nobody else has.
CHAIN = [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 2)]
BOTH = [{"kind": "items", "min_events": 2}, {"kind": "users", "min_events": 2}]


def test_a_second_round_mends_what_the_first_broke(tmp_path: Path) -> None:
    filters = [{"kind": "users", "min_events": 2}, {"kind": "items", "min_events": 2}]
    once = prepared(tmp_path / "once", meetings(CHAIN), filters=filters)
    # All three users have two events. Then item 2 goes, and user 3 is left with one.
    assert column(rows_of(once), "user_id", "item_id") == [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0)]
    twice = prepared(tmp_path / "twice", meetings(CHAIN), filters=filters, filter_rounds=2)
    assert column(rows_of(twice), "user_id", "item_id") == [(1, 0), (1, 1), (2, 0), (2, 1)]
    names = [line.name for line in funnel_of(twice) if line.scope == "train"]
    assert names[1:] == [f"{kind}: 2 or more events, round {n}" for n in (1, 2) for kind in ("users", "items")]


def test_what_one_round_leaves_is_as_the_filters_say_in_order(tmp_path: Path) -> None:
    out = prepared(tmp_path, meetings(CHAIN), filters=BOTH)
    # Item 2 goes, so user 3 has one event left, and goes: then item 0 has two.
    assert column(rows_of(out), "user_id", "item_id") == [(1, 0), (1, 1), (2, 0), (2, 1)]


def test_the_busiest_users_go_by_percentile(tmp_path: Path) -> None:
    # Ten users with 1 to 10 events: 80 % of them have at most 8, which is the least such number.
    pairs = [(10 + user, item) for user in range(10) for item in range(user + 1)]
    out = prepared(tmp_path, meetings(pairs), filters=[{"kind": "users", "max_percentile": 80}])
    assert sorted(Counter(column(rows_of(out), "user_id")).values()) == [1, 2, 3, 4, 5, 6, 7, 8]
    out = prepared(tmp_path / "81", meetings(pairs), filters=[{"kind": "users", "max_percentile": 80.001}])
    assert max(Counter(column(rows_of(out), "user_id")).values()) == 9
    assert [line.name for line in funnel_of(out) if line.scope == "train"][1].endswith("80.001th percentile of events")


def test_two_maxima_are_one_too_many() -> None:
    with pytest.raises(ValueError, match="max_events and max_percentile both set a maximum"):
        UserFilter(kind="users", max_events=5, max_percentile=99)
    with pytest.raises(ValueError, match="no user has 5 or more events and at most 4"):
        UserFilter(kind="users", min_events=5, max_events=4)
    filter_ = UserFilter(kind="users", min_events=4, max_percentile=99.9)
    assert filter_name(filter_) == "users: 4 to the 99.9th percentile of events"


# --- samples ----------------------------------------------------------------------------------------------------------


def many_users(users: int = 400) -> pa.Table:
    """Every user meets items 0, 1, 2 on every day, training, validation and test."""
    rows = [
        (user, item, at + user, item == 0)
        for user in range(100, 100 + users) for item in range(3) for at in (TRAIN, VALIDATION, TEST)
    ]  # fmt: skip
    return log_of(rows)


def test_a_sample_takes_users_whole_and_the_same_ones_again(tmp_path: Path) -> None:
    out, again = (prepared(tmp_path / name, many_users(), sample={"users": 0.3}) for name in ("first", "again"))
    taken = set(column(rows_of(out), "user_id"))
    assert pytest.approx(len(taken), abs=5 * (400 * 0.3 * 0.7) ** 0.5) == 400 * 0.3
    assert set(column(events_of(out), "user_id")) - {8, 9} == taken
    for split in ("validation", "test"):
        assert set(column(rows_of(out, split), "user_id")) - {8, 9} == taken
    assert Counter(column(events_of(out), "user_id"))[min(taken)] == 9
    assert rows_of(again) == rows_of(out)
    lines = {line.name: line for line in funnel_of(out)}
    assert lines["a sample of users: 30 %"].rows == len(rows_of(out))
    assert lines["test window of these users"].rows == len(rows_of(out, "test"))


def test_items_are_filtered_and_averaged_before_users_are_sampled(tmp_path: Path) -> None:
    parts: dict[str, Any] = {"sample": {"users": 0.1}, "counters": {"item_id": {"rates": {"like": "liked"}}}}
    out = prepared(tmp_path, many_users(), filters=[{"kind": "items", "min_events": 400}], **parts)
    assert set(column(rows_of(out), "item_id")) == {0, 1, 2}, "counted on the sample, no item has 400"


@pytest.mark.parametrize(("share", "kept"), [(0.5, 400), (0.7, 400 * 3 / 7), (0.4, 600), (0.1, 800)])
def test_negatives_are_thinned_to_the_share_asked_for(tmp_path: Path, share: float, kept: float) -> None:
    out = prepared(tmp_path, many_users(), positive_share=share)
    rows = rows_of(out)
    positives = sum(column(rows, "label"))
    assert positives == 400, "no positive is dropped"
    negatives = len(rows) - positives
    # Of 800 negatives each stays with the same chance; where more are wanted than there are, all stay.
    assert negatives == pytest.approx(kept, abs=5 * (800 * 0.25) ** 0.5 if kept < 800 else 0)
    line = next(line for line in funnel_of(out) if line.name.startswith("negatives thinned"))
    assert line.positive_share == pytest.approx(positives / len(rows))
    assert len(events_of(out)) == 400 * 9 + 4, "histories keep what training drops"


# --- last events ------------------------------------------------------------------------------------------------------


def test_each_users_last_events_are_judged(tmp_path: Path) -> None:
    days = [TRAIN + day * DAY_MS for day in range(6)]
    rows = [(1, item, days[item], True) for item in range(5)] + [(2, item, days[item], True) for item in range(2, 5)]
    rows += [(3, 7, days[0], True), (3, 8, days[1], True)]
    out = prepared(tmp_path, log_of(rows), split={"kind": "last_n"})
    found = {split: column(rows_of(out, split), "user_id", "item_id") for split in ("train", "validation", "test")}
    # Users 3, 8 and 9 have two events, of which none would be left: they teach, and are not judged.
    assert found["test"] == [(1, 4), (2, 4)]
    assert found["validation"] == [(1, 3), (2, 3)]
    assert found["train"] == [(1, 0), (1, 1), (1, 2), (2, 2), (3, 7), (3, 8), (8, 100), (8, 100), (9, 100), (9, 100)]
    assert {line.name: line.rows for line in funnel_of(out)}["outside the windows"] == 0


def test_events_of_one_moment_are_ordered_by_the_column_of_ties(tmp_path: Path) -> None:
    rows = [(1, item, TRAIN, True) for item in (3, 1, 2, 0)] + [(2, item, TRAIN + item, True) for item in range(4)]
    log = log_of(rows, pos=[1, 2, 3, 4, 0, 1, 2, 3])
    last = {"kind": "last_n", "test": 2, "validation": 1}
    by_item = prepared(tmp_path / "item", log, split=last)
    assert column(rows_of(by_item, "test"), "user_id", "item_id") == [(1, 2), (1, 3), (2, 2), (2, 3)]
    by_place = prepared(tmp_path / "place", log, split=last | {"ties": "pos"})
    assert column(rows_of(by_place, "test"), "user_id", "item_id") == [(1, 0), (1, 2), (2, 2), (2, 3)]
    assert column(rows_of(by_place, "validation"), "user_id", "item_id") == [(1, 1), (2, 1)]


def test_where_only_positives_count_the_last_of_them_are_judged(tmp_path: Path) -> None:
    """The protocol of papers on ratings: what is below the bar is as if never logged."""
    stars = [5.0, 4.0, 1.0, 3.5, 2.0]
    rows = [(user, 10 * user + item, TRAIN + item, False) for user in (1, 2) for item in range(5)]
    log = log_of(rows, rating=stars * 2)
    out = prepared(tmp_path, log, where="rating >= 3.5", positive="TRUE", split={"kind": "last_n"})
    assert column(rows_of(out, "test"), "user_id", "item_id") == [(1, 13), (2, 23)]
    assert column(rows_of(out, "validation"), "user_id", "item_id") == [(1, 11), (2, 21)]
    assert {line.name: line.removed for line in funnel_of(out)}["taken by prepare.where"] == 4 + len([8, 9]) * 2


# --- filters and the funnel -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ([{"kind": "items", "min_events": 2}], [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0)]),
        ([{"kind": "items", "min_events": 3}, {"kind": "users", "min_events": 1}], [(1, 0), (2, 0), (3, 0)]),
        ([{"kind": "users", "min_events": 2}], [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]),
        ([{"kind": "users", "min_events": 2, "max_events": 2}], [(2, 0), (2, 1)]),
        ([{"kind": "users", "min_positives": 2}, {"kind": "items", "min_events": 1}], [(1, 0), (1, 1), (1, 2)]),
        ([{"kind": "users", "min_negatives": 1, "min_positives": 1}], [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]),
        # in the stated order, once: without user 3, item 0 has two events left, and item 1 too
        ([{"kind": "users", "min_events": 2}, {"kind": "items", "min_events": 2}], [(1, 0), (1, 1), (2, 0), (2, 1)]),
        ([{"kind": "items", "min_events": 2}, {"kind": "users", "min_events": 3}], []),
    ],
)
def test_filters_count_and_remove_in_the_stated_order(
    tmp_path: Path, filters: list[dict[str, Any]], kept: list[tuple[int, int]]
) -> None:
    # users 6 and 7 and item 50 pass every filter, so that there is always something to train on
    passing = [(user, 50, TRAIN + at, at != 1) for user in (6, 7) for at in range(3)]
    passing += [(user, 51, TRAIN + 3, True) for user in (6, 7)] if "max_events" not in str(filters) else []
    if "max_events" in str(filters):
        passing = [(user, 50 + at, TRAIN + at, at == 0) for user in (6, 7) for at in range(2)]
    out = prepared(tmp_path, log_of(THREE_USERS + passing), filters=filters)
    assert column([row for row in rows_of(out) if row["user_id"] < 6], "user_id", "item_id") == kept
    # histories and the judged days lose nothing
    assert len(events_of(out)) == len(THREE_USERS + passing + JUDGED)
    assert len(rows_of(out, "test")) == 2


def test_a_negative_of_a_filter_is_what_is_not_positive_whatever_the_negative_history_holds(tmp_path: Path) -> None:
    """User 3 has an event that is neither positive nor in the negative history; the notes ask for a label of 0."""
    log = log_of(
        [(1, 0, TRAIN, True), (1, 1, TRAIN, False), (2, 0, TRAIN, True), (3, 0, TRAIN, True), (3, 2, TRAIN, False)]
    )
    filters = [{"kind": "users", "min_positives": 1, "min_negatives": 1}]
    out = prepared(tmp_path, log, filters=filters, negative="item_id = 1")
    assert {row["user_id"] for row in rows_of(out)} == {1, 3}


@pytest.mark.parametrize(("share", "kept"), [(0.5, 6), (1, 3), (0.99999, 3)])
def test_a_share_of_one_leaves_positives_alone(tmp_path: Path, share: float, kept: int) -> None:
    log = log_of([(user, item, TRAIN + item, item == user) for user in (1, 2, 3) for item in range(1, 60)])
    rows = rows_of(prepared(tmp_path, log, positive_share=share))
    assert sum(row["label"] for row in rows) == 3
    assert abs(len(rows) - kept) <= (5 if share == 0.5 else 0)


def test_validation_counts_for_no_filter_and_is_not_filtered(tmp_path: Path) -> None:
    late = [(3, item, VALIDATION, True) for item in range(3)]
    filters = [{"kind": "users", "min_events": 2}]
    out = prepared(tmp_path, log_of(THREE_USERS + late), filters=filters)
    assert {row["user_id"] for row in rows_of(out)} == {1, 2}
    assert column(rows_of(out, "validation"), "user_id") == [3, 3, 3, 8, 9]


def test_the_funnel_adds_up(tmp_path: Path) -> None:
    rows = [*THREE_USERS, THREE_USERS[0], (None, 0, TRAIN, True), (3, 0, TRAIN - DAY_MS, True)]
    filters = [{"kind": "items", "min_events": 2}, {"kind": "users", "min_events": 2}]
    out = prepared(tmp_path, log_of(rows), filters=filters)
    lines = funnel_of(out)
    log, train, windows = ([line for line in lines if line.scope == scope] for scope in ("log", "train", "windows"))
    assert [line.rows for line in log] == [13, 12, 11]
    assert log[-1].rows == train[0].rows + sum(line.rows for line in windows) == 6 + 2 + 2 + 1
    for scope in (log, train):
        for before, after in zip(scope, scope[1:], strict=False):
            assert before.rows - after.removed == after.rows
    assert [(line.rows, line.users, line.items, line.positives) for line in train] == [
        (6, 3, 3, 3),
        (5, 3, 2, 3),
        (4, 2, 2, 3),
    ]
    assert train[-1].positive_share == 3 / 4
    assert train[-1].rows == len(rows_of(out))


def test_filters_are_named_in_words() -> None:
    assert filter_name(ItemFilter(kind="items", min_events=5)) == "items: 5 or more events"
    words = "users: 2 to 50 events, 1 or more positives, 3 or more negatives"
    assert filter_name(UserFilter(kind="users", min_events=2, max_events=50, min_positives=1, min_negatives=3)) == words
