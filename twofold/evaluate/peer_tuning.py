"""Choice of the constants of the fitted baselines on the validation window.

A baseline with constants from another data set is not one that deserves to be beaten. Each constant climbs along a
small grid, one at a time: from a start value to a neighbor as long as the neighbor is better. *Better* is the geometric
mean of the two headline metrics, so neither is bought with the other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from jaxtyping import Float32, Int64

from twofold.evaluate.baseline_results import Constants, PeerChoice, PeerTuning, Trial
from twofold.evaluate.metrics import metrics_of_ranks
from twofold.evaluate.peers import (
    EASE_MAX_ITEMS,
    IALS_MAX_POSITIVES,
    Interactions,
    Peer,
    Recency,
    WithRecency,
    fit_ease,
    fit_ials,
    fit_item_knn,
)
from twofold.evaluate.window import EvaluationWindow, users_to_judge
from twofold.ragged import Ragged, chunks
from twofold.topk import NOT_ALLOWED, tie_order

Grid = tuple[tuple[str, tuple[float, ...]], ...]
"""Names and values of constants, in the order in which they are chosen; a name may come again."""

RECENT_POPULARITY: Final = "popularity of the last days"
MAX_SCORES: Final = 2**25  # scores of validation users × items: 128 MiB; users beyond are left out by chance
CHUNK_USERS: Final = 256
KNN_TUNING_MAX_ITEMS: Final = 100_000
EASE_TUNING_MAX_ITEMS: Final = 10_000
IALS_TUNING_MAX_POSITIVES: Final = 2_000_000
_DAYS: Final = (1.0, 2.0, 3.0, 7.0, 14.0, 30.0, 90.0)
_START_DAYS: Final = 2.0  # where there is no validation window
_PENALTIES: Final = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
_SHRINKS: Final = (0.0, 3.0, 10.0, 30.0, 100.0)
_WEIGHTS: Final = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # in standard deviations of the peer's scores
_START_WEIGHT: Final = 0.5


@dataclass(frozen=True)
class PeerKind:
    """A baseline with constants: how it is fitted, which values are tried, and for which logs."""

    name: str
    fit: Callable[[Interactions, Constants], Peer]
    start: Constants
    grid: Grid
    too_large: Callable[[Interactions], str | None]
    """Reason why this log is too large for the baseline; `None` if it is not."""
    too_large_to_tune: Callable[[Interactions], str | None]

    @property
    def name_with_recency(self) -> str:
        """Name of the row with the recency prior."""
        return f"{self.name} with recency"


def _more_items(limit: int) -> Callable[[Interactions], str | None]:
    return lambda log: f"the catalogue has more than {limit:,} items" if log.num_items > limit else None


def _more_positives(limit: int) -> Callable[[Interactions], str | None]:
    return lambda log: f"the log has more than {limit:,} positives" if len(log.user_rows) > limit else None


PEER_KINDS: Final = (
    PeerKind(
        name="item-kNN",
        fit=lambda log, at: fit_item_knn(
            log,
            shrink=at["shrink"],
            neighbors=int(at["neighbors"]),
            activity=at["activity"],
            popularity=at["popularity"],
            asymmetry=at["asymmetry"],
        ),
        start={"shrink": 10.0, "neighbors": 500.0, "activity": 0.0, "popularity": 0.5, "asymmetry": 0.0},
        grid=(
            ("shrink", _SHRINKS),
            ("activity", (0.0, 0.25, 0.5, 0.75, 1.0)),
            ("popularity", (0.1, 0.2, 0.3, 0.4, 0.5)),
            ("shrink", _SHRINKS),
            ("asymmetry", (0.0, 0.1, 0.2, 0.3)),
            ("shrink", _SHRINKS),
            ("neighbors", (20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)),
        ),
        too_large=lambda log: None,
        too_large_to_tune=_more_items(KNN_TUNING_MAX_ITEMS),
    ),
    PeerKind(
        name="EASE",
        fit=lambda log, at: fit_ease(log, l2=at["l2"]),
        start={"l2": 500.0},
        grid=(("l2", (10.0, 30.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 10_000.0)),),
        too_large=lambda log: (
            f"its cost is cubic in the number of items, so it is limited to {EASE_MAX_ITEMS:,} items"
            if log.num_items > EASE_MAX_ITEMS
            else None
        ),
        too_large_to_tune=_more_items(EASE_TUNING_MAX_ITEMS),
    ),
    PeerKind(
        name="iALS",
        fit=lambda log, at: fit_ials(
            log, dim=int(at["dim"]), alpha=at["alpha"], regularization=at["regularization"], power=at["frequency_power"]
        ),
        start={"dim": 128.0, "alpha": 40.0, "regularization": 300.0, "frequency_power": 0.0},
        grid=(
            ("regularization", _PENALTIES),
            ("frequency_power", (0.0, 0.5, 1.0)),
            ("regularization", _PENALTIES),
            ("alpha", (5.0, 10.0, 20.0, 40.0, 80.0)),
            ("dim", (32.0, 64.0, 128.0, 256.0)),
        ),
        too_large=lambda log: (
            f"as a baseline it is limited to {IALS_MAX_POSITIVES:,} positives"
            if len(log.user_rows) > IALS_MAX_POSITIVES
            else None
        ),
        too_large_to_tune=_more_positives(IALS_TUNING_MAX_POSITIVES),
    ),
)


@dataclass(frozen=True)
class _Questions:
    """The validation users who have something to find."""

    user_rows: Int64[np.ndarray, "users"]
    seen: Ragged
    relevant: Ragged
    num_items: int
    metrics: tuple[str, str]

    def trial(
        self, constants: Constants, score_block: Callable[[slice], Float32[np.ndarray, "queries items"]]
    ) -> Trial:
        """Ranks every unseen item for every user, exactly, with the tie rule of the report."""
        ranks = np.concatenate([self._ranks(users, score_block(users)) for users in self.chunks()])
        names = [metric.partition("/")[2] for metric in self.metrics]
        user = self.relevant.lines
        order = np.lexsort((ranks, user))
        sizes = self.relevant.sizes.astype(np.int64)
        values = metrics_of_ranks(user[order], ranks[order], sizes, ks=[int(name.partition("@")[2]) for name in names])
        recall, ndcg = (float(values[name].mean()) for name in names)
        return Trial(dict(constants), recall, ndcg)

    def chunks(self) -> list[slice]:
        return chunks(len(self.user_rows), CHUNK_USERS)

    def _ranks(self, users: slice, scores: Float32[np.ndarray, "queries items"]) -> Int64[np.ndarray, "pairs"]:
        seen, relevant = self.seen.part(users), self.relevant.part(users)
        scores[seen.lines, seen.values] = NOT_ALLOWED
        own = scores[relevant.lines, relevant.values]
        rows, ties = scores[relevant.lines], tie_order(self.num_items)[0]
        ranks: Int64[np.ndarray, "pairs"] = 1 + np.count_nonzero(rows > own[:, None], axis=1)
        pair, item = np.nonzero(rows == own[:, None])
        before = ties[item] > ties[relevant.values[pair]]
        return ranks + np.bincount(pair, before, minlength=len(ranks)).astype(np.int64)


def tune_peers(
    window: EvaluationWindow, positives: Interactions, *, metrics: tuple[str, str], with_peers: bool = True
) -> PeerTuning | None:
    """Chooses the constants of every fitted baseline on one window, from the positives before it.

    `metrics` are the two that decide, such as catalogue/recall@100 and catalogue/ndcg@10. Without `with_peers` only the
    days of recent popularity are chosen. `None` if no user of the window has an unseen positive.
    """
    users = users_to_judge(window, most_scores=MAX_SCORES)
    if not len(users):
        return None
    questions = _Questions(
        window.user_rows[users], window.seen.of(users), window.relevant.of(users), window.num_items, metrics
    )
    recency: dict[float, Float32[np.ndarray, "users items"]] = {}

    def recency_scores(days: float) -> Float32[np.ndarray, "users items"]:
        if days not in recency:
            recency.clear()  # one at a time in memory
            recency[days] = _scores(Recency(positives, int(days)), questions)
        return recency[days]

    choices = [_choose_days(questions, recency_scores)]
    days = choices[0].constants["days"]
    for kind in PEER_KINDS if with_peers else ():
        if kind.too_large(positives) is None:
            choices += _choose(kind, questions, positives, recency_scores, days)
    return PeerTuning(window.name, len(users), metrics, tuple(choices), with_peers)


def fixed_constants(metrics: tuple[str, str], *, with_peers: bool = True) -> PeerTuning:
    """Returns start values for a report without a validation window; no baseline then has a recency prior."""
    note = "there is no validation window with a relevant item"
    choices = [PeerChoice(RECENT_POPULARITY, {"days": _START_DAYS}, (), note=note)]
    choices += [PeerChoice(kind.name, dict(kind.start), (), note=note) for kind in PEER_KINDS if with_peers]
    return PeerTuning("", 0, metrics, tuple(choices), with_peers)


def _choose_days(
    questions: _Questions, recency_scores: Callable[[float], Float32[np.ndarray, "users items"]]
) -> PeerChoice:
    """Chooses the days of recent popularity among all: between a week and the season of a film there may be a dip."""

    def evaluate(constants: Constants) -> Trial:
        scores = recency_scores(constants["days"])
        return questions.trial(constants, lambda users: scores[users].copy())

    return _search(RECENT_POPULARITY, [{"days": days} for days in _DAYS], (("days", _DAYS),), evaluate)


def _choose(
    kind: PeerKind,
    questions: _Questions,
    positives: Interactions,
    recency_scores: Callable[[float], Float32[np.ndarray, "users items"]],
    popular_days: float,
) -> list[PeerChoice]:
    """Chooses the constants of one baseline alone, then those of its recency prior.

    The days of the prior are sought from two and from `popular_days` on, those that recent popularity has chosen: what
    was liked yesterday and what was liked this season may both help, and between them there may be a dip.
    """
    best: list[tuple[float, Float32[np.ndarray, "users items"]]] = []

    def evaluate(constants: Constants) -> Trial:
        scores = _scores(kind.fit(positives, constants), questions)
        trial = questions.trial(constants, lambda users: scores[users].copy())
        if not best or trial.quality > best[0][0]:
            best[:] = [(trial.quality, scores)]
        return trial

    note = kind.too_large_to_tune(positives)
    alone = _search(kind.name, [kind.start], kind.grid if note is None else (), evaluate, note=note or "")
    scores = best[0][1]
    std = float(scores.std()) or 1.0

    def evaluate_recency(constants: Constants) -> Trial:
        recent, weight = recency_scores(constants["days"]), np.float32(constants["weight"])
        return questions.trial(constants, lambda users: scores[users] + weight * recent[users])

    weights = {factor: float(f"{factor * std:.3g}") for factor in _WEIGHTS}
    grid = (("weight", tuple(weights.values())), ("days", _DAYS), ("weight", tuple(weights.values())))
    starts = [{"days": days, "weight": weights[_START_WEIGHT]} for days in (_START_DAYS, popular_days)]
    return [alone, _search(kind.name_with_recency, starts, grid, evaluate_recency, score_std=std)]


def _search(
    name: str,
    starts: Sequence[Constants],
    grid: Grid,
    evaluate: Callable[[Constants], Trial],
    *,
    score_std: float | None = None,
    note: str = "",
) -> PeerChoice:
    """Climbs from each start along the grid of each constant in turn; a choice of constants is evaluated once."""
    trials: dict[tuple[float, ...], Trial] = {}

    def quality(constants: Constants) -> float:
        key = tuple(constants.values())
        if key not in trials:
            trials[key] = evaluate(constants)
        return trials[key].quality

    def quality_with(chosen: Constants, constant: str, value: float) -> float:
        return quality({**chosen, constant: value})

    def reached_from(start: Constants) -> dict[str, float]:
        chosen = dict(start)
        quality(chosen)
        for constant, values in grid:
            chosen[constant] = climb(values, chosen[constant], partial(quality_with, chosen, constant))
        return chosen

    chosen = max(map(reached_from, starts), key=quality)
    ends = {constant: (values[0], values[-1]) for constant, values in grid}
    at_end = tuple(constant for constant in ends if chosen[constant] in ends[constant])
    return PeerChoice(name, chosen, tuple(trials.values()), at_end, score_std, note)


def climb(values: tuple[float, ...], start: float, quality: Callable[[float], float]) -> float:
    """Returns the value reached from `start` by steps to a better neighbor, upwards first, in one direction."""
    at = first = values.index(start)
    for step in (1, -1):
        while 0 <= at + step < len(values) and quality(values[at + step]) > quality(values[at]):
            at += step
        if at != first:
            break
    return values[at]


def _scores(peer: Peer, questions: _Questions) -> Float32[np.ndarray, "users items"]:
    scores = np.empty((len(questions.user_rows), questions.num_items), np.float32)
    for users in questions.chunks():
        scores[users] = peer.scores(questions.user_rows[users])
    return scores


def with_recency(peer: Peer, positives: Interactions, constants: Constants) -> WithRecency:
    """Returns the peer with its recency prior."""
    return WithRecency(peer, Recency(positives, int(constants["days"])), constants["weight"])
