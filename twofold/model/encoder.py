"""Feature blocks → one vector. Both towers are this module with other blocks."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, assert_never

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from twofold.model.sequence import SequenceEncoder

INITIAL_STD = 0.1
"""Of embedding rows. Measured on the shipped log against PyTorch's 1.0, which needs twice the epochs."""
WINDOWS: Final = (1, 3, 10, 30, 100)
"""Lengths of the recent pasts that a history is averaged over. On ML-1M they gained .155 over one mean in HR@10."""


@dataclass(frozen=True)
class Lookup:
    """One trained vector a row; row 0 is *none* and stays zero.

    With `dropout`, a training step reads that share of the lines as row 0, which is then trained: the unknown.
    """

    name: str
    rows: int
    dim: int
    dropout: float = 0.0

    @property
    def width(self) -> int:
        """Of what it gives the layers."""
        return self.dim


@dataclass(frozen=True)
class Pool:
    """The vectors of a line's rows, newest last: their mean, the means of its last 1, 3, 10, 30, 100, or side by side.

    Row 0 is padding and left out of means; an empty line gives zeros. `over` names a table of given vectors in place of
    a trained one.
    """

    name: str
    rows: int
    dim: int
    pool: Literal["mean", "windows", "concat"] = "mean"
    length: int | None = None
    """Rows a line; None: any number, for a mean."""
    over: str | None = None

    @property
    def width(self) -> int:
        """Of what it gives the layers."""
        match self.pool:
            case "mean":
                return self.dim
            case "windows":
                return self.dim * len(self.windows)
            case "concat":
                assert self.length is not None
                return self.dim * self.length

    @property
    def windows(self) -> tuple[int, ...]:
        """Those of `WINDOWS` that are no longer than a line."""
        return tuple(window for window in WINDOWS if self.length is None or window <= self.length)


@dataclass(frozen=True)
class Sequence:
    """The vectors of a line's rows in order, oldest first, padded on the right with row 0, read by a
    `SequenceEncoder`: what it says after the last of them.

    Where `NAME.places` is given, the rows are those of whole sequences, and each place asks for one of the
    encoder's outputs, counted through all sequences. A timed one reads `NAME.ages` too: see `SequenceEncoder`.
    """

    name: str
    rows: int
    dim: int
    length: int
    depth: int
    heads: int
    dropout: float
    is_timed: bool = False

    @property
    def width(self) -> int:
        """Of what it gives the layers."""
        return self.dim


@dataclass(frozen=True)
class Number:
    """Standardised numbers, `dim` a line (1: the line holds the number itself): as they are, or through a layer with
    ReLU of its own, `expand` wide.
    """

    name: str
    dim: int = 1
    expand: int = 0

    @property
    def width(self) -> int:
        """Of what it gives the layers."""
        return self.expand or self.dim


Block = Lookup | Pool | Sequence | Number


@dataclass(frozen=True)
class Layers:
    """What follows the concatenation: linear layers of the `hidden` widths, each with layer normalisation if asked
    (Ba et al., 2016), ReLU and dropout; then one of `dim`, batch normalisation and unit length if asked.
    """

    dim: int
    hidden: tuple[int, ...] = ()
    dropout: float = 0.0
    layer_norm: bool = False
    batch_norm: bool = False
    unit_length: bool = True


class Encoder(nn.Module):
    """Concatenates its blocks, then the layers: `Float[batch dim]`."""

    def __init__(
        self,
        blocks: tuple[Block, ...],
        layers: Layers,
        *,
        given: Mapping[str, Float[Tensor, "rows _"]] | None = None,
        lent: Mapping[str, nn.Embedding] | None = None,
    ) -> None:
        """`given` are the tables that blocks read `over`, with row 0 for none. They are never trained, and no part of
        the saved weights: whoever builds the encoder has them. `lent` are the tables, by the name of the block, that
        are another encoder's, which trains and saves them.
        """
        super().__init__()
        self.blocks = blocks
        self.lent = dict(lent or {})  # a plain dict: tables in it are not this module's
        self.tables = nn.ModuleDict(
            {
                block.name: _table(
                    block.rows, block.dim, none_is_trained=isinstance(block, Lookup) and block.dropout > 0
                )
                for block in blocks
                if block.name not in self.lent
                and (isinstance(block, Lookup | Sequence) or (isinstance(block, Pool) and block.over is None))
            }
        )
        for name, table in (given or {}).items():
            self.register_buffer(_buffer(name), table, persistent=False)
        self.layers = _sequence(layers, width=sum(block.width for block in blocks))
        self.dim = layers.dim
        self.is_unit_length = layers.unit_length
        self.readers = nn.ModuleDict({block.name: reader for block in blocks if (reader := _reader(block)) is not None})

    def table_of(self, block: Block) -> nn.Embedding:
        """The trained table that a block reads, whoever's it is."""
        table = self.lent[block.name] if block.name in self.lent else self.tables[block.name]
        assert isinstance(table, nn.Embedding)
        return table

    def forward(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "batch dim"]:
        """`inputs` holds one tensor a block by its name, and for sequences what `Sequence` says; others are ignored."""
        parts = [self._embed(block, inputs) for block in self.blocks]
        vectors: Tensor = self.layers(torch.cat(parts, dim=1))
        return functional.normalize(vectors, dim=1) if self.is_unit_length else vectors

    def _embed(self, block: Block, inputs: Mapping[str, Tensor]) -> Float[Tensor, "batch width"]:
        values = inputs[block.name]
        match block:
            case Lookup():
                if self.training and block.dropout:
                    values = values * (torch.rand(values.shape, device=values.device) >= block.dropout)
                found: Tensor = self.table_of(block)(values)
                return found
            case Pool():
                table = self.table_of(block).weight if block.over is None else getattr(self, _buffer(block.over))
                assert isinstance(table, Tensor)
                return _pooled(block, table, values)
            case Sequence():
                ages = inputs[f"{block.name}.ages"] if block.is_timed else None
                places = inputs.get(f"{block.name}.places")
                return _read(self.readers[block.name], self.table_of(block), values, ages, places)
            case Number():
                numbers = values.reshape(-1, block.dim)
                expanded: Tensor = self.readers[block.name](numbers) if block.expand else numbers
                return expanded
            case _:
                assert_never(block)


class ConcatEncoder(nn.Module):
    """What several encoders say of the same lines, one after another, scaled alike."""

    def __init__(self, encoders: Iterable[Encoder], *, scale: float = 1.0) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.scale = scale

    @property
    def parts(self) -> tuple[Encoder, ...]:
        """The encoders."""
        return tuple(each for each in self.encoders if isinstance(each, Encoder))

    @property
    def blocks(self) -> tuple[Block, ...]:
        """What they read, each once."""
        return tuple({block.name: block for part in self.parts for block in part.blocks}.values())

    @property
    def dim(self) -> int:
        """Of all of them together."""
        return sum(part.dim for part in self.parts)

    def forward(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "batch wide"]:
        """`inputs` as for each of the encoders."""
        return torch.cat([encoder(inputs) for encoder in self.encoders], dim=1) * self.scale


def _reader(block: Block) -> nn.Module | None:
    """What a block has of its own beside a table."""
    match block:
        case Number(expand=expand) if expand:
            return nn.Sequential(nn.Linear(block.dim, expand), nn.ReLU())
        case Sequence():
            return SequenceEncoder(
                block.dim,
                length=block.length,
                depth=block.depth,
                heads=block.heads,
                dropout=block.dropout,
                is_timed=block.is_timed,
            )
        case _:
            return None


def mean_of_rows(table: Float[Tensor, "rows dim"], rows: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
    """The mean of the table's rows a line, 0 left out; zero where a line holds nothing else."""
    if torch.compiler.is_exporting():  # ONNX has no embedding bag; the served graph gathers and masks
        present = (rows != 0).to(table.dtype)
        total = (functional.embedding(rows, table) * present[:, :, None]).sum(dim=1)
        return total / present.sum(dim=1, keepdim=True).clamp(min=1)
    return functional.embedding_bag(rows, table, mode="mean", padding_idx=0)


def _read(
    encoder: nn.Module,
    table: nn.Embedding,
    rows: Int[Tensor, "sequences length"],
    ages: Int[Tensor, "sequences length"] | None,
    places: Int[Tensor, "batch"] | None,
) -> Float[Tensor, "batch dim"]:
    """The encoder's outputs at these places; default: after the last row of each sequence."""
    if places is None:
        counts = (rows != 0).sum(dim=1)
        if not torch.compiler.is_exporting():  # no work on what is padding in every line
            longest = max(int(counts.max()), 1)
            rows, ages = rows[:, :longest], None if ages is None else ages[:, :longest]
        places = torch.arange(rows.shape[0], device=rows.device) * (rows.shape[1] + 1) + counts
    read: Tensor = encoder(table(rows), ages).flatten(0, 1)
    return read[places]


def _pooled(
    block: Pool,
    table: Float[Tensor, "rows dim"],
    rows: Int[Tensor, "batch length"],
) -> Float[Tensor, "batch width"]:
    match block.pool:
        case "mean":
            return mean_of_rows(table, rows)
        case "windows":
            return torch.cat([mean_of_rows(table, rows[:, -window:]) for window in block.windows], dim=1)
        case "concat":
            return functional.embedding(rows, table).flatten(start_dim=1)


def _buffer(name: str) -> str:
    return f"given_{name}"


def _sequence(layers: Layers, *, width: int) -> nn.Sequential:
    modules: list[nn.Module] = []
    for following in layers.hidden:
        modules.append(nn.Linear(width, following))
        if layers.layer_norm:
            modules.append(nn.LayerNorm(following))
        modules.append(nn.ReLU())
        if layers.dropout:
            modules.append(nn.Dropout(layers.dropout))
        width = following
    modules.append(nn.Linear(width, layers.dim))
    if layers.batch_norm:
        modules.append(nn.BatchNorm1d(layers.dim))
    return nn.Sequential(*modules)


def _table(rows: int, dim: int, *, none_is_trained: bool) -> nn.Embedding:
    table = nn.Embedding(rows, dim, padding_idx=None if none_is_trained else 0)
    with torch.no_grad():
        nn.init.normal_(table.weight, std=INITIAL_STD)
        table.weight[0] = 0
    return table
