"""Tune section of a recipe: the search space of a hyperparameter search, and its number of trials."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

from pydantic import Field, model_validator

from twofold.recipe.section import Section

SEARCHED: Final = ("features", "retriever", "train")
"""Sections that may be searched over. A change of any other section changes the task, so trials would not compare."""
NOT_COMPARED: Final = MappingProxyType(
    {
        "train.best_epoch_by": "its values are different metrics. Write one of them in train.best_epoch_by",
        **dict.fromkeys(
            ("retriever.kind", "retriever.ensemble"),
            "trials are compared by one pair of towers, not by what is served. Compare runs with `twofold compare`",
        ),
    }
)
"""Fields of these sections of which the values of trials say nothing, and why."""
FORMULA: Final = "ranker.formula"
"""Field that is searched for watch time. A change of any other field changes the predictions that trials are compared
by."""


class Range(Section):
    """Values to try for a field: numbers from low to high, or one of several choices."""

    low: int | float | None = None
    """Lowest value. If low and high are both whole numbers, only whole numbers are tried; write 1.0 to allow 1.5."""
    high: int | float | None = None
    """Highest value."""
    log: bool = False
    """`true`: samples on a logarithmic scale, for learning rates and weights."""
    choices: tuple[Any, ...] = ()
    """Values to choose from instead of low and high, as written in the recipe; mappings too."""

    @model_validator(mode="after")
    def _a_range(self) -> Range:
        if self.choices:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("choices cannot be combined with a range. Delete low, high and log, or delete choices")
            if len(self.choices) < 2:
                raise ValueError("one choice leaves nothing to search. Write it in the field itself, or add another")
            return self
        if self.low is None or self.high is None:
            raise ValueError("write low and high, or choices, such as {low: 16, high: 128} or {choices: [16, 64]}")
        if self.low >= self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}: low must be below high")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low}, which has no logarithm. Write a low above 0, or log: false")
        return self


class Tune(Section):
    """Hyperparameter search by `twofold tune`. Trials are compared on the validation window; the test window is not
    read. `twofold run` ignores this section, and it does not change the digest of a run.
    """

    goal: Literal["recall", "watch_time"] = "recall"
    """Metric that trials are compared by. `recall`: that of the best epoch of the towers, which is recall@k of the
    catalogue, or what else `train.best_epoch_by` names. `watch_time`: the expected watch time of the first items of
    each list, in seconds, by a head of the ranker for a quantile of watch time; all trials share one training and
    differ in `ranker.formula` alone.
    """
    ranges: Mapping[str, Range] = Field(min_length=1)
    """Ranges by field, as `train.learning_rate: {low: 1e-4, high: 1e-2, log: true}`. Fields are those of `features`,
    `retriever` and `train`, written as for `--set`; with `goal: watch_time`, only `ranker.formula: {choices: […]}`.
    """
    trials: int = Field(default=20, ge=1, le=100_000)
    """Number of trials, including failed and pruned ones; fewer if the ranges have fewer combinations of values. To
    continue a search, raise it and repeat the command.
    """
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the search. Trials train with `train.seed`."""

    @model_validator(mode="after")
    def _comparable(self) -> Tune:
        if self.goal == "watch_time":
            self._check_formulas()
            return self
        for field in self.ranges:
            if field == FORMULA:
                raise ValueError(f"ranges: {FORMULA} does not change recall. Write goal: watch_time to search over it")
            if field.partition(".")[0] not in SEARCHED:
                raise ValueError(
                    f"ranges: {field} cannot be searched over: trials that differ in it do not compare. "
                    f"Only fields can be that are below {', '.join(SEARCHED)}"
                )
            if field in NOT_COMPARED:
                raise ValueError(f"ranges: {field} cannot be searched over: {NOT_COMPARED[field]}")
            self._check_choices(field)
        nested = [(one, other) for one in self.ranges for other in self.ranges if other.startswith(f"{one}.")]
        if nested:
            raise ValueError(f"ranges: {nested[0][1]} is a part of {nested[0][0]}, which has a range too. Delete one")
        return self

    def _check_choices(self, field: str) -> None:
        """Raises ValueError if the choices of a section differ in a field of which the values of trials say nothing."""
        for name in NOT_COMPARED:
            section, _, key = name.partition(".")
            values = [choice.get(key) for choice in self.ranges[field].choices if isinstance(choice, Mapping)]
            if section == field and any(value != values[0] for value in values):
                raise ValueError(
                    f"ranges: the choices of {field} differ in {key}, so their trials do not compare. Write the same "
                    f"{key} in each choice"
                )

    def _check_formulas(self) -> None:
        """Raises ValueError unless the ranges are choices of the formula."""
        others = [field for field in self.ranges if field != FORMULA]
        if others or not self.ranges[FORMULA].choices:
            what = f"{others[0]} cannot be searched over" if others else f"{FORMULA} has no choices"
            raise ValueError(
                f"ranges: {what} with goal: watch_time. Write ranges: {{{FORMULA}: {{choices: [relevance, watch]}}}}, "
                f"with formulas of your heads"
            )
