"""A search over a recipe: ranges of its fields → trials, each a run that ends at training.

```
runs/kuairand.tune/
├── study.db               what was tried, and what came of it: SQLite, as optuna-dashboard opens it
├── recipe.yaml, prepare/  the recipe as it stands; its log is prepared once
├── data/<digest>/         arrays, once for each set of features
└── trial-000/             a run folder: `twofold run` or `twofold evaluate` takes it from there
```

Trials are judged on the validation window alone. One that after an epoch is below the median of the earlier ones there
is pruned: it ends, and `twofold run` would continue it. Stages that trials share are hard links to one copy.
"""

import itertools
import json
import math
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from twofold.digest import digest_of
from twofold.errors import RecipeError, RunError, TwofoldError
from twofold.pipeline import run as pipeline
from twofold.recipe.load import load_recipe
from twofold.recipe.schema import Recipe
from twofold.recipe.tune import Range, Tune
from twofold.run_folder import locked
from twofold.runs import STUDY

ENDED: Final = (TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED)
_TO_COMPARE: Final = 5  # trials that ended, before one is pruned: optuna's own default
_OTHER: Final = {"ranges": "other ranges", "log": "another log"}


@dataclass(frozen=True)
class Trial:
    """One trial that has ended: its changes as `field=value`, and the best epoch's recall@k on validation, or why not.

    `value` is None where it was pruned or failed, and `reason` says which.
    """

    number: int
    folder: Path
    changes: tuple[str, ...]
    value: float | None
    reason: str


@dataclass(frozen=True)
class Search:
    """What is searched, and where: a recipe file with the changes of the command line, and the search's folder."""

    path: Path
    settings: tuple[str, ...]
    folder: Path

    def recipe(self, changes: Sequence[str] = ()) -> Recipe:
        """The recipe of a trial; RecipeError where the changes do not go together."""
        return load_recipe(self.path, overrides=[*self.settings, *changes])

    def trial_folder(self, number: int) -> Path:
        """Where the run of a trial lives."""
        return self.folder / f"trial-{number:03}"


def tune(search: Search, *, on_trial_done: Callable[[Trial], None] = lambda trial: None) -> list[Trial]:
    """Tries what the recipe's part `tune` asks for; returns the trials, the best first.

    `on_trial_done` is called with each as it ends. A search that was stopped resumes: a trial that was cut off
    continues with its values. RecipeError, before anything is made, for a range that the recipe cannot take; RunError
    if no trial succeeds or the folder holds another search.
    """
    recipe = search.recipe()
    if recipe.tune is None:
        raise RecipeError(
            f"{search.path} has no part tune, so there is nothing to search over. Write one, such as tune: {{ranges: "
            f"{{train.learning_rate: {{low: 1e-4, high: 1e-2, log: true}}}}}}"
        )
    check_ranges(search, recipe.tune)
    with locked(search.folder):
        base = pipeline.Job(recipe.model_copy(update={"tune": None}), search.folder)
        pipeline.claim_folder(base, overwrite=False)
        prepared = pipeline.prepare(base)
        study = _open_study(search.folder, recipe.tune, log=prepared.digest)
        for trial in _trials(study, recipe.tune):
            state, value = _try(search, trial)
            on_trial_done(_ended(search, study.tell(trial, value, state)))
    trials = [_ended(search, trial) for trial in study.get_trials(states=ENDED)]
    if all(trial.value is None for trial in trials):
        raise RunError(f"none of {len(trials)} trials in {search.folder} succeeded; the last {trials[-1].reason}")
    return sorted(trials, key=lambda trial: -math.inf if trial.value is None else trial.value, reverse=True)


def check_ranges(search: Search, asked: Tune) -> None:
    """RecipeError with every range that the recipe cannot take: each end and each choice is tried by itself."""
    faults = []
    for field, given in asked.ranges.items():
        for value in _samples(given):
            try:
                search.recipe([f"{field}={value}"])
            except RecipeError as error:
                faults.append(f"tune.ranges: {error}")
                break  # an unknown field is one mistake, not one for each end
    if faults:
        raise RecipeError("\n".join(faults))


def command_of(search: Search, trial: Trial) -> str:
    """What runs a trial in full, the test window included."""
    changes = [part for change in (*search.settings, *trial.changes) for part in ("--set", change)]
    name = search.folder.name.removesuffix(".tune")
    runs = ["--runs", str(search.folder.parent)] if search.folder.parent != Path("runs") else []
    return shlex.join(["twofold", "run", str(search.path), *changes, *runs, "--run", f"{name}.best"])


# --- the study --------------------------------------------------------------------------------------------------------


def _open_study(folder: Path, asked: Tune, *, log: str) -> optuna.Study:
    """The study in a folder, or a new one; RunError if it searches other ranges or another log."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{(folder / STUDY).absolute()}",
        study_name="tune",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_TO_COMPARE, n_warmup_steps=1),
    )
    question = {"ranges": asked.model_dump(mode="json")["ranges"], "log": log}
    held = study.user_attrs.get("question", question)
    differing = [words for name, words in _OTHER.items() if held[name] != question[name]]
    if differing:
        raise RunError(
            f"{folder} holds a search over {' and '.join(differing)}: its trials cannot be compared with new ones. "
            f"Choose another folder with --run NAME, or delete it."
        )
    study.set_user_attr("question", question)
    return study


def _trials(study: optuna.Study, asked: Tune) -> Iterator[optuna.Trial]:
    """The trials to make: those that were cut off, then new ones, until there are enough."""
    for begun in study.get_trials(states=(TrialState.RUNNING,)):
        yield optuna.Trial(study, begun._trial_id)
    spaces = {field: _space(given) for field, given in asked.ranges.items()}
    while (number := len(study.trials)) < asked.trials:
        # One seed for the whole would draw the first values again whenever a search goes on.
        study.sampler = optuna.samplers.TPESampler(seed=asked.seed + number)
        yield study.ask(spaces)


def _space(given: Range) -> BaseDistribution:
    if given.choices:
        return CategoricalDistribution(_samples(given))
    assert given.low is not None, "a range has choices or ends"
    assert given.high is not None, "a range has choices or ends"
    if isinstance(given.low, int) and isinstance(given.high, int):
        return IntDistribution(given.low, given.high, log=given.log)
    return FloatDistribution(given.low, given.high, log=given.log)


def _samples(given: Range) -> list[str]:
    """Values of a range as texts: every choice, or the ends and, where fractions are meant, one between them."""
    if given.choices:
        return [json.dumps(choice) for choice in given.choices]
    assert given.low is not None, "a range has choices or ends"
    assert given.high is not None, "a range has choices or ends"
    ends = [str(given.low), str(given.high)]
    is_whole = isinstance(given.low, int) and isinstance(given.high, int)
    return ends if is_whole else [*ends, str(given.low + (given.high - given.low) / math.pi)]


# --- a trial ----------------------------------------------------------------------------------------------------------


def _try(search: Search, trial: optuna.Trial) -> tuple[TrialState, float | None]:
    """The run of one trial up to training; it fails alone where something makes it impossible."""
    epochs = itertools.count(len(trial.study.trials[trial.number].intermediate_values))

    def report(validation: float) -> None:
        trial.report(validation, next(epochs))
        if trial.should_prune():
            raise optuna.TrialPruned

    folder = search.trial_folder(trial.number)
    try:
        recipe = search.recipe(_changes(trial.params)).model_copy(update={"tune": None})
        data = _data_of(search, recipe)
        with locked(folder):
            job = pipeline.Job(recipe, folder, on_validation=report)
            pipeline.claim_folder(job, overwrite=False)
            for stage in ("prepare", "dataset"):
                _link(data / stage, folder / stage)
            dataset = pipeline.build_dataset(job, pipeline.prepare(job))
            facts = pipeline.train(job, dataset).facts
    except optuna.TrialPruned:
        return TrialState.PRUNED, None
    except TwofoldError as error:
        trial.set_user_attr("failure", str(error))
        return TrialState.FAIL, None
    return TrialState.COMPLETE, float(facts["epochs"][facts["best_epoch"]]["validation"])


def _data_of(search: Search, recipe: Recipe) -> Path:
    """The folder that holds the prepared log and the arrays of these features."""
    folder = search.folder / "data" / digest_of(recipe.all_features.model_dump(mode="json"))[:12]
    job = pipeline.Job(recipe, folder)
    _link(search.folder / "prepare", folder / "prepare")
    pipeline.build_dataset(job, pipeline.prepare(job))
    return folder


def _link(made: Path, wanted: Path) -> None:
    """The same stage in another run folder, without a second copy on disk: files of a stage never change."""
    if not wanted.exists():
        partial = wanted.with_name(f"{wanted.name}.linking")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(made, partial, copy_function=os.link)
        os.replace(partial, wanted)


def _ended(search: Search, trial: FrozenTrial) -> Trial:
    value, reason = trial.value, ""
    if trial.state is TrialState.FAIL:
        reason = f"failed: {trial.user_attrs.get('failure', '')}"
    elif trial.state is TrialState.PRUNED:  # its value is that of its last epoch, at which no other trial ends
        last, found = max(trial.intermediate_values.items())
        value, reason = None, f"pruned after epoch {last + 1}, at {found:.4f}"
    return Trial(trial.number, search.trial_folder(trial.number), _changes(trial.params), value, reason)


def _changes(params: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{field}={value}" for field, value in params.items())
