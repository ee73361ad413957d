"""Rows of a window from what a test cares about."""

import numpy as np

from twofold.dataset.rows import Rows


def rows_at(*, item_rows, at, user_rows=None, counted=None):
    """Positives of weight 1 without watch times; user 0 unless `user_rows` says otherwise."""
    lines = len(at)
    return Rows(
        user_rows=np.zeros(lines, np.int64) if user_rows is None else np.array(user_rows),
        item_rows=np.array(item_rows),
        at=np.array(at),
        at_is_known=np.ones(lines, bool),
        label=np.ones(lines, bool),
        weight=np.ones(lines, np.float32),
        target=np.ones(lines, np.float32),
        watch_s=np.full(lines, np.nan, np.float32),
        length_s=np.full(lines, np.nan, np.float32),
        positives_before=np.zeros(lines, np.int32),
        negatives_before=np.zeros(lines, np.int32),
        counted=counted or {},
    )
