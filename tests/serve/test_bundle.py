"""Train/serve parity over every kind of feature: the service computes the inputs of the training, byte for byte."""

import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.dataset.prepared import FEATURES, HOUR_MS, random_events, write_prepared
from twofold.dataset.batches import item_batches, query_batches
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import load_dataset
from twofold.dataset.features import feature_names
from twofold.dataset.tower_inputs import Queries, queries_at, user_inputs
from twofold.errors import RunError
from twofold.index.item_index import build_index, save_index
from twofold.index.score_kinds import items_as_products, queries_as_products
from twofold.model.onnx_export import export_user_tower
from twofold.model.retriever import item_vectors, user_vectors
from twofold.model.two_tower import build_two_tower
from twofold.model.weights import encode
from twofold.recipe.retriever import Cosine, Dot, NegativeDistance, TwoTower
from twofold.run_folder import MANIFEST, run_stage
from twofold.serve import load
from twofold.serve.bundle import USER_TOWER, save_context


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def prepared(folder):
    write_prepared(folder / "prepare", random_events(0))
    as_of = (
        build_dataset(folder / "prepare", FEATURES, folder / "dataset", time_zone="Asia/Shanghai")["last_event_at"] + 1
    )
    return folder, load_dataset(folder / "dataset"), as_of


@pytest.fixture(scope="module")
def served(prepared, folder):
    names, _ = feature_names(prepared[1].features)
    return serve(prepared, folder, lambda tower, path: write_graph_of_zeros(names, path))


def write_graph_of_zeros(names, path):
    """Writes a graph with the inputs of a tower and vectors of zeros: it takes no export to test the inputs."""
    zeros = numpy_helper.from_array(np.zeros((1, 8), np.float32), "zeros")
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    output = helper.make_tensor_value_info("vector", TensorProto.FLOAT, [1, 8])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["zeros"], ["vector"])], "user_tower", inputs, [output], [zeros]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def serve(prepared, run, write_tower, **config):
    """Writes and opens the bundle of an untrained model; returns it with the dataset and the model."""
    folder, dataset, as_of = prepared
    torch.manual_seed(0)
    model = build_two_tower(TwoTower(kind="two_tower", dim=8, **config), dataset.features, dataset.vectors)
    for name, parameter in model.named_parameters():
        if name.endswith("by_time"):  # as after training
            torch.nn.init.normal_(parameter)

    def work(out):
        save_index(build_index(encode(model.item, item_batches(dataset, as_of)), score=model.score), out)
        write_tower(model.user, out / USER_TOWER)
        save_context(folder / "dataset", out, as_of=as_of)
        return {}

    run_stage(run, "index", inputs={}, work=work)
    return load(run), dataset, model


def as_bytes(inputs):
    return {name: np.ascontiguousarray(values).tobytes() for name, values in inputs.items()}


@pytest.mark.parametrize("hours_ago", [0, 1, 30, 200])
def test_the_service_reads_the_inputs_of_the_evaluation(served, hours_ago):
    recommender, dataset, _ = served
    bundle = recommender.bundle
    user_rows = np.arange(len(dataset.users))
    at = np.full(len(user_rows), bundle.as_of - hours_ago * HOUR_MS)
    (evaluated,) = query_batches(dataset, user_rows, at)
    queries = queries_at(bundle.features, bundle.positives, bundle.negatives, user_rows=user_rows, at=at)
    assert as_bytes(user_inputs(bundle.features, bundle.user_arrays, queries)) == as_bytes(
        {name: values.numpy() for name, values in evaluated.items()}
    )


DOT = Dot(kind="dot")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("score", "output_norm"),
    [
        (Cosine(kind="cosine"), "none"),
        (DOT, "l2"),
        (DOT, "batch_norm"),
        (NegativeDistance(kind="negative_distance"), "none"),
    ],
    ids=lambda value: getattr(value, "kind", value),
)
def test_training_evaluation_and_service_compute_the_same_score(prepared, tmp_path, score, output_norm):
    recommender, dataset, model = serve(prepared, tmp_path, export_user_tower, score=score, output_norm=output_norm)
    as_of = recommender.bundle.as_of
    users = np.arange(len(dataset.users))
    at = np.full(len(users), as_of)
    queries = queries_as_products(user_vectors(model, dataset, users, at), model.score)
    evaluated = queries @ items_as_products(item_vectors(model, dataset, as_of), model.score).T
    u, v = (torch.from_numpy(encode(tower, inputs)) for tower, inputs in (
        (model.user, query_batches(dataset, users, at)), (model.item, item_batches(dataset, as_of)),
    ))  # fmt: skip
    queries, factors = model.as_products(u, v)  # the inputs of the losses
    np.testing.assert_allclose(evaluated, (queries @ factors.T).numpy(), atol=1e-4)
    np.testing.assert_allclose(model.own_logits(u[:9], v[:9]) * model.temperature, evaluated.diagonal()[:9], atol=1e-4)
    if score.kind == "negative_distance":
        np.testing.assert_allclose(evaluated, -(torch.cdist(u, v) ** 2).numpy(), atol=1e-4)
    table = recommender.recommend(dataset.users.ids, k=len(dataset.items), exclude_seen=False)
    rows = dataset.users.rows_of(table["user_id"]), dataset.items.rows_of(table["item_id"])
    assert len(table) == evaluated.size
    np.testing.assert_allclose(np.asarray(table["score"]), evaluated[rows], atol=1e-4)
    one = recommender.recommend([dataset.users.ids[3]], k=4, exclude_seen=False)
    assert one["score"].to_pylist() == pytest.approx(np.sort(evaluated[3])[::-1][:4].tolist(), abs=1e-4)


def test_a_posted_history_gives_the_inputs_of_a_known_user(served, monkeypatch):
    recommender, dataset, _ = served
    bundle = recommender.bundle
    read = []
    monkeypatch.setattr(
        type(bundle.tower), "vectors", lambda tower, inputs: read.append(inputs) or np.zeros((1, 8), np.float32)
    )
    (user_row,) = dataset.users.rows_of(["user 4"])
    seen = {
        name: dataset.items.ids_of(history.item_rows[history.offsets[user_row] : history.offsets[user_row + 1]])
        for name, history in (("positives", bundle.positives), ("negatives", bundle.negatives))
    }
    recommender.recommend(["user 4"])
    recommender.recommend_for_history(seen["positives"], negatives=seen["negatives"])
    known, posted = (as_bytes(inputs) for inputs in read)
    user_only = {"id", "language", "years", "rhythm", "user_id_like_24h", "user_id_watch_s_life"}
    user_only |= {"positives_sequence.ages"}  # zero: the times of a posted history are unknown
    assert not np.any(read[1]["positives_sequence.ages"])
    assert np.any(read[0]["positives_sequence.ages"])
    assert {name for name in known if known[name] != posted[name]} <= user_only
    # An unknown user has no attributes and average counters, like a user of the log without events.
    unknown = Queries(np.array([-1]), np.array([0]), np.zeros((1, 0), np.int32), np.zeros((1, 0), np.int32))
    idle = Queries(np.array([13]), np.array([0]), np.zeros((1, 0), np.int32), np.zeros((1, 0), np.int32))
    one, other = (user_inputs(bundle.features, bundle.user_arrays, queries) for queries in (unknown, idle))
    assert (one["language"].tolist(), one["years"].tolist()) == ([0], [0.0])
    assert one["user_id_like_24h"].tobytes() == other["user_id_like_24h"].tobytes()
    assert np.array_equal(read[1]["user_id_like_24h"], one["user_id_like_24h"])


@pytest.mark.parametrize(
    "names",
    [("user_arrays/years",), ("user_arrays/clusters.look.3",), ("counters/user_id/first", "counters/user_id/end")],
)
def test_arrays_of_other_users_or_items_are_refused(served, folder, tmp_path, names):
    def work(out):
        shutil.copytree(folder / "index", out, ignore=shutil.ignore_patterns(MANIFEST), dirs_exist_ok=True)
        for name in names:
            np.save(out / f"{name}.npy", np.load(out / f"{name}.npy")[1:])
        return {}

    run_stage(tmp_path, "index", inputs={}, work=work)
    with pytest.raises(
        RunError, match=r"user_arrays/ or counters/ belong to other users or items. Delete .*/index and run"
    ):
        load(tmp_path)
