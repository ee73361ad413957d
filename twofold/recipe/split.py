"""Split of a log into training, validation and test: by days, by its last days, or by the last events of each user."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from twofold.recipe.section import Day, Section
from twofold.tables import Split


class Window(Section):
    """Days from `first` (included) to `end` (excluded), in the time zone `prepare.time_zone`."""

    first: Day
    """First day of the window."""
    end: Day
    """First day after the window."""

    @model_validator(mode="after")
    def _not_empty(self) -> Window:
        if self.first >= self.end:
            raise ValueError(
                f"the window is empty: first {self.first} must lie before end {self.end} (end is excluded)"
            )
        return self


class TemporalSplit(Section):
    """Global temporal split: all users are cut at the same days, so no later event trains a prediction of an earlier
    one. Days between two windows give no examples, but their events are in histories and counters.
    """

    kind: Literal["temporal"]
    train: Window
    """Window that the model trains on, and on which all statistics are fitted."""
    validation: Window
    """Window that chooses the best epoch. It may be several days long."""
    test: Window
    """Window that the report evaluates."""

    @model_validator(mode="after")
    def _in_order(self) -> TemporalSplit:
        for earlier, later in (("train", "validation"), ("validation", "test")):
            end, first = getattr(self, earlier).end, getattr(self, later).first
            if first < end:
                raise ValueError(
                    f"windows overlap: {later}.first is {first}, but {earlier}.end is {end}. "
                    f"Set {later}.first to {end} or later, so that no day is in both."
                )
        return self


class LastDays(Section):
    """Global temporal split whose windows are counted back from the log's end, so that the same recipe trains on a
    newer log. When a run begins, it becomes the temporal split of these days, and the run's recipe holds their dates.
    """

    kind: Literal["last_days"]
    test: int = Field(default=1, ge=1)
    """Number of last days that the report evaluates."""
    validation: int = Field(default=1, ge=1)
    """Number of days before them, which choose the best epoch."""
    train: int | None = Field(default=None, ge=1)
    """Number of days before those, which the model trains on. `null` means all."""
    skip: int = Field(default=0, ge=0)
    """Number of days left out at the log's end: 1 if its last day is incomplete."""

    def describe(self, split: Split) -> str:
        """Returns a window in words, without dates."""
        if split == "train":
            return "all days before" if self.train is None else f"{self.train} days before validation"
        return f"last {self.test} days" if split == "test" else f"{self.validation} days before the last {self.test}"


class LastEvents(Section):
    """Leave-last-n-out split: the last events of each user are evaluated. It leaks the future, since later events of
    other users are trained on. Users with too few events are only trained on.
    """

    kind: Literal["last_n"]
    test: int = Field(default=1, ge=1)
    """Number of last events of each user that are tested. 1, with 1 for validation, is leave-one-out."""
    validation: int = Field(default=1, ge=1)
    """Number of events before those that validate."""
    ties: str = "item_id"
    """Column that orders the events of a user with equal timestamps, such as the position in a published file. Equal
    ones are ordered by item_id, then by all columns that are read.
    """


SplitRule = Annotated[TemporalSplit | LastDays | LastEvents, Field(discriminator="kind")]
