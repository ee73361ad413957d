"""The whole house on worlds whose right answer is known, and on runs that are reused, killed or mixed up."""

import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import twofold
from tests import worlds
from tests.small_peers import shrink_ials
from twofold.dataset.dataset import load_dataset
from twofold.errors import RecipeError, RunError
from twofold.evaluate.baselines import popularity, positives_before
from twofold.evaluate.impressions import evaluate_impressions
from twofold.evaluate.window import evaluation_window
from twofold.pipeline import run as pipeline
from twofold.pipeline.job import claim_folder, reopen, report_of
from twofold.recipe.index import Index
from twofold.recipe.load import dump_recipe, load_recipe
from twofold.run_folder import find_stage
from twofold.runs import list_runs


def test_checkerboard_the_withheld_item_is_each_users_first_recommendation(checkerboard, solved):
    report = report_of(solved.folder)
    model = report.metrics_of("model")
    assert model["catalogue/hit_rate@1"] == 1.0
    assert model["catalogue/mrr@10"] == 1.0


def test_after_the_test_day_nothing_of_a_users_own_kind_is_left_to_recommend(solved):
    answers = pq.read_table(solved.folder / "recommend" / "recommendations.parquet")
    assert answers.column_names == ["user_id", "item_id", "score", "rank"]
    users, items = np.asarray(answers["user_id"]), np.asarray(answers["item_id"])
    assert ((users + items) % 2 == 1).all()  # all of the own kind have been seen
    assert (np.asarray(answers["rank"])[users == users[0]] == np.arange(1, (users == users[0]).sum() + 1)).all()


def test_an_unseen_user_with_a_posted_history_gets_its_own_kind(solved):
    recommender = twofold.load(solved.folder)
    answers = recommender.recommend_for_history([0, 2, 4], k=20)
    assert all(item % 2 == 0 for item in answers["item_id"].to_pylist())
    assert not {0, 2, 4} & set(answers["item_id"].to_pylist())


def test_the_served_vector_answers_as_the_judged_one(checkerboard, solved):
    """Train/serve parity through every stage: the file's scores equal the trained model's at the same moment."""
    from twofold.model.retriever import item_vectors, load_model, user_vectors

    arrays = load_dataset(solved.folder / "dataset")
    trained = find_stage(solved.folder, "train")
    model = load_model(solved.recipe.retriever, arrays, trained.folder)
    as_of = int(arrays.events.at.max()) + 1
    users = user_vectors(model, arrays, np.arange(len(arrays.users)), np.full(len(arrays.users), as_of))
    scores = users @ item_vectors(model, arrays, as_of).T
    answers = pq.read_table(solved.folder / "recommend" / "recommendations.parquet")
    rows = arrays.users.rows_of(answers["user_id"]), arrays.items.rows_of(answers["item_id"])
    np.testing.assert_allclose(np.asarray(answers["score"]), scores[rows], atol=1e-5)


@pytest.mark.usefixtures("small_ials")
def test_the_leak_gives_no_profit(leak, tmp_path):
    job = pipeline.Job(leak, tmp_path)
    claim_folder(job, overwrite=False)
    pipeline.evaluate(job, *pipeline.up_to_training(job))
    # All users share one coin an item, so chance spreads as the AUC of 150 against 150 items does:
    # its standard deviation is sqrt((150 + 150 + 1) / (12 · 150 · 150)) = .033.
    spread = math.sqrt((150 + 150 + 1) / (12 * 150 * 150))
    for row in report_of(job.folder).impressions.rows:
        assert abs(row.metrics["impressions/auc"].value - 0.5) < 3 * spread, row.name
    # And whoever peeks would be seen: popularity of the whole log, the day of test included.
    arrays = load_dataset(job.folder / "dataset")
    window = evaluation_window(arrays, "test")
    everything = positives_before(arrays, window, first_at=int(arrays.events.at.max()) + 1)
    peeking = evaluate_impressions(window, popularity(everything))
    assert peeking.mean("impressions/auc") > 0.9


@pytest.mark.slow
def test_where_all_share_one_taste_popularity_is_not_beaten_by_much(popularity_only, tmp_path):
    report = report_of(twofold.run(popularity_only, runs=tmp_path).folder)
    rows = {row.name: row.metrics["impressions/auc"].value for row in report.impressions.rows}
    assert rows["popularity"] > 0.75
    assert rows["model"] < rows["popularity"] + 0.02


@pytest.mark.slow
def test_only_what_the_recipe_lets_pass_is_recommended_and_the_report_says_what_that_costs(popularity_only, tmp_path):
    index_tree = {"recent_counts": {"likes_2d": {"events": "positives", "days": 2}}, "where": "likes_2d >= 30"}
    short = popularity_only.model_copy(update={"train": popularity_only.train.model_copy(update={"epochs": 2})})
    job = twofold.run(short.model_copy(update={"index": Index.model_validate(index_tree)}), runs=tmp_path)
    events = pq.read_table(popularity_only.data.events)
    items, at, liked = (np.asarray(events[name]) for name in ("item_id", "at", "liked"))

    def passing(end: int, likes: int = 30) -> set[int]:
        recent = items[liked & (at >= end - 2 * worlds.DAY_MS) & (at < end)]
        return set(np.flatnonzero(np.bincount(recent, minlength=60) >= likes).tolist())

    served = passing(end := int(at.max()) + 1)
    assert 0 < len(served) < 60
    answers = pq.read_table(job.folder / "recommend" / "recommendations.parquet")
    assert set(answers["item_id"].to_pylist()) <= served
    recommender = twofold.load(job.folder)
    for where, expected in ((None, served), ("likes_2d >= 20", served), ("likes_2d >= 40", passing(end, 40))):
        found = recommender.recommend_for_history([0, 1], k=60, exclude_seen=False, where=where)
        assert set(found["item_id"].to_pylist()) == expected

    of_test = at >= worlds.FIRST_MS + worlds.TEST * worlds.DAY_MS
    judged = passing(int(at[of_test].min()))
    section = report_of(job.folder).filtered
    assert (section.where, section.items) == ("likes_2d >= 30", len(judged))
    window = evaluation_window(load_dataset(job.folder / "dataset"), "test")
    vocabulary = load_dataset(job.folder / "dataset").items
    holds = np.isin(vocabulary.ids_of(window.relevant.values).to_numpy(), list(judged))
    shares = np.bincount(window.relevant.lines, holds, len(window.user_rows)) / np.maximum(window.relevant.sizes, 1)
    assert section.ceiling.value == pytest.approx(shares[window.relevant.sizes > 0].mean())
    recall = report_of(job.folder).metrics_of("model")["catalogue_filtered/recall@10"]
    assert 0 < recall <= section.ceiling.value
    assert "index.where: likes_2d >= 30 allows" in report_of(job.folder).verdict[-1]

    refused = short.model_copy(update={"index": Index.model_validate(index_tree | {"where": "likes_2d > 9999"})})
    with pytest.raises(RecipeError, match="likes_2d > 9999 is true for none of the 60 items, so nothing could be"):
        twofold.run(refused, runs=tmp_path, overwrite=True)


def test_a_second_run_makes_nothing_again_and_a_change_only_what_depends_on_it(checkerboard, solved):
    def reused(recipe, **named):
        stages = {}
        pipeline.run(
            recipe,
            runs=solved.folder.parent,
            on_stage_done=lambda stage: stages.update({stage.folder.name: stage.was_reused}),
            **named,
        )
        return stages

    assert all(reused(checkerboard).values())
    longer = checkerboard.model_copy(update={"recommend_k": 3})
    refusal = r"holds a run of another recipe. It differs in recommend_k: 10 → 3. .*--run NAME.*--overwrite"
    with pytest.raises(RunError, match=refusal):
        reused(longer)
    again = reused(longer, overwrite=True)
    assert [name for name, was in again.items() if not was] == ["recommend", "explain"]
    reused(checkerboard, overwrite=True)


def test_the_table_of_runs_lists_it(solved):
    (line,) = list_runs(solved.folder.parent)
    assert line.name == "world"
    assert line.stage == "explain"
    assert line.metrics["catalogue/hit_rate@1"] == 1.0
    assert list_runs(solved.folder / "nowhere") == []


def test_evaluating_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="is no run folder: it holds no recipe.yaml. List the runs with `twofold runs`"):
        reopen(tmp_path)
    with pytest.raises(RunError, match="there is no run folder"):
        twofold.load(tmp_path / "nowhere")


@pytest.mark.slow
def test_two_runs_of_one_seed_give_identical_reports(checkerboard, solved, tmp_path, monkeypatch):
    shrink_ials(monkeypatch)  # as `solved` was run
    first, second = report_of(solved.folder), report_of(twofold.run(checkerboard, runs=tmp_path).folder)
    assert replace(first, facts=second.facts) == second  # they say when, where and of what commit
    for name in ("users.parquet", "pairs.parquet"):
        one, other = (folder / "evaluate" / name for folder in (solved.folder, tmp_path / solved.folder.name))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_a_run_killed_in_training_ends_with_the_metrics_of_an_uninterrupted_one(kuairand_folder, tmp_path):
    """SIGKILL on ten days of two fifths of the real log's users, in the middle of the second epoch; the same commands
    again continue.
    """
    without_peers = ["retriever.kind=two_tower", "evaluate.brief=true"]  # whose tuning takes minutes
    short = ["prepare.split.train.first=2022-04-27", "prepare.sample.users=0.4", "train.epochs=2"]
    shipped = load_recipe(kuairand_folder.parents[1] / "recipes" / "kuairand.yaml", overrides=without_peers + short)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_recipe(shipped))

    def started(*arguments):
        command = [sys.executable, "-m", "twofold", *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def judge(runs):
        for verb in (("train", recipe, "--runs", runs), ("evaluate", runs / "kuairand")):
            assert started(*verb).wait(timeout=600) == 0

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    judge(whole)
    checkpoint = cut / "kuairand" / "selection" / "train.partial" / "checkpoint.safetensors"
    process = started("run", recipe, "--runs", cut)
    try:
        _wait_for(checkpoint, process)
        time.sleep(1.0)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (cut / "kuairand" / "train").exists()
    with pytest.raises(RunError, match=r"no complete index/ stage"):
        twofold.load(cut / "kuairand")
    judge(cut)
    assert report_of(cut / "kuairand").metrics_of("model") == report_of(whole / "kuairand").metrics_of("model")


def _wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, f"{path} never appeared"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_disk_that_is_really_full_is_one_message_and_nothing_counts_as_done(kuairand_folder, tmp_path):
    """2 MiB of disk for a stage that writes 9: needs the right to mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        recipe = kuairand_folder.parents[1] / "recipes" / "kuairand.yaml"
        command = [sys.executable, "-m", "twofold", "prepare", str(recipe), "--runs", str(disk)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert ended.returncode == 2
        assert "the disk is full" in ended.stderr
        assert "free some space and give the same command again" in ended.stderr
        assert "Traceback" not in ended.stderr
        (line,) = list_runs(disk)
        assert line.stage == "–"
    finally:
        subprocess.run(["umount", str(disk)], check=True)
