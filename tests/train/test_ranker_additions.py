"""A ranker behind a retriever that adds to the scores of some items: training reads the scores that are served."""

import numpy as np
import pytest
import torch

from tests.dataset.prepared import FEATURES, random_events, write_prepared
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import load_dataset
from twofold.item_neighbors import ItemNeighbors
from twofold.model.history_additions import HistoryAdditions
from twofold.model.ranker import EncodedItems, EncodedUsers, RetrieverAndRankerData, Scales, build_ranker, rank_scores
from twofold.model.retriever import Blend, additions_of, item_vectors, user_vectors
from twofold.model.two_tower import build_two_tower
from twofold.recipe.ranker import Candidates, Head, Mlp
from twofold.recipe.retriever import Dot, TwoTower
from twofold.tables import DAY_MS
from twofold.train import ranker as training
from twofold.train.ranker import gather_impressions, gather_lists
from twofold.train.ranker_examples import Mining, mine_requests
from twofold.train.ranker_impressions import mine_impressions

CONFIG = Mlp(kind="mlp", candidates=Candidates(num_candidates=6, num_retrieved=5), heads=(Head(outcome="long"),))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("additions")
    write_prepared(folder / "prepare", random_events(0))
    build_dataset(folder / "prepare", FEATURES, folder / "dataset", time_zone="Asia/Shanghai")
    dataset = load_dataset(folder / "dataset")
    rows = dataset.examples["train"]
    rows.outcomes["long"] = np.random.default_rng(0).random(len(rows)).astype(np.float32)
    return dataset


@pytest.fixture(scope="module")
def model(dataset):
    torch.manual_seed(0)
    towers = build_two_tower(
        TwoTower(kind="two_tower", dim=8, score=Dot(kind="dot")), dataset.features, dataset.vectors
    )
    draw, num_items = np.random.default_rng(1), len(dataset.items)
    near = np.stack([draw.choice(num_items, size=4, replace=False) for _ in range(num_items)]).astype(np.int32)
    return Blend((towers,), HistoryAdditions(5, 0.1, ItemNeighbors(near, draw.random(near.shape).astype(np.float32))))


@pytest.fixture(scope="module")
def requests(dataset, model, tmp_path_factory):
    return mine_requests(model, dataset, CONFIG.candidates, seed=0, out=tmp_path_factory.mktemp("mined"))


def dense_scores(model, dataset, user_rows, at):
    """The scores of each request for all items, and what of them the history adds."""
    items = {day: item_vectors(model, dataset, day * DAY_MS) for day in np.unique(at // DAY_MS).tolist()}
    users = user_vectors(model, dataset, user_rows, at)
    scores = np.stack([items[day] @ user for day, user in zip((at // DAY_MS).tolist(), users, strict=True)])
    found, added = additions_of(model, dataset, user_rows, at), np.zeros_like(scores)
    added[found.rows.lines, found.rows.values] = found.values
    return scores + added, added


def test_candidates_are_those_of_the_scores_with_additions(dataset, model, requests):
    rows = dataset.examples["train"]
    scores, added = dense_scores(model, dataset, rows.user_rows[requests.examples], np.asarray(requests.at))
    assert added.any(axis=1).mean() > 0.5
    for line, best in enumerate(requests.best):
        listed = best[best >= 0]
        assert (np.diff(scores[line, listed]) <= 1e-5).all()
        np.testing.assert_allclose(requests.added[line, best >= 0], added[line, listed], rtol=1e-5)
        others = [
            *dataset.events.item_rows[slice(*dataset.events.offsets[rows.user_rows[requests.examples[line]] + [0, 1]])],
            *listed,
        ]
        rest = np.setdiff1d(np.arange(dataset.items.num_known), others)
        assert scores[line, rest].max(initial=-np.inf) <= scores[line, listed].min() + 1e-5


def test_a_ranker_learns_from_the_scores_with_additions(dataset, model, requests, monkeypatch, tmp_path):
    monkeypatch.setattr(training, "UNKNOWN_RATE", 0.0)
    rows, which = dataset.examples["train"], np.arange(len(requests))
    batch = gather_lists(requests, dataset, which, CONFIG, seed=(0,))
    scores, _ = dense_scores(model, dataset, rows.user_rows[requests.examples], np.asarray(requests.at))
    read = torch.einsum("qd,qld->ql", batch.user_vectors, batch.item_vectors)[:, 0].numpy()
    np.testing.assert_allclose(read, scores[which, rows.item_rows[requests.examples]], rtol=1e-4, atol=1e-5)
    mining = Mining(model, dataset, CONFIG.candidates)
    (tmp_path / "mined").mkdir()
    shown = mine_impressions(mining, requests, CONFIG, out=tmp_path / "mined")
    which = np.arange(len(shown))
    batch = gather_impressions(shown, dataset, which, CONFIG, seed=(0,))
    scores, _ = dense_scores(model, dataset, rows.user_rows[shown.examples], np.asarray(shown.at))
    read = torch.einsum("qd,qld->ql", batch.user_vectors, batch.item_vectors)[:, 0].numpy()
    np.testing.assert_allclose(read, scores[which, rows.item_rows[shown.examples]], rtol=1e-4, atol=1e-5)


def test_the_retriever_alone_is_its_scores_with_additions(dataset, model, requests):
    arrays = RetrieverAndRankerData(dataset, dataset)
    dim = requests.user_vectors.shape[1]
    ranker = build_ranker(CONFIG, arrays.ranker.features, arrays.ranker.vectors, vector_dim=dim + 1).eval()
    ranker.fit_scales(Scales(score_mean=0.0, score_std=1.0, rank_mean=0.0, rank_std=1.0))
    ranker.set_retriever_share(1.0)
    users, at = np.arange(len(dataset.users)), 13 * DAY_MS
    moments, count = np.full(len(users), at), len(dataset.items)
    side = EncodedItems(item_vectors(model, dataset, at), np.zeros((count, CONFIG.dim), np.float32))
    added = additions_of(model, dataset, users, moments)
    encoded = EncodedUsers(
        np.zeros((len(users), CONFIG.dim), np.float32), user_vectors(model, dataset, users, moments), added
    )
    item_rows = np.stack([np.random.default_rng(user).permutation(count) for user in users])
    found = rank_scores(ranker, side, encoded, item_rows, np.zeros((*item_rows.shape, 1), np.int64))
    expected, _ = dense_scores(model, dataset, users, moments)
    np.testing.assert_allclose(found, np.take_along_axis(expected, item_rows, axis=1), rtol=1e-4, atol=1e-5)
