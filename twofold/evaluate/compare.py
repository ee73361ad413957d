"""Is a run better than the run it started from? Paired over the users of both, and refused where they were asked
something else.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from twofold.errors import RequestError
from twofold.evaluate.significance import SeedClaim, across_seeds, bootstrap, holm, paired_p_values
from twofold.evaluate.slices import judge_slices
from twofold.evaluate.values import load_values
from twofold.evaluate.verdict import Estimate, Question, SliceSection, estimates, load_report, number


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
    question: Question
    headline: str
    metrics: tuple[Compared, ...]
    slices: SliceSection


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
    headline = load_report(run / "report.json").headline
    names = [folder.parent.name for folder in (run, base)]
    if names[0] == names[1]:
        names = [str(folder.parent) for folder in (run, base)]
    lines = tuple(
        Compared(name, own_value, other_value, minus, number(p))
        for name, own_value, other_value, minus, p in zip(shared, *columns, p_values, strict=True)
    )
    slices = judge_slices(
        ours.ranks,
        theirs.ranks,
        relevant=ours.relevant,
        slicings=ours.slicings,
        k=int(headline.partition("@")[2]),
        base=names[1],
    )
    return Comparison(names[0], names[1], question, headline, lines, slices)


def compare_seeds(runs: Sequence[Path], bases: Sequence[Path], *, metric: str) -> SeedClaim:
    """One metric over seeds: the i-th run, an evaluate/ folder, is paired with the i-th base run.

    RequestError for lists of different lengths, runs of other questions, or a metric that was not judged.
    """
    if len(runs) != len(bases) or not runs:
        raise RequestError(f"{len(runs)} runs cannot be paired with {len(bases)} base runs: give one for each seed")
    values: list[list[np.ndarray]] = [[], []]
    for folder, into in [*((run, values[0]) for run in runs), *((base, values[1]) for base in bases)]:
        check_comparable(folder, runs[0])
        metrics = load_values(folder).metrics
        if metric not in metrics:
            raise RequestError(f"{folder} has no {metric}; it has {', '.join(metrics)}")
        into.append(metrics[metric])
    return across_seeds(np.stack(values[0]), np.stack(values[1]))


def check_comparable(run: Path, base: Path) -> Question:
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
