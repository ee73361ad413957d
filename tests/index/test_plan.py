"""The plan of a search: how many may answer decides how it is done."""

import numpy as np

from twofold.index.item_mask import from_mask
from twofold.index.ivf import IvfIndex, Measured
from twofold.index.plan import DEEPER, Plan, plan_search

ITEMS = 8000
LISTS = IvfIndex(ivf=None, measured=(Measured(128, 3, 0.995), Measured(512, 9, 0.991)), num_queries=1)


def of_share(share: float):
    return from_mask(np.arange(ITEMS) < share * ITEMS)


def test_without_a_filter_everything_is_scored_or_as_many_lists_as_were_measured() -> None:
    assert plan_search(ITEMS, 116) == Plan("all")
    assert plan_search(ITEMS, 116, lists=LISTS) == Plan("lists", 116, 3)
    assert plan_search(ITEMS, 129, lists=LISTS) == Plan("lists", 129, 9)


def test_deeper_than_was_measured_the_search_is_exact() -> None:
    assert plan_search(ITEMS, 513, lists=LISTS) == Plan("all")


def test_few_are_scored_alone_whatever_the_index() -> None:
    for lists in (None, LISTS):
        for share in (1 / 8, 1 / 100, 0):
            assert plan_search(ITEMS, 116, eligible=of_share(share), lists=lists) == Plan("pool")
        assert plan_search(ITEMS, 116, eligible=of_share(1 / 8).without(np.arange(7)), lists=lists) == Plan("pool")


def test_many_are_sought_as_deep_as_their_share_says() -> None:
    half = of_share(1 / 2)
    assert plan_search(ITEMS, 100, eligible=half, lists=LISTS) == Plan("lists", 225, 9)
    assert 100 + DEEPER * 100 == 225
    assert plan_search(ITEMS, 100, eligible=half) == Plan("all")
    assert plan_search(ITEMS, 200, eligible=of_share(1 / 4), lists=LISTS) == Plan("all")
