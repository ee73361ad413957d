"""Influence of the history, on a tower whose vector is a sum: that of an item is its product with the answer."""

from pathlib import Path

import numpy as np
import pytest

from tests.serve.client import Client
from tests.serve.tiny import HOUR_VECTORS, ITEMS, NOON, VECTORS
from twofold.serve.leave_one_out import scores_without
from twofold.serve.live_bundle import open_live_bundle
from twofold.serve.user_state import user_state_of

ROWS = np.arange(len(ITEMS))


def test_a_positive_carries_its_product_and_a_negative_the_opposite(run: Path) -> None:
    live_bundle = open_live_bundle(run)
    bundle, items = live_bundle.bundle, live_bundle.items.now
    state = user_state_of(bundle, bundle.users.row_of(10), (), at=NOON)
    left_out, scores = scores_without(bundle, items, state, ROWS)
    assert [ITEMS[row] for row in left_out] == ["cold", "b", "a"]  # newest first; a was liked, b was not
    whole = HOUR_VECTORS[13] + VECTORS[0] - VECTORS[1]
    np.testing.assert_allclose(scores[0], VECTORS @ whole, atol=1e-5)
    change = scores[0] - scores[1:]
    np.testing.assert_allclose(change[0], 0, atol=1e-6)  # the tower does not read the cold item
    np.testing.assert_allclose(change[1], -(VECTORS @ VECTORS[1]), atol=1e-5)
    np.testing.assert_allclose(change[2], VECTORS @ VECTORS[0], atol=1e-5)


def test_all_events_of_a_repeated_item_are_left_out_at_once(run: Path) -> None:
    bundle = open_live_bundle(run).bundle
    live_bundle = open_live_bundle(run)
    state = user_state_of(bundle, bundle.users.row_of(20), (), at=NOON)  # f, e, d, c, f: the tower reads four
    left_out, scores = scores_without(bundle, live_bundle.items.now, state, ROWS)
    assert [ITEMS[row] for row in left_out] == ["f", "c", "d", "e"]
    without_f = HOUR_VECTORS[13] + VECTORS[2] + VECTORS[3] + VECTORS[4]
    np.testing.assert_allclose(scores[1], VECTORS @ without_f, atol=1e-5)


def test_the_route_names_the_items_that_carry_most(client: Client) -> None:
    status, found = client.post(
        "/v1/explain", {"history": ["a", "f"], "negatives": ["b"], "item_ids": ["c", "d"], "context": {"at": NOON}}
    )
    assert (status, found["left_out"]) == (200, 3)
    for explained in found["items"]:
        vector = VECTORS[ITEMS.index(explained["item_id"])]
        products = {"a": vector @ VECTORS[0], "f": vector @ VECTORS[5], "b": -(vector @ VECTORS[1])}
        expected = sorted(((id_, p) for id_, p in products.items() if p > 0), key=lambda pair: -pair[1])
        assert [each["item_id"] for each in explained["carried_by"]] == [id_ for id_, _ in expected]
        assert [each["change"] for each in explained["carried_by"]] == pytest.approx([p for _, p in expected], abs=1e-5)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"user_id": 10, "item_ids": ["zz"]}, "item_ids names 'zz': no item of the catalogue has it."),
        ({"item_ids": ["a"]}, "Exactly one of user_id and history is required."),
    ],
)
def test_a_wrong_request_gets_one_message(client: Client, body: object, message: str) -> None:
    status, problem = client.post("/v1/explain", body)
    assert (status, problem["detail"]) == (422, message)
