"""Values of single users on disk and back; runs compared user by user, or refused with what differs."""

import json
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from tests import worlds
from tests.evaluate.test_evaluate_window import FACTS, world
from twofold.cli.main import app
from twofold.dataset.vocabulary import Vocabulary
from twofold.errors import RequestError, RunError
from twofold.evaluate.compare import check_comparable, compare_runs
from twofold.evaluate.evaluate_window import EvaluationOptions, evaluate_window
from twofold.evaluate.evaluation_setup import WindowDigests
from twofold.evaluate.per_user_values import load_values, save_values
from twofold.evaluate.results import write_report
from twofold.evaluate.slices import Slicing, slice_recall
from twofold.pipeline import run as pipeline
from twofold.pipeline.job import claim_folder
from twofold.run_folder import locked


def vocabulary(ids):
    return Vocabulary(pa.array(ids), num_known=len(ids))


DIGESTS = WindowDigests(relevant="a" * 64, ranked="b" * 64, impressions="c" * 64)


@cache
def judged_world(noise=0.0, digests=DIGESTS, name="test", includes_seen=False):
    """The window of one world, the halves of its users, and their evaluation."""
    given, truth, before = world()
    window = replace(given, name=name, includes_seen=includes_seen)
    scores = truth + noise * np.random.default_rng(5).random(truth.shape).astype(np.float32)
    halves = Slicing("half", window.relevant.lines % 2, ("even", "odd"))
    options = EvaluationOptions(slicings=(halves,), digests=digests)
    judged = evaluate_window(
        window, lambda users: scores[users].copy(), before, batch_size=32, facts=FACTS, options=options
    )
    return window, halves, judged


def judged_run(folder, *, shuffled=False, ids=None, **changes):
    """The evaluate/ folder of a run on one world; `shuffled` numbers its users and items differently.

    `ids` are those of the users, if they are others than u000 to u149.
    """
    window, halves, judged = judged_world(**changes)
    out = folder / "evaluate"
    out.mkdir(parents=True)
    write_report(judged.report, out)
    own = ids or [f"u{row:03}" for row in range(len(window.user_rows))]
    users = vocabulary(own[:: -1 if shuffled else 1])
    items = vocabulary(list(range(window.num_items)))
    save_values(judged, window, out, users=users, items=items, slicings=(halves,))
    return out, judged, halves, window


@pytest.mark.parametrize("shuffled", [False, True])
def test_what_is_saved_is_what_was_judged(tmp_path, shuffled):
    out, judged, halves, window = judged_run(tmp_path / "run", shuffled=shuffled)
    values = load_values(out)
    order = slice(None, None, -1 if shuffled else 1)
    assert values.user_ids.to_pylist() == [f"u{row:03}" for row in range(150)]
    for name, value in {**judged.catalogue.values, **judged.impressions.values}.items():
        np.testing.assert_array_equal(values.metrics[name], value[order])
    (kept,) = values.slicings
    recall = slice_recall(values.ranks, values.relevant, kept, k=5)
    np.testing.assert_array_equal(recall, slice_recall(judged.catalogue.ranks, window.relevant, halves, k=5)[order])


def test_a_column_named_as_the_ranks_are_takes_no_place_of_theirs(tmp_path):
    window, halves, judged = judged_world()
    users, items = vocabulary(list(range(150))), vocabulary(list(range(window.num_items)))
    save_values(judged, window, tmp_path, users=users, items=items, slicings=(replace(halves, name="rank"),))
    found = load_values(tmp_path)
    (kept,) = found.slicings
    assert (kept.name, kept.names) == ("rank", ("even", "odd"))
    assert sorted(found.ranks.tolist()) == sorted(judged.catalogue.ranks.tolist())


def test_a_run_is_compared_with_its_base_on_the_same_users(tmp_path):
    run, judged, _, _ = judged_run(tmp_path / "new")
    base, worse, _, _ = judged_run(tmp_path / "old", noise=3.0, shuffled=False)
    found = compare_runs(run, base)
    assert (found.run, found.base, found.primary_metric) == ("new", "old", "catalogue/recall@5")
    line = next(line for line in found.metrics if line.metric == found.primary_metric)
    difference = judged.catalogue.values[found.primary_metric] - worse.catalogue.values[found.primary_metric]
    assert line.minus.value == pytest.approx(difference.mean())
    assert 0 < line.minus.low < line.minus.high
    assert line.p_value < 1e-6
    assert [(each.by, each.name, each.is_small) for each in found.slices.lines] == [
        ("half", "even", True),
        ("half", "odd", True),
    ]


def test_a_run_against_itself_differs_in_nothing(tmp_path):
    run, *_ = judged_run(tmp_path / "new")
    found = compare_runs(run, run)
    assert {(line.minus.value, line.p_value) for line in found.metrics} == {(0.0, 1.0)}


def test_a_base_run_of_another_split_is_refused_with_the_fields_that_differ(tmp_path):
    run, *_ = judged_run(tmp_path / "new")
    other, *_ = judged_run(tmp_path / "other", digests=replace(DIGESTS, relevant="d" * 64), name="validation")
    message = (
        r"new and .*other cannot be compared, .* differ in window \(test here, validation in the base run\), "
        r"the items to be found\. Give both the same data"
    )
    with pytest.raises(RequestError, match=message):
        compare_runs(run, other)


def test_runs_that_find_other_items_are_refused_with_the_field_of_the_recipe(tmp_path):
    recipe = worlds.checkerboard(tmp_path / "log", num_users=48, num_items=32)
    runs = []
    for name, relevant in (("base", None), ("new", "liked")):
        run, *_ = judged_run(tmp_path / name, digests=replace(DIGESTS, relevant=name * 8))
        prepare = recipe.prepare.model_copy(update={"relevant": relevant})
        with locked(run.parent):
            claim_folder(pipeline.Job(recipe.model_copy(update={"prepare": prepare}), run.parent), overwrite=False)
        runs.append(run)
    with pytest.raises(
        RequestError, match=r'Give both the same prepare\.relevant \("liked" here, null in the base run\)\.'
    ):
        compare_runs(runs[1], runs[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"includes_seen": True, "digests": replace(DIGESTS, ranked="d" * 64)},
            "evaluations differ in whether seen items are ranked (True here, False in the base run). Give both",
        ),
        (
            {"digests": replace(DIGESTS, ranked="d" * 64)},
            "differ in the users or the items that are ranked for each of them. Give both "
            "the same data, prepare.split, prepare.where, prepare.positive,",
        ),
        (
            {"digests": replace(DIGESTS, impressions="d" * 64)},
            "because their evaluations differ in the users' own impressions or their labels. Give both the same data",
        ),
        (
            {"ids": [f"u{row:03}" for row in range(2, 152)]},
            "because the evaluated users differ: 2 of them only here, 2 only in the base run. Give both the same data",
        ),
        ({"ids": list(range(150))}, "because user ids are int64 here and string in the base run. Give both the same"),
    ],
)
def test_runs_of_other_users_or_candidates_are_refused_with_what_differs(tmp_path, changes, message):
    base, *_ = judged_run(tmp_path / "base")
    run, *_ = judged_run(tmp_path / "new", **changes)
    with pytest.raises(RequestError, match=re.escape(message)):
        compare_runs(run, base)


def test_runs_of_older_versions_must_be_evaluated_again(tmp_path):
    run, *_ = judged_run(tmp_path / "new")
    report = json.loads((run / "report.json").read_text())
    for field in ("includes_seen", "ranked_digest", "impressions_digest"):
        del report["question"][field]
    (run / "report.json").write_text(json.dumps(report))
    message = f"it does not say which items were ranked and shown. Run `twofold evaluate {run.parent}` to evaluate"
    with pytest.raises(RequestError, match=re.escape(message)):
        compare_runs(run, run)


def test_runs_judged_before_there_were_values_say_how_to_get_them(tmp_path):
    run, *_ = judged_run(tmp_path / "new")
    report = json.loads((run / "report.json").read_text())
    (run / "users.parquet").unlink()
    with pytest.raises(RunError, match=r"users\.parquet is missing.*`twofold evaluate` on its"):
        compare_runs(run, run)
    (run / "report.json").write_text(json.dumps(report | {"question": None}))
    with pytest.raises(RequestError, match=r"has no evaluation setup.*`twofold evaluate` on its"):
        check_comparable(run, run)


@pytest.mark.slow  # two whole runs
def test_the_command_line_says_what_changed_and_what_it_did(tmp_path):
    recipe = worlds.checkerboard(tmp_path / "log", num_users=48, num_items=32)
    for name, epochs in (("old", 1), ("new", 4)):
        parts = {"train": {"epochs": epochs, "batch_size": 32, "learning_rate": 0.02, "seed": 0}}
        job = pipeline.Job(worlds.world_recipe(recipe.data.model_dump(), parts), tmp_path / name)
        with locked(job.folder):
            claim_folder(job, overwrite=False)
            pipeline.evaluate(job, *pipeline.up_to_training(job))
    shown = CliRunner().invoke(app, ["evaluate", str(tmp_path / "new"), "--base", str(tmp_path / "old")])
    assert shown.exit_code == 0, shown.output
    assert re.search(r"train\.epochs +1 +4", shown.output)
    assert shown.output.index("train.epochs") < shown.output.index("catalogue ndcg@10")
    assert re.search(r"not tested: \d+ groups of fewer than 100 users", shown.output)
