"""The order of each user's own impressions, user by user."""

import numpy as np
import pytest

from tests.evaluate.windows import lines, random_scores, random_window, scorer, window
from twofold.evaluate import window as window_module
from twofold.evaluate.impressions import bounds_of_impressions, evaluate_impressions
from twofold.evaluate.metrics import impression_metrics
from twofold.topk import tie_order


@pytest.mark.parametrize("ties", [False, True])
def test_impressions_are_judged_on_the_users_own_list(ties, monkeypatch):
    judged = random_window(1)
    scores = random_scores(judged, ties=ties)
    monkeypatch.setattr(window_module, "CHUNK_ELEMENTS", 7 * judged.num_items)
    per_user = evaluate_impressions(judged, scorer(scores))
    labels = np.split(judged.labels, judged.candidates.offsets[1:-1])
    rank, _ = tie_order(judged.num_items)
    for user, (shown, label) in enumerate(zip(lines(judged.candidates), labels, strict=True)):
        alone = impression_metrics(scores[user, shown], label, ties=rank[shown], offsets=np.array([0, len(shown)]))
        for name, value in alone.items():
            np.testing.assert_allclose(per_user.values[f"impressions/{name}"][user], value[0], err_msg=name)


def test_single_class_users_are_skipped_and_counted_by_kind():
    judged = window(
        seen=[[], [], []],
        relevant=[[0], [], [0, 1]],
        candidates=[[0, 1], [0, 1], [0, 1]],
        num_items=2,
    )
    per_user = evaluate_impressions(judged, scorer(np.array([[1, 0]] * 3, np.float32)))
    assert per_user.evaluated == 1
    assert per_user.skipped == {"no positive impression": 1, "no negative impression": 1}
    assert per_user.mean("impressions/auc") == 1
    # Positives score 1, 1, 0 and the other impressions 0, 1, 0: single-class users count in the pool.
    assert per_user.pooled["impressions/auc_pooled"] == pytest.approx(2 * (1 + 0.5 + 1) / 9 + (0.5 + 0 + 0.5) / 9)
    chance, best = bounds_of_impressions(judged)
    assert (chance.evaluated, chance.mean("impressions/auc"), best.mean("impressions/mrr")) == (1, 0.5, 1)
