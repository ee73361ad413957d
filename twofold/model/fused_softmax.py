"""Fused softmax loss: loss and gradients in one pass, with one chunk of logits in memory."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

GPU_CHUNK_ELEMENTS = 2**28
"""Number of logits in memory at a time on a GPU, where small kernels cost their launch: 1 GB of float32."""
CHUNK_ELEMENTS = 2**21
"""Number of logits in memory at a time: 8 MB of float32, so 512 queries at batch size 4,096. Allocating large matrices
costs more than the products in them (a 4,096 × 4,096 product took 31.5 ms into new memory, 12.6 into a reused buffer).
2^20 to 2^22 were equally fast, smaller chunks slower."""

_MASKED = -1e30
"""Logit of a column that does not compete: its probability is exactly 0, and a row without any other stays finite."""


@dataclass(frozen=True)
class SoftmaxBatch:
    """Queries and the item columns that compete with the own item of each query.

    A column with the own item or the user of a query is no negative of that query; its own column is one of these.
    """

    user_rows: Int[Tensor, "queries"]
    own_rows: Int[Tensor, "queries"]
    """Item row of the query's own item."""
    weight: Float[Tensor, "queries"]
    """Weight of the query's loss in the sum; 1 / number of queries gives a mean. With 0 its item stays a negative."""
    own_shift: Float[Tensor, "queries"]
    """Subtracted from the logit of the query's own item."""
    item_rows: Int[Tensor, "items"]
    owners: Int[Tensor, "items"]
    """User row of the query that each column belongs to; -1 for drawn items."""
    shift: Float[Tensor, "items"]
    """Subtracted from the logit of each column: its log Q, see `twofold.train.negatives`."""


def softmax_sum(
    queries: Float[Tensor, "queries dim"],
    own: Float[Tensor, "queries dim"],
    items: Float[Tensor, "items dim"],
    batch: SoftmaxBatch,
    *,
    product_dtype: torch.dtype = torch.float32,
) -> Float[Tensor, ""]:
    """Returns Σ weight · cross-entropy of each query's own item, without a (queries × items) matrix in memory.

    Logits are inner products minus a shift. `queries` are user vectors divided by the temperature, and `own` are the
    vectors of their own items; `items` are the columns that compete. The temperature comes first and the correction
    after it: log Q estimates the normalizer of the full softmax, which is a sum over logits (Yi et al.,
    *Sampling-bias-corrected neural modeling for large corpus item recommendations*, RecSys 2019, section 3). Q is never
    clipped. No correction is applied when serving.

    The gradients of all vectors are computed in the forward pass, while a chunk of logits is in memory, so that the
    backward pass only scales them; there is no second derivative. Float32 vectors are multiplied in `product_dtype`
    (with bfloat16, equal gradient norms were measured), except with the own item; everything else stays float32.
    Float64 vectors are multiplied in float64.
    """
    total: Tensor = _SoftmaxSum.apply(queries, own, items, batch, product_dtype)  # type: ignore[no-untyped-call]
    return total


def competing_counts(batch: SoftmaxBatch) -> Int[Tensor, "queries"]:
    """Returns how many columns compete for each query: those with neither its own item nor its user.

    >>> zeros, rows = torch.zeros(3), torch.tensor([0, 0, 1])
    >>> batch = SoftmaxBatch(rows, torch.tensor([7, 8, 8]), zeros, zeros, torch.tensor([7, 8, 8]), rows, zeros)
    >>> competing_counts(batch).tolist()
    [1, 0, 1]
    """
    both = torch.cat([batch.own_rows, batch.item_rows]).max().long() + 1  # a tensor: a number would wait for a device
    pairs = (
        (batch.user_rows, batch.owners, 1),
        (batch.own_rows, batch.item_rows, 1),
        (batch.user_rows.long() * both + batch.own_rows, batch.owners.long() * both + batch.item_rows, -1),
    )
    counts = torch.full_like(batch.own_rows, len(batch.item_rows), dtype=torch.int64)
    for rows, all_rows, sign in pairs:
        ordered = all_rows.sort().values
        counts -= sign * (torch.searchsorted(ordered, rows, right=True) - torch.searchsorted(ordered, rows))
    return counts


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
        ctx: Any, queries: Tensor, own: Tensor, items: Tensor, batch: SoftmaxBatch, product: torch.dtype
    ) -> Tensor:
        total, *gradients = _sum_and_gradients(queries, own, items, batch, product_dtype=product)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        queries, own, items = ctx.saved_tensors
        return gradient * queries, gradient * own, gradient * items, None, None


def _sum_and_gradients(
    queries: Tensor, own: Tensor, items: Tensor, batch: SoftmaxBatch, *, product_dtype: torch.dtype
) -> tuple[Tensor, ...]:
    narrow = product_dtype if queries.dtype == torch.float32 else queries.dtype
    factors = items.to(narrow)
    is_cpu = _is_cpu(queries.device)
    size = min(max((CHUNK_ELEMENTS if is_cpu else GPU_CHUNK_ELEMENTS) // len(items), 1), len(queries))
    # Without a narrower type, product and logits are one buffer, and copying one to the other does nothing.
    products = factors.new_empty(size, len(items))
    all_logits = products if narrow == queries.dtype else queries.new_empty(size, len(items))
    query_gradients, item_gradients_t = torch.empty_like(queries), queries.new_zeros(queries.shape[1], len(items))
    part = torch.empty_like(item_gradients_t, dtype=narrow)
    own_logits, misses = (queries * own).sum(dim=1) - batch.own_shift, torch.empty_like(batch.weight)
    all_rows, shift = (batch.owners, batch.item_rows), batch.shift.clamp(max=-_MASKED)
    sorted_rows = [torch.sort(rows) if is_cpu else None for rows in all_rows]
    total = queries.new_zeros(())
    for first in range(0, len(queries), size):
        block = slice(first, min(first + size, len(queries)))
        product, logits = (buffer[: block.stop - first] for buffer in (products, all_logits))
        logits.copy_(torch.mm(queries[block].to(narrow), factors.T, out=product)).sub_(shift)
        for rows, columns, ordered in zip((batch.user_rows, batch.own_rows), all_rows, sorted_rows, strict=True):
            if ordered is None:  # the number of pairs would have to be read from the device
                logits.masked_fill_(rows[block, None] == columns, _MASKED)
            else:
                masked = _equal_positions(rows[block], *ordered, num_columns=len(items))
                logits.view(-1).index_fill_(0, masked, _MASKED)
        highest = logits.amax(dim=1)
        torch.softmax(logits, dim=1, out=logits)
        # The normalizer from the largest probability, which is at least 1 / number of columns: it never underflows.
        log_sum = highest - logits.amax(dim=1).log()
        margin = log_sum - own_logits[block]
        total += (functional.softplus(margin) * batch.weight[block]).sum()
        scale = (batch.weight[block] * torch.sigmoid(margin))[:, None]  # what the columns have of the probability
        misses[block] = scale[:, 0]
        product.copy_(logits)
        query_gradients[block] = (product @ factors - own[block]) * scale
        item_gradients_t += torch.mm((queries[block] * scale).to(narrow).T, product, out=part)
    return total, query_gradients, -misses[:, None] * queries, item_gradients_t.T


def _is_cpu(device: torch.device) -> bool:
    return device.type == "cpu"


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
