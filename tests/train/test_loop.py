"""Training on the checkerboard: solved, repeatable, and a kill changes nothing."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch

from tests.dataset.prepared import FEATURES, random_events, write_prepared
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import load_dataset
from twofold.errors import DataError, RunError
from twofold.model.multi_tower import build_towers
from twofold.model.two_tower import build_two_tower
from twofold.pipeline import run as pipeline
from twofold.recipe.retriever import TwoTower
from twofold.recipe.train import Adversary, HardNegatives, InBatchSoftmax, Train
from twofold.train import loop, objective, training_state
from twofold.train.loop import fit
from twofold.train.optimizer import learning_rate_at


class Killed(BaseException):
    """Stands for a signal: nothing may catch it."""


@pytest.fixture(scope="module")
def world(checkerboard, tmp_path_factory):
    job = pipeline.Job(checkerboard, tmp_path_factory.mktemp("run"))
    return checkerboard, load_dataset(pipeline.build_dataset(job, pipeline.prepare(job)).folder)


def train(world, out, validate=lambda model: 0.0, per=None, **changes):
    recipe, dataset = world
    config = recipe.retriever.model_copy(update={"separate_towers_by": per})
    settings = recipe.train.model_copy(update={"epochs": 2, "batch_size": 512, **changes})
    out.mkdir(exist_ok=True)
    facts = fit(
        lambda: build_towers(config, dataset),
        dataset,
        settings,
        validate=validate,
        out=out,
    )
    return facts, (out / "weights.safetensors").read_bytes()


def test_one_seed_gives_one_model_and_two_seeds_two(world, tmp_path):
    _, first = train(world, tmp_path / "a")
    assert train(world, tmp_path / "b")[1] == first
    assert train(world, tmp_path / "c", seed=1)[1] != first


DRAWING = {
    "loss": InBatchSoftmax(kind="in_batch_softmax", uniform_negatives=16),
    "adversary": Adversary(max_lambda=0.1),
}


MINING = {"hard_negatives": HardNegatives(skip=2, top=20), "micro_batch_size": 200}


APART = {"separate_towers_by": "creator", "batch_size": 256}


@pytest.mark.parametrize("block_rows", [None, 700])
@pytest.mark.parametrize("changes", [{}, DRAWING, MINING, APART], ids=["shipped", "drawing", "mining", "apart"])
def test_a_killed_training_ends_where_an_uninterrupted_one_does(world, tmp_path, monkeypatch, changes, block_rows):
    if block_rows is not None:
        assert len(world[1].examples["train"]) > 5 * block_rows
        monkeypatch.setattr(objective, "BLOCK_ROWS", block_rows)
        monkeypatch.setattr(objective, "BATCHES_A_BLOCK", 1)
    whole_facts, whole = train(world, tmp_path / "whole", **changes)
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", -1.0)  # a checkpoint at every step
    steps, original = iter(range(1, 1000)), loop._backward

    def step_then_die(*arguments, **named):
        if next(steps) == 10:  # in the second epoch
            raise Killed
        return original(*arguments, **named)

    monkeypatch.setattr(loop, "_backward", step_then_die)
    with pytest.raises(Killed):
        train(world, tmp_path / "cut", **changes)
    assert (tmp_path / "cut" / "checkpoint.safetensors").exists()
    resumed_facts, resumed = train(world, tmp_path / "cut", **changes)
    assert resumed == whole
    losses = [[epoch["loss"] for epoch in facts["epochs"]] for facts in (whole_facts, resumed_facts)]
    assert losses[0] == losses[1]
    logs = [
        pq.read_table(tmp_path / name / "training_steps.parquet").drop("examples_per_s") for name in ("whole", "cut")
    ]
    assert logs[0].equals(logs[1])
    assert not (tmp_path / "cut" / "checkpoint.safetensors").exists()


def test_steps_are_logged_and_never_more_than_fit_into_a_curve(world, tmp_path, monkeypatch):
    def logged(name):
        facts, _ = train(world, tmp_path / name, max_grad_norm=0.5)
        return facts, pq.read_table(tmp_path / name / "training_steps.parquet").to_pylist()

    facts, every = logged("every")
    steps = len(every)
    assert steps > 7
    assert [line["step"] for line in every] == list(range(1, steps + 1))
    for number, epoch in enumerate(facts["epochs"]):
        part = [line["loss"] for line in every[number * steps // 2 : (number + 1) * steps // 2]]
        assert sum(part) / len(part) == pytest.approx(epoch["loss"])
    rates = [learning_rate_at(step, steps=steps, peak=world[0].train.learning_rate) for step in range(steps)]
    assert [line["learning_rate"] for line in every] == rates
    assert max(line["gradient_norm"] for line in every) > 0.5  # as it was before it was clipped
    assert all(line["examples_per_s"] > 0 for line in every)
    monkeypatch.setattr(loop, "MAX_STEP_RECORDS", 3)
    _, few = logged("few")
    together = -(-steps // 3)
    parts = [every[first : first + together] for first in range(0, steps, together)]
    assert [line["step"] for line in few] == [part[-1]["step"] for part in parts]
    for line, part in zip(few, parts, strict=True):
        assert line["loss"] == pytest.approx(sum(step["loss"] for step in part) / len(part))
        assert line["gradient_norm"] == max(step["gradient_norm"] for step in part)
        assert line["learning_rate"] == part[-1]["learning_rate"]


def test_a_damaged_checkpoint_is_a_fresh_start(world, tmp_path):
    _, whole = train(world, tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "checkpoint.safetensors").write_bytes(b"\x10\0\0\0")
    assert train(world, tmp_path / "cut")[1] == whole


def test_the_best_epoch_is_kept_not_the_last(world, tmp_path):
    values, seen = iter([0.9, 0.1]), []

    def validate(model):
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return next(values)

    facts, _ = train(world, tmp_path / "a", validate=validate)
    assert facts["best_epoch"] == 0
    kept = train_weights(tmp_path / "a")
    assert all(torch.equal(kept[name], tensor) for name, tensor in seen[0].items())


def train_weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "weights.safetensors")


def test_divergence_stops_and_names_the_batch(world, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_backward", lambda *arguments, **named: torch.tensor(float("nan")))
    refusal = r"the loss of epoch 0, batch 0 is nan. Lower train.learning_rate \(now .*train.max_grad_norm \(now None\)"
    with pytest.raises(RunError, match=refusal):
        train(world, tmp_path / "a")


def test_a_gradient_that_is_no_number_stops_before_it_reaches_the_weights(world, tmp_path, monkeypatch):
    original, steps, models = loop._backward, iter(range(1000)), []

    def poisoned(objective, model, *arguments, **named):
        loss = original(objective, model, *arguments, **named)
        if next(steps) == 3:
            model.item.layers[0].weight.grad[0, 0] = torch.nan
            models.append(model)
        return loss

    monkeypatch.setattr(loop, "_backward", poisoned)
    with pytest.raises(RunError, match=r"the gradient of epoch 0, batch 3 is nan\."):
        train(world, tmp_path / "a")
    assert all(parameter.isfinite().all() for parameter in models[0].parameters())


@pytest.mark.parametrize(("patience", "epochs"), [(1, 3), (2, 4), (None, 6)])
def test_training_ends_early_where_patience_does(world, tmp_path, patience, epochs):
    values = iter([0.1, 0.3, 0.3, 0.2, 0.1, 0.9])  # a tie is no better
    facts, _ = train(world, tmp_path / "a", validate=lambda model: next(values), epochs=6, patience=patience)
    assert len(facts["epochs"]) == epochs
    assert facts["best_epoch"] == (1 if patience else 5)


def test_with_patience_the_rate_rises_in_the_first_epoch_and_stays(world, tmp_path):
    values = iter([0.1, 0.2, 0.3])
    train(world, tmp_path / "a", validate=lambda model: next(values), epochs=3, patience=1)
    rates = [line["learning_rate"] for line in pq.read_table(tmp_path / "a" / "training_steps.parquet").to_pylist()]
    first, peak = len(rates) // 3, world[0].train.learning_rate
    assert rates[:first] == [peak * (step + 1) / first for step in range(first)]
    assert set(rates[first:]) == {peak}


def die(*arguments):
    raise Killed


def test_a_training_that_ended_early_and_was_killed_does_not_go_on(world, tmp_path, monkeypatch):
    values = iter([0.3, 0.1, 0.1, 0.1])
    monkeypatch.setattr(loop, "save_file", die)
    with pytest.raises(Killed):
        train(world, tmp_path / "a", validate=lambda model: next(values), epochs=6, patience=1)
    monkeypatch.undo()
    facts, _ = train(world, tmp_path / "a", validate=lambda model: next(values), epochs=6, patience=1)
    assert [epoch["validation"] for epoch in facts["epochs"]] == [0.3, 0.1]


def test_short_gradients_are_not_clipped_and_long_ones_are(world, tmp_path):
    _, whole = train(world, tmp_path / "whole")
    assert train(world, tmp_path / "loose", max_grad_norm=1e6)[1] == whole
    assert train(world, tmp_path / "tight", max_grad_norm=1e-3)[1] != whole


def test_a_checkpoint_of_another_training_is_refused_with_what_differs(world, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "save_file", die)
    with pytest.raises(Killed):
        train(world, tmp_path / "a", learning_rate=0.01)
    refusal = (
        r"checkpoint of another training, which differs in train.learning_rate: 0.01 → 0.5; train.seed: 0 → 3\. Resume"
    )
    with pytest.raises(RunError, match=refusal):
        train(world, tmp_path / "a", learning_rate=0.5, seed=3)
    wider = world[0].model_copy(update={"retriever": world[0].retriever.model_copy(update={"dim": 9})})
    with pytest.raises(RunError, match=r"differs in weights 0.user.*: \d+ × 16 → \d+ × 9.*or delete the file"):
        train((wider, world[1]), tmp_path / "a", learning_rate=0.01)


def test_a_model_that_does_not_fit_is_refused_before_it_is_made(world, tmp_path):
    recipe, dataset = world
    wide = recipe.model_copy(update={"retriever": recipe.retriever.model_copy(update={"dim": 10**9})})
    with pytest.raises(RunError, match=r"takes [\d,.]+ GiB and [\d,.]+ GiB are available on cpu. Most of it is "):
        train((wide, dataset), tmp_path / "a")


def test_too_few_positives_are_refused(world, tmp_path):
    recipe, dataset = world
    records = dataset.examples["train"].records.copy()
    records["label"] = False
    rows = replace(dataset.examples["train"], records=records)
    with pytest.raises(DataError, match="holds 0 positive events.*prepare.positive"):
        train((recipe, replace(dataset, examples={**dataset.examples, "train": rows})), tmp_path / "a")


def test_a_recipe_of_every_kind_of_feature_trains_and_leaves_fixed_vectors_as_they_are(tmp_path):
    write_prepared(tmp_path / "prepare", random_events(0))
    build_dataset(tmp_path / "prepare", FEATURES, tmp_path / "dataset", time_zone="Asia/Shanghai")
    dataset = load_dataset(tmp_path / "dataset")
    settings = Train(epochs=8, batch_size=32, learning_rate=0.01)
    models = []

    def build():
        models.append(
            build_two_tower(TwoTower(kind="two_tower", dim=8, hidden=(8,)), dataset.features, dataset.vectors)
        )
        return models[-1]

    facts = fit(build, dataset, settings, validate=lambda model: 0.0, out=tmp_path)
    losses = [epoch["loss"] for epoch in facts["epochs"]]
    assert losses[-1] < losses[0] - 0.1
    held = dict(models[-1].user.named_buffers())
    assert held["fixed_sound"][1:].numpy().tobytes() == dataset.vectors["sound"].tobytes()


def test_the_speed_of_one_batch_that_holds_all_counts_its_examples(world, tmp_path, monkeypatch):
    """Every look at the clock takes a second."""
    seconds = itertools.count()
    for module in (loop, training_state):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    facts, _ = train(world, tmp_path / "one", epochs=1, batch_size=1_000_000)
    assert 0 < facts["epochs"][0]["examples_per_s"] <= facts["examples"]
