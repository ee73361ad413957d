"""The verdict names each planted fault of serving, whatever else is larger; differences of the exam are no faults."""

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
    LATER,
    MAX_LOSS,
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


def sound(seed=0, *, hard_batches=False):
    """A cosine model and an exact index of it: users like items near to them, and have seen items far from them.

    With `hard_batches`, the correction of training hides who likes what: a difference of the exam that is larger than
    any fault.
    """
    rng = np.random.default_rng(seed)
    queries, items = unit(rng.normal(size=(USERS, DIM))), unit(rng.normal(size=(ITEMS, DIM)))
    taste = queries @ items.T + rng.gumbel(scale=0.1, size=(USERS, ITEMS))
    order = np.argsort(-taste, axis=1)
    seen, relevant = order[:, -10:], order[:, :2]
    products, correction = Products(queries, items), hard_batches * rng.normal(scale=9, size=ITEMS).astype(np.float32)
    case = GapCase(
        lists(relevant), lists(seen), products, correction, *[products] * 3, np.arange(ITEMS), lambda users, k: None
    )
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
    return {step.cause: step.change for step in (*found.exam, *found.serving)}


# --- planted faults, each in a world where the exam differs more than the fault costs ---------------------------------


def mixed_ids(case, rng):
    rows = rng.permutation(ITEMS)[: ITEMS * 3 // 10]
    returned_as = case.returned_as.copy()
    returned_as[rows] = returned_as[np.roll(rows, 1)]
    return searched(replace(case, returned_as=returned_as))


def half_noise(case, rng):
    items = case.stored.items.copy()
    items[::2] = unit(rng.normal(size=items[::2].shape))
    return searched(replace(case, stored=replace(case.stored, items=items)))


def half_stale(case, rng):
    items = case.stored.items.copy()
    items[::2] = unit(items[::2] + 0.25 * rng.normal(size=items[::2].shape))
    return searched(replace(case, stored=replace(case.stored, items=items)))


def other_score(case, rng):
    dot = replace(case.trained, items=case.trained.items * rng.lognormal(sigma=1.0, size=(ITEMS, 1)).astype(np.float32))
    return searched(replace(case, rescored=dot, later=dot, stored=dot))


def forgetful_search(case, rng):
    missing, exact = rng.permutation(ITEMS)[: ITEMS * 4 // 10], case.search

    def search(users, k):
        item_rows = exact(users, k)
        return np.where(np.isin(item_rows, missing), -1, item_rows)

    return replace(case, search=search)


@pytest.mark.parametrize("hard_batches", [False, True], ids=["plain", "hard batches"])
@pytest.mark.parametrize(
    ("plant", "cause", "repair"),
    [
        (mixed_ids, IDS, "The ids are not in the order of the vectors."),
        (half_noise, STALE, "The vectors are not those of the weights in RUN/train."),
        (half_stale, STALE, "rm -r RUN/index && twofold index RUN"),
        (other_score, SCORE, "Build the index with the score of the recipe's retriever"),
        (forgetful_search, APPROXIMATE, "raise the number of lists or candidates"),
    ],
)
def test_a_planted_fault_is_the_verdict_whatever_else_is_larger(plant, cause, repair, hard_batches):
    case, rng = sound(hard_batches=hard_batches)
    found = measure_gap(plant(case, rng), batch_size=BATCH)
    assert found.faults == (cause,)
    assert found.served < found.model - MAX_LOSS
    opening, fault = found.verdict
    assert opening.startswith("Serving has 1 fault: the service finds ")
    assert fault.startswith(f"Fault: {cause} (−")
    assert repair in fault
    if hard_batches:
        assert changes(found)[BY_POPULARITY] > -changes(found)[cause] > MAX_LOSS


@pytest.mark.parametrize("hard_batches", [False, True])
def test_a_sound_service_has_no_fault_and_loses_nothing(hard_batches):
    found = measure_gap(sound(hard_batches=hard_batches)[0], batch_size=BATCH)
    assert found.faults == ()
    assert all(step.change == 0 for step in found.serving)
    (sentence,) = found.verdict
    assert sentence.startswith("Serving agrees with the model: ")


def described_earlier(case, rng):
    """The model as of the requests knows less of the items than as of the end of the log."""
    noise = 0.2 * rng.normal(size=case.trained.items.shape)
    earlier = replace(case.trained, items=unit(case.trained.items + noise))
    return replace(case, trained=earlier, rescored=earlier)


def test_a_gain_of_items_that_are_described_later_is_no_merit():
    found = measure_gap(described_earlier(*sound()), batch_size=BATCH)
    assert found.faults == ()
    assert changes(found)[LATER] > 0.05
    assert changes(found)[STALE] == 0
    agrees, later = found.verdict
    assert agrees.startswith("Serving agrees with the model: ")
    assert later.startswith(f"+{changes(found)[LATER]:.3f} of this is neither a fault nor a merit: {LATER}, so that")


def test_items_that_are_described_later_hide_no_fault():
    case, rng = sound()
    found = measure_gap(half_stale(described_earlier(case, rng), rng), batch_size=BATCH)
    assert found.faults == (STALE,)
    assert abs(found.served - found.model) < -changes(found)[STALE]  # together they look like less than the fault
    assert found.verdict[0].startswith("Serving has 1 fault: ")
    assert [sentence.split(":")[0] for sentence in found.verdict[2:]] == ["Fault"]


def test_a_loss_of_items_that_are_described_later_is_no_fault():
    case, rng = sound()
    worse = half_stale(case, rng).stored
    found = measure_gap(searched(replace(case, later=worse, stored=worse)), batch_size=BATCH)
    assert changes(found)[LATER] < -0.05
    assert found.faults == ()
    assert found.verdict[1].startswith(f"−{-changes(found)[LATER]:.3f} of this is neither a fault")


def test_two_faults_are_both_named():
    case, rng = sound()
    found = measure_gap(forgetful_search(mixed_ids(case, rng), rng), batch_size=BATCH)
    assert found.faults == (IDS, APPROXIMATE)
    assert found.verdict[0].startswith("Serving has 2 faults: ")
    assert len(found.verdict) == 3


def test_a_loss_within_the_tolerance_is_no_fault():
    case, rng = sound()
    missing = rng.permutation(ITEMS)[:3]
    exact = case.search
    found = measure_gap(
        replace(case, search=lambda users, k: np.where(np.isin(rows := exact(users, k), missing), -1, rows)),
        batch_size=BATCH,
    )
    assert -MAX_LOSS < found.serving[-1].change <= 0
    assert found.faults == ()


# --- the exam ---------------------------------------------------------------------------------------------------------


def test_the_steps_add_up_to_the_gap():
    found = measure_gap(sound()[0], batch_size=BATCH)
    assert found.rank == pytest.approx(10 * ITEMS / found.distinct_items)
    assert (found.pairs, found.num_items) == (2 * USERS, ITEMS)
    assert 0.9 * BATCH < found.distinct_items < BATCH
    assert sum(changes(found).values()) == pytest.approx(found.served - found.in_batch)
    assert found.model - found.in_batch == pytest.approx(sum(step.change for step in found.exam))
    assert abs(changes(found)[CANDIDATES]) < 0.05
    assert found.about_exam.startswith(
        f"A batch of 60 is a different exam, not a fault: it holds {found.distinct_items:.0f} "
    )


def test_seen_items_that_rank_above_change_the_exam():
    case, _ = sound()
    best = np.argsort(-(case.trained.queries @ case.trained.items.T), axis=1)
    # Seen are the 120 items nearest to each user, and the positives come right after.
    found = measure_gap(
        searched(replace(case, seen=lists(best[:, :120]), relevant=lists(best[:, 125:127]))), batch_size=BATCH
    )
    assert changes(found)[SEEN] > 0.5
    assert found.faults == ()


def everybody_likes_the_same():
    """Items of the first tenth are liked ten times as often and score above all others; the rest is in random order."""
    case, rng = sound()
    scores = rng.random((1, ITEMS)).astype(np.float32)
    scores[:, : ITEMS // 10] += 1
    popular, other = (rng.integers(*bounds, (USERS, each)) for bounds, each in (((0, 60), 4), ((60, 600), 1)))
    flat = Products(np.ones((USERS, 1), np.float32), scores.T.copy())
    relevant = np.concatenate([popular, other], axis=1)
    relevant = np.array([np.unique(items)[:1].tolist() + [items[-1]] for items in relevant])
    seen = np.full((USERS, 1), ITEMS - 1)
    case = replace(
        case, relevant=lists(relevant), seen=lists(seen), trained=flat, rescored=flat, later=flat, stored=flat
    )
    return searched(case), np.where(np.arange(ITEMS) < 60, np.log(10), 0).astype(np.float32)


def test_popular_candidates_make_a_batch_harder_than_uniform_ones():
    found = measure_gap(everybody_likes_the_same()[0], batch_size=BATCH)
    assert changes(found)[BY_POPULARITY] > 0.1
    assert found.faults == ()


def test_within_a_batch_the_scores_are_corrected_as_in_training_and_only_there():
    case, correction = everybody_likes_the_same()
    plain = measure_gap(case, batch_size=BATCH)
    corrected = measure_gap(replace(case, correction=correction), batch_size=BATCH)
    assert corrected.in_batch != plain.in_batch
    assert [step.share for step in corrected.exam] == [step.share for step in plain.exam]
    # A correction that takes the popular items' advantage away leaves only the order within each of the two kinds.
    assert plain.in_batch < corrected.exam[0].share


def test_an_item_that_fills_a_batch_counts_once():
    """All positives but one are item 0, so a batch holds two distinct items and the wrong one of them is first."""
    relevant = Ragged(np.array([0] * 30 + [1]), np.arange(32))
    products = Products(np.ones((31, 1), np.float32), np.array([[1], [0], [-1], [-2]], np.float32))
    nothing = Ragged(np.zeros(0, np.int64), np.zeros(32, np.int64))
    case = GapCase(
        relevant, nothing, products, np.zeros(4, np.float32), *[products] * 3, np.arange(4), lambda users, k: None
    )
    found = measure_gap(searched(case), batch_size=20, k=2)
    assert found.distinct_items <= 3
    assert found.in_batch == 1  # with repeats, item 0 would take the first two places and item 1 would be lost


def test_a_seed_decides_and_pairs_are_bounded(monkeypatch):
    monkeypatch.setattr(gap_module, "_MAX_PAIRS", 100)
    case = sound()[0]
    one, same, other = (measure_gap(case, batch_size=BATCH, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert one.pairs == 100


def test_large_batches_have_fewer_pairs(monkeypatch):
    monkeypatch.setattr(gap_module, "_MAX_COLUMNS", 100 * BATCH + 1)
    case, _ = sound()
    assert measure_gap(case, batch_size=BATCH).pairs == 100
    assert measure_gap(case, batch_size=2 * BATCH).pairs == 50


def test_one_item_one_user():
    one = Products(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32))
    nothing = Ragged(np.zeros(0, np.int64), np.zeros(2, np.int64))
    relevant = Ragged(np.array([0]), np.array([0, 1]))
    correction = np.zeros(1, np.float32)
    case = GapCase(
        relevant, nothing, one, correction, *[one] * 3, np.array([0]), lambda users, k: np.zeros((1, k), np.int64)
    )
    found = measure_gap(case, batch_size=16)
    assert (found.in_batch, found.served, found.faults) == (1, 1, ())


def test_without_positives_or_with_too_small_batches_there_is_no_gap():
    case = sound()[0]
    nothing = Ragged(np.zeros(0, np.int64), np.zeros(USERS + 1, np.int64))
    with pytest.raises(RequestError, match="not 0 positives and batches of 60. Choose a longer window"):
        measure_gap(replace(case, relevant=nothing), batch_size=BATCH)
    with pytest.raises(RequestError, match="batches of more than k = 10 items, not 800 positives and batches of 10"):
        measure_gap(case, batch_size=10)
