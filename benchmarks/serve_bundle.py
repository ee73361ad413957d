"""A synthetic bundle for load tests: clustered item vectors, users with histories, and an untrained user tower.

All vectors and weights are random, because times do not depend on training. The tower is the mean of the history's
vectors, or a causal transformer; a ranker may reorder the best 100 items.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

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
from twofold.run_folder import run_stage, write_json
from twofold.serve.bundle import save_context
from twofold.serve.onnx_models import RANKER, RANKER_ITEMS, RANKER_PAIRS, RANKER_USER, USER_TOWER

ITEMS, USERS, DIM, HISTORY, SEEN = 30_000, 20_000, 64, 50, 80
LANGUAGES = ("hi", "ta", "te", "kn", "ml", "mr", "bn", "gu")
AS_OF = 1_700_000_000_000


Kind = Literal["mean", "transformer", "ranked"]
TOP = 100  # candidates of the ranker


def write_run(run: Path, kind: Kind = "mean", *, items: int = ITEMS, users: int = USERS, seed: int = 0) -> Path:
    """Writes a run folder with the stage index/ only; `ranked` is the mean tower with a second stage."""
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
        of = {"kind": "sequence"} if kind == "transformer" else {"kind": "history", "events": "positives"}
        feature = of | {"max_length": HISTORY}
        features = Features.model_validate({"user": [feature], "item": [{"kind": "id"}]})
        state = FeatureState(features, "UTC", items, {}, {})
        save_features(state, dataset / "features")
        _histories(draw, items, users, dataset)
        save_index(build_index(vectors), out)
        if kind == "transformer":
            _write_transformer(out / USER_TOWER, state)
        else:
            _write_mean(out / USER_TOWER, vectors)
        if kind == "ranked":
            _write_ranker(out, state, draw)
        save_context(dataset, out, as_of=AS_OF)
        return {"items": items}

    run_stage(run, "index", inputs={"kind": kind, "items": items, "users": users, "seed": seed}, work=work)
    return run


def _histories(draw: np.random.Generator, items: int, users: int, folder: Path) -> None:
    """Draws items with density x^-1/2, popular ones first; the last HISTORY events of each user are positives."""
    rows = (draw.random(users * SEEN) ** 2 * items).astype(np.int32)
    at = np.tile(np.arange(SEEN, dtype=np.int64), users) * 3_600_000 + AS_OF - SEEN * 3_600_000
    events = Histories(rows, at, np.arange(users + 1, dtype=np.int64) * SEEN)
    is_positive = np.tile(np.arange(SEEN) >= SEEN - HISTORY, users)
    events.save(folder, "events")
    events.only(is_positive).save(folder, "positives")
    events.only(~is_positive).save(folder, "negatives")


def _write_transformer(path: Path, state: FeatureState) -> None:
    """Exports two layers of two heads, the defaults of the recipe."""
    from twofold.model.onnx_export import export_user_tower
    from twofold.model.two_tower import build_two_tower
    from twofold.recipe.retriever import TwoTower

    export_user_tower(build_two_tower(TwoTower(kind="two_tower", dim=DIM), state, {}).user.eval(), path)


def _write_ranker(folder: Path, state: FeatureState, draw: np.random.Generator) -> None:
    """Exports a ranker with the defaults of the recipe, which reads the same history."""
    from twofold.model.onnx_export import export_user_tower
    from twofold.model.ranker import build_ranker, export_pairs
    from twofold.recipe.ranker import Mlp

    ranker = build_ranker(Mlp(kind="mlp"), state, {}, vector_dim=DIM).eval()
    export_user_tower(ranker.user, folder / RANKER_USER)
    export_pairs(ranker, folder / RANKER_PAIRS)
    np.save(folder / RANKER_ITEMS, draw.standard_normal((state.num_known_items, ranker.user.dim)).astype(np.float32))
    write_json(folder / RANKER, {"top": TOP})


def _write_mean(path: Path, vectors: np.ndarray) -> None:
    """Writes a graph that computes the mean of the history's vectors, with length 1."""
    table = np.concatenate([np.zeros((1, DIM), np.float32), vectors])
    nodes = [
        helper.make_node("Gather", ["table", "positives"], ["vectors"]),
        helper.make_node("ReduceSum", ["vectors", "one"], ["sum"], keepdims=0),
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
