"""From candidates to answers: what a line excludes is passed over, equal scores are put in the fixed order."""

import numpy as np

from twofold.index.candidates import first_allowed, only_where, rescore_and_sort
from twofold.ragged import Ragged
from twofold.topk import tie_order


def test_lines_of_a_ragged_array_in_any_order_and_twice() -> None:
    ragged = Ragged(np.array([5, 6, 7, 8]), np.array([0, 2, 2, 4]))
    chosen = ragged.of(np.array([2, 1, 0, 2]))
    assert ragged.sizes.tolist() == [2, 0, 2]
    assert chosen.values.tolist() == [7, 8, 5, 6, 7, 8]
    assert chosen.offsets.tolist() == [0, 2, 2, 4, 6]


def test_the_first_candidates_that_are_not_excluded_stay_in_their_order() -> None:
    candidates = np.array([[3, 1, 0, 2], [2, 3, 1, 0]])
    found = np.float32([[9, 8, 7, 6], [5, 4, 3, 2]])
    excluded = Ragged(np.array([1, 2, 3, 0]), np.array([0, 1, 4]))
    floor, kept = first_allowed(found, candidates, excluded, count=2, items=4)
    assert kept.tolist() == [[3, 0], [1, -1]]
    assert floor.tolist() == [7, -np.inf]  # the first line left item 2 out; the second has no more


def test_every_line_of_a_long_batch_passes_over_its_own() -> None:
    lines, items = 200, 7
    candidates = np.tile(np.arange(items), (lines, 1))
    own = np.arange(lines) % items
    excluded = Ragged(own, np.arange(lines + 1))
    _, kept = first_allowed(candidates[:, ::-1].astype(np.float32), candidates, excluded, count=6, items=items)
    assert kept.tolist() == [[item for item in range(items) if item != out] for out in own]


def test_the_best_come_first_and_equal_ones_in_the_fixed_order() -> None:
    vectors = np.float32([[1, 0], [2, 0], [1, 0], [1, 5]])
    rank, _ = tie_order(4)
    equal = sorted([0, 2, 3], key=lambda row: -rank[row])
    lines, rows = np.array([0, 0, 0, 0, 2, 2]), np.array([0, 1, 2, 3, 3, 1])
    best = rescore_and_sort(vectors, np.float32([[1, 0]] * 3), lines=lines, rows=rows, k=5, score="dot")
    assert best.item_rows.tolist() == [[1, *equal, -1], [-1] * 5, [1, 3, -1, -1, -1]]
    assert best.scores[:, :2].tolist() == [[2, 1], [-np.inf, -np.inf], [2, 1]]
    assert best.counts.tolist() == [4, 0, 2]
    assert rescore_and_sort(
        vectors, np.float32([[1, 0]]), lines=lines[:4], rows=rows[:4], k=2, score="dot"
    ).item_rows.tolist() == [[1, equal[0]]]


def test_a_part_of_a_ragged_array_with_other_values() -> None:
    ragged = Ragged(np.array([5, 6, 7]), np.array([0, 2, 2, 3]))
    kept = only_where(ragged, np.array([50, 60, 70]), np.array([False, True, True]))
    assert (kept.values.tolist(), kept.offsets.tolist()) == ([60, 70], [0, 1, 1, 2])
