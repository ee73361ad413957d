"""The blocked softmax against the plain one: values and gradients, any batch, any block, any mask."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.plain_softmax import collisions, in_batch_softmax
from twofold.model import fused_softmax as softmax
from twofold.model.fused_softmax import SoftmaxBatch, has_fast_bfloat16, product_dtype_of, softmax_sum


def draw(seed, *, queries, items, dim=5, users=3, catalogue=4, dtype=torch.float64):
    """Vectors and lines with many equal users and items, weights of 0 among them."""
    generator = torch.Generator().manual_seed(seed)
    vectors = [torch.randn(n, dim, generator=generator, dtype=dtype) for n in (queries, items)]
    user_rows = torch.randint(users, (queries,), generator=generator)
    lines = SoftmaxBatch(
        user_rows=user_rows,
        weight=torch.randint(3, (queries,), generator=generator).to(dtype),
        own=torch.arange(queries),
        item_rows=torch.randint(catalogue, (items,), generator=generator),
        owners=torch.cat([user_rows, torch.full((items - queries,), -1)]),
        log_q=-3 * torch.rand(items, generator=generator, dtype=dtype),
    )
    return *(part.requires_grad_() for part in vectors), lines


def plain(users, items, lines, *, temperature):
    """The sum by way of the whole matrix."""
    queries = len(users)
    masked = lines.item_rows[:queries, None] == lines.item_rows
    masked[:, :queries] = collisions(lines.user_rows, lines.item_rows[:queries])
    losses = in_batch_softmax(users, items, temperature=temperature, log_q=lines.log_q, masked=masked)
    return (losses * lines.weight).sum()


def value_and_gradients(loss, users, items, lines, *, temperature):
    value = loss(users, items, lines, temperature=temperature)
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
        got = value_and_gradients(softmax_sum, *drawn, temperature=0.3)
    expected = value_and_gradients(plain, *drawn, temperature=0.3)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_columns_may_lie_in_any_order():
    """The own items may be any columns: all items compete, or items of other processes come before."""
    users, items, lines = draw(7, queries=9, items=12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    place = torch.argsort(order)
    moved = replace(
        lines,
        own=place[lines.own],
        **{name: getattr(lines, name)[order] for name in ("item_rows", "owners", "log_q")},
    )
    got = softmax_sum(users, items[order], moved, temperature=0.3)
    torch.testing.assert_close(got, plain(users, items, lines, temperature=0.3))


def test_float32_is_as_exact_as_the_plain_softmax():
    drawn = draw(0, queries=300, items=340, users=200, catalogue=150, dtype=torch.float32)
    got = value_and_gradients(softmax_sum, *drawn, temperature=0.5)
    for one, other in zip(got, value_and_gradients(plain, *drawn, temperature=0.5), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_finite_differences():
    users, items, lines = draw(1, queries=4, items=6)
    torch.autograd.gradcheck(lambda u, i: softmax_sum(u, i, lines, temperature=0.7) * 3, (users, items))


def test_gradients_reach_what_made_the_vectors():
    users, items, lines = draw(2, queries=6, items=6)
    layer = torch.nn.Linear(5, 5).double()
    got, expected = (
        torch.autograd.grad(loss(layer(users), layer(items).tanh(), lines, temperature=0.7), layer.weight)[0]
        for loss in (softmax_sum, plain)
    )
    torch.testing.assert_close(got, expected)


def test_a_target_whose_probability_underflows_still_has_a_loss():
    """Scores 0 for the own item and 300 for the other: exp(-300) is no float32, the loss is 300."""
    users, items = torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0], [300.0]])
    two = torch.arange(2)
    lines = SoftmaxBatch(two, torch.tensor([1.0, 0.0]), own=two, item_rows=two, owners=two, log_q=torch.zeros(2))
    assert float(softmax_sum(users, items, lines, temperature=1.0)) == pytest.approx(300)


def test_where_everything_collides_nothing_is_learnt():
    users, items, _ = draw(3, queries=5, items=5)
    one, five, zeros = torch.zeros(5).long(), torch.arange(5), torch.zeros(5).double()
    lines = SoftmaxBatch(one, zeros + 1, own=five, item_rows=five, owners=one, log_q=zeros)
    for part in value_and_gradients(softmax_sum, users, items, lines, temperature=0.1):
        torch.testing.assert_close(part, torch.zeros_like(part))


def test_products_in_bfloat16_give_nearly_the_same_gradients():
    drawn = draw(4, queries=256, items=256, dim=32, users=200, catalogue=200, dtype=torch.float32)
    exact = value_and_gradients(softmax_sum, *drawn, temperature=4.0)
    narrow = value_and_gradients(partial(softmax_sum, product_dtype=torch.bfloat16), *drawn, temperature=4.0)
    assert float(narrow[0]) == pytest.approx(float(exact[0]), rel=0.01)
    for one, other in zip(narrow[1:], exact[1:], strict=True):
        assert one.dtype == torch.float32
        assert float(torch.cosine_similarity(one.flatten(), other.flatten(), dim=0)) > 0.999
        assert float(one.norm() / other.norm()) == pytest.approx(1, abs=0.01)
        assert not torch.equal(one, other)


def test_float64_is_never_narrowed():
    drawn = draw(5, queries=8, items=8)
    exact = value_and_gradients(softmax_sum, *drawn, temperature=1.0)
    narrow = value_and_gradients(partial(softmax_sum, product_dtype=torch.bfloat16), *drawn, temperature=1.0)
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
        softmax_sum(*drawn, temperature=1.0)
    assert largest == 2**14 * 4
