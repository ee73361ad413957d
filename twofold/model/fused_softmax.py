"""Fused softmax loss: loss and gradients in one pass, with one chunk of logits in memory."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 2**21
"""Number of logits in memory at a time: 8 MB of float32, so 512 queries at batch size 4,096. Allocating large matrices
costs more than the products in them (a 4,096 × 4,096 product took 31.5 ms into new memory, 12.6 into a reused buffer).
2^20 to 2^22 were equally fast, smaller chunks slower."""

_UNDERFLOW = 1e-30
"""Probability below which digits are lost, or the value is 0."""


@dataclass(frozen=True)
class SoftmaxBatch:
    """Queries, the item columns that compete for them, and the column of each query's own item.

    In a batch, column i is the item of query i; drawn items follow and belong to no query. A column with the item or
    the user of a query is no negative of that query.
    """

    user_rows: Int[Tensor, "queries"]
    weight: Float[Tensor, "queries"]
    """Weight of the query's loss in the sum; 1 / number of queries gives a mean. With 0 its item stays a negative."""
    own: Int[Tensor, "queries"]
    """Column of the query's own item."""
    item_rows: Int[Tensor, "items"]
    owners: Int[Tensor, "items"]
    """User row of the query that each column belongs to; -1 for drawn items."""
    log_q: Float[Tensor, "items"]
    """Log probability that a column of the batch is this item: see `twofold.train.negatives`."""


def softmax_sum(
    user_vectors: Float[Tensor, "queries dim"],
    item_vectors: Float[Tensor, "items dim"],
    batch: SoftmaxBatch,
    *,
    temperature: float,
    product_dtype: torch.dtype = torch.float32,
) -> Float[Tensor, ""]:
    """Returns Σ weight · cross-entropy of each query's own item, without a (queries × items) matrix in memory.

    The logit of column j is s(u, j) / temperature − log Q(j), where Q(j) is the probability that a column is item j (Yi
    et al., *Sampling-bias-corrected neural modeling for large corpus item recommendations*, RecSys 2019, section 3).
    The temperature comes first and the correction after it: log Q estimates the normalizer of the full softmax, which
    is a sum over logits. Q is never clipped. No correction is applied when serving.

    The gradients of both vectors are computed in the forward pass, while a chunk of logits is in memory, so that the
    backward pass only scales them; there is no second derivative. Float32 vectors are multiplied in `product_dtype`
    (with bfloat16, equal gradient norms were measured) and everything else stays float32; float64 vectors are
    multiplied in float64.
    """
    total: Tensor = _SoftmaxSum.apply(user_vectors, item_vectors, batch, temperature, product_dtype)  # type: ignore[no-untyped-call]
    return total


def product_dtype_of(precision: Literal["auto", "float32", "bfloat16"], device: torch.device) -> torch.dtype:
    """Returns the type in which `softmax_sum` multiplies; `auto` is bfloat16 where the device has it in hardware."""
    if precision == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    return torch.float32 if precision == "float32" else torch.bfloat16


def has_fast_bfloat16(device: torch.device) -> bool:
    """Returns whether the device multiplies bfloat16 in hardware; an emulated product is slower than a float32 one."""
    match device.type:
        case "cuda":
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        case "cpu":
            return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
        case _:
            return False


class _SoftmaxSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, users: Tensor, items: Tensor, batch: SoftmaxBatch, temperature: float, product: torch.dtype
    ) -> Tensor:
        total, user_gradients, item_gradients = _sum_and_gradients(
            users, items, batch, temperature, product_dtype=product
        )
        ctx.save_for_backward(user_gradients, item_gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        user_gradients, item_gradients = ctx.saved_tensors
        return gradient * user_gradients, gradient * item_gradients, None, None, None


def _sum_and_gradients(
    users: Tensor, items: Tensor, batch: SoftmaxBatch, temperature: float, *, product_dtype: torch.dtype
) -> tuple[Tensor, ...]:
    narrow = product_dtype if users.dtype == torch.float32 else users.dtype
    factors = items.to(narrow)
    size = min(max(CHUNK_ELEMENTS // len(items), 1), len(users))
    # Without a narrower type, product and logits are one buffer, and copying one to the other does nothing.
    products = factors.new_empty(size, len(items))
    all_logits = products if narrow == users.dtype else users.new_empty(size, len(items))
    user_gradients, item_gradients_t = torch.empty_like(users), users.new_zeros(users.shape[1], len(items))
    part = torch.empty_like(item_gradients_t, dtype=narrow)
    own_items = batch.item_rows[batch.own]
    sorted_rows = torch.sort(batch.owners), torch.sort(batch.item_rows)
    total = users.new_zeros(())
    for first in range(0, len(users), size):
        block = slice(first, min(first + size, len(users)))
        product, logits = (buffer[: block.stop - first] for buffer in (products, all_logits))
        queries, weight = users[block], batch.weight[block]
        logits.copy_(torch.mm((queries / temperature).to(narrow), factors.T, out=product)).sub_(batch.log_q)
        positions = torch.arange(len(queries), device=users.device) * len(items) + batch.own[block]
        flat = logits.view(-1)
        own = flat[positions]
        for rows, (ordered, order) in zip((batch.user_rows, own_items), sorted_rows, strict=True):
            flat.index_fill_(0, _equal_positions(rows[block], ordered, order, num_columns=len(items)), -torch.inf)
        flat[positions] = own
        torch.softmax(logits, dim=1, out=logits)
        probability = flat[positions]
        losses = -probability.log()
        if len(far := (probability < _UNDERFLOW).nonzero()[:, 0]):
            # For these the normalizer is computed from the query's largest probability, which never underflows.
            most, column = logits[far].max(dim=1)
            highest = (queries[far] / temperature * items[column]).sum(dim=1) - batch.log_q[column]
            losses[far] = highest - most.log() - own[far]
        total += (losses * weight).sum()
        flat[positions] -= 1
        product.copy_(logits)
        scale = (weight / temperature)[:, None]
        user_gradients[block] = (product @ factors) * scale
        item_gradients_t += torch.mm((queries * scale).to(narrow).T, product, out=part)
    return total, user_gradients, item_gradients_t.T


def _equal_positions(rows: Tensor, ordered: Tensor, order: Tensor, *, num_columns: int) -> Int[Tensor, "pairs"]:
    """Returns where `rows[query] == all_rows[column]`, as query · num_columns + column.

    `ordered` and `order` are the result of sorting `all_rows`. The pairs are few, a matrix of comparisons is large: 5
    against 40 ms at batch size 4,096 with popular items.
    """
    first = torch.searchsorted(ordered, rows)
    counts = torch.searchsorted(ordered, rows, right=True) - first
    query = torch.repeat_interleave(counts)
    before = counts.cumsum(0) - counts
    return query * num_columns + order[torch.arange(len(query), device=rows.device) + (first - before)[query]]
