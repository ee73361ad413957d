"""The impressions protocol: the order of the items that each user was shown in the window."""

import numpy as np
from jaxtyping import Int64

from twofold.evaluate.metrics import best_metrics, chance_metrics, impression_metrics, pooled_auc
from twofold.evaluate.scores import ScoreBlock
from twofold.evaluate.window import EvaluationWindow, PerUser, scores_of_lists
from twofold.topk import tie_order


def evaluate_impressions(window: EvaluationWindow, score_block: ScoreBlock) -> PerUser:
    """Evaluates the order of each user's own impressions. Users with a single class are skipped and counted."""
    flat = scores_of_lists(window, score_block, window.candidates)
    ties = tie_order(window.num_items)[0][window.candidates.values]
    values = impression_metrics(flat, window.labels, ties=ties, offsets=window.candidates.offsets)
    positives, sizes = _positives(window), window.candidates.sizes
    skipped = {
        "no positive impression": int((positives == 0).sum()),
        "no negative impression": int(((positives == sizes) & (positives > 0)).sum()),
    }
    return PerUser(
        {f"impressions/{name}": value for name, value in values.items()},
        evaluated=len(sizes) - sum(skipped.values()),
        skipped=skipped,
        pooled={"impressions/auc_pooled": pooled_auc(flat, window.labels)},
    )


def bounds_of_impressions(window: EvaluationWindow) -> tuple[PerUser, PerUser]:
    """Returns the expected metrics of a random order and those of a perfect order, on users with both classes."""
    positives, sizes = _positives(window), window.candidates.sizes
    evaluated = int(((positives > 0) & (positives < sizes)).sum())
    chance, best = chance_metrics(sizes, positives), best_metrics(sizes, positives)
    return (
        PerUser({f"impressions/{name}": value for name, value in chance.items()}, evaluated, {}),
        PerUser({f"impressions/{name}": value for name, value in best.items()}, evaluated, {}),
    )


def _positives(window: EvaluationWindow) -> Int64[np.ndarray, "users"]:
    return np.bincount(window.candidates.lines, weights=window.labels, minlength=len(window.user_rows)).astype(np.int64)
