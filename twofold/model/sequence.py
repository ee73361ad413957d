"""Causal sequence encoder: a user's events in order become one vector after every event.

A transformer with pre-normalisation (Zhang & Sennrich, *Root mean square layer normalization*, NeurIPS 2019), rotary
positions (Su et al., *RoFormer*, 2021), and gates on the attention's output (Zhai et al., *Actions speak louder than
words*, HSTU, ICML 2024) and in the feed-forward part (Shazeer, *GLU variants improve transformer*, 2020).

Sequences are padded on the right: a causal position never attends to later ones, so padding needs no mask, and one pass
returns the user's vector at every time (Kang & McAuley, *Self-attentive sequential recommendation*, ICDM 2018).
Rotary positions encode distances alone, so a sequence cut from the middle of a history is read as a whole one is.

A timed encoder also reads how long before the time of a position each event was, where the time of a position is that
of the next event: every head of every layer adds a trained number per bucket of the logarithm (HSTU, section 3.2).
"""

from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

WIDER = 2
"""Width of the feed-forward part, as a multiple of the dimension."""
SLOWEST = 10_000.0
"""Period of the slowest rotary angle, in steps, over 2π."""
TIMES: Final = 69
"""Number of buckets: times up to 2³¹ seconds, each bucket 1.4 times as long as the one before (1.35 times in HSTU's
published code), and one bucket for the start vector.
"""


class SequenceEncoder(nn.Module):
    """A start vector and `num_layers` causal layers over event vectors in the order of time."""

    cosines: Tensor
    sines: Tensor

    def __init__(
        self, dim: int, *, length: int, num_layers: int, num_heads: int, dropout: float, is_timed: bool = False
    ) -> None:
        """Takes the maximum `length` of a sequence; the dimension of a head, dim / num_heads, must be even."""
        super().__init__()
        self.start = nn.Parameter(torch.randn(dim) * 0.1)
        self.layers = nn.ModuleList(
            _Layer(dim, num_heads=num_heads, dropout=dropout, is_timed=is_timed) for _ in range(num_layers)
        )
        self.norm = nn.RMSNorm(dim)
        self.dropout = nn.Dropout(dropout)
        pairs = dim // num_heads // 2
        angles = torch.arange(1 + length)[:, None] / SLOWEST ** (torch.arange(pairs) / pairs)
        self.register_buffer("cosines", angles.cos(), persistent=False)
        self.register_buffer("sines", angles.sin(), persistent=False)

    def forward(
        self, events: Float[Tensor, "batch length dim"], ages: Int[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length+1 dim"]:
        """Returns the vector after the first p events at position p; sequences are padded on the right.

        `ages`, for a timed encoder, are the seconds from each event until the time of the last position; 0 for padding.
        """
        vectors, buckets = self._inputs(events, ages)
        for layer in self.layers:
            vectors = layer(vectors, *self._angles(vectors.shape[1]), buckets)
        return self.norm(vectors)

    def at(
        self,
        places: Int[Tensor, "batch"],
        events: Float[Tensor, "batch length dim"],
        ages: Int[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """Returns the vector at one place of each sequence; the last layer computes no other."""
        vectors, buckets = self._inputs(events, ages)
        *layers, last = self.layers
        assert isinstance(last, _Layer)
        for layer in layers:
            vectors = layer(vectors, *self._angles(vectors.shape[1]), buckets)
        return self.norm(last.at(places, vectors, *self._angles(vectors.shape[1]), buckets))

    def _inputs(
        self, events: Float[Tensor, "batch length dim"], ages: Int[Tensor, "batch length"] | None
    ) -> tuple[Float[Tensor, "batch length+1 dim"], Int[Tensor, "batch length+1 length+1"] | None]:
        start = self.start.expand(events.shape[0], 1, -1)  # len() would be a constant to the exporter
        vectors = self.dropout(torch.cat([start, events], dim=1))
        return vectors, None if ages is None else self._buckets(ages)

    def _angles(self, length: int) -> tuple[Float[Tensor, "length _"], Float[Tensor, "length _"]]:
        return self.cosines[:length], self.sines[:length]

    def _buckets(self, ages: Int[Tensor, "batch length"]) -> Int[Tensor, "batch length+1 length+1"]:
        """Returns the bucket of the time from each event to the time of a position; 0 is for the start vector."""
        position_ages = functional.pad(ages, (0, 1))  # the time of position p is that of event p + 1, the last is now
        passed = (ages[:, None, :] - position_ages[:, :, None]).clamp(min=0)
        # In float64 no whole second plus a half is near the edge of a bucket, so that serving and training choose the
        # same bucket with any implementation of the logarithm. Not log2, whose factor the exporter rounds to float32. A
        # search in a table of edges was exact too, and four times as slow to serve.
        buckets = (torch.log(passed.double() + 0.5) * 3).floor().long() + 4
        return functional.pad(buckets, (1, 0))


class _Layer(nn.Module):
    def __init__(self, dim: int, *, num_heads: int, dropout: float, is_timed: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.by_time = nn.Parameter(torch.zeros(num_heads, TIMES)) if is_timed else None
        self.before_attention = nn.RMSNorm(dim)
        self.attend = nn.Linear(dim, 4 * dim, bias=False)  # queries, keys, values and the gate in one product
        self.attended = nn.Linear(dim, dim, bias=False)
        self.before_feed = nn.RMSNorm(dim)
        self.feed = nn.Linear(dim, 2 * WIDER * dim, bias=False)
        self.fed = nn.Linear(WIDER * dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        vectors: Float[Tensor, "batch length dim"],
        cosines: Float[Tensor, "length _"],
        sines: Float[Tensor, "length _"],
        buckets: Int[Tensor, "batch length length"] | None = None,
    ) -> Float[Tensor, "batch length dim"]:
        *projections, gate = self.attend(self.before_attention(vectors)).chunk(4, dim=-1)
        query, key, value = map(self._split_heads, projections)
        query, key = (_rotated(part, cosines, sines) for part in (query, key))
        bias = None if self.by_time is None or buckets is None else _causal(self.by_time, buckets)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, is_causal=bias is None)
        return self._feed_forward(vectors, attended, gate)

    def at(
        self,
        places: Int[Tensor, "batch"],
        vectors: Float[Tensor, "batch length dim"],
        cosines: Float[Tensor, "length _"],
        sines: Float[Tensor, "length _"],
        buckets: Int[Tensor, "batch length length"] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """Returns what `forward` returns at one place of each sequence: a fifth of its work."""
        sequence, positions = (torch.arange(size, device=vectors.device) for size in vectors.shape[:2])
        read = self.before_attention(vectors)
        to_query, to_key, to_value, to_gate = self.attend.weight.chunk(4)
        key, value = (self._split_heads(functional.linear(read, weight)) for weight in (to_key, to_value))
        own = read[sequence, places][:, None]
        query, gate = self._split_heads(functional.linear(own, to_query)), functional.linear(own, to_gate)
        query = _rotated(query, cosines[places][:, None, None], sines[places][:, None, None])
        bias = vectors.new_zeros(()).expand(vectors.shape[0], 1, 1, vectors.shape[1])
        if self.by_time is not None and buckets is not None:
            bias = self.by_time[:, buckets[sequence, places]].transpose(0, 1)[:, :, None]
        bias = bias.masked_fill((positions > places[:, None])[:, None, None], -torch.inf)
        attended = functional.scaled_dot_product_attention(query, _rotated(key, cosines, sines), value, attn_mask=bias)
        return self._feed_forward(vectors[sequence, places][:, None], attended, gate)[:, 0]

    def _split_heads(self, vectors: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch _ length _"]:
        heads: Tensor = vectors.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
        return heads

    def _feed_forward(
        self,
        vectors: Float[Tensor, "batch length dim"],
        attended: Float[Tensor, "batch _ length _"],
        gate: Float[Tensor, "batch length dim"],
    ) -> Float[Tensor, "batch length dim"]:
        """Adds the gated results of the attention, and those of the feed-forward part."""
        joined = attended.transpose(1, 2).flatten(start_dim=2) * functional.silu(gate)
        vectors = vectors + self.dropout(self.attended(joined))
        gate, values = self.feed(self.before_feed(vectors)).chunk(2, dim=-1)
        fed: Tensor = self.dropout(self.fed(functional.silu(gate) * values))
        return vectors + fed


def _causal(
    by_time: Float[Tensor, "_ _"], buckets: Int[Tensor, "batch length length"]
) -> Float[Tensor, "batch _ length length"]:
    """Returns the attention bias: the trained number of each bucket and head, and -∞ for future positions."""
    # A plain gather by int64: the gradient of an embedding took 15 times as long, and 30 times by int32.
    bias = by_time.index_select(1, buckets.flatten()).view(-1, *buckets.shape).transpose(0, 1)
    future = torch.ones(buckets.shape[1:], dtype=torch.bool, device=buckets.device).triu(diagonal=1)
    return bias.masked_fill(future, -torch.inf)


def _rotated(
    vectors: Float[Tensor, "batch _ length _"],
    cosines: Float[Tensor, "... _"],
    sines: Float[Tensor, "... _"],
) -> Float[Tensor, "batch _ length _"]:
    """Rotates each pair of numbers by its angle at its position, so that inner products depend on distances alone."""
    first, second = vectors.chunk(2, dim=-1)
    return torch.cat([first * cosines - second * sines, first * sines + second * cosines], dim=-1)
