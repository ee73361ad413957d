"""Recent event counts of items: attributes that depend on the time, counted over the histories of all users."""

from collections.abc import Mapping
from typing import Final

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from twofold.candidate_sources import by_popularity
from twofold.dataset.dataset import Dataset
from twofold.dataset.histories import Histories
from twofold.ragged import chunks
from twofold.recipe.index import Recent
from twofold.recipe.ranker import Candidates, PopularitySource
from twofold.tables import DAY_MS

CHUNK_EVENTS: Final = 2**22  # events counted at once: 48 MiB of a mapped log


def with_counts(attributes: pa.Table, dataset: Dataset, counts: Mapping[str, Recent], *, as_of: int) -> pa.Table:
    """Appends to the attributes, which are in the order of the item rows, a column per count up to `as_of` (UTC ms)."""
    histories = {"events": dataset.events, "positives": dataset.positives, "negatives": dataset.negatives}
    for name, count in counts.items():
        first = as_of - count.days * DAY_MS
        events = count_events(histories[count.events], len(attributes), first=first, end=as_of)
        attributes = attributes.append_column(name, pa.array(events))
    return attributes


def popular_items(
    config: Candidates, positives: Histories, items: int, *, at: int
) -> dict[int, Int64[np.ndarray, "_"]]:
    """Returns the most popular items before the time `at` (UTC ms) for each number of days that a source counts."""
    days = {source.days for source in config.sources if isinstance(source, PopularitySource)}
    counts = {n: count_events(positives, items, first=at - n * DAY_MS, end=at) for n in days}
    return {n: by_popularity(each) for n, each in counts.items()}


def count_events(history: Histories, items: int, *, first: int, end: int) -> Int64[np.ndarray, "items"]:
    """Counts the events of each item row at or after `first` and strictly before `end`, over all users."""
    counts = np.zeros(items, np.int64)
    for part in chunks(len(history.at), CHUNK_EVENTS):
        at = history.at[part]
        counts += np.bincount(history.item_rows[part][(at >= first) & (at < end)], minlength=items)
    return counts
