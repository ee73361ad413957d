"""Requests as a naive search finds them, at their own moments and from the training window alone; and what is drawn."""

import numpy as np
import pytest
import torch

from tests.dataset.prepared import FEATURES, LAST_TRAIN_MS, random_events, write_prepared
from twofold.candidate_sources import ranks_in
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import load_dataset
from twofold.errors import DataError
from twofold.model.retriever import as_products, item_vectors, user_vectors
from twofold.model.two_tower import build_two_tower
from twofold.recipe.ranker import Candidates
from twofold.recipe.retriever import TwoTower
from twofold.tables import DAY_MS, HOUR_MS
from twofold.train.ranker_examples import mine_requests
from twofold.train.ranker_lists import draw_lists

RETRIEVER = TwoTower.model_validate({"kind": "two_tower", "dim": 8, "score": {"kind": "negative_distance"}})
ASKED = Candidates(num_candidates=6, skip_top=1, num_retrieved=5)


def built(folder, events):
    write_prepared(folder / "prepare", events)
    build_dataset(folder / "prepare", FEATURES, folder / "dataset", time_zone="Asia/Shanghai")
    return load_dataset(folder / "dataset")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return built(tmp_path_factory.mktemp("candidates"), random_events(0))


@pytest.fixture(scope="module")
def model(dataset):
    torch.manual_seed(0)
    return build_two_tower(RETRIEVER, dataset.features, dataset.vectors)


@pytest.fixture(scope="module", params=["event", "day"])
def config(request):
    return ASKED.model_copy(update={"request_time": request.param})


@pytest.fixture(scope="module")
def requests(dataset, model, config, tmp_path_factory):
    return mine_requests(model, dataset, config, seed=0, out=tmp_path_factory.mktemp("mined"))


def moment_of(dataset, line, config):
    """The row's own, or that of its user's first row on the same day, eight hours east of Greenwich."""
    rows = dataset.examples["train"]
    if config.request_time == "event":
        return int(rows.at[line])
    days = (rows.at + 8 * HOUR_MS) // DAY_MS
    return int(rows.at[(rows.user_rows == rows.user_rows[line]) & (days == days[line])].min())


def met_before(dataset, user, at):
    events = slice(*dataset.events.offsets[user : user + 2])
    pairs = zip(dataset.events.item_rows[events].tolist(), dataset.events.at[events].tolist(), strict=True)
    return {item for item, moment in pairs if moment < at}


def found_by_a_sort(dataset, line, at, items, asking):
    """The item rows that a naive search gives the user of a row at this moment, by the vectors of items and user."""
    rows = dataset.examples["train"]
    user, own = int(rows.user_rows[line]), int(rows.item_rows[line])
    scores = -np.square(items[: dataset.items.num_known] - asking).sum(axis=1)
    liked = set(rows.item_rows[(rows.user_rows == user) & rows.label].tolist())
    left_out = (met_before(dataset, user, at) | liked) - {own}
    return [item for item in np.argsort(-scores, kind="stable").tolist() if item not in left_out][
        : ASKED.num_candidates
    ]


def test_requests_are_the_positives_on_new_items_that_a_sort_finds_at_that_moment(dataset, model, requests, config):
    rows = dataset.examples["train"]
    moments = {line: moment_of(dataset, line, config) for line in np.flatnonzero(rows.label).tolist()}
    new = [
        line
        for line, at in moments.items()
        if rows.item_rows[line] not in met_before(dataset, rows.user_rows[line], at)
    ]
    # These towers read the age: a moment is a day.
    days = {at // DAY_MS for at in moments.values()}
    items = {day: item_vectors(model, dataset, day * DAY_MS) for day in days}
    users = dict(
        zip(
            new,
            user_vectors(model, dataset, rows.user_rows[new], np.array([moments[line] for line in new])),
            strict=True,
        )
    )
    best = {
        line: found_by_a_sort(dataset, line, moments[line], items[moments[line] // DAY_MS], users[line]) for line in new
    }
    expected = [line for line in new if rows.item_rows[line] in best[line]]
    assert 0 < len(expected) < len(new) < len(moments)  # this log has all kinds
    assert sorted(requests.examples.tolist()) == expected
    assert requests.found_share == len(expected) / len(new)
    for place, line in enumerate(requests.examples.tolist()):
        assert requests.at[place] == moments[line]
        assert requests.best[place].tolist() == [*best[line], *[-1] * (ASKED.num_candidates - len(best[line]))]
        queries, factors = as_products(model, users[line][None], items[moments[line] // DAY_MS])
        np.testing.assert_allclose(requests.user_vectors[place], queries[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(requests.item_vectors[requests.days[place]], factors, rtol=1e-4, atol=1e-5)


def test_vectors_of_new_items_are_stored_beside_those_of_known_ones(dataset, model, requests):
    at = int(requests.at[0]) // DAY_MS * DAY_MS
    new_items = item_vectors(model, dataset, at, as_new=True)
    _, factors = as_products(model, new_items[:0], new_items)
    np.testing.assert_allclose(requests.new_item_vectors[requests.days[0]], factors, rtol=1e-4, atol=1e-5)
    assert np.abs(requests.new_item_vectors - requests.item_vectors).max() > 0.01


def test_nothing_after_the_training_window_matters(dataset, config, model, requests, tmp_path):
    """The leak that flatters: items liked on the day of test left out of the negatives, or found by what came later."""
    events = [
        event if event.at < LAST_TRAIN_MS else type(event)(event.user, (event.item + 3) % 20, event.at, True, 1.0)
        for event in random_events(0)
    ]
    other = built(tmp_path, events)
    assert min(len(dataset.examples[split]) for split in ("validation", "test")) > 0
    again = mine_requests(model, other, config, seed=0, out=tmp_path / "mined")
    for name in ("examples", "at", "best", "user_vectors", "days", "item_vectors", "new_item_vectors"):
        np.testing.assert_array_equal(getattr(again, name), getattr(requests, name), err_msg=name)


def test_fewer_requests_are_drawn_and_the_same_for_a_seed(dataset, model, tmp_path):
    few = ASKED.model_copy(update={"max_requests": 20})
    first, same, other = (
        mine_requests(model, dataset, few, seed=seed, out=tmp_path / name).examples.tolist()
        for name, seed in (("first", 0), ("same", 0), ("other", 1))
    )
    assert first == same != other
    assert len(first) <= 20


def test_requests_are_of_the_last_days_alone(dataset, model, config, tmp_path):
    last = mine_requests(model, dataset, config.model_copy(update={"last_days": 3}), seed=0, out=tmp_path)
    rows = dataset.examples["train"]
    assert 0 < len(last) < int(rows.label.sum())
    assert rows.at[last.examples].min() > rows.at.max() - 3 * DAY_MS


def test_what_was_mined_is_not_mined_again(dataset, model, tmp_path):
    mined = mine_requests(model, dataset, ASKED, seed=0, out=tmp_path)
    written = (tmp_path / "best.npy").stat().st_mtime_ns
    again = mine_requests(model, dataset, ASKED, seed=0, out=tmp_path)
    assert (tmp_path / "best.npy").stat().st_mtime_ns == written
    np.testing.assert_array_equal(again.best, mined.best)


def test_lists_hold_the_positive_first_and_nothing_liked_competes(dataset, requests):
    rows = dataset.examples["train"]
    which = np.arange(len(requests))
    lists = draw_lists(requests, dataset, which, ASKED, rng=np.random.default_rng(0))
    assert lists.item_rows.shape == (len(which), 1 + 5)
    np.testing.assert_array_equal(lists.item_rows[:, 0], rows.item_rows[requests.examples])
    assert lists.competing[:, 0].all()
    for place in which:
        line = requests.examples[place]
        user = rows.user_rows[line]
        liked = set(rows.item_rows[(rows.user_rows == user) & rows.label].tolist())
        competing = lists.item_rows[place, 1:][lists.competing[place, 1:]].tolist()
        assert not liked & set(competing)
        retrieved = lists.item_rows[place, 1:6][lists.competing[place, 1:6]]
        assert set(retrieved.tolist()) <= set(requests.best[place, 1:].tolist())  # ranks [1, 6)


def test_ranks_are_those_of_the_retriever():
    best = np.array([[4, 2, 9], [1, -1, -1]], np.int32)
    assert ranks_in(best, np.array([[9, 4, 7], [1, 0, 2]])).tolist() == [[2, 0, 3], [0, 3, 3]]


def test_a_window_without_requests_is_said(dataset, model, tmp_path):
    nothing = built(tmp_path, [type(e)(e.user, e.item, e.at, e.at >= LAST_TRAIN_MS, 1.0) for e in random_events(0)])
    with pytest.raises(DataError, match=r"none on an item that was new to its user is among the 6 candidates"):
        mine_requests(model, nothing, ASKED, seed=0, out=tmp_path / "mined")
