"""Quality of drafted recipes: `recipe new`, then `run`, with no line edited, on logs of several kinds.

    python benchmarks/drafts.py                        # the shipped log as plain CSV files, and synthetic logs
    python benchmarks/drafts.py --data FOLDER          # also the public logs that the folder holds, see `PUBLIC`
    python benchmarks/drafts.py --logs kuairand-csv    # some of them; results of the others are kept
    python benchmarks/drafts.py --tables               # prints the table of what is saved

Every run is compared with its own baselines, whose constants are chosen on the same validation window. Writes
`drafts.json` beside this file; `docs/make_results.py` makes the table of docs/results.md from it.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

sys.path.insert(0, str(Path(__file__).parents[1]))  # the synthetic logs are those of the tests
from tests.logs.__main__ import WRITERS
from twofold.evaluate.results import Report
from twofold.pipeline import run as pipeline
from twofold.pipeline.job import Job, claim_folder, report_of
from twofold.prepare.last_days import with_dates
from twofold.recipe.load import load_recipe
from twofold.run_folder import locked, open_stage

HERE = Path(__file__).parent
SAVED = HERE / "drafts.json"
SHIPPED = HERE.parent / "data" / "kuairand-pure"
Saved = dict[str, Any]


@dataclass(frozen=True)
class Log:
    """A log: its files in a folder, how they are made, and the options that `recipe new` needs for them."""

    name: str
    files: tuple[tuple[str, str], ...]
    """Options of `recipe new` and their files."""
    options: tuple[str, ...] = ()
    world_seed: int | None = None
    write: Callable[..., list[str]] | None = None
    """Writes the files of a synthetic log of `tests/logs` and returns the options of `recipe new`."""


CSV = (("--log", "events.csv"), ("--items", "items.csv"), ("--users", "users.csv"))
WORLD = (("--log", "events"), ("--items", "items.parquet"), ("--users", "users.parquet"))
SHIPPED_LOGS = (
    Log("kuairand-csv", CSV),
    Log("world-0", WORLD, world_seed=0),
    Log("world-5", WORLD, world_seed=5),
    *(Log(name, (), write=write) for name, write in WRITERS.items()),
)
PUBLIC = (
    Log("ml-latest-small", (("--log", "ml-latest-small.parquet"), ("--items", "movies.csv"))),
    Log("ml-100k", (("--log", "ml-100k.parquet"),)),
    Log("amazon-toys", (("--log", "events.parquet"),)),
    Log("tiktok", (("--log", "tiktok.csv"),), ("--time", "position")),
    Log("gowalla", (("--log", "gowalla.csv"),), ("--time", "position")),
    Log("movietweetings", (("--log", "ratings.csv"), ("--items", "movies.csv"))),
    Log("checkins", (("--log", "checkins.csv"),)),
    Log("groceries", (("--log", "transactions.csv"), ("--items", "products.csv"), ("--users", "demographics.csv"))),
)
"""Public logs, each in a folder of its name: MovieLens as published; Toys as `twofold data sequences` writes it; the
pairs of TikTok and Gowalla as one CSV file, training pairs first, with their position as the time. MovieTweetings:
snapshot 100K of github.com/sidooms/MovieTweetings, as CSV files with a header. Check-ins: data/NYC.npy of
github.com/yingtaoluo/Spatial-Temporal-Attention-Network-for-POI-Recommendation, its minutes counted from 3 April 2012.
Groceries: transactions_sample, products and demographics of the R package completejourney.
"""
RECENT = " with recency"
WORLD_ROWS = 300_000
SIZE = {"users": 3_000, "items": 600, "events": 150_000}
"""Size of the logs of `tests/logs`."""


def main(logs: Sequence[Log], *, data: Path | None, runs: Path = Path("runs/drafts")) -> Saved:
    """Drafts, runs and evaluates each log; saves and returns what was found, with the earlier results of others."""
    saved: Saved = json.loads(SAVED.read_text(encoding="utf-8")) if SAVED.exists() else {"logs": {}}
    runs.mkdir(parents=True, exist_ok=True)
    for log in logs:
        folder = _folder_of(log, data, runs)
        if not folder.exists():
            print(f"{log.name}: there is no {folder}", file=sys.stderr)
            continue
        saved["logs"][log.name] = _result(log, folder, runs)
        saved |= {name: saved["logs"][log.name].pop(name) for name in ("commit", "hardware", "versions")}
        SAVED.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
    return saved


def _files_of(log: Log, folder: Path) -> list[str]:
    """Returns the options of `recipe new` for the log's files, which are written first if `tests/logs` makes them."""
    if log.write is not None:
        return log.write(folder, **SIZE)
    return [text for option, name in log.files for text in (option, f"{folder / name}")]


def _folder_of(log: Log, data: Path | None, runs: Path) -> Path:
    """Returns the folder with the files of a log; those of the shipped log and of worlds are made in `runs`."""
    folder = runs / f"{log.name}-data"
    if log.world_seed is not None and not folder.exists():
        size = ["--rows", f"{WORLD_ROWS}", "--seed", f"{log.world_seed}"]
        _twofold("data", "world", "--to", f"{folder}", *size)
    elif log.files is CSV and not folder.exists():
        folder.mkdir()
        for _, name in CSV:
            source, target = SHIPPED / name.replace(".csv", ".parquet"), folder / name
            duckdb.sql(f"COPY (FROM '{source}') TO '{target}' (HEADER)")
    elif log.write is not None:
        folder.mkdir(exist_ok=True)
    return folder if log in SHIPPED_LOGS else (data or runs) / log.name


def _twofold(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "twofold", *arguments], check=True, stdout=subprocess.DEVNULL)


def _result(log: Log, folder: Path, runs: Path) -> Saved:
    recipe = runs / f"{log.name}.yaml"
    recipe.unlink(missing_ok=True)
    _twofold("recipe", "new", *_files_of(log, folder), *log.options, "--out", f"{recipe}")
    job = Job(with_dates(load_recipe(recipe)), runs / log.name)
    started = time.process_time()
    with locked(job.folder):
        claim_folder(job, overwrite=True)
        stages = pipeline.up_to_training(job)
        minutes = (time.process_time() - started) / 60
        pipeline.evaluate(job, *stages)
    report, trained = report_of(job.folder), open_stage(job.folder, "train").facts
    return {
        "users": report.catalogue.users_judged,
        "items": report.catalogue.num_items,
        "events": open_stage(job.folder, "dataset").facts["events"],
        "track": report.track,
        "served": trained["served"],
        "quality": trained["quality"],
        "validation": [epoch["validation"] for epoch in trained["epochs"]],
        "processor_minutes": round(minutes, 1),
        "metrics": {each.metric: _rows(report, each.metric) for each in report.headlines},
        "commit": report.facts.commit,
        "hardware": report.facts.hardware,
        "versions": report.facts.versions,
    }


def _rows(report: Report, metric: str) -> list[Saved]:
    rows = []
    for row in report.catalogue.rows:
        value, ahead = row.metrics[metric], row.model_minus.get(metric)
        difference = ahead and [ahead.value, ahead.low, ahead.high]
        rows.append({"row": row.name, "value": [value.value, value.low, value.high], "model_minus": difference})
    return rows


def table(saved: Saved) -> str:
    """Returns the table of docs/results.md as Markdown: a line per log, with the best baseline by each metric."""
    lines = ["| log | users, items | served | metric | model [95 %] | best baseline | model − baseline | minutes |"]
    lines += ["|---" * 8 + "|"]
    for name, found in saved["logs"].items():
        about = [name, f"{found['users']:,}, {found['items']:,}", _short_name(found["served"])]
        for number, (metric, rows) in enumerate(found["metrics"].items()):
            (model, *others), shown = rows, metric.partition("/")[2].replace("_", " ")
            best = max(others, key=lambda row: row["value"][0])
            named = f"{best['row']} {_short(best['value'][0])}"
            first = about if number == 0 else ["", "", ""]
            cost = f"{found['processor_minutes']:g}" if number == 0 else ""
            cells = [*first, shown, _interval(model["value"]), named, _interval(best["model_minus"]), cost]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _short_name(served: str) -> str:
    """Returns what is served in fewer words.

    >>> _short_name("two towers + iALS with recency + EASE with recency")
    'towers + iALS + EASE, both with recency'
    """
    name = (
        served.replace("two towers", "towers")
        .replace("own items again", "own items")
        .replace("popularity of the last days", "popularity")
    )
    both = name.count(RECENT) == 2
    return f"{name.replace(RECENT, '')}, both{RECENT}" if both else name.replace(RECENT, " (recency)")


def _interval(values: Sequence[float]) -> str:
    value, low, high = map(_short, values)
    return f"{value} [{low}, {high}]"


def _short(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1).replace("-", "−")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with public logs")
    parser.add_argument("--logs", nargs="+", help="names of the logs to run; default: all that are there")
    parser.add_argument("--runs", type=Path, default=Path("runs/drafts"), help="folder of the runs")
    parser.add_argument("--tables", action="store_true", help="print the saved table; run nothing")
    given = parser.parse_args()
    if given.tables:
        print(table(json.loads(SAVED.read_text(encoding="utf-8"))))
    else:
        known = [*SHIPPED_LOGS, *(PUBLIC if given.data else ())]
        print(
            table(
                main([log for log in known if log.name in (given.logs or [log.name])], data=given.data, runs=given.runs)
            )
        )
