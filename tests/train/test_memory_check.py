"""Memory that training needs, against a sum by hand; free memory, against what the system says."""

from dataclasses import replace

import pytest
import torch

from twofold.errors import RunError
from twofold.model.encoder import Encoder, Layers, Lookup
from twofold.train import memory_check as memory
from twofold.train.distributed import SINGLE_PROCESS, ProcessGroup
from twofold.train.memory_check import available_bytes, check_memory
from twofold.train.optimizer import StepSize

CPU = torch.device("cpu")
ROWS, DIM = 3_000_000_000, 64
TABLE = ROWS * DIM * 4  # bytes: many times this machine's memory, whichever it is


def sketch(rows):
    with torch.device("meta"):
        return Encoder((Lookup("id", rows, DIM),), Layers(DIM))


def gib(count):
    return f"{count / 2**30:,.1f} GiB"


LAZY, DENSE = "itself, 2 states of Adam", "itself, 2 states of Adam, its gradient"


@pytest.mark.parametrize(
    ("ranks", "rows_per_step", "kept", "why"),
    [
        (SINGLE_PROCESS, 1, 4, f"4 ({LAZY}, the best epoch)"),
        (SINGLE_PROCESS, ROWS, 5, f"5 ({DENSE}, the best epoch)"),
        # Of three, two are here: two thirds of it all. Of four, one: a quarter, and beside it, at first, the whole.
        (ProcessGroup(size=3, on_this_machine=2), 1, 2, f"2 ({LAZY}, held by 3 processes, whole at the start)"),
        (ProcessGroup(size=4), 1, 1.25, f"1.25 ({LAZY}, held by 4 processes, whole at the start)"),
        (ProcessGroup(size=4, on_this_machine=2), ROWS, 9, f"9 ({DENSE}, × 2 processes, the best epoch)"),
    ],
    ids=["lazy", "dense", "lazy in ranks", "lazy in ranks afar", "dense in ranks"],
)
def test_a_table_larger_than_memory_is_said_with_the_sum(ranks, rows_per_step, kept, why):
    layer = (64 * 64 + 64) * 4 * (4 * ranks.on_this_machine + 1)
    with pytest.raises(RunError) as refused:
        check_memory(sketch(ROWS), ranks, StepSize(rows_per_step, rows_per_step))
    said = str(refused.value)
    assert f"takes {gib(TABLE * kept + layer)} and " in said
    assert f"tables.id.weight: 3,000,000,000 × 64 numbers × 4 bytes × {why} = {gib(TABLE * kept)}. Lower" in said
    assert said.endswith("which share such a table." if rows_per_step == 1 else "with more memory.")


def test_what_fits_is_not_refused_and_each_process_needs_its_own(monkeypatch):
    one = (1000 * DIM + DIM * DIM + DIM) * 4
    monkeypatch.setattr(memory, "available_bytes", lambda device: 9 * one)
    check_memory(sketch(1000), ProcessGroup(size=2, on_this_machine=2), StepSize(1000, 1000))
    with pytest.raises(RunError, match="× 3 processes, the best epoch"):
        check_memory(sketch(1000), ProcessGroup(size=3, on_this_machine=3), StepSize(1000, 1000))


def test_a_gpu_holds_what_one_process_needs_of_it(monkeypatch):
    """Each process has a GPU of its own, and whole tables lie in ordinary memory."""
    monkeypatch.setattr(memory, "available_bytes", lambda device: (1000 * 3 // 2 + 4 * (DIM + 1)) * DIM * 4)
    on_gpu = ProcessGroup(torch.device("cuda"), size=2, on_this_machine=2)
    check_memory(sketch(1000), on_gpu, StepSize(1, 1))
    with pytest.raises(RunError, match=r"× 3 \(itself, 2 states of Adam\) = "):
        check_memory(sketch(1000), replace(on_gpu, size=1), StepSize(1, 1))


def test_a_limit_of_the_container_counts(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemFree: 10 kB\nMemAvailable:    8000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert available_bytes(CPU) == 8000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(CPU) == 8000 * 1024
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.stat").write_text("anon 1000000\nfile 77\n")
    assert available_bytes(CPU) == 4_000_000
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "nothing")
    assert available_bytes(CPU) is None
