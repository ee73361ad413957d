"""Large tables in columns over the ranks: each holds, looks up and moves its part of every row.

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

_ROWS_AT_ONCE = 65_536
"""Of a table that is cut or put together: what is in flight stays small."""


class ShardedTable(nn.Embedding):
    """An embedding of which this rank holds some columns. All ranks look up equally many rows, at the same time.

    The gradient of its weight is that of all ranks' lines: there is nothing left to add up.
    """

    def __init__(self, ranks: ProcessGroup, whole: nn.Embedding, folder: Path) -> None:
        """Of a table of that size, not yet of its numbers. Whole ones are put down in `folder`."""
        rows, own = whole.num_embeddings, _columns(ranks, whole.embedding_dim)[ranks.rank]
        weight = torch.empty((rows, own.stop - own.start), device=ranks.device)
        super().__init__(rows, weight.shape[1], padding_idx=whole.padding_idx, _weight=weight)
        self.ranks = ranks
        self.columns = own
        self.whole_dim = whole.embedding_dim
        self.folder = folder

    def forward(self, input: Int[Tensor, "lines"]) -> Float[Tensor, "lines dim"]:
        """The vectors of this rank's lines, with all their columns."""
        of_all = functional.embedding(all_gather(self.ranks, input), self.weight, self.padding_idx, sparse=self.sparse)
        vectors: Tensor = _Exchanged.apply(self.ranks, self.whole_dim, of_all)  # type: ignore[no-untyped-call]
        return vectors

    def cut(self, whole: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows columns"]:
        """This rank's columns of such a table."""
        return whole[:, self.columns].to(self.ranks.device, copy=True).contiguous()

    def fill(self, whole: Float[Tensor, "rows dim"]) -> None:
        """Gives every rank its columns of the first one's table; others may hand in one without memory."""
        for part in chunks(self.num_embeddings, _ROWS_AT_ONCE):
            rows = torch.empty((part.stop - part.start, self.whole_dim), device=self.ranks.device)
            if self.ranks.is_first:
                rows.copy_(whole[part])
            dist.broadcast(rows, src=0)
            self.weight.data[part] = rows[:, self.columns]

    def whole(self) -> nn.Embedding:
        """For the first rank, the whole table as it stands; for the others, what they have."""
        weight = self.put_together(self.weight.data)
        rows, dim = weight.shape
        return nn.Embedding(rows, dim, self.padding_idx, _weight=weight) if self.ranks.is_first else self

    def put_together(self, own: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows _"]:
        """For the first rank, on the disk and mapped, what all ranks hand in; the others get back what they gave."""
        whole = _mapped(self.folder, len(own), self.whole_dim) if self.ranks.is_first else own
        for part in chunks(len(own), _ROWS_AT_ONCE):
            rows = torch.zeros((part.stop - part.start, self.whole_dim), device=self.ranks.device)
            rows[:, self.columns] = own[part]
            dist.reduce(rows, dst=0)  # no rank holds a column of another: the sum is the table
            if self.ranks.is_first:
                whole[part] = rows.cpu()
        return whole


def _mapped(folder: Path, rows: int, dim: int) -> Float[Tensor, "rows dim"]:
    """Room for numbers in a file, which is gone with the last who reads it. OSError where the disk is full."""
    with TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, rows * dim * np.float32().nbytes)  # a hole would kill when it is written
        return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=(rows, dim)))


class _Exchanged(torch.autograd.Function):
    """From some columns of all ranks' lines to all columns of this rank's."""

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
    """Moves the model to the rank's device, of several ranks with the weights of the first one's: equal seeds give
    equal ones on equal machines alone. The others may hand in a model without memory. These tables are cut; in
    `folder` there is room for whole ones.
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
    """As long as this lasts, the first rank's model is as one process has it; all ranks come here at the same time.

    It lies in ordinary memory then, and its whole tables in files that are mapped: such a table may be larger than a
    GPU, or than memory. Gives the names of the weights that are whole, and nobody else's.
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
    """The tables that are cut, by the name of their weight."""
    return {f"{name}.weight": each for name, each in model.named_modules() if isinstance(each, ShardedTable)}


def _tables(model: nn.Module) -> Iterator[tuple[nn.ModuleDict | dict[str, nn.Embedding], str, nn.Embedding]]:
    """Those of encoders, own or lent, and where they are held."""
    for encoder in model.modules():
        if isinstance(encoder, Encoder):
            for held in (encoder.tables, encoder.shared_tables):
                for name, table in held.items():
                    assert isinstance(table, nn.Embedding)
                    yield held, name, table


def _columns(ranks: ProcessGroup, dim: int) -> list[slice]:
    """Of each rank; where they do not divide, some have one more."""
    edges = [dim * rank // ranks.size for rank in range(ranks.size + 1)]
    return [slice(first, end) for first, end in zip(edges[:-1], edges[1:], strict=True)]


def _widths(ranks: ProcessGroup, dim: int) -> list[int]:
    return [part.stop - part.start for part in _columns(ranks, dim)]
