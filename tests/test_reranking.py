"""Rules after ranking on small lists whose order can be found by hand, and against a search through all orders."""

from itertools import pairwise

import numpy as np
import pytest
from pydantic import ValidationError

from twofold.recipe.rerank import Rerank, without_blocked
from twofold.reranking import (
    Candidates,
    RuleColumns,
    RuleItems,
    guaranteed,
    merge_stages,
    reorder,
    with_guaranteed,
)

ITEMS = 8


def reordered(
    rules,
    *,
    creators=None,
    flags=(),
    scores=None,
    vectors=None,
    hours=None,
    num_candidates=ITEMS,
    explain=False,
    k=ITEMS,
):
    """Returns the order of items 0 to 7, whose scores fall, and what moved each of them."""
    config = Rerank.model_validate({"num_candidates": num_candidates, "rules": rules})
    codes = np.arange(ITEMS) if creators is None else np.array(creators)
    own = {text: np.isin(np.arange(ITEMS), rows) for text, rows in dict(flags).items()}
    columns = RuleColumns({"creator": codes.reshape(ITEMS, -1).astype(np.int32)}, own)
    vectors = np.eye(ITEMS, dtype=np.float32) if vectors is None else np.asarray(vectors, np.float32)
    rows = np.arange(ITEMS)[None]
    values = np.linspace(1, 0, ITEMS, dtype=np.float32)[None] if scores is None else np.array([scores], np.float32)
    hours = None if hours is None else np.array([hours], float)
    candidates = Candidates(rows, values, np.zeros((1, ITEMS), bool), ITEMS, hours)
    found = reorder(config, RuleItems(columns, lambda rows: vectors[rows]), candidates, k, explain=explain)
    return found.positions[0].tolist(), found.moved_by[0].tolist()


LIMIT = {"kind": "limit", "column": "creator", "at_most": 1, "window": 3}


def test_a_limit_holds_in_every_window_and_each_place_has_the_best_item_that_fits():
    order, _ = reordered([LIMIT], creators=[0, 0, 1, 1, 2, 2, 3, -1])
    assert order == [0, 2, 4, 1, 3, 5, 6, 7]


def test_a_limit_that_cannot_be_kept_does_not_shorten_the_list():
    order, _ = reordered([LIMIT], creators=[0, 0, 0, 0, 0, 0, 1, 1])
    assert order == [0, 6, 1, 2, 7, 3, 4, 5]


def test_every_value_of_a_list_counts_and_items_without_a_value_are_not_limited():
    tags = [[0, 1], [1, 2], [2, 3], [-1, -1], [-1, -1], [4, -1], [5, -1], [6, -1]]
    order, _ = reordered([LIMIT], creators=tags)
    assert order == [0, 2, 3, 4, 1, 5, 6, 7]


def test_a_quota_takes_the_last_places_that_it_can():
    rule = {"kind": "quota", "when": "x", "at_least": 2, "first": 4}
    assert reordered([rule], flags={"x": [5, 6]})[0] == [0, 1, 5, 6, 2, 3, 4, 7]
    assert reordered([rule], flags={"x": [0, 6]})[0] == [0, 1, 2, 6, 3, 4, 5, 7]
    assert reordered([rule], flags={"x": [7]})[0] == [0, 1, 2, 7, 3, 4, 5, 6]  # there is no second one
    assert reordered([rule], flags={"x": []})[0] == list(range(ITEMS))


def test_quotas_of_different_reach_are_both_filled():
    rules = [
        {"kind": "quota", "when": "x", "at_least": 2, "first": 3},
        {"kind": "quota", "when": "y", "at_least": 1, "first": 4},
    ]
    order, _ = reordered(rules, flags={"x": [5, 6], "y": [7]})
    assert order == [0, 5, 6, 7, 1, 2, 3, 4]


def test_a_boost_adds_a_share_of_the_range_of_the_scores_and_ties_keep_the_order():
    rule = {"kind": "boost", "when": "x", "add": 0.5}
    scores = [8, 7, 6, 5, 4, 3, 2, 0]
    assert reordered([rule], flags={"x": [4]}, scores=scores)[0] == [0, 4, 1, 2, 3, 5, 6, 7]
    assert reordered([rule], flags={"x": [4]}, scores=[8, 8, 6, 5, 4, 3, 2, 0])[0] == [0, 1, 4, 2, 3, 5, 6, 7]
    assert reordered([rule | {"add": -0.5}], flags={"x": [0]}, scores=scores)[0] == [1, 2, 3, 0, 4, 5, 6, 7]


def test_decay_lowers_what_was_met_lately_by_half_as_much_after_each_half_life():
    rule = {"kind": "decay", "subtract": 0.5, "half_life_hours": 24}
    scores, never = [8, 7, 6, 5, 4, 3, 2, 0], np.inf
    assert reordered([rule], scores=scores)[0] == list(range(ITEMS))
    assert reordered([rule], scores=scores, hours=[never] * ITEMS)[0] == list(range(ITEMS))
    for hours, place in (
        (0, 3),
        (24, 1),
        (48, 0),
        (24_000, 0),
    ):  # its score falls to 4, 6, 7 and 8; ties keep the order
        order, moved_by = reordered([rule], scores=scores, hours=[hours, *[never] * 7], explain=True)
        assert order.index(0) == place
        assert moved_by[place] == (1 if place else 0)
        assert [item for item in order if item] == list(range(1, ITEMS))
    assert reordered([rule], scores=scores, hours=[0] * ITEMS)[0] == list(range(ITEMS))


def test_decay_and_boost_are_added():
    rules = [{"kind": "decay", "subtract": 0.5, "half_life_hours": 24}, {"kind": "boost", "when": "x", "add": 0.5}]
    hours = [0, *[np.inf] * 7]
    assert reordered(rules, flags={"x": [0]}, scores=[8, 7, 6, 5, 4, 3, 2, 0], hours=hours)[0] == list(range(ITEMS))


def test_diversity_is_the_formula_of_the_paper():
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(ITEMS, 3)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = np.sort(draw.random(ITEMS))[::-1].astype(np.float32)
    worth = (scores - scores.min()) / (scores.max() - scores.min())
    chosen = [0]
    while len(chosen) < ITEMS:
        left = [row for row in range(ITEMS) if row not in chosen]
        chosen.append(
            max(left, key=lambda row: 0.6 * worth[row] - 0.4 * max(unit[row] @ unit[other] for other in chosen))
        )
    assert reordered([{"kind": "mmr", "trade_off": 0.4}], scores=scores, vectors=vectors)[0] == chosen
    assert chosen != list(range(ITEMS))


def test_a_pin_keeps_its_item_for_its_place_and_comes_before_limits():
    pin = {"kind": "pin", "item": "a", "place": 3}
    flags = {"item_id IN ('a')": [0]}
    assert reordered([pin], flags=flags)[0] == [1, 2, 0, 3, 4, 5, 6, 7]
    assert reordered([pin, LIMIT], flags=flags, creators=[0, 0, 1, 2, 3, 4, 5, 6])[0][2] == 0
    assert reordered([pin], flags=flags, k=2)[0] == [1, 2]
    assert reordered([pin], flags={"item_id IN ('a')": []})[0] == list(range(ITEMS))


def test_a_pin_by_condition_and_a_quota_leave_a_pinned_item_its_place():
    pins = [{"kind": "pin", "item": "a", "place": 5}, {"kind": "pin", "when": "x", "place": 2}]
    flags = {"item_id IN ('a')": [3]}
    assert reordered(pins, flags=flags | {"x": [3, 6]})[0] == [0, 6, 1, 2, 3, 4, 5, 7]
    assert reordered(pins, flags=flags | {"x": [3]})[0] == [0, 1, 2, 4, 3, 5, 6, 7]
    quota = {"kind": "quota", "when": "x", "at_least": 2, "first": 3}
    rules = Rerank.model_validate({"rules": [*pins, quota, {**quota, "when": "y", "first": 6}]}).rules
    assert dict(guaranteed(rules)) == {"item_id IN ('a')": 1, "x": 2 + 3, "y": 2}


def test_only_the_first_candidates_are_reordered():
    rule = {"kind": "boost", "when": "x", "add": 5}
    assert reordered([rule], flags={"x": [3, 7]}, num_candidates=5)[0] == [3, 0, 1, 2, 4, 5, 6, 7]


def test_what_moved_an_item_is_named():
    rules = [LIMIT, {"kind": "pin", "item": "a", "place": 2}]
    order, moved_by = reordered(rules, creators=[0, 0, 1, 2, 3, 4, 5, 6], flags={"item_id IN ('a')": [7]}, explain=True)
    assert order == [0, 7, 2, 1, 3, 4, 5, 6]
    assert moved_by == [0, 2, 0, 1, 0, 0, 0, 0]
    assert not any(reordered(rules, flags={"item_id IN ('a')": [7]})[1])


def test_items_found_for_a_quota_are_candidates_once():
    found = with_guaranteed(
        np.array([[4, 2, -1]]),
        np.array([[2, 1, -np.inf]], np.float32),
        [(np.array([[2, 9]]), np.zeros((1, 2), np.float32)), (np.array([[9, -1]]), np.zeros((1, 2), np.float32))],
    )
    assert found.item_rows.tolist() == [[4, 2, -1, -1, 9, -1, -1]]
    assert found.is_guaranteed.tolist() == [[False, True, False, False, True, False, False]]
    assert found.num_ranked == 3


def test_scores_fall_from_the_candidates_of_the_ranker_to_the_items_after_them():
    draw = np.random.default_rng(0)
    retrieved = -np.sort(-draw.random((500, 20), np.float32), axis=1)
    rows = np.tile(np.arange(20), (500, 1))
    ranked = draw.normal(scale=8, size=(500, 12)).astype(np.float32)
    found = Candidates(rows, retrieved, np.zeros(rows.shape, bool), 20)
    merged, positions = merge_stages(found, ranked, num_items=20)
    assert (np.diff(merged.scores) <= 0).all()
    np.testing.assert_array_equal(merged.item_rows, np.take_along_axis(rows, positions, axis=1))
    expected = ranked.min(axis=1, keepdims=True) - (retrieved[:, 11:12] - retrieved[:, 12:])
    np.testing.assert_allclose(merged.scores[:, 12:], expected, atol=1e-5)
    other_source = retrieved.copy()
    other_source[:, 11] = -1  # a candidate that the retriever ranks below the items after it
    merged, _ = merge_stages(Candidates(rows, other_source, found.is_guaranteed, 20), ranked, num_items=20)
    assert (np.diff(merged.scores) <= 0).all()


def test_random_lists_obey_limit_and_quota_and_lose_no_item():
    draw = np.random.default_rng(1)
    rules = [LIMIT, {"kind": "quota", "when": "x", "at_least": 2, "first": 4}]
    for _ in range(100):
        creators, marked = draw.integers(0, 6, ITEMS), draw.choice(ITEMS, 3, replace=False)
        order, _ = reordered(rules, creators=creators, flags={"x": marked})
        assert sorted(order) == list(range(ITEMS))
        assert len(set(order[:4]) & set(marked.tolist())) >= 2
        for number, (one, other) in enumerate(pairwise(order)):
            left = [
                row
                for row in order[number + 1 :]
                if creators[row] not in creators[order[max(0, number - 1) : number + 1]]
            ]
            is_forced = number + 1 < 4 and other in marked
            assert creators[one] != creators[other] or not left or is_forced


BAD = [
    ([{**LIMIT, "at_most": 3}], "at_most is 3 and window is 3: no window holds more"),
    ([{"kind": "quota", "when": "x", "at_least": 3, "first": 2}], "at_least is 3 and first is 2: so many items"),
    ([{"kind": "boost", "when": "x", "add": 0}], "add is 0, which changes nothing"),
    ([{"kind": "pin", "place": 1}], "a pin has either item, an id, or when"),
    ([{"kind": "block", "items": [1], "when": "x"}], "a block has either items, a list of ids, or when"),
    ([{"kind": "pin", "item": each, "place": 2} for each in (1, 2)], "2 items are pinned at place 2"),
    ([{"kind": "pin", "item": 1, "place": 2}, {"kind": "block", "items": [1]}], "item 1 is pinned and blocked"),
    ([LIMIT, LIMIT], "`at most 1 of one creator in 3` is there 2 times"),
    ([{"kind": "mmr", "trade_off": each} for each in (0.1, 0.2)], "there are two of kind mmr"),
    ([{**LIMIT, "window": 300}], "rules.0: window is 300, and num_candidates is 200"),
    ([{"kind": "boost", "when": "x >", "add": 1}], "It is not one SQL expression"),
    (
        [
            {"kind": "quota", "when": "x", "at_least": 2, "first": 3},
            {"kind": "quota", "when": "y", "at_least": 1, "first": 3},
            {"kind": "pin", "item": 1, "place": 1},
        ],
        "the quotas of the first 3 places need 3 of them and 1 of pins, and there are 3",
    ),
]


@pytest.mark.parametrize(("rules", "message"), BAD)
def test_rules_that_cannot_be_kept_or_change_nothing_are_refused(rules, message):
    with pytest.raises(ValidationError, match=message):
        Rerank.model_validate({"rules": rules})


def test_blocked_items_are_left_out_of_the_condition_for_every_item():
    rules = Rerank.model_validate(
        {"rules": [{"kind": "block", "items": ["a", 2]}, {"kind": "block", "when": "ad"}]}
    ).rules
    both = "NOT ((item_id IN ('a', '2')) IS TRUE) AND NOT ((ad) IS TRUE)"
    assert without_blocked(None, rules) == both
    assert without_blocked("x > 1", rules) == f"(x > 1) AND {both}"
    assert without_blocked("x > 1", ()) == "x > 1"
