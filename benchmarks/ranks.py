"""Memory and time of several processes that share a large embedding table: columns of it, beside copies.

    python benchmarks/ranks.py [steps]     (default: 30)

Claims: of two id tables of 2 M rows (width 64), each of N processes holds an Nth, with the states of Adam, where copies
of them would cost each all; and a step over columns takes about as long as one over copies, whose gradients are
gathered and added up. Batches of 4,096 in all, softmax over the batch, one thread a process; as many processes as there
are cores at most. A time is the median step's of the slowest process, on the clock, for waiting is what processes cost
one another; memory is what a process holds beyond what it held before. Writes `ranks.json` beside this file.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import nn
from train import held_mb

from twofold.model.encoder import Encoder, Layers, Lookup
from twofold.model.fused_softmax import SoftmaxBatch, product_dtype_of, softmax_sum
from twofold.train.distributed import ProcessGroup, all_gather, all_gather_vectors, distributed_context, sum_gradients
from twofold.train.optimizer import Optimizer, StepSize, build_optimizer, lazy_tables
from twofold.train.sharded_embedding import distribute_model

HERE = Path(__file__).parent
ROWS, DIM, BATCH, TEMPERATURE = 2_000_000, 64, 4096, 0.05


def measured(kind: str, steps: int) -> None:
    """Measures this process together with the others; the first one prints."""
    torch.set_num_threads(1)
    with distributed_context("cpu") as ranks, TemporaryDirectory() as folder:
        before = held_mb("VmRSS")
        take_step = stepper(kind, ranks, Path(folder))
        times = []
        for number in range(steps):
            started = time.perf_counter()
            take_step(number)
            times.append((time.perf_counter() - started) * 1e3)
        found = torch.tensor([[median(times), held_mb("VmRSS") - before]])
        slowest, most = all_gather(ranks, found).max(dim=0).values.tolist()
        if ranks.is_first:
            print(json.dumps({"ms": round(slowest, 1), "mb": round(most)}))


def stepper(kind: str, ranks: ProcessGroup, folder: Path) -> Callable[[int], None]:
    """One step of this process's part of a batch, by its number."""
    torch.manual_seed(0)
    user, item = (Encoder((Lookup("id", 1 + ROWS, DIM),), Layers(DIM)) for _ in range(2))
    towers = nn.ModuleList([user, item])
    cut = lazy_tables(towers, StepSize(BATCH, BATCH)) if kind == "columns" else []
    distribute_model(ranks, towers, in_columns=cut, folder=folder)
    optimizer = build_optimizer(towers, learning_rate=1e-3, size=StepSize(BATCH, BATCH), ranks=ranks)
    part = ranks.part(BATCH)

    def take_step(number: int) -> None:
        torch.manual_seed(number)
        users, items = (torch.randint(ROWS, (BATCH,)) for _ in range(2))
        own = torch.arange(BATCH)[part]
        weight = torch.full((len(own),), 1 / BATCH)
        lines = SoftmaxBatch(users[part], items[part], weight, torch.zeros(len(own)), items, users, torch.zeros(BATCH))
        vectors = all_gather_vectors(ranks, item({"id": 1 + items[part]}))
        queries, product = user({"id": 1 + users[part]}), product_dtype_of("auto", ranks.device)
        loss = softmax_sum(queries / TEMPERATURE, vectors[own], vectors, lines, product_dtype=product)
        optimizer.zero_grad()
        loss.backward()
        sum_gradients(ranks, optimizer.copied)
        if kind == "copies":
            add_up_copies(ranks, optimizer)
        optimizer.step()

    return take_step


def add_up_copies(ranks: ProcessGroup, optimizer: Optimizer) -> None:
    """Adds up the rows and gradients of all processes in each: the cost of a table that every process copies."""
    if ranks.size == 1:
        return
    for table in optimizer.tables:
        gradient = table.weight.grad
        assert gradient is not None
        rows, values = (all_gather(ranks, part) for part in (gradient._indices()[0], gradient._values()))
        table.weight.grad = torch.sparse_coo_tensor(rows[None], values, gradient.shape, check_invariants=False)


def in_processes(kind: str, size: int, steps: int) -> dict[str, float]:
    """`measured` by so many of them."""
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(size), "--standalone"] if size > 1 else []
    command = [sys.executable, *launch, __file__, kind, str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(steps: int = 30) -> None:
    """Runs all, prints the table, saves it."""
    sizes = [1, 2, 4] if (os.cpu_count() or 1) >= 4 else [1, 2]
    table = {
        f"{size} processes, {kind}" if size > 1 else "1 process": in_processes(kind, size, steps)
        for size in sizes
        for kind in (("columns", "copies") if size > 1 else ("columns",))
    }
    for name, found in table.items():
        print(f"{name:<22} {found['ms']:>8,.1f} ms a step {found['mb']:>8,.0f} MB each")
    saved = {"rows": ROWS, "dim": DIM, "batch": BATCH, "cores": os.cpu_count(), "torch": torch.__version__, **table}
    (HERE / "ranks.json").write_text(json.dumps(saved, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] and not sys.argv[1].isdigit():
        measured(sys.argv[1], int(sys.argv[2]))
    else:
        main(*(int(argument) for argument in sys.argv[1:2]))
