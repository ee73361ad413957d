"""Events counted up to a moment: half-open, of everybody, and nothing of what comes later."""

import numpy as np
import pytest

from twofold.dataset import recent_counts as recent
from twofold.dataset.histories import Histories
from twofold.dataset.recent_counts import count_events
from twofold.tables import DAY_MS

# Two users; items 0 to 2. Item 1 is met on days 1, 2 and 3, item 0 on day 2, item 2 never.
HISTORY = Histories(np.array([1, 0, 1, 1], np.int32), np.array([1, 2, 2, 3]) * DAY_MS, np.array([0, 2, 4], np.int64))


def test_a_window_holds_its_first_moment_and_not_its_end():
    assert count_events(HISTORY, 3, first=DAY_MS, end=3 * DAY_MS).tolist() == [1, 2, 0]
    assert count_events(HISTORY, 3, first=DAY_MS + 1, end=3 * DAY_MS + 1).tolist() == [1, 2, 0]
    assert count_events(HISTORY, 3, first=0, end=DAY_MS).tolist() == [0, 0, 0]


def test_a_log_is_counted_in_parts(monkeypatch: pytest.MonkeyPatch):
    whole = count_events(HISTORY, 3, first=0, end=10 * DAY_MS)
    monkeypatch.setattr(recent, "CHUNK_EVENTS", 3)
    assert count_events(HISTORY, 3, first=0, end=10 * DAY_MS).tolist() == whole.tolist() == [1, 3, 0]
