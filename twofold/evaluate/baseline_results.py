"""Types of a report about baselines: the best of them, those left out, and how their hyperparameters were chosen."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import TypeAdapter

from twofold.evaluate.significance import Estimate
from twofold.render.numbers import format_significant
from twofold.run_folder import write_json

TUNING: Final = "peer_tuning.json"
"""File of the stage `train` with the tuned hyperparameters of the peers."""

Constants = Mapping[str, float]


@dataclass(frozen=True)
class LeftOut:
    """A baseline that was not run, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class Headline:
    """The model and the best baseline on one metric, with the paired difference model − baseline."""

    metric: str
    model: Estimate
    baseline: str
    best: Estimate
    minus: Estimate

    @property
    def is_better(self) -> bool:
        """Flag: the interval of the difference lies above 0."""
        return self.minus.low is not None and self.minus.low > 0

    @property
    def is_worse(self) -> bool:
        """Flag: the interval of the difference lies below 0."""
        return self.minus.high is not None and self.minus.high < 0


@dataclass(frozen=True)
class Trial:
    """The two headline metrics of one choice of hyperparameters on the validation window."""

    constants: dict[str, float]
    recall: float
    ndcg: float

    @property
    def quality(self) -> float:
        """Geometric mean of both metrics."""
        return float(np.sqrt(self.recall * self.ndcg))

    @property
    def in_text(self) -> str:
        """Hyperparameters in words."""
        return _constants_text(self.constants)


@dataclass(frozen=True)
class PeerChoice:
    """The hyperparameters of one baseline, and all that were tried; `trials` is empty if they were fixed."""

    name: str
    constants: dict[str, float]
    trials: tuple[Trial, ...]
    at_end: tuple[str, ...] = ()
    """Hyperparameters whose chosen value is an end of its grid, beyond which there might be a better one."""
    score_std: float | None = None
    """Standard deviation of the scores that the weight of recency is added to; `None` without a recency prior."""
    note: str = ""
    """Reason why the hyperparameters are fixed."""

    @property
    def in_text(self) -> str:
        """Hyperparameters in words."""
        return _constants_text(self.constants)

    @property
    def remarks(self) -> str:
        """Scale of the weight, and what else limits the choice."""
        parts = (
            [f"The score has a standard deviation of {format_significant(self.score_std)}."] if self.score_std else []
        )
        parts += [f"At the end of its grid: {', '.join(self.at_end)}."] if self.at_end else []
        parts += [f"Not tuned: {self.note}."] if self.note else []
        return " ".join(parts)


@dataclass(frozen=True)
class PeerTuning:
    """Hyperparameters of all fitted baselines, with the window and the metrics by which they were chosen."""

    window: str
    """Name of the window, or an empty text if there was none to choose on."""
    users: int
    metrics: tuple[str, str]
    choices: tuple[PeerChoice, ...]
    with_peers: bool = True
    """False if the recipe leaves out the fitted baselines; only the days of recent popularity are chosen then."""

    def constants_of(self, name: str) -> dict[str, float] | None:
        """Returns the hyperparameters of a baseline; `None` if it has no entry."""
        return next((choice.constants for choice in self.choices if choice.name == name), None)


def _constants_text(constants: Constants) -> str:
    """Returns hyperparameters with their values.

    >>> _constants_text({"l2": 500.0, "weight": 0.0812})
    'l2 500, weight 0.0812'
    """
    return ", ".join(f"{name} {format_significant(value)}" for name, value in constants.items())


def save_tuning(tuning: PeerTuning, folder: Path) -> None:
    """Writes the hyperparameters of the peers, so that the report need not choose them again."""
    write_json(folder / TUNING, TypeAdapter(PeerTuning).dump_python(tuning, mode="json"))


def load_tuning(folder: Path) -> PeerTuning | None:
    """Reads what `save_tuning` wrote; `None` if there is nothing."""
    path = folder / TUNING
    return TypeAdapter(PeerTuning).validate_json(path.read_bytes()) if path.exists() else None
