"""Sharded embedding tables: each rank stores, looks up and updates some columns of every row.

The column-wise part of the 4D parallelism of Mudigere et al. (*Software-hardware co-design for fast and scalable
training of deep learning recommendation models*, ISCA 2022). Of its ways to cut a table, columns give every rank as
much to hold and to do, whichever rows are asked for. A table that a step leaves mostly alone (`lazy_tables`) is cut so
wherever there are ranks: a step sends the vectors it looked up and their gradients, where copies of the table would
send the gradients of all ranks to each, and each would move all rows.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from twofold.model.encoder import Encoder
from twofold.ragged import chunks
from twofold.train.distributed import ProcessGroup, all_gather

CHUNK_ROWS = 65_536
"""Rows sent at a time, so that the buffers stay small."""


class ShardedTable(nn.Embedding):
    """An embedding of which this rank holds some columns. All ranks look rows up at the same time.

    The gradient of its weight includes the lookups of all ranks, so it is not summed again.
    """

    def __init__(self, ranks: ProcessGroup, whole: nn.Embedding, folder: Path) -> None:
        """Allocates this rank's columns of a table of that size. `folder` stores whole tables."""
        rows, own = whole.num_embeddings, _columns(ranks, whole.embedding_dim)[ranks.rank]
        weight = torch.empty((rows, own.stop - own.start), device=ranks.device)
        super().__init__(rows, weight.shape[1], padding_idx=whole.padding_idx, _weight=weight)
        self.ranks = ranks
        self.columns = own
        self.whole_dim = whole.embedding_dim
        self.folder = folder

    def forward(self, input: Int[Tensor, "batch"]) -> Float[Tensor, "batch dim"]:
        """Returns whole vectors of this rank's rows, of which it may have more or fewer than others."""
        rows = all_gather(self.ranks, _filled_up(self.ranks, input))
        of_all = functional.embedding(rows, self.weight, self.padding_idx, sparse=self.sparse)
        vectors: Tensor = _Exchanged.apply(self.ranks, self.whole_dim, of_all)  # type: ignore[no-untyped-call]
        return vectors[: len(input)]

    def fill(self, whole: Float[Tensor, "items dim"]) -> None:
        """Sends every rank its columns of rank 0's table; other ranks may pass a table on the device `meta`."""
        for part in chunks(self.num_embeddings, CHUNK_ROWS):
            rows = torch.empty((part.stop - part.start, self.whole_dim), device=self.ranks.device)
            if self.ranks.is_first:
                rows.copy_(whole[part])
            dist.broadcast(rows, src=0)
            self.weight.data[part] = rows[:, self.columns]

    def whole(self) -> nn.Embedding:
        """Returns the whole table on rank 0, and this table on the others."""
        weight = self.put_together(self.weight.data)
        rows, dim = weight.shape
        return nn.Embedding(rows, dim, self.padding_idx, _weight=weight) if self.ranks.is_first else self

    def put_together(self, own: Float[Tensor, "items _"]) -> Float[Tensor, "items _"]:
        """Gathers the columns of all ranks into a mapped file on rank 0; the other ranks get back their own."""
        whole = _mapped(self.folder, len(own), self.whole_dim) if self.ranks.is_first else own
        for part in chunks(len(own), CHUNK_ROWS):
            rows = torch.zeros((part.stop - part.start, self.whole_dim), device=self.ranks.device)
            rows[:, self.columns] = own[part]
            dist.reduce(rows, dst=0)  # no rank holds a column of another: the sum is the table
            if self.ranks.is_first:
                whole[part] = rows.cpu()
        return whole


def _filled_up(ranks: ProcessGroup, rows: Int[Tensor, "batch"]) -> Int[Tensor, "_"]:
    """Returns as many rows on every rank: this rank's, then its first one again, whose vectors nothing reads."""
    most = int(all_gather(ranks, torch.tensor([len(rows)], device=ranks.device)).max())
    more = rows[:1] if len(rows) else rows.new_zeros(1)
    return torch.cat([rows, more.expand(most - len(rows))])


def _mapped(folder: Path, rows: int, dim: int) -> Float[Tensor, "items dim"]:
    """Allocates a temporary mapped array, deleted when it is no longer used. Raises OSError if the disk is full."""
    with TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, rows * dim * np.float32().nbytes)  # a hole would kill when it is written
        return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=(rows, dim)))


class _Exchanged(torch.autograd.Function):
    """Exchanges some columns of all ranks' rows for all columns of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, ranks: ProcessGroup, dim: int, columns: Tensor) -> Tensor:
        ctx.ranks, ctx.dim = ranks, dim
        lines, widths = len(columns) // ranks.size, _widths(ranks, dim)
        sizes = [lines * width for width in widths]
        arrived = columns.new_empty(sum(sizes))
        dist.all_to_all_single(arrived, columns.flatten(), sizes, [lines * columns.shape[1]] * ranks.size)
        parts = zip(torch.split(arrived, sizes), widths, strict=True)
        return torch.cat([part.view(lines, width) for part, width in parts], dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
        ranks, lines, columns = ctx.ranks, len(gradient), _columns(ctx.ranks, ctx.dim)
        own = columns[ranks.rank].stop - columns[ranks.rank].start
        arrived = gradient.new_empty((ranks.size * lines, own))
        leaving = torch.cat([gradient[:, part].flatten() for part in columns])
        sizes = [lines * width for width in _widths(ranks, ctx.dim)]
        dist.all_to_all_single(arrived.view(-1), leaving, [lines * own] * ranks.size, sizes)
        return None, None, arrived


def distribute_model(
    ranks: ProcessGroup, model: nn.Module, *, in_columns: Collection[nn.Embedding], folder: Path
) -> None:
    """Moves a model to the device of each process: shards its embedding tables `in_columns` by columns among the
    processes, and copies all other weights from rank 0.

    Equal seeds give equal weights only on equal machines, hence the copies. Other ranks may pass a model on the device
    `meta`. `folder` has room for whole tables.
    """
    if ranks.size == 1:
        model.to(ranks.device)
        return
    shards = {id(table): ShardedTable(ranks, table, folder) for table in in_columns}
    for table in in_columns:
        shards[id(table)].fill(table.weight.data)
    for held, name, table in list(_tables(model)):
        if id(table) in shards:
            held[name] = shards[id(table)]
    for module in model.modules():
        if isinstance(module, ShardedTable):
            continue
        if not ranks.is_first:
            module.to_empty(device=ranks.device, recurse=False)
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            tensor.data = tensor.data.to(ranks.device)
            dist.broadcast(tensor.data, src=0)


@contextmanager
def whole_tables(model: nn.Module) -> Iterator[frozenset[str]]:
    """Provides rank 0 with the whole model, as a single process has it; all ranks must enter together.

    The model is then on the CPU and its whole tables are mapped files, because a table may be larger than a GPU's
    memory or than RAM. Yields the names of the whole tables' weights, which no other object uses.
    """
    names = frozenset(sharded(model))
    places = [(held, name, table) for held, name, table in _tables(model) if isinstance(table, ShardedTable)]
    whole = {id(shard): shard.whole() for shard in {id(shard): shard for _, _, shard in places}.values()}
    first = next((shard.ranks for _, _, shard in places if shard.ranks.is_first), None)
    for held, name, shard in places:
        held[name] = whole[id(shard)]
    if first is not None:
        model.to("cpu")
    try:
        yield names
    finally:
        for held, name, shard in places:
            held[name] = shard
        if first is not None:
            model.to(first.device)


def sharded(model: nn.Module) -> dict[str, ShardedTable]:
    """Returns the sharded tables by the name of their weight."""
    return {f"{name}.weight": each for name, each in model.named_modules() if isinstance(each, ShardedTable)}


def _tables(model: nn.Module) -> Iterator[tuple[nn.ModuleDict | dict[str, nn.Embedding], str, nn.Embedding]]:
    """Yields the tables of encoders, own or shared, with the dictionary and name that hold them."""
    for encoder in model.modules():
        if isinstance(encoder, Encoder):
            for held in (encoder.tables, encoder.shared_tables):
                for name, table in held.items():
                    assert isinstance(table, nn.Embedding)
                    yield held, name, table


def _columns(ranks: ProcessGroup, dim: int) -> list[slice]:
    """Returns the columns of each rank; the numbers differ by at most one."""
    edges = [dim * rank // ranks.size for rank in range(ranks.size + 1)]
    return [slice(first, end) for first, end in zip(edges[:-1], edges[1:], strict=True)]


def _widths(ranks: ProcessGroup, dim: int) -> list[int]:
    return [part.stop - part.start for part in _columns(ranks, dim)]
