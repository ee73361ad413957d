"""The ranker's training: a world that it alone can solve, exact resume, its losses, what unknown ids read."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests import worlds
from twofold.errors import RunError
from twofold.model.ranker import build_ranker, load_ranker, load_ranker_data
from twofold.model.retriever import load_model
from twofold.pipeline import run as pipeline
from twofold.pipeline.job import claim_folder, report_of
from twofold.recipe.ranker import Listwise, Pairwise
from twofold.recipe.schema import Recipe
from twofold.recipe.train import Bce
from twofold.train import ranker as rank
from twofold.train.ranker import fit_ranker, gather_lists, list_losses
from twofold.train.ranker_examples import MINED, mine_requests


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A retriever of the world where the ranker alone sees what decides, and the dataset as both stages read it."""
    recipe = worlds.polished(tmp_path_factory.mktemp("world"))
    job = pipeline.Job(recipe, tmp_path_factory.mktemp("run"))
    _, dataset, trained, _ = pipeline.up_to_training(job)
    arrays = load_ranker_data(dataset.folder, recipe.features, recipe.ranker_features)
    return recipe, arrays, load_model(recipe.retriever, arrays.retriever, trained.folder), job


def fitted(world, out, validate=lambda ranker: 0.0, **changes):
    recipe, arrays, model, _ = world
    config = recipe.ranker.model_copy(update={"epochs": 2, **changes})
    facts = fit_ranker(model, arrays, config=config, validate=validate, out=out)
    return facts, (out / "weights.safetensors").read_bytes()


@pytest.fixture
def lists(world, tmp_path):
    recipe, arrays, model, _ = world
    requests = mine_requests(model, arrays.retriever, recipe.ranker.candidates, seed=0, out=tmp_path)
    batch = gather_lists(requests, arrays.ranker, np.arange(32), recipe.ranker, seed=(0,))
    torch.manual_seed(0)
    ranker = build_ranker(recipe.ranker, arrays.ranker.features, {}, vector_dim=requests.user_vectors.shape[1])
    for parameter in ranker.layers[-1].parameters():  # which begins at zero: the retriever's own order
        torch.nn.init.normal_(parameter)
    return ranker, batch


def test_what_only_the_ranker_sees_is_solved_and_recall_of_the_candidates_stays(world):
    """Ten bright items of forty: whoever sees the group alone is right once in four."""
    *_, job = world
    claim_folder(job, overwrite=False)  # the page of the run reads the recipe there
    pipeline.evaluate(job, *pipeline.up_to_training(job))
    report = report_of(job.folder)
    both, alone = (row for row in report.catalogue.rows if row.name in ("model", "retriever alone"))
    assert report.primary_metric == "catalogue/ndcg@10"
    assert both.metrics["catalogue/recall@5"].value > 0.95
    assert alone.metrics["catalogue/recall@5"].value < 0.5
    assert alone.model_minus["catalogue/ndcg@5"].low > 0.3
    assert both.metrics["catalogue/recall@50"].value == alone.metrics["catalogue/recall@50"].value
    assert "retriever alone" in [row.name for row in report.catalogue.rows]
    parts = {part.tower for part in report.facts.model}
    assert parts == {"user", "item", "ranker, user", "ranker, item", "ranker"}
    manifest = json.loads((job.folder / "train" / "ranker" / "manifest.json").read_text())
    assert manifest["facts"]["found_share"] > 0.7  # a user's first requests are asked without a history


def test_one_seed_gives_one_ranker_and_two_seeds_two(world, tmp_path):
    _, first = fitted(world, tmp_path / "a", epochs=1)
    assert fitted(world, tmp_path / "b", epochs=1)[1] == first
    assert fitted(world, tmp_path / "c", epochs=1, seed=1)[1] != first
    assert not (tmp_path / "a" / MINED).exists()


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.2}], ids=["plain", "dropout"])
def test_a_killed_training_ends_where_an_uninterrupted_one_does(world, tmp_path, monkeypatch, changes):
    class Killed(BaseException):
        pass

    whole_facts, whole = fitted(world, tmp_path / "whole", **changes)
    monkeypatch.setattr(rank, "CHECKPOINT_EVERY_S", -1.0)
    steps, original = iter(range(1, 1000)), rank.list_losses

    def step_then_die(*arguments):
        if next(steps) == 15:  # in the second epoch
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(rank, "list_losses", step_then_die)
    with pytest.raises(Killed):
        fitted(world, tmp_path / "cut", **changes)
    assert (tmp_path / "cut" / "checkpoint.safetensors").exists()
    resumed_facts, resumed = fitted(world, tmp_path / "cut", **changes)
    assert resumed == whole
    assert [epoch["loss"] for epoch in whole_facts["epochs"]] == [epoch["loss"] for epoch in resumed_facts["epochs"]]


def test_the_best_epoch_on_validation_is_kept(world, tmp_path):
    values = iter([0.2, 0.9, 0.1])
    facts, best = fitted(world, tmp_path / "best", validate=lambda ranker: next(values), epochs=3)
    assert facts["best_epoch"] == 1
    recipe, arrays, _, _ = world
    made = load_ranker(recipe.ranker, arrays, tmp_path / "best", vector_dim=facts["width"])
    assert not torch.equal(made.layers[-1].weight, torch.zeros_like(made.layers[-1].weight))


def test_losses_are_those_of_the_lists_written_naively(lists):
    ranker, batch = lists
    ranker.eval()
    with torch.inference_mode():
        items = ranker.item(batch.item).reshape(*batch.competing.shape, -1)
        scores = ranker(ranker.user(batch.user), items, batch.user_vectors, batch.item_vectors, batch.ranks)
        kinds = (Listwise(kind="softmax"), Pairwise(kind="bpr"), Bce(kind="bce", gamma=2))
        softmax, bpr, focal = (list_losses(ranker, batch, kind).tolist() for kind in kinds)
    assert not batch.competing.all()  # what the user likes is drawn, and left out
    for line in range(len(scores)):
        own, others = scores[line, 0], scores[line, 1:][batch.competing[line, 1:]]
        together = torch.cat([own[None], others])
        assert softmax[line] == pytest.approx(float(together.logsumexp(0) - own), rel=1e-4)
        assert bpr[line] == pytest.approx(float(functional.softplus(others - own).mean()), rel=1e-4)
        right = torch.cat([own.sigmoid()[None], 1 - others.sigmoid()])
        assert focal[line] == pytest.approx(float((-((1 - right) ** 2) * right.log()).mean()), rel=1e-3)


def test_a_ranker_begins_as_the_retrievers_order(world, lists):
    recipe, arrays, _, _ = world
    _, batch = lists
    made = build_ranker(recipe.ranker, arrays.ranker.features, {}, vector_dim=batch.user_vectors.shape[1])
    items = made.item(batch.item).reshape(*batch.competing.shape, -1)
    scores = made(made.user(batch.user), items, batch.user_vectors, batch.item_vectors, batch.ranks)
    retrieved = (batch.user_vectors[:, None] * batch.item_vectors).sum(dim=2)
    torch.testing.assert_close(scores, retrieved)


def test_divergence_names_the_step(world, tmp_path):
    with pytest.raises(
        RunError, match=r"training diverged: .* epoch 0, batch \d+ .* Lower ranker.learning_rate \(now 1e\+30\)"
    ):
        fitted(world, tmp_path, learning_rate=1e30)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"candidates": {"skip_top": 100}}, "skip_top is 100 and num_candidates is 100: no rank is left"),
        ({"features": {"user": [{"kind": "history", "events": "positives", "max_length": 7}],
                       "item": [{"kind": "id"}]}},
         "the user feature positives is defined twice, with different"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_of_a_ranker(world, changes, said):
    recipe, *_ = world
    tree = recipe.model_dump(mode="json")
    with pytest.raises(ValueError, match=said):
        Recipe.model_validate(tree | {"ranker": {"kind": "mlp", **changes}})
