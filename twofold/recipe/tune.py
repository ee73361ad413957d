"""Of a recipe, the part `tune`: what a search may change, and how long it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import Field, model_validator

from twofold.recipe.section import Section

SEARCHED: Final = ("features", "retriever", "train")
"""The parts that may be searched over. All else says what is to be found: trials would answer different questions."""


class Range(Section):
    """What a field may become: a number from low to high, or one of some values. Nothing else is tried."""

    low: int | float | None = None
    """The least. Whole numbers are tried if low and high are both written as such: write 1.0 where 1.5 may be tried."""
    high: int | float | None = None
    """The most."""
    log: bool = False
    """As many trials from .001 to .01 as from .01 to .1: for rates and weights."""
    choices: tuple[Any, ...] = ()
    """Instead of low and high: the values, as they would stand in the recipe. Mappings too."""

    @model_validator(mode="after")
    def _a_range(self) -> Range:
        if self.choices:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("choices stand alone. Delete low, high and log, or delete choices")
            if len(self.choices) < 2:
                raise ValueError("one choice leaves nothing to search. Write it where the field stands, or add another")
            return self
        if self.low is None or self.high is None:
            raise ValueError("write low and high, or choices, such as {low: 16, high: 128} or {choices: [16, 64]}")
        if self.low >= self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}: low must be below high")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low}, which has no logarithm. Write a low above 0, or log: false")
        return self


class Tune(Section):
    """A search for better values, by `twofold tune`: trials are compared by recall@k on the validation window; nobody
    looks at the test window. No part of what a run is: `twofold run` does not read it.
    """

    ranges: Mapping[str, Range] = Field(min_length=1)
    """Field: what it may become, as `train.learning_rate: {low: 1e-4, high: 1e-2, log: true}`. Fields of `features`,
    `retriever` and `train`, written as for `--set`.
    """
    trials: int = Field(default=20, ge=1, le=100_000)
    """How many, failed and pruned ones too. Raise it later and give the same command again: the search goes on."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of what is tried. Trials train with `train.seed`."""

    @model_validator(mode="after")
    def _comparable(self) -> Tune:
        for field in self.ranges:
            if field.partition(".")[0] not in SEARCHED:
                raise ValueError(
                    f"ranges: {field} cannot be searched over: trials that differ there answer different questions. "
                    f"What can be is below {', '.join(SEARCHED)}"
                )
        nested = [(one, other) for one in self.ranges for other in self.ranges if other.startswith(f"{one}.")]
        if nested:
            raise ValueError(f"ranges: {nested[0][1]} is a part of {nested[0][0]}, which has a range too. Delete one")
        return self
