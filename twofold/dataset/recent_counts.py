"""How many events an item had lately: attributes that depend on the moment, counted from everybody's history."""

from collections.abc import Mapping
from typing import Final

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from twofold.dataset.dataset import Dataset
from twofold.dataset.histories import Histories
from twofold.ragged import chunks
from twofold.recipe.index import Recent
from twofold.tables import DAY_MS

_EVENTS: Final = 2**22  # looked at once: 48 MiB of a mapped log


def with_counts(attributes: pa.Table, dataset: Dataset, counts: Mapping[str, Recent], *, as_of: int) -> pa.Table:
    """The attributes, in the order of the item rows, with a column for each count up to `as_of` (UTC ms)."""
    histories = {"events": dataset.events, "positives": dataset.positives, "negatives": dataset.negatives}
    for name, asked in counts.items():
        first = as_of - asked.days * DAY_MS
        counted = count_events(histories[asked.events], len(attributes), first=first, end=as_of)
        attributes = attributes.append_column(name, pa.array(counted))
    return attributes


def count_events(history: Histories, items: int, *, first: int, end: int) -> Int64[np.ndarray, "items"]:
    """Events of each item row at or after `first` and strictly before `end`, by whomever."""
    counts = np.zeros(items, np.int64)
    for part in chunks(len(history.at), _EVENTS):
        at = history.at[part]
        counts += np.bincount(history.item_rows[part][(at >= first) & (at < end)], minlength=items)
    return counts
