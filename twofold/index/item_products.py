"""Inner products of queries with all items by ONNX Runtime, which packs the matrix for its kernels once, at opening.

NumPy's library copies the whole matrix into such a form at every product: with 30,000 items of 64 dimensions, that took
most of its time. Processor time per query, NumPy against this: 324 and 188 µs for two queries at once, 136 and 41 for
13; with 300,000 items 5,080 and 1,970, 1,910 and 570. A single query reads the matrix once either way.

The graph is a file of 200 bytes beside the item vectors and reads them from their own file. The packed copy is private
to a process, and as large as the vectors.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32

from twofold.onnx_session import graph_errors, open_session

ITEM_PRODUCTS: Final = "item_products.onnx"


@dataclass(frozen=True)
class ItemProducts:
    """A graph that multiplies queries with the item vectors."""

    session: Any  # onnxruntime.InferenceSession

    def __call__(self, queries: Float32[np.ndarray, "queries dim"]) -> Float32[np.ndarray, "queries items"]:
        """Returns the inner product of each query with each item, up to rounding."""
        (products,) = self.session.run(["products"], {"queries": queries})
        return np.asarray(products)


def save_item_products(vectors_file: Path) -> None:
    """Writes the graph beside the file of item vectors (.npy), which the graph names."""
    import onnx

    vectors = np.load(vectors_file, mmap_mode="r", allow_pickle=False)
    items, dim = vectors.shape
    matrix = onnx.TensorProto(
        name="items", data_type=onnx.TensorProto.FLOAT, dims=[items, dim], data_location=onnx.TensorProto.EXTERNAL
    )
    place = {"location": vectors_file.name, "offset": str(vectors.offset), "length": str(vectors.nbytes)}
    for key, value in place.items():
        matrix.external_data.add(key=key, value=value)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gemm", ["queries", "items"], ["products"], transB=1)],
        "item_products",
        [onnx.helper.make_tensor_value_info("queries", onnx.TensorProto.FLOAT, ["batch", dim])],
        [onnx.helper.make_tensor_value_info("products", onnx.TensorProto.FLOAT, ["batch", items])],
        [matrix],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    (vectors_file.parent / ITEM_PRODUCTS).write_bytes(model.SerializeToString())


def load_item_products(folder: Path) -> ItemProducts | None:
    """Opens the graph of a folder; `None` means there is none. RunError if onnxruntime cannot run it."""
    path = folder / ITEM_PRODUCTS
    if not path.exists():
        return None
    with graph_errors(path):
        return ItemProducts(open_session(path))
