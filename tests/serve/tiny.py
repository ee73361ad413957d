"""A tiny bundle whose scores can be computed by hand."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper, numpy_helper

from twofold.dataset.features import FeatureState, save_features
from twofold.dataset.histories import Histories
from twofold.dataset.vocabulary import Vocabulary
from twofold.index.item_index import build_index, save_index
from twofold.recipe.features import Features
from twofold.run_folder import MANIFEST, file_digest, run_stage
from twofold.serve.bundle import USER_TOWER, save_context
from twofold.tables import HOUR_MS

NOON = 12 * HOUR_MS
LENGTH = 4  # of the histories that the tower reads
ITEMS = ["a", "b", "c", "d", "e", "f", "cold"]
NUM_KNOWN = 6
DIM = 5
VECTORS = np.random.default_rng(0).standard_normal((len(ITEMS), DIM)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
HOUR_VECTORS = np.random.default_rng(1).standard_normal((25, DIM)).astype(np.float32)

# user → (item, at, is positive), in time order; user 30 has no events, user 40 has seen all items.
EVENTS = {
    10: [("a", 1 * HOUR_MS, True), ("b", 2 * HOUR_MS, False), ("cold", 3 * HOUR_MS, True)],
    20: [(item, (1 + hour) * HOUR_MS, True) for hour, item in enumerate(["f", "e", "d", "c", "f"])],
    30: [],
    40: [(item, HOUR_MS, item < "c") for item in ITEMS],
}


def write_tower(path: Path, *, dim: int = DIM, last_input: str = "hour", hours: int = 25) -> None:
    """Writes vector = Σ positives - Σ negatives + vector of the hour; cold items and padding are 0."""
    table = np.zeros((1 + NUM_KNOWN, DIM), np.float32)
    table[1:] = VECTORS[:NUM_KNOWN]
    constants = {"table": table[:, :dim], "hours": HOUR_VECTORS[:hours, :dim], "one": np.array([1])}
    nodes = [
        helper.make_node("Gather", ["table", "positives"], ["liked"]),
        helper.make_node("Gather", ["table", "negatives"], ["disliked"]),
        helper.make_node("ReduceSum", ["liked", "one"], ["plus"], keepdims=0),
        helper.make_node("ReduceSum", ["disliked", "one"], ["minus"], keepdims=0),
        helper.make_node("Gather", ["hours", last_input], ["hour_vector"]),
        helper.make_node("Sub", ["plus", "minus"], ["taste"]),
        helper.make_node("Add", ["taste", "hour_vector"], ["vector"]),
    ]
    shapes = {"positives": ["batch", LENGTH], "negatives": ["batch", LENGTH], last_input: ["batch"]}
    graph = helper.make_graph(
        nodes,
        "user_tower",
        [helper.make_tensor_value_info(name, TensorProto.INT32, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", dim])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def write_dataset(folder: Path) -> None:
    (folder / "features").mkdir(parents=True)
    items = Vocabulary(pa.array(ITEMS), NUM_KNOWN)
    Vocabulary(pa.array(list(EVENTS)), len(EVENTS)).save(folder / "users.parquet")
    items.save(folder / "items.parquet")
    colours = ["red", "blue", None, "red", "blue", "red", "red"]
    pq.write_table(
        pa.table({"item_id": ITEMS, "colour": colours, "length_s": [5.0, 10, 15, 20, 25, 30, 35]}),
        folder / "item_attributes.parquet",
    )
    user = [{"kind": "history", "events": of, "max_length": LENGTH} for of in ("positives", "negatives")]
    features = {"user": [*user, {"kind": "time", "part": "hour"}], "item": [{"kind": "id"}]}
    save_features(FeatureState(Features.model_validate(features), "UTC", NUM_KNOWN, {}, {}), folder / "features")
    flat = [event for events in EVENTS.values() for event in events]
    events = Histories(
        items.rows_of([item for item, _, _ in flat]).astype(np.int32),
        np.array([at for _, at, _ in flat]),
        np.cumsum([0, *(len(events) for events in EVENTS.values())]),
    )
    is_positive = np.array([positive for _, _, positive in flat])
    events.save(folder, "events")
    events.only(is_positive).save(folder, "positives")
    events.only(~is_positive).save(folder, "negatives")


def write_run(run: Path, *, again: int = 0) -> Path:
    """Writes a run folder with a bundle; each number of `again` gives another digest."""
    write_dataset(run / "dataset")

    def work(out: Path) -> Mapping[str, Any]:
        save_index(build_index(VECTORS), out)
        write_tower(out / USER_TOWER)
        save_context(run / "dataset", out, as_of=NOON)
        return {"items": len(ITEMS)}

    run_stage(run, "index", inputs={"again": again}, work=work)
    shutil.rmtree(run / "dataset")  # serving opens index/ and nothing else
    return run


def other_run(run: Path, name: str) -> Path:
    """Copies a run under another name and gives its bundle other content."""
    other = run.parent / name
    shutil.copytree(run, other)
    add_part(other, name)
    return other


def add_part(run: Path, text: str) -> None:
    """Adds a file that nobody reads to a bundle: the content of the bundle is another then."""
    replace_part(run, "note.txt", lambda path: path.write_text(text))


def replace_part(run: Path, name: str, write: Any) -> None:
    """Replaces the content of a file, and of what `write` changes beside it, together with the checksums."""
    folder = run / "index"
    write(folder / name)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"] = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))


def scores_of(positives: list[str], negatives: list[str], *, hour: int = 12) -> dict[str, float]:
    """Computes the scores from their definition: cold items are ignored in a history, and can be recommended."""
    query = HOUR_VECTORS[hour + 1].astype(np.float64)
    for sign, history in ((1, positives[-LENGTH:]), (-1, negatives[-LENGTH:])):
        for item in history:
            query = query + sign * VECTORS[ITEMS.index(item)] * (item != "cold")
    return {item: float(query @ VECTORS[row]) for row, item in enumerate(ITEMS)}


def best(scores: dict[str, float], *, without: str = "", k: int = 20) -> list[str]:
    return sorted(set(scores) - set(without.split()), key=lambda item: -scores[item])[:k]
