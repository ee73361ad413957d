"""Distributed training: each rank encodes its share of every batch, and all ranks take the same step.

N ranks compute what one process would, up to the order of additions: the negatives of a batch are those of all ranks,
random draws are the same, and gradients are summed. Two things differ: dropout, and how far back a sequence encoder
sees, which depends on the examples that are encoded with it. Only vectors and gradients are sent between processes:
each process maps the training examples, and the system keeps one copy of their pages.
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
"""Timeout of a collective call: rank 0 prepares the log and evaluates epochs while the others wait. A rank that dies is
noticed at once."""
BUCKET_BYTES = 2**25
"""Most bytes of gradients that are sent together: about PyTorch's own 25 MB for data-parallel training; not tuned."""
SCATTERED_ON = ("cuda",)
"""Types of devices on which a rank receives only its own part of a sum. Gloo, on CPUs, takes 1.3 to 2.9 times as long
for that as for the whole sum in each rank (two processes, 1 and 4 MB).
"""
_FAILED = "twofold/failed"


@dataclass(frozen=True)
class ProcessGroup:
    """The ranks of a training: this process's rank and device, and the number of processes (world size)."""

    device: torch.device = torch.device("cpu")
    rank: int = 0
    size: int = 1
    on_this_machine: int = 1

    @property
    def is_first(self) -> bool:
        """True for rank 0, which writes, evaluates and prints."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """Returns this rank's share of `count` examples; a remainder at the end belongs to no rank."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def share(self, count: int) -> Int[Tensor, "_"]:
        """Returns this rank's share of `count` draws, which all ranks made; the last share is padded with the first."""
        each = -(-count // self.size)
        return torch.arange(self.rank * each, (self.rank + 1) * each) % max(count, 1)

    def positions(self, *, own: int, drawn: int) -> Int[Tensor, "_"]:
        """Returns positions among the gathered rows of all ranks, of which each gives `own` rows and its share of
        `drawn`: first every rank's own rows, then the drawn ones, once.
        """
        each = own + -(-drawn // self.size)
        positions = torch.arange(self.size * each, device=self.device).view(self.size, each)
        return torch.cat([positions[:, :own].flatten(), positions[:, own:].flatten()[:drawn]])


SINGLE_PROCESS = ProcessGroup()


@contextmanager
def distributed_context(device: DeviceName) -> Iterator[ProcessGroup]:
    """Opens the process group that `torchrun` started, or a group of one process without it.

    The first rank that fails reports its error; the others exit without a message.
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
        if not _is_first_failure(rank):
            raise SystemExit(2) from error
        if _is_lost_connection(error):
            raise RunError(
                f"another of the {size} processes of this training ended without a message: killed, or out of memory. "
                f"Run the same command again to resume."
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def check_shareable(ranks: ProcessGroup, meta_model: nn.Module, settings: Train, *, num_examples: int) -> None:
    """Raises RunError if N ranks cannot compute what one process would."""
    if ranks.size == 1:
        return
    batch_size = min(settings.batch_size, num_examples)
    if settings.hard_negatives is not None:
        raise RunError(
            f"train.hard_negatives are mined for the examples of one process, and {ranks.size} were started. Train "
            f"with one process, or delete train.hard_negatives."
        )
    if batch_size % ranks.size:
        near = max(batch_size // ranks.size, 1) * ranks.size
        raise RunError(
            f"batches of {batch_size:,} rows cannot be shared by {ranks.size} processes. Set train.batch_size to a "
            f"multiple of {ranks.size}, such as {near:,}, or start another number of processes."
        )
    if isinstance(meta_model, MultiTower):
        raise RunError(
            f"retriever.separate_towers_by trains the towers of one value in a step, and {ranks.size} processes add up "
            f"gradients of all. Train it with one process, or delete retriever.separate_towers_by."
        )
    if any(isinstance(module, nn.BatchNorm1d) for module in meta_model.modules()):
        raise RunError(
            f"retriever.output_norm: batch_norm standardises over a batch, of which each of {ranks.size} processes "
            f"sees a part. Train it with one process, or write output_norm: none or l2."
        )


def _is_first_failure(rank: int) -> bool:
    """Returns whether this rank is the first to fail, which alone reports its error."""
    store = dist.distributed_c10d._get_default_store()
    return bool(store.compare_set(_FAILED, "", str(rank)) == str(rank).encode())


def _is_lost_connection(error: BaseException) -> bool:
    """Returns whether a rank lost its connection. Gloo has no exception type of its own."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def broadcast_from_rank0(ranks: ProcessGroup, number: Callable[[], float]) -> float:
    """Computes `number` on rank 0 and broadcasts it; the other ranks wait."""
    if ranks.size == 1:
        return number()
    value = torch.tensor(number() if ranks.is_first else 0.0, dtype=torch.float64, device=ranks.device)
    dist.broadcast(value, src=0)
    return float(value)


def all_gather(ranks: ProcessGroup, rows: Shaped[Tensor, "_ ..."]) -> Shaped[Tensor, "_ ..."]:
    """Gathers equally many rows of every rank, in rank order, without a gradient."""
    if ranks.size == 1:
        return rows
    all_rows = rows.new_empty((ranks.size * len(rows), *rows.shape[1:]))
    dist.all_gather([*all_rows.view(ranks.size, *rows.shape)], rows.contiguous())
    return all_rows


def all_gather_vectors(ranks: ProcessGroup, vectors: Float[Tensor, "_ dim"]) -> Float[Tensor, "_ dim"]:
    """Gathers vectors of all ranks; the backward pass sums the gradients of all ranks for each rank's vectors."""
    if ranks.size == 1:
        return vectors
    all_rows: Tensor = _Gathered.apply(ranks, vectors)  # type: ignore[no-untyped-call]
    return all_rows


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ranks: ProcessGroup, vectors: Tensor) -> Tensor:
        ctx.ranks = ranks
        return all_gather(ranks, vectors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        total = gradient.contiguous()
        if total.device.type in SCATTERED_ON:
            own = total.new_empty((len(total) // ctx.ranks.size, *total.shape[1:]))
            dist.reduce_scatter_tensor(own, total)
            return None, own
        dist.all_reduce(total)
        return None, total[ctx.ranks.part(len(total))]


def all_reduce_sum(ranks: ProcessGroup, number: Shaped[Tensor, ""]) -> Shaped[Tensor, ""]:
    """Returns the sum over all ranks, without a gradient."""
    if ranks.size == 1:
        return number
    total = number.detach().clone()
    dist.all_reduce(total)
    return total


def wait_for_all(ranks: ProcessGroup) -> None:
    """Returns when every rank has called it."""
    float(all_reduce_sum(ranks, torch.zeros((), device=ranks.device)))


def share_of(ranks: ProcessGroup, count: Int[Tensor, ""]) -> float:
    """Returns this rank's share of a count over all ranks."""
    if ranks.size == 1:
        return 1.0
    return float(count / all_reduce_sum(ranks, count).clamp(min=1))


def sum_gradients(ranks: ProcessGroup, parameters: Iterable[nn.Parameter]) -> None:
    """Sums gradients over all ranks; every rank gets the same bits, so that equal models stay equal.

    Small gradients are sent together, because each message costs a delay of its own.
    """
    if ranks.size == 1:
        return
    waiting = []
    for bucket in _buckets(parameters):
        gradients = [_gradient_of(parameter) for parameter in bucket]
        together = gradients[0] if len(bucket) == 1 else torch.cat([each.flatten() for each in gradients])
        waiting.append((dist.all_reduce(together, async_op=True), gradients, together))
    for work, gradients, together in waiting:
        work.wait()
        if len(gradients) > 1:
            parts = together.split([each.numel() for each in gradients])  # type: ignore[no-untyped-call]
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yields the parameters in order, in groups of one type with at most `BUCKET_BYTES`, or of one larger parameter."""
    bucket: list[nn.Parameter] = []
    held = 0
    for parameter in parameters:
        if bucket and (held + parameter.nbytes > BUCKET_BYTES or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, held = [], 0
        bucket.append(parameter)
        held += parameter.nbytes
    if bucket:
        yield bucket


def _gradient_of(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)  # another rank may have one
    return parameter.grad
