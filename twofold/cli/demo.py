"""The command `demo`: the shipped recipe on the shipped log, without a clone of the repository."""

import shutil
from pathlib import Path
from typing import Annotated, Final

import typer

import twofold
from twofold.cli.stages import run
from twofold.errors import DataError
from twofold.run_folder import atomic_file

_FILES: Final = (
    "recipes/kuairand.yaml",
    *(f"data/kuairand-pure/{name}" for name in ("README.md", "LICENSE", "events.parquet", "items.parquet")),
    "data/kuairand-pure/users.parquet",
)


def demo(
    to: Annotated[Path, typer.Option(help="Folder for the recipe, the log and the run.")] = Path("twofold-demo"),
) -> None:
    """Copy the shipped recipe and its log (KuaiRand-Pure, CC BY-SA 4.0) to a folder, and run it.

    Takes about 6 minutes on two cores. Files that are there already are kept: edit the recipe and run it again.
    """
    recipe = copy_shipped(to)
    print(f"recipe           {recipe}")
    run(recipe, [], runs=to / "runs")


def copy_shipped(to: Path, *, shipped: Path | None = None) -> Path:
    """Copies what `demo` runs, the shipped recipe and log, to a folder and returns the recipe's path; keeps old files.

    `shipped` is the folder that holds both: by default the one in the installed package, or the repository.
    """
    package = Path(twofold.__file__).parent
    shipped = shipped or next((each for each in (package / "shipped", package.parent) if _is_complete(each)), None)
    if shipped is None or not _is_complete(shipped):
        raise DataError(
            f"{package} does not hold the shipped recipe and log, which are in every wheel and in the repository. "
            f"Install twofold again, or clone the repository and write: twofold run recipes/kuairand.yaml."
        )
    for name in _FILES:
        target = to / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(target) as partial:
                shutil.copyfile(shipped / name, partial)
    return to / _FILES[0]


def _is_complete(folder: Path) -> bool:
    return all((folder / name).exists() for name in _FILES)
