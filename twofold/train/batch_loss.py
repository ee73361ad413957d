"""Loss of one batch: encodes users and items and compares them as the objective defines."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from twofold.dataset.batches import Batch, TensorInputs
from twofold.model.encoder import Encoder
from twofold.model.fused_softmax import SoftmaxBatch, softmax_sum
from twofold.model.losses import bce, bpr, by_chunks, regression, sampled_softmax
from twofold.model.multi_tower import Towers, towers_of
from twofold.model.two_tower import TwoTower
from twofold.recipe.train import Bce, Bpr, FullSoftmax, InBatchSoftmax, Regression, SampledSoftmax
from twofold.train.distributed import all_gather_vectors
from twofold.train.negatives import log_expected_counts, log_mixed_probability
from twofold.train.objective import Columns, Objective, draw_columns


def mean_loss(
    objective: Objective, model: Towers, batch: Batch
) -> tuple[Float[Tensor, ""], Float[Tensor, "batch dim"]]:
    """Returns the loss of a batch and the vectors of its items. A rank returns its share of the whole batch's loss."""
    columns, towers = draw_columns(objective, batch), towers_of(model, batch.group)
    users = encode_parts(towers.user, [part.user for part in batch.parts or (batch,)])
    items = encode_parts(towers.item, columns.inputs)
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
    weight = batch.weight / (len(users) * objective.ranks.size * objective.mean_weight)
    match objective.loss:
        case Bce(gamma=gamma):
            losses = bce(model.own_logits(users, items[columns.own]), batch.label, gamma=gamma)
        case Regression(error=error):
            losses = regression(model.own_logits(users, items[columns.own]), batch.target, error=error)
        case FullSoftmax() | InBatchSoftmax(log_q="classic" | "none") if objective.hard_pool is None:
            softmax_batch = SoftmaxBatch(
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
                queries, factors, softmax_batch, temperature=model.temperature, product_dtype=objective.product_dtype
            )
        case InBatchSoftmax() | SampledSoftmax() | Bpr():
            losses = _against_sample(objective, model, batch, columns, users=users, items=items)
        case FullSoftmax():
            raise AssertionError("the full softmax has no hard negatives: all items compete already")
        case _:
            assert_never(objective.loss)
    return (losses * weight).sum()


def _log_q(objective: Objective, batch: Batch, columns: Columns) -> Float[Tensor, "items"]:
    """Returns what the softmax subtracts from the logit of each column: log Q or a multiple of it, or 0."""
    if isinstance(objective.loss, FullSoftmax) and objective.loss.logit_adjustment > 0:
        return -objective.loss.logit_adjustment * objective.in_batch.log(columns.item_rows, group=batch.group)
    if not (isinstance(objective.loss, InBatchSoftmax) and objective.loss.log_q == "classic"):
        return torch.zeros(len(columns.item_rows), device=columns.item_rows.device)
    uniform = int((columns.owners < 0).sum())
    return log_mixed_probability(
        objective.in_batch.log(columns.item_rows, group=batch.group),
        batch=len(columns.item_rows) - uniform,
        uniform=uniform,
        num_items=len(objective.item_pool(batch.group)),
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
    counts = _log_counts(objective, batch, columns)
    in_batch, num_items = int((owners >= 0).sum()), len(objective.item_pool(batch.group))
    own_q, column_q = (objective.in_batch.log(rows, group=batch.group).exp() for rows in (batch.item_rows, item_rows))

    def losses(part: slice) -> Tensor:
        competing = (batch.item_rows[part, None] != item_rows) & (batch.user_rows[part, None] != owners)
        mined = torch.einsum("ld,lhd->lh", queries[part], factors[columns.hard[part]]) / model.temperature
        mined = (mined - counts.mined[part, None]).masked_fill(columns.hard[part] < 0, -torch.inf)
        negative = queries[part] @ factors[shared].T / model.temperature  # (batch, items)
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
    """Returns the shared columns that compete: in-batch and drawn ones, as the loss has; none if all are hard."""
    if objective.hard is not None and objective.hard.easy_per_hard == 0:
        return slice(0, 0)
    own = int((columns.owners >= 0).sum())
    return slice(0 if isinstance(objective.loss, InBatchSoftmax) else own, len(columns.item_rows))


@dataclass(frozen=True)
class _LogCounts:
    """Corrections of the logits: the log of how often an example's sample is expected to hold an item."""

    own: Float[Tensor, "batch"]
    mined: Float[Tensor, "batch"]
    shared: Float[Tensor, "items"] | None
    """`None` means that it differs between examples."""


def _log_counts(objective: Objective, batch: Batch, columns: Columns) -> _LogCounts:
    """Returns the corrections. A hard negative is corrected for its own draws alone, even if another column holds its
    item: the softmax is then the one over all items in which items of the mined ranks count twice.
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


def encode_parts(tower: Encoder, parts: Sequence[TensorInputs]) -> Float[Tensor, "_ dim"]:
    """Encodes the parts of a batch one after another and returns all vectors.

    A single part is encoded as usual. Of several, only the vectors are stored: the backward pass encodes each part
    again, with the same random draws, so the gradient of the whole batch takes the memory of one part (Gao et al.,
    *Scaling deep contrastive learning batch size under memory limited setup*, RepL4NLP 2021, section 3.2). It costs one
    more encoding: about a third of the towers' time.
    """
    if len(parts) == 1:
        vectors: Tensor = tower(parts[0])
        return vectors
    return torch.cat([checkpoint(tower, part, use_reentrant=False) for part in parts])
