"""The command `twofold`: its commands in order, and how an error ends it."""

import errno
import os
import sys
from typing import Annotated, Final, NoReturn

import typer
from rich.console import Console

import twofold
from twofold.cli import demo, inputs, plan, runs, serving, stages
from twofold.cli.examples import example_of
from twofold.errors import TwofoldError

_INPUTS, _STAGES, _SERVING, _RUNS = "Data and recipes", "Stages", "Recommendations", "Finished runs"

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",  # breaks the lines of a paragraph at the width of the terminal
)


def _print_version(is_asked: bool) -> bool:
    if is_asked:
        print(f"twofold {twofold.__version__}")
        raise typer.Exit
    return is_asked


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Recommender systems from an interaction log: prepare, train, evaluate, index and serve."""


app.command(rich_help_panel=_INPUTS)(demo.demo)
app.command(rich_help_panel=_INPUTS, epilog=example_of("data"))(inputs.data)
app.command(rich_help_panel=_INPUTS, epilog=example_of("plan"))(plan.plan)
app.add_typer(inputs.recipe_app, name="recipe", rich_help_panel=_INPUTS)
app.command(rich_help_panel=_STAGES, epilog=example_of("run"))(stages.run)
app.command(rich_help_panel=_STAGES, epilog=example_of("prepare"))(stages.prepare)
app.command(rich_help_panel=_STAGES, epilog=example_of("dataset"))(stages.dataset)
app.command(rich_help_panel=_STAGES, epilog=example_of("train"))(stages.train)
app.command(rich_help_panel=_STAGES, epilog=example_of("evaluate"))(stages.evaluate)
app.command(rich_help_panel=_STAGES, epilog=example_of("index"))(stages.index)
app.command(rich_help_panel=_STAGES, epilog=example_of("explain"))(stages.explain)
app.command(rich_help_panel=_SERVING, epilog=example_of("recommend"))(serving.recommend)
app.command(rich_help_panel=_SERVING, epilog=example_of("serve"))(serving.serve)
app.command(rich_help_panel=_SERVING, epilog=example_of("publish"))(serving.publish)
app.command(name="runs", rich_help_panel=_RUNS, epilog=example_of("runs"))(runs.list_all_runs)
app.command(rich_help_panel=_RUNS, epilog=example_of("compare"))(runs.compare)
app.command(rich_help_panel=_RUNS, epilog=example_of("tracker"))(runs.tracker)
app.command(rich_help_panel=_RUNS)(runs.tune)
app.command(rich_help_panel=_RUNS)(serving.export)

_EXTRAS: Final = {
    **dict.fromkeys(("torch", "duckdb", "scipy", "safetensors", "onnx", "onnxscript", "jinja2", "sklearn"), "train"),
    "threadpoolctl": "train",
    **dict.fromkeys(("onnxruntime", "uvicorn", "msgspec", "prometheus_client"), "serve"),
    "redis": "redis",
    "optuna": "tune",
    **dict.fromkeys(("pyspark", "py4j"), "spark"),
    "pysail": "sail",
}
"""Module → the extra that installs it."""

_INTERRUPTED: Final = 130
"""Exit code of a command that Ctrl-C ended."""

_OF_PATHS: Final = frozenset(
    {
        *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST),
        *(errno.ENAMETOOLONG, errno.ELOOP),
    }
)
"""Errors of the system that say what is wrong with a path."""

_SPINS: Final = "10000"
"""How often a waiting OpenMP thread looks for work before it sleeps; the default is 300,000. Beside two busy programs
on two cores an epoch took 108 s with the default and takes 55 s so; on idle cores both are equally fast. Without any
look (OMP_WAIT_POLICY=passive) it took 43 s, and on idle cores half as long again.
"""


def main() -> None:
    """Runs the command line; an error that the user can repair is one message on stderr and exit code 2."""
    if "OMP_WAIT_POLICY" not in os.environ:  # PyTorch's OpenMP reads it when it is loaded, which is later
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    try:
        app()
    except TwofoldError as error:
        _refuse(type(error).__name__, f"{error}")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # a failed write does not name its file
            _refuse("DiskError", f"the disk is full: {error}. Free some space, and give the same command again.")
        path = error.filename2 or error.filename  # the second is where a finished file was to be moved
        if path is None or error.errno not in _OF_PATHS:
            raise
        _refuse("PathError", f"{path}: {error.strerror}. Name a path that can be read or written, or mend this one.")
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        extra = _EXTRAS.get(module)
        if extra is None:
            raise
        print(f"{module} is not installed, and this command needs it: pip install 'twofold[{extra}]'", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as end:  # Typer turns Ctrl-C into exit code 130, without a word
        if isinstance(end, SystemExit) and end.code != _INTERRUPTED:
            raise
        print("interrupted; the same command continues", file=sys.stderr)
        sys.exit(_INTERRUPTED)


def _refuse(kind: str, message: str) -> NoReturn:
    """Prints the kind of an error in red and its message, and ends the command with exit code 2."""
    Console(stderr=True, soft_wrap=True).print(f"[bold red]{kind}[/]", end=" ")
    print(message, file=sys.stderr)
    sys.exit(2)
