"""Options that several commands share, and the jobs that they describe."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twofold.cli.output import print_stage
from twofold.errors import RecipeError
from twofold.recipe.load import load_recipe
from twofold.run_folder import locked

if TYPE_CHECKING:
    from twofold.pipeline.job import Job
    from twofold.prepare.duckdb_engine import OpenEngine


class EngineName(StrEnum):
    """SQL engines that prepare a log."""

    duckdb = "duckdb"
    spark = "spark"


class DeviceKind(StrEnum):
    """Devices for training."""

    cpu = "cpu"
    cuda = "cuda"


RecipeFile = Annotated[Path, typer.Argument(help="Path of a recipe, such as those in recipes/.")]
RunFolder = Annotated[Path, typer.Argument(help="A run folder, such as runs/kuairand.")]
Settings = Annotated[
    list[str],
    typer.Option(
        "--set",
        default_factory=list,
        show_default=False,
        help="Change a field of the recipe: retriever.dim=96. Repeatable.",
    ),
]
Runs = Annotated[Path, typer.Option("--runs", help="The folder that holds the run folders.")]
RunName = Annotated[str | None, typer.Option("--run", help="Name of the run folder; default: the recipe's name.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Overwrite the folder's results, even from another recipe.")
]
Engine = Annotated[EngineName, typer.Option("--engine", help="SQL engine; both write the same rows.")]
Memory = Annotated[str | None, typer.Option("--memory", help="Memory limit of DuckDB: 2GB, or a share such as 50%.")]
Master = Annotated[
    str | None,
    typer.Option("--spark-master", help="local[2], spark://HOST:7077, yarn, k8s://…, sc://HOST or sail (in process)."),
]
Device = Annotated[
    DeviceKind, typer.Option("--device", help="Device for training: the processor, or one GPU per process.")
]


def job_of(recipe: Path, settings: list[str], runs: Path, name: str | None) -> "Job":
    """Returns the job of a recipe, which prints each stage as it is complete."""
    from twofold.pipeline.job import Job
    from twofold.prepare.last_days import with_dates

    loaded = with_dates(load_recipe(recipe, overrides=settings))
    for warning in loaded.warnings:
        print(f"note: {warning}", file=sys.stderr)
    return Job(loaded, runs / (name or loaded.name), on_stage_done=print_stage)


@contextmanager
def reopened(run_folder: Path) -> Iterator["Job"]:
    """Locks a run folder while the block runs, and gives the block its job."""
    from twofold.pipeline.job import reopen

    job = replace(reopen(run_folder), on_stage_done=print_stage)
    with locked(job.folder):
        yield job


def open_engine(engine: EngineName, memory: str | None, master: str | None) -> "OpenEngine":
    """Returns the SQL engine that the options describe; RecipeError if they contradict one another."""
    from twofold.prepare.duckdb_engine import duckdb_engine

    if engine is EngineName.duckdb:
        if master is not None:
            raise RecipeError(f"--spark-master {master} is an option of Spark: add --engine spark.")
        return partial(duckdb_engine, memory=memory) if memory else duckdb_engine
    from twofold.prepare.spark_engine import spark_engine

    if memory is not None:
        raise RecipeError(f"--memory {memory} is an option of DuckDB; Spark reads spark.driver.memory and the like.")
    return partial(spark_engine, master=master) if master else spark_engine
