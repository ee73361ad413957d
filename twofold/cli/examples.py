"""Examples of the help: a session on a synthetic log, and what each command prints. A test runs them in this order."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Example:
    """A command line and a line of its output, in which `…` stands for any text."""

    command: str
    output: str


EXAMPLES: Final = {
    "data": Example("twofold data world --rows 20000 --to world", "items: …/world/items.parquet"),
    "recipe new": Example(
        "twofold recipe new --log world/events --items world/items.parquet --out world.yaml --yes",
        "next    twofold run world.yaml",
    ),
    "recipe check": Example("twofold recipe check world.yaml", "world.yaml is valid: recipe …"),
    "plan": Example(
        "twofold plan world.yaml --rows 3e9 --users 1e8 --items 1e7 --machines 16", "nothing breaks; the tightest is …"
    ),
    "prepare": Example("twofold prepare world.yaml", "next  twofold run world.yaml"),
    "dataset": Example("twofold dataset world.yaml", "✓ dataset … runs/world/dataset"),
    "train": Example("twofold train world.yaml --set train.epochs=1 --run short", "epoch … loss … validation"),
    "run": Example(
        "twofold run world.yaml --set train.epochs=1 --run short", "next             twofold recommend runs/short …"
    ),
    "recipe diff": Example("twofold recipe diff world.yaml runs/short/recipe.yaml", "changed   train.epochs …"),
    "evaluate": Example("twofold evaluate runs/short", "page  runs/short/run.html"),
    "explain": Example("twofold explain runs/short", "page  runs/short/run.html"),
    "index": Example("twofold index runs/short", "✓ index … runs/short/index"),
    "recommend": Example("twofold recommend runs/short --user 1001 -k 3", "as of …; the service answers as of now"),
    "runs": Example("twofold runs", "run … recall@100 …"),
    "compare": Example("twofold compare runs/short runs/other", "* p < 0.05: …"),
    "tracker": Example("twofold tracker runs --to tracker.html", "2 runs  tracker.html"),
    "publish": Example("twofold publish runs/short current.json", "current.json"),
    "serve": Example("twofold serve runs/short --port 8000", "http://127.0.0.1:8000/ …"),
}


def example_of(command: str) -> str:
    """Returns the example of a command as Markdown for the end of its help."""
    example = EXAMPLES[command]
    return f"Example: `{example.command}`\n\nIt prints, among others: `{example.output}`"
