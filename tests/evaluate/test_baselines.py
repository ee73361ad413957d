"""Baselines against arithmetic, dense algebra and the library."""

import numpy as np
import pytest
from scipy.sparse import issparse

from twofold.errors import RequestError
from twofold.evaluate import peers
from twofold.evaluate.baselines import popularity, popularity_of_own, random_scores
from twofold.evaluate.peers import (
    EASE_MAX_ITEMS,
    Interactions,
    PeerScores,
    Recency,
    WithRecency,
    fit_ease,
    fit_ials,
    fit_item_knn,
)

DAY = 86_400_000


def positives(pairs, *, num_users, num_items, at=None, until=None):
    users, items = np.array(pairs, np.int64).reshape(-1, 2).T
    times = np.zeros(len(users), np.int64) if at is None else np.array(at)
    until = np.zeros(num_users, np.int64) if until is None else np.array(until)
    return Interactions(users.copy(), items.copy(), times, until, num_users, num_items)


def random_positives(seed=0, *, num_users=50, num_items=20):
    likes = np.random.default_rng(seed).random((num_users, num_items)) < 0.2
    return likes.astype(float), positives(np.argwhere(likes), num_users=num_users, num_items=num_items)


def random_times(seed=0, *, events=400, num_users=9, num_items=7):
    """Events in 20 days, and a request of each user in them."""
    rng = np.random.default_rng(seed)
    pairs = np.stack([rng.integers(num_users, size=events), rng.integers(num_items, size=events)], axis=1)
    at, until = rng.integers(20 * DAY, size=events), rng.integers(20 * DAY, size=num_users)
    return positives(pairs, num_users=num_users, num_items=num_items, at=at, until=until)


def test_random_scores_do_not_depend_on_the_block_asked_for():
    scores = random_scores(6, seed=3)
    whole = scores(slice(0, 5))
    assert (np.concatenate([scores(slice(0, 2)), scores(slice(2, 5))]) == whole).all()
    assert len(np.unique(whole)) == whole.size
    assert (random_scores(6, seed=4)(slice(0, 5)) != whole).all()


def test_popularity_counts_events():
    log = positives([(0, 1), (0, 1), (1, 1), (1, 2)], num_users=2, num_items=4)
    assert popularity(log)(slice(0, 2)).tolist() == [[0, 3, 1, 0]] * 2


def test_recency_counts_the_last_days_before_a_request_only():
    log = positives(
        [(0, 0), (0, 1), (0, 1), (0, 2), (0, 3)],
        num_users=1,
        num_items=4,
        at=[8 * DAY - 1, 8 * DAY, 9 * DAY, 10 * DAY - 1, 10 * DAY],
        until=[10 * DAY],
    )
    np.testing.assert_allclose(Recency(log, 2).scores(np.array([0])), np.log([[1, 3, 2, 1]]), rtol=1e-6)


def test_recency_is_as_of_each_users_own_request():
    log = random_times()
    users = np.array([3, 0, 8, 3, 5])
    expected = np.zeros((5, 7))
    for row, user in enumerate(users):
        for item, at in zip(log.item_rows, log.at, strict=True):
            expected[row, item] += log.until[user] - 3 * DAY <= at < log.until[user]
    recency = Recency(log, 3)
    assert len(np.unique(expected[:, 0])) > 1
    np.testing.assert_allclose(recency.scores(users), np.log1p(expected), rtol=1e-6)
    assert recency.scores(np.zeros(0, np.int64)).shape == (0, 7)


def test_pairs_have_the_scores_of_the_block(monkeypatch):
    monkeypatch.setattr(peers, "_CHUNK_LIKES", 30)  # several chunks
    log = random_times(1)
    users, items = np.array([2, 2, 7, 0, 8, 5]), np.array([0, 6, 3, 3, 1, 2])
    fitted = [fit_item_knn(log, neighbors=3), fit_ease(log, l2=5.0), fit_ials(log, dim=4, regularization=1.0)]
    for peer in (*fitted, Recency(log, 2), *(WithRecency(each, Recency(log, 2), 0.3) for each in fitted)):
        np.testing.assert_allclose(peer.pair_scores(users, items), peer.scores(users)[np.arange(6), items], atol=1e-6)
    window = PeerScores(fitted[0], np.array([7, 2]))
    assert (window(slice(1, 2)) == fitted[0].scores(np.array([2]))).all()
    np.testing.assert_allclose(
        window.pairs(np.array([1, 0]), np.array([6, 3])), fitted[0].pair_scores(np.array([2, 7]), np.array([6, 3]))
    )


def test_a_recency_prior_adds_its_weight_times_the_logarithm():
    log = random_times(2)
    users = np.arange(9)
    alone, recency = fit_item_knn(log), Recency(log, 4)
    expected = alone.scores(users) + 0.07 * recency.scores(users)
    np.testing.assert_allclose(WithRecency(alone, recency, 0.07).scores(users), expected, rtol=1e-5)


def test_the_scores_may_be_overwritten():
    log = positives([(0, 1), (1, 2)], num_users=2, num_items=3)
    users = np.array([0, 1])
    peers = (fit_item_knn(log), fit_ease(log), fit_ials(log, dim=4), Recency(log, 2))
    for scores in (popularity(log), random_scores(3), *(PeerScores(peer, users) for peer in peers)):
        before = scores(slice(0, 2)).copy()
        scores(slice(0, 2))[:] = -np.inf
        assert (scores(slice(0, 2)) == before).all()


def over_root(likes):
    """Divides each user's likes by the root of their number."""
    return likes / np.sqrt(np.maximum(likes.sum(axis=1, keepdims=True), 1))


def test_item_knn_is_the_shrunk_cosine_of_user_sets():
    likes, log = random_positives()
    both = likes.T @ likes
    count = np.diag(both)
    cosine = both / (np.sqrt(np.outer(count, count)) + 7)
    np.fill_diagonal(cosine, 0)
    users = np.array([4, 0, 9])
    scores = fit_item_knn(log, shrink=7.0, neighbors=20).scores(users)
    np.testing.assert_allclose(scores, over_root(likes[users]) @ cosine, atol=2e-6)


@pytest.mark.parametrize("chunk", [1, 2**24])
def test_item_knn_damps_active_users_and_popular_items_liked_ones_more(chunk, monkeypatch):
    monkeypatch.setattr(peers, "CHUNK_ELEMENTS", chunk)
    likes, log = random_positives()
    sizes = likes.sum(axis=1)
    weights = np.maximum(sizes, 1.0) ** -0.75 * (sizes > 0)
    weights /= (weights * sizes).sum() / sizes.sum()  # the mean over all positives is 1
    both = likes.T @ (weights[:, None] * likes)
    count = likes.sum(axis=0)
    near = both / (np.outer(count**0.5, count**0.1) + 7)  # liked items × scored items
    np.fill_diagonal(near, 0)
    users = np.array([4, 0, 9])
    fitted = fit_item_knn(log, shrink=7.0, neighbors=20, activity=0.75, popularity=0.3, asymmetry=0.2)
    scores = fitted.scores(users)
    np.testing.assert_allclose(scores, over_root(likes[users]) @ near, atol=2e-6)


def test_item_knn_listens_to_the_nearest_only():
    likes, log = random_positives()
    both = likes.T @ likes
    count = np.diag(both)
    cosine = both / (np.sqrt(np.outer(count, count)) + 7)
    np.fill_diagonal(cosine, 0)
    users = np.arange(50)
    scores = fit_item_knn(log, shrink=7.0, neighbors=3).scores(users)
    for item in range(20):
        third = np.sort(cosine[item])[-3]
        at_least = over_root(likes) @ np.where(cosine[item] > third, cosine[item], 0)
        at_most = over_root(likes) @ np.where(cosine[item] >= third, cosine[item], 0)
        assert (scores[:, item] >= at_least - 2e-6).all()
        assert (scores[:, item] <= at_most + 2e-6).all()


def test_a_user_without_positives_gets_the_popular_items():
    log = positives([(0, 2), (1, 2), (1, 0)], num_users=3, num_items=4)
    for peer in (fit_item_knn(log), fit_ease(log), fit_ials(log)):
        assert np.argsort(-peer.scores(np.array([2]))[0])[:2].tolist() == [2, 0]


def test_ease_equals_its_closed_form():
    likes, log = random_positives(1)
    inverse = np.linalg.inv(likes.T @ likes + 30 * np.eye(20))
    weights = np.eye(20) - inverse / np.diag(inverse)
    np.testing.assert_allclose(np.diag(weights), 0, atol=1e-12)
    users = np.array([7, 3])
    np.testing.assert_allclose(fit_ease(log, l2=30.0).scores(users), over_root(likes[users]) @ weights, atol=5e-6)


def test_ease_of_items_without_a_positive_is_0():
    log = positives([(0, 1), (0, 3), (1, 1)], num_users=2, num_items=5)
    weights = fit_ease(log, l2=1.0).weights
    assert not issparse(weights)
    assert (weights != 0).tolist() == [[{row, column} == {1, 3} for column in range(5)] for row in range(5)]
    assert not fit_ease(positives([], num_users=2, num_items=5)).weights.any()


def test_ials_reaches_the_loss_of_alternating_ridge_regressions():
    likes, log = random_positives(2)
    fitted = fit_ials(log, dim=8, alpha=10.0, regularization=2.0, iterations=30)
    confidence = np.where(likes > 0, 11.0, 1.0)
    users, items = (each.astype(float) for each in (fitted.factors.user_vectors, fitted.factors.item_vectors))

    def loss(users, items):
        errors = confidence * (likes - users @ items.T) ** 2
        return errors.sum() + 2 * ((users**2).sum() + (items**2).sum())

    exact_users, exact_items = users, items
    for _ in range(30):
        exact_users = solved(exact_items, likes, confidence)
        exact_items = solved(exact_users, likes.T, confidence.T)
    assert loss(users, items) == pytest.approx(loss(exact_users, exact_items), rel=0.01)
    assert loss(users, items) < 0.7 * loss(0 * users, 0 * items)
    popular = 1e-6 * likes.sum(axis=0) / likes.sum(axis=0).max()
    np.testing.assert_allclose(fitted.scores(np.array([7, 3])), users[[7, 3]] @ items.T + popular, atol=1e-6)


def solved(other, likes, confidence):
    """Each row's vector, by its own normal equations (Hu, Koren, Volinsky 2008, equation 4)."""
    rows = []
    for liked, sure in zip(likes, confidence, strict=True):
        gram = other.T @ (sure[:, None] * other) + 2 * np.eye(other.shape[1])
        rows.append(np.linalg.solve(gram, other.T @ (sure * liked)))
    return np.array(rows)


def test_ials_refuses_a_log_that_would_take_hours(monkeypatch):
    monkeypatch.setattr(peers, "IALS_MAX_POSITIVES", 1)
    log = positives([(0, 0), (0, 1)], num_users=1, num_items=3)
    with pytest.raises(RequestError, match=r"iALS as a baseline is limited to 1 positives, not 2. Train"):
        fit_ials(log)


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
        fit_ease(log)


def test_repeated_likes_count_once_for_neighbors():
    once = positives([(0, 0), (0, 1), (1, 1)], num_users=2, num_items=3)
    often = positives([(0, 0), (0, 0), (0, 1), (1, 1), (1, 1)], num_users=2, num_items=3)
    users = np.array([0, 1])
    assert (fit_item_knn(once).scores(users) == fit_item_knn(often).scores(users)).all()
