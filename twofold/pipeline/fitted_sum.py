"""Weights with which the scores of several models are added, fitted on the users of a window.

The weights are those of a conditional logit (McFadden, 1974): a user chooses their relevant items among all items that
one of the models would list, with the probabilities of a softmax over the weighted sums of scores. The loss is convex
and has as many unknowns as there are models, so that a few hundred users suffice. Stacked regressions (Breiman, 1996)
fit weights of models in the same way, on data that the models were not fitted on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Float64, Int64

from twofold.evaluate.window import CHUNK_ELEMENTS, EvaluationWindow, users_to_judge
from twofold.ragged import chunks
from twofold.topk import Products, exclude, top_k

LISTED: Final = 100
"""Number of best items of each model among which a user chooses."""
MOST_NUMBERS: Final = 2**24
"""Largest number of scores in memory, 128 MB; further users are left out by chance."""
LEAST_LOSS: Final = 0.002
"""Least rise of the loss, in nats a user, for which a model stays in the sum: each costs time in every request."""
PENALTY: Final = 1e-3
"""Factor of squared weights in the loss, in units of the scores' deviations; divides a weight among equal models. Half
over the number of users is added, which makes it a standard normal prior: without it, 151 users of MovieLens-100K gave
large weights of opposite signs, which were 3 % worse a window later (docs/log.md, 30 November 2026).
"""
STEPS: Final = 30  # of Newton's method, which takes four to eight
_ENOUGH: Final = 1e-8  # fall of the loss below which the search ends


@dataclass(frozen=True)
class Choices:
    """Listed items of users, those of a user adjacent, and which of them are relevant."""

    scores: Float64[np.ndarray, "pairs _"]
    starts: Int64[np.ndarray, "users"]
    """Place of each user's first item."""
    chosen: Float64[np.ndarray, "pairs"]
    """One over the number of the user's relevant items if the item is relevant, else 0."""

    def of(self, models: Sequence[int]) -> "Choices":
        """Returns the same choices with the scores of some models, by their numbers."""
        return replace(self, scores=self.scores[:, models])


def choices_of(window: EvaluationWindow, models: Sequence[Products]) -> Choices:
    """Returns the items that any of the models lists, for users for whom a relevant item is among them."""
    most = MOST_NUMBERS // (LISTED * len(models) ** 2)
    users = users_to_judge(window, most_scores=max(1, most) * window.num_items)
    size = max(1, CHUNK_ELEMENTS // (window.num_items * len(models)))
    parts = [_choices(window, models, users[part]) for part in chunks(len(users), size)]
    sizes = np.array([len(part.chosen) for part in parts], np.int64)
    before = np.cumsum(sizes) - sizes
    return Choices(
        np.concatenate([np.empty((0, len(models))), *(part.scores for part in parts)]),
        np.concatenate([np.empty(0, np.int64), *(part.starts + n for part, n in zip(parts, before, strict=True))]),
        np.concatenate([np.empty(0), *(part.chosen for part in parts)]),
    )


def fit_weights(choices: Choices) -> tuple[Float64[np.ndarray, "_"], float]:
    """Returns the factor of each model's scores in the sum, and the loss, in nats a user. Without users all are 0."""
    weights = np.zeros(choices.scores.shape[1])
    if not len(choices.starts):
        return weights, 0.0
    units = np.maximum(choices.scores.std(axis=0), 1e-12)
    scaled = replace(choices, scores=choices.scores / units)
    loss, gradient, curvature = _loss(scaled, weights)
    for _ in range(STEPS):
        step, factor = np.linalg.solve(curvature, gradient), 1.0
        after = _loss(scaled, weights - step)
        while after[0] > loss and factor > _ENOUGH:
            factor /= 2
            after = _loss(scaled, weights - factor * step)
        fall = loss - after[0]
        if fall > 0:
            weights, (loss, gradient, curvature) = weights - factor * step, after
        if fall <= _ENOUGH:
            break
    return weights / units, loss


def without_idle_models(choices: Choices) -> list[int]:
    """Returns the numbers of the models that stay in the sum, at least one.

    The least useful one is left out, again and again, as long as the loss without it is hardly larger than with it: by
    less than `LEAST_LOSS`, or, of few users, by what one more weight gains by chance (Akaike, 1974).
    """
    kept, loss = list(range(choices.scores.shape[1])), fit_weights(choices)[1]
    least = max(LEAST_LOSS, 1 / max(len(choices.starts), 1))
    while len(kept) > 1:
        tried = [[each for each in kept if each != out] for out in kept]
        losses = [fit_weights(choices.of(rest))[1] for rest in tried]
        if min(losses) > loss + least:
            break
        kept, loss = tried[int(np.argmin(losses))], min(losses)
    return kept


def _choices(window: EvaluationWindow, models: Sequence[Products], users: Int64[np.ndarray, "_"]) -> Choices:
    seen, relevant, found = window.seen.of(users), window.relevant.of(users), [model(users) for model in models]
    listed = np.zeros(found[0].shape, bool)
    for scores in found:
        allowed = scores.copy()
        exclude(allowed, seen)
        best = top_k(allowed, min(LISTED, window.num_items))
        listed[np.repeat(np.arange(len(users)), best.counts), best.item_rows[best.item_rows >= 0]] = True
    chosen = np.zeros(listed.shape)
    chosen[relevant.lines, relevant.values] = (1 / relevant.sizes)[relevant.lines]
    listed[~np.any(listed & (chosen > 0), axis=1)] = False
    user, item = np.nonzero(listed)
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    return Choices(np.stack([scores[user, item] for scores in found], axis=1).astype(float), starts, chosen[user, item])


def _loss(
    choices: Choices, weights: Float64[np.ndarray, "_"]
) -> tuple[float, Float64[np.ndarray, "_"], Float64[np.ndarray, "_ _"]]:
    """Returns the mean negative log-likelihood of a user's choices with the penalty, its gradient and its Hessian."""
    starts, sizes = choices.starts, np.diff(choices.starts, append=len(choices.chosen))
    sums = choices.scores @ weights
    sums -= np.repeat(np.maximum.reduceat(sums, starts), sizes)
    odds = np.exp(sums)
    totals = np.add.reduceat(odds, starts)
    odds /= np.repeat(totals, sizes)
    share = np.add.reduceat(choices.chosen, starts)  # of the relevant items that are listed
    weighted = (odds * np.repeat(share, sizes))[:, None] * choices.scores
    means = np.add.reduceat(weighted, starts, axis=0)
    users, identity = len(starts), np.eye(len(weights))
    penalty = PENALTY + 0.5 / users
    loss = (share @ np.log(totals) - choices.chosen @ sums) / users + penalty * weights @ weights
    gradient = (means.sum(axis=0) - choices.chosen @ choices.scores) / users + 2 * penalty * weights
    covariance = choices.scores.T @ weighted - means.T @ (means / share[:, None])
    return float(loss), gradient, covariance / users + 2 * penalty * identity
