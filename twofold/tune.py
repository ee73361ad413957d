"""Hyperparameter search with Optuna: each trial is a run that ends after training.

```
runs/kuairand.tune/
├── study.db               the trials and their results: SQLite, which optuna-dashboard opens
├── recipe.yaml, prepare/  the recipe; its log is prepared once
├── data/<digest>/         arrays, once for each set of features
└── trial-000/             a run folder, which `twofold run` or `twofold evaluate` continues
```

Trials are compared on the validation window only. A trial that after an epoch is below the median of the earlier ones
is pruned: it ends, and `twofold run` would continue it. A trial has one pair of towers and no peers. Stages that trials
share are hard links to one copy.
"""

import itertools
import json
import math
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from twofold.digest import digest_of
from twofold.errors import RecipeError, RunError, TwofoldError
from twofold.pipeline.dataset import build_dataset
from twofold.pipeline.job import Job, claim_folder
from twofold.pipeline.prepare import prepare
from twofold.pipeline.train import train
from twofold.pipeline.watch_time import watch_time_by_formula
from twofold.prepare.last_days import with_dates
from twofold.recipe.load import load_recipe
from twofold.recipe.retriever import TwoTower
from twofold.recipe.schema import Recipe
from twofold.recipe.split import LastDays
from twofold.recipe.tune import Range, Tune
from twofold.run_folder import locked
from twofold.runs import STUDY

Space = CategoricalDistribution | FloatDistribution | IntDistribution
ENDED: Final = (TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED)
_TO_COMPARE: Final = 5  # trials that ended, before one is pruned: optuna's own default
_SAME_AS: Final = "same_as"
"""Attribute of a trial with values that were tried before: the number of the trial that has trained with them."""
_OTHER: Final = {"ranges": "other ranges", "log": "another log"}


@dataclass(frozen=True)
class Trial:
    """A finished trial: its changes as `field=value`, and its value on validation, which is higher for a better one:
    recall@k of its best epoch, or the expected seconds of the first items (see `Tune.goal`).

    `value` is None where it was pruned or failed, and `reason` says which.
    """

    number: int
    folder: Path
    changes: tuple[str, ...]
    value: float | None
    reason: str


@dataclass(frozen=True)
class Search:
    """A search: a recipe file with the changes of the command line, and the folder of the search."""

    path: Path
    settings: tuple[str, ...]
    folder: Path

    def recipe(self, changes: Sequence[str] = ()) -> Recipe:
        """Loads the recipe of a trial; raises RecipeError if the changes contradict each other."""
        return load_recipe(self.path, overrides=[*self.settings, *changes])

    def trial_folder(self, number: int) -> Path:
        """Returns the run folder of a trial."""
        return self.folder / f"trial-{number:03}"


def tune(search: Search, *, on_trial_done: Callable[[Trial], None] = lambda trial: None) -> list[Trial]:
    """Searches the ranges of the recipe's section `tune` and returns the trials, the best first.

    `on_trial_done` is called with each trial when it ends. A stopped search resumes: an interrupted trial continues
    with its values. Raises RecipeError before any work for a range that the recipe cannot take, and RunError if no
    trial succeeds or if the folder holds another search.
    """
    recipe = search.recipe()
    if recipe.tune is None:
        raise RecipeError(
            f"{search.path} has no section tune, so nothing can be searched. Write one, such as tune: {{ranges: "
            f"{{train.learning_rate: {{low: 1e-4, high: 1e-2, log: true}}}}}}"
        )
    _check_ranges(search, recipe.tune)
    if isinstance(recipe.prepare.split, LastDays):
        recipe = with_dates(recipe)
        dates = json.dumps(recipe.prepare.split.model_dump(mode="json"))
        search = replace(search, settings=(*search.settings, f"prepare.split={dates}"))
    assert recipe.tune is not None
    with locked(search.folder):
        base = Job(recipe.model_copy(update={"tune": None}), search.folder)
        claim_folder(base, overwrite=False, remedy="delete it")
        prepared = prepare(base)
        with _storage(search.folder) as storage:
            study = _open_study(storage, search.folder, recipe.tune, log=prepared.digest)
            measure = _measure(search, base.recipe, recipe.tune)
            for trial in _trials(study, recipe.tune):
                same = _same_trial(trial)
                if same is not None:  # training is deterministic
                    trial.set_user_attr(_SAME_AS, same.number)
                    study.tell(trial, same.value)
                    continue
                state, value = _try(search, trial, measure)
                on_trial_done(_ended(search, study.tell(trial, value, state)))
            ended = study.get_trials(states=ENDED)
            trials = [_ended(search, trial) for trial in ended if _SAME_AS not in trial.user_attrs]
    if all(trial.value is None for trial in trials):
        raise RunError(f"none of {len(trials)} trials in {search.folder} succeeded; the last {trials[-1].reason}")
    return sorted(trials, key=lambda trial: -math.inf if trial.value is None else trial.value, reverse=True)


def _check_ranges(search: Search, config: Tune) -> None:
    """Raises RecipeError with all ranges that the recipe cannot take: each end and each choice is tried alone."""
    faults = []
    for field, values in config.ranges.items():
        for value in _samples(values):
            try:
                search.recipe([f"{field}={value}"])
            except RecipeError as error:
                faults.append(f"tune.ranges: {error}")
                break  # an unknown field is one mistake, not one for each end
    if faults:
        raise RecipeError("\n".join(faults))


def command_of(search: Search, trial: Trial) -> str:
    """Returns the command that runs a trial completely, including the test window."""
    changes = [part for change in (*search.settings, *trial.changes) for part in ("--set", change)]
    name = search.folder.name.removesuffix(".tune")
    runs = ["--runs", str(search.folder.parent)] if search.folder.parent != Path("runs") else []
    return shlex.join(["twofold", "run", str(search.path), *changes, *runs, "--run", f"{name}.best"])


# --- the study --------------------------------------------------------------------------------------------------------


@contextmanager
def _storage(folder: Path) -> Iterator[optuna.storages.RDBStorage]:
    """Yields the file of the study and closes its connections, which Optuna leaves to the garbage collector."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{(folder / STUDY).absolute()}")
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _open_study(storage: optuna.storages.RDBStorage, folder: Path, config: Tune, *, log: str) -> optuna.Study:
    """Opens or creates the study of a folder; raises RunError if it searches other ranges or another log."""
    study = optuna.create_study(
        storage=storage,
        study_name="tune",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_TO_COMPARE, n_warmup_steps=1),
    )
    question = {"ranges": config.model_dump(mode="json")["ranges"], "log": log}
    held = study.user_attrs.get("question", question)
    differing = [words for name, words in _OTHER.items() if held[name] != question[name]]
    if differing:
        raise RunError(
            f"{folder} holds a search over {' and '.join(differing)}: its trials cannot be compared with new ones. "
            f"Choose another folder with --run NAME, or delete it."
        )
    study.set_user_attr("question", question)
    return study


def _trials(study: optuna.Study, config: Tune) -> Iterator[optuna.Trial]:
    """Yields the trials to run: interrupted ones, then new ones, up to the number of the recipe.

    Where no more combinations of values exist than that, each is tried once.
    """
    for begun in study.get_trials(states=(TrialState.RUNNING,)):
        yield optuna.Trial(study, begun._trial_id)
    spaces = {field: _space(values) for field, values in config.ranges.items()}
    grid = _grid(spaces, most=config.trials)
    while (number := len(study.trials)) < config.trials:
        if grid is not None:
            tried = [trial.params for trial in study.trials]
            untried = next((values for values in grid if values not in tried), None)
            if untried is None:
                return
            study.enqueue_trial(untried)
        # A single seed would draw the first values again whenever a search resumes.
        study.sampler = optuna.samplers.TPESampler(seed=config.seed + number)
        yield study.ask({**spaces})


def _grid(spaces: Mapping[str, Space], *, most: int) -> list[dict[str, Any]] | None:
    """Returns all combinations of values; `None` means that there are more than `most`."""
    values: list[Sequence[Any]] = []
    for space in spaces.values():
        if isinstance(space, FloatDistribution):
            return None
        values.append(space.choices if isinstance(space, CategoricalDistribution) else range(space.low, space.high + 1))
    if math.prod(map(len, values)) > most:
        return None
    return [dict(zip(spaces, combination, strict=True)) for combination in itertools.product(*values)]


def _same_trial(trial: optuna.Trial) -> FrozenTrial | None:
    """Returns the complete trial with the values of this one, if there is one."""
    complete = trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return next((each for each in complete if each.params == trial.params), None)


def _space(values: Range) -> Space:
    if values.choices:
        return CategoricalDistribution(_samples(values))
    assert values.low is not None, "a range has choices or ends"
    assert values.high is not None, "a range has choices or ends"
    if isinstance(values.low, int) and isinstance(values.high, int):
        return IntDistribution(values.low, values.high, log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


def _samples(values: Range) -> list[str]:
    """Returns values of a range as texts: all choices, or both ends and, for fractions, a value between them."""
    if values.choices:
        return [json.dumps(choice) for choice in values.choices]
    assert values.low is not None, "a range has choices or ends"
    assert values.high is not None, "a range has choices or ends"
    ends = [str(values.low), str(values.high)]
    is_whole = isinstance(values.low, int) and isinstance(values.high, int)
    return ends if is_whole else [*ends, str(values.low + (values.high - values.low) / math.pi)]


# --- a trial ----------------------------------------------------------------------------------------------------------


def _measure(search: Search, recipe: Recipe, config: Tune) -> Callable[[Job], float]:
    """Returns a function from the job of a trial to its value by the goal of the search."""
    if config.goal == "recall":
        return _best_recall
    seconds_of = watch_time_by_formula(Job(recipe, _data_of(search, recipe)))

    def expected_seconds(job: Job) -> float:
        assert job.recipe.ranker is not None, "the recipe checks that there is a ranker"
        return seconds_of(job.recipe.ranker.formula)

    return expected_seconds


def _best_recall(job: Job) -> float:
    facts = train(job, build_dataset(job, prepare(job))).facts
    return float(facts["epochs"][facts["best_epoch"]]["validation"])


def _try(search: Search, trial: optuna.Trial, measure: Callable[[Job], float]) -> tuple[TrialState, float | None]:
    """Runs one trial. An error of its own fails only this trial."""
    folder = search.trial_folder(trial.number)
    try:
        recipe = _one_pair(search.recipe(_changes(trial.params))).model_copy(update={"tune": None})
        data = _data_of(search, recipe)
        with locked(folder):
            job = Job(recipe, folder, on_validation=_reporter(trial, recipe))
            claim_folder(job, overwrite=False)
            for stage in ("prepare", "dataset"):
                _link(data / stage, folder / stage)
            value = measure(job)
    except optuna.TrialPruned:
        return TrialState.PRUNED, None
    except TwofoldError as error:
        trial.set_user_attr("failure", str(error))
        return TrialState.FAIL, None
    return TrialState.COMPLETE, value


def _reporter(trial: optuna.Trial, recipe: Recipe) -> Callable[[float], None]:
    """Returns a function that reports the metric of each epoch in turn and prunes the trial where it is too low.

    An interrupted trial of towers goes on after the epochs that it reported; iALS begins again.
    """
    reported = trial.study.trials[trial.number].intermediate_values
    epochs = itertools.count(len(reported) if isinstance(recipe.retriever, TwoTower) else 0)

    def report(validation: float) -> None:
        if (epoch := next(epochs)) not in reported:
            trial.report(validation, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned

    return report


def _one_pair(recipe: Recipe) -> Recipe:
    """Returns the recipe with one pair of towers and without the peers of kind best, whose quality no trial reads.

    Towers that start from iALS need kind best, which chooses its hyperparameters.
    """
    towers, config = recipe.retriever, recipe.tune
    if not isinstance(towers, TwoTower) or config is None or config.goal != "recall":
        return recipe
    kind = "two_tower" if towers.start_from is None else towers.kind
    return recipe.model_copy(update={"retriever": towers.model_copy(update={"kind": kind, "ensemble": 1})})


def _data_of(search: Search, recipe: Recipe) -> Path:
    """Returns the folder with the prepared log and the arrays of the recipe's features; builds them if needed."""
    folder = search.folder / "data" / digest_of(recipe.all_features.model_dump(mode="json"))[:12]
    job = Job(recipe, folder)
    _link(search.folder / "prepare", folder / "prepare")
    build_dataset(job, prepare(job))
    return folder


def _link(source: Path, target: Path) -> None:
    """Links a stage into another run folder without a copy on disk: files of a stage never change."""
    if not target.exists():
        partial = target.with_name(f"{target.name}.linking")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial, copy_function=os.link)
        os.replace(partial, target)


def _ended(search: Search, trial: FrozenTrial) -> Trial:
    value, reason = trial.value, ""
    if trial.state is TrialState.FAIL:
        reason = f"failed: {trial.user_attrs.get('failure', '')}"
    elif trial.state is TrialState.PRUNED:  # its value is that of its last epoch, at which no other trial ends
        last, metric = max(trial.intermediate_values.items())
        value, reason = None, f"pruned after epoch {last + 1}, at {metric:.4f}"
    return Trial(trial.number, search.trial_folder(trial.number), _changes(trial.params), value, reason)


def _changes(params: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{field}={value}" for field, value in params.items())
