"""Memory and time of several processes: a large embedding table in columns and in copies, and a sequence tower.

    python benchmarks/ranks.py [steps]     (default: 30)

Claims: of two id tables of 2 M rows (width 64), each of N processes holds an Nth, with the states of Adam, where copies
of them would cost each all; and a step over columns takes about as long as one over copies, whose gradients are
gathered and added up. Two processes train a sequence tower at 1.6 times the speed of one, or at nine tenths of what the
machine gives two processes that each multiply matrices on their own. Batches of 4,096 examples or 32 sequences of 200
events in all, softmax over the batch or over 3,416 items, one thread a process; as many processes as there are cores at
most. A time is the median step's of the slowest process, on the clock, for waiting is what processes cost one another;
memory is what a process holds beyond what it held before. The kinds take turns. Writes `ranks.json` beside this file.
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
from train import DEPTH, HEADS, KNOWN, LENGTH, held_mb

from twofold.model.encoder import Encoder, Layers, Lookup, Sequence
from twofold.model.fused_softmax import SoftmaxBatch, product_dtype_of, softmax_sum
from twofold.train.distributed import ProcessGroup, all_gather, all_gather_vectors, distributed_context, sum_gradients
from twofold.train.optimizer import Optimizer, StepSize, build_optimizer, lazy_tables
from twofold.train.sharded_embedding import distribute_model

HERE = Path(__file__).parent
ROWS, DIM, BATCH, TEMPERATURE, SEQUENCES = 2_000_000, 64, 4096, 0.05, 32
ROUNDS = 3


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


def stepper(kind: str, ranks: ProcessGroup, folder: Path) -> Callable[[int], object]:
    """One step of this process's part of a batch, by its number."""
    torch.manual_seed(0)
    match kind:
        case "product":
            left, out = torch.rand(2048, 2048), torch.empty(2048, 2048)
            return lambda _: torch.mm(left, left, out=out)
        case "sequence":
            return sequence_stepper(ranks, folder)
        case _:
            return table_stepper(kind, ranks, folder)


def sequence_stepper(ranks: ProcessGroup, folder: Path) -> Callable[[int], None]:
    """One step over this process's sequences; every process encodes its share of the items."""
    length = LENGTH - 1
    user = Encoder(
        (Sequence("events", 1 + KNOWN, DIM, LENGTH, DEPTH, HEADS, dropout=0.2),), Layers(DIM, unit_length=False)
    )
    item = Encoder((Lookup("id", 1 + KNOWN, DIM),), Layers(DIM, unit_length=False))
    towers = nn.ModuleList([user, item])
    distribute_model(ranks, towers, in_columns=[], folder=folder)
    optimizer = build_optimizer(towers, learning_rate=1e-3, size=StepSize(KNOWN, SEQUENCES * length), ranks=ranks)
    part, own_items = ranks.part(SEQUENCES), ranks.share(KNOWN)
    line, place = (torch.arange(size) for size in (len(range(SEQUENCES)[part]), length))
    places = (line[:, None] * (length + 1) + place + 1).flatten()
    weight, zero = torch.full((len(places),), 1 / (SEQUENCES * length)), torch.zeros(len(places))
    nobody, items, product = torch.full((KNOWN,), -1), torch.arange(KNOWN), product_dtype_of("auto", ranks.device)

    def take_step(number: int) -> None:
        torch.manual_seed(number)
        events = (torch.rand(SEQUENCES, LENGTH) ** 2 * KNOWN).long()[part]
        own = events[:, 1:].flatten()
        lines = SoftmaxBatch(line.repeat_interleave(length), own, weight, zero, items, nobody, torch.zeros(KNOWN))
        vectors = all_gather_vectors(ranks, item({"id": 1 + own_items}))[:KNOWN]
        queries = user({"events": 1 + events[:, :-1], "events.places": places})
        optimizer.zero_grad()
        softmax_sum(queries, vectors[own], vectors, lines, product_dtype=product).backward()  # type: ignore[no-untyped-call]
        sum_gradients(ranks, optimizer.copied)
        optimizer.step()

    return take_step


def table_stepper(kind: str, ranks: ProcessGroup, folder: Path) -> Callable[[int], None]:
    """One step of two towers of large id tables, in columns or in copies."""
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
        loss.backward()  # type: ignore[no-untyped-call]
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
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(ROUNDS):
        for kind in ("columns", "copies", "sequence", "product"):
            for size in sizes[1:] if kind == "copies" else sizes:
                found.setdefault((kind, size), []).append(in_processes(kind, size, steps))
    ms = {which: median(each["ms"] for each in rounds) for which, rounds in found.items()}
    runs = [
        {"kind": kind, "processes": size, "ms": ms[kind, size], "mb": rounds[-1]["mb"]}
        for (kind, size), rounds in found.items()
    ]
    for run in runs:
        print(f"{run['kind']:<10} {run['processes']} {run['ms']:>8,.1f} ms a step {run['mb']:>8,.0f} MB each")
    claims = {
        "two processes over one, sequence tower (at least 1.6)": ms["sequence", 1] / ms["sequence", 2],
        "two processes over one, tables in columns": ms["columns", 1] / ms["columns", 2],
        # Each process does the whole product, where each does its part of a step.
        "two processes over one, matrix products of each alone": 2 * ms["product", 1] / ms["product", 2],
    }
    claims = {claim: round(value, 2) for claim, value in claims.items()}
    print(claims)
    saved = {"rows": ROWS, "dim": DIM, "batch": BATCH, "cores": os.cpu_count(), "torch": torch.__version__}
    (HERE / "ranks.json").write_text(json.dumps(saved | {"claims": claims, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] and not sys.argv[1].isdigit():
        measured(sys.argv[1], int(sys.argv[2]))
    else:
        main(*(int(argument) for argument in sys.argv[1:2]))
