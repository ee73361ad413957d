"""Popular and similar items, reasons and attributes, on a bundle whose vectors are known."""

import numpy as np
import pytest

from tests.serve.tiny import EVENTS, ITEMS, VECTORS, write_run
from twofold.serve.live_bundle import LiveBundle, open_live_bundle
from twofold.serve.responses import popular, reasons, similar
from twofold.serve.user_state import user_state_of

USERS = list(EVENTS)


@pytest.fixture(scope="module")
def live_bundle(tmp_path_factory: pytest.TempPathFactory) -> LiveBundle:
    return open_live_bundle(write_run(tmp_path_factory.mktemp("runs") / "tiny"))


def names(rows: np.ndarray) -> list[str]:
    return [ITEMS[row] for row in rows if row >= 0]


def test_popular_items_are_ordered_by_recent_then_all_positives(live_bundle: LiveBundle) -> None:
    liked = [item for events in EVENTS.values() for item, _, positive in events if positive]
    best_first = popular(live_bundle, 3, allowed=np.ones(len(ITEMS), bool), excluded=np.empty(0, np.int64))
    counts = [liked.count(item) for item in names(best_first.item_rows[0])]
    assert counts == sorted((liked.count(item) for item in ITEMS), reverse=True)[:3]
    is_red = live_bundle.items.now.eligible("colour = 'red'")
    red = popular(live_bundle, 9, allowed=is_red, excluded=np.array([ITEMS.index("a")]))
    assert sorted(names(red.item_rows[0])) == ["cold", "d", "f"]
    assert red.counts.tolist() == [3]


def test_similar_items_leave_the_item_out_and_obey_the_filter(live_bundle: LiveBundle) -> None:
    # A product of OpenBLAS once warned of an invalid value here.
    alike = (VECTORS * VECTORS[0]).sum(axis=1) / np.linalg.norm(VECTORS, axis=1)
    expected = [ITEMS[row] for row in np.argsort(-alike) if row != 0]
    assert names(similar(live_bundle.items.now, 0, 9).item_rows[0]) == expected
    blue = similar(live_bundle.items.now, 0, 9, where="colour = 'blue'")
    assert names(blue.item_rows[0]) == [item for item in expected if item in "be"]


def test_a_reason_is_the_positive_most_similar_to_the_item(live_bundle: LiveBundle) -> None:
    state = user_state_of(live_bundle.bundle, USERS.index(20), ())  # liked f e d c f
    (why,) = reasons(live_bundle, state, np.array([0]))
    cosines = {row: float(VECTORS[row] @ VECTORS[0]) for row in (5, 4, 3, 2)}
    expected = sorted(cosines.items(), key=lambda pair: -pair[1])[:3]
    assert [row for row, _ in why] == [row for row, _ in expected]
    assert [cosine for _, cosine in why] == pytest.approx([cosine for _, cosine in expected], abs=1e-6)
    assert reasons(live_bundle, user_state_of(live_bundle.bundle, USERS.index(30), ()), np.array([0, 1])) == [[], []]


def test_attributes_are_the_columns_of_the_items_table(live_bundle: LiveBundle) -> None:
    first, again = (live_bundle.attributes.of(live_bundle.items.now, np.array([1, 2, 1])) for _ in range(2))
    assert [*map(bytes, first)] == [
        b'{"colour":"blue","length_s":10.0}',
        b'{"colour":null,"length_s":15.0}',
        b'{"colour":"blue","length_s":10.0}',
    ]
    assert [*map(bytes, again)] == [*map(bytes, first)]
    assert live_bundle.attributes.of(live_bundle.items.now, np.empty(0, np.int64)) == []
