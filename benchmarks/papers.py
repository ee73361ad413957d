"""The protocols of well-known papers: sequence files of MovieLens-1M and Amazon Toys, NCF's split, pairs of Gowalla.

    python benchmarks/papers.py [PROTOCOL ...] [--seed N]

Reads the tables that the `command` lines of the recipes write below data/: most of these sets may not be passed on, so
what is not there is left out, and said. What is trained is found again: stop it, and it goes on. Of PROTOCOLs that are
named, only these are run again, with --seed this seed alone; `papers.json` beside this file keeps the rest.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twofold.evaluate.results import Report, Row
from twofold.pipeline import run as pipeline
from twofold.pipeline.job import claim_folder, report_of
from twofold.prepare.last_days import with_dates
from twofold.recipe.diff import recipe_digest
from twofold.recipe.load import load_recipe

HERE = Path(__file__).parent
RECIPES = HERE.parent / "recipes"
SAVED = HERE / "papers.json"
CUTS = ("hit_rate@10", "recall@10", "ndcg@10", "recall@20", "ndcg@20", "recall@100")
SAMPLED = ("hit_rate@10", "ndcg@10", "mrr")
Line = dict[str, Any]
Saved = dict[str, list[Line]]


@dataclass(frozen=True)
class Column:
    """A metric of a table: its heading, where it stands in a report, and the words that name its sampled candidates."""

    heading: str
    metric: str
    candidates: str = "catalogue"


@dataclass(frozen=True)
class Protocol:
    """A table: a recipe below recipes/, the seeds, the columns, and rows of figures that others published."""

    name: str
    recipe: str
    title: str
    columns: tuple[Column, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    published: tuple[tuple[str, ...], ...] = ()


FILMS = (Column("HR@10, all films", "catalogue/hit_rate@10"), Column("NDCG@10, all films", "catalogue/ndcg@10"))


def sampled_and_all(candidates: str) -> tuple[Column, ...]:
    """Returns the columns of a sampled protocol, and those among all films."""
    sampled = (
        Column(name, f"sampled/{metric}", candidates)
        for name, metric in (("HR@10", "hit_rate@10"), ("NDCG@10", "ndcg@10"))
    )
    return (*sampled, *FILMS)


PROTOCOLS = (
    Protocol(
        "ml-1m-sequence",
        "movielens/ml-1m-sequence",
        "SASRec file of MovieLens-1M, leave-one-out, all films as candidates",
        FILMS,
        published=(
            ("SASRec, 256 dimensions, as published", ".321", ".186"),
            ("SASRec, 3,000 negatives, as published", ".316", ".186"),
        ),
    ),
    Protocol(
        "ml-1m-by-popularity",
        "movielens/ml-1m-by-popularity",
        "SASRec file of MovieLens-1M, leave-one-out, 100 negatives by popularity",
        sampled_and_all("by popularity"),
        published=(("BERT4Rec, as published (Sun et al., CIKM 2019)", ".697", ".482"),),
    ),
    Protocol(
        "ncf-ml-1m",
        "movielens/ncf-ml-1m",
        "NCF split of MovieLens-1M, its own 99 negatives",
        sampled_and_all("published"),
        published=(("NeuMF, as published (He et al., WWW 2017)", ".730", ".447"),),
    ),
    Protocol(
        "ml-1m-temporal",
        "movielens/ml-1m-temporal",
        "MovieLens-1M, each user's last five ratings, all films as candidates",
        FILMS,
        seeds=(0,),
    ),
    Protocol(
        "toys",
        "amazon/toys",
        "Amazon Toys, 5-core, leave-one-out, all items as candidates",
        (Column("recall@10", "catalogue/recall@10"), Column("NDCG@10", "catalogue/ndcg@10")),
        seeds=(0, 2, 4),
        published=(
            ("SASRec, 256 uniform negatives, as published", ".097", ".058"),
            ("eSASRec, as published", ".094", ".054"),
            ("TIGER, as published", ".071", ".043"),
        ),
    ),
    Protocol(
        "gowalla",
        "gowalla",
        "Gowalla, the LightGCN split, all items that are new to the user as candidates",
        (Column("recall@20", "catalogue/recall@20"), Column("NDCG@20", "catalogue/ndcg@20")),
        published=(
            ("SimpleX, as published", ".187", ".156"),
            ("UltraGCN, as published", ".186", ".158"),
            ("LightGCN, as published", ".183", ".155"),
        ),
    ),
)
"""With `ensemble: 2`, Toys trains seeds s and s + 1, so its seeds are every second one."""


def main() -> None:
    """Runs, collects and saves run by run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("protocols", nargs="*", choices=[[], *(each.name for each in PROTOCOLS)])
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    for protocol in PROTOCOLS:
        if options.protocols and protocol.name not in options.protocols:
            continue
        if not load_recipe(RECIPES / f"{protocol.recipe}.yaml").data.events.exists():
            print(f"{protocol.name} is left out: data/ lacks its tables. Its opening lines say how they are made.")
            continue
        for seed in protocol.seeds if options.seed is None else (options.seed,):
            save(protocol.name, seed, judged(protocol, seed=seed))


def save(name: str, seed: int, lines: list[Line]) -> None:
    """Replaces the lines of a protocol and seed in `papers.json`, read anew because another run may have written."""
    saved: Saved = json.loads(SAVED.read_text(encoding="utf-8")) if SAVED.exists() else {}
    kept = [line for line in saved.get(name, []) if line["seed"] != seed]
    saved[name] = sorted([*kept, *lines], key=lambda line: line["seed"])
    SAVED.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


def judged(protocol: Protocol, *, seed: int) -> list[Line]:
    """Returns one record per row and kind of candidates of a run.

    The processor minutes are those of preparation, training and the choice of what is served, without evaluation; they
    are left out where an earlier process did a part.
    """
    recipe = with_dates(load_recipe(RECIPES / f"{protocol.recipe}.yaml", overrides=[f"train.seed={seed}"]))
    job = pipeline.Job(recipe, Path("runs") / f"papers-{protocol.name}-seed{seed}")
    is_new, started = not job.folder.exists(), time.process_time()
    job.folder.mkdir(parents=True, exist_ok=True)
    claim_folder(job, overwrite=False)
    stages = pipeline.up_to_training(job)
    minutes = (time.process_time() - started) / 60
    pipeline.evaluate(job, *stages)
    report = report_of(job.folder)
    stated = {"seed": seed, "recipe_digest": recipe_digest(recipe), "commit": report.facts.commit}
    stated |= {"hardware": report.facts.hardware, "train_s": report.facts.seconds["train"]}
    stated |= {"processor_minutes": round(minutes, 1)} if is_new else {}
    stated |= {"served": report.facts.served} if report.facts.served else {}
    return [stated | line for line in lines_of(report)]


def lines_of(report: Report) -> list[Line]:
    """Returns the rows of the catalogue section and of every sampled section of a report."""
    parts = [("catalogue", report.catalogue.rows, [f"catalogue/{cut}" for cut in CUTS])]
    parts += [
        (f"sampled, {section.candidates}", section.rows, [f"sampled/{metric}" for metric in SAMPLED])
        for section in report.sampled
    ]
    return [
        {"row": row.name, "protocol": part, "users": report.catalogue.users_judged, "items": report.catalogue.num_items}
        | values_of(row, metrics)
        for part, rows, metrics in parts
        for row in rows
    ]


def values_of(row: Row, metrics: list[str]) -> Line:
    """Returns value and interval of each metric and, for a baseline, of the model's metric minus the row's.

    A report on fewer than 100 items has no recall@100.
    """
    found = {metric: row.metrics[metric] for metric in metrics if metric in row.metrics}
    found |= {f"model - {metric}": row.model_minus[metric] for metric in metrics if metric in row.model_minus}
    return {name: [each.value, each.low, each.high] for name, each in found.items()}


def tables(saved: Saved) -> str:
    """Returns the page's tables, one for each protocol that was run."""
    return "\n".join(table(each, saved[each.name]) for each in PROTOCOLS if each.name in saved)


def table(protocol: Protocol, lines: list[Line]) -> str:
    """Returns a heading, the recipe and a table: the model with each seed, baselines of the first, published rows."""
    rows: dict[tuple[str, int], list[str]] = {}
    for column in protocol.columns:
        for line in lines:
            if column.candidates in line["protocol"]:
                rows.setdefault((line["row"], line["seed"]), []).append(cell(line[column.metric]))
    head, first = ["row", *(column.heading for column in protocol.columns)], min(seed for _, seed in rows)
    found = [[f"model, seed {seed}", *cells] for (row, seed), cells in rows.items() if row == "model"]
    found += [[row, *cells] for (row, seed), cells in rows.items() if row != "model" and seed == first]
    if differences := least_differences(protocol.columns[0].metric, lines):
        head.append(f"model − row, {protocol.columns[0].heading}, least seed")
        found = [[*cells, differences.get(cells[0], "")] for cells in found]
    found += [[*cells, *[""] * (len(head) - len(cells))] for cells in protocol.published]
    return "\n".join(
        [f"### {protocol.title}", "", about(protocol, lines), ""]
        + [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(cells)} |" for cells in found), ""]
    )


def least_differences(metric: str, lines: list[Line]) -> dict[str, str]:
    """Returns for each baseline the model's metric minus the row's, paired over users, of the seed where it is least;
    nothing for results of a time when it was not saved.
    """
    found: dict[str, list[list[float]]] = {}
    for line in lines:
        if f"model - {metric}" in line:
            found.setdefault(line["row"], []).append(line[f"model - {metric}"])
    return {row: cell(min(each)) for row, each in found.items()}


def about(protocol: Protocol, lines: list[Line]) -> str:
    """Says which recipe was run and, where it was measured, how long that took."""
    text = f"`recipes/{protocol.recipe}.yaml` (recipe `{lines[0]['recipe_digest'][:12]}`)"
    minutes = sorted({line["processor_minutes"] for line in lines if "processor_minutes" in line})
    if not minutes:
        return f"{text}."
    least, most = (f"{each:.0f}" for each in (minutes[0], minutes[-1]))
    return f"{text}; {least if least == most else f'{least} to {most}'} processor minutes a seed."


def cell(estimate: list[float]) -> str:
    """Formats a value and its interval."""
    value, low, high = estimate
    return f"{short(value)} [{short(low)}, {short(high)}]"


def short(value: float) -> str:
    """Formats a number with three digits, without a zero in front of the point."""
    return f"{value:.3f}".replace("0.", ".", 1)


if __name__ == "__main__":
    main()
