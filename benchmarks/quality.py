"""Quality of the shipped recipes, retriever and both stages: three seeds on the test day, beside every baseline,
with paired intervals.

    python benchmarks/quality.py [seeds]
    python benchmarks/quality.py --tables

Writes `quality.json` beside this file; the tables of README.md are made of it.
"""

import json
import sys
from pathlib import Path
from typing import Any

from twofold.evaluate.results import Report
from twofold.pipeline import run as pipeline
from twofold.pipeline.job import claim_folder, report_of
from twofold.recipe.diff import recipe_digest
from twofold.recipe.load import load_recipe
from twofold.recipe.schema import Recipe
from twofold.run_folder import locked

HERE = Path(__file__).parent
SAVED = HERE / "quality.json"
RECIPES = {name: HERE.parent / "recipes" / f"{name}.yaml" for name in ("kuairand", "kuairand-ranked")}
METRICS = (
    *(f"catalogue/{metric}@{k}" for metric in ("recall", "ndcg", "hit_rate", "mrr") for k in (10, 20, 50, 100)),
    "impressions/auc",
)


def main(seeds: int = 3) -> None:
    """Runs, collects, saves, prints."""
    lines: list[dict[str, Any]] = []
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
            SAVED.write_text(json.dumps(saved, indent=1) + "\n")
    print(tables(saved))


def _report(recipe: Recipe, folder: Path) -> Report:
    """Runs the stages up to the report, without index and map."""
    job = pipeline.Job(recipe, folder)
    with locked(folder):
        claim_folder(job, overwrite=True)
        pipeline.evaluate(job, *pipeline.up_to_training(job))
    return report_of(folder)


def _lines(report: Report, *, recipe: str, seed: int) -> list[dict[str, Any]]:
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


# --- what README.md shows ---------------------------------------------------------------------------------------------

Cells = dict[tuple[str, int, str, str], dict[str, Any]]
"""By recipe, seed, row and metric."""
SEEDED = ("model", "retriever alone", "both stages without ids")
"""Rows that a seed changes: a baseline has none."""
OURS = {"kuairand": "model", "kuairand-ranked": "both stages"}
"""Name that the table gives the model of each recipe."""


def tables(saved: dict[str, Any]) -> str:
    """The three tables of README.md, as Markdown."""
    cells = {(line["recipe"], line["seed"], line["row"], line["metric"]): line for line in saved["lines"]}
    retriever = _table(
        cells, "kuairand", ["catalogue/recall@100", "catalogue/ndcg@10", "catalogue/hit_rate@10", "impressions/auc"]
    )
    both = _table(cells, "kuairand-ranked", ["catalogue/ndcg@10", "catalogue/recall@10", "catalogue/mrr@10"])
    return "\n\n".join([retriever, both, _by_cut(cells)])


def _table(cells: Cells, recipe: str, metrics: list[str]) -> str:
    """A line a row, and a seed; the first metric with its interval and with what the model is ahead by."""
    first, *others = [metric.split("/")[1].replace("_", " ") for metric in metrics]
    if metrics[-1].startswith("impressions"):
        others[-1] = "impressions AUC"
    lines = [f"| row | {first} [95 %] | {' | '.join(others)} | {OURS[recipe]} − row, {first}, each seed |"]
    lines += ["|---" * (len(metrics) + 2) + "|"]
    seeds = sorted({seed for name, seed, _, _ in cells if name == recipe})
    for row in dict.fromkeys(row for name, _, row, _ in cells if name == recipe):
        for seed in seeds if row in SEEDED else [0]:
            of = [cells[recipe, seed, row, metric] for metric in metrics]
            name = OURS[recipe] if row == "model" else row
            name += f", seed {seed}" if row in SEEDED else ""
            ahead = [cells[recipe, each, row, metrics[0]]["model_minus"] for each in seeds]
            ahead = [ahead[seeds.index(seed)]] if row in SEEDED else ahead
            lead = "; ".join(_interval(*each) for each in ahead if each)
            values = [_interval(of[0]["value"], of[0]["low"], of[0]["high"])] + [
                _short(each["value"]) for each in of[1:]
            ]
            lines.append(f"| {name} | {' | '.join(values)} | {lead} |")
    return "\n".join(lines)


def _by_cut(cells: Cells) -> str:
    """Both stages at every cut, seed 0."""
    cuts, metrics = (10, 20, 50, 100), ("recall", "ndcg", "hit_rate", "mrr")
    lines = [
        "| row | " + " | ".join(f"{metric.replace('_', ' ')} @{'/'.join(map(str, cuts))}" for metric in metrics) + " |"
    ]
    lines += ["|---" * (len(metrics) + 1) + "|"]
    for row in dict.fromkeys(row for name, _, row, _ in cells if name == "kuairand-ranked"):
        of = [
            " ".join(_short(cells["kuairand-ranked", 0, row, f"catalogue/{metric}@{k}"]["value"]) for k in cuts)
            for metric in metrics
        ]
        lines.append(f"| {OURS['kuairand-ranked'] if row == 'model' else row} | {' | '.join(of)} |")
    return "\n".join(lines)


def _interval(value: float, low: float, high: float) -> str:
    return f"{_short(value)} [{_short(low)}, {_short(high)}]"


def _short(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1).replace("-", "−")


if __name__ == "__main__":
    if sys.argv[1:] == ["--tables"]:
        print(tables(json.loads(SAVED.read_text())))
    else:
        main(*(int(argument) for argument in sys.argv[1:2]))
