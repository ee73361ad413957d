"""Sources of candidates, compared with what they are written out naively, list by list."""

import numpy as np
import pytest

from twofold.candidate_sources import (
    CandidateSources,
    SourceQueries,
    by_popularity,
    merge_sources,
    ranks_in,
    source_lists,
)
from twofold.item_neighbors import ItemNeighbors, load_neighbors
from twofold.ragged import Ragged
from twofold.recipe.ranker import Candidates
from twofold.topk import tie_order

ITEMS, USERS, TOP = 40, 25, 12
CONFIG = Candidates.model_validate(
    {
        "num_candidates": TOP,
        "sources": [
            {"kind": "item_knn", "quota": 3, "last_likes": 4},
            {"kind": "popularity", "quota": 2, "days": 2},
            {"kind": "condition", "quota": 2, "when": "age_days < 3"},
        ],
    }
)


@pytest.fixture(scope="module")
def sources():
    draw = np.random.default_rng(0)
    rows = np.stack([draw.permutation(ITEMS)[:6] for _ in range(ITEMS)]).astype(np.int32)
    rows[3, 2:] = -1
    similarities = np.sort(draw.random((ITEMS, 6)).astype(np.float32), axis=1)[:, ::-1].copy()
    popular = by_popularity(draw.integers(0, 4, ITEMS))
    return CandidateSources(CONFIG, ItemNeighbors(rows, similarities), {2: popular}, {}, ITEMS)


@pytest.fixture(scope="module")
def queries():
    draw = np.random.default_rng(1)
    likes = draw.integers(1, ITEMS + 1, (USERS, 7)).astype(np.int32)
    likes[0], likes[1, :5], likes[2, -2:] = 0, 0, likes[2, -3]  # no like, two likes, one item three times
    seen = [draw.permutation(ITEMS)[: number % 9] for number in range(USERS)]
    excluded = Ragged(np.concatenate(seen), np.cumsum([0, *map(len, seen)]))
    return SourceQueries(likes, excluded, draw.random(ITEMS) < 0.8)


def may_be_listed(queries, user, item):
    first, end = queries.excluded.offsets[user : user + 2]
    return queries.allowed[item] and item not in queries.excluded.values[first:end]


def nothing(condition):
    return np.empty((USERS, 0), np.int64)


def test_item_knn_adds_up_the_similarities_of_the_last_likes(sources, queries):
    knn, _, _ = source_lists(sources, queries, nothing)
    rank, _ = tie_order(ITEMS)
    assert knn.shape == (USERS, TOP)
    for user in range(USERS):
        sums = np.zeros(ITEMS)
        for like in queries.likes[user, -4:]:
            for row, value in zip(*(each[like - 1] for each in vars(sources.neighbors).values()), strict=True):
                if like and row >= 0:
                    sums[row] += value
        expected = [
            item for item in np.lexsort((-rank, -sums)) if sums[item] > 0 and may_be_listed(queries, user, item)
        ]
        listed = knn[user][knn[user] >= 0].tolist()
        assert listed == expected[:TOP]
    assert (knn[0] == -1).all()


def test_popularity_lists_what_is_liked_most_and_may_be_listed(sources, queries):
    _, popular, _ = source_lists(sources, queries, nothing)
    for user in range(USERS):
        expected = [item for item in sources.popular[2].tolist() if may_be_listed(queries, user, item)][:TOP]
        assert popular[user].tolist() == [*expected, *[-1] * (TOP - len(expected))]


def test_a_list_does_not_depend_on_the_other_queries(sources, queries):
    together = source_lists(sources, queries, nothing)
    for user in range(USERS):
        alone = source_lists(sources, queries.part(slice(user, user + 1)), lambda condition: nothing("")[:1])
        for one, all_of in zip(alone, together, strict=True):
            assert one.tobytes() == all_of[user : user + 1].tobytes()


def merged_naively(retrieved, lists, quotas, top):
    rows, brought_by = [*retrieved[: top - sum(quotas)]], [0] * len(retrieved[: top - sum(quotas)])
    for number, (listed, quota) in enumerate(zip(lists, quotas, strict=True), start=1):
        new = [item for item in listed if item >= 0 and item not in rows][:quota]
        rows, brought_by = rows + new, brought_by + [number] * len(new)
    rest = [item for item in retrieved if item not in rows]
    return (rows + rest)[: len(retrieved)], (brought_by + [0] * len(rest))[: len(retrieved)]


def test_the_union_has_each_item_once_and_every_quota_that_can_be_filled():
    draw, quotas = np.random.default_rng(2), (3, 2)
    retrieved = np.stack([draw.permutation(ITEMS)[:20] for _ in range(USERS)])
    retrieved[4, 6:] = -1  # few are left
    lists = [np.stack([draw.permutation(ITEMS)[:TOP] for _ in range(USERS)]) for _ in quotas]
    lists[0][5], lists[1][6, 1:] = -1, -1
    lists[0][7] = retrieved[7, :TOP]  # the source repeats the retriever
    merged = merge_sources(retrieved, lists, quotas, top=TOP)
    for user in range(USERS):
        own = [[row for row in each[user].tolist() if row >= 0] for each in (retrieved, *lists)]
        rows, brought_by = merged_naively(own[0], own[1:], quotas, TOP)
        if len(own[0]) == 20:
            assert merged.item_rows[user].tolist() == rows
            assert merged.brought_by[user].tolist() == brought_by
        kept = merged.item_rows[user][merged.item_rows[user] >= 0].tolist()
        assert len(set(kept)) == len(kept)
        assert set(own[0][: TOP - sum(quotas)]) <= set(kept[:TOP])
        for number, (quota, listed) in enumerate(zip(quotas, own[1:], strict=True), start=1):
            assert (merged.brought_by[user, :TOP] == number).sum() <= quota
            if quota <= len(listed):  # the quota is filled, if not by this source then by items that were there before
                assert len(set(listed) & set(kept[:TOP])) >= quota
    ranks = merged.ranks(merged.item_rows[:, :TOP])
    for user, column in np.ndindex(USERS, TOP):
        item = merged.item_rows[user, column]
        for number, each in enumerate(merged.lists):
            listed = each[user].tolist()
            assert ranks[user, column, number] == (listed.index(item) if item >= 0 and item in listed else TOP)


def test_without_sources_the_candidates_are_the_retrievers():
    retrieved = np.array([[5, 3, 1, -1]])
    merged = merge_sources(retrieved, (), (), top=3)
    assert merged.item_rows is retrieved
    assert merged.ranks(retrieved[:, :3]).tolist() == [[[0], [1], [2]]]


def test_ranks_of_items_in_lists_with_and_without_padding():
    draw = np.random.default_rng(3)
    best = np.stack([draw.permutation(ITEMS)[:9] for _ in range(USERS)])
    best[::2, 6:] = -1
    items = draw.integers(-1, ITEMS, (USERS, 11))
    found = ranks_in(best, items)
    for user, column in np.ndindex(items.shape):
        item, row = items[user, column], best[user].tolist()
        assert found[user, column] == (row.index(item) if item >= 0 and item in row else 9)
    assert ranks_in(best[:0], items[:0]).shape == (0, 11)


def test_neighbors_are_stored_and_there_may_be_none(sources, tmp_path):
    assert load_neighbors(tmp_path) is None
    sources.neighbors.save(tmp_path)
    loaded = load_neighbors(tmp_path)
    for name in ("item_rows", "similarities"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(sources.neighbors, name))
