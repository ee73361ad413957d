"""Baselines that every report contains: random, popularity, and the fitted peers, from positives before the window."""

from collections.abc import Mapping
from typing import Final

import numpy as np
import scipy.sparse
from jaxtyping import Float32, Int64

from twofold.dataset.dataset import Dataset
from twofold.evaluate.baseline_results import LeftOut, PeerTuning
from twofold.evaluate.peer_tuning import PEER_KINDS, RECENT_POPULARITY, with_recency
from twofold.evaluate.peers import Interactions, PeerScores, Recency
from twofold.evaluate.scores import ScoreBlock
from twofold.evaluate.window import SEED, EvaluationWindow

OWN_AGAIN: Final = "own items again"


def baseline_scores(
    window: EvaluationWindow,
    positives: Interactions,
    groups: Mapping[str, Int64[np.ndarray, "items"]],
    tuning: PeerTuning,
) -> tuple[dict[str, ScoreBlock], tuple[LeftOut, ...]]:
    """Returns the baselines of a report, one also per grouping of items, and those left out, with the reasons."""
    days = (tuning.constants_of(RECENT_POPULARITY) or {})["days"]
    rows: dict[str, ScoreBlock] = {
        "random": random_scores(window.num_items, seed=SEED),
        "popularity": popularity(positives),
        RECENT_POPULARITY: PeerScores(Recency(positives, int(days)), window.user_rows),
        **({OWN_AGAIN: own_again(positives, window.user_rows)} if window.includes_seen else {}),
        **{f"popularity, own {by}": popularity_of_own(positives, window.user_rows, g) for by, g in groups.items()},
    }
    left_out = []
    for kind in PEER_KINDS:
        constants, recency = (tuning.constants_of(name) for name in (kind.name, kind.name_with_recency))
        reason = kind.too_large(positives) if tuning.with_peers else "the recipe leaves it out: evaluate.brief"
        if reason is not None or constants is None:
            names = (kind.name, kind.name_with_recency)
            left_out += [LeftOut(name, reason or "it was too large for the validation window") for name in names]
            continue
        peer = kind.fit(positives, constants)
        rows[kind.name] = PeerScores(peer, window.user_rows)
        if recency is None:
            reason = "without a validation window its weight cannot be chosen"
            left_out.append(LeftOut(kind.name_with_recency, reason))
        else:
            rows[kind.name_with_recency] = PeerScores(with_recency(peer, positives, recency), window.user_rows)
    return rows, tuple(left_out)


def random_scores(num_items: int, *, seed: int = 0) -> ScoreBlock:
    """Returns uniform random scores. A user's scores depend only on the seed and on the user's index."""

    def score_block(users: slice) -> Float32[np.ndarray, "queries items"]:
        rows = [
            np.random.default_rng((seed, user)).random(num_items, np.float32) for user in range(users.start, users.stop)
        ]
        return np.stack(rows)

    return score_block


def popularity(positives: Interactions) -> ScoreBlock:
    """Returns the number of positives of each item, the same list for every user."""
    counts = _counts(positives.item_rows, positives.num_items)
    return lambda users: np.tile(counts, (users.stop - users.start, 1))


def own_again(positives: Interactions, user_rows: Int64[np.ndarray, "users"]) -> ScoreBlock:
    """Ranks the items that a user liked before by how often, then all others by popularity."""
    count = _counts(positives.item_rows, positives.num_items)
    share = count / (float(count.max(initial=0)) + 1)
    shape = (positives.num_users, positives.num_items)
    ones = np.ones(len(positives.item_rows), np.float32)
    own = scipy.sparse.csr_matrix((ones, (positives.user_rows, positives.item_rows)), shape=shape)[user_rows]
    return lambda users: np.asarray(own[users].toarray() + share, np.float32)


def popularity_of_own(
    positives: Interactions, user_rows: Int64[np.ndarray, "users"], group: Int64[np.ndarray, "items"]
) -> ScoreBlock:
    """Ranks by popularity, the items of the group that a user likes most before all others; `group` -1 is unknown.

    Ties between groups go to the lower number. Users who like nothing of a known group get plain popularity.
    """
    count = _counts(positives.item_rows, positives.num_items)
    share = count / max(float(count.max(initial=0)), 1.0)
    known = group[positives.item_rows] >= 0
    shape = (positives.num_users, int(group.max(initial=0)) + 1)
    pairs = (positives.user_rows[known], group[positives.item_rows[known]])
    likes = scipy.sparse.csr_matrix((np.ones(len(pairs[0]), np.float32), pairs), shape=shape)
    own = np.asarray(likes[user_rows].argmax(axis=1)).reshape(-1)
    own[np.diff(likes[user_rows].indptr) == 0] = -2

    def score_block(users: slice) -> Float32[np.ndarray, "queries items"]:
        return np.asarray(share + (group == own[users, None]), np.float32)

    return score_block


def _counts(item_rows: Int64[np.ndarray, "length"], num_items: int) -> Float32[np.ndarray, "items"]:
    return np.bincount(item_rows, minlength=num_items).astype(np.float32)


def positives_before(dataset: Dataset, window: EvaluationWindow, *, first_at: int | None) -> Interactions:
    """Returns the positives from which baselines may learn: all events before the window began at `first_at`.

    `None` means that users have windows of their own: then they are the events of each of the window's users before the
    request, and all events of other users. The last days are counted back from `first_at`, or from the user's request.
    """
    positives = dataset.positives
    until = np.full(len(dataset.users), np.iinfo(np.int64).max if first_at is None else first_at)
    if first_at is None:
        until[window.user_rows] = window.query_at
    owner = np.repeat(np.arange(len(dataset.users)), np.diff(positives.offsets))
    keep = np.flatnonzero(np.asarray(positives.at) < until[owner])
    return Interactions(
        user_rows=owner[keep],
        item_rows=np.asarray(positives.item_rows)[keep].astype(np.int64),
        at=np.asarray(positives.at)[keep],
        until=until,
        num_users=len(dataset.users),
        num_items=len(dataset.items),
    )
