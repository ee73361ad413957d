"""Train/serve parity over every kind of feature: a server reads what was trained on, byte by byte."""

import shutil

import numpy as np
import pytest
import torch

from tests.dataset.prepared import FEATURES, HOUR_MS, random_events, write_prepared
from twofold.dataset.batches import item_batches, query_batches
from twofold.dataset.dataset import build_dataset, load_dataset
from twofold.dataset.features import Queries, queries_at, user_inputs
from twofold.errors import RunError
from twofold.index.score_kinds import items_as_products, queries_as_products
from twofold.index.search import build_index, save_index
from twofold.model.retriever import item_vectors, user_vectors
from twofold.model.two_tower import build_two_tower, encode, export_user_tower
from twofold.recipe.train import Cosine, Dot, NegativeDistance, TwoTower
from twofold.run_folder import MANIFEST, run_stage
from twofold.serve import load
from twofold.serve.bundle import USER_TOWER, save_context


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def prepared(folder):
    write_prepared(folder / "prepare", random_events(0))
    as_of = build_dataset(folder / "prepare", FEATURES, folder / "dataset", utc_offset_h=8)["last_event_at"] + 1
    return folder, load_dataset(folder / "dataset"), as_of


@pytest.fixture(scope="module")
def served(prepared, folder):
    return serve(prepared, folder, hidden=(6,))


def serve(prepared, run, **asked):
    """A bundle of an untrained model, opened, beside what it is made of."""
    folder, dataset, as_of = prepared
    torch.manual_seed(0)
    model = build_two_tower(TwoTower(kind="two_tower", dim=8, **asked), dataset.features, dataset.vectors)
    for name, parameter in model.named_parameters():
        if name.endswith("by_time"):  # as if it had learnt something of time
            torch.nn.init.normal_(parameter)

    def work(out):
        save_index(build_index(encode(model.item, item_batches(dataset, as_of)), score=model.score), out)
        export_user_tower(model.user, out / USER_TOWER)
        save_context(folder / "dataset", out, as_of=as_of)
        return {}

    run_stage(run, "index", inputs={}, work=work)
    return load(run), dataset, model


def as_bytes(inputs):
    return {name: np.ascontiguousarray(values).tobytes() for name, values in inputs.items()}


@pytest.mark.parametrize("hours_ago", [0, 1, 30, 200])
def test_a_server_reads_what_evaluation_reads(served, hours_ago):
    recommender, dataset, _ = served
    bundle = recommender.bundle
    user_rows = np.arange(len(dataset.users))
    at = np.full(len(user_rows), bundle.as_of - hours_ago * HOUR_MS)
    (judged,) = query_batches(dataset, user_rows, at)
    asked = queries_at(bundle.features, bundle.positives, bundle.negatives, user_rows=user_rows, at=at)
    assert as_bytes(user_inputs(bundle.features, bundle.user_arrays, asked)) == as_bytes(
        {name: values.numpy() for name, values in judged.items()}
    )


DOT = Dot(kind="dot")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("score", "output"),
    [
        (Cosine(kind="cosine"), "none"),
        (DOT, "l2"),
        (DOT, "batch_norm"),
        (NegativeDistance(kind="negative_distance"), "none"),
    ],
    ids=lambda asked: getattr(asked, "kind", asked),
)
def test_what_is_trained_judged_and_served_is_one_score(prepared, tmp_path, score, output):
    recommender, dataset, model = serve(prepared, tmp_path, score=score, output=output)
    as_of = recommender.bundle.as_of
    users = np.arange(len(dataset.users))
    at = np.full(len(users), as_of)
    queries = queries_as_products(user_vectors(model, dataset, users, at), model.score)
    judged = queries @ items_as_products(item_vectors(model, dataset, as_of), model.score).T
    u, v = (torch.from_numpy(encode(tower, inputs)) for tower, inputs in (
        (model.user, query_batches(dataset, users, at)), (model.item, item_batches(dataset, as_of)),
    ))  # fmt: skip
    queries, factors = model.as_products(u, v)  # what losses read
    np.testing.assert_allclose(judged, (queries @ factors.T).numpy(), atol=1e-4)
    np.testing.assert_allclose(model.own_logits(u[:9], v[:9]) * model.temperature, judged.diagonal()[:9], atol=1e-4)
    if score.kind == "negative_distance":
        np.testing.assert_allclose(judged, -(torch.cdist(u, v) ** 2).numpy(), atol=1e-4)
    answers = recommender.recommend(dataset.users.ids, k=len(dataset.items), exclude_seen=False)
    rows = dataset.users.rows_of(answers["user_id"]), dataset.items.rows_of(answers["item_id"])
    assert len(answers) == judged.size
    np.testing.assert_allclose(np.asarray(answers["score"]), judged[rows], atol=1e-4)
    one = recommender.recommend([dataset.users.ids[3]], k=4, exclude_seen=False)
    assert one["score"].to_pylist() == pytest.approx(np.sort(judged[3])[::-1][:4].tolist(), abs=1e-4)


def test_a_posted_history_is_read_as_that_of_a_known_user(served, monkeypatch):
    recommender, dataset, _ = served
    bundle = recommender.bundle
    read = []
    monkeypatch.setattr(
        type(bundle.tower), "vectors", lambda tower, inputs: read.append(inputs) or np.zeros((1, 8), np.float32)
    )
    (user_row,) = dataset.users.rows_of(["user 4"])
    met = {
        name: dataset.items.ids_of(history.item_rows[history.offsets[user_row] : history.offsets[user_row + 1]])
        for name, history in (("positives", bundle.positives), ("negatives", bundle.negatives))
    }
    recommender.recommend(["user 4"])
    recommender.recommend_for_history(met["positives"], negatives=met["negatives"])
    known, posted = (as_bytes(inputs) for inputs in read)
    of_the_user = {"id", "language", "years", "rhythm", "user_id_like_24h", "user_id_watch_s_life"}
    of_the_user |= {"positives_sequence.ages"}  # as of now: nobody says when a posted history was
    assert not np.any(read[1]["positives_sequence.ages"])
    assert np.any(read[0]["positives_sequence.ages"])
    assert {name for name in known if known[name] != posted[name]} <= of_the_user
    # Who is not known has no attributes, and what is usual for the rest: as a user of the log without events does.
    nobody = Queries(np.array([-1]), np.array([0]), np.zeros((1, 0), np.int32), np.zeros((1, 0), np.int32))
    idle = Queries(np.array([13]), np.array([0]), np.zeros((1, 0), np.int32), np.zeros((1, 0), np.int32))
    one, other = (user_inputs(bundle.features, bundle.user_arrays, queries) for queries in (nobody, idle))
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
