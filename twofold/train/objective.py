"""What a step lowers: the loss that a recipe asks for, with all that is fitted for it, over one batch."""

from dataclasses import dataclass
from typing import assert_never

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from twofold.dataset.arrays import Dataset
from twofold.dataset.batches import Batch
from twofold.errors import DataError
from twofold.model.losses import bce, bpr, by_chunks, regression, sampled_softmax
from twofold.model.softmax import Lines, in_batch_softmax_sum
from twofold.model.two_tower import TwoTower
from twofold.recipe.training import Bce, Bpr, FullSoftmax, InBatchSoftmax, Loss, Regression, SampledSoftmax
from twofold.train.negatives import log_expected_counts, log_in_batch_probability, log_mixed_probability, with_drawn


@dataclass(frozen=True)
class Objective:
    """A loss over the lines of the training window that it learns from."""

    loss: Loss
    dataset: Dataset
    lines: Int64[np.ndarray, "lines"]
    log_q: Float[Tensor, "items"]
    """Of a position of a batch; see `log_in_batch_probability`."""
    mean_weight: float

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


def build_objective(loss: Loss, dataset: Dataset) -> Objective:
    """Chooses the lines and counts on them; DataError where there is nothing to learn."""
    rows = dataset.rows["train"]
    lines = _lines(loss, dataset)
    log_q = torch.from_numpy(log_in_batch_probability(rows.item_rows[lines], len(dataset.items)))
    mean_weight = float(rows.weight[lines].mean(dtype=np.float64))
    if not mean_weight > 0:
        raise DataError(
            f"the mean weight of the {len(lines):,} rows to learn from is {mean_weight:g}: nothing would be learned. "
            f"Check prepare.weight."
        )
    return Objective(loss, dataset, lines, log_q, mean_weight)


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


def mean_loss(
    objective: Objective, model: TwoTower, batch: Batch
) -> tuple[Float[Tensor, ""], Float[Tensor, "batch dim"]]:
    """The loss of a batch, and the vectors of its items. A line counts as its weight over the mean of all."""
    drawn = _drawn(objective)
    users, items = model.user(batch.user), model.item(with_drawn(objective.dataset, batch, drawn))
    own = items[: len(users)]
    weight = batch.weight / (len(users) * objective.mean_weight)
    match objective.loss:
        case Bce(gamma=gamma):
            losses = bce(model.own_logits(users, own), batch.label, gamma=gamma)
        case Regression(error=error):
            losses = regression(model.own_logits(users, own), batch.target, error=error)
        case InBatchSoftmax(log_q="classic" | "none"):
            columns = torch.cat([batch.item_rows, drawn])
            lines = Lines(batch.user_rows, columns, _log_q(objective, columns, batch=len(users)), weight)
            queries, factors = model.as_products(users, items)
            if model.score == "negative_distance":  # a difference of large squares, which bfloat16 products would lose
                queries, factors = queries.double(), factors.double()
            return in_batch_softmax_sum(queries, factors, lines, temperature=model.temperature), own
        case InBatchSoftmax() | SampledSoftmax() | FullSoftmax() | Bpr():
            losses = _against_sample(objective, model, batch, users, items=items, drawn=drawn)
        case _:
            assert_never(objective.loss)
    return (losses * weight).sum(), own


def _drawn(objective: Objective) -> Int64[Tensor, "drawn"]:
    """Rows of the items that are drawn for a batch."""
    if isinstance(objective.loss, FullSoftmax):
        return torch.arange(objective.num_items)
    return torch.randint(objective.num_items, (objective.num_drawn,))


def _log_q(objective: Objective, columns: Int64[Tensor, "columns"], *, batch: int) -> Float[Tensor, "columns"]:
    """What the in-batch softmax subtracts: of its own columns and those drawn alike, or nothing."""
    log_q = log_mixed_probability(
        objective.log_q[columns], batch=batch, uniform=len(columns) - batch, num_items=objective.num_items
    )
    is_corrected = isinstance(objective.loss, InBatchSoftmax) and objective.loss.log_q == "classic"
    return log_q if is_corrected else torch.zeros_like(log_q)


def _against_sample(
    objective: Objective,
    model: TwoTower,
    batch: Batch,
    users: Float[Tensor, "batch dim"],
    *,
    items: Float[Tensor, "columns dim"],
    drawn: Int64[Tensor, "drawn"],
) -> Float[Tensor, "batch"]:
    """Each positive against negatives that are not its own item; in-batch ones take part if the loss is in-batch."""
    in_batch = len(users) if isinstance(objective.loss, InBatchSoftmax) else 0
    positive = model.own_logits(users, items[: len(users)])
    queries, factors = model.as_products(users, items[len(users) - in_batch :])
    columns = torch.cat([batch.item_rows[:in_batch], drawn])
    probability = objective.log_q.exp()

    def losses(part: slice) -> Tensor:
        competing = batch.item_rows[part, None] != columns
        competing[:, :in_batch] &= batch.user_rows[part, None] != batch.user_rows[:in_batch]
        negative = queries[part] @ factors.T / model.temperature  # (lines, columns)
        if isinstance(objective.loss, Bpr):
            return bpr(positive[part], negative.masked_fill(~competing, -torch.inf))
        expected = log_expected_counts(
            competing,
            own_q=probability[batch.item_rows[part]],
            column_q=probability[columns],
            in_batch=in_batch,
            num_items=objective.num_items,
        )
        return sampled_softmax(positive[part], (negative - expected).masked_fill(~competing, -torch.inf))

    return by_chunks(losses, lines=len(users), columns=len(columns))
