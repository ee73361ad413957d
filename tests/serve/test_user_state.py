"""User states merge the log and live events, and give the vectors that are evaluated."""

from dataclasses import replace

import numpy as np
import pytest

from tests.serve.tiny import (
    EVENTS,
    HOUR_MS,
    ITEMS,
    NOON,
    write_run,
)
from twofold.dataset.features import feature_names
from twofold.dataset.tower_inputs import queries_at, user_inputs
from twofold.dataset.vocabulary import UNKNOWN
from twofold.recipe.features import Features
from twofold.serve.bundle import Bundle
from twofold.serve.event_store import LiveEvent
from twofold.serve.live_bundle import LiveBundle, open_live_bundle
from twofold.serve.two_stage import encode_users
from twofold.serve.user_state import UserState, queries_of, user_state_from_history, user_state_of

USERS = list(EVENTS)


@pytest.fixture(scope="module")
def live_bundle(tmp_path_factory: pytest.TempPathFactory) -> LiveBundle:
    return open_live_bundle(write_run(tmp_path_factory.mktemp("runs") / "tiny"))


def vectors_of(bundle: Bundle, states: list[UserState]) -> np.ndarray:
    return encode_users(bundle, queries_of(bundle, states)).vectors


def names(rows: np.ndarray) -> list[str]:
    return [ITEMS[row] for row in rows if row >= 0]


@pytest.mark.parametrize("at", [2 * HOUR_MS, 3 * HOUR_MS + 1, NOON])
def test_a_served_vector_is_the_one_that_is_evaluated(live_bundle: LiveBundle, at: int) -> None:
    bundle, rows = live_bundle.bundle, np.arange(len(USERS))
    queries = queries_at(
        bundle.features, bundle.positives, bundle.negatives, user_rows=rows, at=np.full(len(rows), at, np.int64)
    )
    evaluated = bundle.tower.vectors(user_inputs(bundle.features, bundle.user_arrays, queries))
    served = vectors_of(bundle, [user_state_of(bundle, row, (), at=at) for row in rows.tolist()])
    assert served.tobytes() == evaluated.tobytes()


def test_a_log_cut_anywhere_and_posted_from_there_gives_the_same_state(live_bundle: LiveBundle, tmp_path) -> None:
    """Posted events that the log lacks count as if they were in the log."""
    events = [LiveEvent(item, at, "positive" if liked else "negative") for item, at, liked in EVENTS[10]]
    bundle = live_bundle.bundle
    whole = user_state_of(bundle, USERS.index(10), ())
    for first in range(len(events) + 1):
        again = user_state_of(bundle, USERS.index(10), events[first:])  # events that are in the log as well count once
        for part in ("positives", "negatives", "seen"):
            assert getattr(again, part).tolist() == getattr(whole, part).tolist()
    unknown_user = user_state_of(bundle, UNKNOWN, events, at=whole.at)
    assert vectors_of(bundle, [unknown_user]).tobytes() == vectors_of(bundle, [whole]).tobytes()
    posted, unknown = user_state_from_history(bundle, ["a", "cold", "no item"], ["b"], at=whole.at)
    assert unknown == 1
    assert vectors_of(bundle, [posted]).tobytes() == vectors_of(bundle, [whole]).tobytes()


def test_ages_are_the_same_for_events_of_the_log_and_posted_events(live_bundle: LiveBundle) -> None:
    user = [{"kind": "sequence", "max_length": 3, "time_bias": True}]
    features = Features.model_validate({"user": user, "item": [{"kind": "id"}]})
    bundle = replace(live_bundle.bundle, features=live_bundle.bundle.features.with_features(features))
    events = [LiveEvent(item, at, "positive" if liked else "negative") for item, at, liked in EVENTS[10]]
    rows, at = np.array([USERS.index(10)]), np.array([NOON])
    evaluated = user_inputs(
        bundle.features,
        bundle.user_arrays,
        queries_at(bundle.features, bundle.positives, bundle.negatives, user_rows=rows, at=at),
    )
    assert evaluated["positives_sequence.ages"].tolist() == [[11 * 3600, 0, 0]]  # the cold item is not read
    assert set(evaluated) == set(feature_names(bundle.features)[0])
    for user_row, first in ((USERS.index(10), 3), (USERS.index(10), 1), (UNKNOWN, 0)):
        queries = queries_of(bundle, [user_state_of(bundle, user_row, events[first:], at=NOON)])
        served = user_inputs(bundle.features, bundle.user_arrays, queries)
        assert {name: values.tolist() for name, values in served.items()} == {
            name: values.tolist() for name, values in evaluated.items()
        }
    posted, _ = user_state_from_history(bundle, ["a", "b"], [], at=NOON)
    inputs = user_inputs(bundle.features, bundle.user_arrays, queries_of(bundle, [posted]))
    assert inputs["positives_sequence.ages"].tolist() == [[0, 0, 0]]  # as if seen now


def test_live_events_are_merged_into_the_log_by_timestamp(live_bundle: LiveBundle) -> None:
    live = [
        LiveEvent("d", 1 * HOUR_MS + 5, "positive"),
        LiveEvent("gone", 2 * HOUR_MS, "met"),
        LiveEvent("e", NOON + 3, "met"),
    ]
    state = user_state_of(live_bundle.bundle, USERS.index(10), live, now=NOON)
    assert names(state.positives) == ["a", "d", "cold"]
    assert names(state.negatives) == ["b"]
    assert names(state.seen) == ["a", "d", "b", "cold", "e"]
    assert state.at == NOON + 4  # just after the last
    early = user_state_of(live_bundle.bundle, USERS.index(10), live, at=2 * HOUR_MS)
    assert names(early.seen) == ["a", "d"]
    assert user_state_of(live_bundle.bundle, UNKNOWN, ()).is_blank
    assert not user_state_of(live_bundle.bundle, UNKNOWN, live).is_blank
    assert not user_state_of(live_bundle.bundle, USERS.index(30), ()).is_blank
