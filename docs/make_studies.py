"""Runs the studies of recipes/studies, and writes docs/studies.md from what came of them.

    python docs/make_studies.py run features    # makes the data, runs what is missing, writes studies/features.json
    python docs/make_studies.py                 # writes docs/studies.md from studies/*.json
    python docs/make_studies.py --check         # reports whether the page is current

A run that is finished is not run again, and a killed one continues. Every experiment runs with one seed before any runs
with the next, and the results are written after each seed. `--seeds 1` runs fewer seeds. `--only e01,e08` runs some
experiments, with the base and what they are compared with, and keeps the saved rows of the others. `--rows 40000` makes
a small world in place of the one that the base recipe names, with its runs and results in runs/studies-40000. When the
runs of all studies are here, studies/all.html holds all of them.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from study_rows import Saved, opening_of
from study_runs import NOT_RUN, RESULTS, ROOT, STUDIES, run_study
from study_tables import tables_of

from twofold.recipe.load import load_recipe
from twofold.render.numbers import plural

PAGE: Final = ROOT / "docs" / "studies.md"
SEEDS: Final = 3
"""Number of seeds of every experiment."""
TITLES: Final[Mapping[str, str]] = {
    "features": "A. Features of two towers",
    "gap": "B. The gap between batch and catalogue",
    "watch-time": "C. Watch-time labels",
    "two-stages": "D. Two stages on MovieLens",
    "practice": "E. Training practice",
}
PICTURES: Final[Mapping[str, str]] = {
    "gap": "A map of items by language, of one model for all languages and of a model for each",
    "practice": "A map of the items of two languages after each epoch, for each kind of negatives",
}
"""Descriptions of the pictures, by study."""
OPENING: Final = ROOT / "docs" / "studies" / "opening.txt"


# --- the page ---------------------------------------------------------------------------------------------------------


def studies_page() -> str:
    """Returns the page: a section for each study, with the results that are saved or the command that makes them."""
    summary = RESULTS / "summary.txt"
    parts = ["## Summary", "", summary.read_text(encoding="utf-8").strip(), ""] if summary.exists() else []
    parts = [_all_runs(), "", *parts]
    return "\n".join([OPENING.read_text(encoding="utf-8"), *parts, *(_section(study) for study in TITLES)])


def _all_runs() -> str:
    """Returns where all runs of all studies are on one page."""
    if (RESULTS / "all.html").exists():
        return "All runs of all studies on one page: [studies/all.html](studies/all.html)."
    return "All runs of all studies on one page, after `make studies`: `twofold tracker runs/studies/* --to all.html`."


def _section(study: str) -> str:
    parts: list[str] = []
    findings, result = RESULTS / f"{study}.findings.txt", RESULTS / f"{study}.json"
    opening = [f"## {TITLES[study]}", ""]
    opening += [findings.read_text(encoding="utf-8").strip(), ""] if findings.exists() else []
    if not result.exists():
        parts += [f"Not run yet: `make studies STUDY={study}`. What the notes claim and what we expect:", ""]
        parts += [
            f"- `{path.stem}`, {load_recipe(path).about}{_told(opening_of(path))}" for path in _experiments(study)
        ]
        return "\n".join([*opening, *map(_wrapped, parts), ""])
    saved = json.loads(result.read_text(encoding="utf-8"))
    parts += [_seeds(saved), "", f"All runs on one page: [studies/{study}.html](studies/{study}.html).", ""]
    picture = RESULTS / f"{study}.svg"
    if picture.exists():
        parts += [f"![{PICTURES[study]}](studies/{picture.name})", ""]
        parts += [f"{PICTURES[study]}. A dot is an item, its color is its language.", ""]
    parts += [*tables_of(saved), ""]
    parts += [*map(_sentence, saved["rows"]), *_not_run(study, {row["name"] for row in saved["rows"]})]
    return "\n".join([*opening, *map(_wrapped, parts), ""])


def _not_run(study: str, names: set[str]) -> list[str]:
    """Returns what is said of the experiments that have no row, and why they have none."""
    paths = [path for path in _experiments(study) if path.stem not in names]
    return [
        f"- `{path.stem}`, {load_recipe(path).about} **Not run:** {NOT_RUN.get(path.stem, 'there was no time for it')}."
        f"{_told(opening_of(path))}"
        for path in paths
    ]


def _experiments(study: str) -> list[Path]:
    return sorted(path for path in (STUDIES / study).glob("*.yaml") if path.stem != "base")


def _seeds(saved: Saved) -> str:
    """Returns how many seeds there are, what the intervals therefore hold, and the commands that run it again."""
    study, seeds = saved["study"], [len(row["recipes"]) for row in saved["rows"]]
    fewer = [f"`{row['name']}` {each}" for row, each in zip(saved["rows"], seeds, strict=True) if each < max(seeds)]
    but = f" ({', '.join(fewer)})" if fewer else ""
    over = "over users alone: another seed would move them" if max(seeds) == 1 else "over users and seeds"
    return (
        f"{plural(max(seeds), 'seed')}{but}; the intervals are {over}. Made with "
        f"`make studies STUDY={study}`{_took(saved)}. One row alone, and what it is compared with: `make studies "
        f"STUDY={study} ONLY={saved['rows'][-1]['name']}`."
    )


def _took(saved: Saved) -> str:
    """Returns the processor minutes of a study, where they were measured."""
    seconds = [each for row in saved["rows"] for each in row.get("processor_s", [None])]
    if None in seconds:
        return ""
    longest = max(saved["rows"], key=lambda row: sum(row["processor_s"]))
    return (
        f", in {sum(seconds) / 60:.0f} processor minutes, of which `{longest['name']}` took "
        f"{sum(longest['processor_s']) / 60:.1f}"
    )


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
    parser.add_argument("studies", nargs="*", help="folders of recipes/studies; none: all of them")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--only", default="", help="names of experiments, with commas")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    for study in options.studies or tuple(TITLES) if options.verb == "run" else ():
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
