"""New items: those without any event before the window; their recall is that of their pairs alone."""

import numpy as np
import pytest

from tests.evaluate.windows import window
from tests.prepare.tables import TRAIN, log_of, prepared
from tests.worlds import DAY_MS
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import load_dataset
from twofold.evaluate.new_items import evaluate_new_items, find_new_items
from twofold.evaluate.window import evaluation_window
from twofold.recipe.features import Features

WINDOW = window(seen=[[], [1], [], []], relevant=[[0, 3], [], [3, 4], [1]], num_items=6)
IS_NEW = np.array([False, False, True, True, True, False])


def test_recall_counts_the_pairs_of_new_items_alone():
    ranks = {"model": np.array([1, 2, 9, 0, 1]), "random": np.array([1, 0, 0, 0, 1])}
    section = evaluate_new_items(ranks, WINDOW, IS_NEW, k=5)
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
    assert evaluate_new_items(ranks, WINDOW, IS_NEW, k=1).sentence.endswith("finds 0.167, item-kNN 1.000.")


def test_without_a_positive_on_a_new_item_there_is_no_section():
    assert evaluate_new_items({"model": np.ones(5, int)}, WINDOW, ~IS_NEW & False, k=5) is None


def test_a_random_order_finds_more_where_seen_items_are_no_candidates():
    seen = window(seen=[[1, 2, 5, 4], [], [], []], relevant=[[0, 3], [], [3], [1]], num_items=6)
    section = evaluate_new_items({"model": np.ones(4, int)}, seen, IS_NEW, k=1)
    chance = (1 / 2 + 1 / 6) / 2  # user 0 has two items left, user 2 six
    assert section.sentence.endswith(f"a random order finds {chance:.3f}.")


def test_with_last_n_an_item_of_which_others_had_a_validation_event_is_not_new(tmp_path):
    """The last event of user 3 is older than all else, so that all of it lies after the first request."""
    rows = [(3, item, TRAIN + item, True) for item in range(4)]
    for user in (1, 2):
        rows += [(user, item, TRAIN + DAY_MS + item, True) for item in range(4)]
    rows += [(1, 50, TRAIN + 2 * DAY_MS, True), (1, 60, TRAIN + 3 * DAY_MS, True), (2, 50, TRAIN + 3 * DAY_MS, True)]
    features = Features.model_validate({"user": [{"kind": "history", "events": "positives"}], "item": [{"kind": "id"}]})
    out = prepared(tmp_path, log_of(rows), split={"kind": "last_n", "test": 1, "validation": 1})
    (tmp_path / "dataset").mkdir()
    build_dataset(out, features, tmp_path / "dataset", time_zone="UTC")
    arrays = load_dataset(tmp_path / "dataset")
    is_new = find_new_items(arrays, evaluation_window(arrays, "test"))
    new = [arrays.items.ids[int(row)].as_py() for row in np.flatnonzero(is_new)]
    assert 60 in new  # only tested
    assert 50 not in new  # a validation event of user 1, from which baselines learn
