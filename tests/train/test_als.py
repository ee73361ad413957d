"""Weighted alternating least squares: against the dense closed form, the worlds, and what is served."""

from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.sparse
from threadpoolctl import threadpool_limits

import twofold
from tests.worlds import world_recipe
from twofold.dataset.dataset import load_dataset
from twofold.errors import DataError, RecipeError, RunError
from twofold.least_squares import LeastSquares, factorize
from twofold.model.fold_in import FOLD_IN, FoldIn, load_factors, save_factors
from twofold.model.retriever import describe_model, item_vectors, load_model, user_vectors
from twofold.pipeline.job import Job, report_of
from twofold.pipeline.run import up_to_training
from twofold.recipe.load import load_recipe
from twofold.recipe.retriever import Ials
from twofold.run_folder import find_stage
from twofold.train.als import solve, train_likes

IALS = {
    "features": {"user": [{"kind": "history", "events": "positives", "max_length": 100}], "item": [{"kind": "id"}]},
    "retriever": {"kind": "ials", "dim": 8, "regularization": 1.0, "alpha": 10.0, "iterations": 10},
    "evaluate": {"brief": True},
}
# Five users, five items: how often they liked which. One user and one item like nothing.
LIKES = np.array(
    [
        [1, 1, 0, 0, 0],
        [2, 0, 1, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 0, 0, 3, 0],
    ],
    np.float32,
)
ALPHA, PENALTY, DIM = 3.0, 0.5, 2


def solved_after(iterations, likes=LIKES, seed=0, power=0.0):
    config = Ials(
        kind="ials", dim=DIM, regularization=PENALTY, alpha=ALPHA, iterations=iterations, frequency_power=power
    )
    return solve(scipy.sparse.csr_matrix(likes), config, seed=seed)


def factors_after(iterations, power=0.0):
    constants = LeastSquares(DIM, ALPHA, PENALTY, power, iterations)
    return factorize(scipy.sparse.csr_matrix(LIKES), constants).item_vectors.astype(np.float64)


def penalties(likes, power):
    """A penalty for each line, whose mean over the lines with likes is PENALTY."""
    strength = likes.sum(axis=1) ** power
    return PENALTY * strength / strength[likes.any(axis=1)].mean()


def half_step(likes, fixed, power=0.0):
    """Hu, Koren, Volinsky, eq. 4, a line at a time, nothing left out."""
    lines = []
    for liked, penalty in zip(likes, penalties(likes, power), strict=True):
        confidence = np.diag(1 + ALPHA * liked)
        left = fixed.T @ confidence @ fixed + max(penalty, 1e-9) * np.eye(DIM)
        lines.append(np.linalg.solve(left, fixed.T @ confidence @ (liked > 0)))
    return np.array(lines)


def loss(users, items):
    """Eq. 3."""
    squared = (1 + ALPHA * LIKES) * ((LIKES > 0) - users @ items.T) ** 2
    return squared.sum() + PENALTY * ((users**2).sum() + (items**2).sum())


def histories(likes, length=6):
    """Lines of table rows, none first, as the user's side reads them."""
    lines = [np.repeat(np.arange(1, len(liked) + 1), liked.astype(int)) for liked in likes]
    return {"positives": np.array([np.pad(line, (length - len(line), 0)) for line in lines], np.int32)}


# --- the solver -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("iterations", [1, 2, 7])
def test_each_half_step_is_the_dense_closed_form(iterations, power):
    before, after = (factors_after(n, power) for n in (iterations, iterations + 1))
    users = half_step(LIKES, before, power)
    np.testing.assert_allclose(after, half_step(LIKES.T, users, power), atol=1e-5)


def test_the_reported_loss_is_that_of_all_pairs_and_falls_where_three_steps_do_not_solve_a_row():
    draw = np.random.default_rng(2)
    likes = (draw.random((40, 60)) < 0.2) * draw.integers(1, 4, (40, 60)).astype(np.float32)
    likes[3] = likes[:, 5] = 0
    losses, found = [], []
    factorize(
        scipy.sparse.csr_matrix(likes),
        LeastSquares(16, ALPHA, PENALTY, 1.0, 8),
        on_iteration=lambda factors, loss, seconds: (found.append(factors), losses.append(loss)),
    )
    for factors, reported in zip(found, losses, strict=True):
        users, items = factors.user_vectors.astype(float), factors.item_vectors.astype(float)
        squared = (1 + ALPHA * likes) * ((likes > 0) - users @ items.T) ** 2
        held = penalties(likes, 1.0) @ (users**2).sum(axis=1) + penalties(likes.T, 1.0) @ (items**2).sum(axis=1)
        assert reported == pytest.approx((squared.sum() + held) / likes.size, rel=1e-4)
    assert all(later < earlier for earlier, later in pairwise(losses))
    assert not found[-1].user_vectors[3].any()


def test_users_of_many_likes_are_found_as_well_as_those_of_few_where_the_penalty_grows():
    """Two tastes of 30 items; 20 users like nearly all of a taste, 400 like two items of it."""
    draw = np.random.default_rng(3)
    likes = np.zeros((420, 60), np.float32)
    for user in range(420):
        taste = 30 * (user % 2) + np.arange(30)
        likes[user, draw.choice(taste, 25 if user < 20 else 2, replace=False)] = 1
    ratio = {}
    for power in (0.0, 1.0):
        factors = factorize(scipy.sparse.csr_matrix(likes), LeastSquares(4, 10.0, 40.0, power, 15))
        scores = factors.user_vectors @ factors.item_vectors.T
        ratio[power] = scores[:20][likes[:20] > 0].mean() / scores[20:][likes[20:] > 0].mean()
    assert ratio[1.0] < 1.7 < 3 < ratio[0.0]


def test_the_loss_falls_at_every_half_step():
    losses, users = [], None
    for iterations in range(1, 8):
        items = factors_after(iterations)
        if users is not None:
            losses.append(loss(users, items))  # the items' half-step, of the users before
        users = half_step(LIKES, items)
        losses.append(loss(users, items))
    assert all(later < earlier for earlier, later in pairwise(losses))


def test_what_nobody_likes_is_the_zero_vector_and_nobody_asks_with_the_mean():
    solved = solved_after(5)
    assert not solved.item_vectors[4].any()
    (nobody,) = solved.vectors({"positives": np.zeros((1, 3), np.int32)})
    np.testing.assert_array_equal(nobody, solved.default_vector)
    np.testing.assert_array_equal(solved.vectors({"positives": np.array([[0, 5]], np.int32)})[0], solved.default_vector)
    assert solved.default_vector.any()


def test_equal_seeds_give_equal_bytes_however_many_threads_there_are():
    draw = np.random.default_rng(0)
    likes = (draw.random((300, 80)) < 0.1).astype(np.float32)
    first = solved_after(4, likes).item_vectors.tobytes()
    with threadpool_limits(limits=1):
        assert solved_after(4, likes).item_vectors.tobytes() == first
    assert solved_after(4, likes, seed=1).item_vectors.tobytes() != first


# --- users folded in --------------------------------------------------------------------------------------------------


def test_vectors_are_kept_on_the_axes_of_their_gram_matrix_and_score_as_before():
    before, after = factors_after(5), solved_after(5).item_vectors.astype(np.float64)
    np.testing.assert_allclose(after @ after.T, before @ before.T, atol=1e-6)
    gram = after.T @ after
    assert abs(gram[0, 1]) < 1e-6 * gram[0, 0]
    with pytest.raises(ValueError, match="is not diagonal"):
        FoldIn(before.astype(np.float32), np.zeros(DIM, np.float32), ALPHA, PENALTY)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_a_user_folded_in_is_the_dense_closed_form_of_their_line(power):
    solved = solved_after(5, power=power)
    expected = half_step(LIKES, solved.item_vectors.astype(np.float64), power)
    expected[2] = solved.default_vector
    np.testing.assert_allclose(solved.vectors(histories(LIKES)), expected, atol=1e-6)


@pytest.mark.parametrize("length", [5, 40])  # fewer and more than dimensions
def test_users_are_solved_alike_by_items_and_by_axes(length):
    draw = np.random.default_rng(4)
    vectors = (np.linalg.qr(draw.normal(size=(50, 16)))[0] * np.linspace(3, 0, 16)).astype(np.float32)
    model = FoldIn(vectors, np.ones(16, np.float32), ALPHA, PENALTY, 0.5)
    rows = np.sort(draw.integers(1, 51, (3, length)), axis=1).astype(np.int32)  # some items are liked twice
    rows[1, :3] = 0
    for line, found in zip(rows, model.vectors({"positives": rows}), strict=True):
        liked = np.bincount(line[line > 0] - 1, minlength=50)
        confidence = np.diag(1 + ALPHA * liked)
        left = vectors.T @ confidence @ vectors + PENALTY * liked.sum() ** 0.5 * np.eye(16)
        np.testing.assert_allclose(found, np.linalg.solve(left, vectors.T @ confidence @ (liked > 0)), atol=1e-5)


def test_a_batch_is_its_lines_and_the_order_of_a_history_does_not_matter():
    solved = solved_after(5)
    rows = histories(LIKES)["positives"]
    whole = solved.vectors({"positives": rows})
    for line, vector in zip(rows, whole, strict=True):
        liked = line[line > 0]
        np.testing.assert_allclose(solved.vectors({"positives": liked[None]})[0], vector, atol=1e-6)
        np.testing.assert_array_equal(solved.vectors({"positives": line[None, ::-1]})[0], vector)
    assert solved.vectors({"positives": rows[:0]}).shape == (0, DIM)


def test_saved_and_loaded_are_equal(tmp_path):
    solved = solved_after(5)
    save_factors(solved, tmp_path)
    (loaded,) = load_factors(tmp_path)
    rows = histories(LIKES)
    assert loaded.item_vectors.tobytes() == solved.item_vectors.tobytes()
    assert loaded.vectors(rows).tobytes() == solved.vectors(rows).tobytes()
    save_factors(FoldIn(solved.item_vectors[:, :1], solved.default_vector[:1], ALPHA, PENALTY), tmp_path / "..")
    (tmp_path / FOLD_IN).write_bytes((tmp_path / ".." / FOLD_IN).read_bytes())
    with pytest.raises(ValueError, match=r"fold_in.json has 1 dimensions, the item vectors have 2"):
        load_factors(tmp_path)


# --- a whole run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def solved_run(checkerboard, tmp_path_factory):
    recipe = world_recipe(checkerboard.data.model_dump(), IALS)
    return twofold.run(recipe, runs=tmp_path_factory.mktemp("runs"))


def test_checkerboard_the_withheld_item_is_each_users_first_recommendation(solved_run):
    report = report_of(solved_run.folder)
    assert report.metrics_of("model")["catalogue/hit_rate@1"] == 1.0
    assert report.track == "time_free"


def test_what_is_served_is_what_was_judged(solved_run):
    arrays = load_dataset(solved_run.folder / "dataset")
    model = load_model(solved_run.recipe.retriever, arrays, find_stage(solved_run.folder, "train").folder)
    recommender = twofold.load(solved_run.folder)
    user_rows = np.arange(len(arrays.users))
    for at in (int(arrays.events.at.max()) + 1, int(np.median(arrays.events.at))):
        scores = user_vectors(model, arrays, user_rows, np.full(len(user_rows), at)) @ item_vectors(model, arrays, at).T
        answers = recommender.recommend(arrays.users.ids, k=5, at=at, exclude_seen=False)
        rows = arrays.users.rows_of(answers["user_id"]), arrays.items.rows_of(answers["item_id"])
        np.testing.assert_allclose(np.asarray(answers["score"]), scores[rows], atol=1e-5)


def test_an_unseen_user_with_the_history_of_a_known_one_gets_the_same_scores(solved_run):
    recommender = twofold.load(solved_run.folder)
    bundle = recommender.bundle
    first, end = bundle.positives.offsets[:2]
    history = bundle.items.ids_of(bundle.positives.item_rows[first:end])
    posted = recommender.recommend_for_history(history, k=64, exclude_seen=False)
    known = recommender.recommend(bundle.users.ids[:1], k=64, exclude_seen=False)
    assert posted.drop_columns("user_id").equals(known.drop_columns("user_id"))


def test_the_log_of_training_and_the_drawing_of_the_model(solved_run):
    facts = find_stage(solved_run.folder, "train").facts
    losses = [epoch["loss"] for epoch in facts["epochs"]]
    assert len(losses) == 10
    assert all(later < earlier for earlier, later in pairwise(losses))
    assert pq.read_table(solved_run.folder / "train" / "training_log.parquet").num_rows == 10
    arrays = load_dataset(solved_run.folder / "dataset")
    model = load_model(solved_run.recipe.retriever, arrays, solved_run.folder / "train")
    assert [part.shape for part in describe_model(model)] == ["solved from their items' vectors → 8", "64 rows → 8"]
    assert facts["parameters"] == 64 * 8


def test_equal_runs_give_equal_vectors(solved_run, tmp_path):
    _, _, again, _ = up_to_training(Job(solved_run.recipe, tmp_path))
    first, second = (load_factors(folder)[0].item_vectors for folder in (solved_run.folder / "train", again.folder))
    assert first.tobytes() == second.tobytes()


# --- what a user can get wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("retriever.dim=0", r"retriever.dim: is 0 — must be at least 1"),
        ("retriever.regularization=0", r"retriever.regularization: is 0 — must be above 0"),
        ("retriever.alpha=-1", r"retriever.alpha: is -1 — must be above 0"),
        (
            "features.item=[{kind: id}, {kind: age}]",
            r"a retriever of kind ials reads the positive history and item ids, and no other feature: write "
            r"features: \{user: \[\{kind: "
            r"history, events: positives, max_length: 500\}\], item: \[\{kind: id\}\]\}, or choose kind: two_tower",
        ),
        ("features.user.0.pool=windows", r"retriever of kind ials reads the positive history"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(solved_run, change, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(solved_run.folder / "recipe.yaml", overrides=[change])


def test_a_training_window_without_positives_is_refused(checkerboard, tmp_path):
    prepare = checkerboard.prepare.model_dump() | {"weight": "CASE WHEN liked THEN 0 ELSE 1 END"}
    recipe = world_recipe(checkerboard.data.model_dump(), {**IALS, "prepare": prepare})
    with pytest.raises(DataError, match=r"no positive event of a weight above 0; .* Check prepare.positive"):
        twofold.run(recipe, runs=tmp_path)


def test_weights_are_summed_over_a_pair_and_of_mean_1(solved_run):
    likes = train_likes(load_dataset(solved_run.folder / "dataset"))
    assert likes.shape == (128, 64)
    assert (likes.data == 1).all()


def test_a_bundle_whose_parts_are_of_two_runs_is_refused(solved_run, tmp_path):
    import json
    import shutil

    from twofold.run_folder import MANIFEST

    shutil.copytree(solved_run.folder / "index", tmp_path / "index")
    manifest = json.loads((tmp_path / "index" / MANIFEST).read_text())
    held = json.loads((tmp_path / "index" / FOLD_IN).read_text())
    (tmp_path / "index" / FOLD_IN).write_text(json.dumps(held | {"nobody": [0.0], "dim": 1}))
    del manifest["files"][FOLD_IN]
    (tmp_path / "index" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=r"fold_in.json has 1 dimensions, the item vectors have 8"):
        twofold.load(tmp_path)
