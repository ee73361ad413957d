"""State of a user at a point in time: the events of the log and the live events merged, as inputs of the user tower."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Integer

from twofold.dataset.histories import Histories
from twofold.dataset.tower_inputs import Queries
from twofold.dataset.vocabulary import UNKNOWN, Ids
from twofold.index.live import Snapshot
from twofold.serve.bundle import Bundle
from twofold.serve.event_store import LiveEvent


@dataclass(frozen=True)
class UserState:
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
    negatives_at: Int64[np.ndarray, "_"]

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
    item_ids = [event.item_id for event in live_events]
    rows = (items or bundle.items).rows_of(item_ids) if live_events else np.empty(0, np.int64)
    known = [
        (row, event) for row, event in zip(rows.tolist(), live_events, strict=True) if row != UNKNOWN and event.at < at
    ]
    readable = [(row, event) for row, event in known if row < len(bundle.items)]
    (positives, positives_at), (negatives, negatives_at) = (
        _merge(history, user_row, at, [(row, event.at) for row, event in readable if event.kind == kind])
        for history, kind in ((bundle.positives, "positive"), (bundle.negatives, "negative"))
    )
    seen, _ = _merge(bundle.events, user_row, at, [(row, event.at) for row, event in known])
    return UserState(user_row, at, positives, negatives, seen, positives_at, negatives_at)


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
    positives_at, negatives_at = np.full(len(positives), at), np.full(len(negatives), at)
    return UserState(UNKNOWN, at, positives, negatives, seen, positives_at, negatives_at), num_unknown


def _merge(
    history: Histories, user_row: int, at: int, live: list[tuple[int, int]]
) -> tuple[Integer[np.ndarray, "_"], Int64[np.ndarray, "_"]]:
    """Merges a user's log before `at` with live (item row, timestamp) pairs; returns item rows and timestamps in time
    order. Ties are ordered by item row, as in the log.
    """
    first, end = (0, 0) if user_row == UNKNOWN else history.offsets[user_row : user_row + 2].tolist()
    end = first + int(np.searchsorted(history.at[first:end], at))
    if not live:
        return history.item_rows[first:end], history.at[first:end]
    overlap = first + int(np.searchsorted(history.at[first:end], min(timestamp for _, timestamp in live)))
    late = zip(history.item_rows[overlap:end].tolist(), history.at[overlap:end].tolist(), strict=True)
    tail = np.array(sorted({*late, *live}, key=_by_time), np.int64)
    return (
        np.concatenate([history.item_rows[first:overlap], tail[:, 0].astype(np.int32)]),
        np.concatenate([history.at[first:overlap], tail[:, 1]]),
    )


def _by_time(pair: tuple[int, int]) -> tuple[int, int]:
    row, timestamp = pair
    return timestamp, row


def queries_of(bundle: Bundle, states: Sequence[UserState]) -> Queries:
    """Returns the inputs of the user tower, one row per user."""
    features = bundle.features
    num_positives, num_negatives = features.history_length("positives"), features.history_length("negatives")
    positives_at = [state.positives_at for state in states] if features.reads_times("positives") else None
    negatives_at = [state.negatives_at for state in states] if features.reads_times("negatives") else None
    return Queries(
        user_rows=np.array([state.user_row for state in states]),
        at=np.array([state.at for state in states]),
        positives=_newest([state.positives + 1 for state in states], num_positives, np.int32),
        negatives=_newest([state.negatives + 1 for state in states], num_negatives, np.int32),
        positives_at=None if positives_at is None else _newest(positives_at, num_positives, np.int64),
        negatives_at=None if negatives_at is None else _newest(negatives_at, num_negatives, np.int64),
    )


def _newest(
    histories: list[Integer[np.ndarray, "_"]], length: int, dtype: type[np.integer]
) -> Integer[np.ndarray, "batch length"]:
    """Returns the newest `length` entries of each history, padded on the left with 0."""
    padded = np.zeros((len(histories), length), dtype)
    for row, history in zip(padded, histories, strict=True):
        newest = history[max(len(history) - length, 0) :]
        row[length - len(newest) :] = newest
    return padded
