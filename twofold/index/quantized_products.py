"""Inner products of queries with all items in 8-bit integers, and a bound on their error: a first look at all items.

A search reads all item vectors, and for few queries at once that is most of its time: 7.7 MB for 30,000 items of 64
dimensions, or 1.9 MB in 8 bits. Items whose product is within the error of the k best are scored again with the vectors
themselves, so results are the same; with k 100, 240 of 30,000 items are, where 32-bit products leave 105. In a small
catalogue that costs more than is won.

Each dimension has a step of its own, by which queries are multiplied instead, so that dimensions of different scale,
as in a sum of two models, lose equally little. Processor time of a product for 1, 4 and 16 queries at once: 71, 89 and
143 µs, where 32-bit ones take 285, 298 and 398; with 300,000 items 0.8, 1.0 and 1.5 ms against 5.4, 8.4 and 16.2.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Float64, Int8, Int32

from twofold.onnx_session import graph_errors, open_session
from twofold.ragged import chunks

QUANTIZED_PRODUCTS: Final = "quantized_products.onnx"
LEVELS: Final = 127  # the integers are from -127 to 127
SAFE_LEVELS: Final = 63  # of queries, where the processor adds two products in 16 bits: 2 · 127 · 127 < 2^15
SMALLEST_UNIT: Final = 1e-300  # of a query of zeros
MARGIN: Final = 1 + 1e-9  # for the rounding of the bounds themselves, in 64 bits
CHUNK_ITEMS: Final = 2**14  # items quantized at once, in 64 bits
TRIAL_QUERIES: Final = 64  # items whose neighbors decide whether the integers are precise enough
TRIAL_K: Final = 100
MAX_SHARE: Final = 0.01  # of the items; with more candidates, 32-bit products are as fast (benchmarks/serve_search.py)


@dataclass(frozen=True)
class QuantizedItems:
    """Item vectors as integers times the step of each dimension."""

    integers: Int8[np.ndarray, "items dim"]
    steps: Float64[np.ndarray, "dim"]
    lost: float
    """Length of the longest vector, in steps, that quantizing an item took away."""
    longest: float
    """Length of the longest vector of integers."""

    def quantize_queries(
        self, queries: Float32[np.ndarray, "queries dim"], levels: int = LEVELS
    ) -> tuple[Float64[np.ndarray, "queries dim"], Float64[np.ndarray, "queries"], Float64[np.ndarray, "queries"]]:
        """Returns queries as integers, the inner product for which a product of integers 1 stands, and a bound on the
        error of such a product.

        With v = steps · (i + e) and steps · q = unit · j + l, q · v = unit · j · i + l · i + (steps · q) · e, where e
        and l were lost; the last two terms are bounded by the lengths of their factors.
        """
        scaled = queries * self.steps
        units = np.maximum(np.abs(scaled).max(axis=1, initial=0) / levels, SMALLEST_UNIT)
        integers = np.rint(scaled / units[:, None])
        lost = scaled - integers * units[:, None]
        errors = np.sqrt(np.vecdot(lost, lost)) * self.longest + np.sqrt(np.vecdot(scaled, scaled)) * self.lost
        return integers, units, errors / units * MARGIN

    def is_precise(self, vectors: Float32[np.ndarray, "items dim"]) -> bool:
        """Returns whether so few items are candidates for a search of `TRIAL_K` that integers are faster than floats;
        tried with some of the items as queries.
        """
        count, k = len(vectors), min(TRIAL_K, len(vectors))
        chosen = np.random.default_rng(0).choice(count, min(TRIAL_QUERIES, count), replace=False)
        queries, _, errors = self.quantize_queries(vectors[chosen])
        num_candidates = 0
        for query, error in zip(queries.astype(np.float32), errors.tolist(), strict=True):
            products = self.integers @ query
            num_candidates += int((products >= np.partition(products, count - k)[count - k] - 2 * error).sum())
        return num_candidates <= len(chosen) * MAX_SHARE * count


def quantize_items(vectors: Float32[np.ndarray, "items dim"]) -> QuantizedItems:
    """Returns the vectors as integers."""
    steps = np.abs(vectors).max(axis=0, initial=0).astype(np.float64) / LEVELS
    steps[steps == 0] = 1.0
    integers, lost, longest = np.empty(vectors.shape, np.int8), 0.0, 0.0
    for part in chunks(len(vectors), CHUNK_ITEMS):
        scaled = vectors[part] / steps
        rounded = np.rint(scaled)
        integers[part] = rounded
        lost = max(lost, float(np.linalg.norm(scaled - rounded, axis=1).max()))
        longest = max(longest, float(np.linalg.norm(rounded, axis=1).max()))
    return QuantizedItems(integers, steps, lost * MARGIN, longest * MARGIN)


# --- the graph --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QuantizedProducts:
    """A graph that multiplies queries with the items of a bundle. `items` has no integers: the graph holds them."""

    session: Any  # onnxruntime.InferenceSession
    items: QuantizedItems
    levels: int

    def __call__(
        self, queries: Float32[np.ndarray, "queries dim"]
    ) -> tuple[Int32[np.ndarray, "queries items"], Float64[np.ndarray, "queries"], Float64[np.ndarray, "queries"]]:
        """Returns for each query the products with all items as integers, the inner product for which 1 stands, and a
        bound on the error of the integers.
        """
        integers, units, errors = self.items.quantize_queries(queries, self.levels)
        return self._products(integers + (self.levels + 1), self.levels + 1), units, errors

    def _products(self, shifted: np.ndarray, zero: int) -> Int32[np.ndarray, "queries items"]:
        inputs = {"queries": shifted.astype(np.uint8), "zero": np.array(zero, np.uint8)}
        (products,) = self.session.run(["products"], inputs)
        return np.asarray(products)

    def is_whole(self) -> bool:
        """Returns whether products of the largest queries are right: older processors add two products in 16 bits, and
        cut a sum that does not fit.
        """
        dim = len(self.items.steps)
        largest, ones = self._products(np.array([[2.0 * LEVELS + 1] * dim, [LEVELS + 2.0] * dim]), LEVELS + 1)
        return bool((largest == LEVELS * ones).all())


def save_quantized_products(items: QuantizedItems, folder: Path) -> None:
    """Writes the graph."""
    import onnx
    from onnx import helper

    dim, facts = len(items.steps), {"steps": items.steps.tolist(), "lost": items.lost, "longest": items.longest}
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["queries", "items", "zero"], ["products"])],
        "quantized_products",
        [
            helper.make_tensor_value_info("queries", onnx.TensorProto.UINT8, ["batch", dim]),
            helper.make_tensor_value_info("zero", onnx.TensorProto.UINT8, []),
        ],
        [helper.make_tensor_value_info("products", onnx.TensorProto.INT32, ["batch", len(items.integers)])],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(items.integers.T), "items")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"quantization": json.dumps(facts)})
    (folder / QUANTIZED_PRODUCTS).write_bytes(model.SerializeToString())


def load_quantized_products(folder: Path) -> QuantizedProducts | None:
    """Opens the graph of a folder; `None` means there is none. RunError if onnxruntime cannot run it."""
    path = folder / QUANTIZED_PRODUCTS
    if not path.exists():
        return None
    with graph_errors(path):
        session = open_session(path)
        facts = json.loads(session.get_modelmeta().custom_metadata_map["quantization"])
        steps = np.array(facts["steps"], np.float64)
        items = QuantizedItems(np.empty((0, len(steps)), np.int8), steps, facts["lost"], facts["longest"])
        products = QuantizedProducts(session, items, LEVELS)
        return products if products.is_whole() else QuantizedProducts(session, items, SAFE_LEVELS)
