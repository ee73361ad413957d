"""The blocked softmax against the plain one: values and gradients, any batch, any block, any mask."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.plain_softmax import collisions, in_batch_softmax
from twofold.model import fused_softmax as softmax
from twofold.model.fused_softmax import (
    SoftmaxBatch,
    competing_counts,
    has_fast_bfloat16,
    product_dtype_of,
    softmax_sum,
)


def draw(seed, *, queries, items, dim=5, users=3, catalogue=4, dtype=torch.float64):
    """Vectors and columns with many equal users and items, weights of 0 among them; the first columns are the own."""
    generator = torch.Generator().manual_seed(seed)
    vectors = [torch.randn(n, dim, generator=generator, dtype=dtype) for n in (queries, items)]
    user_rows = torch.randint(users, (queries,), generator=generator)
    item_rows = torch.randint(catalogue, (items,), generator=generator)
    shift = -3 * torch.rand(items, generator=generator, dtype=dtype)
    batch = SoftmaxBatch(
        user_rows=user_rows,
        own_rows=item_rows[:queries],
        weight=torch.randint(3, (queries,), generator=generator).to(dtype),
        own_shift=shift[:queries],
        item_rows=item_rows,
        owners=torch.cat([user_rows, torch.full((items - queries,), -1)]),
        shift=shift,
    )
    return *(part.requires_grad_() for part in vectors), batch


def plain(users, items, batch, *, temperature):
    """The sum by way of the whole matrix."""
    queries = len(users)
    masked = batch.own_rows[:, None] == batch.item_rows
    masked[:, :queries] = collisions(batch.user_rows, batch.own_rows)
    losses = in_batch_softmax(users, items, temperature=temperature, log_q=batch.shift, masked=masked)
    return (losses * batch.weight).sum()


def fused(users, items, batch, *, temperature, product_dtype=torch.float32):
    """The sum by chunks; the first columns are the own items."""
    own = items[: len(users)]
    return softmax_sum(users / temperature, own, items, batch, product_dtype=product_dtype)


def value_and_gradients(loss, users, items, batch, *, temperature):
    value = loss(users, items, batch, temperature=temperature)
    return value.detach(), *torch.autograd.grad(value, (users, items))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    queries=st.integers(1, 17),
    extra=st.integers(0, 6),
    block=st.sampled_from([1, 7, 40, 10_000]),
    users=st.integers(1, 40),
    catalogue=st.integers(1, 40),
)
def test_equals_the_plain_softmax(seed, queries, extra, block, users, catalogue):
    drawn = draw(seed, queries=queries, items=queries + extra, users=users, catalogue=catalogue)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(softmax, "CHUNK_ELEMENTS", block)
        got = value_and_gradients(fused, *drawn, temperature=0.3)
    expected = value_and_gradients(plain, *drawn, temperature=0.3)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_columns_may_lie_in_any_order_and_lack_the_own_item():
    users, items, batch = draw(7, queries=9, items=12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))[:7]
    less = replace(batch, **{name: getattr(batch, name)[order] for name in ("item_rows", "owners", "shift")})
    got = softmax_sum(users / 0.3, items[:9], items[order], less)
    logits = users @ items.T / 0.3 - batch.shift
    competes = (batch.own_rows[:, None] != batch.item_rows) & (batch.user_rows[:, None] != batch.owners)
    columns = logits.masked_fill(~competes, -torch.inf)[:, order]
    own = logits.diagonal()
    losses = torch.cat([own[:, None], columns], dim=1).logsumexp(dim=1) - own
    torch.testing.assert_close(got, (losses * batch.weight).sum())


def test_a_shift_of_the_own_logit_alone_is_the_correction_of_its_negatives():
    users, items, batch = draw(8, queries=6, items=10)
    shifted = softmax_sum(users, items[:6], items, replace(batch, own_shift=batch.own_shift + 1.5))
    negatives = softmax_sum(users, items[:6], items, replace(batch, shift=batch.shift - 1.5))
    torch.testing.assert_close(shifted, negatives)


@given(seed=st.integers(0, 2**20), queries=st.integers(1, 17), extra=st.integers(0, 6))
def test_competing_columns_are_counted_without_a_matrix(seed, queries, extra):
    *_, batch = draw(seed, queries=queries, items=queries + extra)
    competes = (batch.own_rows[:, None] != batch.item_rows) & (batch.user_rows[:, None] != batch.owners)
    assert competing_counts(batch).tolist() == competes.sum(dim=1).tolist()


def test_float32_is_as_exact_as_the_plain_softmax():
    drawn = draw(0, queries=300, items=340, users=200, catalogue=150, dtype=torch.float32)
    got = value_and_gradients(fused, *drawn, temperature=0.5)
    for one, other in zip(got, value_and_gradients(plain, *drawn, temperature=0.5), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_finite_differences():
    users, items, batch = draw(1, queries=4, items=6)
    torch.autograd.gradcheck(lambda u, i: fused(u, i, batch, temperature=0.7) * 3, (users, items))


def test_gradients_reach_what_made_the_vectors():
    users, items, batch = draw(2, queries=6, items=6)
    layer = torch.nn.Linear(5, 5).double()
    got, expected = (
        torch.autograd.grad(loss(layer(users), layer(items).tanh(), batch, temperature=0.7), layer.weight)[0]
        for loss in (fused, plain)
    )
    torch.testing.assert_close(got, expected)


def test_a_target_whose_probability_underflows_still_has_a_loss():
    """Scores 0 for the own item and 300 for the other: exp(-300) is no float32, the loss is 300."""
    users, items = torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0], [300.0]])
    two, zeros = torch.arange(2), torch.zeros(2)
    batch = SoftmaxBatch(two, two, torch.tensor([1.0, 0.0]), zeros, two, two, zeros)
    assert float(fused(users, items, batch, temperature=1.0)) == pytest.approx(300)


def test_where_everything_collides_nothing_is_learnt():
    users, items, _ = draw(3, queries=5, items=5)
    one, five, zeros = torch.zeros(5).long(), torch.arange(5), torch.zeros(5).double()
    batch = SoftmaxBatch(one, five, zeros + 1, zeros, item_rows=five, owners=one, shift=zeros)
    for part in value_and_gradients(fused, users, items, batch, temperature=0.1):
        torch.testing.assert_close(part, torch.zeros_like(part))


def test_products_in_bfloat16_give_nearly_the_same_gradients():
    drawn = draw(4, queries=256, items=256, dim=32, users=200, catalogue=200, dtype=torch.float32)
    exact = value_and_gradients(fused, *drawn, temperature=4.0)
    narrow = value_and_gradients(partial(fused, product_dtype=torch.bfloat16), *drawn, temperature=4.0)
    assert float(narrow[0]) == pytest.approx(float(exact[0]), rel=0.01)
    for one, other in zip(narrow[1:], exact[1:], strict=True):
        assert one.dtype == torch.float32
        assert float(torch.cosine_similarity(one.flatten(), other.flatten(), dim=0)) > 0.999
        assert float(one.norm() / other.norm()) == pytest.approx(1, abs=0.01)
        assert not torch.equal(one, other)


def test_float64_is_never_narrowed():
    drawn = draw(5, queries=8, items=8)
    exact = value_and_gradients(fused, *drawn, temperature=1.0)
    narrow = value_and_gradients(partial(fused, product_dtype=torch.bfloat16), *drawn, temperature=1.0)
    assert all(map(torch.equal, exact, narrow))


@pytest.mark.parametrize("is_fast", [False, True])
def test_the_recipe_says_in_which_type_vectors_are_multiplied(monkeypatch, is_fast):
    monkeypatch.setattr(softmax, "has_fast_bfloat16", lambda device: is_fast)
    cpu = torch.device("cpu")
    assert product_dtype_of("float32", cpu) == torch.float32
    assert product_dtype_of("bfloat16", cpu) == torch.bfloat16
    assert product_dtype_of("auto", cpu) == (torch.bfloat16 if is_fast else torch.float32)


def test_a_device_that_is_not_known_has_no_fast_bfloat16():
    assert not has_fast_bfloat16(torch.device("meta"))


def test_memory_is_that_of_one_block_and_the_gradients(monkeypatch):
    """Every tensor that the forward pass makes, by size: none is a (queries × items) matrix."""
    monkeypatch.setattr(softmax, "CHUNK_ELEMENTS", 2**14)
    drawn = draw(6, queries=1024, items=1024, dim=8, users=900, catalogue=900, dtype=torch.float32)
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), named=None):
            nonlocal largest
            made = function(*arguments, **(named or {}))
            for tensor in made if isinstance(made, tuple) else (made,):
                largest = max(largest, tensor.untyped_storage().nbytes())
            return made

    with Sizes():
        fused(*drawn, temperature=1.0)
    assert largest == 2**14 * 4
