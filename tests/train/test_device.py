"""A GPU that is not there is said at once; everything of a batch goes where the model is."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from tests.dataset.prepared import FEATURES, random_events, write_prepared
from twofold.dataset.batches import gather_batch
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import load_dataset
from twofold.errors import RunError
from twofold.model.two_tower import build_two_tower
from twofold.recipe.retriever import TwoTower
from twofold.recipe.train import Train
from twofold.train.device import batch_on, open_device
from twofold.train.distributed import ProcessGroup, distributed_context
from twofold.train.loop import Setup, fit

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


@needs_gpu
@pytest.mark.parametrize("loss", ["in_batch_softmax", "sampled_softmax", "full_softmax", "bpr", "bce"])
def test_a_gpu_learns_what_the_processor_learns(dataset, tmp_path, loss):
    model = TwoTower(kind="two_tower", dim=8, score={"kind": "dot"})
    settings = Train.model_validate({"epochs": 2, "batch_size": 24, "loss": {"kind": loss}})
    losses = []
    for name in ("cpu", "cuda"):
        (tmp_path / name).mkdir()
        facts = fit(
            lambda: build_two_tower(model, dataset.features, dataset.vectors),
            dataset,
            settings,
            validate=lambda model: 0.0,
            out=tmp_path / name,
            setup=Setup(ProcessGroup(open_device(name))),
        )
        losses.append([epoch["loss"] for epoch in facts["epochs"]])
    np.testing.assert_allclose(*losses, rtol=1e-2)
