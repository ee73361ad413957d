"""Choice of the training, validation and test windows of a drafted recipe."""

from collections.abc import Sequence
from datetime import timedelta
from statistics import median

from twofold.ingest.log_profile import EPOCH, Day, EventFacts
from twofold.recipe.prepare import LastEvents, TemporalSplit, Window
from twofold.render.numbers import plural


def choose_split(events: EventFacts) -> tuple[TemporalSplit | LastEvents, str]:
    """Returns the split and its reason: the last whole day tests, the one before validates; weeks if days are small."""
    last, days = LastEvents(kind="last_n", test=1, validation=1), events.days
    if not days:
        return last, "the order of events is known, their days are not"
    first, end = days[0].number, days[-1].number + 1
    if end - first < 3:
        return last, f"the log covers {plural(end - first, 'day')}: too few to train, validate and test on days apart"
    for width, called in ((1, "day"), (7, "week"), (28, "4 weeks"), (91, "quarter"), (364, "year")):
        whole = end - 1 if width == 1 and _is_cut_short(days) else end
        bounds = (first, whole - 2 * width, whole - width, whole)
        if bounds[0] < bounds[1] and _is_enough(events, bounds):
            train, validation, test = (
                Window(first=EPOCH + timedelta(days=a), end=EPOCH + timedelta(days=b))
                for a, b in zip(bounds, bounds[1:], strict=False)
            )
            reason = f"test: last {called}; validation: the {called} before; train: everything earlier"
            if whole < end:
                reason += f"; {days[-1].date} is left out: it is incomplete"
            return TemporalSplit(kind="temporal", train=train, validation=validation, test=test), reason
    return last, "no cut in time leaves 1 % of the events to validate, 1 % to test and half of them to train"


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
