"""Windows and scores for tests of the evaluation."""

import numpy as np

from twofold.evaluate.window import EvaluationWindow
from twofold.ragged import Ragged
from twofold.topk import tie_order


def ragged(lists):
    offsets = np.cumsum([0] + [len(each) for each in lists])
    return Ragged(np.concatenate([np.asarray(each, np.int64) for each in [*lists, []]]), offsets)


def window(*, seen, relevant, candidates=None, positives=None, num_items, name="test"):
    """A window in which user u has the given lists; candidates default to the relevant items."""
    candidates = relevant if candidates is None else candidates
    positives = relevant if positives is None else positives
    labels = [np.isin(shown, liked) for shown, liked in zip(candidates, positives, strict=True)]
    return EvaluationWindow(
        name=name,
        user_rows=np.arange(len(seen)) + 100,
        query_at=np.zeros(len(seen), np.int64),
        seen=ragged(seen),
        relevant=ragged(relevant),
        candidates=ragged(candidates),
        labels=np.concatenate([*labels, np.zeros(0, bool)]),
        num_items=num_items,
        is_cold=np.zeros(num_items, bool),
        track="time_free",
    )


def random_window(seed, *, users=40, num_items=30):
    """Users with some, one or no relevant items, and impressions of one or both classes."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(num_items) for _ in range(users)]
    cuts = rng.integers(0, 6, users)
    return window(
        seen=[order[:5] for order in orders],
        relevant=[order[5 : 5 + cut] for order, cut in zip(orders, cuts, strict=True)],
        candidates=[order[3 : 5 + cut + 4] for order, cut in zip(orders, cuts, strict=True)],
        num_items=num_items,
    )


def scorer(scores):
    """A model whose answers are written down; every call hands out a copy, which may be overwritten."""
    return lambda users: scores[users].copy()


def random_scores(judged, seed=0, *, ties=False):
    scores = np.random.default_rng(seed).random((len(judged.user_rows), judged.num_items)).astype(np.float32)
    return np.round(scores, 1) if ties else scores


def ranked_items(scores, excluded):
    """Item rows, best first; equal scores by the tie rule."""
    rank, _ = tie_order(len(scores))
    allowed = np.setdiff1d(np.arange(len(scores)), excluded)
    return sorted(allowed.tolist(), key=lambda item: (-scores[item], -rank[item]))


def lines(lists):
    return np.split(lists.values, lists.offsets[1:-1])
