"""Live index: after any upserts and removals, results are those of an index of the current items."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.dataset.vocabulary import Vocabulary
from twofold.errors import RequestError
from twofold.index import live as module
from twofold.index.filters import compile_filter
from twofold.index.item_index import build_index
from twofold.index.live import LiveIndex
from twofold.index.score_kinds import Score, pair_scores
from twofold.ragged import Ragged
from twofold.topk import exclude, top_k

ITEMS = 40
QUERIES = np.float32([[1, 0], [0, 1], [1, 1]])


def table(ids: list[int], age_days: list[int]) -> pa.Table:
    return pa.table({"item_id": pa.array(ids, pa.int64()), "age_days": pa.array(age_days, pa.int64())})


def live_index(vectors: np.ndarray, *, score: Score = "dot", max_flat: int = 10**6) -> LiveIndex:
    """Item row i has id 100 + i and is i days old."""
    ids = list(range(100, 100 + len(vectors)))
    index = build_index(vectors, score=score, max_flat=max_flat)
    return LiveIndex(index, Vocabulary(pa.array(ids, pa.int64()), len(ids)), table(ids, list(range(len(vectors)))))


@pytest.fixture
def live() -> LiveIndex:
    return live_index(np.random.default_rng(0).standard_normal((ITEMS, 2), np.float32))


def best(live: LiveIndex, k: int = 3, **restrict: object) -> list[int]:
    """Ids of the results of the first query."""
    found = live.now.search(QUERIES[:1], k, **restrict)
    return live.now.ids_of(found.item_rows[0, : found.counts[0]]).to_pylist()


def test_an_added_item_is_found_at_once(live: LiveIndex) -> None:
    before = live.now
    live.upsert(table([7], [3]), np.float32([[9, 0]]))
    assert best(live)[0] == 7
    assert before.vectors_of(np.array([3])).tolist() == live.now.vectors_of(np.array([3])).tolist()
    assert len(live.now) == ITEMS + 1
    assert live.now.rows_of([7, 100, 139, 8]).tolist() == [ITEMS, 0, ITEMS - 1, -1]
    assert live.now.vectors_of(np.array([ITEMS, 0]))[0].tolist() == [9, 0]
    assert before.rows_of([7]).tolist() == [-1]  # a snapshot taken before does not change
    assert len(before) == ITEMS


def test_an_update_moves_an_item_and_keeps_its_row(live: LiveIndex) -> None:
    first = best(live)[0]
    live.upsert(table([first], [3]), np.float32([[-9, 0]]))
    assert first not in best(live)
    assert best(live, ITEMS)[-1] == first
    assert best(live, ITEMS).count(first) == 1
    assert live.now.rows_of([first]).tolist() == [first - 100]
    live.upsert(table([first], [3]), np.float32([[9, 0]]))
    assert best(live, ITEMS).count(first) == 1
    assert best(live)[0] == first
    assert len(live.now) == ITEMS


def test_a_withdrawn_item_is_never_returned_whatever_is_upserted(live: LiveIndex) -> None:
    live.upsert(table([7], [3]), np.float32([[9, 0]]))
    second = best(live)[1]
    assert live.set_withdrawn([7, second, 12345, "no id"]) == 2
    assert live.set_withdrawn([7, second, 12345]) == 0
    assert not {7, second} & set(best(live, ITEMS + 1))
    assert live.now.search(QUERIES, ITEMS + 1).counts.tolist() == [ITEMS - 1] * 3
    live.upsert(table([7, 12345], [3, 3]), np.float32([[8, 0], [9, 0]]))
    assert not {7, second, 12345} & set(best(live, ITEMS + 1))
    assert live.now.eligible("age_days >= 0").sum() == len(live.now) == ITEMS - 1
    assert live.set_withdrawn([second]) == -2
    assert best(live)[:2] == [12345, 7]
    assert live.now.rows_of([7]).tolist() == [ITEMS]


def test_a_change_that_cannot_be_recorded_is_not_made(live: LiveIndex) -> None:
    def full_disk() -> None:
        raise OSError("no space")

    before = live.now
    with pytest.raises(OSError, match="no space"):
        live.upsert(table([7], [3]), np.float32([[9, 0]]), record=full_disk)
    assert live.now is before


def test_filters_and_exclusions_hold_for_all(live: LiveIndex) -> None:
    live.upsert(table([7, 8, 101], [3, 900, 900]), np.float32([[9, 0], [8, 0], [7, 0]]))
    assert best(live, where="age_days >= 900") == [8, 101]
    assert 101 not in best(live, ITEMS, where="age_days < 900")  # it is older now
    rows = live.now.rows_of([7, 8, 101, 102])
    seen = Ragged(rows[:3], np.array([0, 3]))
    assert not {7, 8, 101} & set(best(live, ITEMS, excluded=seen))
    assert best(live, 9, where="age_days >= 900", excluded=Ragged(rows[1:2], np.array([0, 1]))) == [101]
    with pytest.raises(RequestError, match="The filter cannot be used"):
        live.now.search(QUERIES, 3, where="agedays > 3")


operations = st.lists(
    st.tuples(
        st.sampled_from(["upsert", "withdraw", "restore"]),
        st.lists(st.integers(95, 110), min_size=1, max_size=4, unique=True),
    ),
    max_size=8,
)


@settings(max_examples=120, deadline=None)
@given(seed=st.integers(0, 10**6), changes=operations, k=st.integers(1, 12), levels=st.sampled_from([1, 50]))
def test_after_any_changes_results_are_those_of_scoring_the_current_items(
    seed: int, changes: list[tuple[str, list[int]]], k: int, levels: int
) -> None:
    rng = np.random.default_rng(seed)

    def draw(count: int) -> np.ndarray:
        return rng.integers(-levels, levels + 1, (count, 2)).astype(np.float32)

    drawn = draw(10)
    live = live_index(drawn, score="negative_distance")
    # The expected state: per row an id, a vector and an age; and the withdrawn ids.
    ids, vectors, ages, withdrawn = list(range(100, 110)), list(drawn), list(range(10)), set[int]()
    for kind, changed in changes:
        if kind != "upsert":
            withdrawn = withdrawn | set(changed) if kind == "withdraw" else withdrawn - set(changed)
            live.set_withdrawn(withdrawn)
            continue
        new, age = draw(len(changed)), rng.integers(0, 20, len(changed)).tolist()
        live.upsert(table(changed, age), new)
        for item, vector, days in zip(changed, new, age, strict=True):
            if item not in ids:
                ids, vectors, ages = [*ids, item], [*vectors, vector], [*ages, days]
            row = ids.index(item)
            vectors[row], ages[row] = vector, days
    present = [item not in withdrawn for item in ids]
    excluded = Ragged(rng.integers(0, len(ids), 6), np.array([0, 1, 1, 6]))
    allowed = np.array(present) & compile_filter("age_days < 12", table(ids, ages))
    scores = np.stack([pair_scores(np.stack(vectors), query, "negative_distance") for query in QUERIES])
    exclude(scores, excluded)
    expected = top_k(scores, k, allowed=allowed[None])
    found = live.now.search(QUERIES, k, where="age_days < 12", excluded=excluded)
    assert live.now.rows_of(ids).tolist() == list(range(len(ids)))
    assert live.now.ids_of(np.arange(len(ids))).to_pylist() == ids
    assert found.item_rows.tolist() == expected.item_rows.tolist()
    assert found.counts.tolist() == expected.counts.tolist()
    assert len(live.now) == sum(present)


def test_new_items_are_found_beside_ivf_lists() -> None:
    vectors = np.random.default_rng(0).standard_normal((3000, 8), np.float32)
    live = live_index(vectors, max_flat=1000)
    query = np.random.default_rng(1).standard_normal((1, 8), np.float32)
    top = live.now.ids_of(live.now.search(query, 20).item_rows[0]).to_pylist()
    live.upsert(table([7], [3]), 100 * query)
    live.set_withdrawn(top[:10])
    after = live.now.ids_of(live.now.search(query, 20).item_rows[0]).to_pylist()
    assert after[:11] == [7, *top[10:]]


def test_a_search_sees_all_of_a_change_or_none_of_it(live: LiveIndex) -> None:
    # Two items that always move together, while others search: their scores never differ within a result.
    live.upsert(table([7, 8], [0, 0]), np.float32([[50, 0]] * 2))
    stop = Event()

    def search() -> int:
        count = 0
        while not stop.is_set():
            now = live.now
            found = now.search(QUERIES[:1], 2)
            assert now.ids_of(np.sort(found.item_rows[0])).to_pylist() == [7, 8]
            assert found.scores[0, 0] == found.scores[0, 1]
            count += 1
        return count

    with ThreadPoolExecutor(4) as threads:
        searches = [threads.submit(search) for _ in range(2)]
        try:
            for number in range(100):
                live.upsert(table([7, 8], [0, 0]), np.full((2, 2), 50 + number, np.float32))
                live.upsert(table([200 + number], [0]), np.float32([[1, 0]]))
                live.set_withdrawn(range(200, 201 + number))
        finally:
            stop.set()
        assert min(each.result() for each in searches) > 0
    assert len(live.now) == ITEMS + 2


def test_changes_from_many_threads_are_all_kept(live: LiveIndex) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda item: live.upsert(table([item], [0]), np.float32([[1, 1]])), range(1000, 1060)))
    assert len(live.now) == ITEMS + 60
    assert sorted(live.now.rows_of(range(1000, 1060)).tolist()) == list(range(ITEMS, ITEMS + 60))


@pytest.mark.parametrize(
    ("items", "vectors", "message"),
    [
        (
            pa.table({"item_id": [1]}),
            np.ones((1, 2)),
            "the new items lack age_days; the catalogue has item_id, age_days",
        ),
        (table([1], [1]), np.ones((1, 3)), r"vectors of shape \(1, 3\); 1 x 2 are needed"),
        (table([1, 2], [1, 1]), np.ones((1, 2)), r"vectors of shape \(1, 2\); 2 x 2 are needed"),
        (table([1, 1], [1, 1]), np.ones((2, 2)), "must not be NULL, and must not occur twice"),
        (table([1], [1]), np.full((1, 2), np.nan), "hold NaN or infinity"),
        (pa.table({"item_id": [1], "age_days": ["old"]}), np.ones((1, 2)), "types of the catalogue"),
    ],
)
def test_an_invalid_change_is_refused_whole(
    live: LiveIndex, items: pa.Table, vectors: np.ndarray, message: str
) -> None:
    before = live.now
    with pytest.raises(RequestError, match=message):
        live.upsert(items, vectors.astype(np.float32))
    assert live.now is before


def test_a_cosine_index_takes_vectors_of_length_1_only() -> None:
    live = live_index(np.float32([[1, 0], [0, 1]]), score="cosine")
    with pytest.raises(RequestError, match="must have length 1"):
        live.upsert(table([7], [0]), np.float32([[2, 0]]))


def test_more_changes_than_the_limit_need_a_new_bundle(live: LiveIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CHANGED", 3)
    live.upsert(table([1, 2, 3], [0] * 3), np.ones((3, 2), np.float32))
    live.upsert(table([1, 2, 3], [0] * 3), np.ones((3, 2), np.float32))  # the same ones again
    with pytest.raises(RequestError, match="4 items would have been added .* at most 3. Build a bundle"):
        live.upsert(table([4], [0]), np.ones((1, 2), np.float32))
    assert len(live.now) == ITEMS + 3
