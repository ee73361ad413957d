"""How good is the shipped recipe? Three seeds on the test day, beside every baseline and EASE, with paired intervals.

    python benchmarks/quality.py [seeds]

Writes `quality.json` beside this file: the numbers of README.md come from it.
"""

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

import twofold
from twofold.pipeline import report_of
from twofold.recipe.load import load_recipe, recipe_digest

HERE = Path(__file__).parent
RECIPE = HERE.parent / "recipes" / "kuairand.yaml"
METRICS = ("catalogue/recall@100", "catalogue/ndcg@10", "catalogue/hit_rate@10", "impressions/auc")


def main(seeds: int = 3) -> None:
    """Runs, collects, prints, saves."""
    lines = []
    for seed in range(seeds):
        job = twofold.run(
            RECIPE, overrides=[f"train.seed={seed}"], runs="runs", name=f"quality-seed{seed}", replace=True
        )
        report = report_of(job.folder)
        for section in (report.catalogue, report.impressions):
            for row in section.rows:
                for metric in METRICS:
                    if metric in row.metrics:
                        value, ahead = row.metrics[metric], row.model_minus.get(metric)
                        lines.append(
                            {
                                "seed": seed,
                                "row": row.name,
                                "metric": metric,
                                "value": value.value,
                                "low": value.low,
                                "high": value.high,
                                "model_minus": ahead and [ahead.value, ahead.low, ahead.high],
                            }
                        )
        facts = report.facts
    saved = {
        "recipe_digest": recipe_digest(load_recipe(RECIPE)),
        "commit": facts.commit,
        "hardware": facts.hardware,
        "versions": facts.versions,
        "window": report.window,
        "users": report.catalogue.users_judged,
        "items": report.catalogue.num_items,
        "lines": lines,
    }
    (HERE / "quality.json").write_text(json.dumps(saved, indent=1) + "\n")
    _print(lines)


def _print(lines: list[dict]) -> None:
    table = Table("seed", "row", "metric", "value [95 %]", "model − row [95 %]")
    for line in lines:
        ahead = line["model_minus"]
        table.add_row(
            str(line["seed"]),
            line["row"],
            line["metric"],
            f"{line['value']:.4f} [{line['low']:.4f}, {line['high']:.4f}]",
            f"{ahead[0]:+.4f} [{ahead[1]:+.4f}, {ahead[2]:+.4f}]" if ahead else "",
        )
    Console().print(table)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:2]))
