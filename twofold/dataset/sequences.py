"""Many lines of one user in one sequence: what a causal encoder reads once and answers for every line of it."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Int64, Integer

from twofold.dataset.examples import Examples
from twofold.dataset.features import FeatureState, Inputs
from twofold.dataset.histories import SECOND_MS, Histories, as_sequence, id_rows, seconds_until
from twofold.recipe.features import SequenceFeature, feature_name

WINDOW = 32
"""Batches whose sequences are sorted by length together: their padding is then a few per cent. Not measured."""


def sequence_inputs(state: FeatureState, histories: Mapping[str, Histories], asked: Examples) -> Inputs:
    """For each sequence feature its sequences, as table rows, oldest first, padded on the right with 0; and under
    `NAME.places`, for each row asked, the place after its last event in the flattened outputs (see
    `model.sequence.SequenceEncoder`: one place more than events a sequence).

    Rows of one user that follow one another, in the order of time, share a sequence of at most `last` events: the
    newest sees all of it, older ones less. A row that stands alone sees all `last`. With `time_bias`, of the rows that
    share a sequence all but the newest ask when their next event comes, as is the encoder's rule.
    """
    inputs: dict[str, np.ndarray] = {}
    for feature in state.features.user:
        if isinstance(feature, SequenceFeature):
            counts = {"positives": asked.positives_before, "negatives": asked.negatives_before}[feature.events]
            user_rows, counts = np.asarray(asked.user_rows), counts.astype(np.int64)
            history, known_items = histories[feature.events], state.num_known_items
            is_last = ~_told(history, asked, counts, known_items) if feature.time_bias else np.zeros(len(counts), bool)
            of, newest = _shared(user_rows, counts, is_last, most=feature.max_length)
            first = np.maximum(counts[newest] - feature.max_length, 0)
            ends = history.offsets[user_rows[newest]] + counts[newest]
            begins = ends - (counts[newest] - first)
            rows = id_rows(_between(history.item_rows, begins, ends, none=-1) + 1, known_items)
            known = np.cumsum(rows != 0, axis=1)[of, np.maximum(counts - first[of] - 1, 0)] * (counts > first[of])
            name, ages = feature_name(feature), None
            if feature.time_bias:
                ages = seconds_until(asked.at[newest], _between(history.at, begins, ends, none=0))
            inputs |= as_sequence(name, rows, ages)
            inputs[f"{name}.places"] = of * (rows.shape[1] + 1) + known
    return inputs


def sequence_order(
    user_rows: Int64[np.ndarray, "lines"], *, most: int, batch_size: int, draw: np.random.Generator
) -> Int64[np.ndarray, "lines"]:
    """An order of lines, which rise by user and time, for batches of `batch_size`: users shuffled, up to `most` lines
    of one together, sequences of about equal length in a batch, whole batches shuffled.

    Longer users are cut at other places every time.
    """
    starts = np.flatnonzero(np.diff(user_rows, prepend=-1))
    counts = np.diff(np.append(starts, len(user_rows)))
    # The first cut of a long user lies anywhere, the others `most` lines apart.
    phase = np.where(counts > most, draw.integers(1, most + 1, len(counts)), counts)
    parts = 1 + -(-(counts - phase) // most)
    number = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    begin = np.where(number == 0, 0, np.repeat(phase, parts) + (number - 1) * most)
    lengths = np.minimum(np.repeat(counts, parts), np.repeat(phase, parts) + number * most) - begin
    first = np.repeat(starts, parts) + begin
    shuffled = draw.permutation(len(first))
    window = np.cumsum(lengths[shuffled]) // (WINDOW * batch_size)
    chosen = shuffled[np.lexsort((lengths[shuffled], window))]
    taken = lengths[chosen]
    lines = np.repeat(first[chosen] - (np.cumsum(taken) - taken), taken) + np.arange(taken.sum())
    whole = len(lines) // batch_size
    batches = lines[: whole * batch_size].reshape(whole, batch_size)
    return np.concatenate([batches[draw.permutation(whole)].ravel(), lines[whole * batch_size :]])


def _told(
    history: Histories, asked: Examples, counts: Int64[np.ndarray, "lines"], num_known_items: int
) -> Bool[np.ndarray, "lines"]:
    """Whether a line asks when the event comes that follows those it knows; cold events are none."""
    places = history.offsets[asked.user_rows] + counts
    told: np.ndarray = places < history.offsets[asked.user_rows + 1]
    there = places[told]
    is_then = history.at[there] // SECOND_MS == asked.at[told] // SECOND_MS
    told[told] = is_then & (history.item_rows[there] < num_known_items)
    return told


def _shared(
    user_rows: Int64[np.ndarray, "lines"],
    counts: Int64[np.ndarray, "lines"],
    is_last: Bool[np.ndarray, "lines"],
    *,
    most: int,
) -> tuple[Int64[np.ndarray, "lines"], Int64[np.ndarray, "sequences"]]:
    """Which sequence each line reads, and the line that ends each sequence; a line that `is_last` ends its own."""
    falls = np.flatnonzero((np.diff(user_rows) != 0) | (np.diff(counts) < 0) | is_last[:-1]) + 1
    runs = np.concatenate([[0], falls, [len(user_rows)]])
    begins: list[int] = []
    for begin, end in zip(runs[:-1], runs[1:], strict=True):
        while begin < end:  # a run is one sequence, unless it spans more events than a sequence holds
            begins.append(begin)
            begin += np.searchsorted(counts[begin:end], counts[begin] + most, side="right")
    ends = np.array([*begins[1:], len(user_rows)][: len(begins)], np.int64)
    return np.repeat(np.arange(len(begins)), np.diff(ends, prepend=0)), ends - 1


def _between(
    values: Integer[np.ndarray, "events"],
    begins: Int64[np.ndarray, "sequences"],
    ends: Int64[np.ndarray, "sequences"],
    *,
    none: int,
) -> Integer[np.ndarray, "sequences length"]:
    """`values[begin:end]` a line, `none` after them; at least one column."""
    lengths = ends - begins
    places = np.arange(max(int(lengths.max(initial=0)), 1))
    taken = np.full((len(begins), len(places)), none, values.dtype)
    present = places < lengths[:, None]
    taken[present] = values[(begins[:, None] + places)[present]]
    return taken
