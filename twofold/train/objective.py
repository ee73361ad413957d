"""Training objective: the recipe's loss, the training examples in batches, and the negatives of each batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn import functional

from twofold.dataset.batch_order import Order
from twofold.dataset.batches import Batch, TensorInputs
from twofold.dataset.dataset import Dataset
from twofold.dataset.example_blocks import BATCHES_A_BLOCK, BLOCK_ROWS, ExampleBlocks
from twofold.errors import DataError
from twofold.model.fused_softmax import product_dtype_of
from twofold.model.multi_tower import MultiTower
from twofold.ragged import chunks
from twofold.recipe.features import SequenceFeature
from twofold.recipe.train import (
    Bce,
    Bpr,
    FullSoftmax,
    HardNegatives,
    InBatchSoftmax,
    Loss,
    Regression,
    SampledSoftmax,
    Train,
)
from twofold.train.batch_groups import group_by_tower, group_examples, sequences_of_a_batch
from twofold.train.device import tensor_on
from twofold.train.distributed import SINGLE_PROCESS, ProcessGroup, all_gather
from twofold.train.negatives import (
    HardNegativePool,
    InBatchProbability,
    count_in_batch,
    of_all_ranks,
    sampled_inputs,
)
from twofold.train.optimizer import StepSize


@dataclass(frozen=True)
class Uploads:
    """Known items in the order of their upload; those without an upload time come first."""

    rows: Int64[Tensor, "items"]
    at: Int64[Tensor, "items"]


@dataclass(frozen=True)
class Objective:
    """The loss of a recipe with its training examples and sampling probabilities."""

    loss: Loss
    dataset: Dataset
    order: Order
    in_batch: InBatchProbability
    mean_weight: float
    hard: HardNegatives | None = None
    ranks: ProcessGroup = SINGLE_PROCESS
    """The processes that share every batch."""
    hard_pool: HardNegativePool | None = None
    """Pool of the hard negatives; see `hard_negatives`."""
    product_dtype: torch.dtype = torch.float32
    """Type of the products of the fused softmax: see `train.precision`."""
    pools: tuple[Int64[Tensor, "_"], ...] = ()
    """Item pool of each batch group; empty means every item of the training window."""
    uploads: "Uploads | None" = None
    """`None` means that the item tower reads no upload time."""
    sequences: int | None = None
    """Mean number of sequences of a batch. `None` means that no examples share one."""
    log_share: Float32[Tensor, "items"] | None = None
    """Log of each known item's share of the examples, for the logit adjustment; `None` without it. An item without any
    counts as one with a single example: with a share of 0 it would be no negative, and keep an untrained vector.
    """

    @property
    def examples(self) -> Int64[np.ndarray, "examples"]:
        """Indices of all training examples that enter the loss, of which training itself reads a block at a time."""
        return np.concatenate(list(self.order.examples))

    @property
    def precision(self) -> str:
        """Name of the type in which matrix products are computed, such as bfloat16."""
        return str(self.product_dtype).removeprefix("torch.")

    @property
    def num_items(self) -> int:
        """Number of items of the training window, from which negatives are drawn; later items are not known yet."""
        return self.dataset.items.num_known

    def pool_of(self, batch: Batch) -> Int64[Tensor, "_"] | None:
        """Returns the item rows from which the negatives of a batch are drawn; `None` means all known items.

        An item that was uploaded after the batch was no negative for its users. If all items were, the times are not
        those of uploads, and all are drawn.
        """
        if self.pools:
            return self.pools[batch.group]
        if self.uploads is None:
            return None
        last = of_all_ranks(self.ranks, batch, "at").max()
        count = int(torch.searchsorted(self.uploads.at, last, right=True))
        return self.uploads.rows[:count] if count else None

    @property
    def num_drawn(self) -> int:
        """Number of items drawn per batch as negatives."""
        match self.loss:
            case InBatchSoftmax(uniform_negatives=count) | SampledSoftmax(negatives=count) | Bpr(negatives=count):
                return count
            case FullSoftmax():
                return self.num_items
            case Bce() | Regression():
                return 0
            case _:
                assert_never(self.loss)

    @property
    def num_hard(self) -> int:
        """Number of hard negatives of each example."""
        if self.hard is None:
            return 0
        in_batch = self.order.batch_size - 1 if isinstance(self.loss, InBatchSoftmax) else 0
        others = in_batch + self.num_drawn
        return max(round(others / self.hard.easy_per_hard), 1) if self.hard.easy_per_hard else others

    @property
    def step_size(self) -> StepSize:
        """Largest numbers of items and of users that the towers encode for a batch."""
        users = self.order.batch_size
        return StepSize(items=users * (1 + self.num_hard) + self.num_drawn, users=users, sequences=self.sequences)


def build_objective(
    settings: Train, dataset: Dataset, *, per: MultiTower | None = None, ranks: ProcessGroup = SINGLE_PROCESS
) -> Objective:
    """Chooses the training examples, groups them (by the towers of `per` if there are several) and counts their items.
    Raises DataError if there is nothing to learn.
    """
    rows, examples, num_items = dataset.examples["train"], _blocks(settings, dataset), len(dataset.items)
    num_examples, mean_weight = _count(examples, settings.loss)
    pools: tuple[Tensor, ...] = ()
    if per is None:
        groups = group_examples(dataset, settings, examples)
    else:
        groups = group_by_tower(dataset, per, examples, batch_size=settings.batch_size)
        known = torch.from_numpy(per.tower_of_item[: dataset.items.num_known])
        pools = tuple(torch.nonzero(known == tower).flatten() for tower in range(len(per.values)))
    keys = (rows.item_rows[part] + (0 if groups is None else groups.of(part) * num_items) for part in examples)
    _check_learnable(settings, dataset, mean_weight, num_examples=num_examples)
    order = Order(
        examples,
        num_examples,
        settings.batch_size,
        groups,
        max_run=_max_run(dataset),
        micro_batch_size=settings.micro_batch_size,
        is_shuffled=settings.shuffle_batches,
    )
    return Objective(
        settings.loss,
        dataset,
        order,
        count_in_batch(keys, num_items=num_items).on(ranks.device),
        mean_weight,
        settings.hard_negatives,
        ranks,
        product_dtype=product_dtype_of(settings.precision, ranks.device),
        pools=pools,
        uploads=_uploads(dataset),
        sequences=None if dataset.features.reads_times else sequences_of_a_batch(order),
        log_share=_log_share(settings.loss, examples, num_items=dataset.items.num_known, device=ranks.device),
    )


def _log_share(
    loss: Loss, examples: ExampleBlocks, *, num_items: int, device: torch.device
) -> Float32[Tensor, "items"] | None:
    if not isinstance(loss, FullSoftmax) or loss.logit_adjustment == 0:
        return None
    counts = np.zeros(num_items, np.int64)
    for part in examples:
        counts += np.bincount(examples.rows.item_rows[part], minlength=num_items)
    return torch.from_numpy(np.log(np.maximum(counts, 1) / counts.sum()).astype(np.float32)).to(device)


def _uploads(dataset: Dataset) -> Uploads | None:
    if dataset.item_arrays.uploaded_at is None:
        return None
    at, rows = torch.tensor(dataset.item_arrays.uploaded_at[: dataset.items.num_known]).sort(stable=True)
    return Uploads(rows, at)


def _check_learnable(settings: Train, dataset: Dataset, mean_weight: float, *, num_examples: int) -> None:
    if not mean_weight > 0:
        raise DataError(
            f"the mean weight of the {num_examples:,} training examples is {mean_weight:g}: nothing would be learned. "
            f"Check prepare.weight."
        )
    if settings.hard_negatives is not None and settings.hard_negatives.top > dataset.items.num_known:
        raise DataError(
            f"train.hard_negatives.top is {settings.hard_negatives.top:,}, and the training window has "
            f"{dataset.items.num_known:,} items. Lower it, and skip with it."
        )


def _max_run(dataset: Dataset) -> int:
    """Returns the number of a user's examples that stay together: the longest sequence that the user tower reads."""
    user = dataset.features.features.user
    return max((each.max_length for each in user if isinstance(each, SequenceFeature)), default=1)


def _blocks(settings: Train, dataset: Dataset) -> ExampleBlocks:
    """Returns the training examples in blocks; in one, if the batches of a group must follow one another."""
    rows = dataset.examples["train"]
    size = max(BLOCK_ROWS, BATCHES_A_BLOCK * settings.batch_size) if settings.shuffle_batches else max(len(rows), 1)
    match settings.loss:
        case Bce():
            return ExampleBlocks(rows, "events", size)
        case Regression():
            return ExampleBlocks(rows, "events with a target", size)
        case _:
            return ExampleBlocks(rows, "positive events", size)


def _count(examples: ExampleBlocks, loss: Loss) -> tuple[int, float]:
    """Returns the number of training examples and their mean weight; DataError if there are not even two."""
    number, weight = 0, 0.0
    for indices in examples:
        number, weight = number + len(indices), weight + float(examples.rows.weight[indices].sum(dtype=np.float64))
    if number < 2:
        field = "prepare.target" if isinstance(loss, Regression) else "prepare.positive"
        raise DataError(
            f"the training window holds {number} {examples.kind}; a loss of kind {loss.kind} needs at least 2. "
            f"Check {field} and prepare.split.train."
        )
    return number, weight / number


@dataclass(frozen=True)
class Columns:
    """Items that compete in a batch: their tower inputs and the users they belong to.

    The first columns, with `item_rows`, compete for every example. Hard negatives follow, each for the examples that
    name it. Columns are those of all ranks; a rank has the inputs of its own examples and of its share of the draws.
    """

    inputs: tuple[TensorInputs, ...]
    """Tower inputs, in the parts that are encoded at a time."""
    item_rows: Int64[Tensor, "items"]
    owners: Int64[Tensor, "items"]
    """User row of the example that an item belongs to; -1 for a drawn item."""
    own: Int64[Tensor, "batch"]
    """Column of each example's own item."""
    hard: Int64[Tensor, "batch _"]
    """Columns of each example's hard negatives; -1 for none."""
    hard_pool_size: Int64[Tensor, "batch"]
    """Size of the pool from which each example's hard negatives were drawn."""
    positions: Int64[Tensor, "_"]
    """Positions of the columns among the vectors that `all_gather_vectors` returns."""
    num_in_batch: int
    """Number of columns that belong to examples; the drawn ones follow."""
    pool_size: int
    """Number of items from which the drawn columns were drawn."""


def draw_columns(objective: Objective, batch: Batch) -> Columns:
    """Draws the columns of a batch: its own items, drawn negatives, then hard negatives. The full softmax has every
    item of the training window instead.
    """
    ranks, size = objective.ranks, len(batch.item_rows)
    hard, hard_pool_size = torch.empty((size, 0), dtype=torch.int64), torch.zeros(size, dtype=torch.int64)
    pool = objective.pool_of(batch)
    if isinstance(objective.loss, FullSoftmax):
        # Own items belong to it even if an upload time is wrong.
        pool = (
            torch.arange(objective.num_items)
            if pool is None
            else torch.unique(torch.cat([pool, of_all_ranks(ranks, batch, "item_rows")]))
        )
        inputs, item_rows = _inputs(objective, batch, [], pool), tensor_on(ranks.device, pool)
        owners, positions = torch.full_like(item_rows, -1), ranks.positions(own=0, drawn=len(item_rows))
        own = torch.searchsorted(item_rows, batch.item_rows.long())
        no_hard = tensor_on(ranks.device, hard), tensor_on(ranks.device, hard_pool_size)
        return Columns(inputs, item_rows, owners, own, *no_hard, positions, num_in_batch=0, pool_size=len(pool))
    pool_size = objective.num_items if pool is None else len(pool)
    drawn = torch.randint(pool_size, (objective.num_drawn,))
    drawn = drawn if pool is None else pool[drawn]
    if objective.hard_pool is not None:
        hard, hard_pool_size = objective.hard_pool.draw(batch.on_host.user_rows, objective.num_hard)
    mined, mined_column = torch.unique(hard.clamp(min=0), return_inverse=True)
    in_batch = all_gather(ranks, batch.item_rows)
    return Columns(
        _inputs(objective, batch, [part.item for part in batch.parts or (batch,)], torch.cat([drawn, mined])),
        torch.cat([in_batch, tensor_on(ranks.device, drawn)]),
        torch.cat([all_gather(ranks, batch.user_rows), torch.full_like(drawn, -1, device=ranks.device)]),
        torch.arange(size, device=ranks.device) + ranks.rank * size,
        tensor_on(ranks.device, (len(in_batch) + len(drawn) + mined_column).masked_fill(hard < 0, -1)),
        tensor_on(ranks.device, hard_pool_size),
        ranks.positions(own=size, drawn=len(drawn) + len(mined)),
        num_in_batch=len(in_batch),
        pool_size=pool_size,
    )


def _inputs(
    objective: Objective, batch: Batch, own: list[TensorInputs], more: Int64[Tensor, "_"]
) -> tuple[TensorInputs, ...]:
    """Returns the inputs of the batch's own items and of others, in parts if the batch has parts."""
    if len(more) == 0:
        return tuple(own)
    others = sampled_inputs(objective.dataset, batch, more, ranks=objective.ranks)
    if not batch.parts:
        return ({name: _stacked([*(inputs[name] for inputs in own), values]) for name, values in others.items()},)
    assert objective.order.micro_batch_size is not None
    parts = chunks(len(objective.ranks.share(len(more))), objective.order.micro_batch_size)
    return (*own, *({name: values[part] for name, values in others.items()} for part in parts))


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Returns the rows of all parts one after another; lists of values are as wide as the longest of their part."""
    if len({part.shape[1:] for part in parts}) == 1:
        return torch.cat(list(parts))
    width = max(part.shape[1] for part in parts)
    return torch.cat([functional.pad(part, (0, width - part.shape[1])) for part in parts])
