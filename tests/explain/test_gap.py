"""A gap with one planted cause names that cause; its steps add up; shuffled ids are noticed."""

from dataclasses import replace

import numpy as np
import pytest

from twofold.errors import RequestError
from twofold.explain import gap as gap_module
from twofold.explain.gap import (
    APPROXIMATE,
    BY_POPULARITY,
    CANDIDATES,
    IDS,
    SCORE,
    SEEN,
    STALE,
    GapCase,
    Products,
    measure_gap,
)
from twofold.ragged import Ragged
from twofold.topk import top_k

USERS, ITEMS, DIM, BATCH = 400, 600, 16, 60


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def lists(rows):
    return Ragged(rows.reshape(-1), np.arange(len(rows) + 1) * rows.shape[1])


def sound(seed=0):
    """A cosine model and an exact index of it: users like items near to them, and have seen items far from them."""
    rng = np.random.default_rng(seed)
    queries, items = unit(rng.normal(size=(USERS, DIM))), unit(rng.normal(size=(ITEMS, DIM)))
    taste = queries @ items.T + rng.gumbel(scale=0.1, size=(USERS, ITEMS))
    order = np.argsort(-taste, axis=1)
    seen, relevant = order[:, -10:], order[:, :2]
    products = Products(queries, items)
    case = GapCase(lists(relevant), lists(seen), products, products, products, np.arange(ITEMS), lambda users, k: None)
    return searched(case), rng


def searched(case):
    """The case with an exact search of its stored vectors."""

    def search(users, k):
        scores = case.stored.queries[users] @ case.stored.items.T
        seen = case.seen.of(users)
        by_row = np.full_like(scores, -np.inf)
        by_row[:, case.returned_as] = scores
        by_row[seen.lines, seen.values] = -np.inf
        return top_k(by_row, k).item_rows

    return replace(case, search=search)


def changes(found):
    return {step.cause: step.change for step in found.steps}


def test_the_steps_add_up_to_the_gap_and_a_sound_system_changes_nothing_after_training():
    found = measure_gap(sound()[0], batch_size=BATCH)
    assert (found.rank, found.pairs, found.num_items) == (10 * ITEMS / BATCH, 2 * USERS, ITEMS)
    assert sum(changes(found).values()) == pytest.approx(found.served - found.in_batch)
    for cause in (SCORE, STALE, IDS, APPROXIMATE):
        assert changes(found)[cause] == 0
    assert found.id_map_p < 0.05
    assert abs(changes(found)[CANDIDATES]) < 0.05


def test_cosine_trained_and_dot_indexed_is_named_as_the_largest_cause():
    case, rng = sound()
    lengths = rng.lognormal(sigma=1.5, size=(ITEMS, 1)).astype(np.float32)
    dot = replace(case.trained, items=case.trained.items * lengths)
    found = measure_gap(searched(replace(case, rescored=dot, stored=dot)), batch_size=BATCH)
    assert found.largest == SCORE
    assert changes(found)[SCORE] < -0.2
    assert f"The largest cause: {SCORE} (−" in found.verdict.replace("-", "−")


def test_stale_vectors_are_named():
    case, rng = sound()
    old = replace(case.stored, items=unit(case.stored.items + 0.5 * rng.normal(size=(ITEMS, DIM))))
    found = measure_gap(searched(replace(case, stored=old)), batch_size=BATCH)
    assert found.largest == STALE


def test_mixed_up_ids_are_named_and_find_no_more_than_shuffled_ones():
    case, rng = sound()
    mixed = replace(case, returned_as=rng.permutation(ITEMS))
    found = measure_gap(searched(mixed), batch_size=BATCH)
    assert found.largest == IDS
    assert found.id_map_p > 0.05
    assert "Shuffled item ids find as much: check the id map first." in found.verdict


def test_an_index_that_misses_items_is_named():
    case, rng = sound()
    exact = case.search

    def forgetful(users, k):
        item_rows = exact(users, k)
        return np.where(rng.random(item_rows.shape) < 0.5, -1, item_rows)

    found = measure_gap(replace(case, search=forgetful), batch_size=BATCH)
    assert found.largest == APPROXIMATE
    assert changes(found)[APPROXIMATE] == pytest.approx(-0.5 * found.steps[-2].share, abs=0.06)


def test_seen_items_that_rank_above_are_named():
    case, _ = sound()
    best = np.argsort(-(case.trained.queries @ case.trained.items.T), axis=1)
    # Seen are the 120 items nearest to each user, and the positives come right after.
    case = replace(case, seen=lists(best[:, :120]), relevant=lists(best[:, 125:127]))
    assert measure_gap(searched(case), batch_size=BATCH).largest == SEEN


def test_negatives_that_everybody_likes_are_named():
    case, rng = sound()
    # Items of the first tenth are liked ten times as often and score above all others; the rest is in random order.
    scores = rng.random((1, ITEMS)).astype(np.float32)
    scores[:, : ITEMS // 10] += 1
    popular, other = (rng.integers(*bounds, (USERS, each)) for bounds, each in (((0, 60), 4), ((60, 600), 1)))
    flat = Products(np.ones((USERS, 1), np.float32), scores.T.copy())
    relevant = np.concatenate([popular, other], axis=1)
    relevant = np.array([np.unique(items)[:1].tolist() + [items[-1]] for items in relevant])
    seen = np.full((USERS, 1), ITEMS - 1)
    case = replace(case, relevant=lists(relevant), seen=lists(seen), trained=flat, rescored=flat, stored=flat)
    found = measure_gap(searched(case), batch_size=BATCH)
    assert found.largest == BY_POPULARITY
    assert changes(found)[BY_POPULARITY] > 0


def test_a_seed_decides_and_pairs_are_bounded(monkeypatch):
    monkeypatch.setattr(gap_module, "_MAX_PAIRS", 100)
    case = sound()[0]
    one, same, other = (measure_gap(case, batch_size=BATCH, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert one.pairs == 100


def test_one_item_one_user():
    one = Products(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32))
    nothing = Ragged(np.zeros(0, np.int64), np.zeros(2, np.int64))
    case = GapCase(
        Ragged(np.array([0]), np.array([0, 1])),
        nothing,
        one,
        one,
        one,
        np.array([0]),
        lambda users, k: np.zeros((1, k), int),
    )
    found = measure_gap(case, batch_size=16)
    assert (found.in_batch, found.served, found.largest) == (1, 1, None)
    assert "No single cause is significant." in found.verdict


def test_without_positives_or_with_too_small_batches_there_is_no_gap():
    case = sound()[0]
    nothing = Ragged(np.zeros(0, np.int64), np.zeros(USERS + 1, np.int64))
    with pytest.raises(RequestError, match="not 0 positives and batches of 60. Choose a longer window"):
        measure_gap(replace(case, relevant=nothing), batch_size=BATCH)
    with pytest.raises(RequestError, match="batches of more than k = 10 items, not 800 positives and batches of 10"):
        measure_gap(case, batch_size=10)
