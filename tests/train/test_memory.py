"""What training takes, against a sum by hand; what there is, against what the system says."""

import pytest
import torch

from twofold.errors import RunError
from twofold.model.encoder import Encoder, Layers, Lookup
from twofold.train import memory
from twofold.train.memory import available_bytes, refuse_what_does_not_fit

CPU = torch.device("cpu")
ROWS, DIM = 3_000_000_000, 64
TABLE = ROWS * DIM * 4  # bytes: many times this machine's memory, whichever it is


def sketch(rows):
    with torch.device("meta"):
        return Encoder((Lookup("id", rows, DIM),), Layers(DIM))


def gib(count):
    return f"{count / 2**30:,.1f} GiB"


@pytest.mark.parametrize(("rows_per_step", "kept"), [(1, 4), (ROWS, 5)], ids=["lazy", "dense"])
def test_a_table_larger_than_memory_is_said_with_the_sum(rows_per_step, kept):
    layer = (64 * 64 + 64) * 4 * 5
    with pytest.raises(RunError) as refused:
        refuse_what_does_not_fit(sketch(ROWS), device=CPU, rows_per_step=rows_per_step)
    said = str(refused.value)
    assert f"takes {gib(TABLE * kept + layer)} and " in said
    assert f"tables.id.weight: 3,000,000,000 × 64 numbers × 4 bytes × {kept} (itself" in said
    assert f" = {gib(TABLE * kept)}. Lower retriever.dim" in said


def test_processes_on_one_machine_each_need_their_own(monkeypatch):
    one = (1000 * DIM + DIM * DIM + DIM) * 4 * 5
    monkeypatch.setattr(memory, "available_bytes", lambda device: 2 * one)
    refuse_what_does_not_fit(sketch(1000), device=CPU, rows_per_step=1000, copies=2)
    with pytest.raises(RunError, match="× 3 processes = "):
        refuse_what_does_not_fit(sketch(1000), device=CPU, rows_per_step=1000, copies=3)


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
