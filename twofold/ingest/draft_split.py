"""Choice of the training, validation and test windows of a drafted recipe."""

from collections.abc import Sequence
from datetime import timedelta
from math import sqrt
from statistics import median
from typing import Final

from twofold.errors import RequestError
from twofold.ingest.table_profile import EPOCH, Day, EventFacts
from twofold.recipe.split import LastEvents, TemporalSplit, Window
from twofold.render.numbers import plural

ENOUGH_USERS: Final = 1000
"""Users with a relevant event in the test window, below which intervals become wide."""
_WORTH_A_LEAK: Final = 3
"""Ratio of the users that last events would test to those that the best window tests, from which last events are
chosen, although they leak the future: later events of other users are trained on."""
_WIDTHS: Final[tuple[tuple[int, str], ...]] = ((1, "day"), (7, "week"), (28, "4 weeks"), (91, "quarter"), (364, "year"))
_WIDTHS_OF_MANY_USERS: Final[tuple[tuple[int, str], ...]] = (_WIDTHS[0], (3, "3 days"), *_WIDTHS[1:])
_LAST: Final = LastEvents(kind="last_n", test=1, validation=1)


def choose_split(events: EventFacts, test_days: int | None = None) -> tuple[TemporalSplit | LastEvents, str]:
    """Returns the split and its reason: the last whole day tests and the one before validates; longer windows if these
    have few events or users; each user's last events if no window has enough. `test_days` is the user's choice.
    """
    days = events.days
    if not days:
        return _LAST, "the order of events is known, their days are not"
    first, end = days[0].number, days[-1].number + 1
    if end - first < 3:
        return _LAST, f"the log covers {plural(end - first, 'day')}: too few to train, validate and test on days apart"
    users = max(events.users_from, default=0)
    wanted = ENOUGH_USERS if users >= ENOUGH_USERS else users // 2
    guesses = _WIDTHS_OF_MANY_USERS if users >= ENOUGH_USERS else _WIDTHS
    widths = guesses if test_days is None else ((test_days, f"{test_days} days"),)
    fitting = [
        (width, called, bounds)
        for width, called in widths
        if (bounds := _bounds(days, width))[0] < bounds[1] and (test_days or _is_enough(events, bounds))
    ]
    if not fitting:
        return _LAST, "no cut in time leaves 1 % of the events to validate, 1 % to test and half of them to train"
    most, widest = 0, fitting[0]
    for each in fitting:
        judged = users_within(events, *each[2][2:])
        if judged is None or judged >= wanted or test_days:
            return _temporal(each[2]), _reason(each[1], each[2], days)
        most, widest = max((most, widest), (judged, each), key=lambda pair: pair[0])
    if _users_of_last_events(events) < _WORTH_A_LEAK * most:
        return _temporal(widest[2]), _reason(widest[1], widest[2], days)
    return (
        _LAST,
        f"the last event of each user: windows of days hold {plural(most, 'user')} at most, of {events.users:,}",
    )


def check_test_days(events: EventFacts, test_days: int) -> None:
    """Raises RequestError if the log is too short to test, and to validate, on so many days."""
    days = events.days
    if not days:
        raise RequestError(
            f"--test-days {test_days}: the log has no days, only an order, so each user's last event is tested. "
            f"Leave --test-days out, or name the column of times with --time COL."
        )
    length = days[-1].number + 1 - days[0].number
    if _bounds(days, test_days)[1] <= days[0].number:
        found = f"--test-days {test_days}: the log has {plural(length, 'day')}, {days[0].date} to {days[-1].date}"
        most = (length - 1) // 2
        if most == 0:
            raise RequestError(f"{found}: too few to train, validate and test on days apart. Leave --test-days out.")
        raise RequestError(
            f"{found}, and {test_days} to test and as many to validate leave none to train on. Write at most {most}."
        )


def _users_of_last_events(events: EventFacts) -> int:
    """Returns about how many users have a relevant last event: as many as is the share of positive events."""
    return round(max(events.users_from, default=0) * events.positives / events.rows)


def users_within(events: EventFacts, first: int, end: int) -> int | None:
    """Returns the number of users with a relevant event from day `first` to before `end`; `None` if not counted.

    For a window that ends before the log does, it is the number on its busiest day at least.
    """
    days = events_within(events, first, end)
    if not events.users_from or not days:
        return None
    most = max(day.users or 0 for day in days)
    if end <= events.days[-1].number:
        return most
    return events.users_from[events.days.index(days[0])]


def count_judged(events: EventFacts, test_days: int | None = None) -> int | None:
    """Returns the number of users that the chosen test window judges; `None` if it is not known."""
    split, _ = choose_split(events, test_days)
    if isinstance(split, LastEvents):
        return _users_of_last_events(events) or None
    return users_within(events, (split.test.first - EPOCH).days, (split.test.end - EPOCH).days)


def interval_of(users: int) -> float:
    """Returns half the 95 % interval of a recall over so many users, of the usual standard deviation of .35.

    >>> round(interval_of(1000), 3)
    0.022
    """
    return 1.96 * 0.35 / sqrt(users)


def _bounds(days: Sequence[Day], width: int) -> tuple[int, int, int, int]:
    first, end = days[0].number, days[-1].number + 1
    whole = end - 1 if width == 1 and _is_cut_short(days) else end
    return first, whole - 2 * width, whole - width, whole


def _temporal(bounds: Sequence[int]) -> TemporalSplit:
    train, validation, test = (
        Window(first=EPOCH + timedelta(days=a), end=EPOCH + timedelta(days=b))
        for a, b in zip(bounds, bounds[1:], strict=False)
    )
    return TemporalSplit(kind="temporal", train=train, validation=validation, test=test)


def _reason(called: str, bounds: Sequence[int], days: Sequence[Day]) -> str:
    reason = f"test: last {called}; validation: the {called} before; train: everything earlier"
    if bounds[3] <= days[-1].number:
        reason += f"; {days[-1].date} is left out: it is incomplete"
    return reason


def _is_cut_short(days: Sequence[Day]) -> bool:
    return days[-1].events * 2 < median(day.events for day in days[-8:-1])


def _is_enough(events: EventFacts, bounds: tuple[int, ...]) -> bool:
    """Returns whether 1 % (at most 100,000 events) validate and test, half train, and each window has positives."""
    wanted = min(0.01 * events.rows, 100_000)
    windows = [events_within(events, first, end) for first, end in zip(bounds, bounds[1:], strict=False)]
    floors = (0.5 * events.rows, wanted, wanted)
    return all(
        sum(day.events for day in window) >= floor and any(day.positives for day in window)
        for window, floor in zip(windows, floors, strict=True)
    )


def events_within(events: EventFacts, first: int, end: int) -> list[Day]:
    """Returns the days of the log from `first` to before `end`."""
    return [day for day in events.days if first <= day.number < end]
