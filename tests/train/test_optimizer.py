"""Which table takes which optimizer, that both agree where they should, and that their state survives."""

import pytest
import torch
from torch import nn

from twofold.cost_plan import LAZY_FROM
from twofold.model.encoder import Encoder, Layers, Lookup
from twofold.recipe.train import Train
from twofold.train.checkpoint import load_checkpoint, save_checkpoint
from twofold.train.optimizer import (
    StepSize,
    build_optimizer,
    clip_gradients,
    learning_rate_at,
    set_learning_rate,
)
from twofold.train.training_state import TrainingState

ROWS = 40


def encoder(*blocks, seed=0):
    torch.manual_seed(seed)
    return Encoder(blocks or (Lookup("id", ROWS, 4),), Layers(3))


def size(rows):
    return StepSize(items=rows, users=rows)


def train(model, optimizer, steps, *, rows=ROWS):
    """Steps over a few rows each, at random but repeatable."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        ids = torch.randint(rows, (3,), generator=generator)
        optimizer.zero_grad()
        (model({"id": ids}) * torch.randn(3, 3, generator=generator)).sum().backward()
        optimizer.step()


def test_rises_to_the_peak_and_falls_to_nothing():
    rates = [learning_rate_at(step, steps=200, peak=0.1) for step in range(200)]
    assert max(rates) == pytest.approx(0.1)
    assert rates.index(max(rates)) == 9  # 5 % of 200 steps, the last of the warm-up
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 0.1 / 1000


def test_one_step_is_possible():
    assert learning_rate_at(0, steps=1, peak=0.1) == 0.1


def test_the_rate_reaches_every_part():
    optimizer = build_optimizer(encoder(), learning_rate=1.0, size=size(1))
    set_learning_rate(optimizer, 0.25)
    assert len(optimizer.parts) == 2
    assert {group["lr"] for part in optimizer.parts for group in part.param_groups} == {0.25}


@pytest.mark.parametrize(("rows_per_step", "kinds"), [(ROWS // LAZY_FROM, 2), (ROWS // LAZY_FROM + 1, 1)])
def test_a_table_is_lazy_from_ten_rows_a_row_looked_up(rows_per_step, kinds):
    model = encoder()
    optimizer = build_optimizer(model, learning_rate=0.1, size=size(rows_per_step))
    assert len(optimizer.parts) == kinds
    train(model, optimizer, 1)
    held = sum(len(group["params"]) for part in optimizer.parts for group in part.param_groups)
    assert held == len(list(model.parameters()))


def test_a_table_that_two_towers_look_up_is_held_once():
    user, item = encoder(), encoder()
    user.tables["id"] = item.tables["id"]
    optimizer = build_optimizer(nn.ModuleList([user, item]), learning_rate=0.1, size=size(1))
    assert [len(group["params"]) for group in optimizer.parts[1].param_groups] == [1]
    train(user, optimizer, 2)


def test_a_row_without_a_gradient_stays_as_it_is_and_padding_does_too():
    model = encoder()
    before = model.tables["id"].weight.detach().clone()
    train(model, build_optimizer(model, learning_rate=0.1, size=size(1)), 20, rows=10)
    moved = (model.tables["id"].weight.detach() != before).any(dim=1)
    assert moved[1:10].all()
    assert not moved[10:].any()
    assert not moved[0]


def test_lazy_adam_is_adam_where_every_step_moves_every_row():
    ids, wanted = torch.arange(1, ROWS), torch.linspace(1, 2, 4)
    tables = []
    for rows_per_step in (1, ROWS):  # lazy, fused
        model = encoder()
        optimizer = build_optimizer(model, learning_rate=0.1, size=size(rows_per_step))
        for step in range(5):
            optimizer.zero_grad()
            (model.tables["id"](ids) * wanted * (1 + step)).sum().backward()
            optimizer.step()
        tables.append(model.tables["id"].weight.detach())
    torch.testing.assert_close(tables[0], tables[1], rtol=1e-5, atol=1e-6)
    moved = encoder().tables["id"].weight - tables[0]  # 5 steps of the learning rate
    torch.testing.assert_close(
        moved[1:].mean(), torch.tensor(5 * 0.1), rtol=0.1, atol=0
    )  # 5 steps of the learning rate


@pytest.mark.parametrize("rows_per_step", [1, ROWS])
def test_sgd_moves_each_weight_by_the_rate_times_its_gradient(rows_per_step):
    model = encoder()
    optimizer = build_optimizer(model, learning_rate=0.5, size=size(rows_per_step), kind="sgd")
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    model({"id": torch.tensor([3, 3, 5])}).sum().backward()
    gradients = {name: weight.grad.to_dense().clone() for name, weight in model.named_parameters()}
    optimizer.step()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.detach(), before[name] - 0.5 * gradients[name])


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("rows_per_step", [1, ROWS])
def test_a_checkpoint_goes_on_exactly(rows_per_step, kind, tmp_path):
    def fresh():
        model = encoder()
        return model, build_optimizer(model, learning_rate=0.1, size=size(rows_per_step), kind=kind)

    whole, optimizer = fresh()
    train(whole, optimizer, 7)
    save_checkpoint(tmp_path / "checkpoint", whole, optimizer, best={}, state=TrainingState(batch=7), settings=Train())
    train(whole, optimizer, 5)
    resumed, other = fresh()
    position, _ = load_checkpoint(tmp_path / "checkpoint", resumed, other, settings=Train())
    assert position == TrainingState(batch=7)
    train(resumed, other, 5)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_lazy_adam_repeats_itself_with_deterministic_kernels():
    weights = []
    for _ in range(2):
        model = encoder()
        torch.use_deterministic_algorithms(True)
        train(model, build_optimizer(model, learning_rate=0.1, size=size(1)), 5)
        torch.use_deterministic_algorithms(False)
        weights.append(model.tables["id"].weight.detach())
    assert torch.equal(*weights)


@pytest.mark.parametrize("rows_per_step", [1, ROWS], ids=["sparse", "dense"])
def test_gradients_are_clipped_as_one_vector_the_rows_of_a_sparse_one_added_up(rows_per_step):
    model = encoder()
    optimizer = build_optimizer(model, learning_rate=0.1, size=size(rows_per_step))

    def backward():
        optimizer.zero_grad()
        model({"id": torch.tensor([3, 3, 5])}).sum().backward()
        return {name: parameter.grad.to_dense().clone() for name, parameter in model.named_parameters()}

    whole = backward()
    length = sum(gradient.square().sum() for gradient in whole.values()).sqrt().item()
    assert float(clip_gradients(optimizer, most=None)) == pytest.approx(length)
    for most, left in ((2 * length, 1.0), (length / 4, 1 / 4)):
        backward()
        assert float(clip_gradients(optimizer, most=most)) == pytest.approx(length)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad.to_dense(), whole[name] * left)


@pytest.mark.parametrize("rows_per_step", [ROWS, 1])
def test_weight_decay_shrinks_matrices_and_no_vectors(rows_per_step):
    model = encoder()
    optimizer = build_optimizer(model, learning_rate=0.1, size=size(rows_per_step), weight_decay=0.5)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    (model({"id": torch.tensor([1, 2])}).sum() * 0).backward()
    optimizer.step()
    after = dict(model.named_parameters())
    kept = 1 - 0.1 * 0.5
    table, is_lazy = "tables.id.weight", len(optimizer.parts) == 2
    assert is_lazy == (rows_per_step == 1)
    torch.testing.assert_close(after["layers.0.weight"], kept * before["layers.0.weight"])
    torch.testing.assert_close(after[table][1:3], kept * before[table][1:3])
    torch.testing.assert_close(after[table][3:], before[table][3:] * (1 if is_lazy else kept))
    assert torch.equal(after["layers.0.bias"], before["layers.0.bias"])


def test_no_weight_decay_is_adam_to_the_bit():
    mine, plain = encoder(), encoder()
    train(mine, build_optimizer(mine, learning_rate=0.1, size=size(ROWS)), 20)
    train(plain, torch.optim.Adam(plain.parameters(), lr=0.1, fused=True), 20)
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), plain.parameters(), strict=True))
