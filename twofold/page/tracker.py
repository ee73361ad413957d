"""Tracker of experiments: one row for each run, with what it changed against its base, its data, model and metrics.

Everything is read from run folders. Runs are grouped by evaluation setup: values of two groups answer different
questions and are never compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pyarrow as pa

from twofold.errors import RequestError, TwofoldError
from twofold.evaluate.compare import compare_runs
from twofold.evaluate.results import MODEL, Report, Row, Section
from twofold.evaluate.significance import Estimate
from twofold.page.model_drawing import Drawing, drawings_of
from twofold.page.run_page import Change, RunPage, read_run_page, score_text
from twofold.page.tiles import RANDOM
from twofold.prepare.event_filters import filter_name
from twofold.recipe.retriever import TwoTower
from twofold.recipe.schema import Recipe
from twofold.render.numbers import percent, ratio
from twofold.runs import RunSummary, find_run, list_runs
from twofold.tables import Json

METRICS: Final = (
    *(f"impressions/{name}" for name in ("auc", "ndcg@5", "ndcg@10", "mrr", "map", "map@10")),
    *(f"impressions/recall@{k}" for k in (5, 10, 50, 100)),
    *("watch_time/mae", "watch_time/rmse", "watch_time/xauc"),
    *("catalogue/hit_rate@10", "catalogue/recall@10", "catalogue/recall@100", "catalogue/ndcg@10"),
)
"""Metrics of the table in its order, those of the users' own impressions first."""
PROBES: Final = ("coverage", "overlap", "top_tenth", "list_similarity", "top_share", "folding")
"""Probes of variety by the last part of their name."""


@dataclass(frozen=True)
class Cell:
    """A metric of a run: its value, the value of a random order, and the paired difference from the base run.

    `None` means that there is no such value.
    """

    value: Estimate
    chance: float | None
    minus: Estimate | None


@dataclass(frozen=True)
class Variety:
    """A probe of the recommended lists or vectors, with the same number of the most popular items and of what users
    liked.
    """

    name: str
    value: float
    popularity: float | None
    positives: float | None


@dataclass(frozen=True)
class TrackedRun:
    """A row of the tracker."""

    name: str
    folder: Path
    digest: str
    about: str
    comment: str
    base: str
    """Name of the run it is compared with, or of the recipe it is based on; empty means none."""
    changes: tuple[Change, ...]
    windows: Mapping[str, str]
    sampling: tuple[str, ...]
    ratio_asked: str
    ratio_reached: str
    ratio_tested: str
    loss: str
    drawings: tuple[Drawing, ...]
    metrics: Mapping[str, Cell]
    variety: tuple[Variety, ...]


@dataclass(frozen=True)
class TrackedGroup:
    """Runs with one evaluation setup."""

    window: str
    runs: tuple[TrackedRun, ...]


@dataclass(frozen=True)
class Tracker:
    """All runs by evaluation setup, and the run folders that cannot be read, each with the reason."""

    groups: tuple[TrackedGroup, ...]
    unreadable: Mapping[str, str]

    @property
    def runs(self) -> list[TrackedRun]:
        """The runs of all groups."""
        return [run for group in self.groups for run in group.runs]


def read_tracker(folders: Sequence[Path]) -> Tracker:
    """Reads the evaluated runs of these folders, each a run folder or a folder of run folders.

    RequestError if none of them holds an evaluated run that can be read.
    """
    summaries = [summary for folder in folders for summary in _summaries(folder)]
    unique = {summary.folder.resolve(): summary for summary in summaries if summary.window}
    pages, unreadable = {}, {}
    for summary in _distinctly_named(sorted(unique.values(), key=lambda each: each.name)):
        try:
            pages[summary.name] = (summary, read_run_page(summary.folder))
        except TwofoldError as error:
            unreadable[str(summary.folder)] = str(error)
    if not pages:
        listed = ", ".join(map(str, folders)) or "no folder"
        why = "; ".join(unreadable.values()) or "there is no evaluated run"
        raise RequestError(
            f"{listed}: {why}. Name run folders, or folders that hold some; `twofold run RECIPE` makes one."
        )
    runs = [summary for summary, _ in pages.values()]
    recipes = {name: page.recipe for name, (_, page) in pages.items()}
    tracked = {
        name: _tracked(summary, page, _base_of(summary, runs, recipes)) for name, (summary, page) in pages.items()
    }
    setups = sorted({(run.window, run.setup) for run in runs}, reverse=True)
    groups = (
        TrackedGroup(window, tuple(tracked[run.name] for run in runs if (run.window, run.setup) == (window, setup)))
        for window, setup in setups
    )
    return Tracker(tuple(groups), unreadable)


def _summaries(folder: Path) -> list[RunSummary]:
    return list_runs(folder) if (own := find_run(folder)) is None else [own]


def _distinctly_named(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """Returns the runs by the shortest ends of their paths that tell all of them apart; mostly names of folders."""
    paths, length = [run.folder.resolve().parts for run in runs], 1
    while len({path[-length:] for path in paths}) < len(paths):
        length += 1
    return [replace(run, name="/".join(path[-length:])) for run, path in zip(runs, paths, strict=True)]


def _base_of(run: RunSummary, runs: Sequence[RunSummary], recipes: Mapping[str, Recipe]) -> RunSummary | None:
    """Returns the run of the recipe that a run's recipe is based on.

    Of several, one with an equal setup comes first, then one of the same folder, then one of the same seed.
    """
    found = [
        each for each in runs if run.base and run.base in (each.folder.name, recipes[each.name].name) and each != run
    ]
    return min(found, key=lambda each: _distance(run, each, recipes), default=None)


def _distance(run: RunSummary, base: RunSummary, recipes: Mapping[str, Recipe]) -> tuple[bool, bool, bool]:
    seeds = [recipes[each.name].train.seed for each in (run, base)]
    return base.setup != run.setup, base.folder.parent != run.folder.parent, seeds[0] != seeds[1]


def _tracked(summary: RunSummary, page: RunPage, base: RunSummary | None) -> TrackedRun:
    report, recipe = page.report, page.recipe
    assert report is not None, "an evaluated run has a report"
    is_comparable = base is not None and base.setup == summary.setup
    shares = {window.name: window.positive_share for window in page.windows}
    wanted = recipe.prepare.positive_share
    return TrackedRun(
        name=summary.name,
        folder=summary.folder,
        digest=page.digest,
        about=recipe.about,
        comment=page.comment or "",
        base=base.name if base is not None else summary.base,
        changes=page.changes,
        windows={window.name: window.days for window in page.windows},
        sampling=_sampling(recipe),
        ratio_asked="as logged" if wanted is None else _ratio(wanted),
        ratio_reached=_ratio(shares["train"]) if "train" in shares else "–",
        ratio_tested=_ratio(shares["test"]) if "test" in shares else "–",
        loss=_loss(recipe),
        drawings=drawings_of(report.facts.model, retriever_score=score_text(recipe)),
        metrics=_cells(report, _differences(summary, base) if base is not None and is_comparable else {}),
        variety=_variety(page),
    )


def _ratio(share: float) -> str:
    return "positives alone" if share == 1 else ratio(share)


def _sampling(recipe: Recipe) -> tuple[str, ...]:
    prepare = recipe.prepare
    parts = [] if prepare.where is None else [f"only {prepare.where}"]
    parts += [filter_name(each) for each in prepare.filters]
    parts += [] if prepare.sample is None else [f"{percent(prepare.sample.users)} of the users"]
    return tuple(parts)


def _loss(recipe: Recipe) -> str:
    if not isinstance(recipe.retriever, TwoTower):
        return "weighted squared error (iALS)"
    config: Json = recipe.train.loss.model_dump(mode="json", exclude_defaults=True)
    settings = ", ".join(f"{name} {value}" for name, value in config.items() if name != "kind")
    text = f"{config['kind']}{f' ({settings})' if settings else ''}, {recipe.train.optimizer}"
    parts = {"hard negatives": recipe.train.hard_negatives, "adversary": recipe.train.adversary}
    return "; ".join([text, *(name for name, part in parts.items() if part is not None)])


def _differences(run: RunSummary, base: RunSummary) -> dict[str, Estimate]:
    """Returns the differences of each metric; none if the runs cannot be compared, as those of older versions, or if
    values of single users are missing or damaged.
    """
    try:
        lines = compare_runs(run.folder / "evaluate", base.folder / "evaluate").metrics
    except TwofoldError:
        return {}
    return {line.metric: line.minus for line in lines}


def _cells(report: Report, minus: Mapping[str, Estimate]) -> dict[str, Cell]:
    cells = {}
    for section in (report.catalogue, report.impressions, report.watch_time):
        if section is None:
            continue
        rows = {row.name: row for row in section.rows}
        bounds = section.bounds if isinstance(section, Section) else {}
        for metric, value in rows[MODEL].metrics.items():
            if metric in METRICS and value.value is not None:
                chance = bounds[metric].chance if metric in bounds else _value(rows.get(RANDOM), metric)
                cells[metric] = Cell(value, chance, minus.get(metric))
    return {metric: cells[metric] for metric in METRICS if metric in cells}


def _value(row: Row | None, metric: str) -> float | None:
    return row.metrics[metric].value if row is not None and metric in row.metrics else None


def _variety(page: RunPage) -> tuple[Variety, ...]:
    return tuple(
        Variety(probe["name"], probe["value"], probe["popularity"], probe["positives"])
        for probe in page.probes or ()
        if probe["value"] is not None and probe["name"].rpartition("/")[2] in PROBES
    )


def tracker_table(tracker: Tracker) -> pa.Table:
    """Returns the tracker as a table: one row per run, and for each metric its value, interval, chance and difference
    from the base run with its interval.
    """
    rows = [_record(group, run) for group in tracker.groups for run in group.runs]
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})


def _record(group: TrackedGroup, run: TrackedRun) -> dict[str, str | float | None]:
    record: dict[str, str | float | None] = {
        "run": run.name,
        "base": run.base,
        "recipe_digest": run.digest,
        "tested_on": group.window,
        "about": run.about,
        "comment": run.comment,
        "loss": run.loss,
        "sampling": "; ".join(run.sampling),
        "ratio_asked": run.ratio_asked,
        "ratio_reached": run.ratio_reached,
        "ratio_tested": run.ratio_tested,
    }
    record |= {f"{name}_window": days for name, days in run.windows.items()}
    for kind in ("added", "removed", "changed"):
        record[kind] = "\n".join(change_text(change) for change in run.changes if change.kind == kind)
    for metric, cell in run.metrics.items():
        minus = cell.minus or Estimate(None, None, None)
        record |= {metric: cell.value.value, f"{metric} low": cell.value.low, f"{metric} high": cell.value.high}
        record |= {f"{metric} chance": cell.chance, f"{metric} minus base": minus.value}
        record |= {f"{metric} minus base low": minus.low, f"{metric} minus base high": minus.high}
    record |= {f"probe {each.name}": each.value for each in run.variety}
    return record


def change_text(change: Change) -> str:
    """Returns a change in one line: the field, and the values that it has not in common."""
    values = {"added": change.new, "removed": change.old}.get(change.kind, f"{change.old} → {change.new}")
    return f"{change.field}: {values}"
