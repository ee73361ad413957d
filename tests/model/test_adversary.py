"""The reversed gradient: which way it points, whom it leaves alone, and that strength 0 is no adversary at all."""

import math

import pytest
import torch

from twofold.model.adversary import LengthPredictor, reverse_gradient, strength_at

LENGTHS = torch.tensor([5.0, 20.0, math.nan, 0.0, 60.0])


@pytest.fixture
def guess():
    torch.manual_seed(0)
    return LengthPredictor(3, mean=2.0, std=0.5)


def test_values_pass_unchanged_and_the_gradient_comes_back_reversed():
    values = torch.randn(4, 3, requires_grad=True)
    reversed_ = reverse_gradient(values, 0.3)
    assert torch.equal(reversed_, values)
    gradient = torch.randn(4, 3)
    reversed_.backward(gradient)
    assert torch.equal(values.grad, -0.3 * gradient)


def test_vectors_get_minus_lambda_times_the_gradient_and_the_guess_its_own(guess):
    vectors = torch.randn(5, 3, requires_grad=True)
    weights = list(guess.parameters())

    def gradients(strength):
        return torch.autograd.grad(guess(vectors, LENGTHS, strength=strength), [vectors, *weights])

    (forward, *own), (reversed_, *same) = gradients(-1.0), gradients(0.7)  # strength -1 is a plain network
    torch.testing.assert_close(reversed_, -0.7 * forward)
    for left, right in zip(own, same, strict=True):
        assert torch.equal(left, right)


def test_the_error_is_of_standardised_log_length_where_it_is_known(guess):
    vectors = torch.randn(5, 3)
    guessed = guess.layers(vectors).squeeze(1).tolist()
    errors = [(guessed[line] - (math.log(LENGTHS[line]) - 2.0) / 0.5) ** 2 for line in (0, 1, 4)]
    assert guess(vectors, LENGTHS, strength=1.0).item() == pytest.approx(sum(errors) / 3, rel=1e-5)
    nothing = guess(vectors.requires_grad_(), torch.zeros(5), strength=1.0)
    nothing.backward()
    assert nothing.item() == 0
    assert not vectors.grad.any()


def test_strength_rises_from_nothing_to_its_most():
    strengths = [strength_at(step / 100, most=3.0) for step in range(101)]
    assert strengths[0] == 0
    assert strengths == sorted(strengths)
    assert strengths[-1] == pytest.approx(3.0, abs=1e-3)
