"""Baselines against arithmetic, dense algebra and the known numbers of the shipped log."""

import numpy as np
import pytest
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix

from twofold.errors import RequestError
from twofold.evaluate import baselines
from twofold.evaluate.baselines import (
    EASE_MAX_ITEMS,
    Interactions,
    ease,
    ials,
    item_knn,
    popularity,
    popularity_of_own,
    random_scores,
    recent_popularity,
)

DAY = 86_400_000


def positives(pairs, *, num_users, num_items, at=None):
    users, items = np.array(pairs, np.int64).reshape(-1, 2).T
    moments = np.zeros(len(users), np.int64) if at is None else np.array(at)
    return Interactions(users.copy(), items.copy(), moments, num_users, num_items)


def random_positives(seed=0, *, num_users=50, num_items=20):
    likes = np.random.default_rng(seed).random((num_users, num_items)) < 0.2
    return likes.astype(float), positives(np.argwhere(likes), num_users=num_users, num_items=num_items)


def test_random_scores_do_not_depend_on_the_block_asked_for():
    scores = random_scores(6, seed=3)
    whole = scores(slice(0, 5))
    assert (np.concatenate([scores(slice(0, 2)), scores(slice(2, 5))]) == whole).all()
    assert len(np.unique(whole)) == whole.size
    assert (random_scores(6, seed=4)(slice(0, 5)) != whole).all()


def test_popularity_counts_events():
    log = positives([(0, 1), (0, 1), (1, 1), (1, 2)], num_users=2, num_items=4)
    assert popularity(log)(slice(0, 2)).tolist() == [[0, 3, 1, 0]] * 2


def test_recent_popularity_counts_the_last_days_only():
    log = positives(
        [(0, 0), (0, 1), (0, 2), (0, 3)], num_users=1, num_items=4, at=[8 * DAY - 1, 8 * DAY, 10 * DAY - 1, 10 * DAY]
    )
    assert recent_popularity(log, end=10 * DAY, days=2)(slice(0, 1)).tolist() == [[0, 1, 1, 0]]


def test_the_scores_may_be_overwritten():
    log = positives([(0, 1), (1, 2)], num_users=2, num_items=3)
    users = np.array([0, 1])
    for scores in (popularity(log), random_scores(3), item_knn(log, users), ease(log, users)):
        before = scores(slice(0, 2)).copy()
        scores(slice(0, 2))[:] = -np.inf
        assert (scores(slice(0, 2)) == before).all()


def test_item_knn_is_the_shrunk_cosine_of_user_sets():
    likes, log = random_positives()
    both = likes.T @ likes
    count = np.diag(both)
    cosine = both / (np.sqrt(np.outer(count, count)) + 7)
    np.fill_diagonal(cosine, 0)
    users = np.array([4, 0, 9])
    scores = item_knn(log, users, shrink=7.0, neighbours=20)(slice(0, 3))
    np.testing.assert_allclose(scores, likes[users] @ cosine, atol=2e-6)


def test_item_knn_listens_to_the_nearest_only():
    likes, log = random_positives()
    both = likes.T @ likes
    count = np.diag(both)
    cosine = both / (np.sqrt(np.outer(count, count)) + 7)
    np.fill_diagonal(cosine, 0)
    users = np.arange(50)
    scores = item_knn(log, users, shrink=7.0, neighbours=3)(slice(0, 50))
    for item in range(20):
        third = np.sort(cosine[item])[-3]
        at_least = likes @ np.where(cosine[item] > third, cosine[item], 0)
        at_most = likes @ np.where(cosine[item] >= third, cosine[item], 0)
        assert (scores[:, item] >= at_least - 2e-6).all()
        assert (scores[:, item] <= at_most + 2e-6).all()


def test_a_user_without_positives_gets_the_popular_items():
    log = positives([(0, 2), (1, 2), (1, 0)], num_users=3, num_items=4)
    for scores in (item_knn(log, np.array([2])), ease(log, np.array([2])), ials(log, np.array([2]))):
        assert np.argsort(-scores(slice(0, 1))[0])[:2].tolist() == [2, 0]


def test_ease_equals_its_closed_form():
    likes, log = random_positives(1)
    inverse = np.linalg.inv(likes.T @ likes + 30 * np.eye(20))
    weights = np.eye(20) - inverse / np.diag(inverse)
    np.testing.assert_allclose(np.diag(weights), 0, atol=1e-12)
    users = np.array([7, 3])
    np.testing.assert_allclose(ease(log, users, l2=30.0)(slice(0, 2)), likes[users] @ weights, atol=5e-6)


def test_ials_equals_alternating_ridge_regressions():
    likes, log = random_positives(2)
    users = np.array([7, 3, 0])
    products = ials(log, users, seed=4)
    start = AlternatingLeastSquares(factors=64, iterations=0, random_state=4)
    start.fit(csr_matrix(likes), show_progress=False)
    confidence = np.where(likes > 0, 41.0, 1.0)
    asking, items = start.user_factors.astype(float), start.item_factors.astype(float)
    for _ in range(15):
        asking = solved(items, likes, confidence)
        items = solved(asking, likes.T, confidence.T)
    popular = 1e-6 * likes.sum(axis=0) / likes.sum(axis=0).max()
    np.testing.assert_allclose(products(slice(0, 3)), asking[users] @ items.T + popular, atol=1e-6)


def solved(other, likes, confidence):
    """Each line's vector, by its own normal equations (Hu, Koren, Volinsky 2008, equation 4)."""
    lines = []
    for liked, sure in zip(likes, confidence, strict=True):
        gram = other.T @ (sure[:, None] * other) + 300 * np.eye(other.shape[1])
        lines.append(np.linalg.solve(gram, other.T @ (sure * liked)))
    return np.array(lines)


def test_ials_refuses_a_log_that_would_take_hours(monkeypatch):
    monkeypatch.setattr(baselines, "IALS_MAX_POSITIVES", 1)
    log = positives([(0, 0), (0, 1)], num_users=1, num_items=3)
    with pytest.raises(RequestError, match=r"iALS as a baseline is limited to 1 positives, not 2. Train"):
        ials(log, np.array([0]))


def test_what_is_popular_in_the_group_that_a_user_likes_most_comes_first():
    # Items 0 and 1 are of group 0, items 2 and 3 of group 1, item 4 of none. Popularity: 1, 0, 3, 1, 2.
    log = positives([(0, 0), (1, 2), (1, 2), (1, 4), (1, 4), (2, 2), (2, 3)], num_users=4, num_items=5)
    scores = popularity_of_own(log, np.arange(4), np.array([0, 0, 1, 1, -1]))(slice(0, 4))
    own, share = np.array([[1, 1, 0, 0, 0]]), np.array([1, 0, 3, 1, 2]) / 3
    expected = [share + own[0], share + [0, 0, 1, 1, 0], share + [0, 0, 1, 1, 0], share]  # user 3 likes nothing
    np.testing.assert_allclose(scores, np.array(expected), atol=1e-6)
    alone = popularity_of_own(log, np.array([3, 0]), np.full(5, -1))
    np.testing.assert_allclose(alone(slice(1, 2)), share[None], atol=1e-6)


def test_ease_refuses_a_catalogue_it_cannot_invert():
    log = positives([(0, 0)], num_users=1, num_items=EASE_MAX_ITEMS + 1)
    with pytest.raises(RequestError, match=r"limited to 20,000 items, not 20,001\. .* compare with item-kNN"):
        ease(log, np.array([0]))


def test_repeated_likes_count_once_for_neighbours():
    once = positives([(0, 0), (0, 1), (1, 1)], num_users=2, num_items=3)
    often = positives([(0, 0), (0, 0), (0, 1), (1, 1), (1, 1)], num_users=2, num_items=3)
    users = np.array([0, 1])
    assert (item_knn(once, users)(slice(0, 2)) == item_knn(often, users)(slice(0, 2))).all()
