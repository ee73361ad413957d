"""Who may answer: bits that say what a mask says, counted, and filters that are compiled once."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofold.errors import RequestError
from twofold.index import item_mask as module
from twofold.index.item_mask import FEW, MOST_SPARE, Filters, ItemMask, from_mask, from_rows, full_mask

LANGUAGES = np.array(["hi", "ta", "te", "bn"])
ITEMS = 2000
ATTRIBUTES = pa.table({"language": LANGUAGES[np.arange(ITEMS) % 4], "age_days": np.arange(ITEMS)})
VECTORS = np.random.default_rng(0).standard_normal((ITEMS, 3), np.float32)


def rows_of(eligible: ItemMask) -> list[int]:
    return [int(row) for row in np.flatnonzero(eligible.mask)]


@given(seed=st.integers(0, 10**6), items=st.integers(0, 70), share=st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_bits_and_counts_are_those_of_the_sets_they_stand_for(seed: int, items: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    one, other = (rng.random(items) < share for _ in range(2))
    left, right = from_mask(one), from_mask(other)
    for found, expected in (
        (left, one),
        (left.both(right), one & other),
        (left.minus(right), one & ~other),
        (left.without(np.flatnonzero(other)), one & ~other),
        (from_rows(np.flatnonzero(one), items=items), one),
        (full_mask(items), np.ones(items, bool)),
    ):
        assert found.mask.tolist() == expected.tolist()
        assert found.count == expected.sum()
        assert found.holds(np.arange(items)).tolist() == expected.tolist()
        assert not found.holds(np.array([[-1]])).any()
        if found.pool is None:
            assert found.count > items * FEW
        else:
            assert set(np.flatnonzero(expected)) <= set(found.pool.rows)


def test_few_rows_are_listed_and_keep_their_list_until_too_many_of_them_are_gone() -> None:
    few = from_rows(np.arange(0, ITEMS, 10), items=ITEMS * 2)
    assert few.pool is not None
    assert few.pool.rows.tolist() == list(range(0, ITEMS, 10))
    assert few.without(np.array([10])).pool is few.pool
    many = from_rows(np.arange(2 * MOST_SPARE), items=20 * MOST_SPARE)
    fewer = many.without(np.arange(MOST_SPARE + 1))
    assert fewer.pool is not None
    assert fewer.pool.rows.tolist() == list(range(MOST_SPARE + 1, 2 * MOST_SPARE))


def test_both_of_a_block_and_others_keeps_the_smaller_list() -> None:
    small, large = from_rows(np.arange(3), items=100), from_rows(np.arange(10), items=100)
    assert small.both(large).pool is small.pool
    assert large.both(full_mask(100)).pool is large.pool


def test_a_filter_is_compiled_once_and_its_vectors_stand_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_and_note(text: str, attributes: pa.Table) -> np.ndarray:
        compiled.append(text)
        return compile_filter(text, attributes)

    compile_filter = module.compile_filter
    monkeypatch.setattr(module, "compile_filter", compile_and_note)
    filters = Filters(ATTRIBUTES, VECTORS)
    first = filters.eligible("age_days < 7")
    assert filters.eligible("age_days < 7") is first
    assert compiled == ["age_days < 7"]
    assert rows_of(first) == list(range(7))
    assert first.pool is not None
    assert first.pool.vectors is not None
    assert first.pool.vectors.tolist() == VECTORS[:7].tolist()
    assert filters.eligible("language <> 'hi'").pool is None  # three quarters: no list, no copy


def test_the_least_recently_asked_filter_is_forgotten_first() -> None:
    size = Filters(ATTRIBUTES).eligible("age_days = 0").nbytes
    filters = Filters(ATTRIBUTES, most_bytes=3 * size)
    for text in ("age_days = 0", "age_days = 1", "age_days = 2"):
        filters.eligible(text)
    kept, forgotten = filters.eligible("age_days = 0"), filters.eligible("age_days = 1")
    filters.eligible("age_days = 0")
    filters.eligible("age_days = 3")  # one too many: 2 was asked longest ago
    filters.eligible("age_days = 4")  # and now 1
    assert len(filters) == 3
    assert filters.eligible("age_days = 0") is kept
    assert filters.eligible("age_days = 1") is not forgotten


def test_a_filter_that_is_larger_than_all_memory_given_is_answered_and_not_kept() -> None:
    filters = Filters(ATTRIBUTES, VECTORS, most_bytes=10)
    assert rows_of(filters.eligible("age_days < 3")) == [0, 1, 2]
    assert len(filters) == 0


def test_a_filter_that_cannot_be_is_refused_each_time_and_not_kept() -> None:
    filters = Filters(ATTRIBUTES)
    for _ in range(2):
        with pytest.raises(RequestError, match=r"The filter cannot be used. .*nearest: `language`"):
            filters.eligible("lenguage = 'hi'")
    assert len(filters) == 0


def test_threads_share_the_filters() -> None:
    filters = Filters(ATTRIBUTES, VECTORS, most_bytes=2000)
    texts = [f"age_days < {number % 7}" for number in range(200)]
    with ThreadPoolExecutor(8) as threads:
        counts = [found.count for found in threads.map(filters.eligible, texts)]
    assert counts == [number % 7 for number in range(200)]
    assert filters._bytes == sum(found.nbytes for found in filters._known.values()) <= 2000
