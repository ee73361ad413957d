"""A service with a ranker returns the order and scores of the evaluation, in tables and over HTTP."""

import asyncio
import shutil

import numpy as np
import pytest
import torch

from tests.dataset.prepared import FEATURES, random_events, write_prepared
from twofold.dataset.batches import item_batches, query_batches
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import load_dataset
from twofold.errors import RunError
from twofold.index.item_index import build_index, save_index
from twofold.model.onnx_export import export_user_tower
from twofold.model.ranker import EncodedUsers, build_ranker, encode_items, load_ranker_data, rank_scores, save_ranker
from twofold.model.retriever import as_products, item_vectors, user_vectors
from twofold.model.two_tower import build_two_tower
from twofold.model.weights import encode
from twofold.recipe.features import Features
from twofold.recipe.ranker import Mlp
from twofold.recipe.retriever import NegativeDistance, TwoTower
from twofold.run_folder import MANIFEST, run_stage
from twofold.serve import load
from twofold.serve.bundle import save_context
from twofold.serve.event_store import open_histories
from twofold.serve.live_bundle import nearest, open_live_bundle
from twofold.serve.onnx_models import RANKER_ITEMS, USER_TOWER
from twofold.serve.prometheus import ServiceMetrics
from twofold.serve.rank_schemas import Rank
from twofold.serve.schemas import Context, Recommend
from twofold.serve.service import Service
from twofold.serve.user_state import user_state_of
from twofold.topk import tie_order

pytestmark = pytest.mark.slow  # graphs are exported

TOP = 6
FORMULA = 'GREATEST(relevance, -9999) + LN("like" / (1 - "like")) - COALESCE(SQRT(relevance), long) / POWER(3, long)'
PLAIN = Mlp.model_validate(
    {"kind": "mlp", "dim": 4, "hidden": [5], "candidates": {"num_candidates": TOP}}
    | {"heads": [{"outcome": "long"}, {"outcome": "like"}], "formula": FORMULA}
)
# Each stage has features that the other does not read.
RETRIEVER = Features(vectors=FEATURES.vectors, user=FEATURES.user[:9], item=FEATURES.item)
RANKER = Features(vectors=FEATURES.vectors, user=FEATURES.user[7:], item=FEATURES.item[:3])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Returns the run folder, the dataset, the retriever's order and the ranker's scores, one row per user."""
    folder = tmp_path_factory.mktemp("run")
    write_prepared(folder / "prepare", random_events(0))
    as_of = (
        build_dataset(folder / "prepare", FEATURES, folder / "dataset", time_zone="Asia/Shanghai")["last_event_at"] + 1
    )
    dataset, arrays = load_dataset(folder / "dataset"), load_ranker_data(folder / "dataset", RETRIEVER, RANKER)
    torch.manual_seed(0)
    score = NegativeDistance(kind="negative_distance")
    model = build_two_tower(TwoTower(kind="two_tower", dim=8, score=score), arrays.retriever.features, dataset.vectors)
    ranker = build_ranker(PLAIN, arrays.ranker.features, dataset.vectors, vector_dim=10).eval()
    with torch.no_grad():  # the untrained ranker keeps the order
        for weights in ranker.parameters():
            weights.add_(torch.randn_like(weights))

    def work(out):
        vectors = encode(model.item, item_batches(arrays.retriever, as_of))
        save_index(build_index(vectors, score=model.score), out)
        export_user_tower(model.user, out / USER_TOWER)
        _, factors = as_products(model, vectors[:1], vectors)
        save_ranker(ranker, arrays, factors, at=as_of, folder=out)
        save_context(folder / "dataset", out, as_of=as_of)
        return {}

    run_stage(folder, "index", inputs={}, work=work)
    users = np.arange(len(dataset.users))
    at = np.full(len(users), as_of)
    users_vectors = user_vectors(model, arrays.retriever, users, at)
    queries, factors = as_products(model, users_vectors, item_vectors(model, arrays.retriever, as_of))
    found = np.argsort(-(queries @ factors.T), axis=1)  # no ties in an untrained model
    candidates, positions = found[:, :TOP], np.tile(np.arange(TOP)[:, None], (len(users), 1, 1))
    side = encode_items(ranker, arrays.ranker, factors, as_of)
    of_ranker = encode(ranker.user, query_batches(arrays.ranker, users, at))
    return folder, dataset, found, rank_scores(ranker, side, EncodedUsers(of_ranker, queries), candidates, positions)


def test_the_best_are_ordered_by_the_ranker_and_the_rest_by_the_retriever(world) -> None:
    folder, dataset, found, scores = world
    items = len(dataset.items)
    table = load(folder).recommend(dataset.users.ids, k=items, exclude_seen=False)
    rows = dataset.items.rows_of(table["item_id"]).reshape(-1, items)
    served = np.asarray(table["score"]).reshape(rows.shape)
    order = np.argsort(-scores, axis=1)
    assert rows[:, :TOP].tolist() == np.take_along_axis(found[:, :TOP], order, axis=1).tolist()
    np.testing.assert_allclose(served[:, :TOP], np.take_along_axis(scores, order, axis=1), rtol=1e-4, atol=1e-4)
    assert rows[:, TOP:].tolist() == found[:, TOP:].tolist()
    assert (np.diff(served, axis=1) <= 1e-5).all()
    assert rows[:, :TOP].tolist() != found[:, :TOP].tolist()  # the ranker changes the order


def test_a_list_shorter_than_the_candidates_has_the_best_of_all_candidates(world) -> None:
    folder, dataset, found, scores = world
    table = load(folder).recommend(dataset.users.ids, k=2, exclude_seen=False)
    rows = dataset.items.rows_of(table["item_id"]).reshape(-1, 2)
    order = np.argsort(-scores, axis=1)[:, :2]
    assert rows.tolist() == np.take_along_axis(found[:, :TOP], order, axis=1).tolist()


def test_ties_have_the_fixed_order_and_few_candidates_work(world, monkeypatch) -> None:
    folder, dataset, found, _ = world
    live_bundle = open_live_bundle(folder)
    monkeypatch.setattr(
        type(live_bundle.bundle.ranker),
        "scores",
        lambda ranker, users, item_rows, *_: np.zeros(item_rows.shape, np.float32),
    )
    few = live_bundle.bundle.filters.eligible("length_s >= 0").without_rows(found[0, :-3])
    states = [user_state_of(live_bundle.bundle, row, ()) for row in range(3)]
    rank, _ = tie_order(len(dataset.items))
    expected = sorted(found[0, -3:].tolist(), key=lambda row: -rank[row])
    ranked = nearest(live_bundle, states, 5, allowed=few)
    assert ranked.item_rows.tolist() == [[*expected, -1, -1]] * 3
    assert ranked.counts.tolist() == [3] * 3
    assert np.isneginf(ranked.scores[:, 3:]).all()


def test_an_explained_list_has_the_ranks_of_the_retriever(world, tmp_path) -> None:
    folder, dataset, found, _ = world
    user = dataset.users.ids[3].as_py()
    request = Recommend(user_id=user, k=4, exclude_seen=False, explain=True)

    async def recommend():
        service = Service(open_live_bundle(folder), folder.parent, open_histories(tmp_path / "h.db"), ServiceMetrics())
        try:
            return await service.recommend(request)
        finally:
            await service.histories.close()

    reply = asyncio.run(recommend())
    retriever_rank = {item: index + 1 for index, item in enumerate(found[3].tolist())}
    assert [item.retrieved.rank for item in reply.items] == [
        retriever_rank[dataset.items.row_of(item.item_id)] for item in reply.items
    ]
    best_first = sorted(reply.items, key=lambda item: item.retrieved.rank)
    assert [item.retrieved.score for item in best_first] == sorted(
        (i.retrieved.score for i in best_first), reverse=True
    )


def test_given_items_have_the_order_of_a_list_of_these_items(world, tmp_path) -> None:
    folder, dataset, *_ = world
    ids, people, draw = dataset.items.ids.to_pylist(), dataset.users.ids[:4].to_pylist(), np.random.default_rng(0)
    recommender = load(folder)
    service = Service(open_live_bundle(folder), folder.parent, open_histories(tmp_path / "h.db"), ServiceMetrics())

    async def rank(user, items):
        given = Rank(user_id=user, item_ids=items, context=Context(recommender.bundle.as_of))
        return (await service.rank(given)).items

    async def compare():
        for user, number in zip(people, (3, TOP, TOP + 2, len(ids)), strict=True):  # fewer and more than the candidates
            given = draw.permutation(ids)[:number].tolist()
            table = recommender.recommend([user], k=number, items=given, exclude_seen=False)
            found = await rank(user, given)
            assert [item.item_id for item in found] == table["item_id"].to_pylist()
            np.testing.assert_allclose([item.score for item in found], table["score"].to_numpy(), rtol=1e-5, atol=1e-5)
        await service.histories.close()

    asyncio.run(compare())


def test_a_ranker_of_another_catalogue_is_refused(world, tmp_path) -> None:
    folder, *_ = world

    def work(out):
        shutil.copytree(folder / "index", out, ignore=shutil.ignore_patterns(MANIFEST), dirs_exist_ok=True)
        np.save(out / RANKER_ITEMS, np.load(out / RANKER_ITEMS)[1:])
        return {}

    run_stage(tmp_path, "index", inputs={}, work=work)
    with pytest.raises(RunError, match=r"ranker_items.npy does not have \d+ items. Delete .*/index and run"):
        load(tmp_path)
