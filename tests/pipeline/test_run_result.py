"""Results of a run in Python, tables in memory, and folders that a failed run does not claim."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import twofold
from twofold.errors import RecipeError, RunError
from twofold.evaluate.compare_page import compare_run_folders
from twofold.pipeline import run as pipeline
from twofold.pipeline.job import claim_folder, report_of
from twofold.pipeline.run_result import RunResult
from twofold.prepare.frames import with_tables
from twofold.recipe.schema import Recipe
from twofold.run_folder import find_stage, locked, run_stage
from twofold.runs import list_runs


def test_a_run_that_failed_before_its_first_stage_claims_no_folder(checkerboard: Recipe, tmp_path: Path) -> None:
    typo = checkerboard.model_copy(update={"about": "a typo"})
    with locked(tmp_path / "run"):
        claim_folder(pipeline.Job(typo, tmp_path / "run"), overwrite=False)
        claim_folder(pipeline.Job(checkerboard, tmp_path / "run"), overwrite=False)


def test_an_evaluation_of_another_recipe_is_not_shown_as_that_of_an_overwritten_run(
    checkerboard: Recipe, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    wider = checkerboard.model_copy(update={"recommend_k": 3})
    with locked(folder):
        claim_folder(pipeline.Job(checkerboard, folder), overwrite=False)
        for name in ("evaluate", "index", "recommend"):
            run_stage(folder, name, inputs=1, work=lambda out: {"metrics": {"catalogue/recall@10": 0.5}})
        (folder / "base.yaml").write_text("name: base", encoding="utf-8")
        claim_folder(pipeline.Job(checkerboard, folder), overwrite=True)
        assert list_runs(tmp_path)[0].base == "base"
        assert list_runs(tmp_path)[0].metrics == {"catalogue/recall@10": 0.5}
        claim_folder(pipeline.Job(wider, folder), overwrite=True)
    assert (list_runs(tmp_path)[0].metrics, list_runs(tmp_path)[0].base) == ({}, "")
    with pytest.raises(RunError, match="is of another recipe"):
        compare_run_folders([folder, folder])
    assert find_stage(folder, "recommend") is None
    assert find_stage(folder, "index") is not None


@pytest.mark.parametrize("table", [pa.table({"user_id": [1]}), {"user_id": [1]}])
def test_a_table_in_place_of_a_recipe_is_answered_with_the_way_to_one(table: object) -> None:
    with pytest.raises(RecipeError, match=rf"this is a {type(table).__name__}\. For a table: recipe = twofold\.draft"):
        twofold.run(table)  # type: ignore[arg-type]


def test_a_run_has_numbers_and_tables(solved: RunResult, checkerboard: Recipe) -> None:
    assert solved.metrics == report_of(solved.folder).metrics_of("model")
    assert repr(solved).startswith(f"RunResult('{solved.folder}', {solved.report.primary_metric} ")
    assert len(repr(solved)) < 400
    assert len(solved.item_vectors()) == len(solved.recommender.bundle.items)
    user = solved.recommendations["user_id"][0].as_py()
    explained = solved.explain(user, k=2)
    assert solved.similar(explained["item_id"][0].as_py(), k=3).num_rows == 3
    assert solved.user_vectors([user]).num_rows == 1


def test_tables_in_memory_are_those_of_a_run(solved: RunResult, checkerboard: Recipe, tmp_path: Path) -> None:
    events = pq.read_table(checkerboard.data.events).to_pandas()
    job = pipeline.Job(with_tables(checkerboard, {"events": events}, tmp_path / "tables"), tmp_path / "run")
    with locked(job.folder):
        claim_folder(job, overwrite=False)
        prepared = pipeline.prepare(job)
    assert prepared.facts["splits"] == find_stage(solved.folder, "prepare").facts["splits"]
