"""Each loss against a loop written from its formula; what gradients tend to; memory."""

import math

import numpy as np
import pytest
import torch

from tests.model.plain_softmax import collisions, in_batch_softmax
from twofold.model import losses as module
from twofold.model.losses import bce, bpr, by_chunks, regression, sampled_softmax


def test_equals_a_naive_loop():
    torch.manual_seed(0)
    users, items, log_q = torch.randn(4, 3), torch.randn(4, 3), torch.rand(4).log()
    masked = collisions(torch.tensor([0, 1, 0, 2]), torch.tensor([7, 8, 9, 8]))
    losses = in_batch_softmax(users, items, temperature=0.5, log_q=log_q, masked=masked)
    for i in range(4):
        logits = [float(users[i] @ items[j]) / 0.5 - float(log_q[j]) for j in range(4)]
        total = sum(math.exp(logits[j]) for j in range(4) if not masked[i, j])
        assert math.isclose(float(losses[i]), -math.log(math.exp(logits[i]) / total), rel_tol=1e-5)


def test_collisions_are_the_same_item_and_the_same_user_but_never_the_line_itself():
    masked = collisions(torch.tensor([0, 1, 0]), torch.tensor([5, 5, 6]))
    assert masked.int().tolist() == [[0, 1, 1], [1, 0, 0], [1, 0, 0]]


def catalogue_gradient(score_noise, *, corrected):
    """Gradient of the scores of a 5-item catalogue, averaged over many batches drawn by popularity, against the full
    softmax's.
    """
    popularity = np.array([0.5, 0.25, 0.125, 0.0625, 0.0625])
    rng = np.random.default_rng(0)
    # The target is always item 1, drawn apart; 2,000 others by popularity: the corrected estimate then tends to the
    # full softmax.
    scores = torch.tensor(score_noise, requires_grad=True)
    log_q = torch.from_numpy(np.log(popularity)).float() if corrected else torch.zeros(5)
    drawn = torch.from_numpy(rng.choice(5, size=20_000, p=popularity))
    negatives = drawn[drawn != 1]
    columns = torch.cat([torch.tensor([1]), negatives])
    logits = scores[columns] - log_q[columns]
    # The positive stands once in the batch but stands for its expected number of draws, as every other item does.
    logits = torch.cat([logits[:1] + math.log(20_000 * popularity[1]) * corrected, logits[1:]])
    torch.nn.functional.cross_entropy(logits[None], torch.tensor([0])).backward()
    return scores.grad


def test_sampled_gradient_with_log_q_tends_to_the_full_softmax():
    scores = [0.3, -0.2, 0.1, 0.5, -0.4]
    expected = torch.softmax(torch.tensor(scores), 0) - torch.eye(5)[1]
    torch.testing.assert_close(catalogue_gradient(scores, corrected=True), expected, atol=0.02, rtol=0)


def test_without_log_q_popular_items_lose():
    scores = [0.0, 0.0, 0.0, 0.0, 0.0]
    pushed_down = catalogue_gradient(scores, corrected=False)
    assert pushed_down[0] > 2 * pushed_down[2] > 0  # equal scores, yet the popular one is pushed down harder


# --- the positive is there for certain --------------------------------------------------------------------------------

POPULARITY = np.array([0.5, 0.25, 0.125, 0.0625, 0.0625])
POSITIVE = 1


def corrected_gradient(values, *, draws, batches):
    """Returns the mean gradient of a 5-item catalogue's scores over batches of `draws` negatives by popularity.

    The item of the positive is left out.
    """
    rng = np.random.default_rng(0)
    scores = torch.tensor(values, requires_grad=True)
    drawn = torch.from_numpy(rng.choice(5, size=(batches, draws), p=POPULARITY))
    competing = drawn != POSITIVE
    chance = torch.from_numpy(POPULARITY / (1 - POPULARITY[POSITIVE])).float()  # c_j / (T - c_pos)
    expected = competing.sum(dim=1, keepdim=True) * chance[drawn]
    negative = (scores[drawn] - expected.log()).masked_fill(~competing, -torch.inf)
    sampled_softmax(scores[POSITIVE].expand(batches), negative).mean().backward()
    return scores.grad


def test_sampled_softmax_tends_to_the_full_softmax_as_negatives_grow():
    values = [0.3, -0.2, 0.1, 0.5, -0.4]
    full = torch.softmax(torch.tensor(values), 0) - torch.eye(5)[POSITIVE]
    few, many = (
        (corrected_gradient(values, draws=draws, batches=400_000 // draws) - full).abs().max() for draws in (4, 400)
    )
    assert many < 0.01 < few


def test_its_gradient_is_that_of_the_paper_whose_weight_is_held_fixed():
    torch.manual_seed(0)
    positive, negative = torch.randn(3, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    own = torch.autograd.grad(sampled_softmax(positive, negative).sum(), (positive, negative))
    log_sum = negative.logsumexp(dim=1)
    weight = (1 - torch.sigmoid(positive - log_sum)).detach()  # 1 - p(positive)
    theirs = torch.autograd.grad((weight * (log_sum - positive)).sum(), (positive, negative))
    torch.testing.assert_close(own, theirs)


def test_a_line_without_competitors_loses_nothing_and_has_no_gradient():
    positive, negative = torch.tensor([0.5], requires_grad=True), torch.full((1, 3), -torch.inf, requires_grad=True)
    for loss in (sampled_softmax(positive, negative), bpr(positive, negative)):
        assert loss.tolist() == [0.0]
        gradients = torch.autograd.grad(loss.sum(), (positive, negative))
        assert all(not gradient.any() for gradient in gradients)


def test_chunks_change_neither_losses_nor_gradients(monkeypatch):
    torch.manual_seed(0)
    users, items = torch.randn(7, 4, requires_grad=True), torch.randn(11, 4, requires_grad=True)
    held = []

    def losses(part):
        held.append(part.stop - part.start)
        return sampled_softmax(users[part].sum(dim=1), users[part] @ items.T)

    whole = by_chunks(losses, examples=7, columns=11)
    expected = torch.autograd.grad(whole.sum(), (users, items))
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 3 * 11)
    held.clear()
    chunked = by_chunks(losses, examples=7, columns=11)
    found = torch.autograd.grad(chunked.sum(), (users, items))
    assert sorted(held) == [1, 1, 3, 3, 3, 3]  # forward, and again for the gradient
    torch.testing.assert_close((chunked, *found), (whole, *expected))


# --- pairs and single rows --------------------------------------------------------------------------------------------


def test_bpr_equals_a_naive_loop():
    positive, negative = torch.tensor([0.3, -1.0]), torch.tensor([[0.1, 2.0], [0.5, -torch.inf]])

    def loss(difference):
        return -math.log(1 / (1 + math.exp(-difference)))

    expected = [(loss(0.3 - 0.1) + loss(0.3 - 2.0)) / 2, loss(-1.0 - 0.5)]
    assert bpr(positive, negative).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.5])
def test_bce_equals_its_formula_and_gamma_makes_it_focal(gamma):
    logits, labels = torch.tensor([0.7, -1.2, 3.0]), torch.tensor([True, True, False])
    expected = []
    for logit, label in zip(logits.tolist(), labels.tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        true = p if label else 1 - p
        expected.append(-((1 - true) ** gamma) * math.log(true))
    assert bce(logits, labels, gamma=gamma).tolist() == pytest.approx(expected, rel=1e-5)


def test_focal_with_gamma_zero_is_cross_entropy_bit_for_bit():
    torch.manual_seed(0)
    logits, labels = torch.randn(100), torch.rand(100) > 0.5
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
    assert torch.equal(bce(logits, labels, gamma=0.0), plain)


def test_huber_is_half_a_square_up_to_one_and_linear_beyond_and_mse_a_square():
    predicted, targets = torch.tensor([0.5, 3.0, -1.0]), torch.tensor([0.0, 0.0, 1.0])
    assert regression(predicted, targets, error="huber").tolist() == [0.5 * 0.5**2, 3 - 0.5, 2 - 0.5]
    assert regression(predicted, targets, error="mse").tolist() == [0.25, 9.0, 4.0]
