"""Several processes that train one model: each takes its part of every batch, and all take the same step.

What one process would do, N do together, up to the order of additions: the negatives of a batch are those of all its
parts, what is drawn is drawn alike, and gradients are added up. Two things differ: dropout, and how far back a sequence
encoder sees, which depends on the lines that are encoded with it. Nothing is copied between processes but vectors and
gradients: each maps the rows that the training reads, and the system keeps one copy of their pages.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from twofold.errors import RunError
from twofold.model.multi_tower import MultiTower
from twofold.recipe.train import Train
from twofold.train.device import DeviceName, open_device

LONGEST_WAIT = timedelta(days=7)
"""One process prepares the log and judges epochs while the others wait. One that dies is noticed at once, not so."""
_FAILED = "twofold/failed"


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that share a training, the place of this one among them, and its device."""

    device: torch.device = torch.device("cpu")
    rank: int = 0
    size: int = 1
    on_this_machine: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes, judges and prints."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This rank's share of so many lines; where they do not divide, the last ones are nobody's."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def share(self, count: int) -> Int[Tensor, "share"]:
        """This rank's share of so many things that all ranks drew alike; the last one is filled up with the first."""
        each = -(-count // self.size)
        return torch.arange(self.rank * each, (self.rank + 1) * each) % max(count, 1)

    def places(self, *, own: int, drawn: int) -> Int[Tensor, "columns"]:
        """Where, among the gathered rows of all ranks, `own` of each and its share of `drawn`, those wanted are: first
        every rank's own, then what was drawn, once.
        """
        each = own + -(-drawn // self.size)
        places = torch.arange(self.size * each, device=self.device).view(self.size, each)
        return torch.cat([places[:, :own].flatten(), places[:, own:].flatten()[:drawn]])


SINGLE_PROCESS = ProcessGroup()


@contextmanager
def distributed_context(device: DeviceName) -> Iterator[ProcessGroup]:
    """The processes that `torchrun` started together with this one; this one alone where it did not.

    The first that fails says why, and the others end in silence.
    """
    size, rank, local_size, local_rank = (
        int(os.environ.get(name, default))
        for name, default in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    opened = open_device(device, local_rank=local_rank, local_size=local_size)
    if size == 1:
        yield ProcessGroup(opened)
        return
    dist.init_process_group("nccl" if opened.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
    try:
        yield ProcessGroup(opened, rank, size, local_size)
    except BaseException as error:
        if not _speaks(rank):
            raise SystemExit(2) from error
        if _is_lost_connection(error):
            raise RunError(
                f"another of the {size} processes of this training ended without a word: killed, or out of memory. "
                f"Give the same command again: it continues."
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def check_shareable(ranks: ProcessGroup, sketch: nn.Module, settings: Train, *, lines: int) -> None:
    """RunError where N ranks could not do what one would."""
    if ranks.size == 1:
        return
    batch_size = min(settings.batch_size, lines)
    if settings.hard_negatives is not None:
        raise RunError(
            f"train.hard_negatives are mined for the lines of one process, and {ranks.size} were started. Train with "
            f"one process, or delete train.hard_negatives."
        )
    if batch_size % ranks.size:
        near = max(batch_size // ranks.size, 1) * ranks.size
        raise RunError(
            f"batches of {batch_size:,} rows cannot be shared by {ranks.size} processes. Set train.batch_size to a "
            f"multiple of {ranks.size}, such as {near:,}, or start another number of processes."
        )
    if isinstance(sketch, MultiTower):
        raise RunError(
            f"retriever.separate_towers_by trains the towers of one value in a step, and {ranks.size} processes add up "
            f"gradients of all. Train it with one process, or delete retriever.separate_towers_by."
        )
    if any(isinstance(module, nn.BatchNorm1d) for module in sketch.modules()):
        raise RunError(
            f"retriever.output_norm: batch_norm standardises over a batch, of which each of {ranks.size} processes "
            f"sees a part. Train it with one process, or write output_norm: none or l2."
        )


def _speaks(rank: int) -> bool:
    """Whether this rank is the first to fail: it alone says why."""
    store = dist.distributed_c10d._get_default_store()
    return bool(store.compare_set(_FAILED, "", str(rank)) == str(rank).encode())


def _is_lost_connection(error: BaseException) -> bool:
    """Gloo has no exception of its own."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def broadcast_from_rank0(ranks: ProcessGroup, number: Callable[[], float]) -> float:
    """What the first rank finds, for all; the others wait here until it has."""
    if ranks.size == 1:
        return number()
    said = torch.tensor(number() if ranks.is_first else 0.0, dtype=torch.float64, device=ranks.device)
    dist.broadcast(said, src=0)
    return float(said)


def all_gather(ranks: ProcessGroup, rows: Shaped[Tensor, "rows *shape"]) -> Shaped[Tensor, "all_rows *shape"]:
    """The rows of all ranks, as many of each, in the order of the ranks; no gradient."""
    if ranks.size == 1:
        return rows
    everyone = rows.new_empty((ranks.size * len(rows), *rows.shape[1:]))
    dist.all_gather([*everyone.view(ranks.size, *rows.shape)], rows.contiguous())
    return everyone


def all_gather_vectors(ranks: ProcessGroup, vectors: Float[Tensor, "rows dim"]) -> Float[Tensor, "all_rows dim"]:
    """The same with a gradient: each rank's is what the losses of all ranks want of its vectors, added up."""
    if ranks.size == 1:
        return vectors
    everyone: Tensor = _Gathered.apply(ranks, vectors)  # type: ignore[no-untyped-call]
    return everyone


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ranks: ProcessGroup, vectors: Tensor) -> Tensor:
        ctx.ranks = ranks
        return all_gather(ranks, vectors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        total = gradient.contiguous()  # all of it, where a part would do: Gloo cannot scatter what it adds up
        dist.all_reduce(total)
        return None, total[ctx.ranks.part(len(total))]


def all_reduce_sum(ranks: ProcessGroup, number: Shaped[Tensor, ""]) -> Shaped[Tensor, ""]:
    """The sum over all ranks; no gradient."""
    if ranks.size == 1:
        return number
    total = number.detach().clone()
    dist.all_reduce(total)
    return total


def share_of(ranks: ProcessGroup, count: Int[Tensor, ""]) -> float:
    """What part of a count over all ranks is this one's."""
    if ranks.size == 1:
        return 1.0
    return float(count / all_reduce_sum(ranks, count).clamp(min=1))


def sum_gradients(ranks: ProcessGroup, parameters: Iterable[nn.Parameter]) -> None:
    """Gives every rank the sum of the gradients of all; the same bits, so that equal models stay equal."""
    if ranks.size == 1:
        return
    waiting = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)  # another rank may have one
        waiting.append(dist.all_reduce(parameter.grad, async_op=True))
    for work in waiting:
        work.wait()
