"""Parts of a checkpoint: each rank writes its columns, any number of ranks reads them, and none is left behind."""

from dataclasses import replace

import pytest
import torch

from twofold.model.encoder import Encoder, Layers, Lookup
from twofold.recipe.train import Train
from twofold.train import checkpoint
from twofold.train.checkpoint import delete_checkpoint, load_checkpoint, save_checkpoint
from twofold.train.distributed import SINGLE_PROCESS, ProcessGroup
from twofold.train.optimizer import StepSize, build_optimizer
from twofold.train.sharded_embedding import ShardedTable
from twofold.train.training_state import TrainingState

ROWS, DIM = 40, 7
STATE = TrainingState(epoch=1, batch=4)
TABLES = {name: torch.arange(ROWS * DIM).view(ROWS, DIM) + shift for name, shift in
          (("weight", 0.5), ("exp_avg", 1000.5), ("exp_avg_sq", 2000.5))}  # fmt: skip


@pytest.fixture(autouse=True)
def _nobody_waits(monkeypatch):
    monkeypatch.setattr(checkpoint, "wait_for_all", lambda ranks: None)


def trained(rank, size, folder, *, filled):
    """Returns the model of a rank and its optimizer, with its columns of `TABLES` or with zeros."""
    torch.manual_seed(0)
    model = Encoder((Lookup("id", ROWS, DIM),), Layers(3))
    ranks, columns = SINGLE_PROCESS, slice(None)
    if size > 1:
        ranks = ProcessGroup(rank=rank, size=size)
        model.tables["id"] = ShardedTable(ranks, model.tables["id"], folder)
        columns = model.tables["id"].columns
    optimizer = build_optimizer(model, learning_rate=0.1, size=StepSize(1, 1), ranks=ranks)
    weight = model.tables["id"].weight
    own = {name: whole[:, columns].clone() * filled for name, whole in TABLES.items()}
    weight.data = own.pop("weight")
    if filled:
        optimizer.lazy.state[weight] = {"step": 3, **own}
    return model, optimizer


def save(folder, size, state=STATE):
    for rank in reversed(range(size)):
        model, optimizer = trained(rank, size, folder, filled=True)
        best = {"layers.0.bias": torch.ones(3)} if rank == 0 else {}
        save_checkpoint(folder / "c.safetensors", model, optimizer, best=best, state=state, settings=Train())


def columns_of(rank, size, folder):
    """Loads a checkpoint as a rank of a group does; returns its columns of each table."""
    model, optimizer = trained(rank, size, folder, filled=False)
    state, best = load_checkpoint(folder / "c.safetensors", model, optimizer, settings=Train())
    assert state == STATE
    assert len(best) == (rank == 0)
    weight = model.tables["id"].weight
    held = optimizer.lazy.state[weight]
    assert held["step"] == 3
    return {"weight": weight.data, "exp_avg": held["exp_avg"], "exp_avg_sq": held["exp_avg_sq"]}


@pytest.mark.parametrize("readers", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("writers", [1, 2, 3, 8])  # of eight, one has no column
def test_any_number_of_ranks_goes_on_with_what_others_wrote(tmp_path, writers, readers):
    save(tmp_path, writers)
    assert len(list(tmp_path.iterdir())) == (1 if writers == 1 else 1 + writers)
    parts = [columns_of(rank, readers, tmp_path) for rank in range(readers)]
    for name, whole in TABLES.items():
        assert torch.equal(torch.cat([part[name] for part in parts], dim=1), whole)
    assert all(tensor.is_contiguous() for part in parts for tensor in part.values())


def test_a_rank_writes_only_its_columns(tmp_path):
    save(tmp_path, 2)
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("c.1-4.*-of-2.safetensors")}
    numbers = {f"c.1-4.{rank}-of-2.safetensors": 3 * ROWS * width * 4 for rank, width in ((0, 3), (1, 4))}
    assert sizes.keys() == numbers.keys()
    assert all(0 < sizes[name] - numbers[name] < 500 for name in sizes)  # and a header


def test_parts_of_an_older_checkpoint_are_deleted_when_the_new_one_is_complete(tmp_path):
    save(tmp_path, 3)
    (tmp_path / "c.1-5.2-of-3.safetensors.writing").touch()  # of a killed process
    save(tmp_path, 2, state=replace(STATE, batch=9))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"c.safetensors", "c.1-9.0-of-2.safetensors", "c.1-9.1-of-2.safetensors"}
    delete_checkpoint(tmp_path / "c.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_death_before_the_last_part_leaves_the_older_checkpoint(tmp_path):
    save(tmp_path, 2)
    model, optimizer = trained(1, 2, tmp_path, filled=True)
    later = replace(STATE, batch=9)
    save_checkpoint(tmp_path / "c.safetensors", model, optimizer, best={}, state=later, settings=Train())
    for rank in range(2):
        assert columns_of(rank, 2, tmp_path).keys() == TABLES.keys()


def test_a_missing_part_is_no_checkpoint(tmp_path):
    save(tmp_path, 2)
    (tmp_path / "c.1-4.1-of-2.safetensors").unlink()
    model, optimizer = trained(0, 2, tmp_path, filled=False)
    assert load_checkpoint(tmp_path / "c.safetensors", model, optimizer, settings=Train()) is None
