"""State of a user at a point in time: the events of the log and the live events merged, as inputs of the user tower."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Integer

from twofold.dataset.histories import Histories
from twofold.dataset.tower_inputs import Queries
from twofold.dataset.vocabulary import UNKNOWN, Ids
from twofold.index.live import Snapshot
from twofold.ragged import Ragged
from twofold.rule_counts import Meetings
from twofold.serve.bundle import Bundle
from twofold.serve.event_store import LiveEvent


class UserState(NamedTuple):
    """A user at a point in time with the items they have seen (row numbers, oldest first). User row -1 is a user who is
    not in the log.

    `seen` holds all items, including the positives and the negatives. The items of a posted history, whose timestamps
    are unknown, count as seen at `at` itself.
    """

    user_row: int
    at: int
    positives: Integer[np.ndarray, "_"]
    negatives: Integer[np.ndarray, "_"]
    seen: Integer[np.ndarray, "_"]
    positives_at: Int64[np.ndarray, "_"]
    seen_at: Int64[np.ndarray, "_"]

    @property
    def is_blank(self) -> bool:
        """True for a user who is not in the log and has seen no item."""
        return self.user_row == UNKNOWN and len(self.seen) == 0


def user_state_of(
    bundle: Bundle,
    user_row: int,
    live_events: Sequence[LiveEvent],
    *,
    at: int | None = None,
    now: int = 0,
    items: Snapshot | None = None,
) -> UserState:
    """Merges a user's events strictly before `at` from the log and the live store; an event in both counts once.

    If `at` is `None`, all events count and the state's time is `now`, or just after the last event if that is later.
    `items` are the bundle's items as they are now: the tower cannot read items added since, but they count as seen.
    """
    if at is None:
        after_last_event = live_events[-1].at + 1 if live_events else 0
        at = max(now, after_last_event, bundle.as_of)
    if not live_events:
        positives, positives_at = _logged(bundle.positives, user_row, at)
        negatives, _ = _logged(bundle.negatives, user_row, at)
        seen, seen_at = _logged(bundle.events, user_row, at)
        return UserState(user_row, at, positives, negatives, seen, positives_at, seen_at)
    rows = (items or bundle.items).rows_of([event.item_id for event in live_events])
    known = [
        (row, event) for row, event in zip(rows.tolist(), live_events, strict=True) if row != UNKNOWN and event.at < at
    ]
    readable = [(row, event) for row, event in known if row < len(bundle.items)]
    (positives, positives_at), (negatives, _) = (
        _merge(history, user_row, at, [(row, event.at) for row, event in readable if event.kind == kind])
        for history, kind in ((bundle.positives, "positive"), (bundle.negatives, "negative"))
    )
    seen, seen_at = _merge(bundle.events, user_row, at, [(row, event.at) for row, event in known])
    return UserState(user_row, at, positives, negatives, seen, positives_at, seen_at)


def user_state_from_history(
    bundle: Bundle, positives: Ids, negatives: Ids, *, at: int, items: Snapshot | None = None
) -> tuple[UserState, int]:
    """Makes the state of a user outside the log from a posted history, oldest first; returns it with the number of
    unknown item ids.
    """
    positive_rows, negative_rows = ((items or bundle.items).rows_of(ids) for ids in (positives, negatives))
    known_positives = positive_rows[positive_rows != UNKNOWN]
    known_negatives = negative_rows[negative_rows != UNKNOWN]
    seen, num_readable = np.concatenate([known_positives, known_negatives]), len(bundle.items)
    num_unknown = len(positive_rows) + len(negative_rows) - len(seen)
    positives, negatives = (rows[rows < num_readable] for rows in (known_positives, known_negatives))
    positives_at, seen_at = (np.full(len(rows), at) for rows in (positives, seen))
    return UserState(UNKNOWN, at, positives, negatives, seen, positives_at, seen_at), num_unknown


def _logged(history: Histories, user_row: int, at: int) -> tuple[Integer[np.ndarray, "_"], Int64[np.ndarray, "_"]]:
    """Returns item rows and timestamps of a user's log before `at`."""
    first, end = (0, 0) if user_row == UNKNOWN else history.offsets[user_row : user_row + 2].tolist()
    if end > first and history.at[end - 1] >= at:
        end = first + int(history.at[first:end].searchsorted(at))
    return history.item_rows[first:end], history.at[first:end]


def _merge(
    history: Histories, user_row: int, at: int, live: list[tuple[int, int]]
) -> tuple[Integer[np.ndarray, "_"], Int64[np.ndarray, "_"]]:
    """Merges a user's log before `at` with live (item row, timestamp) pairs; returns item rows and timestamps in time
    order. Ties are ordered by item row, as in the log.
    """
    rows, times = _logged(history, user_row, at)
    if not live:
        return rows, times
    overlap = int(times.searchsorted(min(timestamp for _, timestamp in live)))
    late = zip(rows[overlap:].tolist(), times[overlap:].tolist(), strict=True)
    tail = np.array(sorted({*late, *live}, key=_by_time), np.int64)
    return np.concatenate([rows[:overlap], tail[:, 0].astype(np.int32)]), np.concatenate([times[:overlap], tail[:, 1]])


def _by_time(pair: tuple[int, int]) -> tuple[int, int]:
    row, timestamp = pair
    return timestamp, row


def queries_of(bundle: Bundle, states: Sequence[UserState]) -> Queries:
    """Returns the inputs of the user tower, one row per user."""
    features = bundle.features
    num_positives, num_negatives = features.history_length("positives"), features.history_length("negatives")
    positives_at = [state.positives_at for state in states] if features.reads_times else None
    return Queries(
        user_rows=np.array([state.user_row for state in states]),
        at=np.array([state.at for state in states]),
        positives=_newest([state.positives for state in states], num_positives, np.int32, missing=-1) + 1,
        negatives=_newest([state.negatives for state in states], num_negatives, np.int32, missing=-1) + 1,
        positives_at=None if positives_at is None else _newest(positives_at, num_positives, np.int64),
    )


def meetings_of(bundle: Bundle, states: Sequence[UserState]) -> Meetings | None:
    """Returns the events of users before their requests; `None` means that no rule reads them."""
    if not bundle.reads_meetings:
        return None
    rows = Ragged(np.concatenate([each.seen for each in states]), np.cumsum([0, *(len(each.seen) for each in states)]))
    times = np.concatenate([each.seen_at for each in states])
    return Meetings(rows, times, np.array([each.at for each in states]))


def _newest(
    histories: list[Integer[np.ndarray, "_"]], length: int, dtype: type[np.integer], *, missing: int = 0
) -> Integer[np.ndarray, "batch length"]:
    """Returns the newest `length` entries of each history, padded on the left with `missing`."""
    padded = np.full((len(histories), length), missing, dtype)
    if length:
        for row, history in zip(padded, histories, strict=True):
            row[max(length - len(history), 0) :] = history[-length:]
    return padded
