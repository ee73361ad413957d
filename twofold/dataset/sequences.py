"""Sequences shared by many examples of one user: a causal encoder reads a sequence once for all of them."""

import numpy as np
from jaxtyping import Bool, Int64, Integer

from twofold.dataset.examples import Examples
from twofold.dataset.features import FeatureState
from twofold.dataset.histories import SECOND_MS, Histories, as_sequence, seconds_until
from twofold.dataset.id_tables import IdTable
from twofold.dataset.tower_inputs import Inputs
from twofold.recipe.features import SequenceFeature, feature_name

WINDOW = 32
"""Number of batches whose sequences are sorted by length together, so that padding is a few per cent. Not measured."""


def sequence_inputs(state: FeatureState, positives: Histories, batch: Examples) -> Inputs:
    """Returns the sequences of each sequence feature as table rows, oldest first, padded on the right with 0.

    `NAME.places` is, for each example of the batch, the position after its last event in the flattened outputs of
    `model.sequence.SequenceEncoder`, which has one more output than events per sequence.

    Consecutive examples of one user, in the order of time, share a sequence of at most as many events as the feature
    reads: the newest example reads all of it, older ones less. An example that shares with no other reads them all.
    With `time_bias`, every example of a sequence but the newest must be at the time of its next event, because the
    encoder computes ages from there.
    """
    inputs: dict[str, np.ndarray] = {}
    for feature in state.features.user:
        if isinstance(feature, SequenceFeature):
            user_rows, counts = np.asarray(batch.user_rows), batch.positives_before.astype(np.int64)
            table = state.id_table("user", feature)
            is_last = (
                ~_is_at_next_event(positives, batch, counts, table)
                if feature.time_bias
                else np.zeros(len(counts), bool)
            )
            sequence, newest = _shared_sequences(user_rows, counts, is_last, max_length=feature.max_length)
            first = np.maximum(counts[newest] - feature.max_length, 0)
            ends = positives.offsets[user_rows[newest]] + counts[newest]
            begins = ends - (counts[newest] - first)
            table_rows = _between(positives.item_rows, begins, ends, padding=-1) + 1
            rows = table.rows(table_rows)
            known = np.cumsum(rows != 0, axis=1)[sequence, np.maximum(counts - first[sequence] - 1, 0)]
            known *= counts > first[sequence]
            name, ages = feature_name(feature), None
            if feature.time_bias:
                ages = seconds_until(batch.at[newest], _between(positives.at, begins, ends, padding=0))
            inputs |= as_sequence(name, rows, ages)
            inputs[f"{name}.places"] = sequence * (rows.shape[1] + 1) + known
    return inputs


def sequence_order(
    user_rows: Int64[np.ndarray, "examples"], *, max_run: int, batch_size: int, draw: np.random.Generator
) -> Int64[np.ndarray, "_"]:
    """Orders examples, which are sorted by user and time, for batches of `batch_size`.

    Users are shuffled, up to `max_run` examples of one user stay together, the runs of a batch are about equally long,
    and whole batches are shuffled. Users with more examples are divided at other positions every time.
    """
    starts = np.flatnonzero(np.diff(user_rows, prepend=-1))
    counts = np.diff(np.append(starts, len(user_rows)))
    # The first cut of a long user is drawn, the others are `max_run` examples apart.
    phase = np.where(counts > max_run, draw.integers(1, max_run + 1, len(counts)), counts)
    parts = 1 + -(-(counts - phase) // max_run)
    number = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    begin = np.where(number == 0, 0, np.repeat(phase, parts) + (number - 1) * max_run)
    lengths = np.minimum(np.repeat(counts, parts), np.repeat(phase, parts) + number * max_run) - begin
    first = np.repeat(starts, parts) + begin
    shuffled = draw.permutation(len(first))
    window = np.cumsum(lengths[shuffled]) // (WINDOW * batch_size)
    chosen = shuffled[np.lexsort((lengths[shuffled], window))]
    taken = lengths[chosen]
    order = np.repeat(first[chosen] - (np.cumsum(taken) - taken), taken) + np.arange(taken.sum())
    whole = len(order) // batch_size
    batches = order[: whole * batch_size].reshape(whole, batch_size)
    return np.concatenate([batches[draw.permutation(whole)].ravel(), order[whole * batch_size :]])


def _is_at_next_event(
    history: Histories, batch: Examples, counts: Int64[np.ndarray, "batch"], table: IdTable
) -> Bool[np.ndarray, "batch"]:
    """Returns whether an example is at the time of the event after its history. Events on items without a row do not
    count.
    """
    positions = history.offsets[batch.user_rows] + counts
    result: np.ndarray = positions < history.offsets[batch.user_rows + 1]
    following = positions[result]
    is_same_time = history.at[following] // SECOND_MS == batch.at[result] // SECOND_MS
    result[result] = is_same_time & (table.rows(history.item_rows[following] + 1) != 0)
    return result


def _shared_sequences(
    user_rows: Int64[np.ndarray, "batch"],
    counts: Int64[np.ndarray, "batch"],
    is_last: Bool[np.ndarray, "batch"],
    *,
    max_length: int,
) -> tuple[Int64[np.ndarray, "batch"], Int64[np.ndarray, "_"]]:
    """Returns the sequence that each example reads, and the example at the end of each sequence.

    An example with `is_last` ends its sequence.
    """
    falls = np.flatnonzero((np.diff(user_rows) != 0) | (np.diff(counts) < 0) | is_last[:-1]) + 1
    runs = np.concatenate([[0], falls, [len(user_rows)]])
    begins: list[int] = []
    for begin, end in zip(runs[:-1], runs[1:], strict=True):
        while begin < end:  # a run is one sequence, unless it spans more events than a sequence holds
            begins.append(begin)
            begin += np.searchsorted(counts[begin:end], counts[begin] + max_length, side="right")
    ends = np.array([*begins[1:], len(user_rows)][: len(begins)], np.int64)
    return np.repeat(np.arange(len(begins)), np.diff(ends, prepend=0)), ends - 1


def _between(
    values: Integer[np.ndarray, "events"],
    begins: Int64[np.ndarray, "queries"],
    ends: Int64[np.ndarray, "queries"],
    *,
    padding: int,
) -> Integer[np.ndarray, "queries _"]:
    """Returns one row `values[begin:end]` per sequence, padded on the right; at least one column."""
    lengths = ends - begins
    columns = np.arange(max(int(lengths.max(initial=0)), 1))
    taken = np.full((len(begins), len(columns)), padding, values.dtype)
    present = columns < lengths[:, None]
    taken[present] = values[(begins[:, None] + columns)[present]]
    return taken
