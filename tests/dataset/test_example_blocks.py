"""Examples in blocks: each once, counted as if they were read at once, in memory that does not grow with the log."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.dataset.batch_order import Order
from twofold.dataset.example_blocks import ExampleBlocks, count_keys, number_groups
from twofold.dataset.examples import ROW, Examples


@given(st.lists(st.lists(st.integers(-5, 30)), max_size=6))
def test_keys_of_parts_are_counted_as_those_of_one(parts):
    keys, counts = count_keys(np.array(part, np.int64) for part in parts)
    whole = [key for part in parts for key in part]
    assert keys.tolist() == sorted(set(whole))
    assert counts.tolist() == [whole.count(key) for key in sorted(set(whole))]


@pytest.mark.parametrize("kind", ["events", "positive events", "events with a target"])
@pytest.mark.parametrize("rows", [0, 1, 20, 21])
def test_every_example_is_in_one_block(kind, rows):
    records = np.zeros(rows, ROW)
    records["label"], records["target"] = np.arange(rows) % 3 == 0, np.where(np.arange(rows) % 4 == 0, np.nan, 1)
    expected = {"events": np.arange(rows), "positive events": np.flatnonzero(records["label"])}
    expected["events with a target"] = np.flatnonzero(np.isfinite(records["target"]))
    examples = ExampleBlocks(Examples(records, {}), kind, 10)
    found = list(examples)
    assert len(found) == len(examples) == max(-(-rows // 10), 1)
    assert np.concatenate(found).tolist() == expected[kind].tolist()


def peak_bytes_of_an_epoch(rows, folder):
    """Returns the largest memory of NumPy while an epoch in groups is counted and ordered, and its number of batches.

    Records are mapped from a file, as those of a data set are.
    """
    records = np.lib.format.open_memmap(folder / f"{rows}.npy", "w+", ROW, (rows,))
    records["label"], records["at"] = np.arange(rows) % 4 == 0, np.arange(rows) % 7
    examples = ExampleBlocks(Examples(records, {}), "positive events", 20_000)
    tracemalloc.start()
    groups = number_groups(examples, lambda indices: examples.rows.at[indices])
    order = Order(examples, int(groups.counts.sum()), 64, groups)
    batches = sum(len(made.indices) for made in order.epoch((0, 0)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, batches


def test_memory_does_not_grow_with_the_log(tmp_path):
    small, few = peak_bytes_of_an_epoch(100_000, tmp_path)
    large, many = peak_bytes_of_an_epoch(800_000, tmp_path)
    assert many > 7 * few
    assert large < 1.2 * small
