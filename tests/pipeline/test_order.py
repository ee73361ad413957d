"""The order of both stages: validation chooses the weights of ranker and retriever, and the report says which."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests import worlds
from tests.pipeline.test_best_model import best, partners
from twofold.evaluate import peer_tuning
from twofold.evaluate.catalogue import evaluate_catalogue
from twofold.pipeline import run as pipeline
from twofold.pipeline import served_model
from twofold.pipeline.adapters import catalogue_scores, two_stages, window_of
from twofold.pipeline.best_model import NEIGHBORS
from twofold.pipeline.job import Job, claim_folder, report_of, selection_job
from twofold.pipeline.train import RETRIEVER_SHARES
from twofold.pipeline.trained_models import load_models
from twofold.recipe.schema import Recipe
from twofold.run_folder import open_stage
from twofold.serve.recommender import load

NDCG = "catalogue/ndcg@10"


def evaluated(recipe: Recipe, folder: Path) -> Job:
    """Runs the stages up to a report without baselines."""
    folder.mkdir(exist_ok=True)
    recipe = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"brief": True})})
    job = Job(recipe, folder)
    claim_folder(job, overwrite=False)
    pipeline.evaluate(job, *pipeline.up_to_training(job))
    return job


def test_the_weight_with_the_best_ndcg_on_validation_is_kept(tmp_path: Path) -> None:
    job = evaluated(worlds.polished(tmp_path / "log"), tmp_path / "run")
    stages = [open_stage(job.folder, name) for name in ("dataset", "train", "train/ranker")]
    models, facts = load_models(job, *stages), stages[2].facts
    assert models.ranker is not None
    window = window_of(job.recipe, models.data.retriever, "validation")
    found = {}
    for share in RETRIEVER_SHARES:
        models.ranker.set_retriever_share(share)
        found[share] = evaluate_catalogue(window, two_stages(models, models.ranker, window), ks=(10,)).mean(NDCG)
    assert dict(facts["shares"]) == pytest.approx(found)
    assert found[facts["retriever_share"]] == max(found.values())
    assert found[facts["retriever_share"]] > found[1.0] + 0.2  # the ranker alone sees what decides
    assert any(sentence.startswith("Order of the candidates") for sentence in report_of(job.folder).verdict)


def test_a_ranker_that_loses_on_validation_changes_no_order(tmp_path: Path, checkerboard: Recipe) -> None:
    """The retriever finds the one right item; the ranker is spoiled by its learning rate."""
    ranker = {"kind": "mlp", "candidates": {"num_candidates": 10}, "epochs": 1, "learning_rate": 1.0, "hidden": [8]}
    job = evaluated(Recipe.model_validate(checkerboard.model_dump() | {"ranker": ranker}), tmp_path)
    facts, report = open_stage(job.folder, "train/ranker").facts, report_of(job.folder)
    shares = dict(facts["shares"])
    assert facts["retriever_share"] == 1.0
    assert shares[0.0] < shares[1.0]
    both, alone = (row for row in report.catalogue.rows if row.name in ("model", "retriever alone"))
    assert both.metrics == alone.metrics
    (said,) = (sentence for sentence in report.verdict if sentence.startswith("Order of the candidates"))
    assert "the retriever alone, NDCG@" in said
    assert said.endswith("The ranker gains nothing and changes no order.")


@pytest.mark.slow
def test_the_retriever_alone_is_served_with_its_additions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbors find what no vectors hold, and the ranker is spoiled by its learning rate: it must lose nothing."""
    monkeypatch.setattr(peer_tuning, "IALS_MAX_POSITIVES", 10)
    monkeypatch.setattr(served_model, "MAX_RANK", 4)
    recipe = best(worlds.world_recipe(partners(tmp_path / "log"), {}), epochs=1)
    ranker = {"kind": "mlp", "candidates": {"num_candidates": 20}, "epochs": 1, "learning_rate": 1.0, "hidden": [8]}
    job = evaluated(Recipe.model_validate(recipe.model_dump() | {"ranker": ranker}), tmp_path / "run")
    stages = [open_stage(job.folder, name) for name in ("dataset", "train", "train/ranker")]
    assert stages[1].facts["served"].endswith(NEIGHBORS)
    assert stages[2].facts["retriever_share"] == 1.0
    both, alone = (row for row in report_of(job.folder).catalogue.rows if row.name in ("model", "retriever alone"))
    assert both.metrics == alone.metrics
    pipeline.index(job, *stages)
    arrays, bundle = load_models(job, *stages).data.retriever, load(job.folder)
    window = replace(window_of(job.recipe, arrays, "test"), query_at=np.full(300, bundle.bundle.as_of))
    scores = catalogue_scores(load_models(job, *stages).retriever, arrays, window)(slice(0, 50))
    users = arrays.users.ids_of(window.user_rows[:50]).to_pylist()
    listed = bundle.recommend(users, k=5, exclude_seen=False)["item_id"].combine_chunks()
    found = np.take_along_axis(scores, arrays.items.rows_of(listed).reshape(50, 5), axis=1)
    np.testing.assert_allclose(found, np.sort(scores, axis=1)[:, :-6:-1], rtol=1e-4, atol=1e-5)


def test_a_second_fit_has_the_weight_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def quality(*arguments: object) -> dict[float, float]:
        calls.append(arguments)
        return {0.0: 0.1, 0.5: 0.3, 1.0: 0.2}

    monkeypatch.setattr("twofold.pipeline.train._quality_by_share", quality)
    recipe = worlds.polished(tmp_path / "log")
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"refit": True})})
    job = evaluated(recipe, tmp_path / "run")
    folders = (selection_job(job).folder, job.folder)
    facts = [json.loads((folder / "train/ranker/manifest.json").read_text())["facts"] for folder in folders]
    assert [each["retriever_share"] for each in facts] == [0.5, 0.5]
    assert len(calls) == 1  # the window is among the examples of the second fit
    models = load_models(job, *(open_stage(job.folder, name) for name in ("dataset", "train", "train/ranker")))
    assert models.ranker is not None
    np.testing.assert_equal(models.ranker.retriever_share.item(), 0.5)
    expected = "0.5 · ranker + 0.5 · retriever, NDCG@10 0.300 (the ranker alone 0.100, the retriever alone 0.200)."
    assert any(sentence.endswith(expected) for sentence in report_of(job.folder).verdict)


@pytest.mark.parametrize("changes", [{"formula": "relevance * 2"}, {"best_epoch_by": "xauc"}])
def test_an_order_with_another_goal_has_no_weight_of_the_retriever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict
) -> None:
    monkeypatch.setattr("twofold.pipeline.train._validate_ranker", lambda *arguments: 0.0)
    for module in ("early_checks", "train"):  # the world has no watch times
        monkeypatch.setattr(f"twofold.pipeline.{module}.check_watched", lambda *arguments: None)
    recipe = worlds.polished(tmp_path / "log")
    ranker = recipe.ranker.model_dump() | {"epochs": 1, **changes}
    job = Job(Recipe.model_validate(recipe.model_dump() | {"ranker": ranker}), tmp_path / "run")
    *_, trained = pipeline.up_to_training(job)
    assert trained is not None
    assert trained.facts["retriever_share"] == 0.0
    assert trained.facts["shares"] == []
