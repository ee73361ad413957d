"""`retriever.kind: best`: what is served is the towers or a peer, whichever is better on the validation window."""

import inspect
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

import twofold
from tests import worlds
from tests.worlds import world_recipe
from twofold import progress
from twofold.dataset.dataset import load_dataset
from twofold.errors import RecipeError
from twofold.evaluate import peer_tuning
from twofold.evaluate.baseline_results import load_tuning
from twofold.evaluate.baselines import OWN_AGAIN
from twofold.evaluate.peer_tuning import RECENT_POPULARITY
from twofold.explain.gap import APPROXIMATE, IDS, STALE
from twofold.model.fold_in import FOLD_IN, FoldIn, ItemSums, RecencyPrior, load_factors, load_fold_ins, save_factors
from twofold.model.history_additions import ADDITIONS
from twofold.model.multi_tower import build_towers
from twofold.model.retriever import WEIGHTS, Blend, additions_of, item_vectors, load_model, user_vectors
from twofold.model.weights import load_weights
from twofold.page.run_page import read_run_page
from twofold.pipeline import best_model, served_model
from twofold.pipeline import run as pipeline
from twofold.pipeline.best_model import NEIGHBORS
from twofold.pipeline.job import Job, claim_folder, report_of
from twofold.pipeline.served_model import TOWERS, Served, ServedPeer
from twofold.ragged import Ragged
from twofold.recipe.features import HistoryFeature, TimeFeature
from twofold.run_folder import find_stage
from twofold.serve.recommender import load
from twofold.topk import Products, top_k

pytestmark = pytest.mark.usefixtures("small_ials")

DRAW = np.random.default_rng(0)
ITEMS = np.linalg.qr(DRAW.normal(size=(6, 3)))[0].astype(np.float32)  # columns at right angles, as FoldIn has them
LEFT = DRAW.normal(size=(6, 3)).astype(np.float32)
SERVING = (STALE, IDS, APPROXIMATE)
PARTS = (WEIGHTS, f"towers-1/{WEIGHTS}")
HISTORY = np.array([[0, 0, 2, 5, 2], [0, 0, 0, 0, 0], [1, 2, 3, 4, 5]], np.int32)


def test_a_user_is_the_sum_of_the_left_vectors_of_the_liked_items_each_once_over_the_root_of_their_number():
    found = ItemSums(ITEMS, LEFT, RecencyPrior((0.5,), (2,))).vectors({"positives": HISTORY})
    expected = [LEFT[[1, 4]].sum(axis=0) / 2**0.5, np.zeros(3), LEFT[:5].sum(axis=0) / 5**0.5]
    np.testing.assert_allclose(found, np.c_[expected, np.ones(3)], rtol=1e-5)


@pytest.mark.parametrize("prior", [None, RecencyPrior((0.25,), (3,))])
@pytest.mark.parametrize("kind", ["fold-in", "sums"])
def test_what_was_saved_is_loaded_beside_factors_and_beside_an_index(kind, prior, tmp_path):
    model = (
        FoldIn(ITEMS, LEFT[0], 2.0, 3.0, 0.5, prior, 0.5) if kind == "fold-in" else ItemSums(ITEMS, LEFT, prior, 0.5)
    )
    save_factors(model, tmp_path)
    indexed = ITEMS if prior is None else np.c_[ITEMS, np.ones(6, np.float32)]
    for loaded in (*load_factors(tmp_path), *load_fold_ins(tmp_path, indexed)):
        assert loaded.dim == model.dim == indexed.shape[1]
        assert loaded.prior == prior
        found, expected = (each.vectors({"positives": HISTORY}) for each in (loaded, model))
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match=r"fold_in.json has 3 dimensions, the item vectors have 2"):
        load_fold_ins(tmp_path, indexed[:, 1:])


def test_two_models_are_saved_beside_each_other_and_divide_the_columns_of_an_index(tmp_path):
    models = [FoldIn(ITEMS, LEFT[0], 2.0, 3.0, 0.5, RecencyPrior((0.25,), (3,))), ItemSums(ITEMS[:, :2], LEFT[:, :2])]
    for number, model in enumerate(models):
        save_factors(model, tmp_path, number=number)
    indexed = np.c_[ITEMS, np.ones(6, np.float32), ITEMS[:, :2]]
    for both in (load_factors(tmp_path), load_fold_ins(tmp_path, indexed)):
        assert [type(each) for each in both] == [FoldIn, ItemSums]
        for loaded, model in zip(both, models, strict=True):
            found, expected = (each.vectors({"positives": HISTORY}) for each in (loaded, model))
            np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match=r"fold_in.json has 2 dimensions, the item vectors have 1"):
        load_fold_ins(tmp_path, indexed[:, :-1])


def best(recipe, **train):
    retriever = recipe.retriever.model_copy(update={"kind": "best"})
    return recipe.model_copy(update={"retriever": retriever, "train": recipe.train.model_copy(update=train)})


def test_towers_that_learned_nothing_are_not_served(popularity_only, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY_S", 0.01)
    recipe = best(popularity_only, epochs=1, learning_rate=1e-9)
    run = twofold.run(recipe, runs=tmp_path).folder
    assert "peers       running for 0 s" in capsys.readouterr().err
    stage = find_stage(run, "train")
    facts = json.loads((stage.folder / "manifest.json").read_text())["facts"]
    assert facts["served"] != TOWERS
    assert facts["quality"][facts["served"]] > facts["quality"][TOWERS] > 0
    assert (run / "index" / FOLD_IN).exists()
    rows = {row.name: row.metrics["catalogue/recall@5"].value for row in report_of(run).catalogue.rows}
    assert rows["model"] > 0.9 * max(rows.values())
    assert rows["model"] > 1.3 * rows["random"]


@pytest.mark.parametrize(
    ("single", "chosen"),
    [
        ([0.6, 0.6, 0.6, 0.6], "single"),  # .1 better for each user
        ([0.9, 0.1, 0.8, 0.25], "fitted"),  # .01 better, with a standard error of .17
        ([0.4, 0.4, 0.4, 0.4], "fitted"),
        ([0.5, 0.5, 0.5, 0.5], "single"),
    ],
)
def test_a_single_model_is_served_where_it_is_better_than_the_fitted_sum_without_doubt(single, chosen, monkeypatch):
    monkeypatch.setattr(best_model, "_of_users", lambda window, scores, metrics: scores.queries[:, 0].astype(float))
    one, both = (
        (float(np.mean(values)), Served(name), Products(np.float32(values)[:, None], ITEMS[:, :1]))
        for name, values in (("single", single), ("fitted", [0.5] * 4))
    )
    assert inspect.unwrap(best_model._chosen)(None, one, both, ("", ""))[1].name == chosen


def test_neighbors_are_not_tried_where_the_window_has_too_many_likes(tmp_path, monkeypatch):
    monkeypatch.setattr(served_model, "MAX_RANK", 4)
    monkeypatch.setattr(peer_tuning, "IALS_MAX_POSITIVES", 10)
    monkeypatch.setattr(best_model, "MOST_PAIRS", 1)
    recipe = best(world_recipe(partners(tmp_path / "log"), {}), epochs=1)
    _, _, trained, _ = pipeline.up_to_training(Job(recipe, tmp_path))
    assert not [name for name in trained.facts["quality"] if NEIGHBORS in name]


EASE = ServedPeer("EASE", {"l2": 100.0}, {"weight": 0.1, "days": 2.0})
BESIDE = (
    ServedPeer("item-kNN", peer_tuning.PEER_KINDS[0].start, weight=0.2),
    ServedPeer(RECENT_POPULARITY, {"1": 0.3, "7": -0.2}),
)


@pytest.mark.parametrize(
    ("has_towers", "peers", "ensemble", "kind"),
    [
        (False, (EASE,), 1, ItemSums),
        pytest.param(False, (EASE, *BESIDE), 1, Blend, marks=pytest.mark.slow),
        (True, (replace(EASE, weight=0.3), *BESIDE), 2, Blend),
    ],
)
def test_what_is_served_is_what_was_evaluated(
    has_towers, peers, ensemble, kind, popularity_only, tmp_path, monkeypatch
):
    served = Served("chosen", has_towers=has_towers, peers=peers)
    monkeypatch.setattr(
        "twofold.pipeline.train.choose_served",
        lambda *given, has_days: (served, {}, served_model.fit_served(served, given[0], given[-1])),
    )
    recipe = best(popularity_only, epochs=1, learning_rate=0.01)
    hour = TimeFeature(kind="time", part="hour")  # which no peer reads
    features = recipe.features.model_copy(update={"user": (*recipe.features.user, hour)})
    retriever = recipe.retriever.model_copy(update={"ensemble": ensemble})
    recipe = recipe.model_copy(update={"features": features, "retriever": retriever})
    job, run = Job(recipe, tmp_path), tmp_path
    _, *fitted = pipeline.up_to_training(job)
    pipeline.recommend(job, pipeline.index(job, *fitted))
    dataset, service = load_dataset(run / "dataset"), load(run)
    model = load_model(recipe.retriever, dataset, run / "train")
    assert isinstance(model, kind)
    assert kind is ItemSums or len(model.parts) == len(peers) + ensemble * has_towers
    at = json.loads((run / "index" / "context.json").read_text())["as_of"]
    users = np.arange(5)
    scores = user_vectors(model, dataset, users, np.full(5, at)) @ item_vectors(model, dataset, at).T
    recommended = pq.read_table(run / "recommend" / "recommendations.parquet").to_pylist()
    for user in users:
        own = [each for each in recommended if each["user_id"] == dataset.users.ids[int(user)].as_py()]
        rows = dataset.items.rows_of(np.array([each["item_id"] for each in own]))
        np.testing.assert_allclose([each["score"] for each in own], scores[user, rows], rtol=1e-4, atol=1e-5)
    assert len(recommended) > 0
    assert service is not None


def test_the_scores_of_a_blend_are_those_of_the_towers_plus_the_weighted_ones_of_the_peer(popularity_only, tmp_path):
    job = Job(popularity_only, tmp_path)
    _, stage, trained, _ = pipeline.up_to_training(job)
    dataset, users, at = load_dataset(stage.folder), np.arange(7), np.full(7, 10**12)
    towers = load_weights(build_towers(job.recipe.retriever, dataset), trained.folder / WEIGHTS)
    peer = ItemSums(*DRAW.normal(size=(2, len(dataset.items), 3)).astype(np.float32), RecencyPrior((0.5,), (9,)), 0.25)

    def scores(model):
        return user_vectors(model, dataset, users, at) @ item_vectors(model, dataset, 10**12).T

    np.testing.assert_allclose(scores(Blend((towers, peer))), scores(towers) + scores(peer), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores(peer), 0.25 * scores(replace(peer, weight=1.0)), rtol=1e-4, atol=1e-6)


def habits(folder, *, num_users=90, num_items=250):
    """Each user has five items of their own, met again every day, the first most often; no two users are alike.

    Only how often the user met an item tells how likely it comes next, and items that were met may be recommended.
    """
    draw = np.random.default_rng(11)
    lines = []
    for user in range(num_users):
        own = draw.choice(num_items, size=5, replace=False)
        for day in (*worlds.TRAIN_DAYS, worlds.VALIDATION, worlds.TEST):
            size = 6 if day in worlds.TRAIN_DAYS else 2
            items = own[np.minimum(draw.geometric(0.5, size=size) - 1, 4)]
            at = day * worlds.DAY_MS + np.arange(size) * worlds.HOUR_MS
            lines += zip([user] * size, items, at, [True] * size, strict=True)
    data = worlds.write_world(folder, worlds.events_of(lines, draw), worlds.items_of(num_items))
    return world_recipe(data, {"index": {"include_seen": True}})


@pytest.mark.parametrize("learning_rate", [1e-9, pytest.param(0.01, marks=pytest.mark.slow)])
def test_where_users_come_back_to_items_how_often_they_met_them_is_added(learning_rate, tmp_path):
    recipe = best(habits(tmp_path / "log"), epochs=2, learning_rate=learning_rate, refit=True)
    run = twofold.run(recipe, runs=tmp_path).folder
    facts = find_stage(run, "train").facts
    assert facts["served"].endswith(f" + {OWN_AGAIN}")
    assert facts["best"]["repeats"] > 0
    rows = {row.name: row.metrics["catalogue/ndcg@10"].value for row in report_of(run).catalogue.rows}
    assert rows["model"] > 0.97 * rows[OWN_AGAIN] > 0.6
    check_that_lists_have_the_scores_of_the_model(recipe, run)


def check_that_lists_have_the_scores_of_the_model(recipe, run, *, include_seen=True):
    """No step from the model, with its additions, to the lists of the service may cost anything."""
    explained = json.loads((run / "explain" / "gap.json").read_text())
    assert all(abs(step["change"]) < 0.01 for step in explained["serving"] if step["cause"] in SERVING)
    assert explained["faults"] == []
    dataset, service = load_dataset(run / "dataset"), load(run)
    model = load_model(recipe.retriever, dataset, run / "train")
    users, at = np.arange(len(dataset.users)), service.bundle.as_of
    scores = user_vectors(model, dataset, users, np.full(len(users), at)) @ item_vectors(model, dataset, at).T
    added = additions_of(model, dataset, users, np.full(len(users), at))
    scores[added.rows.lines, added.rows.values] += added.values
    if not include_seen:
        seen = dataset.events.before(users, np.full(len(users), at))
        excluded = Ragged(*dataset.events.slices(users, seen))
        scores[excluded.lines, excluded.values] = -np.inf
    for user in users[::10].tolist():
        listed = service.recommend([dataset.users.ids[user].as_py()], k=8)
        found = dataset.items.rows_of(listed["item_id"].combine_chunks())
        expected = top_k(scores[user : user + 1].astype(np.float32), 8).item_rows[0]
        np.testing.assert_allclose(scores[user, found], scores[user, expected], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(listed["score"].to_numpy(), scores[user, found], rtol=1e-4, atol=1e-5)


def partners(folder, *, num_users=300, num_items=200):
    """Items come in pairs: who likes one on the first day likes the other later. Pairs have nothing else in common."""
    draw = np.random.default_rng(5)
    partner = np.empty(num_items, np.int64)
    mixed = draw.permutation(num_items).reshape(-1, 2)
    partner[mixed[:, 0]], partner[mixed[:, 1]] = mixed[:, 1], mixed[:, 0]
    lines = []
    for user in range(num_users):
        for second in (*worlds.TRAIN_DAYS[1:], worlds.VALIDATION, worlds.TEST):
            item = int(draw.integers(num_items))
            for day, liked in ((worlds.TRAIN_DAYS[0], item), (second, int(partner[item]))):
                lines.append((user, liked, day * worlds.DAY_MS + int(draw.integers(worlds.DAY_MS)), True))
    return worlds.write_world(folder, worlds.events_of(lines, draw), worlds.items_of(num_items))


def test_pairs_of_items_that_no_vectors_hold_are_served_by_the_exact_scores_of_neighbors(tmp_path, monkeypatch):
    monkeypatch.setattr(served_model, "MAX_RANK", 4)
    monkeypatch.setattr(peer_tuning, "IALS_MAX_POSITIVES", 10)  # iALS of 128 dimensions holds a few hundred pairs
    recipe = best(world_recipe(partners(tmp_path / "log"), {}), epochs=1, refit=True)
    run = twofold.run(recipe, runs=tmp_path).folder
    facts = find_stage(run, "train").facts
    assert facts["served"].endswith(f" + {NEIGHBORS}")
    assert facts["best"]["neighbors"]["weight"] > 0
    rows = {row.name: row.metrics["catalogue/ndcg@10"].value for row in report_of(run).catalogue.rows}
    assert rows["model"] > 0.75 * rows["item-kNN"] > 0.3
    check_that_lists_have_the_scores_of_the_model(recipe, run, include_seen=False)


def test_where_items_are_not_met_again_nothing_is_added(popularity_only, tmp_path):
    _, _, trained, _ = pipeline.up_to_training(Job(best(popularity_only, epochs=1), tmp_path))
    assert OWN_AGAIN not in trained.facts["served"]
    assert trained.facts["best"]["repeats"] == 0
    assert not (trained.folder / ADDITIONS).exists()


def test_an_ensemble_holds_the_towers_of_consecutive_seeds(popularity_only, tmp_path):
    def weights(name, **changes):
        retriever = popularity_only.retriever.model_copy(update={"ensemble": changes.pop("ensemble", 1)})
        train = popularity_only.train.model_copy(update={"epochs": 1, **changes})
        job = Job(popularity_only.model_copy(update={"retriever": retriever, "train": train}), tmp_path / name)
        _, _, trained, _ = pipeline.up_to_training(job)
        return trained, [(trained.folder / part).read_bytes() for part in PARTS if (trained.folder / part).exists()]

    trained, both = weights("both", ensemble=2, refit=True)
    assert [len(each["epochs"]) for each in (trained.facts, *trained.facts["ensemble"])] == [1, 1]
    (first,), (second,) = weights("first", refit=True)[1], weights("second", refit=True, seed=1)[1]
    assert both == [first, second]


def test_towers_that_no_peer_beats_are_served(tmp_path):
    """Items of the world are new every day, so a peer has nothing to know them by."""
    recipe = worlds.fresh(tmp_path)
    history = HistoryFeature(kind="history", events="positives", max_length=5)
    recipe = recipe.model_copy(update={"features": recipe.features.model_copy(update={"user": (history,)})})
    _, _, trained, _ = pipeline.up_to_training(Job(best(recipe), tmp_path))
    assert trained.facts["served"] == TOWERS
    assert trained.facts["quality"][TOWERS] == max(trained.facts["quality"].values()) > 0.4
    assert not (trained.folder / FOLD_IN).exists()


@pytest.mark.parametrize("has_peer", [pytest.param(False, marks=pytest.mark.slow), True])
def test_after_a_selection_what_is_served_is_fitted_with_the_validation_window(has_peer, checkerboard, tmp_path):
    recipe = checkerboard.model_copy(
        update={"train": checkerboard.train.model_copy(update={"refit": True, "epochs": 2})}
    )
    recipe = best(recipe) if has_peer else recipe
    job, folder = Job(recipe, tmp_path), tmp_path
    claim_folder(job, overwrite=False)
    stages = pipeline.up_to_training(job)
    chosen, final = (find_stage(each, "train").facts for each in (folder / "selection", folder))
    first, last = (load_dataset(each / "dataset") for each in (folder / "selection", folder))
    assert len(last.examples["train"]) == len(first.examples["train"]) + len(first.examples["validation"])
    for name in ("validation", "test"):
        assert len(last.examples[name]) == len(first.examples[name])
    order = np.lexsort((last.examples["train"].at, last.examples["train"].user_rows))
    np.testing.assert_array_equal(order, np.arange(len(order)))
    known = [epoch["validation"] for epoch in chosen["epochs"][: chosen["best_epoch"] + 1]]
    assert [epoch["validation"] for epoch in final["epochs"]] == known
    assert final["best_epoch"] == len(known) - 1
    if has_peer:
        assert final["best"] == chosen["best"]
        pipeline.evaluate(job, *stages)
        curve = next(each for each in read_run_page(folder).curves if each.name == "validation")
        assert len(curve.points) == len(chosen["epochs"])
        assert report_of(folder).tuning == load_tuning(folder / "train") == load_tuning(folder / "selection" / "train")


def test_a_recipe_without_a_positive_history_is_refused(checkerboard):
    user = [{"kind": "sequence", "max_length": 20}]
    parts = {"features": {"user": user, "item": [{"kind": "id"}]}, "retriever": {"kind": "best", "dim": 16}}
    with pytest.raises((RecipeError, ValueError), match="kind: best may serve item-kNN, EASE or iALS.*features.user"):
        world_recipe(checkerboard.data.model_dump(mode="json"), parts)


def test_a_low_rank_model_of_full_rank_has_the_weights():
    weights = DRAW.normal(size=(8, 8)).astype(np.float32)
    left, right = served_model._low_rank(weights)
    assert left.shape == (8, 7)
    u, s, v = np.linalg.svd(weights)
    np.testing.assert_allclose(left @ right.T, (u[:, :7] * s[:7]) @ v[:7], atol=1e-4)
