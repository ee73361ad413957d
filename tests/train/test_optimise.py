import pytest
import torch

from twofold.train.optimise import build_optimiser, learning_rate_at, set_learning_rate


def test_rises_to_the_peak_and_falls_to_nothing():
    rates = [learning_rate_at(step, steps=200, peak=0.1) for step in range(200)]
    assert max(rates) == pytest.approx(0.1)
    assert rates.index(max(rates)) == 9  # 5 % of 200 steps, the last of the warm-up
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 0.1 / 1000


def test_one_step_is_possible():
    assert learning_rate_at(0, steps=1, peak=0.1) == 0.1


def test_the_rate_reaches_the_optimiser():
    optimiser = build_optimiser(torch.nn.Linear(1, 1), learning_rate=1.0)
    set_learning_rate(optimiser, 0.25)
    assert [group["lr"] for group in optimiser.param_groups] == [0.25]
