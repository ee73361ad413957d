"""How good are the shipped recipes, the retriever and both stages? Three seeds on the test day, beside every baseline,
with paired intervals.

    python benchmarks/quality.py [seeds]

Writes `quality.json` beside this file: the numbers of README.md come from it.
"""

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from twofold import pipeline
from twofold.bundle import locked
from twofold.evaluate.verdict import Report
from twofold.recipe.load import load_recipe, recipe_digest
from twofold.recipe.schema import Recipe

HERE = Path(__file__).parent
RECIPES = {name: HERE.parent / "recipes" / f"{name}.yaml" for name in ("kuairand", "kuairand-ranked")}
METRICS = (
    *(f"catalogue/{metric}@{k}" for metric in ("recall", "ndcg", "hit_rate", "mrr") for k in (10, 20, 50, 100)),
    "impressions/auc",
)


def main(seeds: int = 3) -> None:
    """Runs, collects, prints, saves."""
    lines = []
    for name, recipe in RECIPES.items():
        for seed in range(seeds):
            settings = [f"train.seed={seed}"] + ([f"ranker.seed={seed}"] if name.endswith("ranked") else [])
            report = _report(load_recipe(recipe, overrides=settings), Path("runs") / f"quality-{name}-seed{seed}")
            lines += _lines(report, recipe=name, seed=seed)
            saved = {
                "recipes": {each: recipe_digest(load_recipe(path)) for each, path in RECIPES.items()},
                "commit": report.facts.commit,
                "hardware": report.facts.hardware,
                "versions": report.facts.versions,
                "window": report.window,
                "users": report.catalogue.users_judged,
                "items": report.catalogue.num_items,
                "lines": lines,
            }
            (HERE / "quality.json").write_text(json.dumps(saved, indent=1) + "\n")
    _print(lines)


def _report(recipe: Recipe, folder: Path) -> Report:
    """Up to the report: no index, no map."""
    job = pipeline.Job(recipe, folder)
    with locked(folder):
        pipeline.claim_folder(job, replace=True)
        pipeline.evaluate(job, *pipeline.up_to_training(job))
    return pipeline.report_of(folder)


def _lines(report: Report, *, recipe: str, seed: int) -> list[dict]:
    return [
        {
            "recipe": recipe,
            "seed": seed,
            "row": row.name,
            "metric": metric,
            "value": row.metrics[metric].value,
            "low": row.metrics[metric].low,
            "high": row.metrics[metric].high,
            "model_minus": (ahead := row.model_minus.get(metric)) and [ahead.value, ahead.low, ahead.high],
        }
        for section in (report.catalogue, report.impressions)
        for row in section.rows
        for metric in METRICS
        if metric in row.metrics
    ]


def _print(lines: list[dict]) -> None:
    table = Table("recipe", "seed", "row", "metric", "value [95 %]", "model − row [95 %]")
    for line in lines:
        ahead = line["model_minus"]
        table.add_row(
            line["recipe"],
            str(line["seed"]),
            line["row"],
            line["metric"],
            f"{line['value']:.4f} [{line['low']:.4f}, {line['high']:.4f}]",
            f"{ahead[0]:+.4f} [{ahead[1]:+.4f}, {ahead[2]:+.4f}]" if ahead else "",
        )
    Console().print(table)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:2]))
