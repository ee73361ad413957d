"""The causal sequence encoder: what a user did in order → a vector after every step of it.

A transformer with pre-normalisation (Zhang & Sennrich, *Root mean square layer normalization*, NeurIPS 2019), rotary
positions (Su et al., *RoFormer*, 2021), and gates on the attention's output (Zhai et al., *Actions speak louder than
words*, HSTU, ICML 2024) and in the feed-forward part (Shazeer, *GLU variants improve transformer*, 2020).

Sequences are padded on the right: a causal position never sees what follows it, so padding needs no mask, and one pass
gives what the user asked with at every moment (Kang & McAuley, *Self-attentive sequential recommendation*, ICDM 2018).
Rotary positions know distances alone, so a sequence cut from the middle of a history means the same as a whole one.

A timed encoder also knows how long ago each event was when a position was asked, which is when the next event came:
every head of every layer adds a learnt number for that time, by buckets of its logarithm (HSTU, section 3.2).
"""

from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

WIDER = 2
"""Width of the feed-forward part over that of the vectors."""
SLOWEST = 10_000.0
"""Of the rotary angles: the period of the slowest, in steps, over 2π."""
TIMES: Final = 69
"""Buckets of times up to 2³¹ seconds, each 1.4 times as long as the one before (in HSTU's published code 1.35 times);
and one of the start vector.
"""


class SequenceEncoder(nn.Module):
    """A start vector and `depth` causal layers, over vectors in the order of their events."""

    cosines: Tensor
    sines: Tensor

    def __init__(
        self, dim: int, *, length: int, depth: int, heads: int, dropout: float, is_timed: bool = False
    ) -> None:
        """`length` is that of the longest sequence; each head's width, dim / heads, must be even."""
        super().__init__()
        self.start = nn.Parameter(torch.randn(dim) * 0.1)
        self.layers = nn.ModuleList(_Layer(dim, heads=heads, dropout=dropout, is_timed=is_timed) for _ in range(depth))
        self.norm = nn.RMSNorm(dim)
        self.dropout = nn.Dropout(dropout)
        pairs = dim // heads // 2
        angles = torch.arange(1 + length)[:, None] / SLOWEST ** (torch.arange(pairs) / pairs)
        self.register_buffer("cosines", angles.cos(), persistent=False)
        self.register_buffer("sines", angles.sin(), persistent=False)

    def forward(
        self, events: Float[Tensor, "sequences length dim"], ages: Int[Tensor, "sequences length"] | None = None
    ) -> Float[Tensor, "sequences length+1 dim"]:
        """Position p has read the first p events, padding on the right.

        `ages`, of a timed encoder, are the seconds from each event until the last position is asked; 0 where padding.
        """
        start = self.start.expand(events.shape[0], 1, -1)  # len() would be a constant to the exporter
        vectors = self.dropout(torch.cat([start, events], dim=1))
        length = vectors.shape[1]
        buckets = None if ages is None else self._buckets(ages)
        for layer in self.layers:
            vectors = layer(vectors, self.cosines[:length], self.sines[:length], buckets)
        read: Tensor = self.norm(vectors)
        return read

    def _buckets(self, ages: Int[Tensor, "sequences length"]) -> Int[Tensor, "sequences length+1 length+1"]:
        """Of the time that had passed, when the position was asked, since each event; 0 is of the start vector."""
        asked = functional.pad(ages, (0, 1))  # position p is asked when event p + 1 comes, the last now
        passed = (ages[:, None, :] - asked[:, :, None]).clamp(min=0)
        # In float64 no whole second, and a half, comes near a bucket's edge: what is served lies in the bucket that was
        # trained, whoever takes the logarithm. It is no log2, whose factor the exporter rounds to float32. A search in
        # a table of edges was exact too, and four times as slow to serve.
        buckets = (torch.log(passed.double() + 0.5) * 3).floor().long() + 4
        return functional.pad(buckets, (1, 0))


class _Layer(nn.Module):
    def __init__(self, dim: int, *, heads: int, dropout: float, is_timed: bool) -> None:
        super().__init__()
        self.heads = heads
        self.by_time = nn.Parameter(torch.zeros(heads, TIMES)) if is_timed else None
        self.before_attention = nn.RMSNorm(dim)
        self.attend = nn.Linear(dim, 4 * dim, bias=False)  # queries, keys, values and the gate in one product
        self.attended = nn.Linear(dim, dim, bias=False)
        self.before_feed = nn.RMSNorm(dim)
        self.feed = nn.Linear(dim, 2 * WIDER * dim, bias=False)
        self.fed = nn.Linear(WIDER * dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        vectors: Float[Tensor, "sequences length dim"],
        cosines: Float[Tensor, "length pairs"],
        sines: Float[Tensor, "length pairs"],
        buckets: Int[Tensor, "sequences length length"] | None = None,
    ) -> Float[Tensor, "sequences length dim"]:
        *read, gate = self.attend(self.before_attention(vectors)).chunk(4, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in read)
        query, key = (_rotated(part, cosines, sines) for part in (query, key))
        bias = None if self.by_time is None or buckets is None else _causal(self.by_time, buckets)
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, is_causal=bias is None)
        seen = seen.transpose(1, 2).flatten(start_dim=2) * functional.silu(gate)
        vectors = vectors + self.dropout(self.attended(seen))
        gate, values = self.feed(self.before_feed(vectors)).chunk(2, dim=-1)
        fed: Tensor = self.dropout(self.fed(functional.silu(gate) * values))
        return vectors + fed


def _causal(
    by_time: Float[Tensor, "heads buckets"], buckets: Int[Tensor, "sequences length length"]
) -> Float[Tensor, "sequences heads length length"]:
    """What is added before the softmax: a number a bucket and head, and -∞ for what a position must not see."""
    # A plain gather by int64: its gradient took 15 times as long of an embedding, and 30 times by int32.
    bias = by_time.index_select(1, buckets.flatten()).view(-1, *buckets.shape).transpose(0, 1)
    future = torch.ones(buckets.shape[1:], dtype=torch.bool, device=buckets.device).triu(diagonal=1)
    return bias.masked_fill(future, -torch.inf)


def _rotated(
    vectors: Float[Tensor, "sequences heads length width"],
    cosines: Float[Tensor, "length pairs"],
    sines: Float[Tensor, "length pairs"],
) -> Float[Tensor, "sequences heads length width"]:
    """Each pair of numbers turned by its angle at the position: inner products then depend on distances alone."""
    first, second = vectors.chunk(2, dim=-1)
    return torch.cat([first * cosines - second * sines, first * sines + second * cosines], dim=-1)
