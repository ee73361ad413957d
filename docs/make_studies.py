"""Runs the studies of recipes/studies, and writes docs/studies.md from what came of them.

    python docs/make_studies.py run features    # makes the data, runs what is missing, writes studies/features.json
    python docs/make_studies.py                 # writes docs/studies.md from studies/*.json
    python docs/make_studies.py --check         # reports whether the page is current

A run that is finished is not run again, and a killed one continues. Every experiment runs with one seed before any runs
with the next, and the results are written after each seed. `--rows 40000` makes a small world in place of the one that
the base recipe names, `--only e01,e08` runs some experiments beside the base, `--seeds 1` fewer seeds.
"""

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from twofold.errors import RequestError
from twofold.evaluate.compare import compare_runs, compare_seeds
from twofold.evaluate.results import MODEL, Report
from twofold.page.run_page import keep_base
from twofold.page.tracker_page import write_tracker
from twofold.pipeline.job import report_of
from twofold.pipeline.run import run
from twofold.recipe.diff import recipe_digest
from twofold.recipe.load import load_recipe
from twofold.render.numbers import format_decimal, format_interval, format_signed, plural
from twofold.run_folder import find_stage, write_json

ROOT: Final = Path(__file__).parents[1]
STUDIES: Final = ROOT / "recipes" / "studies"
PAGE: Final = ROOT / "docs" / "studies.md"
RESULTS: Final = ROOT / "docs" / "studies"
RUNS: Final = ROOT / "runs" / "studies"
Saved = dict[str, Any]

LABEL_WITH_LENGTH: Final = "label_with_length"
"""Rank correlation of the label with the length of the item, on rows that fitted nothing."""

SHOWN: Final[Mapping[str, tuple[str, ...]]] = {
    "features": (
        *(f"impressions/{name}" for name in ("auc", "ndcg@5", "ndcg@10", "mrr", "map", "map@10")),
        *("coverage", "overlap"),
    ),
    "gap": (
        *(f"in_batch/hit_rate@{k}" for k in (1, 5, 20, 100, 200)),
        *(f"catalogue/recall@{k}" for k in (1, 5, 20, 100, 200)),
    ),
    "watch-time": (
        LABEL_WITH_LENGTH,
        *(f"impressions/{name}" for name in ("recall@5", "recall@10", "recall@50", "recall@100", "map", "auc", "mrr")),
        *("watch_time/xauc", "watch_time/wtg@5", "watch_time/mae", "watch_time/rmse"),
    ),
    "practice": ("catalogue/recall@100", "catalogue/ndcg@10", "language/folding"),
    "two-stages": tuple(f"catalogue/{name}@{k}" for k in (10, 20, 50, 100) for name in ("hit_rate", "ndcg", "mrr")),
}
"""Metrics and probes of each study's table."""
SEEDS: Final = 1
"""Number of seeds of every experiment."""
BY_DEFAULT: Final = ("features", "watch-time", "practice")
"""Studies that run if none is named; gap and two-stages take longer than all of these."""
NOT_RUN: Final = ("d01", "d03", "c09", "prod-dnn", "e05")
"""Experiments that `make studies` leaves out: their log must be downloaded (d01, d03), they are not in the notes (c09,
prod-dnn), or a step for every example takes too long (e05). `--only` runs them.
"""
COMPARED: Final[Mapping[str, str]] = {
    **{"a02": "a01", "a04": "a03", "a05": "a03", "a06": "a04", "a08": "a07", "a09": "a08", "a10": "a08", "a11": "a03"},
    **{"c02": "c01", "c03": "c02", "c04": "c03", "c05": "c03", "c06": "c05", "c07": "c03", "c08": "c03", "c09": "c03"},
}
"""Experiments that are compared with another one than the base: the one that their opening says they change."""
TITLES: Final[Mapping[str, str]] = {
    "features": "A. Features of two towers",
    "gap": "B. The gap between batch and catalogue",
    "watch-time": "C. Watch-time labels",
    "two-stages": "D. Two stages on MovieLens",
    "practice": "E. Training practice",
}
OPENING: Final = ROOT / "docs" / "studies" / "opening.txt"


# --- running ----------------------------------------------------------------------------------------------------------


def run_study(study: str, *, seeds: int, only: Sequence[str], rows: int | None) -> Path:
    """Makes the data, runs the base and its experiments with each seed, and writes the results and the tracker."""
    paths = [STUDIES / study / "base.yaml", *sorted(each for each in (STUDIES / study).glob("*.yaml"))]
    paths = [paths[0], *(each for each in paths[1:] if _is_run(each, only))]
    data, result = _make_data(paths[0], rows=rows), RESULTS / f"{study}.json"
    RESULTS.mkdir(exist_ok=True)
    folders: dict[str, list[Path]] = {path.stem: [] for path in paths}
    for seed in range(seeds):
        for path in paths:
            folders[path.stem].append(_run(path, seed, data=data))
        write_json(result, _results(study, paths, folders))
        write_tracker([folder for each in folders.values() for folder in each], RESULTS / f"{study}.html")
    return result


def _is_run(path: Path, only: Sequence[str]) -> bool:
    return path.stem != "base" and (path.stem in only if only else path.stem not in NOT_RUN)


def _make_data(base: Path, *, rows: int | None) -> list[str]:
    """Makes the data that the base recipe's opening names, if they are missing; returns the settings that read them."""
    found = re.search(r"twofold (data .*--to (\S+))", base.read_text(encoding="utf-8"))
    assert found is not None, f"{base} names the command that makes its data"
    command, folder = shlex.split(found[1]), ROOT / found[2]
    if rows is not None and "world" in command:
        folder = folder.with_name(f"{folder.name}-{rows}")
        command[command.index("--rows") + 1] = str(rows)
        if "--items" in command:
            del command[command.index("--items") : command.index("--items") + 2]
    command[command.index("--to") + 1] = str(folder)
    if not (folder / "items.parquet").exists():
        subprocess.run([sys.executable, "-m", "twofold", *command], check=True, cwd=ROOT)
    data = load_recipe(base).data
    return [f"data.{name}={folder / getattr(data, name).name}" for name in ("events", "items", "users") if
            getattr(data, name) is not None]  # fmt: skip


def _run(path: Path, seed: int, *, data: Sequence[str]) -> Path:
    """Runs one recipe with one seed. What does not depend on the seed or the model is taken from an earlier run."""
    runs, name = RUNS / path.parent.name, f"{path.stem}-seed{seed}"
    for earlier, stages in ((f"{path.stem}-seed0", ("prepare", "dataset")), ("base-seed0", ("prepare",))):
        for stage in stages:
            _copy_stage(runs / earlier / stage, runs / name / stage)
    print(f"== {path.parent.name} {name}", flush=True)
    settings = [*data, f"train.seed={seed}"]
    run(load_recipe(path, overrides=settings), runs=runs, name=name, overwrite=True)
    against = path.with_stem(COMPARED.get(path.stem, "base"))
    keep_base(runs / name, None if path.stem == "base" else load_recipe(against, overrides=settings))
    return runs / name


def _copy_stage(source: Path, target: Path) -> None:
    """Copies a stage that is complete; `run` uses it if its digest says that it is the same, and else replaces it."""
    if source != target and source.is_dir() and not target.exists():
        shutil.copytree(source, target.with_suffix(".copy"), dirs_exist_ok=True)
        target.with_suffix(".copy").rename(target)


# --- results ----------------------------------------------------------------------------------------------------------


def _results(study: str, paths: Sequence[Path], folders: Mapping[str, Sequence[Path]]) -> Saved:
    rows = []
    for path in paths:
        own = folders[path.stem]
        reports = [report_of(folder) for folder in own]
        against = COMPARED.get(path.stem, "base")
        minus = _differences(folders[against], own) if path.stem != "base" and against in folders else {}
        setup = reports[0].question
        rows.append(
            {
                "name": path.stem,
                "about": load_recipe(path).about,
                **_opening(path),
                "recipes": [recipe_digest(load_recipe(folder / "recipe.yaml")) for folder in own],
                "tested_on": None
                if setup is None
                else f"{setup.dates}, {setup.users:,} users, {setup.num_items:,} items",
                "positive_share": _test_share(own[0]),
                "against": against if minus else None,
                "metrics": {
                    metric: {
                        "per_seed": [
                            _value(report, folder, metric) for report, folder in zip(reports, own, strict=True)
                        ],
                        "chance": _chance(reports[0], metric),
                        "minus": minus.get(metric),
                    }
                    for metric in SHOWN[study]
                },
            }
        )
    return {"study": study, "rows": rows}


def _opening(path: Path) -> Saved:
    """Returns what the opening comment says the notes claimed and what was expected before the run."""
    lines = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    told: dict[str, str] = {"claimed": "", "expected": ""}
    field = ""
    for line in lines:
        word, _, rest = line.partition(" ")
        field = word if word in told else field if line and word not in ("data", "changes", "note", "shows") else ""
        if field:
            told[field] += f" {rest.strip() if word == field else line}"
    return {field: text.strip() for field, text in told.items()}


def _differences(base: Sequence[Path], own: Sequence[Path]) -> dict[str, list[float | None]]:
    """Returns difference, low and high of each metric, over users and, if there are several, seeds; empty if the
    questions differ.
    """
    try:
        if len(base) == 1:
            lines = compare_runs(own[0] / "evaluate", base[0] / "evaluate").metrics
            return {line.metric: [line.minus.value, line.minus.low, line.minus.high] for line in lines}
        (comparison,) = compare_seeds([*base, *own], seeds=len(base))
    except RequestError:
        return {}
    return {name: [claim.difference, claim.low, claim.high] for name, claim in comparison.claims.items()}


def _value(report: Report, folder: Path, metric: str) -> float | None:
    values = report.metrics_of(MODEL)
    if metric in values:
        return values[metric]
    if metric == LABEL_WITH_LENGTH:
        prepared = find_stage(folder, "prepare")
        return None if prepared is None else prepared.facts["labels"][metric]
    explained = find_stage(folder, "explain")
    probes = explained.facts["probes"] if explained is not None else ()
    return next((probe["value"] for probe in probes if probe["name"] == metric), None)


def _chance(report: Report, metric: str) -> float | None:
    if metric in report.impressions.bounds:
        return report.impressions.bounds[metric].chance
    return report.metrics_of("random").get(metric)


def _test_share(folder: Path) -> float | None:
    prepared = find_stage(folder, "prepare")
    return None if prepared is None else float(prepared.facts["splits"]["test"]["positive_share"])


# --- the page ---------------------------------------------------------------------------------------------------------


def studies_page() -> str:
    """Returns the page: a section for each study, with the results that are saved or the command that makes them."""
    summary = RESULTS / "summary.txt"
    parts = ["## Summary", "", summary.read_text(encoding="utf-8").strip(), ""] if summary.exists() else []
    return "\n".join([OPENING.read_text(encoding="utf-8"), *parts, *(_section(study) for study in TITLES)])


def _section(study: str) -> str:
    parts = [f"## {TITLES[study]}", ""]
    findings, result = RESULTS / f"{study}.findings.txt", RESULTS / f"{study}.json"
    if findings.exists():
        parts += [findings.read_text(encoding="utf-8").strip(), ""]
    if not result.exists():
        parts += [f"Not run yet: `make studies STUDY={study}`. What the notes claim and what we expect:", ""]
        parts += [f"- `{path.stem}`, {load_recipe(path).about}{_told(_opening(path))}" for path in _experiments(study)]
        return "\n".join([*map(_wrapped, parts), ""])
    saved = json.loads(result.read_text(encoding="utf-8"))
    parts += [_seeds(saved), "", f"All runs on one page: [studies/{study}.html](studies/{study}.html).", ""]
    parts += [*_table(saved), ""]
    parts += [*map(_sentence, saved["rows"]), *_not_run(study, {row["name"] for row in saved["rows"]})]
    return "\n".join([*map(_wrapped, parts), ""])


def _not_run(study: str, names: set[str]) -> list[str]:
    """Returns what is said of the experiments that have no row."""
    paths = [path for path in _experiments(study) if path.stem not in names]
    return [f"- `{path.stem}`, {load_recipe(path).about} **Not run.**{_told(_opening(path))}" for path in paths]


def _experiments(study: str) -> list[Path]:
    return sorted(path for path in (STUDIES / study).glob("*.yaml") if path.stem != "base")


def _seeds(saved: Saved) -> str:
    """Returns how many seeds there are, and what the intervals therefore hold."""
    seeds = len(saved["rows"][0]["recipes"])
    over = "over users alone: another seed would move them" if seeds == 1 else "over users and seeds"
    return f"{plural(seeds, 'seed')}; the intervals are {over}. Made with `make studies STUDY={saved['study']}`."


def _table(saved: Saved) -> list[str]:
    metrics = [
        metric for metric in SHOWN[saved["study"]] if any(_mean(row, metric) is not None for row in saved["rows"])
    ]
    lines = [
        f"| experiment | recipe | positives | {' | '.join(metrics)} |",
        f"|---|---|---|{'---|' * len(metrics)}",
    ]
    for row in saved["rows"]:
        cells = [_cell(row, metric) for metric in metrics]
        share = "–" if row["positive_share"] is None else format_decimal(row["positive_share"])
        lines.append(f"| {row['name']} | `{row['recipes'][0][:12]}` | {share} | {' | '.join(cells)} |")
    return lines


def _mean(row: Saved, metric: str) -> float | None:
    values = [value for value in row["metrics"][metric]["per_seed"] if value is not None]
    return sum(values) / len(values) if values else None


def _cell(row: Saved, metric: str) -> str:
    found = row["metrics"][metric]
    parts = [format_decimal(_mean(row, metric))]
    if found["chance"] is not None:
        parts.append(f"chance {format_decimal(found['chance'])}")
    if found["minus"] is not None:
        difference, low, high = found["minus"]
        parts.append(f"− {row['against']} {format_signed(difference)} {format_interval(low, high)}".strip())
    return "<br>".join(parts)


def _sentence(row: Saved) -> str:
    return f"- `{row['name']}`, {row['about']}{_told(row)} Tested on {row['tested_on']}."


def _told(opening: Saved) -> str:
    """Returns the claim of the notes and what was expected, where there are such."""
    words = {"claimed": "Claimed", "expected": "Expected"}
    return "".join(f" {word}: {opening[name]}." for name, word in words.items() if opening[name])


def _wrapped(text: str) -> str:
    """Breaks a paragraph at 118 characters; tables stay as they are."""
    import textwrap

    return text if text.startswith("|") else "\n".join(
        textwrap.wrap(text, 118, subsequent_indent="  " if text.startswith("- ") else "", break_long_words=False,
                      break_on_hyphens=False)) or text  # fmt: skip


def main() -> int:
    """Runs a study, or writes or checks the page; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", nargs="?", choices=["run"])
    parser.add_argument("studies", nargs="*", help="folders of recipes/studies; none: those run by default")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--only", default="", help="names of experiments, with commas")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    for study in options.studies or BY_DEFAULT if options.verb == "run" else ():
        only = [each for each in options.only.split(",") if each]
        print(run_study(study, seeds=options.seeds, only=only, rows=options.rows))
    page = studies_page()
    if options.check and (not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page):
        print(f"{PAGE.name} is not what docs/studies/*.json say: run `make docs` and commit it", file=sys.stderr)
        return 1
    if not options.check:
        PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
