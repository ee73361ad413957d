"""Share of the machine's speed that a training step reaches: ids, histories and sequences, beside plain PyTorch.

    python benchmarks/train.py [rounds]     (default: 7)

Claims: a step of an id two-tower (width 64, 140 k users, 27 k items, batch 4,096, softmax over the batch with logQ and
masks) within 1.3 times its floor, which is three matrix products and one exponential a logit; an example at batch
8,192 at most 2.2 times as dear as at 4,096, where the arithmetic is 2 times; tables of 1 M rows at most 1.2 times as
dear as those; with histories of 100 ids, 2.5 times as fast as the same tower with the plain loss; at batch 16,384 the
loss takes at most 100 MB. A sequence tower (2 layers, 2 heads, at most 200 events, softmax over 3,416 items at every
position) reaches a stated share of the machine's product.

One thread, and its processor time: the cores are shared, and waiting is not our cost. Every round runs each part once,
in turn; a figure is the median of its rounds. Plain PyTorch is the whole matrix of logits through `cross_entropy`,
dense gradients and fused Adam. Batches are made beforehand: reading them is `prepare.py`'s. `train_peers.py` has TFRS,
RecTools, RecBole and torch-rechub. Writes `train.json` beside this file.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional

from twofold.dataset.malloc import keep_freed_memory
from twofold.model.encoder import Encoder, Layers, Lookup, Pool, Sequence
from twofold.model.fused_softmax import SoftmaxBatch, product_dtype_of, softmax_sum
from twofold.model.sequence import WIDER
from twofold.train.optimizer import Optimizer, StepSize, build_optimizer

HERE = Path(__file__).parent
DIM, USERS, ITEMS, MANY, HISTORY, TEMPERATURE = 64, 140_000, 27_000, 1_000_000, 100, 0.05
LENGTH, DEPTH, HEADS, KNOWN, TOGETHER = 200, 2, 2, 3_416, 4096
PRODUCT = product_dtype_of("auto", torch.device("cpu"))
Loss = Callable[[Tensor, Tensor, SoftmaxBatch], Tensor]
Work = Callable[[], object]


def fused(users: Tensor, items: Tensor, lines: SoftmaxBatch) -> Tensor:
    """Ours."""
    return softmax_sum(users / TEMPERATURE, items, items, lines, product_dtype=PRODUCT)


def plain(users: Tensor, items: Tensor, lines: SoftmaxBatch) -> Tensor:
    """Returns the softmax loss through the whole matrix of logits, as plain PyTorch computes it."""
    same = (lines.item_rows[:, None] == lines.item_rows) | (lines.user_rows[:, None] == lines.user_rows)
    logits = users @ items.T / TEMPERATURE - lines.shift
    logits = logits.masked_fill(same.fill_diagonal_(False), -torch.inf)
    losses = functional.cross_entropy(logits, torch.arange(len(logits)), reduction="none")
    return (losses * lines.weight).sum()


def random_lines(batch: int, users: int, items: int) -> SoftmaxBatch:
    """Popular items first: density of item x as x^-1/2, so the most popular thousandth takes 3 % of the events."""
    rows = (torch.rand(batch) ** 2 * items).long()
    log_q = -0.5 * torch.log(4.0 * items * (rows + 0.5))
    user_rows = torch.randint(users, (batch,))
    return SoftmaxBatch(user_rows, rows, torch.full((batch,), 1 / batch), log_q, rows, user_rows, log_q)


# --- steps ------------------------------------------------------------------------------------------------------------


def id_step(
    batches: list[SoftmaxBatch], *, users: int = USERS, items: int = ITEMS, loss: Loss = fused, lazy: bool = True
) -> Work:
    """One step of two towers that look ids up; the batches in turn."""
    user, item = (Encoder((Lookup("id", 1 + rows, DIM),), Layers(DIM)) for rows in (users, items))
    towers = nn.ModuleList([user, item])
    read = len(batches[0].weight) if lazy else users
    optimizer = build_optimizer(towers, learning_rate=1e-3, size=StepSize(read, read))
    steps = 0

    def step() -> None:
        nonlocal steps
        lines, steps = batches[steps % len(batches)], steps + 1
        update(optimizer, loss(user({"id": 1 + lines.user_rows}), item({"id": 1 + lines.item_rows}), lines))

    return step


def history_step(batch: int, *, loss: Loss) -> Work:
    """One step where the user is the mean of 100 ids."""
    user = Encoder((Pool("history", 1 + ITEMS, DIM, length=HISTORY),), Layers(DIM))
    item = Encoder((Lookup("id", 1 + ITEMS, DIM),), Layers(DIM))
    optimizer = build_optimizer(nn.ModuleList([user, item]), learning_rate=1e-3, size=StepSize(batch, batch))
    lines = random_lines(batch, USERS, ITEMS)
    history = 1 + (torch.rand(batch, HISTORY) ** 2 * ITEMS).int()

    def step() -> None:
        update(optimizer, loss(user({"history": history}), item({"id": 1 + lines.item_rows}), lines))

    return step


def sequence_pass(sequences: list[Tensor]) -> tuple[Work, int]:
    """All steps over these sequences, of a sequence tower against one of item ids; and how many positions that is."""
    user = Encoder(
        (Sequence("events", 1 + KNOWN, DIM, LENGTH, DEPTH, HEADS, dropout=0.2),), Layers(DIM, unit_length=False)
    )
    item = Encoder((Lookup("id", 1 + KNOWN, DIM),), Layers(DIM, unit_length=False))
    optimizer = build_optimizer(nn.ModuleList([user, item]), learning_rate=1e-3, size=StepSize(KNOWN, TOGETHER))
    batches, everything = sequence_batches(sequences), {"id": torch.arange(1, 1 + KNOWN)}

    def one_pass() -> None:
        for inputs, lines in batches:
            items = item(everything)
            update(optimizer, softmax_sum(user(inputs), items[lines.own_rows], items, lines, product_dtype=PRODUCT))

    return one_pass, sum(len(lines.weight) for _, lines in batches)


def sequence_batches(sequences: list[Tensor]) -> list[tuple[dict[str, Tensor], SoftmaxBatch]]:
    """Each event but the first is foretold from those before it; sequences of about equal length share a batch of about
    4,096 events, as `twofold.dataset.sequences` orders them.
    """
    ordered = sorted(sequences, key=len)
    ends = torch.tensor([len(each) - 1 for each in ordered]).cumsum(0)
    of = (ends // TOGETHER).tolist()
    batches = []
    for number in range(of[-1] + 1):
        part = [each for each, batch in zip(ordered, of, strict=True) if batch == number]
        rows = nn.utils.rnn.pad_sequence([1 + each[:-1] for each in part], batch_first=True)
        line, known = rows.nonzero(as_tuple=True)
        own, nobody = torch.cat([each[1:] for each in part]), torch.full((KNOWN,), -1)
        weight = torch.full((len(own),), 1 / len(own))
        lines = SoftmaxBatch(line, own, weight, torch.zeros(len(own)), torch.arange(KNOWN), nobody, torch.zeros(KNOWN))
        batches.append(({"events": rows, "events.places": line * (rows.shape[1] + 1) + known + 1}, lines))
    return batches


def random_sequences(users: int, *, length: int) -> list[Tensor]:
    """The last events of users as MovieLens-1M has them: a median of 96, a mean of about 165, 20 at least."""
    counts = (96 * torch.exp(1.04 * torch.randn(users))).clamp(20, 2314).int().tolist()
    return [(torch.rand(min(count, 1 + length)) ** 2 * KNOWN).long() for count in counts]


def sequence_operations(sequences: list[Tensor]) -> float:
    """Returns the operations of a pass in matrix products, each done three times: forward, and for both gradients."""
    layer = DIM * (4 * DIM + DIM + 2 * WIDER * DIM + WIDER * DIM)
    before = torch.cat([torch.arange(1, len(each)) for each in sequences]).double()
    attention = 2 * DIM * (before + 1)  # products with keys and with values
    return 6 * float((DEPTH * (layer + attention) + DIM * DIM + DIM * KNOWN).sum())


def update(optimizer: Optimizer, loss: Tensor) -> None:
    """Runs the backward pass and the step of the optimizer."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


# --- the machine ------------------------------------------------------------------------------------------------------


def machine_parts() -> dict[str, Work]:
    """Returns work at the machine's limits: a square product, the step's three products and exponentials block by block
    into memory in use, 256 MB read.
    """
    a, b, c = (torch.rand(2048, 2048) for _ in range(3))
    large, logits, out = torch.rand(2**26), torch.randn(512, 4096), torch.empty(512, 4096)
    queries, factors, of_queries, of_factors = (torch.rand(*size) for size in ((512, DIM), (4096, DIM)) * 2)
    return {
        "square product": lambda: torch.mm(a, b, out=c),
        "product, logits": lambda: torch.mm(queries, factors.T, out=out),
        "product, users": lambda: torch.mm(logits, factors, out=of_queries),
        "product, items": lambda: torch.mm(logits.T, queries, out=of_factors),
        "exponential": lambda: torch.exp(logits, out=out),
        "read": large.sum,
    }


def floors_ms(machine: dict[str, float]) -> tuple[float, float]:
    """Returns floors of a step at 4,096 with exponentials: products of its own shapes, or at the square one's speed."""
    blocks = 4096 / 512
    own = sum(machine[name] for name in machine if name.startswith("product"))
    square = 3 * 4096**2 * DIM / 2048**3 * machine["square product"]
    return blocks * (own + machine["exponential"]), square + blocks * machine["exponential"]


# --- measuring --------------------------------------------------------------------------------------------------------


def medians_ms(parts: dict[str, Work], rounds: int) -> dict[str, float]:
    """Processor milliseconds of each, in turn; the first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(rounds + 1):
        for name, work in parts.items():
            started = time.process_time()
            work()
            if number:
                found[name].append(1e3 * (time.process_time() - started))
    return {name: round(median(times), 2) for name, times in found.items()}


def loss_memory_mb(loss: Loss, batch: int) -> float:
    """Returns how far loss and gradients raise the peak memory of this process above what it held, in MB."""
    users, items = (torch.randn(batch, DIM).requires_grad_() for _ in range(2))
    loss(users[:64], items[:64], random_lines(64, USERS, ITEMS)).backward()  # loads what is loaded once
    lines, before = random_lines(batch, USERS, ITEMS), held_mb("VmRSS")
    loss(users, items, lines).backward()
    return round(held_mb("VmHWM") - before, 1)


def held_mb(field: str) -> float:
    """Memory of this process as Linux states it. `getrusage` would state the parent's peak where that is higher."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field))


def in_process(loss: str) -> float:
    """`loss_memory_mb` at 16,384 in a process of its own, so that the peak is its own."""
    done = subprocess.run([sys.executable, __file__, "--memory", loss], check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def main(rounds: int = 7) -> None:
    """Runs everything, prints the claims, saves the numbers."""
    small, large = ([random_lines(batch, USERS, ITEMS) for _ in range(3)] for batch in (4096, 8192))
    many, sequences = [random_lines(4096, MANY, MANY) for _ in range(3)], random_sequences(256, length=LENGTH)
    one_pass, positions = sequence_pass(sequences)
    parts = machine_parts() | {
        "ids, 4096": id_step(small),
        "ids, 4096, 1 M rows": id_step(many, users=MANY, items=MANY),
        "ids, 4096, plain": id_step(small, loss=plain, lazy=False),
        "ids, 8192": id_step(large),
        "history, 4096": history_step(4096, loss=fused),
        "history, 4096, plain": history_step(4096, loss=plain),
        "sequences of 200": one_pass,
    }
    with keep_freed_memory():  # as training does
        ms = medians_ms(parts, rounds)
    memory = {name: in_process(name) for name in LOSSES}
    floor, lowest = floors_ms(ms)
    square, through = 2 * 2048**3 / ms["square product"] / 1e6, sequence_operations(sequences) / 1e6
    claims = {
        "step at 4,096 over its floor, products of its shapes (at most 1.3)": ms["ids, 4096"] / floor,
        "the same, products at the square one's speed": ms["ids, 4096"] / lowest,
        "an example at 8,192 over one at 4,096 (at most 2.2)": ms["ids, 8192"] / ms["ids, 4096"] / 2,
        "tables of 1 M rows over 140 k and 27 k (at most 1.2)": ms["ids, 4096, 1 M rows"] / ms["ids, 4096"],
        "plain PyTorch over ours, ids": ms["ids, 4096, plain"] / ms["ids, 4096"],
        "plain loss over ours, histories (at least 2.5)": ms["history, 4096, plain"] / ms["history, 4096"],
        "memory of the loss at 16,384, MB (at most 100)": memory["fused"],
        "the same of the plain loss": memory["plain"],
        "examples/s at 4,096, ids": 4096 / ms["ids, 4096"] * 1e3,
        "examples/s at 4,096, histories": 4096 / ms["history, 4096"] * 1e3,
        "positions/s, sequences of 200": positions / ms["sequences of 200"] * 1e3,
        "the machine: GFLOP/s of a square product": square,
        "the machine: GB/s read": 2**28 / ms["read"] / 1e6,
        "GFLOP/s of the whole step, its three products counted": 6 * 4096**2 * DIM / ms["ids, 4096"] / 1e6,
        "the same of sequences of 200": through / ms["sequences of 200"],
        "share of the square product's that is, sequences": through / ms["sequences of 200"] / square,
    }
    claims = {claim: round(value, 2) for claim, value in claims.items()}
    facts = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "rounds": rounds}
    facts |= {"processor": torch.backends.cpu.get_cpu_capability(), "torch": version("torch")}
    saved = facts | {
        "claims": claims,
        "processor_ms": ms,
        "loss_memory_mb": memory,
        "floors_ms": [round(floor, 2), round(lowest, 2)],
    }
    (HERE / "train.json").write_text(json.dumps(saved, indent=1) + "\n")
    for claim, value in claims.items():
        print(f"{value:>12,}  {claim}")


LOSSES: dict[str, Loss] = {"fused": fused, "plain": plain}

if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--memory"]:
        print(loss_memory_mb(LOSSES[sys.argv[2]], 16_384))
    else:
        main(*(int(argument) for argument in sys.argv[1:2]))
