"""`train.best_epoch_by`: the validation metric that chooses the epoch is the one that the report has."""

from dataclasses import replace

import numpy as np
import pytest

from twofold.dataset.dataset import load_dataset
from twofold.errors import DataError
from twofold.evaluate.catalogue import evaluate_catalogue
from twofold.evaluate.impressions import evaluate_impressions
from twofold.evaluate.window import evaluation_window
from twofold.model.retriever import load_model
from twofold.pipeline import run as pipeline
from twofold.pipeline import train
from twofold.pipeline.adapters import catalogue_scores
from twofold.pipeline.job import Job
from twofold.ragged import Ragged


def chosen_by(recipe, metric):
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"best_epoch_by": metric, "epochs": 3})})


@pytest.mark.parametrize("metric", ["recall", "ndcg", "auc"])
def test_the_kept_epoch_has_the_best_value_of_the_metric_that_is_named(checkerboard, metric, tmp_path):
    recipe = chosen_by(checkerboard, metric)
    job = Job(recipe, tmp_path)
    _, dataset, trained, _ = pipeline.up_to_training(job)
    arrays = load_dataset(dataset.folder, recipe.features)
    window = evaluation_window(arrays, "validation")
    scores = catalogue_scores(load_model(recipe.retriever, arrays, trained.folder), arrays, window)
    found = {
        "auc": evaluate_impressions(window, scores).mean("impressions/auc"),
        "recall": evaluate_catalogue(window, scores, ks=(5,)).mean("catalogue/recall@5"),
        "ndcg": evaluate_catalogue(window, scores, ks=(5,)).mean("catalogue/ndcg@5"),
    }
    values = [epoch["validation"] for epoch in trained.facts["epochs"]]
    assert values[trained.facts["best_epoch"]] == max(values) == pytest.approx(found[metric], abs=1e-6)


def test_a_window_without_anything_to_find_ends_a_training_before_its_first_epoch(checkerboard, tmp_path, monkeypatch):
    job = Job(chosen_by(checkerboard, "recall"), tmp_path)
    dataset = pipeline.build_dataset(job, pipeline.prepare(job))
    window = evaluation_window(load_dataset(dataset.folder), "validation")
    nothing = Ragged(np.empty(0, np.int64), np.zeros(len(window.user_rows) + 1, np.int64))
    monkeypatch.setattr(train, "window_of", lambda *given: replace(window, relevant=nothing))
    monkeypatch.setattr(train, "fit", lambda *given, **named: pytest.fail("an epoch is trained"))
    with pytest.raises(DataError, match="no positive on an item not seen before, so the catalogue ranking has"):
        train.train(job, dataset)
