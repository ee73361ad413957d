"""One command per stage, and `run` for all of them."""

import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import pyarrow.parquet as pq
import typer
from rich.console import Console

from twofold.cli.options import (
    Device,
    DeviceKind,
    Engine,
    EngineName,
    Master,
    Memory,
    Overwrite,
    RecipeFile,
    RunFolder,
    RunName,
    Runs,
    Settings,
    job_of,
    open_engine,
    reopened,
)
from twofold.cli.output import print_explanation, print_funnel, print_labels, print_model, print_stage, print_training
from twofold.cli.runs import compare, copy_to_mlflow, tracking_uri
from twofold.recipe.load import load_base
from twofold.recipe.schema import Recipe
from twofold.run_folder import Stage, find_stage, open_stage

if TYPE_CHECKING:
    from twofold.pipeline.job import Job

# The pipeline is imported by the commands that need it: it loads PyTorch and DuckDB, and `twofold serve` has neither.


def run(
    recipe: RecipeFile,
    settings: Settings,
    runs: Runs = Path("runs"),
    name: RunName = None,
    overwrite: Overwrite = False,
    engine: Engine = EngineName.duckdb,
    memory: Memory = None,
    master: Master = None,
    device: Device = DeviceKind.cpu,
) -> None:
    """Run every stage: from a log to an evaluated model, an index and a file of recommendations."""
    from twofold.page.run_page import keep_base
    from twofold.pipeline.run import run_job
    from twofold.pipeline.train import run_worker_rank
    from twofold.train.distributed import distributed_context
    from twofold.train.loop import Setup

    job = replace(job_of(recipe, settings, runs, name), engine=open_engine(engine, memory, master))
    job = replace(job, on_stage_done=partial(_print_stage_and_cost, job))
    uri = tracking_uri(job.recipe)
    with distributed_context(device.value) as ranks:
        job = replace(job, setup=Setup(ranks))
        if not ranks.is_first:
            run_worker_rank(job)
            return
        if engine is EngineName.duckdb and find_stage(job.folder, "prepare") is None:
            _print_rough_cost(job.recipe)
        run_job(job, overwrite=overwrite)
    keep_base(job.folder, load_base(recipe, overrides=settings))
    _print_report(job.folder)
    _print_end(job, better=_again(recipe, [*settings, "retriever.ensemble=2"], runs, f"{job.folder.name}-2"))
    if uri is not None:
        copy_to_mlflow(job.folder, uri=uri)


def _print_end(job: "Job", *, better: list[str]) -> None:
    """Prints what is served, where the results are, and the next commands; `better` are the arguments of one to try."""
    from twofold.pipeline.job import report_of

    report, retriever = report_of(job.folder), job.recipe.retriever
    print()
    if report.facts.served:
        print(f"served           {report.facts.served}: the best on the validation window")
    print(f"page             {job.folder}/run.html")
    print(f"recommendations  {job.folder}/recommend/recommendations.parquet")
    first = pq.read_table(job.folder / "recommend" / "recommendations.parquet", columns=["user_id"]).slice(0, 1)
    user = first["user_id"][0].as_py() if len(first) else "ID"
    folder = shlex.quote(f"{job.folder}")
    print(f"next             twofold recommend {folder} --user {shlex.quote(f'{user}')} -k 20")
    print(f"                 twofold serve {folder}")
    if not report.beats_all and retriever.kind == "best" and retriever.ensemble == 1:
        print(f"to improve it    {' '.join(['twofold run', *map(shlex.quote, better)])}  # twice the time")


def _print_rough_cost(recipe: Recipe) -> None:
    """Prints what a run takes before it starts, from counts of the log without windows and filters."""
    from twofold.cost_plan import EXAMPLES_A_ROW, cost_sentence, run_cost
    from twofold.prepare.check import check_recipe
    from twofold.prepare.log_size import log_size

    size = log_size(recipe.prepare, check_recipe(recipe))
    examples = round(size.rows * EXAMPLES_A_ROW) if size.positives is None else size.positives
    cost = run_cost(recipe, rows=size.rows, examples=examples, users=size.users, items=size.items)
    found = f"{size.rows:,} events of the whole log"
    sentence = f"{found}; no run like it was measured" if cost is None else cost_sentence(cost, found)
    print(f"  roughly        {sentence}", file=sys.stderr)


def _print_stage_and_cost(job: "Job", stage: Stage) -> None:
    """Prints a complete stage; after preparation, what the rest of the run takes, unless it was run before."""
    from twofold.cost_plan import cost_sentence, run_cost
    from twofold.recipe.train import Bce, Regression

    print_stage(stage)
    if stage.folder.name != "prepare" or find_stage(job.folder, "evaluate") is not None:
        return
    log, train = stage.facts["funnel"][0], stage.facts["splits"]["train"]
    has_all = isinstance(job.recipe.train.loss, Bce | Regression)
    examples = round(train["rows"] * (1 if has_all else train["positive_share"]))
    cost = run_cost(job.recipe, rows=log["rows"], examples=examples, users=log["users"], items=log["items"])
    found = f"{examples:,} examples"
    sentence = f"{found}; no run like it was measured, so see the time left of its first epochs"
    print(f"  this run       {sentence if cost is None else cost_sentence(cost, found)}", file=sys.stderr)


def prepare(
    recipe: RecipeFile,
    settings: Settings,
    runs: Runs = Path("runs"),
    name: RunName = None,
    overwrite: Overwrite = False,
    engine: Engine = EngineName.duckdb,
    memory: Memory = None,
    master: Master = None,
) -> None:
    """Filter, label and split the log; print the rows that each step leaves."""
    from twofold.pipeline.job import claimed
    from twofold.pipeline.prepare import prepare
    from twofold.prepare.funnel import funnel_lines

    job = replace(job_of(recipe, settings, runs, name), engine=open_engine(engine, memory, master))
    with claimed(job, overwrite=overwrite):
        prepared = prepare(job)
    print_funnel(funnel_lines(prepared.facts["funnel"]))
    for oddity, rows in prepared.facts["odd_rows"].items():
        print(f"note: {rows:,} rows: {oddity}")
    if (labels := prepared.facts["labels"]) is not None:
        print_labels(labels)
    print(f"next  {' '.join(['twofold run', *map(shlex.quote, _again(recipe, settings, runs, name))])}")


def _again(recipe: Path, settings: list[str], runs: Path, name: str | None) -> list[str]:
    """Returns the arguments that lead to the same run folder."""
    changes = [part for setting in settings for part in ("--set", setting)]
    folder = [*([] if runs == Path("runs") else ["--runs", f"{runs}"]), *([] if name is None else ["--run", name])]
    return [f"{recipe}", *changes, *folder]


def dataset(
    recipe: RecipeFile,
    settings: Settings,
    runs: Runs = Path("runs"),
    name: RunName = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn the prepared log into arrays; fit vocabularies and features on the training window."""
    from twofold.pipeline.dataset import build_dataset
    from twofold.pipeline.job import claimed
    from twofold.pipeline.prepare import prepare

    job = job_of(recipe, settings, runs, name)
    with claimed(job, overwrite=overwrite):
        build_dataset(job, prepare(job))


def train(
    recipe: RecipeFile,
    settings: Settings,
    runs: Runs = Path("runs"),
    name: RunName = None,
    overwrite: Overwrite = False,
    device: Device = DeviceKind.cpu,
) -> None:
    """Train the retriever and, if the recipe has one, the ranker; resume a two-tower training that was stopped.

    `torchrun --nproc-per-node 2 -m -- twofold train RECIPE` trains with two processes. Without the two dashes, torchrun
    would take --run for one of its own options. A large embedding table is then divided among the processes, so that
    several GPUs can train one that is larger than the memory of each. Processes on several machines need a run folder
    on a shared disk.
    """
    from twofold.model.retriever import describe_towers
    from twofold.pipeline.job import claimed
    from twofold.pipeline.run import up_to_training
    from twofold.pipeline.train import run_worker_rank
    from twofold.train.distributed import distributed_context
    from twofold.train.loop import Setup

    with distributed_context(device.value) as ranks:
        job = replace(job_of(recipe, settings, runs, name), setup=Setup(ranks))
        if not ranks.is_first:
            run_worker_rank(job)
            return
        with claimed(job, overwrite=overwrite):
            _, arrays, retriever, ranker = up_to_training(job)
    print_model(describe_towers(job.recipe.retriever, job.recipe.features, arrays.folder))
    print_training("retriever", retriever.facts)
    if ranker is not None:
        print_training("ranker", ranker.facts)


def evaluate(
    run_folder: RunFolder,
    base: Annotated[Path | None, typer.Option(help="Compare with this evaluated run, which becomes the base.")] = None,
) -> None:
    """Evaluate the model and the baselines on the test window of a run; reuse the report if nothing changed."""
    from twofold.pipeline.evaluate import evaluate
    from twofold.pipeline.run import up_to_training

    if base is not None:
        open_stage(base, "evaluate")  # a base that cannot be compared is better known before hours of work
    with reopened(run_folder) as job:
        prepared, arrays, retriever, ranker = up_to_training(job)
        evaluate(job, prepared, arrays, retriever, ranker)
    if base is None:
        _print_report(job.folder)
        print(f"\npage  {job.folder}/run.html")
    else:
        compare([base, job.folder])


def index(run_folder: RunFolder) -> None:
    """Write the bundle of a run, all that the service opens: user tower, item vectors, attributes, histories."""
    from twofold.pipeline.index import index
    from twofold.pipeline.run import up_to_training

    with reopened(run_folder) as job:
        _, arrays, retriever, ranker = up_to_training(job)
        index(job, arrays, retriever, ranker)


def explain(
    run_folder: RunFolder,
    comment: Annotated[
        str | None, typer.Option(help="Comment shown on the run's page; an empty text removes it.")
    ] = None,
) -> None:
    """Explain the results of a run on its page: from training to serving, probes with warnings, a map."""
    from twofold.page.run_page import write_comment
    from twofold.pipeline.explain import explain
    from twofold.pipeline.index import index, recommend
    from twofold.pipeline.run import up_to_training

    with reopened(run_folder) as job:
        if comment is not None:
            write_comment(job.folder, comment)
        _, arrays, retriever, ranker = up_to_training(job)
        indexed = index(job, arrays, retriever, ranker)
        explained = explain(job, arrays, retriever, indexed, recommend(job, indexed))
    print_explanation(explained.facts)
    print(f"\npage  {job.folder}/run.html")


def _print_report(folder: Path) -> None:
    from twofold.evaluate.report_tables import report_lines
    from twofold.pipeline.job import report_of

    console = Console()
    for part in report_lines(report_of(folder)):
        console.print(part)
