"""Weights of a sum of scores: users who choose by a known sum, models that say nothing, and no user at all."""

import numpy as np
import pytest

from tests.evaluate.windows import window as make_window
from twofold.pipeline import fitted_sum
from twofold.pipeline.fitted_sum import Choices, choices_of, fit_weights, without_idle_models
from twofold.topk import Products

DRAW = np.random.default_rng(3)
WEIGHTS = np.array([1.5, -0.5, 0.0, 0.8])


def drawn(weights, *, users=3000, items=20):
    """Choices of one item each, drawn from the softmax of the weighted sums of normal scores."""
    scores = DRAW.normal(size=(users, items, len(weights)))
    odds = np.exp(scores @ weights)
    rows = (DRAW.random(users)[:, None] > np.cumsum(odds / odds.sum(axis=1, keepdims=True), axis=1)).sum(axis=1)
    chosen = np.zeros((users, items))
    chosen[np.arange(users), np.minimum(rows, items - 1)] = 1.0
    return Choices(scores.reshape(-1, len(weights)), np.arange(users) * items, chosen.reshape(-1))


def test_the_weights_by_which_users_choose_are_found_in_any_units():
    choices, units = drawn(WEIGHTS), np.array([1.0, 100.0, 0.01, 3.0])
    weights, loss = fit_weights(choices)
    np.testing.assert_allclose(weights, WEIGHTS, atol=0.08)
    assert loss < np.log(20) - 0.5
    scaled, same = fit_weights(Choices(choices.scores * units, choices.starts, choices.chosen))
    np.testing.assert_allclose(scaled * units, weights, atol=1e-4)
    assert same == pytest.approx(loss, abs=1e-6)


def test_gradient_and_hessian_are_those_of_the_loss():
    choices = drawn(WEIGHTS, users=7, items=5)
    choices = Choices(choices.scores, choices.starts, choices.chosen / 3)  # two of three relevant items are not listed
    _, gradient, hessian = fitted_sum._loss(choices, WEIGHTS)
    for axis, step in enumerate(1e-4 * np.eye(4)):
        (up, above, _), (down, below, _) = (fitted_sum._loss(choices, WEIGHTS + by) for by in (step, -step))
        assert (up - down) / 2e-4 == pytest.approx(gradient[axis], abs=1e-6)
        np.testing.assert_allclose((above - below) / 2e-4, hessian[axis], atol=1e-6)


def test_the_weight_of_one_user_is_that_of_a_standard_normal_prior():
    """The user chose the item of score 1, not that of -1: ln(1 + exp(-2w)) + .501 w² is least at w = .5208."""
    one = Choices(np.array([[1.0], [-1.0]]), np.array([0]), np.array([1.0, 0.0]))
    assert fit_weights(one)[0] == pytest.approx([0.5208], abs=1e-4)


def test_a_model_by_which_nobody_chooses_is_left_out_and_one_of_two_equal_models_too():
    choices = drawn(WEIGHTS)
    assert without_idle_models(choices) == [0, 1, 3]
    twice = Choices(choices.scores[:, [0, 0, 3]], choices.starts, choices.chosen)
    assert without_idle_models(twice) in ([0, 2], [1, 2])
    assert len(without_idle_models(drawn(np.zeros(3)))) == 1


def test_users_choose_among_unseen_items_that_a_model_lists(monkeypatch):
    monkeypatch.setattr(fitted_sum, "LISTED", 2)
    window = make_window(num_items=6, seen=[[0], [], []], relevant=[[1, 5], [4], [3]])
    items = np.array([[9, 8, 7, 6, 5, 4], [1, 2, 3, 4, 5, 6]], np.float32)
    models = [Products(np.ones((3, 1), np.float32), each[:, None]) for each in items]
    choices = choices_of(window, models)
    # The first user lists 1, 2 (0 was seen) and 4, 5; the second 0, 1 and 4, 5; nothing that the third likes is listed.
    np.testing.assert_array_equal(choices.scores, items[:, [1, 2, 4, 5, 0, 1, 4, 5]].T)
    assert choices.starts.tolist() == [0, 4]
    assert choices.chosen.tolist() == [0.5, 0, 0, 0.5, 0, 0, 1, 0]


def test_without_a_listed_relevant_item_all_weights_are_zero(monkeypatch):
    monkeypatch.setattr(fitted_sum, "LISTED", 1)
    window = make_window(num_items=3, seen=[[]], relevant=[[2]])
    model = Products(np.ones((1, 1), np.float32), np.array([[3], [2], [1]], np.float32))
    weights, loss = fit_weights(choices_of(window, [model]))
    assert (weights.tolist(), loss) == ([0.0], 0.0)
