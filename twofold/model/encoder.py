"""Encoder of feature blocks to one vector. Both towers are this module with different blocks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, assert_never

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from twofold.digest import digest_of
from twofold.model.sequence import SequenceEncoder

INITIAL_STD = 0.1
"""Standard deviation of new embedding rows. PyTorch's 1.0 needs twice the epochs on the shipped log."""
WINDOWS: Final = (1, 3, 10, 30, 100)
"""Numbers of newest events that a history is averaged over. On ML-1M they gained .155 in HR@10 over one mean."""


@dataclass(frozen=True)
class Lookup:
    """A block of one embedding per example; row 0 is *none* and stays zero, unless `trains_none` says that examples
    read it. With `dropout`, a training step treats that share of the examples as new: see `Encoder.forward`.
    """

    name: str
    rows: int
    dim: int
    dropout: float = 0.0
    single_from: int | None = None
    """First row that is fitted on one item (or user) alone. `None` means that no row is."""
    trains_none: bool = False

    @property
    def width(self) -> int:
        """Output width."""
        return self.dim


@dataclass(frozen=True)
class Pool:
    """A block of several embeddings per example, newest last: their mean, the means of the last 1, 3, 10, 30, 100, or
    their concatenation.

    Row 0 is padding and left out of means; without other rows the mean is zero. `vectors` names a fixed table that is
    read instead of a trained one.
    """

    name: str
    rows: int
    dim: int
    pool: Literal["mean", "windows", "concat"] = "mean"
    length: int | None = None
    """Number of rows per example. `None` means any number, for a mean."""
    vectors: str | None = None
    single_from: int | None = None
    """First row that is fitted on one item (or user) alone. `None` means that no row is."""

    @property
    def width(self) -> int:
        """Output width."""
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
        """The numbers of `WINDOWS` that are at most the length."""
        return tuple(window for window in WINDOWS if self.length is None or window <= self.length)


@dataclass(frozen=True)
class Sequence:
    """A block of embeddings in order, oldest first, padded on the right with row 0: the output of a `SequenceEncoder`
    after the last of them.

    With the input `NAME.places`, the rows are whole sequences, and each place is the position of an output among the
    flattened outputs of all sequences. A timed block also reads `NAME.ages`: see `SequenceEncoder`.
    """

    name: str
    rows: int
    dim: int
    length: int
    num_layers: int
    num_heads: int
    dropout: float
    is_timed: bool = False

    @property
    def width(self) -> int:
        """Output width."""
        return self.dim


@dataclass(frozen=True)
class Number:
    """A block of `dim` standardized numbers per example, as they are or through a ReLU layer of width `hidden_dim`."""

    name: str
    dim: int = 1
    hidden_dim: int = 0

    @property
    def width(self) -> int:
        """Output width."""
        return self.hidden_dim or self.dim


Block = Lookup | Pool | Sequence | Number


@dataclass(frozen=True)
class Layers:
    """Layers after the concatenation: linear layers of the `hidden` widths, each with ReLU and dropout, then one of
    width `dim` with optional batch normalization and unit length.
    """

    dim: int
    hidden: tuple[int, ...] = ()
    dropout: float = 0.0
    batch_norm: bool = False
    unit_length: bool = True


class Encoder(nn.Module):
    """A network that concatenates its blocks and applies the layers: `Float[batch dim]`."""

    def __init__(
        self,
        feature_blocks: tuple[Block, ...],
        layers: Layers,
        *,
        fixed_tables: Mapping[str, Float[Tensor, "_ _"]] | None = None,
        shared_tables: Mapping[str, nn.Embedding] | None = None,
    ) -> None:
        """Builds tables and layers.

        `fixed_tables`, by the names that blocks give in `vectors`, have row 0 for none; they are neither trained nor
        part of the saved weights. `shared_tables`, by the name of the block, belong to another encoder, which trains
        and saves them.
        """
        super().__init__()
        self.feature_blocks = feature_blocks
        self.unknown_rate = max((block.dropout for block in feature_blocks if isinstance(block, Lookup)), default=0.0)
        self.shared_tables = dict(shared_tables or {})  # a plain dict: its tables are not registered in this module
        self.tables = nn.ModuleDict(
            {
                module_key(block.name): _table(block.rows, block.dim, trains_none=self._trains_none(block))
                for block in feature_blocks
                if block.name not in self.shared_tables
                and (isinstance(block, Lookup | Sequence) or (isinstance(block, Pool) and block.vectors is None))
            }
        )
        for name, table in (fixed_tables or {}).items():
            self.register_buffer(_buffer(name), table, persistent=False)
        self.layers = _layers(layers, width=sum(block.width for block in feature_blocks))
        self.dim = layers.dim
        self.is_unit_length = layers.unit_length
        self.readers = nn.ModuleDict(
            {module_key(block.name): reader for block in feature_blocks if (reader := _reader(block)) is not None}
        )

    def table_of(self, block: Block) -> nn.Embedding:
        """Returns the trained table that a block reads, own or shared."""
        is_shared = block.name in self.shared_tables
        table = self.shared_tables[block.name] if is_shared else self.tables[module_key(block.name)]
        assert isinstance(table, nn.Embedding)
        return table

    def forward(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "batch dim"]:
        """Encodes `inputs`, which has one tensor per block by its name, and those of `Sequence`; others are ignored.

        A training step treats a share `unknown_rate` of the examples as new: in all blocks at once, it reads rows that
        are fitted on one item alone as row 0. The id and a creator with one item are then unknown together, as they are
        for a new item; with one of them left, the model would not learn to do without both.
        """
        if self.training and self.unknown_rate:
            inputs = self._with_unknown(inputs)
        parts = [self._embed(block, inputs) for block in self.feature_blocks]
        vectors: Tensor = self.layers(torch.cat(parts, dim=1))
        return functional.normalize(vectors, dim=1) if self.is_unit_length else vectors

    def _trains_none(self, block: Block) -> bool:
        """Returns whether training reads row 0 of a block's table in place of other rows."""
        if not isinstance(block, Lookup):
            return False
        has_single = block.single_from is not None and block.single_from < block.rows
        return block.trains_none or (self.unknown_rate > 0 and has_single)

    def _with_unknown(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Returns the inputs in which some examples, drawn at random, are those of new items."""
        (id_block,) = (block for block in self.feature_blocks if isinstance(block, Lookup) and block.dropout)
        ids = inputs[id_block.name]
        is_new = torch.rand(ids.shape, device=ids.device) < id_block.dropout
        masked = {}
        for block in self.feature_blocks:
            if isinstance(block, Lookup | Pool) and block.single_from is not None:
                rows = inputs[block.name]
                is_masked = is_new.reshape(-1, *[1] * (rows.ndim - 1)) & (rows >= block.single_from)
                masked[block.name] = rows.masked_fill(is_masked, 0)
        return {**inputs, **masked}

    def _embed(self, block: Block, inputs: Mapping[str, Tensor]) -> Float[Tensor, "batch _"]:
        values = inputs[block.name]
        match block:
            case Lookup():
                return self.table_of(block)(values)
            case Pool():
                if block.vectors is None:
                    return _pooled(block, *_read_rows(self.table_of(block), values))
                fixed = getattr(self, _buffer(block.vectors))
                assert isinstance(fixed, Tensor)
                return _pooled(block, fixed, values)
            case Sequence():
                ages = inputs[f"{block.name}.ages"] if block.is_timed else None
                places = inputs.get(f"{block.name}.places")
                encoder = self.readers[module_key(block.name)]
                assert isinstance(encoder, SequenceEncoder)
                return _encode_sequences(encoder, self.table_of(block), values, ages, places)
            case Number():
                numbers = values.reshape(-1, block.dim)
                return self.readers[module_key(block.name)](numbers) if block.hidden_dim else numbers
            case _:
                assert_never(block)


def _reader(block: Block) -> nn.Module | None:
    """Returns the layers of a block beside its table; `None` means it has none."""
    match block:
        case Number(hidden_dim=hidden_dim) if hidden_dim:
            return nn.Sequential(nn.Linear(block.dim, hidden_dim), nn.ReLU())
        case Sequence():
            return SequenceEncoder(
                block.dim,
                length=block.length,
                num_layers=block.num_layers,
                num_heads=block.num_heads,
                dropout=block.dropout,
                is_timed=block.is_timed,
            )
        case _:
            return None


def mean_of_rows(table: Float[Tensor, "_ dim"], rows: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
    """Returns the mean of the table's rows per example, without row 0; zero if an example has no other row."""
    if torch.compiler.is_exporting():  # ONNX has no embedding bag, so the served graph gathers and masks
        present = (rows != 0).to(table.dtype)
        total = (functional.embedding(rows, table) * present[:, :, None]).sum(dim=1)
        return total / present.sum(dim=1, keepdim=True).clamp(min=1)
    if rows.device.type != "cpu":  # counting the rows would wait for the device
        return functional.embedding_bag(rows, table, mode="mean", padding_idx=0)
    # Padding is left out first: the backward pass sorts all that it is given.
    is_row = rows != 0
    starts = functional.pad(is_row.sum(dim=1).cumsum(0), (1, 0)).to(rows.dtype)
    return functional.embedding_bag(rows[is_row], table, starts, mode="mean", include_last_offset=True)


def _encode_sequences(
    encoder: SequenceEncoder,
    table: nn.Embedding,
    rows: Int[Tensor, "_ length"],
    ages: Int[Tensor, "_ length"] | None,
    places: Int[Tensor, "batch"] | None,
) -> Float[Tensor, "batch dim"]:
    """Returns the encoder's outputs at these places. `None` means after the last row of each sequence."""
    vectors, rows = _read_rows(table, rows)
    if places is None:
        counts = (rows != 0).sum(dim=1)
        if torch.compiler.is_exporting():
            return encoder.at(counts, table(rows), ages)
        # Columns that are padding in every sequence are cut off; on a GPU, where that would wait, they are computed.
        longest = max(int(counts.max()), 1) if rows.device.type == "cpu" else rows.shape[1]
        rows, ages = rows[:, :longest], None if ages is None else ages[:, :longest]
        places = torch.arange(rows.shape[0], device=rows.device) * (rows.shape[1] + 1) + counts
    outputs: Tensor = encoder(functional.embedding(rows, vectors, table.padding_idx), ages).flatten(0, 1)
    return outputs[places]


def _read_rows(
    table: nn.Embedding, rows: Int[Tensor, "batch length"]
) -> tuple[Float[Tensor, "_ dim"], Int[Tensor, "batch length"]]:
    """Returns a table of vectors and the rows to read in it: the trained table itself, or, of a table with sparse
    gradients that is being trained, the distinct rows alone, after a row 0 of zeros.

    No gradient then has a row for each row of the table, nor one for each place of a history.
    """
    if not (table.sparse and torch.is_grad_enabled()) or torch.compiler.is_exporting():
        return table.weight, rows
    is_read = rows != 0
    distinct, places = torch.unique(rows[is_read], return_inverse=True)
    positions = torch.zeros_like(rows, dtype=torch.int64)
    positions[is_read] = 1 + places
    return functional.pad(table(distinct), (0, 0, 1, 0)), positions


def _pooled(block: Pool, table: Float[Tensor, "_ dim"], rows: Int[Tensor, "batch length"]) -> Float[Tensor, "batch _"]:
    match block.pool:
        case "mean":
            return mean_of_rows(table, rows)
        case "windows":
            return torch.cat([mean_of_rows(table, rows[:, -window:]) for window in block.windows], dim=1)
        case "concat":
            return functional.embedding(rows, table).flatten(start_dim=1)


def _buffer(name: str) -> str:
    return f"fixed_{name}"


def _layers(layers: Layers, *, width: int) -> nn.Sequential:
    modules: list[nn.Module] = []
    for hidden in layers.hidden:
        modules += [nn.Linear(width, hidden), nn.ReLU()]
        if layers.dropout:
            modules.append(nn.Dropout(layers.dropout))
        width = hidden
    modules.append(nn.Linear(width, layers.dim))
    if layers.batch_norm:
        modules.append(nn.BatchNorm1d(layers.dim))
    return nn.Sequential(*modules)


def _table(rows: int, dim: int, *, trains_none: bool) -> nn.Embedding:
    table = nn.Embedding(rows, dim, padding_idx=None if trains_none else 0)
    with torch.no_grad():
        nn.init.normal_(table.weight, std=INITIAL_STD)
        table.weight[0] = 0
    return table


_NO_MODULES = nn.ModuleDict()


def module_key(name: str) -> str:
    """Returns the name under which an encoder holds the modules of a feature.

    PyTorch takes no dots, and no names of its own attributes, such as `type`; a column may have either.
    """
    is_free = name.isidentifier() and not hasattr(_NO_MODULES, name)
    return name if is_free else f"feature_{digest_of(name)[:16]}"
