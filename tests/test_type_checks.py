"""The types of signatures are checked while tests run: shapes, which name one size each, and all others."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from twofold.evaluate.peer_tuning import climb
from twofold.topk import Products, top_k
from twofold.train.optimizer import learning_rate_at

pytestmark = pytest.mark.skipif(
    not hasattr(climb, "__wrapped__"), reason="`make test-types` checks types, this does not"
)

PRODUCTS = Products(np.zeros((2, 3), np.float32), np.zeros((4, 3), np.float32))


@pytest.mark.parametrize(
    "call",
    [
        lambda: Products(np.zeros((2, 3), np.float32), np.zeros((4, 5), np.float32)),  # two sizes of one name
        lambda: Products(np.zeros((2, 3), np.float64), np.zeros((4, 3), np.float32)),
        lambda: replace(PRODUCTS, items=np.zeros(3, np.float32)),
        lambda: PRODUCTS.pairs(np.zeros(2, np.int64), np.zeros(3, np.int64)),
        lambda: top_k(np.zeros(4, np.float32), 2),
        lambda: climb(("low", "high"), 1.0, lambda value: value),
        lambda: learning_rate_at("first", steps=3, peak=0.1),
    ],
)
def test_a_value_of_another_type_or_shape_is_refused(call):
    with pytest.raises(TypeCheckError):
        call()


def test_what_fits_is_computed_as_without_the_checks():
    assert PRODUCTS.pairs(np.array([0, 1]), np.array([2, 3])).tolist() == [0, 0]
    assert top_k(np.array([[1, 3, 2]], np.float32), 2).item_rows.tolist() == [[1, 2]]
    with pytest.raises(FrozenInstanceError):
        PRODUCTS.items = None


def test_names_of_two_calls_have_sizes_of_their_own():
    for length in (2, 3):
        rows = np.zeros(length, np.int64)
        assert len(PRODUCTS.pairs(rows, rows)) == length
