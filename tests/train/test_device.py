"""A GPU that is not there is said at once; everything of a batch goes where the model is."""

from contextlib import nullcontext
from dataclasses import fields

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.dataset.prepared import FEATURES, random_events, write_prepared
from twofold.dataset.batches import gather_batch
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import load_dataset
from twofold.errors import RunError
from twofold.model.two_tower import build_two_tower
from twofold.recipe.retriever import TwoTower
from twofold.recipe.train import Train
from twofold.train import batch_loss
from twofold.train.device import batch_on, open_device, reduced_precision
from twofold.train.distributed import ProcessGroup, distributed_context
from twofold.train.loop import Setup, fit
from twofold.train.objective import build_objective

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("device")
    write_prepared(folder / "prepare", random_events(0))
    build_dataset(folder / "prepare", FEATURES, folder / "dataset", time_zone="Asia/Shanghai")
    return load_dataset(folder / "dataset")


def test_a_gpu_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refusal = r"--device cuda needs a GPU, and PyTorch .* finds none. .*nvidia-smi.* train with --device cpu"
    with pytest.raises(RunError, match=refusal), distributed_context("cuda"):
        pass


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RunError, match="4 processes on this machine .* it has 2. Start .* --nproc-per-node 2"):
        open_device("cuda", local_rank=0, local_size=4)


def test_every_tensor_of_a_batch_moves(dataset):
    batch = gather_batch(dataset, dataset.examples["train"], np.arange(3))
    assert batch_on(torch.device("cpu"), batch) is batch
    moved = batch_on(torch.device("meta"), batch)
    values = [getattr(moved, field.name) for field in fields(moved)]
    tensors = [each for value in values for each in (value.values() if isinstance(value, dict) else [value])]
    assert {each.device.type for each in tensors if isinstance(each, torch.Tensor)} == {"meta"}


LOSSES = {
    "in batch": {"kind": "in_batch_softmax"},
    "corrected": {"kind": "in_batch_softmax", "log_q": "corrected"},
    "uncorrected": {"kind": "in_batch_softmax", "log_q": "none", "uniform_negatives": 0},
    "sampled": {"kind": "sampled_softmax"},
    "full": {"kind": "full_softmax"},
    "prior": {"kind": "full_softmax", "logit_adjustment": 1.0},
    "bpr": {"kind": "bpr"},
    "bce": {"kind": "bce"},
    "regression": {"kind": "regression"},
}


def trained(dataset, out, device, **changes):
    """Returns the losses of two epochs on a device, and the weights."""
    out.mkdir()
    config = TwoTower(kind="two_tower", dim=8, score={"kind": "dot"})
    facts = fit(
        lambda: build_two_tower(config, dataset.features, dataset.vectors),
        dataset,
        Train.model_validate({"epochs": 2, "batch_size": 24, **changes}),
        validate=lambda model: 0.0,
        out=out,
        setup=Setup(ProcessGroup(open_device(device))),
    )
    return [epoch["loss"] for epoch in facts["epochs"]], load_file(out / "weights.safetensors")


@needs_gpu
@pytest.mark.parametrize("loss", LOSSES)
def test_a_gpu_learns_what_the_processor_learns(dataset, tmp_path, loss):
    found = [
        trained(dataset, tmp_path / name, name, loss=LOSSES[loss], precision="float32") for name in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-2)
    for name, weights in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], weights, rtol=0.05, atol=0.02)


@needs_gpu
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hard_negatives": {"skip": 2, "top": 20}},
        {"micro_batch_size": 10},
        {"max_grad_norm": 0.5},
        {"group_by_time": "day"},
        {"optimizer": "sgd", "learning_rate": 1.0},
    ],
    ids=["plain", "mined", "parts", "clipped", "days", "sgd"],
)
def test_a_gpu_learns_nearly_the_same_in_bfloat16(dataset, tmp_path, changes):
    exact = trained(dataset, tmp_path / "cpu", "cpu", precision="float32", **changes)[0]
    reduced = trained(dataset, tmp_path / "cuda", "cuda", precision="bfloat16", **changes)[0]
    np.testing.assert_allclose(reduced, exact, rtol=0.05)


# --- precision of the towers ------------------------------------------------------------------------------------------


def test_only_a_gpu_reduces_the_precision_of_the_towers(monkeypatch):
    for device, dtype in (("cpu", torch.bfloat16), ("cuda", torch.float32), ("meta", torch.bfloat16)):
        assert isinstance(reduced_precision(torch.device(device), dtype), nullcontext)
    opened = []
    # Without a GPU the real one only warns.
    monkeypatch.setattr(torch, "autocast", lambda *given: opened.append(given) or nullcontext())
    reduced_precision(torch.device("cuda"), torch.bfloat16)
    assert opened == [("cuda", torch.bfloat16)]


@pytest.mark.parametrize("loss", LOSSES)
def test_towers_in_bfloat16_give_nearly_the_same_loss_and_gradients(dataset, monkeypatch, loss):
    """The context of a GPU, on the CPU, which can multiply in bfloat16 too: every layer accepts it."""
    settings = Train.model_validate({"batch_size": 48, "loss": LOSSES[loss], "precision": "float32"})
    config = TwoTower(kind="two_tower", dim=16, hidden=(32,), score={"kind": "cosine", "temperature": 0.2})
    objective, found, seen = build_objective(settings, dataset), [], []
    batch = gather_batch(dataset, dataset.examples["train"], objective.examples[:48])
    for context in (nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        monkeypatch.setattr(batch_loss, "reduced_precision", lambda device, dtype, context=context: context)
        torch.manual_seed(1)
        model = build_two_tower(config, dataset.features, dataset.vectors)
        layer = next(each for each in model.item.modules() if isinstance(each, torch.nn.Linear))
        layer.register_forward_hook(lambda layer, read, vectors: seen.append(vectors.dtype))
        value, _ = batch_loss.mean_loss(objective, model, batch)
        value.backward()
        gradient = torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])
        found.append((value.item(), gradient))
    assert seen == [torch.float32, torch.bfloat16]
    assert found[1][0] == pytest.approx(found[0][0], rel=0.01)
    assert torch.cosine_similarity(found[0][1], found[1][1], dim=0) > 0.995
    assert not torch.equal(found[0][1], found[1][1])
