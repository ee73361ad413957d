"""What a step lowers: the loss that a recipe asks for, with all that is fitted for it, over one batch."""

from dataclasses import dataclass
from typing import assert_never

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from twofold.dataset.arrays import Dataset
from twofold.dataset.batches import Batch, TensorInputs
from twofold.dataset.order import Order
from twofold.errors import DataError
from twofold.model.losses import bce, bpr, by_chunks, regression, sampled_softmax
from twofold.model.softmax import Lines, softmax_sum
from twofold.model.two_tower import TwoTower
from twofold.recipe.features import SequenceFeature
from twofold.recipe.training import Bce, Bpr, FullSoftmax, InBatchSoftmax, Loss, Regression, SampledSoftmax, Train
from twofold.train.groups import group_lines
from twofold.train.negatives import (
    InBatchProbability,
    count_in_batch,
    drawn_inputs,
    log_expected_counts,
    log_mixed_probability,
)


@dataclass(frozen=True)
class Objective:
    """A loss over the lines of the training window that it learns from."""

    loss: Loss
    dataset: Dataset
    order: Order
    in_batch: InBatchProbability
    mean_weight: float

    @property
    def lines(self) -> Int64[np.ndarray, "lines"]:
        """Of the training window, those that it learns from."""
        return self.order.lines

    @property
    def num_items(self) -> int:
        """Items of the training window: those that are drawn. Later ones are not known yet."""
        return self.dataset.items.num_known

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


def build_objective(settings: Train, dataset: Dataset) -> Objective:
    """Chooses the lines, groups them and counts on them; DataError where there is nothing to learn."""
    rows = dataset.rows["train"]
    lines = _lines(settings.loss, dataset)
    groups = group_lines(dataset, settings.group_by, lines, batch_size=settings.batch_size)
    in_batch = count_in_batch(rows.item_rows[lines], groups, num_items=len(dataset.items))
    mean_weight = float(rows.weight[lines].mean(dtype=np.float64))
    if not mean_weight > 0:
        raise DataError(
            f"the mean weight of the {len(lines):,} rows to learn from is {mean_weight:g}: nothing would be learned. "
            f"Check prepare.weight."
        )
    together = max((f.last for f in dataset.features.features.user if isinstance(f, SequenceFeature)), default=1)
    order = Order(lines, settings.batch_size, groups, together, np.asarray(rows.user_rows[lines]))
    return Objective(settings.loss, dataset, order, in_batch, mean_weight)


def _lines(loss: Loss, dataset: Dataset) -> Int64[np.ndarray, "lines"]:
    rows = dataset.rows["train"]
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
    """The items that a batch is taught with: what the item tower reads of them, and whose they are."""

    inputs: TensorInputs
    item_rows: Int64[Tensor, "columns"]
    owners: Int64[Tensor, "columns"]
    """The user row of the line whose item it is; -1: it was drawn."""
    own: Int64[Tensor, "batch"]
    """The column of each line's own item."""


def draw_columns(objective: Objective, batch: Batch) -> Columns:
    """The batch's own items, then those that are drawn; all items of the training window for the full softmax."""
    if isinstance(objective.loss, FullSoftmax):
        everything = torch.arange(objective.num_items)
        inputs = drawn_inputs(objective.dataset, batch, everything)
        return Columns(inputs, everything, torch.full_like(everything, -1), batch.item_rows)
    inputs, drawn = batch.item, torch.randint(objective.num_items, (objective.num_drawn,))
    if len(drawn):
        more = drawn_inputs(objective.dataset, batch, drawn)
        inputs = {name: torch.cat([values, more[name]]) for name, values in inputs.items()}
    return Columns(
        inputs,
        torch.cat([batch.item_rows, drawn]),
        torch.cat([batch.user_rows, torch.full_like(drawn, -1)]),
        torch.arange(len(batch.item_rows)),
    )


def mean_loss(
    objective: Objective, model: TwoTower, batch: Batch
) -> tuple[Float[Tensor, ""], Float[Tensor, "batch dim"]]:
    """The loss of a batch, and the vectors of its items."""
    columns = draw_columns(objective, batch)
    users, items = model.user(batch.user), model.item(columns.inputs)
    return loss_of_vectors(objective, model, batch, columns, users=users, items=items), items[columns.own]


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
    weight = batch.weight / (len(users) * objective.mean_weight)
    match objective.loss:
        case Bce(gamma=gamma):
            losses = bce(model.own_logits(users, items[columns.own]), batch.label, gamma=gamma)
        case Regression(error=error):
            losses = regression(model.own_logits(users, items[columns.own]), batch.target, error=error)
        case FullSoftmax() | InBatchSoftmax(log_q="classic" | "none"):
            lines = Lines(
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
            return softmax_sum(queries, factors, lines, temperature=model.temperature)
        case InBatchSoftmax() | SampledSoftmax() | Bpr():
            losses = _against_sample(objective, model, batch, columns, users=users, items=items)
        case _:
            assert_never(objective.loss)
    return (losses * weight).sum()


def _log_q(objective: Objective, batch: Batch, columns: Columns) -> Float[Tensor, "columns"]:
    """What the softmax subtracts: of its own columns and those drawn alike, or nothing."""
    if not (isinstance(objective.loss, InBatchSoftmax) and objective.loss.log_q == "classic"):
        return torch.zeros(len(columns.item_rows))
    uniform = int((columns.owners < 0).sum())
    return log_mixed_probability(
        objective.in_batch.log(columns.item_rows, group=batch.group),
        batch=len(columns.item_rows) - uniform,
        uniform=uniform,
        num_items=objective.num_items,
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
    """Each positive against negatives that are not its own item; in-batch ones take part if the loss is in-batch."""
    positive = model.own_logits(users, items[columns.own])
    own_columns = int((columns.owners >= 0).sum())
    in_batch = own_columns if isinstance(objective.loss, InBatchSoftmax) else 0
    competitors = slice(own_columns - in_batch, None)
    queries, factors = model.as_products(users, items[competitors])
    item_rows, owners = columns.item_rows[competitors], columns.owners[competitors]
    column_q = objective.in_batch.log(item_rows, group=batch.group).exp()
    own_q = objective.in_batch.log(batch.item_rows, group=batch.group).exp()

    def losses(part: slice) -> Tensor:
        competing = (batch.item_rows[part, None] != item_rows) & (batch.user_rows[part, None] != owners)
        negative = queries[part] @ factors.T / model.temperature  # (lines, columns)
        if isinstance(objective.loss, Bpr):
            return bpr(positive[part], negative.masked_fill(~competing, -torch.inf))
        expected = log_expected_counts(
            competing,
            own_q=own_q[part],
            column_q=column_q,
            in_batch=in_batch,
            num_items=objective.num_items,
        )
        return sampled_softmax(positive[part], (negative - expected).masked_fill(~competing, -torch.inf))

    return by_chunks(losses, lines=len(users), columns=len(item_rows))
