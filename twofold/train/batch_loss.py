"""Loss of one batch: encodes users and items and compares them as the objective defines."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from twofold.dataset.batches import Batch, TensorInputs
from twofold.model.encoder import Encoder
from twofold.model.fused_softmax import SoftmaxBatch, competing_counts, softmax_sum
from twofold.model.losses import bce, bpr, by_chunks, regression, sampled_softmax
from twofold.model.multi_tower import Towers, towers_of
from twofold.model.two_tower import TwoTower
from twofold.recipe.train import Bce, Bpr, FullSoftmax, InBatchSoftmax, Regression, SampledSoftmax
from twofold.train.device import reduced_precision
from twofold.train.distributed import all_gather_vectors
from twofold.train.negatives import log_mixed_probability
from twofold.train.objective import Columns, Objective, draw_columns


def mean_loss(
    objective: Objective, model: Towers, batch: Batch
) -> tuple[Float[Tensor, ""], Float[Tensor, "batch dim"]]:
    """Returns the loss of a batch and the vectors of its items. A rank returns its share of the whole batch's loss."""
    columns, towers = draw_columns(objective, batch), towers_of(model, batch.group)
    towers.limit_temperature()
    with reduced_precision(objective.ranks.device, objective.product_dtype):
        users = encode_parts(towers.user, [part.user for part in batch.parts or (batch,)]).float()
        items = encode_parts(towers.item, columns.inputs).float()
    if objective.ranks.size > 1:
        items = all_gather_vectors(objective.ranks, items)[columns.positions]
    return loss_of_vectors(objective, towers, batch, columns, users=users, items=items), items[columns.own]


def loss_of_vectors(
    objective: Objective,
    model: TwoTower,
    batch: Batch,
    columns: Columns,
    *,
    users: Float[Tensor, "batch dim"],
    items: Float[Tensor, "_ dim"],
) -> Float[Tensor, ""]:
    """Returns the mean loss of the examples, each weighted by its weight over the mean weight of all."""
    match objective.loss:
        case Bce(gamma=gamma):
            losses = bce(model.own_logits(users, items[columns.own]), batch.label, gamma=gamma)
        case Regression(error=error):
            losses = regression(model.own_logits(users, items[columns.own]), batch.target, error=error)
        case InBatchSoftmax() | SampledSoftmax() | FullSoftmax() if objective.hard_pool is None:
            return _fused_softmax(objective, model, batch, columns, users=users, items=items)
        case InBatchSoftmax() | SampledSoftmax() | Bpr():
            losses = _against_sample(objective, model, batch, columns, users=users, items=items)
        case FullSoftmax():
            raise AssertionError("the full softmax has no hard negatives: all items compete already")
        case _:
            assert_never(objective.loss)
    return (losses * _weights(objective, batch)).sum()


def _weights(objective: Objective, batch: Batch) -> Float[Tensor, "batch"]:
    """Returns what the loss of each example is multiplied by, so that the sum over all ranks is the weighted mean."""
    return batch.weight / (len(batch.weight) * objective.ranks.size * objective.mean_weight)


def _fused_softmax(
    objective: Objective,
    model: TwoTower,
    batch: Batch,
    columns: Columns,
    *,
    users: Float[Tensor, "batch dim"],
    items: Float[Tensor, "_ dim"],
) -> Float[Tensor, ""]:
    queries, factors = model.as_products(users, items)
    if model.score == "negative_distance":  # a difference of large squares, which bfloat16 products would lose
        queries, factors = queries.double(), factors.double()
    shared = _competing(objective, columns)
    shifts = _shifts(objective, batch, columns, shared)
    return softmax_sum(
        queries / model.temperature,
        factors[columns.own],
        factors[shared],
        SoftmaxBatch(
            batch.user_rows,
            batch.item_rows,
            _weights(objective, batch),
            shifts.own,
            columns.item_rows[shared],
            columns.owners[shared],
            shifts.shared,
        ),
        product_dtype=objective.product_dtype,
    )


def _against_sample(
    objective: Objective,
    model: TwoTower,
    batch: Batch,
    columns: Columns,
    *,
    users: Float[Tensor, "batch dim"],
    items: Float[Tensor, "_ dim"],
) -> Float[Tensor, "batch"]:
    """Returns the loss of each positive against the loss's negatives and its hard negatives. Neither its own item nor
    items of its user compete.
    """
    shared = _competing(objective, columns)
    item_rows, owners = columns.item_rows[shared], columns.owners[shared]
    queries, factors = model.as_products(users, items)
    positive = model.own_logits(users, items[columns.own])
    shifts = _shifts(objective, batch, columns, shared)

    def losses(part: slice) -> Tensor:
        competing = (batch.item_rows[part, None] != item_rows) & (batch.user_rows[part, None] != owners)
        mined = torch.einsum("ld,lhd->lh", queries[part], factors[columns.hard[part]]) / model.temperature
        mined = (mined - shifts.mined[part, None]).masked_fill(columns.hard[part] < 0, -torch.inf)
        negative = queries[part] @ factors[shared].T / model.temperature - shifts.shared  # (batch, items)
        negatives = torch.cat([negative.masked_fill(~competing, -torch.inf), mined], dim=1)
        own = positive[part] - shifts.own[part]
        return bpr(own, negatives) if isinstance(objective.loss, Bpr) else sampled_softmax(own, negatives)

    return by_chunks(losses, examples=len(users), columns=len(item_rows) + columns.hard.shape[1])


def _competing(objective: Objective, columns: Columns) -> slice:
    """Returns the shared columns that compete: in-batch and drawn ones, as the loss has; none if all are hard."""
    if objective.hard is not None and objective.hard.easy_per_hard == 0:
        return slice(0, 0)
    has_own = isinstance(objective.loss, InBatchSoftmax | FullSoftmax)
    return slice(0 if has_own else columns.num_in_batch, len(columns.item_rows))


@dataclass(frozen=True)
class _Shifts:
    """Corrections that are subtracted from the logits; equal shifts of all logits of an example change nothing."""

    own: Float[Tensor, "batch"]
    shared: Float[Tensor, "items"]
    mined: Float[Tensor, "batch"]


def _shifts(objective: Objective, batch: Batch, columns: Columns, shared: slice) -> _Shifts:
    """Returns the corrections of the loss.

    `classic` subtracts log Q from every logit, the own one included. `corrected` and sampled negatives subtract the log
    of how often a negative is expected in the example's sample, n · Q(j) / (1 − Q(own)) for n competing columns, and
    nothing from the own logit (Khrylchenko et al., *Correcting the LogQ correction*, RecSys 2025, section 3): here
    log Q(j) from the columns, and the rest, which is equal for all of them, is added to the own logit. A hard negative
    is corrected for its own draws alone, even if another column holds its item: the softmax is then the one over all
    items in which items of the mined ranks count twice.
    """
    item_rows, zero = columns.item_rows[shared], torch.zeros(len(batch.item_rows), device=columns.item_rows.device)
    mined = torch.log(columns.hard.shape[1] / columns.hard_pool_size.clamp(min=1).float())
    match objective.loss:
        case FullSoftmax(logit_adjustment=adjustment) if adjustment > 0:
            assert objective.log_share is not None
            own, column = (-adjustment * objective.log_share[rows.long()] for rows in (batch.item_rows, item_rows))
            return _Shifts(own, column, mined)
        case Bpr() | FullSoftmax() | InBatchSoftmax(log_q="none"):
            return _Shifts(zero, zero.new_zeros(len(item_rows)), torch.zeros_like(mined))
        case _ if len(item_rows) == 0:
            return _Shifts(zero, zero[:0], mined)
    own, column = (_log_q(objective, rows, columns, group=batch.group) for rows in (batch.item_rows, item_rows))
    if isinstance(objective.loss, InBatchSoftmax) and objective.loss.log_q == "classic":
        return _Shifts(own, column, mined - math.log(len(item_rows)))
    counted = SoftmaxBatch(batch.user_rows, batch.item_rows, zero, zero, item_rows, columns.owners[shared], column)
    others = (1 - own.exp()).clamp(min=torch.finfo(own.dtype).tiny)
    log_count = torch.log(competing_counts(counted).clamp(min=1) / others)
    return _Shifts(-log_count, column, mined - log_count)


def _log_q(objective: Objective, item_rows: Int64[Tensor, "_"], columns: Columns, *, group: int) -> Float[Tensor, "_"]:
    """Returns log Q, the log probability that a competing column of the batch holds the item."""
    if not isinstance(objective.loss, InBatchSoftmax):
        return torch.full(item_rows.shape, -math.log(columns.pool_size), device=item_rows.device)
    return log_mixed_probability(
        objective.in_batch.log(item_rows, group=group),
        batch=columns.num_in_batch,
        uniform=len(columns.item_rows) - columns.num_in_batch,
        num_items=columns.pool_size,
    )


def encode_parts(tower: Encoder, parts: Sequence[TensorInputs]) -> Float[Tensor, "_ dim"]:
    """Encodes the parts of a batch one after another and returns all vectors.

    A single part is encoded as usual. Of several, only the vectors are stored: the backward pass encodes each part
    again, with the same random draws, so the gradient of the whole batch takes the memory of one part (Gao et al.,
    *Scaling deep contrastive learning batch size under memory limited setup*, RepL4NLP 2021, section 3.2). It costs one
    more encoding: about a third of the towers' time.
    """
    if len(parts) == 1:
        return tower(parts[0])
    return torch.cat([checkpoint(tower, part, use_reentrant=False) for part in parts])
