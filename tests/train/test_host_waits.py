"""A step on a GPU waits for nothing, shown without a GPU: on the device `meta`, reading a value raises an error."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.dataset.prepared import FEATURES, random_events, write_prepared
from twofold.dataset.batches import gather_batch
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import Dataset, load_dataset
from twofold.errors import RunError
from twofold.model import fused_softmax
from twofold.model.two_tower import build_two_tower
from twofold.recipe.features import Features
from twofold.recipe.retriever import TwoTower
from twofold.recipe.train import Train
from twofold.train import device as devices
from twofold.train import loop
from twofold.train.batch_loss import mean_loss
from twofold.train.device import batch_on, prefetched
from twofold.train.distributed import ProcessGroup
from twofold.train.loop import _pending, fit
from twofold.train.objective import build_objective
from twofold.train.optimizer import build_optimizer, clip_gradients
from twofold.train.training_state import PendingSteps, TrainingState

META = torch.device("meta")
SEQUENCE = {"kind": "sequence", "max_length": 5, "num_layers": 1, "num_heads": 2, "dropout": 0.1}
LOSSES: dict[str, dict[str, Any]] = {
    "classic": {"kind": "in_batch_softmax", "log_q": "classic"},
    "corrected": {"kind": "in_batch_softmax", "log_q": "corrected"},
    "mixed": {"kind": "in_batch_softmax", "log_q": "corrected", "uniform_negatives": 8},
    "uncorrected": {"kind": "in_batch_softmax", "log_q": "none"},
    "sampled": {"kind": "sampled_softmax"},
    "full": {"kind": "full_softmax"},
    "prior": {"kind": "full_softmax", "logit_adjustment": 1.0},
    "bpr": {"kind": "bpr"},
    "bce": {"kind": "bce"},
    "regression": {"kind": "regression"},
}


def dataset_of(folder: Path, features: Features) -> Dataset:
    write_prepared(folder / "prepare", random_events(0))
    build_dataset(folder / "prepare", features, folder / "dataset", time_zone="Asia/Shanghai")
    return load_dataset(folder / "dataset")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return dataset_of(tmp_path_factory.mktemp("histories"), FEATURES)


@pytest.fixture(scope="module")
def likes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """One feature for each tower, for the many steps of a test."""
    user = [{"kind": "history", "events": "positives", "max_length": 5}]
    return dataset_of(
        tmp_path_factory.mktemp("likes"), Features.model_validate({"user": user, "item": [{"kind": "id"}]})
    )


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    features = Features.model_validate({"user": [SEQUENCE | {"time_bias": True}], "item": [{"kind": "id"}]})
    return dataset_of(tmp_path_factory.mktemp("sequences"), features)


class Copies(TorchDispatchMode):
    """Counts copies from the CPU to the device, by whether the CPU waits for them, and other operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.queued, self.blocking, self.operations = 0, 0, Counter[str]()

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, arguments: tuple[Any, ...] = (), options: Any = None
    ) -> Any:
        options = options or {}
        name = str(function)
        self.operations[name] += 1
        is_copy = name.startswith("aten._to_copy") and torch.device(options.get("device") or "cpu") == META
        if is_copy and arguments[0].device.type == "cpu":
            self.queued += bool(options.get("non_blocking"))
            self.blocking += not options.get("non_blocking")
        return function(*arguments, **options)


def step_on_meta(dataset: Dataset, settings: Train) -> Copies:
    """One whole step on the device `meta`, which raises an error if anything reads a value of it."""
    ranks = ProcessGroup(META)
    objective = build_objective(settings, dataset, ranks=ranks)
    config = TwoTower(kind="two_tower", dim=8, score={"kind": "dot"})
    with torch.device("meta"):
        model = build_two_tower(config, dataset.features, dataset.vectors).to(META)  # vectors of items are given
    optimizer = build_optimizer(model, learning_rate=0.1, size=objective.step_size, ranks=ranks)
    pending = _pending(settings, objective)
    batch = gather_batch(dataset, dataset.examples["train"], objective.examples[: settings.batch_size])
    with Copies() as copies:
        loss, _ = mean_loss(objective, model, batch_on(META, batch))
        loss.backward()
        pending.add(loss.detach(), clip_gradients(optimizer, most=1.0), 0.1)
        optimizer.step()
    assert all(each.grad is not None for each in model.item.parameters())
    assert not pending.is_full
    return copies


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_reads_nothing_from_the_device_and_queues_its_copies(dataset: Dataset, name: str) -> None:
    settings = Train.model_validate({"epochs": 1, "batch_size": 24, "loss": LOSSES[name], "max_grad_norm": 1.0})
    copies = step_on_meta(dataset, settings)
    assert copies.blocking == 0
    assert 0 < copies.queued <= 50


def test_a_step_of_sequences_reads_nothing_either(sequences: Dataset) -> None:
    settings = Train.model_validate({"epochs": 1, "batch_size": 24, "max_grad_norm": 1.0})
    assert step_on_meta(sequences, settings).blocking == 0


def test_reading_a_value_of_meta_is_an_error() -> None:
    for read in (Tensor.item, torch.nonzero, lambda values: values.cpu()):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read(torch.zeros(1, device="meta"))


def test_losses_are_read_once_in_fifty_steps(likes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    read = PendingSteps.read
    monkeypatch.setattr(
        PendingSteps, "read", lambda self, *args, **parts: (reads.append(len(self)), read(self, *args, **parts))[1]
    )
    config = TwoTower(kind="two_tower", dim=8, score={"kind": "dot"})
    results = {}
    for name, every in (("often", 1), ("seldom", devices.STEPS_PER_READ)):
        monkeypatch.setattr(loop, "_pending", lambda *given, every=every: replace(_pending(*given), every=every))
        reads.clear()
        (tmp_path / name).mkdir()
        facts = fit(
            lambda: build_two_tower(config, likes.features, likes.vectors),
            likes,
            Train.model_validate({"epochs": 2, "batch_size": 2}),
            validate=lambda model: 0.0,
            out=tmp_path / name,
        )
        results[name] = (
            [epoch["loss"] for epoch in facts["epochs"]],
            (tmp_path / name / "weights.safetensors").read_bytes(),
        )
        steps = sum(reads)
    assert results["often"] == results["seldom"]  # when losses are read changes nothing
    assert steps > 100
    assert len(reads) <= 2 * (steps // 2 // 50 + 1)  # at most once in fifty steps, and at the end of each epoch


def test_a_loss_that_is_not_finite_is_found_when_it_is_read() -> None:
    pending = PendingSteps(50, 1, 8, "Lower it")
    for loss in (1.0, float("nan"), 2.0):
        pending.add(torch.tensor(loss), torch.tensor(1.0), 0.1)
    with pytest.raises(RunError, match="the loss of epoch 0, batch 1 is nan. Lower it"):
        pending.read(TrainingState(), last_step=3)


def test_masks_by_comparison_are_those_by_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    users, items = torch.randint(9, (40,), generator=draw), torch.randint(7, (40,), generator=draw)
    vectors = [torch.randn(40, 8, generator=draw) for _ in range(2)]
    batch = fused_softmax.SoftmaxBatch(users, items, torch.ones(40), torch.zeros(40), items, users, torch.zeros(40))
    by_sorting = fused_softmax._sum_and_gradients(
        vectors[0], vectors[1], vectors[1], batch, product_dtype=torch.float32
    )
    monkeypatch.setattr(fused_softmax, "_is_cpu", lambda device: False)
    monkeypatch.setattr(fused_softmax, "_equal_positions", None)
    compared = fused_softmax._sum_and_gradients(vectors[0], vectors[1], vectors[1], batch, product_dtype=torch.float32)
    for first, second in zip(by_sorting, compared, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)


def test_batches_are_gathered_ahead_in_order_and_an_error_is_raised(dataset: Dataset) -> None:
    rows = dataset.examples["train"]
    given = [gather_batch(dataset, rows, np.arange(3 * number, 3 * number + 3)) for number in range(5)]
    found = list(prefetched(iter(given), META))
    assert [batch.on_host is original for batch, original in zip(found, given, strict=True)] == [True] * 5
    assert {batch.item_rows.device.type for batch in found} == {"meta"}
    assert list(prefetched(iter(given), torch.device("cpu"))) == given

    def broken() -> Any:
        yield given[0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(prefetched(broken(), META))
