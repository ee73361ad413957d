import numpy as np
import onnxruntime
import torch

from twofold.dataset.features import FeatureState
from twofold.model.two_tower import (
    build_two_tower,
    describe_model,
    encode,
    export_user_tower,
    load_weights,
    save_weights,
)
from twofold.recipe.features import Features
from twofold.recipe.schema import TwoTower

FEATURES = Features.model_validate(
    {
        "user": [
            {"kind": "history", "of": "positives", "last": 4},
            {"kind": "history", "of": "negatives", "last": 2},
            {"kind": "time", "of": "hour", "dim": 3},
        ],
        "item": [{"kind": "id"}],
    }
)
STATE = FeatureState(FEATURES, 0, 10, {}, {})


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
    export_user_tower(model, tmp_path / "user_tower.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "user_tower.onnx")
    for n in (1, 2, 33):
        inputs = requests(n)
        (served,) = session.run(["vector"], inputs)
        np.testing.assert_allclose(served, encode(model.user, [tensors(inputs)]), atol=1e-6)


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
