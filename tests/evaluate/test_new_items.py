"""New items: those without any event before the window; their recall is that of their pairs alone."""

import numpy as np
import pytest

from tests.evaluate.windows import ragged
from twofold.evaluate.new_items import evaluate_new_items

RELEVANT = ragged([[0, 3], [], [3, 4], [1]])
IS_NEW = np.array([False, False, True, True, True, False])


def test_recall_counts_the_pairs_of_new_items_alone():
    ranks = {"model": np.array([1, 2, 9, 0, 1]), "random": np.array([1, 0, 0, 0, 1])}
    section = evaluate_new_items(ranks, RELEVANT, IS_NEW, k=5)
    assert (section.items, section.pairs, section.users_judged, section.k) == (3, 3, 2, 5)
    model, random = section.rows
    assert model.recall.value == pytest.approx((1 + 0 / 2) / 2)  # user 0: found at 2; user 2: neither at 9 nor at all
    assert random.recall.value == 0
    assert section.sentence.startswith(
        "New items: of 3 positives on the 3 items without any event before the window, the model finds 0.500 ["
    )
    assert section.sentence.endswith(" among the first 5; a random order finds 0.833.")


def test_a_better_row_is_named():
    ranks = {"model": np.zeros(5, int), "random": np.zeros(5, int), "item-kNN": np.ones(5, int)}
    assert evaluate_new_items(ranks, RELEVANT, IS_NEW, k=1).sentence.endswith("finds 0.167, item-kNN 1.000.")


def test_without_a_positive_on_a_new_item_there_is_no_section():
    assert evaluate_new_items({"model": np.ones(5, int)}, RELEVANT, ~IS_NEW & False, k=5) is None
