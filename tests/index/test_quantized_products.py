"""Products of 8-bit integers: their error has a bound, no result changes, and older processors are found out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.index.oracle import ragged, score_everything, unit_vectors
from twofold.errors import RunError
from twofold.index import quantized_products
from twofold.index.item_index import build_index, load_index, save_index
from twofold.index.item_mask import from_mask
from twofold.index.item_products import ITEM_PRODUCTS
from twofold.index.quantized_products import (
    LEVELS,
    QUANTIZED_PRODUCTS,
    SAFE_LEVELS,
    QuantizedProducts,
    load_quantized_products,
    quantize_items,
    save_quantized_products,
)
from twofold.index.search import search

ITEMS, DIM = 4000, 24
SCALES = np.repeat(np.float32([1e-6, 1, 50]), DIM // 3)  # a sum of three models


def world(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Item vectors and queries."""
    vectors, queries = unit_vectors(ITEMS, DIM), unit_vectors(20, DIM, seed=1)
    match name:
        case "unit":
            vectors[100:140] = vectors[7]  # ties
            return vectors, np.concatenate([queries, vectors[[7]], np.zeros((1, DIM), np.float32)])
        case "scales":
            return vectors * SCALES, queries / SCALES
        case "tiny":
            return vectors * np.float32(1e-22), queries * np.float32(1e-20)
        case "huge":
            return vectors * np.float32(1e15), queries * np.float32(1e15)
        case _:
            vectors[:, 3] = 0  # a dimension that no item uses
            return vectors, queries


@pytest.mark.parametrize("levels", [LEVELS, SAFE_LEVELS])
@pytest.mark.parametrize("name", ["unit", "scales", "tiny", "huge", "unused"])
def test_the_error_of_a_product_is_within_its_bound(name: str, levels: int) -> None:
    vectors, queries = world(name)
    items = quantize_items(vectors)
    integers, units, errors = items.quantize_queries(queries, levels)
    assert np.abs(items.integers).max() <= LEVELS
    assert np.abs(integers).max() <= levels
    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T / units[:, None]
    off = np.abs(exact - integers @ items.integers.T).max(axis=1)
    assert (off <= errors).all()
    assert (errors <= 20 * off + 1e-6).all()  # a bound that is always true would be of no use


@pytest.mark.parametrize("name", ["unit", "scales", "tiny", "huge", "unused"])
def test_a_search_by_integers_returns_what_scoring_everything_does(name: str, tmp_path: Path) -> None:
    vectors, queries = world(name)
    items = quantize_items(vectors)
    save_quantized_products(items, tmp_path)
    index = replace(build_index(vectors, score="dot"), products=load_quantized_products(tmp_path))
    allowed = np.random.default_rng(2).random(ITEMS) < 0.6
    excluded = ragged([[row, 5, 3999] for row in range(len(queries))])
    for k in (1, 50, ITEMS):
        expected = score_everything(index, queries, k, allowed=allowed, excluded=excluded)
        for rows in (slice(None), slice(3, 4)):
            found = search(
                index,
                queries[rows],
                k,
                allowed=from_mask(allowed),
                excluded=excluded.part(slice(*rows.indices(len(queries))[:2])),
            )
            assert found.item_rows.tolist() == expected.item_rows[rows].tolist()
            assert found.scores.tolist() == expected.scores[rows].tolist()


def test_an_index_has_products_of_integers_where_few_items_are_candidates(tmp_path: Path) -> None:
    precise, coarse = unit_vectors(30_000, DIM), unit_vectors(30_000, DIM)
    coarse[0] *= 1000  # the step of every dimension is the size of the other items
    for name, vectors, expected in (
        ("precise", precise, QUANTIZED_PRODUCTS),
        ("coarse", coarse, ITEM_PRODUCTS),
        ("small", precise[:2000], ITEM_PRODUCTS),
    ):
        folder = tmp_path / name
        folder.mkdir()
        save_index(build_index(vectors, score="dot"), folder)
        assert [path.name for path in folder.glob("*.onnx")] == [expected]
        assert isinstance(load_index(folder).products, QuantizedProducts) == (name == "precise")


class OldProcessor:
    """A session on a processor that adds the products of neighboring numbers in 16 bits, and cuts what does not fit."""

    def __init__(self, session: object, integers: np.ndarray) -> None:
        self.get_modelmeta = session.get_modelmeta
        self.integers = integers.astype(np.int64)

    def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        pairs = inputs["queries"].astype(np.int64)[:, None, :] * self.integers
        sums = np.clip(pairs[..., 0::2] + pairs[..., 1::2], -(2**15), 2**15 - 1).sum(axis=2)
        return [(sums - int(inputs["zero"]) * self.integers.sum(axis=1)).astype(np.int32)]


def test_queries_have_fewer_levels_where_the_processor_cuts_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, queries = np.abs(unit_vectors(300, DIM)), np.abs(unit_vectors(5, DIM, seed=1))
    items = quantize_items(vectors)
    save_quantized_products(items, tmp_path)
    whole = load_quantized_products(tmp_path)
    opened = quantized_products.open_session
    monkeypatch.setattr(quantized_products, "open_session", lambda path: OldProcessor(opened(path), items.integers))
    cut = load_quantized_products(tmp_path)
    assert (whole.levels, cut.levels) == (LEVELS, SAFE_LEVELS)
    for products in (whole, cut):
        found, units, errors = products(queries)
        off = np.abs(queries.astype(np.float64) @ vectors.astype(np.float64).T / units[:, None] - found)
        assert (off.max(axis=1) <= errors).all()


def test_a_graph_that_cannot_be_run_is_refused(tmp_path: Path) -> None:
    save_index(build_index(unit_vectors(100, DIM)), tmp_path)
    (tmp_path / QUANTIZED_PRODUCTS).write_bytes(b"no graph")
    with pytest.raises(RunError, match=r"quantized_products.onnx is not a graph that onnxruntime can run: .*Delete "):
        load_index(tmp_path)
