"""Additions of histories to scores, against sums written out."""

import numpy as np
import pytest

from twofold.item_neighbors import ItemNeighbors
from twofold.model import history_additions
from twofold.model.history_additions import HistoryAdditions, load_additions, save_additions

NUM_ITEMS = 12


@pytest.fixture
def neighbors():
    draw = np.random.default_rng(2)
    near = np.stack([draw.choice(NUM_ITEMS, size=5, replace=False) for _ in range(NUM_ITEMS)])
    near[np.arange(5) >= draw.integers(0, 6, size=NUM_ITEMS)[:, None]] = -1
    return ItemNeighbors(near.astype(np.int32), draw.random(near.shape).astype(np.float32))


HISTORIES = np.array([[0, 0, 3, 5, 3], [0, 0, 0, 0, 0], [1, 2, 3, 4, 12]], np.int32)


def written_out(neighbors, histories, *, length, repeats):
    sums = np.zeros((len(histories), NUM_ITEMS))
    for row, history in zip(sums, histories[:, -length:], strict=True):
        liked = [int(place) - 1 for place in history if place]
        for item in liked:
            row[item] += repeats
        for item in set(liked) if neighbors is not None else ():
            is_item = neighbors.item_rows[item] >= 0
            row[neighbors.item_rows[item, is_item]] += neighbors.similarities[item, is_item] / np.sqrt(len(set(liked)))
    return sums


@pytest.mark.parametrize("chunk_pairs", [1, 2**22])
@pytest.mark.parametrize("length", [2, 5])
@pytest.mark.parametrize("repeats", [0.0, 0.5])
@pytest.mark.parametrize("has_neighbors", [True, False])
def test_additions_are_the_sums_over_the_newest_positives(
    has_neighbors, repeats, length, chunk_pairs, neighbors, tmp_path, monkeypatch
):
    monkeypatch.setattr(history_additions, "CHUNK_PAIRS", chunk_pairs)
    added = HistoryAdditions(length, repeats, neighbors if has_neighbors else None)
    save_additions(added, tmp_path)
    for each in (added, load_additions(tmp_path)):
        found = each.of(HISTORIES)
        dense = np.zeros((len(HISTORIES), NUM_ITEMS))
        dense[found.rows.lines, found.rows.values] += found.values
        expected = written_out(added.neighbors, HISTORIES, length=length, repeats=repeats)
        np.testing.assert_allclose(dense, expected, rtol=1e-6)
        for user in range(len(HISTORIES)):
            rows = found.rows.values[found.rows.offsets[user] : found.rows.offsets[user + 1]]
            assert (np.diff(rows) > 0).all()


def test_a_folder_without_additions_has_none(tmp_path):
    assert load_additions(tmp_path) is None


def test_scaled_neighbors_have_scaled_weights(neighbors):
    np.testing.assert_allclose(neighbors.scaled(3.0).similarities, 3 * neighbors.similarities, rtol=1e-6)
