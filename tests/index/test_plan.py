"""The plan of a search: how many may answer decides how it is done."""

import numpy as np

from twofold.index.eligible import only_mask
from twofold.index.lists import Lists, Measured
from twofold.index.plan import DEEPER, MANY, Plan, plan_search

ITEMS = 8000
LISTS = Lists(ivf=None, measured=(Measured(128, 3, 0.995), Measured(512, 9, 0.991)), num_queries=1)


def of_share(share: float):
    return only_mask(np.arange(ITEMS) < share * ITEMS)


def test_without_a_filter_everything_is_scanned_or_as_many_lists_as_were_measured() -> None:
    assert plan_search(ITEMS, 116) == Plan("flat", 116, ITEMS)
    assert plan_search(50, 116) == Plan("flat", 50, 50)
    assert plan_search(ITEMS, 116, lists=LISTS) == Plan("lists", 116, ITEMS + 1, 3, trusts=True)
    assert plan_search(ITEMS, 129, lists=LISTS) == Plan("lists", 129, ITEMS + 1, 9, trusts=True)


def test_deeper_than_was_measured_the_search_is_exact() -> None:
    assert plan_search(ITEMS, 513, lists=LISTS) == Plan("flat", 513, ITEMS)


def test_few_are_scanned_alone_whatever_the_index() -> None:
    for lists in (None, LISTS):
        assert plan_search(ITEMS, 116, eligible=of_share(1 / 8), lists=lists) == Plan("pool", 116, 1000)
        assert plan_search(ITEMS, 116, eligible=of_share(1 / 100), lists=lists) == Plan("pool", 80, 80)
        assert plan_search(ITEMS, 116, eligible=of_share(0), lists=lists) == Plan("pool", 0, 0)


def test_a_list_that_holds_some_who_are_gone_is_asked_for_as_many_more() -> None:
    eligible = of_share(1 / 8).without(np.arange(7))
    assert plan_search(ITEMS, 116, eligible=eligible) == Plan("pool", 116 + 7, 1000)


def test_many_are_sought_as_deep_as_their_share_says() -> None:
    half = of_share(1 / 2)
    assert plan_search(ITEMS, 100, eligible=half, lists=LISTS) == Plan("lists", 225, ITEMS + 1, 9, trusts=True)
    assert 100 + DEEPER * 100 == 225
    assert plan_search(ITEMS, 100, eligible=half) == Plan("flat", 225, ITEMS, trusts=True)
    assert plan_search(ITEMS, 100, eligible=half, lines=MANY) == Plan("bitmap", 100, 4000)
    assert plan_search(ITEMS, 100, eligible=of_share(1 / 4)) == Plan("bitmap", 100, 2000)
    assert plan_search(ITEMS, 200, eligible=of_share(1 / 4), lists=LISTS) == Plan("bitmap", 200, 2000)


def test_with_care_nothing_is_taken_on_trust() -> None:
    for count in (8000, 4000, 2000):
        plan = plan_search(ITEMS, 100, eligible=of_share(count / ITEMS), careful=True)
        assert plan == Plan("bitmap", 100, count)
    assert plan_search(ITEMS, 100, careful=True) == Plan("flat", 100, ITEMS)
