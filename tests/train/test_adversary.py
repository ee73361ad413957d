"""The adversary of length, wired: none at strength 0, and a fresh probe finds less of the length where it worked."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge

from tests import worlds
from twofold.dataset.batches import item_batches
from twofold.dataset.dataset import item_attributes, load_dataset
from twofold.errors import DataError
from twofold.evaluate.window import evaluation_window
from twofold.model.two_tower import build_two_tower
from twofold.model.weights import encode
from twofold.pipeline import run as pipeline
from twofold.pipeline.adapters import catalogue_scores
from twofold.recipe.train import Adversary
from twofold.train.loop import fit


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("length_bias")
    recipe = worlds.length_bias(folder / "log")
    job = pipeline.Job(recipe, folder / "run")
    prepared = pipeline.build_dataset(job, pipeline.prepare(job)).folder
    return recipe, load_dataset(prepared), np.log(np.array(item_attributes(prepared)["length_s"]))


def train(world, out, max_lambda, **changes):
    """The model after its last epoch, and the losses of all."""
    recipe, dataset, _ = world
    adversary = None if max_lambda is None else Adversary(max_lambda=max_lambda)
    settings = recipe.train.model_copy(update={"adversary": adversary, **changes})
    models, epochs = [], iter(range(1000))

    def build():
        models.append(build_two_tower(recipe.retriever, dataset.features, dataset.vectors))
        return models[-1]

    out.mkdir()
    facts = fit(build, dataset, settings, validate=lambda model: float(next(epochs)), out=out)
    return models[-1], [epoch["loss"] for epoch in facts["epochs"]]


@pytest.mark.slow
def test_strength_zero_is_the_baseline_bit_for_bit(world, tmp_path):
    _, plain = train(world, tmp_path / "plain", None, epochs=1, batch_size=1024)
    _, guessed = train(world, tmp_path / "guessed", 0.0, epochs=1, batch_size=1024)
    assert guessed == plain
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("plain", "guessed")]
    assert weights[0] == weights[1]
    _, reversed_ = train(world, tmp_path / "reversed", 0.5, epochs=1, batch_size=1024)
    assert reversed_ != plain


@pytest.mark.parametrize(("length", "what"), [(np.nan, "no length"), (30.0, "a single length")])
def test_lengths_that_teach_nothing_are_refused(world, tmp_path, length, what):
    recipe, dataset, logs = world
    rows = dataset.examples["train"]
    records = rows.records.copy()
    records["length_s"] = length
    blind = replace(dataset, examples={**dataset.examples, "train": replace(rows, records=records)})
    with pytest.raises(DataError, match=f"train.adversary predicts length_s, .* have {what}. Give the items a column"):
        train((recipe, blind, logs), tmp_path / "a", 1.0)


@pytest.mark.slow
def test_a_fresh_probe_finds_less_of_the_length_and_the_taste_is_still_there(world, tmp_path):
    (plain, plain_kinds), (unlearned, kinds) = (
        _explained_and_kinds(world, train(world, tmp_path / str(strength), strength)[0]) for strength in (None, 0.4)
    )
    assert plain > 0.5
    assert unlearned < 0.5 * plain
    assert kinds > 0.5 * plain_kinds > 0.3


def _explained_and_kinds(world, model):
    """The share of log length that a probe, fitted on half of the items, explains on the others; and how many standard
    deviations of the score the own kind lies above the other.
    """
    _, dataset, logs = world
    vectors = encode(model.item, item_batches(dataset, int(dataset.events.at.max())))
    vectors = (vectors - vectors.mean(axis=0)) / vectors.std(axis=0)
    wanted = (logs - logs.mean()) / logs.std()
    half = np.arange(len(vectors)) % 2 == 0
    explained = []
    for known in (half, ~half):
        probe = KernelRidge(kernel="rbf", alpha=0.3, gamma=1 / 16).fit(vectors[known], wanted[known])
        missed = probe.predict(vectors[~known]) - wanted[~known]
        explained.append(1 - (missed**2).mean() / wanted[~known].var())
    window = evaluation_window(dataset, "test")
    scores = catalogue_scores(model, dataset, window)(slice(0, len(window.user_rows)))
    users, items = np.asarray(dataset.users.ids)[window.user_rows], np.asarray(dataset.items.ids)
    is_own = users[:, None] % 2 == items % 2
    return np.mean(explained), (scores[is_own].mean() - scores[~is_own].mean()) / scores.std()
