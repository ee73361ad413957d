"""Quality of the shipped recipes, the retriever and both stages, beside every baseline on four test days.

    python benchmarks/quality.py                                  # everything, three seeds: four hours on two cores
    python benchmarks/quality.py --days 2022-05-06 --seeds 1      # a part of it
    python benchmarks/quality.py --recipe kuairand-ranked         # one recipe; what is saved of the other stays
    python benchmarks/quality.py --tables                         # prints the tables of what is saved

Each day is a run of its own (a rolling retrain): it trains until the day before the validation day, which is the day
before the test day. Everything else is the recipe. Writes `quality.json` beside this file; `docs/make_results.py` makes
docs/results.md from it.
"""

import argparse
import json
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from twofold.evaluate.days import pool_days
from twofold.evaluate.per_user_values import load_row_values
from twofold.evaluate.results import Report, Row
from twofold.pipeline import run as pipeline
from twofold.pipeline.job import claim_folder, report_of
from twofold.recipe.diff import recipe_digest
from twofold.recipe.load import load_recipe
from twofold.recipe.schema import Recipe
from twofold.run_folder import locked, open_stage

HERE = Path(__file__).parent
SAVED = HERE / "quality.json"
RECIPES = {name: HERE.parent / "recipes" / f"{name}.yaml" for name in ("kuairand", "kuairand-ranked")}
DAYS = (date(2022, 5, 2), date(2022, 5, 4), date(2022, 5, 6), date(2022, 5, 8))
SHIPPED_DAY = DAYS[-1]
"""The test day of the recipes as they are shipped."""
METRICS = (
    *(f"catalogue/{metric}@{k}" for metric in ("recall", "ndcg", "hit_rate", "mrr") for k in (10, 20, 50, 100)),
    "impressions/auc",
)
Saved = dict[str, Any]


def main(days: Sequence[date] = DAYS, *, seeds: int = 3, runs: Path = Path("runs"), only: str | None = None) -> Saved:
    """Trains and evaluates every recipe, or `only` one, on every day with every seed; saves and returns what was found.

    With `only`, what is saved of other recipes stays, and where the new results come from is under "later".
    """
    chosen = {name: path for name, path in RECIPES.items() if only in (None, name)}
    saved: Saved = {"recipes": {}, "days": [f"{day}" for day in days], "users": {}, "lines": [], "pooled": []}
    saved = saved if only is None else _without(json.loads(SAVED.read_text()), only)
    saved["recipes"] |= {name: recipe_digest(load_recipe(path)) for name, path in chosen.items()}
    for seed in range(seeds):
        for name, path in chosen.items():
            folders = {}
            for day in days:
                recipe = load_recipe(path, overrides=settings_of(load_recipe(path), day, seed))
                folder = folders[f"{day}"] = runs / f"quality-{name}-{day}-seed{seed}"
                report = evaluated(recipe, folder)
                saved["lines"] += _lines(report, recipe=name, seed=seed, day=day)
                if recipe.ranker is not None:
                    saved.setdefault("orders", []).append(_order(folder, recipe=name, seed=seed, day=day))
                saved["users"][f"{day}"] = report.catalogue.users_judged
                facts = report.facts
                origin = {"commit": facts.commit, "hardware": facts.hardware, "versions": facts.versions}
                saved |= origin if only is None else {"later": {**saved.get("later", {}), only: origin}}
                saved["items"] = report.catalogue.num_items
            saved["pooled"].append(_pooled(folders, recipe=name, seed=seed))
            SAVED.write_text(json.dumps(saved, indent=1) + "\n")
    return saved


def _without(saved: Saved, recipe: str) -> Saved:
    """Returns what is saved of all other recipes."""
    parts = [part for part in ("lines", "pooled", "orders") if part in saved]
    return saved | {part: [each for each in saved[part] if each["recipe"] != recipe] for part in parts}


def settings_of(recipe: Recipe, day: date, seed: int) -> list[str]:
    """Returns the overrides that move the recipe's windows to a test day and set its seeds."""
    before, after = day - timedelta(days=1), day + timedelta(days=1)
    bounds = {
        "train.end": before,
        "validation.first": before,
        "validation.end": day,
        "test.first": day,
        "test.end": after,
    }
    settings = [f"prepare.split.{field}={value}" for field, value in bounds.items()]
    return [*settings, f"train.seed={seed}", *([f"ranker.seed={seed}"] if recipe.ranker is not None else [])]


def evaluated(recipe: Recipe, folder: Path) -> Report:
    """Runs the stages up to the report, without index and map; complete ones are used again."""
    job = pipeline.Job(recipe, folder)
    with locked(folder):
        claim_folder(job, overwrite=True)
        pipeline.evaluate(job, *pipeline.up_to_training(job))
    return report_of(folder)


def _order(folder: Path, *, recipe: str, seed: int, day: date) -> Saved:
    """Returns the weight of the retriever's score in the order, and NDCG on validation by each weight."""
    facts = open_stage(folder, "train/ranker").facts
    weights = {"retriever_share": facts["retriever_share"], "shares": facts["shares"]}
    return {"recipe": recipe, "seed": seed, "day": f"{day}", **weights}


def _lines(report: Report, *, recipe: str, seed: int, day: date) -> list[Saved]:
    return [
        {"recipe": recipe, "seed": seed, "day": f"{day}", **cell}
        for section in (report.catalogue, report.impressions)
        for row in section.rows
        for cell in _cells_of(row)
        if cell["metric"] in METRICS
    ]


def _cells_of(row: Row) -> list[Saved]:
    cells = []
    for metric, estimate in row.metrics.items():
        ahead = row.model_minus.get(metric)
        cells.append(
            {
                "row": row.name,
                "metric": metric,
                "value": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "model_minus": ahead and [ahead.value, ahead.low, ahead.high],
            }
        )
    return cells


def _pooled(folders: dict[str, Path], *, recipe: str, seed: int) -> Saved:
    """Returns the means over all days of one recipe and seed, with intervals clustered by user."""
    section = pool_days(
        load_row_values({day: open_stage(folder, "evaluate").folder for day, folder in folders.items()})
    )
    return {
        "recipe": recipe,
        "seed": seed,
        "users": section.users,
        "requests": section.requests,
        "order_changes": section.order_changes,
        "lines": [cell for row in section.pooled for cell in _cells_of(row)],
    }


# --- what docs/results.md shows ---------------------------------------------------------------------------------------

Cells = dict[tuple[str, int, str, str], Saved]
"""By recipe, seed, row and metric, of one day."""
SEEDED = ("model", "retriever alone")
"""Rows that a seed changes: a baseline has none."""
OURS = {"kuairand": "model", "kuairand-ranked": "both stages"}
"""Name that the table gives the model of each recipe."""


def tables(saved: Saved) -> dict[str, str]:
    """Returns the tables of docs/results.md as Markdown, by name; those over several days only if there are several."""
    lines = (line for line in saved["lines"] if line["day"] == f"{SHIPPED_DAY}")
    cells = {(line["recipe"], line["seed"], line["row"], line["metric"]): line for line in lines}
    retriever = ["catalogue/recall@100", "catalogue/ndcg@10", "catalogue/hit_rate@10", "impressions/auc"]
    both = ["catalogue/ndcg@10", "catalogue/recall@10", "catalogue/mrr@10"]
    found = {
        "retriever": _table(cells, "kuairand", retriever),
        "ranker": _table(cells, "kuairand-ranked", both),
        "cuts": _by_cut(cells),
    }
    for pooled in saved["pooled"]:
        if pooled["seed"] == 0:
            found[f"days of {pooled['recipe']}"] = days_table(saved, pooled["recipe"])
    return found


def days_table(saved: Saved, recipe: str) -> str:
    """Returns a table per headline metric: every row by day and pooled, and the model's lead over it."""
    pooled = [each for each in saved["pooled"] if each["recipe"] == recipe]
    metrics = dict.fromkeys(line["metric"] for line in pooled[0]["lines"])
    if recipe == "kuairand-ranked":  # a ranker re-orders what the retriever finds, and leaves its recall
        metrics = [metric for metric in metrics if "recall" not in metric]
    return "\n\n".join(_days_table(saved, pooled, metric) for metric in metrics)


def _days_table(saved: Saved, pooled: list[Saved], metric: str) -> str:
    recipe, shown = pooled[0]["recipe"], metric.partition("/")[2]
    by_day = {
        (line["seed"], line["day"], line["row"]): line
        for line in saved["lines"]
        if (line["recipe"], line["metric"]) == (recipe, metric)
    }
    heads = [f"{date.fromisoformat(day):%-d %B}" for day in saved["days"]]
    table = [f"| {shown} | {' | '.join(heads)} | all days [95 %] | {OURS[recipe]} − row, all days, least seed |"]
    table += ["|---" * (len(heads) + 3) + "|"]
    for each in pooled:
        for line in (line for line in each["lines"] if line["metric"] == metric):
            row, seed = line["row"], each["seed"]
            if row not in SEEDED and seed > 0:
                continue
            name = OURS[recipe] if row == "model" else row
            name += f", seed {seed}" if row in SEEDED else ""
            days = [_by_day(by_day[seed, day, row]) for day in saved["days"]]
            leads = _leads(pooled, row, metric) if row not in SEEDED else line["model_minus"] and [line["model_minus"]]
            lead = _interval(*min(leads)) if leads else ""  # of the seed with the smallest difference
            value = _interval(line["value"], line["low"], line["high"])
            table.append(f"| {name} | {' | '.join(days)} | {value} | {lead} |")
    return "\n".join(table)


def _by_day(line: Saved) -> str:
    if not line["model_minus"]:
        return _short(line["value"])
    lead, low, high = line["model_minus"]
    return f"{_short(line['value'])} ({_short(lead)} ± {_short((high - low) / 2)})"


def _leads(pooled: list[Saved], row: str, metric: str) -> list[list[float]]:
    """Returns the model's lead over a row, for each seed of the model."""
    return [
        line["model_minus"]
        for each in pooled
        for line in each["lines"]
        if (line["row"], line["metric"]) == (row, metric)
    ]


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=date.fromisoformat, nargs="+", default=DAYS, help="test days")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each recipe and day")
    parser.add_argument("--recipe", choices=list(RECIPES), help="the only recipe that is run")
    parser.add_argument("--tables", action="store_true", help="print the saved tables; train nothing")
    given = parser.parse_args()
    found = json.loads(SAVED.read_text()) if given.tables else main(given.days, seeds=given.seeds, only=given.recipe)
    print("\n\n".join(tables(found).values()))
