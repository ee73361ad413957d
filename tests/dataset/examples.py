"""Rows of a window from what a test cares about."""

import numpy as np

from twofold.dataset.examples import ROW, Examples


def rows_at(*, item_rows, at, counter_values):
    """Positives of user 0, of weight 1."""
    records = np.zeros(len(at), ROW)
    flags = dict.fromkeys(("label", "is_relevant", "at_is_known"), True)
    for name, values in {"item_rows": item_rows, "at": at, "weight": 1, **flags}.items():
        records[name] = values
    return Examples(records, counter_values)
