"""Is a run better than the run it started from? Paired over the users of both, and refused where they were asked
something else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from twofold.errors import RequestError
from twofold.evaluate.per_user_values import load_values
from twofold.evaluate.results import EvaluationSetup, SliceSection, load_report
from twofold.evaluate.significance import (
    Estimate,
    SeedClaim,
    across_seeds,
    bootstrap,
    estimates,
    holm,
    json_number,
    paired_p_values,
)
from twofold.evaluate.slices import evaluate_slices
from twofold.recipe.load import load_recipe, recipe_differences
from twofold.render.numbers import plural
from twofold.run_folder import open_stage


@dataclass(frozen=True)
class Compared:
    """One metric of a run, of the base run, and the difference on the same users; p after Holm over all metrics."""

    metric: str
    run: Estimate
    base: Estimate
    minus: Estimate
    p_value: float | None


@dataclass(frozen=True)
class Comparison:
    """A run against a base run."""

    run: str
    base: str
    question: EvaluationSetup
    primary_metric: str
    metrics: tuple[Compared, ...]
    slices: SliceSection


@dataclass(frozen=True)
class SeedComparison:
    """A recipe over several seeds against a base recipe over as many, each named by its first run."""

    run: str
    base: str
    primary_metric: str
    claims: Mapping[str, SeedClaim]
    """Of every metric that all have: the run's seeds, in their order, minus the base's."""


def compare_runs(run: Path, base: Path) -> Comparison:
    """The evaluate/ folders of two judged runs, metric by metric and group by group.

    RequestError if they were not asked the same, with the fields that differ.
    """
    question = check_comparable(run, base)
    ours, theirs = load_values(run), load_values(base)
    shared = [name for name in ours.metrics if name in theirs.metrics]
    own, other = (np.stack([each.metrics[name] for name in shared], axis=1) for each in (ours, theirs))
    columns = (estimates(bootstrap(values)) for values in (own, other, own - other))
    p_values = holm(paired_p_values(own - other))
    primary_metric = load_report(run / "report.json").primary_metric
    names = [folder.parent.name for folder in (run, base)]
    if names[0] == names[1]:
        names = [str(folder.parent) for folder in (run, base)]
    lines = tuple(
        Compared(name, own_value, other_value, minus, json_number(p))
        for name, own_value, other_value, minus, p in zip(shared, *columns, p_values, strict=True)
    )
    slices = evaluate_slices(
        ours.ranks,
        theirs.ranks,
        relevant=ours.relevant,
        slicings=ours.slicings,
        k=int(primary_metric.partition("@")[2]),
        base=names[1],
    )
    return Comparison(names[0], names[1], question, primary_metric, lines, slices)


def compare_seeds(folders: Sequence[Path], *, seeds: int) -> tuple[SeedComparison, ...]:
    """Run folders of several recipes, those of one recipe's seeds after another; the first recipe is the base.

    RequestError where they are not so many, ask for more than another seed, or were asked something else.
    """
    if len(folders) % seeds or len(folders) < 2 * seeds:
        raise RequestError(
            f"{plural(len(folders), 'run')} cannot be compared by {plural(seeds, 'seed')} of each recipe: name "
            f"{seeds} of the base recipe, then {seeds} of each other."
        )
    judged = [open_stage(folder, "evaluate").folder for folder in folders]
    for folder in judged[1:]:
        check_comparable(folder, judged[0])
    groups = [slice(first, first + seeds) for first in range(0, len(folders), seeds)]
    for group in groups:
        _check_seeds(folders[group])
    values = [load_values(folder).metrics for folder in judged]
    shared = [name for name in values[0] if all(name in each for each in values)]
    primary_metric = load_report(judged[0] / "report.json").primary_metric
    base, *others = ([np.stack([each[name] for each in values[group]]) for name in shared] for group in groups)
    return tuple(
        SeedComparison(
            folders[group.start].name,
            folders[0].name,
            primary_metric,
            {name: across_seeds(*pair) for name, *pair in zip(shared, other, base, strict=True)},
        )
        for group, other in zip(groups[1:], others, strict=True)
    )


def _check_seeds(folders: Sequence[Path]) -> None:
    """RequestError unless these runs' recipes differ in their seeds alone, and in them."""
    recipes = [load_recipe(folder / "recipe.yaml") for folder in folders]
    for one, other in combinations(range(len(folders)), 2):
        fields = [difference.field for difference in recipe_differences(recipes[one], recipes[other])]
        more = [field for field in fields if not field.endswith("seed")]
        if more or not fields:
            what = f"differ in {', '.join(more)}" if more else "ask for the same"
            raise RequestError(
                f"{folders[one].name} and {folders[other].name} are no two seeds of one recipe, they {what}. Runs of "
                f"one recipe come one after another, each with a train.seed of its own."
            )


def check_comparable(run: Path, base: Path) -> EvaluationSetup:
    """What both evaluate/ folders were asked; RequestError with the fields that differ if that is not the same."""
    asked = []
    for folder in (run, base):
        question = load_report(folder / "report.json").question
        if question is None:
            raise RequestError(
                f"{folder} does not say what was asked. Delete {folder} and run `twofold evaluate` on its run folder."
            )
        asked.append(question)
    ours, theirs = (asdict(question) for question in asked)
    differing = [
        f"{name}: {_short(ours[name])} there, {_short(theirs[name])} in the base run"
        for name in ours
        if ours[name] != theirs[name]
    ]
    if differing:
        raise RequestError(
            f"{run.parent} and {base.parent} are not comparable, they were judged on different questions: "
            f"{'; '.join(differing)}. Give both the same data, prepare.split and prepare.positive."
        )
    return asked[0]


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text
