"""`retriever.kind: best`: what is served is the towers or a peer, whichever is better on the validation window."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

import twofold
from tests.worlds import world_recipe
from twofold.dataset.dataset import load_dataset
from twofold.errors import RecipeError
from twofold.model.fold_in import FOLD_IN, FoldIn, ItemSums, RecencyPrior, load_factors, load_fold_in, save_factors
from twofold.model.retriever import item_vectors, load_model, user_vectors
from twofold.pipeline import best_model
from twofold.pipeline.best_model import TOWERS
from twofold.pipeline.job import Job, report_of
from twofold.pipeline.run import up_to_training
from twofold.run_folder import find_stage
from twofold.serve.recommender import load

DRAW = np.random.default_rng(0)
ITEMS, LEFT = (DRAW.normal(size=(6, 3)).astype(np.float32) for _ in range(2))
HISTORY = np.array([[0, 0, 2, 5, 2], [0, 0, 0, 0, 0], [1, 2, 3, 4, 5]], np.int32)


def test_a_user_is_the_sum_of_the_left_vectors_of_the_liked_items_each_once():
    found = ItemSums(ITEMS, LEFT, RecencyPrior(0.5, 2)).vectors({"positives": HISTORY})
    expected = [LEFT[[1, 4]].sum(axis=0), np.zeros(3), LEFT[:5].sum(axis=0)]
    np.testing.assert_allclose(found, np.c_[expected, np.ones(3)], rtol=1e-5)


@pytest.mark.parametrize("prior", [None, RecencyPrior(0.25, 3)])
@pytest.mark.parametrize("kind", ["fold-in", "sums"])
def test_what_was_saved_is_loaded_beside_factors_and_beside_an_index(kind, prior, tmp_path):
    model = FoldIn(ITEMS, LEFT[0], 2.0, 3.0, prior) if kind == "fold-in" else ItemSums(ITEMS, LEFT, prior)
    save_factors(model, tmp_path)
    indexed = ITEMS if prior is None else np.c_[ITEMS, np.ones(6, np.float32)]
    for loaded in (load_factors(tmp_path), load_fold_in(tmp_path, indexed)):
        assert loaded.dim == model.dim == indexed.shape[1]
        assert loaded.prior == prior
        found, expected = (each.vectors({"positives": HISTORY}) for each in (loaded, model))
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match=r"fold_in.json has 3 dimensions, the item vectors have 2"):
        load_fold_in(tmp_path, indexed[:, 1:])


def best(recipe, **train):
    retriever = recipe.retriever.model_copy(update={"kind": "best"})
    return recipe.model_copy(update={"retriever": retriever, "train": recipe.train.model_copy(update=train)})


@pytest.fixture(scope="module")
def served_peer(popularity_only, tmp_path_factory):
    """A run whose towers learned nothing."""
    recipe = best(popularity_only, epochs=1, learning_rate=1e-9)
    return twofold.run(recipe, runs=tmp_path_factory.mktemp("runs"))


def test_towers_that_learned_nothing_are_not_served(served_peer):
    run = served_peer.folder
    facts = find_stage(run, "train").facts
    assert facts["served"] != TOWERS
    assert facts["quality"][facts["served"]] > facts["quality"][TOWERS] > 0
    assert (run / "index" / FOLD_IN).exists()
    rows = {row.name: row.metrics["catalogue/recall@5"].value for row in report_of(run).catalogue.rows}
    assert rows["model"] == pytest.approx(rows[facts["served"]], abs=0.03)
    assert rows["model"] > 1.3 * rows["random"]


def test_what_is_served_is_what_was_evaluated(served_peer):
    run = served_peer.folder
    dataset, service = load_dataset(run / "dataset"), load(run)
    model = load_model(served_peer.recipe.retriever, dataset, run / "train")
    at = json.loads((run / "index" / "context.json").read_text())["as_of"]
    users = np.arange(5)
    scores = user_vectors(model, dataset, users, np.full(5, at)) @ item_vectors(model, dataset, at).T
    served = pq.read_table(run / "recommend" / "recommendations.parquet").to_pylist()
    for user in users:
        own = [each for each in served if each["user_id"] == dataset.users.ids[int(user)].as_py()]
        rows = dataset.items.rows_of(np.array([each["item_id"] for each in own]))
        np.testing.assert_allclose([each["score"] for each in own], scores[user, rows], rtol=1e-4, atol=1e-5)
    assert len(served) > 0
    assert service is not None


def test_towers_that_no_peer_beats_are_served(checkerboard, tmp_path):
    _, _, trained, _ = up_to_training(Job(best(checkerboard, epochs=6), tmp_path))
    assert trained.facts["served"] == TOWERS
    assert trained.facts["quality"][TOWERS] > 0.9
    assert not (trained.folder / FOLD_IN).exists()


def test_a_recipe_without_a_positive_history_is_refused(checkerboard):
    user = [{"kind": "sequence", "events": "positives", "max_length": 20}]
    parts = {"features": {"user": user, "item": [{"kind": "id"}]}, "retriever": {"kind": "best", "dim": 16}}
    with pytest.raises((RecipeError, ValueError), match="kind: best may serve item-kNN, EASE or iALS.*features.user"):
        world_recipe(checkerboard.data.model_dump(mode="json"), parts)


def test_a_low_rank_model_of_full_rank_has_the_weights():
    weights = DRAW.normal(size=(8, 8)).astype(np.float32)
    left, right = best_model._low_rank(weights)
    assert left.shape == (8, 7)
    u, s, v = np.linalg.svd(weights)
    np.testing.assert_allclose(left @ right.T, (u[:, :7] * s[:7]) @ v[:7], atol=1e-4)
