"""A batch encoded in parts has the gradients of one encoded at once, and what was dropped is dropped again."""

from dataclasses import replace

import pytest
import torch

from tests.dataset.prepared import FEATURES, random_events, write_prepared
from twofold.dataset.batches import epoch_batches
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import load_dataset
from twofold.model.encoder import Encoder, Layers, Lookup, Number
from twofold.model.two_tower import build_two_tower
from twofold.recipe.retriever import TwoTower
from twofold.recipe.train import Train
from twofold.train import negatives
from twofold.train.batch_loss import encode_parts, mean_loss
from twofold.train.hard_negatives import with_hard_negatives
from twofold.train.objective import build_objective

HARD = {"skip": 1, "top": 8, "easy_per_hard": 10}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("virtual")
    write_prepared(folder / "prepare", random_events(0))
    # Which lines share a sequence, and so how far back they read, depends on where parts end.
    user = tuple(feature for feature in FEATURES.user if feature.kind != "sequence")
    features = FEATURES.model_copy(update={"user": user})
    build_dataset(folder / "prepare", features, folder / "dataset", time_zone="Asia/Shanghai")
    return load_dataset(folder / "dataset")


def doubled(inputs):
    return {name: values.double() if values.is_floating_point() else values for name, values in inputs.items()}


def in_double(batch):
    parts = tuple(in_double(part) for part in batch.parts)
    return replace(batch, user=doubled(batch.user), item=doubled(batch.item), parts=parts, weight=batch.weight.double())


def taught(dataset, settings, folder):
    """The first batch, its loss, and the gradient of every parameter, in float64."""
    torch.manual_seed(0)
    config = TwoTower.model_validate({"kind": "two_tower", "dim": 8, "score": {"kind": "dot"}, "hidden": (8,)})
    model = build_two_tower(config, dataset.features, dataset.vectors).eval()  # drops nothing
    objective = with_hard_negatives(build_objective(settings, dataset), model, is_begun=False, folder=folder)
    (batch, *_) = epoch_batches(dataset, dataset.examples["train"], objective.order, seed=(0, 0), first=0)
    loss, vectors = mean_loss(objective, model.double(), in_double(batch))
    (loss + vectors.square().sum()).backward()
    return batch, loss, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    "config",
    [
        {"loss": {"kind": "in_batch_softmax", "uniform_negatives": 11}},
        {"loss": {"kind": "in_batch_softmax", "uniform_negatives": 11}, "hard_negatives": HARD},
        {"loss": {"kind": "in_batch_softmax", "log_q": "corrected"}, "hard_negatives": HARD},
        {"loss": {"kind": "full_softmax"}},
        {"loss": {"kind": "bpr", "negatives": 9}, "hard_negatives": HARD},
        {"loss": {"kind": "bce"}},
    ],
    ids=lambda config: "-".join([config["loss"]["kind"], *(["hard"] if "hard_negatives" in config else [])]),
)
def test_the_gradients_are_those_of_one_large_batch(dataset, config, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "twofold.train.objective.sampled_inputs", lambda *args, ranks: doubled(negatives.sampled_inputs(*args))
    )
    settings = Train.model_validate({**config, "batch_size": 50})
    _, whole, expected = taught(dataset, settings, tmp_path)
    batch, loss, found = taught(dataset, settings.model_copy(update={"micro_batch_size": 16}), tmp_path)
    assert [len(part.weight) for part in batch.parts] == [16, 16, 16, 2]
    assert loss.item() == pytest.approx(whole.item(), rel=1e-12)
    assert all(gradient.abs().max() > 0 for name, gradient in found.items() if "expansions" not in name)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12)


def tower_and_parts():
    torch.manual_seed(0)
    tower = Encoder((Lookup("id", 30, 4, dropout=0.3, single_from=1), Number("age")), Layers(5, (64, 64), dropout=0.5))
    return tower, [{"id": torch.randint(30, (20,)), "age": torch.randn(20)} for _ in range(6)]


def test_what_was_dropped_is_dropped_again():
    tower, parts = tower_and_parts()
    weights = torch.randn(120, 5)
    found = []
    for encode in (encode_parts, lambda tower, parts: torch.cat([tower(part) for part in parts])):
        tower.zero_grad()
        torch.manual_seed(1)
        vectors = encode(tower, parts)
        drawn_after = torch.rand(3)
        (vectors * weights).sum().backward()
        found.append((vectors, drawn_after, *(parameter.grad.clone() for parameter in tower.parameters())))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_only_the_vectors_of_parts_are_kept():
    tower, parts = tower_and_parts()

    def kept(parts):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            encode_parts(tower, parts)
        return sum(sizes)

    whole = [{name: torch.cat([part[name] for part in parts]) for name in parts[0]}]
    assert kept(parts) < kept(whole) / 10


@pytest.mark.parametrize("temperature", [0.005, 0.05])
def test_a_learned_temperature_below_its_limit_is_learned_from_the_limit_on(dataset, temperature):
    score = {"kind": "cosine", "temperature": temperature, "learn_temperature": True}
    config = TwoTower.model_validate({"kind": "two_tower", "dim": 8, "score": score})
    torch.manual_seed(0)
    model, objective = build_two_tower(config, dataset.features, dataset.vectors), build_objective(Train(), dataset)
    (batch, *_) = epoch_batches(dataset, dataset.examples["train"], objective.order, seed=(0, 0), first=0)
    mean_loss(objective, model, batch)[0].backward()
    assert model.temperature_value() == pytest.approx(max(temperature, 0.01))
    assert abs(float(model.log_temperature.grad)) > 1e-3
