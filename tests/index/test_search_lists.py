"""Search by IVF lists: recall, filters, exclusions and ties; and the plan, which decides when lists are used."""

import numpy as np
import pyarrow as pa
import pytest

from tests.index.oracle import language_vectors, ragged, score_everything
from twofold.index.filters import Filters
from twofold.index.item_index import Index, build_index
from twofold.index.item_mask import ItemMask, from_mask
from twofold.index.ivf import CalibrationPoint, IvfIndex
from twofold.index.search import DEPTH_FACTOR, Plan, first_allowed, plan_search, search
from twofold.ragged import Ragged
from twofold.topk import tie_order

ITEMS = 8000
ITEM_VECTORS, ITEM_LANGUAGE = language_vectors(ITEMS, seed=0)
QUERIES, _ = language_vectors(60, seed=1)


@pytest.fixture(scope="module")
def listed() -> Index:
    return build_index(ITEM_VECTORS, queries=language_vectors(100, seed=2)[0], max_flat=1000)


def recall(index: Index, k: int, mask: np.ndarray | None = None) -> tuple[float, bool]:
    found = search(index, QUERIES, k, allowed=mask)
    expected = score_everything(index, QUERIES, k, allowed=mask)
    assert found.counts.tolist() == expected.counts.tolist()  # never short
    right = (found.item_rows[:, :, None] == expected.item_rows[:, None]) & (found.item_rows >= 0)[:, :, None]
    return float(right.any(axis=1).sum() / max(found.counts.sum(), 1)), found.is_exact


def test_up_to_a_size_every_result_is_exact_and_above_it_is_marked_as_approximate(listed: Index) -> None:
    assert build_index(ITEM_VECTORS[:1000], max_flat=1000).ivf is None
    found, is_exact = recall(listed, 50)
    assert found >= 0.99
    assert not is_exact
    assert all(each["recall"] >= 0.99 for each in listed.facts["lists"]["measured"])
    assert listed.facts["lists"]["queries"] == 100 + 512


@pytest.mark.parametrize("share", [0.9, 0.5, 0.2, 0.05, 0.005, 0.0])
def test_a_filter_of_any_share_gets_its_results(listed: Index, share: float) -> None:
    mask = np.random.default_rng(3).random(ITEMS) < share
    found, is_exact = recall(listed, 30, mask)
    assert found >= 0.99 or share == 0
    assert is_exact or share > 1 / 8


@pytest.mark.parametrize("number", [1, 3, 8])
def test_a_filter_that_is_correlated_with_the_query_gets_its_results(listed: Index, number: int) -> None:
    mask = np.isin(ITEM_LANGUAGE, np.arange(number))
    found, _ = recall(listed, 30, mask)
    assert found >= 0.99


def test_a_filter_made_against_the_query_gets_its_results(listed: Index) -> None:
    # Half of all items, but none of the query's nearest 2,000: lists that look full would be wrong.
    far = np.argsort(-(ITEM_VECTORS @ QUERIES[0]))[2000:6000]
    mask = np.isin(np.arange(ITEMS), far)
    found = search(listed, QUERIES[:1], 30, allowed=mask)
    expected = score_everything(listed, QUERIES[:1], 30, allowed=mask)
    assert found.item_rows.tolist() == expected.item_rows.tolist()
    assert found.is_exact


def test_results_longer_than_the_calibrated_depths_are_exact(listed: Index) -> None:
    found = search(listed, QUERIES, 3000)
    assert found.is_exact
    assert found.item_rows.tolist() == score_everything(listed, QUERIES, 3000).item_rows.tolist()


def test_exclusions_hold_in_lists_too_and_the_next_best_follow(listed: Index) -> None:
    best = score_everything(listed, QUERIES, 60).item_rows
    excluded = ragged([row[:30].tolist() for row in best])
    found = search(listed, QUERIES, 30, excluded=excluded)
    assert np.mean([len(np.intersect1d(*pair)) / 30 for pair in zip(found.item_rows, best[:, 30:], strict=True)]) > 0.99
    alone = search(listed, QUERIES[:1], 30, excluded=ragged([best[0, :30].tolist()]))
    assert alone.item_rows.tolist() == found.item_rows[:1].tolist()


def test_equal_items_are_not_ranked_in_the_order_of_the_lists() -> None:
    index = build_index(np.tile(np.float32([1, 0]), (3000, 1)), max_flat=100)
    _, row_of_rank = tie_order(3000)
    found = search(index, np.float32([[1, 0]]), 5)
    assert found.item_rows.tolist() == [row_of_rank[::-1][:5].tolist()]
    assert found.is_exact


def test_a_query_has_the_same_result_alone_and_in_a_batch(listed: Index) -> None:
    mask = ITEM_LANGUAGE != 3
    together = search(listed, QUERIES, 20, allowed=mask)
    for row in range(0, 60, 7):
        alone = search(listed, QUERIES[[row]], 20, allowed=mask)
        assert alone.item_rows.tolist() == together.item_rows[[row]].tolist()
        assert alone.scores.tolist() == together.scores[[row]].tolist()


# --- cached filters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5, 60])
def test_a_cached_filter_has_the_results_of_its_mask(listed: Index, count: int) -> None:
    filters = Filters(pa.table({"language": ITEM_LANGUAGE}), listed.vectors)
    for text, mask in (("language = 3", ITEM_LANGUAGE == 3), ("language < 5", ITEM_LANGUAGE < 5)):
        kept = search(listed, QUERIES[:count], 20, allowed=filters.eligible(text))
        assert kept.item_rows.tolist() == search(listed, QUERIES[:count], 20, allowed=mask).item_rows.tolist()
        fewer = filters.eligible(text).without_rows(kept.item_rows[0, :10])
        mask = mask & ~np.isin(np.arange(ITEMS), kept.item_rows[0, :10])
        assert search(listed, QUERIES[:count], 20, allowed=fewer).item_rows.tolist() == (
            search(listed, QUERIES[:count], 20, allowed=from_mask(mask)).item_rows.tolist()
        )


# --- the plan ---------------------------------------------------------------------------------------------------------

IVF = IvfIndex(None, (CalibrationPoint(128, 3, 0.995), CalibrationPoint(512, 9, 0.991)), num_queries=1)


def of_share(share: float) -> ItemMask:
    return from_mask(np.arange(ITEMS) < share * ITEMS)


def test_without_a_filter_the_plan_is_all_or_the_calibrated_lists() -> None:
    assert plan_search(ITEMS, 116) == Plan("all")
    assert plan_search(ITEMS, 116, ivf=IVF) == Plan("lists", 116, 3)
    assert plan_search(ITEMS, 129, ivf=IVF) == Plan("lists", 129, 9)


def test_beyond_the_calibrated_depths_the_plan_is_exact() -> None:
    assert plan_search(ITEMS, 513, ivf=IVF) == Plan("all")


def test_few_allowed_items_are_scored_alone() -> None:
    for ivf in (None, IVF):
        for share in (1 / 8, 1 / 100, 0):
            assert plan_search(ITEMS, 116, allowed=of_share(share), ivf=ivf) == Plan("pool")
        assert plan_search(ITEMS, 116, allowed=of_share(1 / 8).without_rows(np.arange(7)), ivf=ivf) == Plan("pool")


def test_the_depth_grows_as_the_allowed_share_falls() -> None:
    half = of_share(1 / 2)
    assert plan_search(ITEMS, 100, allowed=half, ivf=IVF) == Plan("lists", 225, 9)
    assert 100 + DEPTH_FACTOR * 100 == 225
    assert plan_search(ITEMS, 100, allowed=half) == Plan("all")
    assert plan_search(ITEMS, 200, allowed=of_share(1 / 4), ivf=IVF) == Plan("all")


# --- candidates that are left -----------------------------------------------------------------------------------------


def test_the_first_candidates_that_are_not_excluded_stay_in_their_order() -> None:
    candidates = np.array([[3, 1, 0, 2], [2, 3, 1, 0]])
    scores = np.float32([[9, 8, 7, 6], [5, 4, 3, 2]])
    excluded = Ragged(np.array([1, 2, 3, 0]), np.array([0, 1, 4]))
    floor, kept = first_allowed(scores, candidates, excluded, count=2, items=4)
    assert kept.tolist() == [[3, 0], [1, -1]]
    assert floor.tolist() == [7, -np.inf]  # the first query cut item 2 off; the second has no more


def test_each_query_of_a_long_batch_skips_its_own_exclusions() -> None:
    queries, items = 200, 7
    candidates = np.tile(np.arange(items), (queries, 1))
    own = np.arange(queries) % items
    excluded = Ragged(own, np.arange(queries + 1))
    _, kept = first_allowed(candidates[:, ::-1].astype(np.float32), candidates, excluded, count=6, items=items)
    assert kept.tolist() == [[item for item in range(items) if item != excluded_item] for excluded_item in own]
