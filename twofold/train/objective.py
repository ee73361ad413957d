"""What a step lowers: the loss that a recipe asks for, with all that is fitted for it, over one batch."""

import math
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from twofold.dataset.batch_order import Order
from twofold.dataset.batches import Batch, TensorInputs
from twofold.dataset.dataset import Dataset
from twofold.errors import DataError
from twofold.model.fused_softmax import SoftmaxBatch, product_dtype_of, softmax_sum
from twofold.model.losses import bce, bpr, by_chunks, regression, sampled_softmax
from twofold.model.multi_tower import MultiTower, Towers, towers_of
from twofold.model.two_tower import TwoTower
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
from twofold.train.batch_groups import group_lines, lines_per_tower
from twofold.train.distributed import SINGLE_PROCESS, ProcessGroup, all_gather, all_gather_vectors
from twofold.train.negatives import (
    HardNegativePool,
    InBatchProbability,
    count_in_batch,
    drawn_inputs,
    log_expected_counts,
    log_mixed_probability,
)
from twofold.train.virtual import encode_parts


@dataclass(frozen=True)
class Objective:
    """A loss over the lines of the training window that it learns from."""

    loss: Loss
    dataset: Dataset
    order: Order
    in_batch: InBatchProbability
    mean_weight: float
    hard: HardNegatives | None = None
    ranks: ProcessGroup = SINGLE_PROCESS
    """Those that take a part of every batch each."""
    mined: HardNegativePool | None = None
    """What hard negatives are drawn from; see `mining`."""
    product_dtype: torch.dtype = torch.float32
    """Type of the products of the fused softmax: see `train.precision`."""
    pools: tuple[Int64[Tensor, "_"], ...] = ()
    """Of each group, the items that are drawn for its batches; none: all of the training window."""

    @property
    def lines(self) -> Int64[np.ndarray, "lines"]:
        """Of the training window, those that it learns from."""
        return self.order.indices

    @property
    def precision(self) -> str:
        """Name of `product_dtype`."""
        return str(self.product_dtype).removeprefix("torch.")

    @property
    def num_items(self) -> int:
        """Items of the training window: those that are drawn. Later ones are not known yet."""
        return self.dataset.items.num_known

    def drawn_from(self, group: int) -> Int64[Tensor, "items"]:
        """The item rows that are drawn for batches of this group, rising."""
        return self.pools[group] if self.pools else torch.arange(self.num_items)

    @property
    def num_drawn(self) -> int:
        """Items that compete beside a batch's own, or in their place."""
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
    def hard_each(self) -> int:
        """Mined items that compete for each line by itself."""
        if self.hard is None:
            return 0
        in_batch = self.order.batch_size - 1 if isinstance(self.loss, InBatchSoftmax) else 0
        others = in_batch + self.num_drawn
        return max(round(others / self.hard.easy_per_hard), 1) if self.hard.easy_per_hard else others

    @property
    def items_per_step(self) -> int:
        """The most that the item tower encodes for a batch."""
        return self.order.batch_size * (1 + self.hard_each) + self.num_drawn


def build_objective(
    settings: Train, dataset: Dataset, *, per: MultiTower | None = None, ranks: ProcessGroup = SINGLE_PROCESS
) -> Objective:
    """Chooses the lines, groups them (by the towers of `per` where there are several) and counts on them; DataError
    where there is nothing to learn.
    """
    rows = dataset.examples["train"]
    lines = _lines(settings.loss, dataset)
    pools: tuple[Tensor, ...] = ()
    if per is None:
        groups = group_lines(dataset, settings.group_by, lines, batch_size=settings.batch_size)
    else:
        groups = lines_per_tower(dataset, per, lines, batch_size=settings.batch_size)
        known = torch.from_numpy(per.tower_of_item[: dataset.items.num_known])
        pools = tuple(torch.nonzero(known == place).flatten() for place in range(len(per.values)))
    in_batch = count_in_batch(rows.item_rows[lines], groups, num_items=len(dataset.items))
    mean_weight = float(rows.weight[lines].mean(dtype=np.float64))
    if not mean_weight > 0:
        raise DataError(
            f"the mean weight of the {len(lines):,} rows to learn from is {mean_weight:g}: nothing would be learned. "
            f"Check prepare.weight."
        )
    if settings.hard_negatives is not None and settings.hard_negatives.top > dataset.items.num_known:
        raise DataError(
            f"train.hard_negatives.top is {settings.hard_negatives.top:,}, and the training window has "
            f"{dataset.items.num_known:,} items. Lower it, and skip with it."
        )
    order = Order(
        lines,
        settings.batch_size,
        groups,
        max_run=max(
            (f.max_length for f in dataset.features.features.user if isinstance(f, SequenceFeature)), default=1
        ),
        user_rows=np.asarray(rows.user_rows[lines]),
        micro_batch_size=settings.micro_batch_size,
    )
    there = in_batch.on(ranks.device)
    product_dtype = product_dtype_of(settings.precision, ranks.device)
    return Objective(
        settings.loss,
        dataset,
        order,
        there,
        mean_weight,
        settings.hard_negatives,
        ranks,
        product_dtype=product_dtype,
        pools=pools,
    )


def _lines(loss: Loss, dataset: Dataset) -> Int64[np.ndarray, "lines"]:
    rows = dataset.examples["train"]
    match loss:
        case Bce():
            lines, wanted = np.arange(len(rows)), "events"
        case Regression():
            lines, wanted = np.flatnonzero(np.isfinite(rows.target)), "events with a target"
        case _:
            lines, wanted = np.flatnonzero(rows.label), "positive events"
    if len(lines) < 2:
        field = "prepare.target" if isinstance(loss, Regression) else "prepare.positive"
        raise DataError(
            f"the training window holds {len(lines)} {wanted}; a loss of kind {loss.kind} needs at least 2. "
            f"Check {field} and prepare.split.train."
        )
    return lines


@dataclass(frozen=True)
class Columns:
    """The items that a batch is taught with: what the item tower reads of them, and whose they are.

    Those with `item_rows` compete for every line. Behind them are mined ones, each for the lines that name it. Where
    ranks share a batch, the columns are those of all; a rank reads the inputs of its own part and of its share of what
    is drawn.
    """

    inputs: tuple[TensorInputs, ...]
    """In the parts that are encoded at once."""
    item_rows: Int64[Tensor, "shared"]
    owners: Int64[Tensor, "shared"]
    """The user row of the line whose item it is; -1: it was drawn."""
    own: Int64[Tensor, "batch"]
    """The column of each line's own item."""
    hard: Int64[Tensor, "batch each"]
    """The columns that were mined for each line; -1: none."""
    hard_pool_size: Int64[Tensor, "batch"]
    """Of how many items a line's were drawn."""
    places: Int64[Tensor, "columns"]
    """Of the columns among the vectors that `all_gather_vectors` gives."""


def draw_columns(objective: Objective, batch: Batch) -> Columns:
    """The batch's own items, then those that are drawn, then those mined; all items of the training window for the
    full softmax.
    """
    ranks, lines, pool = objective.ranks, len(batch.item_rows), objective.drawn_from(batch.group)
    hard, hard_pool_size = torch.empty((lines, 0), dtype=torch.int64), torch.zeros(lines, dtype=torch.int64)
    if isinstance(objective.loss, FullSoftmax):
        inputs, everything = _inputs(objective, batch, [], pool), pool.to(ranks.device)
        nobody, places = torch.full_like(everything, -1), ranks.places(own=0, drawn=len(everything))
        own = torch.searchsorted(everything, batch.item_rows.long())
        return Columns(inputs, everything, nobody, own, hard, hard_pool_size, places)
    drawn = pool[torch.randint(len(pool), (objective.num_drawn,))]
    if objective.mined is not None:
        hard, hard_pool_size = objective.mined.draw(batch.user_rows.cpu(), objective.hard_each)
    mined, of_mined = torch.unique(hard.clamp(min=0), return_inverse=True)
    return Columns(
        _inputs(objective, batch, [part.item for part in batch.parts or (batch,)], torch.cat([drawn, mined])),
        torch.cat([all_gather(ranks, batch.item_rows), drawn.to(ranks.device)]),
        torch.cat([all_gather(ranks, batch.user_rows), torch.full_like(drawn, -1, device=ranks.device)]),
        torch.arange(lines, device=ranks.device) + ranks.rank * lines,
        (lines + len(drawn) + of_mined).masked_fill(hard < 0, -1).to(ranks.device),
        hard_pool_size.to(ranks.device),
        ranks.places(own=lines, drawn=len(drawn) + len(mined)),
    )


def _inputs(
    objective: Objective, batch: Batch, own: list[TensorInputs], more: Int64[Tensor, "more"]
) -> tuple[TensorInputs, ...]:
    """Of the batch's own items and of others: all at once, or in parts where the batch is."""
    if len(more) == 0:
        return tuple(own)
    others = drawn_inputs(objective.dataset, batch, more, ranks=objective.ranks)
    if not batch.parts:
        return ({name: torch.cat([*(inputs[name] for inputs in own), values]) for name, values in others.items()},)
    assert objective.order.micro_batch_size is not None
    parts = chunks(len(objective.ranks.share(len(more))), objective.order.micro_batch_size)
    return (*own, *({name: values[part] for name, values in others.items()} for part in parts))


def mean_loss(
    objective: Objective, model: Towers, batch: Batch
) -> tuple[Float[Tensor, ""], Float[Tensor, "batch dim"]]:
    """The loss of a batch, and the vectors of its items. Of a part of a batch, the loss is its share of the whole's."""
    columns, towers = draw_columns(objective, batch), towers_of(model, batch.group)
    users = encode_parts(towers.user, [part.user for part in batch.parts or (batch,)])
    items = encode_parts(towers.item, columns.inputs)
    if objective.ranks.size > 1:
        items = all_gather_vectors(objective.ranks, items)[columns.places]
    return loss_of_vectors(objective, towers, batch, columns, users=users, items=items), items[columns.own]


def loss_of_vectors(
    objective: Objective,
    model: TwoTower,
    batch: Batch,
    columns: Columns,
    *,
    users: Float[Tensor, "batch dim"],
    items: Float[Tensor, "columns dim"],
) -> Float[Tensor, ""]:
    """The mean loss of the lines; each counts as its weight over the mean of all."""
    weight = batch.weight / (len(users) * objective.ranks.size * objective.mean_weight)
    match objective.loss:
        case Bce(gamma=gamma):
            losses = bce(model.own_logits(users, items[columns.own]), batch.label, gamma=gamma)
        case Regression(error=error):
            losses = regression(model.own_logits(users, items[columns.own]), batch.target, error=error)
        case FullSoftmax() | InBatchSoftmax(log_q="classic" | "none") if objective.mined is None:
            lines = SoftmaxBatch(
                batch.user_rows,
                weight,
                columns.own,
                columns.item_rows,
                columns.owners,
                _log_q(objective, batch, columns),
            )
            queries, factors = model.as_products(users, items)
            if model.score == "negative_distance":  # a difference of large squares, which bfloat16 products would lose
                queries, factors = queries.double(), factors.double()
            return softmax_sum(
                queries, factors, lines, temperature=model.temperature, product_dtype=objective.product_dtype
            )
        case InBatchSoftmax() | SampledSoftmax() | Bpr():
            losses = _against_sample(objective, model, batch, columns, users=users, items=items)
        case FullSoftmax():
            raise AssertionError("all items compete already, none is mined")
        case _:
            assert_never(objective.loss)
    return (losses * weight).sum()


def _log_q(objective: Objective, batch: Batch, columns: Columns) -> Float[Tensor, "shared"]:
    """What the softmax subtracts: of its own columns and those drawn alike, or nothing; of all items, their prior."""
    if isinstance(objective.loss, FullSoftmax) and objective.loss.logit_adjustment > 0:
        return -objective.loss.logit_adjustment * objective.in_batch.log(columns.item_rows, group=batch.group)
    if not (isinstance(objective.loss, InBatchSoftmax) and objective.loss.log_q == "classic"):
        return torch.zeros(len(columns.item_rows), device=columns.item_rows.device)
    uniform = int((columns.owners < 0).sum())
    return log_mixed_probability(
        objective.in_batch.log(columns.item_rows, group=batch.group),
        batch=len(columns.item_rows) - uniform,
        uniform=uniform,
        num_items=len(objective.drawn_from(batch.group)),
    )


def _against_sample(
    objective: Objective,
    model: TwoTower,
    batch: Batch,
    columns: Columns,
    *,
    users: Float[Tensor, "batch dim"],
    items: Float[Tensor, "columns dim"],
) -> Float[Tensor, "batch"]:
    """Each positive against negatives that are not its own item, nor its user's: those of the loss, and what was mined
    for it.
    """
    shared = _competing(objective, columns)
    item_rows, owners = columns.item_rows[shared], columns.owners[shared]
    queries, factors = model.as_products(users, items)
    positive = model.own_logits(users, items[columns.own])
    counts = _log_counts(objective, batch, columns)
    in_batch, num_items = int((owners >= 0).sum()), len(objective.drawn_from(batch.group))
    own_q, column_q = (objective.in_batch.log(rows, group=batch.group).exp() for rows in (batch.item_rows, item_rows))

    def losses(part: slice) -> Tensor:
        competing = (batch.item_rows[part, None] != item_rows) & (batch.user_rows[part, None] != owners)
        mined = torch.einsum("ld,lhd->lh", queries[part], factors[columns.hard[part]]) / model.temperature
        mined = (mined - counts.mined[part, None]).masked_fill(columns.hard[part] < 0, -torch.inf)
        negative = queries[part] @ factors[shared].T / model.temperature  # (lines, shared)
        if counts.shared is not None:
            negative = negative - counts.shared[shared]
        else:
            negative = negative - log_expected_counts(
                competing, own_q=own_q[part], column_q=column_q, in_batch=in_batch, num_items=num_items
            )
        negatives = torch.cat([negative.masked_fill(~competing, -torch.inf), mined], dim=1)
        own = positive[part] - counts.own[part]
        return bpr(own, negatives) if isinstance(objective.loss, Bpr) else sampled_softmax(own, negatives)

    return by_chunks(losses, examples=len(users), columns=len(item_rows) + columns.hard.shape[1])


def _competing(objective: Objective, columns: Columns) -> slice:
    """In-batch columns where the loss is in-batch, and those drawn; none where hard ones are alone."""
    if objective.hard is not None and objective.hard.easy_per_hard == 0:
        return slice(0, 0)
    own = int((columns.owners >= 0).sum())
    return slice(0 if isinstance(objective.loss, InBatchSoftmax) else own, len(columns.item_rows))


@dataclass(frozen=True)
class _LogCounts:
    """log of how often a line's sample is expected to hold an item: what its logit is less by. 0: as it comes."""

    own: Float[Tensor, "batch"]
    mined: Float[Tensor, "batch"]
    shared: Float[Tensor, "shared"] | None
    """None: it is for each line to say."""


def _log_counts(objective: Objective, batch: Batch, columns: Columns) -> _LogCounts:
    """Mined items are weighed by their own draws alone, whatever else holds them: then the softmax is the one over all
    items in which those of the mined ranks count twice.
    """
    zero = torch.zeros(len(batch.item_rows))
    mined = torch.log(columns.hard.shape[1] / columns.hard_pool_size.clamp(min=1).float())
    match objective.loss:
        case Bpr() | InBatchSoftmax(log_q="none"):
            return _LogCounts(zero, zero, torch.zeros(len(columns.item_rows)))
        case InBatchSoftmax(log_q="classic") if objective.hard is not None and objective.hard.easy_per_hard > 0:
            shared = _log_q(objective, batch, columns) + math.log(len(columns.item_rows))
            return _LogCounts(shared[columns.own], mined, shared)
        case _:
            return _LogCounts(zero, mined, None)
