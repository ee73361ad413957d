import math

import numpy as np
import torch

from twofold.model.losses import collisions, in_batch_softmax


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
