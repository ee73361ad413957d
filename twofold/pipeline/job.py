"""A job: the recipe of a run, where it runs, and how its stages are made. It loads no torch."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from twofold.errors import RunError, TwofoldError
from twofold.evaluate.results import Report, load_report
from twofold.pipeline.stage_versions import STAGE_VERSIONS
from twofold.prepare.duckdb_engine import OpenEngine, duckdb_engine
from twofold.recipe.diff import recipe_differences, recipe_digest
from twofold.recipe.load import dump_recipe, load_recipe
from twofold.recipe.schema import Recipe
from twofold.run_folder import Stage, find_stage, locked, mark_outdated, open_stage, read_json, run_stage, write_json

if TYPE_CHECKING:
    from twofold.train.loop import Setup


_CLAIM: Final = ("recipe.yaml", "run.json")


@dataclass(frozen=True)
class Job:
    """A recipe and where it runs: the run folder, the SQL engine, the device and process group, and two callbacks."""

    recipe: Recipe
    folder: Path
    engine: OpenEngine = duckdb_engine
    setup: "Setup | None" = None
    """`None` means one process on the CPU."""
    on_validation: Callable[[float], None] = lambda value: None
    """Called with the validation metric after every epoch of the retriever; may stop training by raising."""
    on_stage_done: Callable[[Stage], None] = lambda stage: None
    """Called with every complete stage, made now or found unchanged."""

    def run_stage(self, name: str, inputs: Mapping[str, Any], work: Callable[[Path], Mapping[str, Any]]) -> Stage:
        """Makes a stage, or finds it unchanged (see `run_folder.run_stage`), and reports that it is complete.

        The version of the stage's code is one of its inputs.
        """
        stage = run_stage(self.folder, name, inputs={"version": STAGE_VERSIONS[name], **inputs}, work=work)
        self.on_stage_done(stage)
        return stage


def selection_job(job: Job) -> Job:
    """Returns the job of the fit that chooses on the validation window, if `train.refit` asks for a second fit."""
    return replace(job, folder=job.folder / "selection")


def reopen(folder: Path) -> Job:
    """Returns the job of a run folder, with the recipe that the folder holds."""
    path = folder / "recipe.yaml"
    if not path.exists():
        raise RunError(f"{folder} is no run folder: it holds no recipe.yaml. List the runs with `twofold runs`.")
    return Job(load_recipe(path), folder)


def claim_folder(job: Job, *, overwrite: bool, remedy: str = "discard its results with --overwrite") -> None:
    """Writes the recipe into the run folder; raises RunError if the folder holds results of another recipe.

    With `overwrite` these count as outdated until the run reaches them: an index goes on being served, but an
    evaluation is not that of the new recipe. A run that failed before its first stage was complete has none. The
    message names another folder or the `remedy`.
    """
    path, state = (job.folder / name for name in _CLAIM)
    has_results = path.exists() and any(find_stage(job.folder, name) for name in STAGE_VERSIONS)
    digest = recipe_digest(job.recipe)
    if has_results and overwrite and read_json(state).get("recipe_digest") != digest:
        mark_outdated(job.folder, "evaluate", "recommend", "explain")
        (job.folder / "base.yaml").unlink(missing_ok=True)  # the base of that recipe; `twofold run` writes the new one
    changes = recipe_differences(load_recipe(path), job.recipe) if has_results and not overwrite else []
    if changes:
        listed = "; ".join(f"{change.field}: {change.old} → {change.new}" for change in changes[:5])
        more = f"; and {len(changes) - 5} more" if len(changes) > 5 else ""
        raise RunError(
            f"{job.folder} holds a run of another recipe. It differs in {listed}{more}. Keep it and choose another "
            f"folder with --run NAME, or {remedy}."
        )
    path.write_text(dump_recipe(job.recipe), encoding="utf-8")
    write_json(state, {"recipe_digest": digest, "twofold": version("twofold")})


@contextmanager
def claimed(job: Job, *, overwrite: bool) -> Iterator[None]:
    """Locks and claims the run folder while the block runs; see `claim_folder`.

    If the block fails by an error that the user can repair, and no stage is complete, the folder is emptied again, so
    that it does not count as a run.
    """
    with locked(job.folder):
        claim_folder(job, overwrite=overwrite)
        try:
            yield
        except TwofoldError:
            if not any(find_stage(job.folder, name) for name in STAGE_VERSIONS):
                for name in _CLAIM:
                    (job.folder / name).unlink(missing_ok=True)
            raise


def report_of(folder: Path) -> Report:
    """Returns the report of an evaluated run."""
    return load_report(open_stage(folder, "evaluate").folder / "report.json")
