"""Prices of the rules after ranking of `recipes/kuairand-rules.yaml`, on its test day.

python benchmarks/rules.py                 # runs the recipe, or reads its run, and writes rules.json
python benchmarks/rules.py --runs FOLDER   # the folder of the runs, by default runs
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import twofold
from twofold.pipeline.job import report_of
from twofold.run_folder import write_json

HERE = Path(__file__).parent
RECIPE = HERE.parent / "recipes" / "kuairand-rules.yaml"


def main(runs: Path) -> None:
    """Runs the recipe and saves the section on its rules."""
    report = report_of(Path(twofold.run(RECIPE, runs=runs).folder))
    assert report.rerank is not None
    facts = report.facts
    saved: dict[str, Any] = {"commit": facts.commit, "hardware": facts.hardware, "recipe": facts.recipe_digest}
    write_json(HERE / "rules.json", saved | asdict(report.rerank))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    main(parser.parse_args().runs)
