import numpy as np

from twofold.train.negatives import log_in_batch_probability


def test_q_is_the_share_of_the_rows_that_batches_are_made_of():
    q = np.exp(log_in_batch_probability(np.array([2, 2, 0, 2]), 4))
    np.testing.assert_allclose(q, [0.25, 0.0, 0.75, 0.0])


def test_q_of_the_tail_is_not_clipped():
    rows = np.concatenate([np.zeros(3_000_000, np.int64), [1]])
    np.testing.assert_allclose(log_in_batch_probability(rows, 2)[1], np.log(1 / 3_000_001), rtol=1e-6)
