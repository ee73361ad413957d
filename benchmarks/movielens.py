"""The papers' protocols on MovieLens: NCF's split and negatives, BERT4Rec's draw, last ratings in time.

    python benchmarks/movielens.py [RECIPE ...]

Reads the tables that the `command` lines of `recipes/movielens/` write below data/: MovieLens may not be passed on, so
what is not there is left out, and said. What is trained is found again: stop it, and it goes on. Of RECIPEs that are
named, only these are run again; `movielens.json` beside this file keeps the others.
"""

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from twofold.evaluate.results import Report, Row
from twofold.evaluate.significance import Estimate
from twofold.evaluate.summary_text import format_estimate
from twofold.pipeline import run as pipeline
from twofold.pipeline.job import claim_folder, report_of
from twofold.recipe.diff import recipe_digest
from twofold.recipe.load import load_recipe

HERE = Path(__file__).parent
RECIPES = HERE.parent / "recipes" / "movielens"
SAVED = HERE / "movielens.json"
SEEDS = {"ncf-ml-1m": 3, "ml-1m-by-popularity": 3, "ml-1m-temporal": 1, "ml-latest-small-temporal": 1}
CATALOGUE = ("catalogue/hit_rate@10", "catalogue/ndcg@10", "catalogue/recall@100")
SAMPLED = ("sampled/hit_rate@10", "sampled/ndcg@10", "sampled/mrr")
Line = dict[str, object]


def main(names: list[str]) -> None:
    """Runs, collects and saves run by run; prints at the end."""
    saved = json.loads(SAVED.read_text()) if SAVED.exists() else {}
    for name in names or list(SEEDS):
        if not load_recipe(RECIPES / f"{name}.yaml").data.events.exists():
            print(f"{name} is left out: data/ lacks its tables. Its opening lines say how they are made.")
            continue
        saved[name] = []
        for seed in range(SEEDS[name]):
            saved[name] += judged(name, seed=seed)
            SAVED.write_text(json.dumps(saved, indent=1) + "\n")
    for name, found in saved.items():
        show(name, found)


def judged(name: str, *, seed: int) -> list[Line]:
    """Returns one record per row and protocol of a run."""
    recipe = load_recipe(RECIPES / f"{name}.yaml", overrides=[f"train.seed={seed}"])
    job = pipeline.Job(recipe, Path("runs") / f"movielens-{name}-seed{seed}")
    job.folder.mkdir(parents=True, exist_ok=True)
    claim_folder(job, overwrite=False)
    pipeline.evaluate(job, *pipeline.up_to_training(job))
    report = report_of(job.folder)
    stated = {"seed": seed, "recipe_digest": recipe_digest(recipe), "commit": report.facts.commit}
    stated |= {"hardware": report.facts.hardware, "train_s": report.facts.seconds["train"]}
    return [stated | line for line in rows_of(report)]


def rows_of(report: Report) -> list[Line]:
    """Returns the rows of the catalogue section and of every sampled section of a report."""
    parts = [("catalogue", report.catalogue.rows, CATALOGUE)]
    parts += [(f"sampled, {section.candidates}", section.rows, SAMPLED) for section in report.sampled]
    return [
        {"row": row.name, "protocol": protocol, "users": report.catalogue.users_judged}
        | {"items": report.catalogue.num_items, **values_of(row, metrics)}
        for protocol, rows, metrics in parts
        for row in rows
    ]


def values_of(row: Row, metrics: tuple[str, ...]) -> Line:
    """Returns the value and the interval of each metric."""
    estimates = {metric: row.metrics[metric] for metric in metrics}
    return {metric: [each.value, each.low, each.high] for metric, each in estimates.items()}


def show(name: str, lines: list[Line]) -> None:
    """Prints a table per protocol; baselines do not depend on the seed."""
    for protocol in dict.fromkeys(str(line["protocol"]) for line in lines):
        metrics = CATALOGUE if protocol == "catalogue" else SAMPLED
        table = Table("row", "seed", *(metric.partition("/")[2] for metric in metrics), title=f"{name}: {protocol}")
        for line in lines:
            if line["protocol"] == protocol and (line["row"] == "model" or line["seed"] == 0):
                values = (format_estimate(Estimate(*line[metric])) for metric in metrics)  # type: ignore[misc]
                table.add_row(str(line["row"]), str(line["seed"]), *values)
        Console().print(table, markup=False)


if __name__ == "__main__":
    main(sys.argv[1:])
