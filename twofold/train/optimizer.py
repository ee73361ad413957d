"""Optimizers and the learning-rate schedule."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from twofold.cost_plan import LAZY_FROM
from twofold.model.encoder import Encoder, Lookup, Pool, Sequence, module_key
from twofold.train.distributed import SINGLE_PROCESS, ProcessGroup, all_reduce_sum
from twofold.train.sharded_embedding import ShardedTable

WARM_UP = 0.05
"""Share of the steps in which the learning rate rises. Not measured: any value from .02 to .1 is usual."""
LAZY_FROM_SEQUENCES: Final = 40
"""Rows of a table per row that a step usually reads of sequences that examples share, from which lazy Adam is faster.
Whole steps of a sequence of 50, lazy over dense: width 16, 7 times 1.07, 15 times 1.06, 30 times 1.00 and 40 times .93;
width 64, 7 times 1.02, 15 times .96 and 30 times .85 (`benchmarks/catalogue.py --threshold` measures 40 times)."""
LAZY_FROM_BYTES: Final = 2**30
"""Size of a table on a GPU from which it is lazy. Not measured."""

_OPTIMIZERS: Final[Mapping[str, tuple[Any, Any]]] = {
    "adamw": (torch.optim.AdamW, torch.optim.SparseAdam),
    "sgd": (torch.optim.SGD, torch.optim.SGD),
}
"""Classes for dense and for sparse gradients."""


@dataclass(frozen=True)
class StepSize:
    """Largest numbers of items and of users that the towers encode in a step."""

    items: int
    users: int
    sequences: int | None = None
    """Mean number of sequences that a step reads, where examples of one user share them. `None` means one a user."""


@dataclass(frozen=True)
class Optimizer:
    """One or two PyTorch optimizers for separate parameters, used as one. All ranks call each method together."""

    dense: torch.optim.Optimizer
    lazy: torch.optim.Optimizer | None = None
    tables: tuple[nn.Embedding, ...] = ()
    """Tables that the lazy optimizer updates."""
    ranks: ProcessGroup = SINGLE_PROCESS
    weight_decay: float = 0.0
    """Weight decay of the lazy optimizer's tables, which PyTorch's lazy Adam does not have."""

    @property
    def parts(self) -> tuple[torch.optim.Optimizer, ...]:
        """The optimizers in use, dense first."""
        return (self.dense,) if self.lazy is None else (self.dense, self.lazy)

    @property
    def copied(self) -> list[nn.Parameter]:
        """Parameters replicated on every rank, in the order of the model: all except lazy tables."""
        return [each for group in self.dense.param_groups for each in group["params"]]

    def zero_grad(self) -> None:
        """Clears the gradients."""
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        """Updates the parameters that have a gradient."""
        if self.lazy is not None and self.weight_decay > 0:
            kept = 1 - self.lazy.param_groups[0]["lr"] * self.weight_decay
            for weight in (table.weight for table in self.tables):
                if weight.grad is not None:
                    weight.data[weight.grad.coalesce().indices()[0]] *= kept
        for part in self.parts:
            part.step()

    def state(self) -> dict[str, Tensor]:
        """Returns the optimizer state by name; of sharded tables, this rank's columns."""
        return {
            f"{number}.{parameter}.{name}": torch.as_tensor(value)
            for number, part in enumerate(self.parts)
            for parameter, values in part.state_dict()["state"].items()
            for name, value in values.items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state` returned for the same model and this rank."""
        for number, part in enumerate(self.parts):
            values: dict[int, dict[str, Tensor | int]] = {}
            for key, tensor in state.items():
                part_number, parameter, name = key.split(".")
                if int(part_number) == number:
                    # Lazy Adam counts its steps in an int; as a tensor it would round the bias correction.
                    value = int(tensor) if tensor.dtype == torch.int64 else tensor
                    values.setdefault(int(parameter), {})[name] = value
            part.load_state_dict({"state": values, "param_groups": part.state_dict()["param_groups"]})

    def table_of(self, key: str) -> ShardedTable | None:
        """Returns the sharded table whose columns a state of this name has; `None` if it belongs to none."""
        part, parameter, _ = key.split(".")
        table = self.tables[int(parameter)] if self.parts[int(part)] is self.lazy else None
        return table if isinstance(table, ShardedTable) else None


def build_optimizer(
    model: nn.Module,
    *,
    learning_rate: float,
    size: StepSize,
    weight_decay: float = 0.0,
    kind: Literal["adamw", "sgd"] = "adamw",
    ranks: ProcessGroup = SINGLE_PROCESS,
) -> Optimizer:
    """Builds fused AdamW, and for large tables lazy Adam, which leaves rows without a gradient unchanged; or plain SGD.

    Weight decay is decoupled from the gradient: a step also multiplies by 1 - learning rate · `weight_decay`
    (Loshchilov & Hutter, *Decoupled weight decay regularization*, ICLR 2019, algorithm 2). Only matrices decay: biases,
    the gains of normalizations and other vectors do not. Of a lazy table, only the rows with a gradient decay.

    Lazy tables are set to give sparse gradients: see `lazy_tables`. PyTorch's lazy Adam was fast enough (13 of about
    150 ms a step); its sparse Adagrad takes half of that, but needs a learning rate of its own.
    """
    tables = lazy_tables(model, size)
    for table in tables:
        table.sparse = True
    lazy = {id(table.weight) for table in tables}
    others = [parameter for parameter in model.parameters() if id(parameter) not in lazy]
    groups = [
        {"params": part, "weight_decay": decay}
        for decay, part in (
            (weight_decay, [parameter for parameter in others if parameter.ndim > 1]),
            (0.0, [parameter for parameter in others if parameter.ndim <= 1]),
        )
        if part
    ]
    dense = _OPTIMIZERS[kind][0](groups, lr=learning_rate, fused=others[0].device.type != "meta" if others else None)
    if not tables:
        return Optimizer(dense, ranks=ranks)
    sparse = _OPTIMIZERS[kind][1]([table.weight for table in tables], lr=learning_rate)
    return Optimizer(dense, sparse, tuple(tables), ranks, weight_decay=weight_decay)


def lazy_tables(model: nn.Module, size: StepSize) -> list[nn.Embedding]:
    """Returns the tables of which a step leaves most rows unchanged, because it reads few of them.

    Of tables on a GPU, only those that are large there: summing repeated rows waits for the GPU. A table that is
    sharded already is lazy wherever its columns are.
    """
    return [
        table
        for table, rows in _lazy_from(model, size)
        if isinstance(table, ShardedTable)
        or (
            table.num_embeddings >= rows
            and (table.weight.device.type != "cuda" or table.weight.nbytes >= LAZY_FROM_BYTES)
        )
    ]


def _lazy_from(model: nn.Module, size: StepSize) -> Iterator[tuple[nn.Embedding, int]]:
    """Yields the trained tables of encoders, each once, with the number of rows from which they are lazy.

    A step reads at most one row for each item that is looked up, in one tower or in several, and one for each place of
    the users' histories. Of sequences it reads far less where examples share them.

    Tables that lists of any length read are left out, and those of concatenated histories, where row 0 is trained.
    """
    tables: dict[int, nn.Embedding] = {}
    looked_up, places, shared, others = Counter[int](), Counter[int](), Counter[int](), set[int]()
    for encoder in (module for module in model.modules() if isinstance(module, Encoder)):
        for block in encoder.feature_blocks:
            if module_key(block.name) not in encoder.tables and block.name not in encoder.shared_tables:
                continue
            table = encoder.table_of(block)
            key = id(table.weight)
            tables[key] = table
            match block:
                case Lookup():
                    looked_up[key] = size.items
                case Pool(pool="mean" | "windows", length=int(length)):
                    places[key] += size.users * length
                    shared[key] += size.users * length
                case Sequence(length=length):
                    places[key] += size.users * length
                    shared[key] += (size.users if size.sequences is None else size.sequences) * length
                case _:
                    others.add(key)
    for key, table in tables.items():
        if key not in others:
            most, usual = looked_up[key] + places[key], looked_up[key] + shared[key]
            by_most = LAZY_FROM * most
            yield table, by_most if usual == most else min(by_most, LAZY_FROM_SEQUENCES * usual)


def clip_gradients(optimizer: Optimizer, *, most: float | None) -> Float[Tensor, ""]:
    """Returns the norm of all gradients as one vector, and scales them down to the norm `most` if it is exceeded
    (Pascanu et al., ICML 2013, section 3.2). `None` means no limit. On a GPU nothing waits for the norm.

    PyTorch's own clipping refuses sparse gradients, whose repeated rows must be summed first.
    """
    held = [parameter.grad for parameter in optimizer.copied if parameter.grad is not None]
    own = []
    for table in optimizer.tables:
        if table.weight.grad is not None:
            table.weight.grad = table.weight.grad.coalesce()
            own.append(table.weight.grad.values())
    if optimizer.ranks.size == 1:
        length = nn.utils.get_total_norm(held + own)
    else:
        squares = nn.utils.get_total_norm(own).square().to(optimizer.ranks.device)  # of no tables it is on the CPU
        length = (nn.utils.get_total_norm(held).square() + all_reduce_sum(optimizer.ranks, squares)).sqrt()
    if most is None:
        return length
    if length.device.type != "cpu":
        torch._foreach_mul_(held + own, (most / length).clamp(max=1))
    elif length > most:
        torch._foreach_mul_(held + own, most / float(length))
    return length


def learning_rate_at(step: int, *, steps: int, peak: float) -> float:
    """Returns the rate of a step: linear warm-up, then half a cosine down to 0 (Loshchilov & Hutter, *SGDR*, ICLR 2017,
    equation 5, one cycle).

    >>> [round(learning_rate_at(step, steps=100, peak=1.0), 2) for step in (0, 4, 5, 52, 99)]
    [0.2, 1.0, 1.0, 0.51, 0.0]
    """
    warm_up = max(round(steps * WARM_UP), 1)
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))


def constant_rate_at(step: int, *, warm_up: int, peak: float) -> float:
    """Returns the rate of a step of a training whose end is not known: linear warm-up, then the peak.

    >>> [constant_rate_at(step, warm_up=4, peak=1.0) for step in (0, 3, 4, 1000)]
    [0.25, 1.0, 1.0, 1.0]
    """
    return peak * min((step + 1) / max(warm_up, 1), 1.0)


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Sets the learning rate of every parameter."""
    for part in optimizer.parts:
        for group in part.param_groups:
            group["lr"] = learning_rate
