"""Compares exact searches whose first look at all items is by 8-bit integers, by packed floats, and by NumPy.

    python benchmarks/serve_search.py [rounds]     (default: 100)

Claim: results are the same bit by bit; from some 25,000 items on, integers take less time. In smaller catalogues they
take more, because more items must be scored exactly; there a bundle has the graph of floats.

Clustered vectors of length 1, queries that are means of 50 of them, 80 excluded items, k 100. All searches take turns
in one process on one core, and figures are processor µs per query (median, and the least), the product alone and the
whole search. Writes `serve_search.json` beside this file.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from twofold.dataset.malloc import keep_freed_memory
from twofold.index.exact import candidates_above_threshold, rounding_slack, search_exact
from twofold.index.item_index import VECTORS, Index, build_index
from twofold.index.item_products import load_item_products, save_item_products
from twofold.index.quantized_products import load_quantized_products, quantize_items, save_quantized_products
from twofold.ragged import Ragged

HERE = Path(__file__).parent
SIZES = ((7_500, 128), (30_000, 64), (300_000, 64))  # items and dimensions
TOGETHER = (1, 4, 16)  # queries of one search
HISTORY, EXCLUDED, K = 50, 80, 100


def make_vectors(items: int, dim: int) -> np.ndarray:
    """Returns vectors of length 1 around 200 centres."""
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((200, dim))[draw.integers(200, size=items)]
    vectors = (vectors + 0.7 * draw.standard_normal((items, dim))).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def make_indexes(vectors: np.ndarray, folder: Path) -> dict[str, Index]:
    """Returns one index per kind of product."""
    index = build_index(vectors)
    np.save(folder / VECTORS, vectors)
    save_item_products(folder / VECTORS)
    save_quantized_products(quantize_items(vectors), folder)
    graphs = {"floats": load_item_products(folder), "integers": load_quantized_products(folder)}
    return {"numpy": index} | {name: replace(index, products=graph) for name, graph in graphs.items()}


def multiply(index: Index, queries: np.ndarray) -> Any:
    """Returns the products of an index, as its search uses them."""
    return queries @ index.vectors.T if index.products is None else index.products(queries)


def micros(work: Callable[[], Any], count: int) -> float:
    """Returns the processor time of one call, divided by the number of queries."""
    started = time.process_time_ns()
    work()
    return (time.process_time_ns() - started) / 1e3 / count


def compare(indexes: dict[str, Index], queries: np.ndarray, excluded: Ragged, rounds: int) -> dict[str, Any]:
    """Measures all indexes in turn, and checks that their results are the same."""
    products = {name: partial(multiply, index, queries) for name, index in indexes.items()}
    searches = {
        name: partial(search_exact, index, queries, K, allowed=None, excluded=excluded)
        for name, index in indexes.items()
    }
    expected = searches["numpy"]()
    for search in searches.values():
        found = search()
        assert found.item_rows.tolist() == expected.item_rows.tolist()
        assert found.scores.tolist() == expected.scores.tolist()
    spent: dict[str, dict[str, list[float]]] = {"product": {}, "search": {}}
    for _ in range(rounds):
        for what, works in (("product", products), ("search", searches)):
            for name, work in works.items():
                spent[what].setdefault(name, []).append(micros(work, len(queries)))
    return {
        what: {name: {"median": round(median(each), 1), "least": round(min(each), 1)} for name, each in of.items()}
        for what, of in spent.items()
    }


def num_candidates(indexes: dict[str, Index], queries: np.ndarray) -> dict[str, float]:
    """Returns how many items a query scores exactly."""
    index, rounding = indexes["integers"], rounding_slack(indexes["integers"], queries)
    integers, units, errors = multiply(index, queries)
    floats = queries @ index.vectors.T
    counts = {
        "floats": len(candidates_above_threshold(floats, K, rounding)[0]),
        "integers": len(candidates_above_threshold(integers, K, errors + rounding / units)[0]),
    }
    return {name: count / len(queries) for name, count in counts.items()}


def main(rounds: int = 100) -> None:
    """Measures all sizes, and prints and writes the figures."""
    figures: dict[str, Any] = {}
    for items, dim in SIZES:
        vectors, draw = make_vectors(items, dim), np.random.default_rng(1)
        drawn = draw.integers(items, size=(max(TOGETHER), HISTORY))
        means = vectors[drawn].mean(axis=1)
        queries = means / np.linalg.norm(means, axis=1, keepdims=True)
        with tempfile.TemporaryDirectory() as folder, keep_freed_memory():
            indexes = make_indexes(vectors, Path(folder))
            figure: dict[str, Any] = {"candidates": num_candidates(indexes, queries)}
            for count in TOGETHER:
                excluded = Ragged(draw.integers(items, size=count * EXCLUDED), np.arange(count + 1) * EXCLUDED)
                figure[f"{count} at once"] = compare(indexes, queries[:count], excluded, rounds)
        figures[f"{items} x {dim}"] = figure
        print(items, dim, json.dumps(figure))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True)
    saved = {
        "commit": commit.stdout.strip(),
        "load_average": os.getloadavg(),
        "unit": "processor µs per query",
        "rounds": rounds,
        "figures": figures,
    }
    (HERE / "serve_search.json").write_text(json.dumps(saved, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
