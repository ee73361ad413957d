"""Constants of baselines are chosen on the validation window, by the report's own ranking."""

from dataclasses import replace

import numpy as np
import pytest

from tests.evaluate.test_evaluate_window import world
from twofold.evaluate import peer_tuning
from twofold.evaluate.baselines import baseline_scores
from twofold.evaluate.catalogue import evaluate_catalogue
from twofold.evaluate.peer_tuning import (
    PEER_KINDS,
    RECENT_POPULARITY,
    fixed_constants,
    tune_peers,
    with_recency,
)
from twofold.evaluate.peers import Interactions, PeerScores, Recency, fit_ease
from twofold.ragged import Ragged

DAY = 86_400_000
METRICS = ("catalogue/recall@5", "catalogue/ndcg@5")


def in_fashion(seed=0):
    """A world in which users find what was liked yesterday; all other items were liked as often in the days before.

    Who liked them yesterday likes nothing else, so that only the time tells.
    """
    window, _, before = world(seed=seed)
    fashion = np.random.default_rng(seed).permutation(60)[:6]
    relevant = np.stack([fashion[np.arange(150) % 6], fashion[(np.arange(150) + 1) % 6]], axis=1)
    keys = np.setdiff1d(np.arange(150)[:, None] * 60 + relevant, window.seen.lines * 60 + window.seen.values)
    relevant = Ragged(keys % 60, np.searchsorted(keys // 60, np.arange(151)))
    old = np.setdiff1d(np.arange(60), fashion)
    users = np.concatenate([before.user_rows, np.repeat(np.arange(50, 100), 54), np.repeat(np.arange(150, 200), 6)])
    log = Interactions(
        user_rows=users,
        item_rows=np.concatenate([before.item_rows, np.tile(old, 50), np.tile(fashion, 50)]),
        at=np.where(np.arange(len(users)) < len(users) - 300, 2 * DAY, 9 * DAY + 5),
        until=np.full(200, 10 * DAY),
        num_users=200,
        num_items=60,
    )
    return replace(window, relevant=relevant), log


@pytest.fixture(scope="module")
def tuning():
    """Returns the constants that are chosen on the world with a fashion."""
    return tune_peers(*in_fashion(), metrics=METRICS)


def best_qualities(tuning):
    """Returns the best quality of each baseline's trials, by its name."""
    return {choice.name: max(trial.quality for trial in choice.trials) for choice in tuning.choices}


def test_a_trial_has_the_values_of_the_reports_protocol(tuning):
    window, log = in_fashion()
    peers = {kind.name: kind.fit(log, tuning.constants_of(kind.name)) for kind in PEER_KINDS}
    for kind in PEER_KINDS:
        constants = tuning.constants_of(kind.name_with_recency)
        peers[kind.name_with_recency] = with_recency(peers[kind.name], log, constants)
    peers[RECENT_POPULARITY] = Recency(log, int(tuning.constants_of(RECENT_POPULARITY)["days"]))
    assert [choice.name for choice in tuning.choices][0] == RECENT_POPULARITY
    assert {choice.name for choice in tuning.choices} == peers.keys()
    for choice in tuning.choices:
        (trial,) = (trial for trial in choice.trials if trial.constants == choice.constants)
        found = evaluate_catalogue(window, PeerScores(peers[choice.name], window.user_rows))
        assert trial.recall == pytest.approx(found.mean(METRICS[0]))  # ties are broken alike
        assert trial.ndcg == pytest.approx(found.mean(METRICS[1]))


def test_the_best_of_what_was_tried_is_chosen_and_no_worse_than_the_start(tuning):
    for choice in tuning.choices:
        assert choice.note == ""
        assert len({tuple(trial.constants.values()) for trial in choice.trials}) == len(choice.trials) > 1
        (chosen,) = (trial for trial in choice.trials if trial.constants == choice.constants)
        assert chosen.quality == max(trial.quality for trial in choice.trials)
        assert chosen.quality == pytest.approx((chosen.recall * chosen.ndcg) ** 0.5)


def test_recency_is_worth_something_where_fashion_changes(tuning):
    best = best_qualities(tuning)
    for kind in PEER_KINDS:
        assert best[kind.name_with_recency] > best[kind.name] + 0.05
        (choice,) = (choice for choice in tuning.choices if choice.name == kind.name_with_recency)
        assert choice.constants["weight"] > 0
        assert choice.score_std > 0
        smallest = min(trial.constants["weight"] for trial in choice.trials)
        assert smallest == pytest.approx(round(smallest / choice.score_std, 2) * choice.score_std, rel=0.01)


@pytest.mark.slow
def test_a_season_is_found_beyond_weeks_that_tell_nothing():
    """A log in which all that users find was liked 40 days ago, all else 95 days ago, and nothing in the last weeks."""
    window, log = in_fashion()
    ago = np.where(log.at == 9 * DAY + 5, 40 * DAY, 95 * DAY)
    log = replace(log, at=200 * DAY - ago, until=np.full(200, 200 * DAY))
    season = tune_peers(window, log, metrics=METRICS)
    best = best_qualities(season)
    assert season.constants_of(RECENT_POPULARITY) == {"days": 90}
    for kind in PEER_KINDS:
        assert season.constants_of(kind.name_with_recency)["days"] == 90
        assert best[kind.name_with_recency] > best[kind.name] + 0.05


def test_a_climb_goes_on_while_it_is_better_and_says_where_the_grid_ended():
    def climb(values, start, best):
        seen = []

        def quality(value):
            seen.append(value)
            return -abs(value - best)

        return peer_tuning.climb(values, start, quality), set(seen)

    values = (1.0, 2.0, 3.0, 4.0, 5.0)
    assert climb(values, 2.0, 4.0) == (4.0, {2.0, 3.0, 4.0, 5.0})
    assert climb(values, 4.0, 2.0) == (2.0, {5.0, 4.0, 3.0, 2.0, 1.0})
    assert climb(values, 3.0, 3.0) == (3.0, {2.0, 3.0, 4.0})
    assert climb(values, 4.0, 9.0) == (5.0, {4.0, 5.0})


def test_a_constant_at_the_end_of_its_grid_is_named(tuning):
    for choice in tuning.choices:
        for kind in PEER_KINDS:
            if choice.name == kind.name:
                ends = {name for name, values in kind.grid if choice.constants[name] in (values[0], values[-1])}
                assert set(choice.at_end) == ends
                assert len(choice.at_end) == len(ends)


def test_large_logs_keep_their_constants_with_the_reason(monkeypatch):
    monkeypatch.setattr(peer_tuning, "MAX_SCORES", 60 * 40)
    large = tuple(replace(kind, too_large_to_tune=lambda log: "the log is large") for kind in PEER_KINDS)
    monkeypatch.setattr(peer_tuning, "PEER_KINDS", large)
    tuning = tune_peers(*in_fashion(), metrics=METRICS)
    assert tuning.users == 40
    for kind in large:
        (choice,) = (choice for choice in tuning.choices if choice.name == kind.name)
        assert (choice.note, choice.constants, len(choice.trials)) == ("the log is large", kind.start, 1)
        assert tuning.constants_of(kind.name_with_recency) is not None


def test_a_baseline_that_is_too_large_has_no_constants(monkeypatch):
    monkeypatch.setattr(peer_tuning, "EASE_MAX_ITEMS", 59)
    untuned = tuple(replace(kind, grid=()) for kind in PEER_KINDS)
    monkeypatch.setattr(peer_tuning, "PEER_KINDS", untuned)
    tuning = tune_peers(*in_fashion(), metrics=METRICS)
    assert tuning.constants_of("EASE") is None
    assert tuning.constants_of("EASE with recency") is None
    assert tuning.constants_of("iALS") is not None


def test_without_anything_to_find_the_constants_are_fixed():
    window, log = in_fashion()
    nothing = replace(window, relevant=Ragged(np.zeros(0, np.int64), np.zeros(151, np.int64)))
    assert tune_peers(nothing, log, metrics=METRICS) is None
    fixed = fixed_constants(METRICS)
    assert fixed.constants_of("EASE with recency") is None
    assert all(choice.note.startswith("there is no validation window") for choice in fixed.choices)
    assert fit_ease(log, **fixed.constants_of("EASE")).weights.any()


def test_a_brief_report_tunes_no_peer_and_its_report_says_so():
    window, log = in_fashion()
    tuning = tune_peers(window, log, metrics=METRICS, with_peers=False)
    assert [choice.name for choice in tuning.choices] == [RECENT_POPULARITY]
    rows, left_out = baseline_scores(window, log, {}, tuning)
    assert set(rows) == {"random", "popularity", RECENT_POPULARITY}
    assert {each.name for each in left_out} >= {"item-kNN", "EASE", "iALS", "EASE with recency"}
    assert {each.reason for each in left_out} == {"the recipe leaves it out: evaluate.brief"}
    assert [choice.name for choice in fixed_constants(METRICS, with_peers=False).choices] == [RECENT_POPULARITY]
