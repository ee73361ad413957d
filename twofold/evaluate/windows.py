"""A window of the log → the users to judge and what they did: the same for every retriever and every baseline."""

import numpy as np
from jaxtyping import Int64

from twofold.dataset.arrays import Dataset
from twofold.evaluate.baselines import Interactions
from twofold.evaluate.protocols import JudgedWindow
from twofold.tables import Split
from twofold.topk import Ragged


def judged_window(dataset: Dataset, split: Split) -> JudgedWindow:
    """Every user of the window, asked once, at their first impression in it.

    What is *seen* are all events strictly before that moment, of every kind and window, so the ranking is of items
    that are new to the user; positives of the window on items already seen do not count as relevant.
    """
    rows, num_items = dataset.rows[split], len(dataset.items)
    users, first = np.unique(rows.user_rows, return_index=True)
    query_at = np.asarray(rows.at)[first]
    line = np.searchsorted(users, rows.user_rows)
    counts = dataset.events.before(users, query_at)
    seen_items, _ = dataset.events.slices(users, counts)
    seen = np.unique(np.repeat(np.arange(len(users)), counts) * num_items + seen_items)
    candidates, place = np.unique(line * num_items + rows.item_rows, return_inverse=True)
    labels = np.zeros(len(candidates), bool)
    labels[place[rows.label]] = True
    relevant = np.setdiff1d(candidates[labels], seen, assume_unique=True)
    reads_time = any(feature.kind in ("time", "counter") for feature in dataset.features.features.user)
    return JudgedWindow(
        name=split,
        user_rows=users,
        query_at=query_at,
        seen=_ragged(seen, len(users), num_items),
        relevant=_ragged(relevant, len(users), num_items),
        candidates=_ragged(candidates, len(users), num_items),
        labels=labels,
        num_items=num_items,
        is_cold=np.arange(num_items) >= dataset.items.num_known,
        track="query_time" if reads_time else "time_free",
    )


def positives_before(dataset: Dataset, window: JudgedWindow, *, first_at: int | None) -> Interactions:
    """All positive events that the log held when the judged window began, at `first_at`: the baselines may learn them.

    Where users have windows of their own (None), it is what each judged user did before, and all that others did.
    """
    positives = dataset.positives
    until = np.full(len(dataset.users), np.iinfo(np.int64).max if first_at is None else first_at)
    if first_at is None:
        until[window.user_rows] = window.query_at
    owner = np.repeat(np.arange(len(dataset.users)), np.diff(positives.offsets))
    keep = np.flatnonzero(np.asarray(positives.at) < until[owner])
    return Interactions(
        user_rows=owner[keep],
        item_rows=np.asarray(positives.item_rows)[keep].astype(np.int64),
        at=np.asarray(positives.at)[keep],
        num_users=len(dataset.users),
        num_items=len(dataset.items),
    )


def _ragged(keys: Int64[np.ndarray, "pairs"], users: int, num_items: int) -> Ragged:
    """Sorted keys user · N + item → one list a user."""
    return Ragged(keys % num_items, np.searchsorted(keys // num_items, np.arange(users + 1)).astype(np.int64))
