"""Peers are tuned before the towers train; `retriever.start_from: ials` lets towers begin with item vectors of iALS."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from twofold.dataset.dataset import load_dataset
from twofold.errors import DataError
from twofold.evaluate import peer_tuning
from twofold.model.retriever import WEIGHTS
from twofold.pipeline import run as pipeline
from twofold.pipeline import train
from twofold.pipeline.job import Job
from twofold.pipeline.served_model import TOWERS, Fitted, Served
from twofold.recipe.schema import Recipe
from twofold.run_folder import Stage

pytestmark = pytest.mark.usefixtures("small_ials", "towers_win")


@pytest.fixture
def towers_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the towers served, whose weights would not be kept where a peer is better; only iALS is tuned."""
    monkeypatch.setattr(train, "choose_served", lambda *given, has_days: (Served(TOWERS), {}, Fitted()))
    monkeypatch.setattr(peer_tuning, "PEER_KINDS", [each for each in peer_tuning.PEER_KINDS if each.name == "iALS"])


class KilledError(Exception):
    """Stands for whatever stops a training between two epochs."""


def best(recipe: Recipe, **settings: object) -> Recipe:
    retriever = recipe.retriever.model_copy(update={"kind": "best", "start_from": "ials"})
    return recipe.model_copy(update={"retriever": retriever, "train": recipe.train.model_copy(update=settings)})


def prepared(recipe: Recipe, folder: Path) -> tuple[Job, Stage]:
    job = Job(recipe, folder)
    folder.mkdir()
    return job, pipeline.build_dataset(job, pipeline.prepare(job))


def test_items_that_are_liked_together_are_near_from_the_start(checkerboard: Recipe, tmp_path: Path) -> None:
    recipe = best(checkerboard, epochs=1, learning_rate=1e-4)
    job, dataset = prepared(recipe, tmp_path / "run")
    trained = train.train(job, dataset)
    arrays = load_dataset(dataset.folder)
    is_even = np.array(arrays.items.ids.to_pylist()[: arrays.items.num_known]) % 2 == 0
    for name in ("item.tables.id.weight", "user.tables.positives.weight"):
        vectors = load_file(trained.folder / WEIGHTS)[name].numpy()[1 : 1 + len(is_even)]
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        own, other = (unit[is_even] @ unit[which].T for which in (is_even, ~is_even))
        assert own.mean() > 0.5 > abs(other.mean()) + 0.3
    at_random = recipe.model_copy(update={"retriever": recipe.retriever.model_copy(update={"start_from": None})})
    found = [
        made.facts["epochs"][0]["validation"] for made in (trained, train.train(Job(at_random, job.folder), dataset))
    ]
    assert found[0] > 1.5 * found[1]


def test_a_log_that_is_too_large_for_ials_is_refused_before_anything_is_tuned(
    checkerboard: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, dataset = prepared(best(checkerboard, epochs=1), tmp_path / "run")
    monkeypatch.setattr(train, "IALS_MAX_POSITIVES", 1000)
    monkeypatch.setattr(train, "tune_peers", lambda *given, **named: pytest.fail("peers are tuned"))
    with pytest.raises(DataError, match=r"limited to 1,000 positives, and there are [\d,]+\. Delete start_from"):
        train.train(job, dataset)


def test_a_killed_training_neither_tunes_again_nor_ends_elsewhere(
    checkerboard: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = best(checkerboard, epochs=2)
    job, dataset = prepared(recipe, tmp_path / "whole")
    whole = load_file(train.train(job, dataset).folder / WEIGHTS)

    def kill(value: float) -> None:
        raise KilledError

    job, dataset = prepared(recipe, tmp_path / "killed")
    with pytest.raises(KilledError):
        train.train(Job(recipe, job.folder, on_validation=kill), dataset)

    def fail(*given: object, **named: object) -> None:
        raise AssertionError("the peers of the killed attempt are tuned already")

    monkeypatch.setattr(train, "tune_peers", fail)
    resumed = load_file(train.train(job, dataset).folder / WEIGHTS)
    assert whole.keys() == resumed.keys()
    for name, weight in whole.items():
        assert np.array_equal(weight.numpy(), resumed[name].numpy()), name
