"""Tables that histories read are lazy where a step reads few of their rows: what moves, and that nothing else is done.

Checked on one step of small towers, and on steps of every kind of feature with 500 items, of which a batch reads few.
"""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tests.dataset.prepared import FEATURES, random_events, write_prepared
from twofold.dataset.batches import gather_batch
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import load_dataset
from twofold.errors import RunError
from twofold.model.encoder import Encoder, Layers, Lookup, Pool, Sequence
from twofold.model.two_tower import build_two_tower
from twofold.recipe.retriever import TwoTower
from twofold.recipe.train import Train
from twofold.train import optimizer as optimizers
from twofold.train.batch_loss import encode_parts, mean_loss
from twofold.train.checkpoint import load_checkpoint, save_checkpoint
from twofold.train.objective import build_objective
from twofold.train.optimizer import StepSize, build_optimizer, clip_gradients, lazy_tables
from twofold.train.training_state import TrainingState

ROWS, DIM, LENGTH = 400, 4, 5
ITEMS = 800
LAZY, DENSE = StepSize(items=1, users=1), StepSize(items=ROWS, users=ROWS)
HISTORIES = {
    "mean": Pool("history", ROWS, DIM, length=LENGTH),
    "windows": Pool("history", ROWS, DIM, "windows", length=LENGTH),
    "sequence": Sequence("history", ROWS, DIM, LENGTH, num_layers=1, num_heads=2, dropout=0.0),
}


def towers(kind: str, *, shared: bool) -> nn.ModuleList:
    """A tower of a history and one of ids, whose table the history borrows if it is shared."""
    torch.manual_seed(0)
    item = Encoder((Lookup("id", ROWS, DIM, dropout=0.5, single_from=1),), Layers(3))
    tables = {"history": item.table_of(item.feature_blocks[0])} if shared else {}
    return nn.ModuleList([Encoder((HISTORIES[kind],), Layers(3), shared_tables=tables), item])


def step(model: nn.ModuleList, optimizer: optimizers.Optimizer, number: int) -> tuple[set[int], float]:
    """One step on histories of rows below 100 and items from 200 on; returns the rows of the histories and the norm."""
    draw = torch.Generator().manual_seed(number)
    histories, ids = torch.randint(1, 100, (6, LENGTH), generator=draw), torch.randint(200, ROWS, (6,), generator=draw)
    histories[0], histories[1, 3:] = 0, 0  # a user without events, and one with three
    torch.manual_seed(number)
    optimizer.zero_grad()
    user, item = model[0]({"history": histories.int()}), model[1]({"id": ids})
    (user * item * torch.randn(6, 3, generator=draw)).sum().mul(1000).backward()  # large beside the epsilon of Adam
    norm = float(clip_gradients(optimizer, most=500.0))
    optimizer.step()
    return set(histories.flatten().tolist()) - {0}, norm


def table_of_histories(model: nn.ModuleList) -> Tensor:
    return model[0].table_of(model[0].feature_blocks[0]).weight.detach()


def optimizer_of(model: nn.Module, size: StepSize, kind: str = "adamw") -> optimizers.Optimizer:
    return build_optimizer(model, learning_rate=0.1, size=size, weight_decay=0.2, kind=kind)


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("kind", HISTORIES)
def test_a_first_step_moves_the_rows_that_were_read_as_a_dense_one_does_and_no_others(kind, shared):
    models = {size: towers(kind, shared=shared) for size in (LAZY, DENSE)}
    before = table_of_histories(models[LAZY]).clone()
    (read, norm), (_, dense_norm) = (step(model, optimizer_of(model, size), 1) for size, model in models.items())
    assert norm == pytest.approx(dense_norm, rel=1e-5)
    lazy, dense = (table_of_histories(models[size]) for size in (LAZY, DENSE))
    moved = set((lazy != before).any(dim=1).nonzero().flatten().tolist())
    assert {row for row in moved if 0 < row < 200} == read
    assert (max(moved) >= 200) == shared  # the items of the other tower
    assert (0 in moved) == shared  # its unknown items
    rows = sorted(moved)
    torch.testing.assert_close(lazy[rows], dense[rows], rtol=1e-4, atol=1e-5)
    assert len(rows) < 40
    assert (dense != before).any(dim=1)[1:].all()  # weight decay alone moves every row of a dense table
    torch.testing.assert_close(
        models[LAZY][0].layers.state_dict(), models[DENSE][0].layers.state_dict(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", HISTORIES)
def test_sgd_of_sparse_gradients_is_sgd(kind):
    found = []
    for size in (LAZY, DENSE):
        model = towers(kind, shared=True).double()  # so large steps multiply the rounding of float32
        optimizer = build_optimizer(model, learning_rate=0.5, size=size, kind="sgd")
        assert len(optimizer.tables) == (size == LAZY)
        for number in range(4):
            step(model, optimizer, number)
        found.append(table_of_histories(model))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("optimizer_kind", ["adamw", "sgd"])
@pytest.mark.parametrize("kind", HISTORIES)
def test_a_checkpoint_goes_on_exactly(kind, optimizer_kind, tmp_path):
    whole, resumed = towers(kind, shared=True), towers(kind, shared=True)
    first, second = (optimizer_of(model, LAZY, optimizer_kind) for model in (whole, resumed))
    for number in range(4):
        step(whole, first, number)
    save_checkpoint(tmp_path / "checkpoint", whole, first, best={}, state=TrainingState(batch=4), settings=Train())
    assert load_checkpoint(tmp_path / "checkpoint", resumed, second, settings=Train())[0] == TrainingState(batch=4)
    for number in range(4, 9):
        step(whole, first, number)
        step(resumed, second, number)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize("kind", HISTORIES)
def test_parts_of_a_batch_add_up_to_the_gradient_of_the_whole(kind):
    rows = torch.randint(ROWS, (6, LENGTH), generator=torch.Generator().manual_seed(3)).int()
    gradients = []
    for parts in ([rows], [rows[:4], rows[4:]]):
        model = towers(kind, shared=True)
        optimizer_of(model, LAZY)
        (encode_parts(model[0], [{"history": part} for part in parts]) * torch.arange(3.0)).sum().backward()
        gradient = model[1].tables["id"].weight.grad
        assert gradient.is_sparse
        gradients.append(gradient.to_dense())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_a_checkpoint_of_a_lazy_table_is_refused_where_the_table_is_dense(tmp_path):
    lazy, dense = towers("mean", shared=True), towers("mean", shared=True)
    optimizer = optimizer_of(lazy, LAZY)
    step(lazy, optimizer, 0)
    save_checkpoint(tmp_path / "checkpoint", lazy, optimizer, best={}, state=TrainingState(), settings=Train())
    with pytest.raises(
        RunError, match=r"another training, which differs in lazy tables: 1\.tables\.id → none\. Resume"
    ):
        load_checkpoint(tmp_path / "checkpoint", dense, optimizer_of(dense, DENSE), settings=Train())


@pytest.mark.parametrize(("users", "is_lazy"), [(6, True), (7, False)])
def test_a_table_is_lazy_if_it_has_ten_rows_for_each_item_and_each_place_of_a_history(users, is_lazy):
    model = towers("mean", shared=True)
    size = StepSize(items=10, users=users)  # 10 items and 6 · 5 places are a tenth of 400 rows
    assert optimizers.LAZY_FROM == 10
    assert lazy_tables(model, size) == [model[1].tables["id"]] * is_lazy


@pytest.mark.parametrize(("sequences", "is_lazy"), [(None, False), (20, False), (2, True), (3, False)])
def test_sequences_that_examples_share_are_counted_once(sequences, is_lazy):
    # Of 400 rows, a step reads 2 · 5 of sequences, a fortieth; a sequence for each of 20 users is too many.
    model = towers("sequence", shared=False)
    size = StepSize(items=0, users=20, sequences=sequences)
    assert optimizers.LAZY_FROM_SEQUENCES == 40
    tables = lazy_tables(model, size)
    assert any(each is model[0].tables["history"] for each in tables) == is_lazy


def test_a_concatenated_history_and_lists_of_any_length_stay_dense():
    blocks = (Pool("history", ROWS, DIM, "concat", length=LENGTH), Pool("tags", ROWS, DIM))
    assert lazy_tables(Encoder(blocks, Layers(3)), LAZY) == []


# --- what a step touches ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many items")
    write_prepared(folder / "prepare", random_events(0, items=ITEMS, events=1200), items=ITEMS, train_items=ITEMS)
    build_dataset(folder / "prepare", FEATURES, folder / "dataset", time_zone="Asia/Shanghai")
    return load_dataset(folder / "dataset")


class Catalogue(TorchDispatchMode):
    """Counts by name the operations that write as many numbers as there are items, or allocate them.

    Writing some rows of a table is neither: by their indices, or by adding a sparse tensor.
    """

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.num_items, self.found = num_items, Counter[str]()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        given = [each for each in _pytree.tree_leaves((arguments, options)) if isinstance(each, Tensor)]
        made = function(*arguments, **options)
        dense = [each for each in given if not each.is_sparse]
        places = {each.untyped_storage().data_ptr() for each in dense}
        for each in _pytree.tree_leaves(made):
            if isinstance(each, Tensor):
                each = each._values() if each.is_sparse else each
                is_new = each.untyped_storage().data_ptr() not in places
                self.found[str(function)] += is_new and each.numel() >= self.num_items
        by_rows = function._schema.name == "aten::index_put_" or len(dense) < len(given)
        if function._schema.is_mutable and not by_rows:
            self.found[str(function)] += any(len(each) >= self.num_items for each in dense if each.ndim)
        return made


@pytest.mark.parametrize("is_lazy", [True, False], ids=["lazy", "dense"])
def test_a_step_writes_nothing_as_large_as_the_catalogue(dataset, is_lazy, monkeypatch):
    monkeypatch.setattr(optimizers, "LAZY_FROM", 10 if is_lazy else 10**6)
    settings = Train.model_validate(
        {
            "batch_size": 2,
            "loss": {"kind": "in_batch_softmax", "log_q": "corrected", "uniform_negatives": 2},
            "max_grad_norm": 1e-3,
            "weight_decay": 0.1,
        }
    )
    objective = build_objective(settings, dataset)
    config = TwoTower.model_validate({"kind": "two_tower", "dim": 4, "score": {"kind": "cosine"}})
    model = build_two_tower(config, dataset.features, dataset.vectors)
    optimizer = optimizer_of(model, objective.step_size)
    num_items = dataset.items.num_known
    assert num_items > 500
    assert [table.num_embeddings for table in optimizer.tables] == [1 + num_items] * 3 * is_lazy
    for number in range(3):
        found = Catalogue(num_items)
        batch = gather_batch(dataset, dataset.examples["train"], objective.examples[2 * number : 2 * number + 2])
        with found:
            loss, _ = mean_loss(objective, model, batch)
            optimizer.zero_grad()
            loss.backward()
            clip_gradients(optimizer, most=settings.max_grad_norm)
            optimizer.step()
    written = +found.found  # of the last step: the first one allocates the states of Adam
    if is_lazy:
        assert not written
    else:
        assert {"aten._fused_adamw_.default", "aten.embedding_dense_backward.default"} <= written.keys()
