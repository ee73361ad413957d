"""The command line: one verb a stage, and run, recommend, runs. Only this file and `cli_input.py` print."""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow.parquet as pq
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

import twofold
from twofold.cli.inputs import RecipeFile, Settings, data, recipe_app
from twofold.cli.runs import Runs, compare, export, list_all_runs, track, tracking_uri, tune
from twofold.errors import RecipeError, RequestError, TwofoldError
from twofold.pipeline import run as pipeline
from twofold.recipe.load import load_base, load_recipe
from twofold.render.numbers import format_decimal, format_signed
from twofold.run_folder import Stage, locked

if TYPE_CHECKING:
    from twofold.model.two_tower import ModelPart
    from twofold.prepare.duckdb_engine import OpenEngine

app = typer.Typer(help="From an interaction log to judged recommendations.", no_args_is_help=True, add_completion=False)
app.command()(data)
app.command(name="runs")(list_all_runs)
app.command()(compare)
app.command()(tune)
app.command()(export)
app.add_typer(recipe_app, name="recipe")

RunName = Annotated[str | None, typer.Option("--run", help="Name of the run folder; default: the recipe's name.")]
Replace = Annotated[bool, typer.Option("--replace", help="Give up the results of another recipe in that folder.")]
RunFolder = Annotated[Path, typer.Argument(help="A run folder, as runs/kuairand.")]
Memory = Annotated[str | None, typer.Option("--memory", help="DuckDB's: 2GB, or a share such as 50%.")]
Master = Annotated[str | None, typer.Option("--spark-master", help="local[2], spark://HOST:7077, yarn or k8s://…")]


class EngineName(StrEnum):
    """What can prepare a log."""

    duckdb = "duckdb"
    spark = "spark"


class DeviceKind(StrEnum):
    """What can train."""

    cpu = "cpu"
    cuda = "cuda"


Engine = Annotated[EngineName, typer.Option("--engine", help="What prepares the log. Both give the same rows.")]
Device = Annotated[DeviceKind, typer.Option("--device", help="What trains: the processor, or a GPU a process.")]


_EXTRAS = {
    **dict.fromkeys(("torch", "duckdb", "scipy", "safetensors", "onnx", "onnxscript", "jinja2", "sklearn"), "train"),
    **dict.fromkeys(("onnxruntime", "fastapi", "uvicorn", "msgspec", "prometheus_client"), "serve"),
    "redis": "redis",
    "implicit": "ials",
    "lightgbm": "lightgbm",
    "optuna": "tune",
    **dict.fromkeys(("pyspark", "py4j"), "spark"),
}
"""Which extra brings a module that the base does without."""


_SPINS = "10000"
"""How often a thread of OpenMP that waits for others looks before it sleeps; by default 300,000 times. Beside two busy
programs on two cores an epoch took 108 s, so it takes 55, and on idle ones as long as ever. With no look at all
(OMP_WAIT_POLICY=passive) it took 43, and on idle cores half as long again.
"""


def main() -> None:
    """Runs the command line; a mistake the user can mend is one message on stderr and exit code 2."""
    if "OMP_WAIT_POLICY" not in os.environ:  # PyTorch's OpenMP reads it when it is loaded, which is later
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    try:
        app()
    except TwofoldError as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]{type(error).__name__}[/]", end=" ")
        print(error, file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        extra = _EXTRAS.get(module)
        if extra is None:
            raise
        print(f"{module} is not installed, and this verb needs it: pip install 'twofold[{extra}]'", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)


def _job(recipe: Path, settings: list[str], runs: Path, name: str | None) -> pipeline.Job:
    loaded = load_recipe(recipe, overrides=settings)
    return pipeline.Job(loaded, runs / (name or loaded.name))


@contextmanager
def _claimed(
    recipe: Path, settings: list[str], runs: Path, name: str | None, *, replace: bool
) -> Iterator[pipeline.Job]:
    """The job of a recipe, its folder locked and claimed."""
    job = _job(recipe, settings, runs, name)
    with locked(job.folder):
        pipeline.claim_folder(job, replace=replace)
        yield job


def _open_engine(engine: EngineName, memory: str | None, master: str | None) -> "OpenEngine":
    """What the options ask for, or a RecipeError if they do not go together."""
    from twofold.prepare.duckdb_engine import duckdb_engine

    if engine is EngineName.duckdb:
        if master is not None:
            raise RecipeError(f"--spark-master {master} is of use to Spark alone: add --engine spark.")
        return partial(duckdb_engine, memory=memory) if memory else duckdb_engine
    from twofold.prepare.spark_engine import spark_engine

    if memory is not None:
        raise RecipeError(f"--memory {memory} is DuckDB's; Spark's is set as spark.driver.memory and the like.")
    return partial(spark_engine, master=master) if master else spark_engine


def _say(*stages: Stage) -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for stage in stages:
        how = "unchanged" if stage.was_reused else f"{stage.seconds:.1f} s"
        console.print(f"[green]✓[/] {stage.folder.name:<10} {how:>10}   [dim]{stage.folder}[/]")


@app.command()
def run(
    recipe: RecipeFile,
    settings: Settings = [],  # noqa: B006 - typer copies it
    runs: Runs = Path("runs"),
    name: RunName = None,
    replace: Replace = False,
    engine: Engine = EngineName.duckdb,
    memory: Memory = None,
    master: Master = None,
    device: Device = DeviceKind.cpu,
) -> None:
    """Every stage: a log to a judged retriever, an index and a file of recommendations."""
    from twofold.explain.card import keep_base
    from twofold.train.distributed import distributed_context
    from twofold.train.loop import Setup

    asked = dataclasses.replace(_job(recipe, settings, runs, name), engine=_open_engine(engine, memory, master))
    tracker = tracking_uri(asked.recipe)
    with distributed_context(device.value) as ranks:
        job = dataclasses.replace(asked, setup=Setup(ranks))
        if not ranks.is_first:
            pipeline.run_worker_rank(job)
            return
        pipeline.run_job(job, replace=replace, tell=_say)
    keep_base(job.folder, load_base(recipe, overrides=settings))
    _print_report(job.folder)
    print(f"\nreport           {job.folder}/evaluate/report.html")
    print(f"card             {job.folder}/card.html")
    print(f"recommendations  {job.folder}/recommend/recommendations.parquet")
    if tracker is not None:
        track(job.folder, uri=tracker)
    first = pq.read_table(job.folder / "recommend" / "recommendations.parquet", columns=["user_id"]).slice(0, 1)
    user = first["user_id"][0].as_py() if len(first) else "ID"
    print(f"next             twofold recommend {job.folder} --user {user} -k 20")


@app.command()
def prepare(
    recipe: RecipeFile,
    settings: Settings = [],  # noqa: B006
    runs: Runs = Path("runs"),
    name: RunName = None,
    replace: Replace = False,
    engine: Engine = EngineName.duckdb,
    memory: Memory = None,
    master: Master = None,
) -> None:
    """The log to labelled rows; prints the funnel."""
    from twofold.prepare.funnel import funnel_lines

    opened = _open_engine(engine, memory, master)
    with _claimed(recipe, settings, runs, name, replace=replace) as job:
        prepared = pipeline.prepare(dataclasses.replace(job, engine=opened))
        _say(prepared)
    table = Table("step", "rows", "removed", "users", "items", "positive", title="the funnel", box=SIMPLE_HEAD)
    scope = "log"
    for line in funnel_lines(prepared.facts["funnel"]):
        if line.scope != scope:
            table.add_section()
        scope = line.scope
        removed = f"{line.removed:,}" if line.removed else ""
        counts = (f"{line.rows:,}", removed, f"{line.users:,}", f"{line.items:,}")
        table.add_row(line.name, *counts, f"{line.positive_share:.1%}")
    Console().print(table)
    if (labels := prepared.facts["labels"]) is not None:
        _print_labels(labels)


def _print_labels(report: dict[str, Any]) -> None:
    """Which way the label leans; the rows fitted nothing."""
    table = Table("length in s", "rows", "positive", "mean target", title="the label by length, on validation rows")
    for decile in report["deciles"]:
        shown = f"{decile['first_s']:g} to {decile['last_s']:g}", f"{decile['rows']:,}"
        table.add_row(*shown, f"{decile['positive_share']:.1%}", f"{decile['mean_target']:.3f}")
    table.box = SIMPLE_HEAD
    Console().print(table)
    for name in ("label", "target"):
        if (leaning := report[f"{name}_with_length"]) is not None:
            print(f"Spearman of {name} with length: {leaning:+.3f} (0 leans to neither short nor long)")
    for remark in report["remarks"]:
        print(f"note: {remark}")


@app.command()
def dataset(
    recipe: RecipeFile,
    settings: Settings = [],  # noqa: B006
    runs: Runs = Path("runs"),
    name: RunName = None,
    replace: Replace = False,
) -> None:
    """Labelled rows to arrays, with everything fitted on the training window."""
    with _claimed(recipe, settings, runs, name, replace=replace) as job:
        prepared = pipeline.prepare(job)
        _say(prepared, pipeline.build_dataset(job, prepared))


@app.command()
def train(
    recipe: RecipeFile,
    settings: Settings = [],  # noqa: B006
    runs: Runs = Path("runs"),
    name: RunName = None,
    replace: Replace = False,
    device: Device = DeviceKind.cpu,
) -> None:
    """The retriever; a killed training of towers continues where it was.

    `torchrun --nproc-per-node 2 -m -- twofold train RECIPE` trains it with two processes. Without the two dashes,
    torchrun would take --run for an option of its own. A large table of ids is then held by all together, so that one
    larger than a GPU can be trained by several. Processes on several machines need the run folder on a disk they share.
    """
    from twofold.model.retriever import describe_towers
    from twofold.train.distributed import distributed_context
    from twofold.train.loop import Setup

    with distributed_context(device.value) as ranks:
        setup = Setup(ranks)
        if not ranks.is_first:
            pipeline.run_worker_rank(dataclasses.replace(_job(recipe, settings, runs, name), setup=setup))
            return
        with _claimed(recipe, settings, runs, name, replace=replace) as claimed:
            job = dataclasses.replace(claimed, setup=setup)
            prepared = pipeline.prepare(job)
            arrays = pipeline.build_dataset(job, prepared)
            _print_model(describe_towers(job.recipe.retriever, job.recipe.features, arrays.folder))
            trained = pipeline.train(job, arrays)
            ranked = pipeline.train_ranker(job, arrays, trained)
            made = {"retriever": trained} if ranked is None else {"retriever": trained, "ranker": ranked}
            _say(prepared, arrays, *made.values())
    for who, stage in made.items():
        table = Table("epoch", "loss", "validation", "examples/s", title=f"training of the {who}")
        for epoch in stage.facts["epochs"]:
            mark = " ←" if epoch["epoch"] == stage.facts["best_epoch"] else ""
            numbers = (f"{epoch['loss']:.4f}", f"{epoch['validation']:.4f}{mark}", f"{epoch['examples_per_s']:,}")
            table.add_row(str(epoch["epoch"]), *numbers)
        Console().print(table)


def _print_model(parts: "list[ModelPart]") -> None:
    """The towers side by side, from their blocks down to their last layer."""
    for tower in dict.fromkeys(part.tower for part in parts):
        own = [part for part in parts if part.tower == tower]
        tree = Tree(f"[bold]{tower} tower[/]  {sum(part.parameters for part in own):,} parameters")
        for part in own:
            tree.add(f"{part.name}  [dim]{part.shape}[/]" + (f"  {part.parameters:,}" if part.parameters else ""))
        Console(highlight=False).print(tree)


@app.command()
def evaluate(
    run_folder: RunFolder,
    base: Annotated[
        Path | None, typer.Option(help="Another run, judged already: says what `twofold compare BASE RUN` says.")
    ] = None,
) -> None:
    """The model and the baselines on the test window of a run; judges it if that was not done."""
    job = pipeline.reopen(run_folder)
    with locked(job.folder):
        prepared, arrays, trained = pipeline.up_to_training(job)
        _say(prepared, arrays, trained, pipeline.evaluate(job, prepared, arrays, trained))
    if base is None:
        _print_report(job.folder)
    else:
        compare([base, job.folder])


@app.command()
def index(run_folder: RunFolder) -> None:
    """The bundle of a run: user tower, item vectors, attributes and histories; the only thing serving opens."""
    job = pipeline.reopen(run_folder)
    with locked(job.folder):
        prepared, arrays, trained = pipeline.up_to_training(job)
        _say(prepared, arrays, trained, pipeline.index(job, arrays, trained))


@app.command()
def explain(
    run_folder: RunFolder,
    comment: Annotated[str | None, typer.Option(help="Words for the run's card; empty takes them back.")] = None,
) -> None:
    """Why does it do that? The gap between batches and what is served, probes with alarms, a map, the run's card."""
    from twofold.explain.card import write_comment

    job = pipeline.reopen(run_folder)
    with locked(job.folder):
        if comment is not None:
            write_comment(job.folder, comment)
        prepared, arrays, trained = pipeline.up_to_training(job)
        indexed = pipeline.index(job, arrays, trained)
        explained = pipeline.explain(job, indexed, pipeline.recommend(job, indexed))
        _say(prepared, arrays, trained, indexed, explained)
    table = Table("probe", "value", "", "meaning", box=SIMPLE_HEAD)
    for probe in sorted(explained.facts["probes"], key=lambda probe: not probe["is_alarming"]):
        alarm = "[bold red]alarm[/]" if probe["is_alarming"] else ""
        table.add_row(probe["name"], format_decimal(probe["value"]), alarm, Text(probe["meaning"]))
    Console().print(table)
    gap = explained.facts["gap"]
    steps = Table("what differs, from training to serving", "found", "change", title="the gap", box=SIMPLE_HEAD)
    steps.add_row(f"in batches of {gap['batch_size']:,}, among {gap['k']}", format_decimal(gap["in_batch"]), "")
    for step in gap["steps"]:
        steps.add_row(step["cause"], format_decimal(step["share"]), format_signed(step["change"]))
    Console().print(steps)
    print(gap["verdict"])
    print(f"\ncard  {job.folder}/card.html")


@app.command()
def recommend(
    run_folder: RunFolder,
    user: Annotated[list[str] | None, typer.Option("--user", help="A user of the log. May be repeated.")] = None,
    history: Annotated[str | None, typer.Option(help="Items an unseen user liked, oldest first: 12,34,56.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many.")] = 20,
    where: Annotated[str | None, typer.Option(help="Only items for which this holds: length_s < 60.")] = None,
    with_seen: Annotated[bool, typer.Option("--with-seen", help="Also items the user has met.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Rows as JSON lines.")] = False,
) -> None:
    """The best k items for users of the log, or for the history of someone it does not know."""
    if (user is None) == (history is None):
        raise RequestError("say for whom: either --user ID (may be repeated) or --history ID,ID,ID")
    recommender = twofold.load(run_folder)
    if history is not None:
        items = [item.strip() for item in history.split(",") if item.strip()]
        answer = recommender.recommend_for_history(items, k=k, where=where, exclude_seen=not with_seen)
    else:
        answer = recommender.recommend(user or [], k=k, where=where, exclude_seen=not with_seen)
    if as_json:
        for row in answer.to_pylist():
            print(json.dumps(row))
        return
    table = Table(*answer.column_names)
    for row in answer.to_pylist():
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)


@app.command()
def serve(
    run_folder: RunFolder,
    host: Annotated[str, typer.Option(help="0.0.0.0 to be reached from elsewhere.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Processes; one a core.")] = 1,
    histories: Annotated[
        str | None, typer.Option(help="A file, or redis://HOST:PORT/DB; default: RUN/serve/histories.db.")
    ] = None,
    log_requests: Annotated[bool, typer.Option("--log-requests", help="A line of log for every request.")] = False,
) -> None:
    """Answers over HTTP, with a page to try it; the environment variable TWOFOLD_TOKEN makes it ask for a token."""
    from twofold.serve.workers import ServeOptions
    from twofold.serve.workers import serve as serve_run

    print(f"http://{host}:{port}/       a page to try it;  /docs: every route", flush=True)
    serve_run(
        ServeOptions(
            run_folder, histories or str(run_folder / "serve" / "histories.db"), host, port, workers, log_requests
        )
    )


def _print_report(folder: Path) -> None:
    from twofold.evaluate.report_page import report_lines

    console = Console()
    for part in report_lines(pipeline.report_of(folder)):
        console.print(part)
