import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from tests.dataset.prepared import FEATURES as EVERY_KIND
from tests.dataset.prepared import random_events, write_prepared
from twofold.dataset.batches import item_batches, query_batches
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import load_dataset
from twofold.dataset.features import FeatureState
from twofold.model.onnx_export import export_user_tower
from twofold.model.summary import describe_model
from twofold.model.two_tower import build_two_tower
from twofold.model.weights import encode, load_weights, save_weights
from twofold.recipe.features import Features
from twofold.recipe.retriever import TwoTower

FEATURES = Features.model_validate(
    {
        "user": [
            {"kind": "history", "events": "positives", "max_length": 4},
            {"kind": "history", "events": "negatives", "max_length": 2},
            {"kind": "time", "part": "hour", "dim": 3},
        ],
        "item": [{"kind": "id"}],
    }
)
STATE = FeatureState(FEATURES, "UTC", 10, {}, {})


RECIPE = TwoTower(kind="two_tower", dim=8, hidden=(6,))


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory):
    folder = tmp_path_factory.mktemp("every_kind")
    write_prepared(folder / "prepare", random_events(0))
    build_dataset(folder / "prepare", EVERY_KIND, folder / "dataset", time_zone="Asia/Shanghai")
    dataset = load_dataset(folder / "dataset")
    torch.manual_seed(0)
    return build_two_tower(RECIPE, dataset.features, dataset.vectors), dataset


def build(seed=0, hidden=(6,)):
    torch.manual_seed(seed)
    return build_two_tower(TwoTower(kind="two_tower", dim=8, hidden=hidden), STATE, {})


def requests(n):
    rng = np.random.default_rng(0)
    return {
        "positives": rng.integers(0, 11, size=(n, 4), dtype=np.int32),
        "negatives": rng.integers(0, 11, size=(n, 2), dtype=np.int32) * rng.integers(0, 2, size=(n, 1), dtype=np.int32),
        "hour": rng.integers(0, 25, size=n, dtype=np.int32),
    }


def tensors(inputs):
    return {name: torch.from_numpy(values) for name, values in inputs.items()}


def test_exported_user_tower_equals_the_trained_one_at_any_batch_size(tmp_path):
    model = build()
    export_user_tower(model.user, tmp_path / "user_tower.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "user_tower.onnx")
    for n in (1, 2, 33):
        inputs = requests(n)
        (served,) = session.run(["vector"], inputs)
        np.testing.assert_allclose(served, encode(model.user, [tensors(inputs)]), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("is_sparse", [False, True], ids=["dense", "just trained with sparse gradients"])
def test_a_user_tower_of_every_kind_of_feature_is_exported_with_the_vectors_it_reads(
    every_kind, is_sparse, monkeypatch, tmp_path
):
    model, dataset = every_kind
    for table in (each for each in model.modules() if isinstance(each, nn.Embedding)):
        monkeypatch.setattr(table, "sparse", is_sparse)
    export_user_tower(model.user, tmp_path / "user_tower.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "user_tower.onnx")
    rows = dataset.examples["train"]
    for n in (1, 2, 33):
        (inputs,) = query_batches(dataset, np.array(rows.user_rows[:n]), np.array(rows.at[:n]))
        (served,) = session.run(["vector"], {name: values.numpy() for name, values in inputs.items()})
        np.testing.assert_allclose(served, encode(model.user, [inputs]), atol=1e-6)


def test_given_vectors_are_no_parameters_and_no_part_of_the_weights(every_kind, tmp_path):
    model, dataset = every_kind
    assert sum(part.parameters for part in describe_model(model)) == sum(p.numel() for p in model.parameters())
    shapes = {(part.tower, part.name): part.shape for part in describe_model(model)}
    assert shapes["user", "positives_concat_sound"] == "given sound, concat → 6"  # 3 items of 2 numbers
    assert shapes["user", "negatives_windows"] == "18 rows, windows → 24"  # the last, and the means of 3 and 10, of 8
    assert shapes["user", "positives_clusters_look"] == "number → 3"
    assert shapes["user", "positives_windows"] == "18 rows, windows → 16, the item's table"
    assert shapes["user", "positives_sequence"] == "18 rows, 2 timed causal layers of 2 heads → 8, the item's table"
    assert shapes["item", "age"] == "number → 1 → 3"
    save_weights(model, tmp_path / "weights.safetensors")
    torch.manual_seed(1)
    fresh = build_two_tower(RECIPE, dataset.features, dataset.vectors)
    loaded = load_weights(fresh, tmp_path / "weights.safetensors")
    (items,) = item_batches(dataset, 0)
    assert encode(loaded.item, [items]).tobytes() == encode(model.item, [items]).tobytes()


def test_saved_and_loaded_equal(tmp_path):
    model = build(seed=0)
    save_weights(model, tmp_path / "weights.safetensors")
    loaded = load_weights(build(seed=1), tmp_path / "weights.safetensors")
    inputs = tensors(requests(5))
    assert encode(loaded.user, [inputs]).tobytes() == encode(model.user, [inputs]).tobytes()


def test_the_description_counts_every_parameter():
    model = build()
    assert sum(part.parameters for part in describe_model(model)) == sum(p.numel() for p in model.parameters())
    assert [part.name for part in describe_model(model) if part.tower == "user"] == [
        "positives", "negatives", "hour", "linear", "linear",
    ]  # fmt: skip


def test_the_description_tells_of_normalisation_too():
    recipe = TwoTower(kind="two_tower", dim=8, hidden=(6,), output_norm="batch_norm", dropout=0.1)
    model = build_two_tower(recipe, STATE, {})
    parts = describe_model(model)
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in model.parameters())
    assert [(part.name, part.shape) for part in parts if part.tower == "item"][1:] == [
        ("linear", "8 → 6"), ("linear", "6 → 8"), ("batch norm", "8"),
    ]  # fmt: skip


def test_a_learned_temperature_is_described_saved_and_never_below_a_hundredth(tmp_path):
    learned = {"kind": "cosine", "temperature": 0.07, "learn_temperature": True}
    model = build_two_tower(TwoTower(kind="two_tower", dim=8, score=learned), STATE, {})
    assert model.temperature.item() == pytest.approx(0.07)
    parts = describe_model(model)
    assert ("score", "temperature", 1) in [(part.tower, part.name, part.parameters) for part in parts]
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        model.log_temperature.fill_(-20)
    save_weights(model, tmp_path / "weights.safetensors")
    fresh = build_two_tower(TwoTower(kind="two_tower", dim=8, score=learned), STATE, {})
    assert load_weights(fresh, tmp_path / "weights.safetensors").temperature.item() == pytest.approx(0.01)
