"""Comparison of two runs, paired over users; runs with different evaluation setups are refused."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Float64

from twofold.errors import RequestError
from twofold.evaluate.evaluation_setup import EvaluationSetup
from twofold.evaluate.headline_metrics import deciding_metrics
from twofold.evaluate.per_user_values import PerUserValues, load_values
from twofold.evaluate.results import SliceSection, load_report
from twofold.evaluate.significance import (
    Estimate,
    SeedClaim,
    across_seeds,
    estimates,
    holm_except,
    is_significant,
    json_number,
    mean_intervals,
)
from twofold.evaluate.slices import evaluate_slices
from twofold.recipe.diff import recipe_differences
from twofold.recipe.load import load_recipe
from twofold.recipe.retriever import TwoTower
from twofold.recipe.schema import Recipe
from twofold.render.numbers import plural
from twofold.run_folder import open_stage

_FIELDS_OF_EVALUATION: Final = (
    *("data.", "prepare.split", "prepare.where", "prepare.positive", "prepare.relevant", "prepare.time_zone"),
    *("prepare.sample", "prepare.new_items", "index.include_seen", "index.where"),
)
"""Fields of a recipe that decide which users and items are evaluated."""
_DIGESTS: Final[Mapping[str, str]] = {
    "relevant_digest": "the items to be found",
    "ranked_digest": "the users or the items that are ranked for each of them",
    "impressions_digest": "the users' own impressions or their labels",
}
_SEED: Final = re.compile(r"name|(train|ranker)\.seed|evaluate\.sampled\.\d+\.seed")
"""Fields in which runs of one recipe may differ."""


@dataclass(frozen=True)
class MetricComparison:
    """One metric of a run and of the base run, and the paired difference.

    `p_value` is that of the paired t test: uncorrected for the headline metrics, after Holm for all others. `None`
    means fewer than 2 users.
    """

    metric: str
    run: Estimate
    base: Estimate
    minus: Estimate
    p_value: float | None

    @property
    def is_significant(self) -> bool:
        """True if the p-value is below 0.05."""
        return is_significant(self.p_value)


@dataclass(frozen=True)
class Comparison:
    """Comparison of a run with a base run."""

    run: str
    base: str
    question: EvaluationSetup
    primary_metric: str
    metrics: tuple[MetricComparison, ...]
    slices: SliceSection


@dataclass(frozen=True)
class SeedComparison:
    """Comparison of a recipe with a base recipe over several seeds of each, each named by its first run."""

    run: str
    base: str
    primary_metric: str
    claims: Mapping[str, SeedClaim]
    """Differences run − base of every metric that all runs have; p-values as in `MetricComparison`."""


def compare_runs(run: Path, base: Path) -> Comparison:
    """Compares the evaluate/ folders of two runs, metric by metric and group by group.

    RequestError, with what differs, if their evaluation setups or their users are not equal.
    """
    question = check_comparable(run, base)
    theirs, ours = _load_paired([base, run])
    shared = [name for name in ours.metrics if name in theirs.metrics]
    own, other = (np.stack([each.metrics[name] for name in shared], axis=1) for each in (ours, theirs))
    primary_metric = load_report(run / "report.json").primary_metric
    differences = mean_intervals(own - other)
    columns = (estimates(each) for each in (mean_intervals(own), mean_intervals(other), differences))
    is_headline = np.isin(shared, deciding_metrics(question.num_items))
    p_values = holm_except(differences.p_value, is_headline)
    names = [folder.parent.name for folder in (run, base)]
    if names[0] == names[1]:
        names = [str(folder.parent) for folder in (run, base)]
    lines = tuple(
        MetricComparison(name, own_value, other_value, minus, json_number(p))
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
    """Compares several recipes over `seeds` runs each, sorted by recipe; the first recipe is the base.

    RequestError if the number of runs does not fit, if runs of a recipe differ in more than seeds or share a trained
    model, or if the evaluation setups are not equal.
    """
    if len(folders) % seeds or len(folders) < 2 * seeds:
        raise RequestError(
            f"{plural(len(folders), 'run')} cannot be compared with {plural(seeds, 'seed')} per recipe: name "
            f"{seeds} runs of the base recipe, then {seeds} of each other recipe."
        )
    evaluated = [open_stage(folder, "evaluate").folder for folder in folders]
    setups = [check_comparable(folder, evaluated[0]) for folder in evaluated[1:]]
    groups = [slice(first, first + seeds) for first in range(0, len(folders), seeds)]
    for group in groups:
        _check_seeds(folders[group])
    values = [each.metrics for each in _load_paired(evaluated)]
    shared = [name for name in values[0] if all(name in each for each in values)]
    primary_metric = load_report(evaluated[0] / "report.json").primary_metric
    base, *others = ([np.stack([each[name] for each in values[group]]) for name in shared] for group in groups)
    return tuple(
        SeedComparison(
            folders[group.start].name,
            folders[0].name,
            primary_metric,
            _claims(shared, other, base, headlines=deciding_metrics(setups[0].num_items)),
        )
        for group, other in zip(groups[1:], others, strict=True)
    )


def _load_paired(folders: Sequence[Path]) -> list[PerUserValues]:
    """Reads the values per user of evaluate/ folders; RequestError unless all have the users of the first, the base."""
    values = [load_values(folder) for folder in folders]
    for folder, each in zip(folders, values, strict=True):
        if not each.user_ids.equals(values[0].user_ids):
            raise RequestError(
                f"{folder.parent} and {folders[0].parent} cannot be compared, because "
                f"{_user_difference(each, values[0])}. {_what_to_equalize(folder.parent, folders[0].parent)}"
            )
    return values


def _user_difference(ours: PerUserValues, theirs: PerUserValues) -> str:
    """Returns in words how the users of a run differ from those of the base run."""
    own, other = ours.user_ids, theirs.user_ids
    if own.type != other.type:
        return f"user ids are {own.type} here and {other.type} in the base run"
    counts = (pc.sum(pc.invert(pc.is_in(*pair))).as_py() for pair in ((own, other), (other, own)))
    return "the evaluated users differ: {} of them only here, {} only in the base run".format(*counts)


def _claims(
    metrics: Sequence[str],
    runs: Sequence[Float64[np.ndarray, "_ users"]],
    base: Sequence[Float64[np.ndarray, "_ users"]],
    *,
    headlines: Sequence[str],
) -> dict[str, SeedClaim]:
    claims = [across_seeds(*pair) for pair in zip(runs, base, strict=True)]
    raw = np.array([np.nan if claim.p_value is None else claim.p_value for claim in claims])
    adjusted = holm_except(raw, np.isin(metrics, headlines))
    return {
        metric: replace(claim, p_value=json_number(p))
        for metric, claim, p in zip(metrics, claims, adjusted, strict=True)
    }


def _check_seeds(folders: Sequence[Path]) -> None:
    """Raises RequestError unless these runs' recipes differ in nothing but seeds, and no two share a trained model."""
    recipes = [load_recipe(folder / "recipe.yaml") for folder in folders]
    for one, other in combinations(range(len(folders)), 2):
        fields = [difference.field for difference in recipe_differences(recipes[one], recipes[other])]
        more = [field for field in fields if not _SEED.fullmatch(field)]
        if more or not fields:
            what = f"they differ in {', '.join(more)}" if more else "their recipes are equal"
            raise RequestError(
                f"{folders[one].name} and {folders[other].name} are not two seeds of one recipe: {what}. List the runs "
                f"recipe by recipe, each run with a different train.seed."
            )
        shared = _shared_seeds(recipes[one], recipes[other], fields)
        if shared:
            apart = _num_seeds(recipes[one])
            raise RequestError(
                f"{folders[one].name} and {folders[other].name} are not independent seeds: {shared}. Train the "
                f"{plural(len(folders), 'run')} of each recipe with train.seed "
                f"{', '.join(str(apart * place) for place in range(len(folders)))}."
            )


def _shared_seeds(one: Recipe, other: Recipe, fields: Sequence[str]) -> str:
    """Returns in words why two seeds of a recipe share trained towers; empty if they share none."""
    count, seeds = _num_seeds(one), [one.train.seed, other.train.seed]
    if abs(seeds[0] - seeds[1]) >= count:
        return ""
    if seeds[0] == seeds[1]:
        differs = "differs" if len(fields) == 1 else "differ"
        return f"both have train.seed {seeds[0]}, and only {' and '.join(fields)} {differs}"
    first, second = (f"{seed} to {seed + count - 1}" for seed in seeds)
    return (
        f"retriever.ensemble is {count}, so train.seed {seeds[0]} trains the towers of seeds {first}, and train.seed "
        f"{seeds[1]} those of {second}"
    )


def _num_seeds(recipe: Recipe) -> int:
    """Returns the number of consecutive seeds from `train.seed` on that a run trains with."""
    return recipe.retriever.ensemble if isinstance(recipe.retriever, TwoTower) else 1


def check_comparable(run: Path, base: Path) -> EvaluationSetup:
    """Returns the evaluation setup of two evaluate/ folders; RequestError with the fields that differ."""
    setups = [_setup_of(folder) for folder in (run, base)]
    ours, theirs = (asdict(setup) for setup in setups)
    differing = [name for name in ours if ours[name] != theirs[name]]
    # With and without the time of the request, users and items are the same. Which items are ranked follows from the
    # catalogue and from whether seen items are.
    implied = {"track"} | ({"ranked_digest"} if {"includes_seen", "num_items"} & set(differing) else set())
    found = [_difference(name, ours[name], theirs[name]) for name in differing if name not in implied]
    if found:
        raise RequestError(
            f"{run.parent} and {base.parent} cannot be compared, because their evaluations differ in "
            f"{', '.join(found)}. {_what_to_equalize(run.parent, base.parent)}"
        )
    return setups[0]


def _setup_of(folder: Path) -> EvaluationSetup:
    """Returns the evaluation setup of an evaluate/ folder; RequestError if the report is too old to have a full one."""
    setup = load_report(folder / "report.json").question
    if setup is None:
        raise RequestError(
            f"{folder} has no evaluation setup. Delete {folder} and run `twofold evaluate` on its run folder."
        )
    if not setup.ranked_digest or not setup.impressions_digest:
        raise RequestError(
            f"{folder} was written by an older version of twofold: it does not say which items were ranked and shown. "
            f"Run `twofold evaluate {folder.parent}` to evaluate the run again."
        )
    return setup


def _what_to_equalize(run: Path, base: Path) -> str:
    """Returns what to change in the recipes of two run folders, so that both are evaluated on the same users."""
    recipes = [folder / "recipe.yaml" for folder in (base, run)]
    differences = recipe_differences(*map(load_recipe, recipes)) if all(map(Path.is_file, recipes)) else []
    found = [
        f"{each.field} ({json.dumps(each.new)} here, {json.dumps(each.old)} in the base run)"
        for each in differences
        if each.field.startswith(_FIELDS_OF_EVALUATION)
    ]
    if found:
        return f"Give both the same {', '.join(found)}."
    return (
        "Give both the same data, prepare.split, prepare.where, prepare.positive, prepare.relevant and "
        "index.include_seen."
    )


def _difference(name: str, ours: object, theirs: object) -> str:
    """Returns in words what differs; of a digest, what it is of."""
    if name in _DIGESTS:
        return _DIGESTS[name]
    if name == "includes_seen":
        return f"whether seen items are ranked ({ours} here, {theirs} in the base run)"
    return f"{name} ({ours} here, {theirs} in the base run)"
