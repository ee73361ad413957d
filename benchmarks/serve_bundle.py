"""A bundle to load a server with: clustered item vectors, users with histories, a tower that takes their mean.

What a model would be trained for is not needed to time it: every vector is drawn, and the graph has the shape of the
history-mean tower.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper, numpy_helper

from twofold.bundle import run_stage
from twofold.dataset.features import FeatureState, save_features
from twofold.dataset.histories import Histories
from twofold.dataset.vocabulary import Vocabulary
from twofold.index.knn import build_index, save_index
from twofold.recipe.features import Features
from twofold.serve.bundle_folder import USER_TOWER, save_context

ITEMS, USERS, DIM, HISTORY, MET = 30_000, 20_000, 64, 50, 80
LANGUAGES = ("hi", "ta", "te", "kn", "ml", "mr", "bn", "gu")
AS_OF = 1_700_000_000_000


def write_run(run: Path, *, items: int = ITEMS, users: int = USERS, seed: int = 0) -> Path:
    """The run folder, with the index/ stage alone."""
    draw = np.random.default_rng(seed)
    centres = draw.standard_normal((200, DIM))
    cluster = draw.integers(len(centres), size=items)
    vectors = (centres[cluster] + 0.7 * draw.standard_normal((items, DIM))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def work(out: Path) -> Mapping[str, Any]:
        dataset = run / "dataset"
        (dataset / "features").mkdir(parents=True)
        Vocabulary(pa.array(np.arange(users) + 1), users).save(dataset / "users.parquet")
        Vocabulary(pa.array(np.arange(items) + 1), items).save(dataset / "items.parquet")
        attributes = {
            "item_id": np.arange(items) + 1,
            "language": np.array(LANGUAGES)[cluster % len(LANGUAGES)],
            "length_s": draw.integers(5, 60, size=items).astype(np.float64),
        }
        pq.write_table(pa.table(attributes), dataset / "item_attributes.parquet")
        features = {"user": [{"kind": "history", "of": "positives", "last": HISTORY}], "item": [{"kind": "id"}]}
        save_features(FeatureState(Features.model_validate(features), 0, items, {}, {}), dataset / "features")
        _histories(draw, items, users, dataset)
        save_index(build_index(vectors), out)
        _write_tower(out / USER_TOWER, vectors)
        save_context(dataset, out, as_of=AS_OF)
        return {"items": items}

    run_stage(run, "index", inputs={"items": items, "users": users, "seed": seed}, work=work)
    return run


def _histories(draw: np.random.Generator, items: int, users: int, folder: Path) -> None:
    """Popular items first: density of item x as x^-1/2. Of what was met, the last HISTORY a user are liked."""
    rows = (draw.random(users * MET) ** 2 * items).astype(np.int32)
    at = np.tile(np.arange(MET, dtype=np.int64), users) * 3_600_000 + AS_OF - MET * 3_600_000
    events = Histories(rows, at, np.arange(users + 1, dtype=np.int64) * MET)
    is_liked = np.tile(np.arange(MET) >= MET - HISTORY, users)
    events.save(folder, "events")
    events.only(is_liked).save(folder, "positives")
    events.only(~is_liked).save(folder, "negatives")


def _write_tower(path: Path, vectors: np.ndarray) -> None:
    """vector = the mean of the history's vectors, of length 1."""
    table = np.concatenate([np.zeros((1, DIM), np.float32), vectors])
    nodes = [
        helper.make_node("Gather", ["table", "positives"], ["liked"]),
        helper.make_node("ReduceSum", ["liked", "one"], ["sum"], keepdims=0),
        helper.make_node("LpNormalization", ["sum"], ["vector"], axis=-1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "user_tower",
        [helper.make_tensor_value_info("positives", TensorProto.INT32, ["batch", HISTORY])],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", DIM])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([1]), "one")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
