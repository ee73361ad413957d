"""The softmax at the machine's speed: loss and gradients in one pass, in the memory of one block of logits."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 2**21
"""Logits in memory at a time: 8 MB of float32, so 512 lines at batch 4,096. Fresh large matrices cost more than the
products in them (a 4,096 × 4,096 product took 31.5 ms into new memory, 12.6 into a reused buffer); 2^20 to 2^22
measured alike, fewer slower."""

_UNDERFLOW = 1e-30
"""A probability below it has lost digits, or is 0."""


@dataclass(frozen=True)
class Lines:
    """Who asks, what competes for it, and which of that is each query's own.

    In a batch, column i is the item of query i; items that are drawn follow, and belong to nobody. A column does not
    compete for a query whose item, or whose user, it shares: see `losses.collisions`.
    """

    user_rows: Int[Tensor, "queries"]
    weight: Float[Tensor, "queries"]
    """Of the query's loss in the sum: 1 / number of queries makes it a mean. With 0 its item is a negative still."""
    own: Int[Tensor, "queries"]
    """The column that holds the query's item."""
    item_rows: Int[Tensor, "columns"]
    owners: Int[Tensor, "columns"]
    """User rows; -1: nobody's."""
    log_q: Float[Tensor, "columns"]
    """How likely a place of the batch holds the item: see `twofold.train.negatives`."""


def softmax_sum(
    user_vectors: Float[Tensor, "queries dim"],
    item_vectors: Float[Tensor, "columns dim"],
    lines: Lines,
    *,
    temperature: float,
    product_dtype: torch.dtype = torch.float32,
) -> Float[Tensor, ""]:
    """Σ weight · loss of `losses.in_batch_softmax`, `losses.collisions` masked; holds no (queries × columns) matrix.

    The gradient of both vectors is made in the forward pass while a block of logits is at hand, so the backward pass
    only scales it, and there is no second derivative. Float32 vectors are multiplied in `product_dtype` (with bfloat16
    equal gradient norms were measured) and everything else stays float32; float64 vectors are multiplied in float64.
    """
    total: Tensor = _SoftmaxSum.apply(user_vectors, item_vectors, lines, temperature, product_dtype)  # type: ignore[no-untyped-call]
    return total


def product_dtype_of(precision: Literal["auto", "float32", "bfloat16"], device: torch.device) -> torch.dtype:
    """Returns the type in which `softmax_sum` multiplies; `auto` is bfloat16 where the device has it in hardware."""
    if precision == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    return torch.float32 if precision == "float32" else torch.bfloat16


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware; an emulated product is slower than a float32 one."""
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
        ctx: Any, users: Tensor, items: Tensor, lines: Lines, temperature: float, product: torch.dtype
    ) -> Tensor:
        total, of_users, of_items = _sum_and_gradients(users, items, lines, temperature, product_dtype=product)
        ctx.save_for_backward(of_users, of_items)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        of_users, of_items = ctx.saved_tensors
        return gradient * of_users, gradient * of_items, None, None, None


def _sum_and_gradients(
    users: Tensor, items: Tensor, lines: Lines, temperature: float, *, product_dtype: torch.dtype
) -> tuple[Tensor, ...]:
    narrow = product_dtype if users.dtype == torch.float32 else users.dtype
    factors = items.to(narrow)
    size = min(max(BLOCK // len(items), 1), len(users))
    # Where nothing is narrowed, product and logits are one buffer, and copying one to the other does nothing.
    products = factors.new_empty(size, len(items))
    all_logits = products if narrow == users.dtype else users.new_empty(size, len(items))
    of_users, of_items_t = torch.empty_like(users), users.new_zeros(users.shape[1], len(items))
    part = torch.empty_like(of_items_t, dtype=narrow)
    own_items = lines.item_rows[lines.own]
    sorted_rows = torch.sort(lines.owners), torch.sort(lines.item_rows)
    total = users.new_zeros(())
    for first in range(0, len(users), size):
        block = slice(first, min(first + size, len(users)))
        product, logits = (buffer[: block.stop - first] for buffer in (products, all_logits))
        queries, weight = users[block], lines.weight[block]
        logits.copy_(torch.mm((queries / temperature).to(narrow), factors.T, out=product)).sub_(lines.log_q)
        places = torch.arange(len(queries), device=users.device) * len(items) + lines.own[block]
        flat = logits.view(-1)
        own = flat[places]
        for rows, (ordered, order) in zip((lines.user_rows, own_items), sorted_rows, strict=True):
            flat.index_fill_(0, _equal_places(rows[block], ordered, order, width=len(items)), -torch.inf)
        flat[places] = own
        torch.softmax(logits, dim=1, out=logits)
        chance = flat[places]
        losses = -chance.log()
        if len(far := (chance < _UNDERFLOW).nonzero()[:, 0]):
            # There the normaliser comes from the line's largest probability, which never underflows.
            most, column = logits[far].max(dim=1)
            highest = (queries[far] / temperature * items[column]).sum(dim=1) - lines.log_q[column]
            losses[far] = highest - most.log() - own[far]
        total += (losses * weight).sum()
        flat[places] -= 1
        product.copy_(logits)
        scale = (weight / temperature)[:, None]
        of_users[block] = (product @ factors) * scale
        of_items_t += torch.mm((queries * scale).to(narrow).T, product, out=part)
    return total, of_users, of_items_t.T


def _equal_places(rows: Tensor, ordered: Tensor, order: Tensor, *, width: int) -> Int[Tensor, "pairs"]:
    """Where `rows[line] == all_rows[column]`, as line · width + column; `ordered` and `order` are `all_rows` sorted.

    Pairs are few where a matrix of comparisons is large: 5 ms against 40 at batch 4,096 with popular items.
    """
    first = torch.searchsorted(ordered, rows)
    counts = torch.searchsorted(ordered, rows, right=True) - first
    line = torch.repeat_interleave(counts)
    before = counts.cumsum(0) - counts
    return line * width + order[torch.arange(len(line), device=rows.device) + (first - before)[line]]
