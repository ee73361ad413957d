"""Log and live history are one; a stranger gets what is popular; a served vector is the judged one."""

from dataclasses import replace

import numpy as np
import pytest

from tests.serve.tiny import (
    EVENTS,
    HOUR_MS,
    ITEMS,
    NOON,
    VECTORS,
    best,
    replace_part,
    scores_of,
    write_run,
    write_tower,
)
from twofold.dataset.features import feature_names, queries_at, user_inputs
from twofold.dataset.vocabulary import UNKNOWN
from twofold.errors import RunError
from twofold.recipe.features import Features
from twofold.serve.bundle import USER_TOWER, Bundle
from twofold.serve.event_store import LiveEvent
from twofold.serve.live_bundle import LiveBundle, nearest, open_live_bundle
from twofold.serve.responses import attributes_of, popular, reasons, similar
from twofold.serve.two_stage import encode_users
from twofold.serve.user_state import UserState, queries_of, user_state_from_history, user_state_of

USERS = list(EVENTS)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> LiveBundle:
    return open_live_bundle(write_run(tmp_path_factory.mktemp("runs") / "tiny"))


def vectors_of(bundle: Bundle, askers: list[UserState]) -> np.ndarray:
    return encode_users(bundle, queries_of(bundle, askers)).vectors


def names(rows: np.ndarray) -> list[str]:
    return [ITEMS[row] for row in rows if row >= 0]


# --- who asks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [2 * HOUR_MS, 3 * HOUR_MS + 1, NOON])
def test_a_served_vector_is_the_one_that_is_judged(opened: LiveBundle, at: int) -> None:
    bundle, rows = opened.bundle, np.arange(len(USERS))
    asked = queries_at(
        bundle.features, bundle.positives, bundle.negatives, user_rows=rows, at=np.full(len(rows), at, np.int64)
    )
    judged = bundle.tower.vectors(user_inputs(bundle.features, bundle.user_arrays, asked))
    served = vectors_of(bundle, [user_state_of(bundle, row, (), at=at) for row in rows.tolist()])
    assert served.tobytes() == judged.tobytes()


def test_a_log_cut_anywhere_and_posted_from_there_gives_the_same_asker(opened: LiveBundle, tmp_path) -> None:
    """What the log lacks, but was posted, counts as if it were in the log."""
    everything = [LiveEvent(item, at, "positive" if liked else "negative") for item, at, liked in EVENTS[10]]
    bundle = opened.bundle
    whole = user_state_of(bundle, USERS.index(10), ())
    for first in range(len(everything) + 1):
        again = user_state_of(
            bundle, USERS.index(10), everything[first:]
        )  # these are in the log as well: they count once
        for part in ("positives", "negatives", "seen"):
            assert getattr(again, part).tolist() == getattr(whole, part).tolist()
    nobody = user_state_of(bundle, UNKNOWN, everything, at=whole.at)
    assert vectors_of(bundle, [nobody]).tobytes() == vectors_of(bundle, [whole]).tobytes()
    posted, unknown = user_state_from_history(bundle, ["a", "cold", "no item"], ["b"], at=whole.at)
    assert unknown == 1
    assert vectors_of(bundle, [posted]).tobytes() == vectors_of(bundle, [whole]).tobytes()


def test_when_it_was_met_is_read_alike_of_the_log_and_of_what_was_posted(opened: LiveBundle) -> None:
    user = [{"kind": "sequence", "of": of, "last": 3, "time_bias": True} for of in ("positives", "negatives")]
    features = Features.model_validate({"user": user, "item": [{"kind": "id"}]})
    bundle = replace(opened.bundle, features=opened.bundle.features.reading(features))
    everything = [LiveEvent(item, at, "positive" if liked else "negative") for item, at, liked in EVENTS[10]]
    rows, at = np.array([USERS.index(10)]), np.array([NOON])
    judged = user_inputs(
        bundle.features,
        bundle.user_arrays,
        queries_at(bundle.features, bundle.positives, bundle.negatives, user_rows=rows, at=at),
    )
    assert judged["positives_sequence.ages"].tolist() == [[11 * 3600, 0, 0]]  # the cold item is not read
    assert judged["negatives_sequence.ages"].tolist() == [[10 * 3600, 0, 0]]
    assert set(judged) == set(feature_names(bundle.features)[0])
    for user_row, first in ((USERS.index(10), 3), (USERS.index(10), 1), (UNKNOWN, 0)):
        asked = queries_of(bundle, [user_state_of(bundle, user_row, everything[first:], at=NOON)])
        served = user_inputs(bundle.features, bundle.user_arrays, asked)
        assert {name: values.tolist() for name, values in served.items()} == {
            name: values.tolist() for name, values in judged.items()
        }
    posted, _ = user_state_from_history(bundle, ["a", "b"], [], at=NOON)
    inputs = user_inputs(bundle.features, bundle.user_arrays, queries_of(bundle, [posted]))
    assert inputs["positives_sequence.ages"].tolist() == [[0, 0, 0]]  # as if met now


def test_live_events_join_the_log_by_their_moment(opened: LiveBundle) -> None:
    live = [
        LiveEvent("d", 1 * HOUR_MS + 5, "positive"),
        LiveEvent("gone", 2 * HOUR_MS, "met"),
        LiveEvent("e", NOON + 3, "met"),
    ]
    asker = user_state_of(opened.bundle, USERS.index(10), live, now=NOON)
    assert names(asker.positives) == ["a", "d", "cold"]
    assert names(asker.negatives) == ["b"]
    assert names(asker.seen) == ["a", "d", "b", "cold", "e"]
    assert asker.at == NOON + 4  # just after the last
    early = user_state_of(opened.bundle, USERS.index(10), live, at=2 * HOUR_MS)
    assert names(early.seen) == ["a", "d"]
    assert user_state_of(opened.bundle, UNKNOWN, ()).is_blank
    assert not user_state_of(opened.bundle, UNKNOWN, live).is_blank
    assert not user_state_of(opened.bundle, USERS.index(30), ()).is_blank


# --- answers ----------------------------------------------------------------------------------------------------------


def test_who_is_asked_for_is_answered_alone_as_in_a_batch(opened: LiveBundle) -> None:
    askers = [user_state_of(opened.bundle, row, ()) for row in range(len(USERS))]
    together = nearest(opened, askers, 4)
    assert names(together.item_rows[0]) == best(scores_of(["a", "cold"], ["b"]), k=4)
    for asker, rows, scores in zip(askers, together.item_rows, together.scores, strict=True):
        alone = nearest(opened, [asker], 4)
        assert alone.item_rows[0].tolist() == rows.tolist()
        assert alone.scores[0].tolist() == scores.tolist()


def test_popular_is_what_was_liked_lately_and_among_equals_ever(opened: LiveBundle) -> None:
    liked = [item for events in EVENTS.values() for item, _, positive in events if positive]
    best_first = popular(opened, 3, excluded=np.empty(0, np.int64))
    counts = [liked.count(item) for item in names(best_first.item_rows[0])]
    assert counts == sorted((liked.count(item) for item in ITEMS), reverse=True)[:3]
    is_red = opened.bundle.filters.eligible("colour = 'red'")
    red = popular(opened, 9, allowed=is_red, excluded=np.array([ITEMS.index("a")]))
    assert sorted(names(red.item_rows[0])) == ["cold", "d", "f"]
    assert red.counts.tolist() == [3]


def test_similar_items_leave_the_item_out_and_obey_the_filter(opened: LiveBundle) -> None:
    alike = VECTORS @ VECTORS[0]
    expected = [ITEMS[row] for row in np.argsort(-alike) if row != 0]
    assert names(similar(opened, 0, 9).item_rows[0]) == expected
    blue = similar(opened, 0, 9, where="colour = 'blue'")
    assert names(blue.item_rows[0]) == [item for item in expected if item in "be"]


def test_a_reason_is_the_liked_item_most_like_the_answer(opened: LiveBundle) -> None:
    asker = user_state_of(opened.bundle, USERS.index(20), ())  # liked f e d c f
    (why,) = reasons(opened, asker, np.array([0]))
    cosines = {row: float(VECTORS[row] @ VECTORS[0]) for row in (5, 4, 3, 2)}
    expected = sorted(cosines.items(), key=lambda pair: -pair[1])[:3]
    assert [row for row, _ in why] == [row for row, _ in expected]
    assert [cosine for _, cosine in why] == pytest.approx([cosine for _, cosine in expected], abs=1e-6)
    assert reasons(opened, user_state_of(opened.bundle, USERS.index(30), ()), np.array([0, 1])) == [[], []]


def test_attributes_are_those_of_the_items_table(opened: LiveBundle) -> None:
    assert attributes_of(opened, 1) == {"colour": "blue", "length_s": 10.0}


def test_a_bundle_that_opens_but_does_not_answer_is_refused(tmp_path) -> None:
    """A graph whose table has too few lines loads, and fails at the first history that reaches beyond."""
    run = write_run(tmp_path / "tiny")
    replace_part(run, USER_TOWER, lambda path: write_tower(path, hours=3))
    with pytest.raises(RunError, match=r"the bundle of .*tiny can be opened, but a trial request fails: .*Gather"):
        open_live_bundle(run)
