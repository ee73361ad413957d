"""The page of a run: one HTML file, and a short Markdown file for a tracker, with what was done and how good it is.

Everything is read from the files of the stages. A section that a run does not have is absent. The page is stored beside
the stages, not in one, and is written again whenever a stage, a base or a comment is added.
"""

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from twofold.evaluate.comparison_plots import difference_of, group_plots
from twofold.evaluate.days import order_sentence
from twofold.evaluate.results import FEW_USERS, MODEL, Report, load_report
from twofold.page.model_drawing import drawings_of
from twofold.page.tiles import RANDOM, Tile, main_metrics, metric_tiles, warnings_tile
from twofold.page.training_curves import Curve, training_curves
from twofold.recipe.diff import recipe_differences, recipe_digest
from twofold.recipe.load import dump_recipe, load_recipe
from twofold.recipe.schema import Recipe
from twofold.render.html import fill_page, setting
from twofold.render.numbers import in_title
from twofold.render.plots import DifferencePlot, difference_plot
from twofold.run_folder import atomic_file, find_stage
from twofold.tables import SPLITS, Json

PAGE: Final = "run.html"
COMMENT: Final = "comment.md"
BASE: Final = "base.yaml"
_TEMPLATES: Final = ("twofold.page", "twofold.evaluate", "twofold.explain")


@dataclass(frozen=True)
class Window:
    """One window of the data: its days in words, and the numbers that preparation kept in it."""

    name: str
    days: str
    rows: int
    users: int
    items: int
    positive_share: float


@dataclass(frozen=True)
class Change:
    """One field that differs from the base recipe: added, removed or changed, with the old and the new value."""

    field: str
    kind: str
    old: str
    new: str


@dataclass(frozen=True)
class RunPage:
    """Content of a page. `None` means that the run does not have it."""

    recipe: Recipe
    digest: str
    comment: str | None
    base: str | None
    changes: tuple[Change, ...]
    windows: tuple[Window, ...]
    funnel: tuple[Json, ...]
    curves: tuple[Curve, ...]
    report: Report | None
    gap: Json | None
    probes: tuple[Json, ...] | None
    map: Json | None
    picture: str | None
    """The map as a data URL."""
    notes: tuple[str, ...] = ()
    """Remarks on the arrays: how many ids have no row of their own."""


@dataclass(frozen=True)
class PageSection:
    """A section of the page: its anchor, its heading, its template, and whether a run has it."""

    anchor: str
    title: str
    template: str
    has_content: Callable[[RunPage], object]


SECTIONS: Final = (
    PageSection("changes", "Changes from the base recipe", "changes.html.j2", lambda page: page.base),
    PageSection("catalogue", "Full ranking", "catalogue.html.j2", lambda page: page.report),
    PageSection("peers", "How the peers were tuned", "peer_tuning.html.j2", lambda page: page.report),
    PageSection("allowed", "Allowed items", "allowed_items.html.j2", lambda page: page.report and page.report.filtered),
    PageSection("rules", "Rules after ranking", "rule_prices.html.j2", lambda page: page.report and page.report.rerank),
    PageSection(
        "candidates",
        "Sources of candidates",
        "candidate_recall.html.j2",
        lambda page: page.report and page.report.candidates,
    ),
    PageSection("new-items", "New items", "new_items.html.j2", lambda page: page.report and page.report.new_items),
    PageSection("days", "Days", "days.html.j2", lambda page: page.report and page.report.days),
    PageSection("slices", "Groups", "slices.html.j2", lambda page: page.report and page.report.slices),
    PageSection(
        "impressions",
        "Shown items",
        "impressions.html.j2",
        lambda page: page.report and page.report.impressions.users_judged,
    ),
    PageSection("heads", "Predicted outcomes", "calibration.html.j2", lambda page: page.report and page.report.heads),
    PageSection(
        "list-watch",
        "Watch time of lists",
        "list_watch_time.html.j2",
        lambda page: page.report and page.report.list_watch,
    ),
    PageSection("in-batch", "Training batches", "in_batch.html.j2", lambda page: page.report),
    PageSection("gap", "From training to serving", "gap.html.j2", lambda page: page.gap),
    PageSection("sampled", "Sampled ranking", "sampled.html.j2", lambda page: page.report and page.report.sampled),
    PageSection("watch-time", "Watch time", "watch_time.html.j2", lambda page: page.report and page.report.watch_time),
    PageSection("probes", "Warnings", "probes.html.j2", lambda page: page.probes),
    PageSection("map", "Map", "map_picture.html.j2", lambda page: page.map),
    PageSection("data", "Data", "data.html.j2", lambda page: page.windows),
    PageSection("model", "Model", "model.html.j2", lambda page: page.report and page.report.facts.model),
    PageSection("training", "Training", "training.html.j2", lambda page: page.curves),
    PageSection("run", "Run", "facts.html.j2", lambda page: page.report),
)
"""Sections in the order of the page. A new section is an entry here and a template."""


def write_run_page(run: Path, *, is_explained: bool = True) -> Path:
    """Writes run.html and run.md into a run folder, from the stages that are finished; returns the path of run.html.

    `is_explained` is false after an evaluation that the stage `explain` has not followed: its results in the folder, if
    there are any, are those of another model.
    """
    page = read_run_page(run, is_explained=is_explained)
    for name, text in ((PAGE, run_page(page)), ("run.md", _run_markdown(page))):
        with atomic_file(run / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return run / PAGE


def write_comment(run: Path, text: str) -> None:
    """Stores a comment on the run; an empty text removes it. The page shows it when it is written again."""
    if not text.strip():
        (run / COMMENT).unlink(missing_ok=True)
        return
    with atomic_file(run / COMMENT) as partial:
        partial.write_text(text.strip() + "\n", encoding="utf-8")


def keep_base(run: Path, base: Recipe | None) -> None:
    """Stores the base of a run's recipe and writes the page again; `None` means that the recipe has no base."""
    if base is None:
        (run / BASE).unlink(missing_ok=True)
    else:
        with atomic_file(run / BASE) as partial:
            partial.write_text(dump_recipe(base), encoding="utf-8")
    write_run_page(run)


def read_run_page(run: Path, *, is_explained: bool = True) -> RunPage:
    """Reads the content of a run's page from its folder."""
    recipe = load_recipe(run / "recipe.yaml")
    base = load_recipe(run / BASE) if (run / BASE).is_file() else None
    prepared, explained = _facts(run, "prepare"), _facts(run, "explain") if is_explained else {}
    picture, comment = run / "explain" / "map.png", run / COMMENT
    return RunPage(
        recipe=recipe,
        digest=recipe_digest(recipe),
        comment=comment.read_text(encoding="utf-8").strip() if comment.is_file() else None,
        base=base.name if base else None,
        changes=_changes(base, recipe) if base else (),
        windows=_windows(recipe, prepared),
        funnel=tuple(prepared["funnel"]) if prepared else (),
        curves=training_curves((run / "selection" if recipe.train.refit else run) / "train"),
        report=load_report(run / "evaluate" / "report.json") if find_stage(run, "evaluate") else None,
        gap=explained.get("gap"),
        probes=_warnings_first(explained.get("probes")),
        map=explained.get("map"),
        picture=_as_url(picture) if explained and picture.is_file() else None,
        notes=tuple(_facts(run, "dataset").get("notes", ())),
    )


def _warnings_first(probes: list[Json] | None) -> tuple[Json, ...] | None:
    return None if probes is None else tuple(sorted(probes, key=lambda probe: not probe["is_alarming"]))


def _facts(run: Path, stage: str) -> dict[str, Json]:
    finished = find_stage(run, stage)
    return dict(finished.facts) if finished else {}


def _changes(base: Recipe, recipe: Recipe) -> tuple[Change, ...]:
    """Returns the differences from the base, without the name, which is the page's title."""
    return tuple(
        Change(
            each.field,
            each.kind,
            "–" if each.kind == "added" else setting(base, each.field, each.old),
            "–" if each.kind == "removed" else setting(recipe, each.field, each.new),
        )
        for each in recipe_differences(base, recipe)
        if each.field != "name"
    )


def _windows(recipe: Recipe, prepared: Json) -> tuple[Window, ...]:
    """Returns the windows with their days in words."""
    windows = []
    for name, kept in prepared.get("splits", {}).items():
        days = recipe.prepare.dates(name) if name in SPLITS else "–"
        windows.append(Window(name, days, kept["rows"], kept["users"], kept["items"], kept["positive_share"]))
    return tuple(windows)


def score_text(recipe: Recipe) -> str:
    """Returns the score of the retriever in words."""
    config = recipe.retriever.model_dump(mode="json")
    score = config.get("score")
    if score is None:
        return f"inner product, {config['kind']}"
    settings = ", ".join(f"{name} {value}" for name, value in score.items() if name != "kind")
    return f"{score['kind'].replace('_', ' ')}{f', {settings}' if settings else ''}"


def _model_text(page: RunPage) -> str:
    """Returns what is evaluated and served, in words."""
    served = page.report.facts.served if page.report else None
    retriever = "iALS" if page.recipe.retriever.kind == "ials" else "two towers"
    text = f"{served}, the best on the validation window" if served else retriever
    return f"{text}; the ranker orders its candidates" if page.recipe.ranker else text


def _as_url(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def run_page(page: RunPage) -> str:
    """Returns the page as one HTML file: no script, no request, all text escaped."""
    report = page.report
    values = {
        "page": page,
        "report": report,
        "sections": [section for section in SECTIONS if section.has_content(page)],
        "test": next((window for window in page.windows if window.name == "test"), None),
        "model_text": _model_text(page),
        "tiles": _tiles(page),
        "plots": list(_plots(report)) if report else [],
        "metrics": main_metrics(report) if report else (),
        "groups": group_plots(report.slices.lines) if report and report.slices else [],
        "drawings": drawings_of(report.facts.model, retriever_score=score_text(page.recipe)) if report else (),
        "metric_title": in_title,
        "order_sentence": order_sentence,
        "MODEL": MODEL,
        "FEW_USERS": FEW_USERS,
    }
    return fill_page(_TEMPLATES, "run.html.j2", values)


def _run_markdown(page: RunPage) -> str:
    """Returns a summary of the page in Markdown, for an experiment tracker."""
    rows = [*page.report.catalogue.rows] if page.report else []
    shown = {row.name: row for row in page.report.impressions.rows} if page.report else {}
    metrics = main_metrics(page.report) if page.report else ()
    values = {"page": page, "tiles": _tiles(page), "rows": rows, "shown": shown, "metrics": metrics}
    return fill_page(_TEMPLATES, "run.md.j2", values)


def _tiles(page: RunPage) -> list[Tile]:
    if page.report is None:
        return []
    faults = page.gap["faults"] if page.gap else ()
    return [*metric_tiles(page.report), warnings_tile(page.probes, faults=faults)]


def _plots(report: Report) -> Iterator[tuple[str, DifferencePlot]]:
    """Yields (metric, plot of model − row) for the main metrics, without the random row."""
    for metric in main_metrics(report):
        gaps = [(row.name, row.model_minus[metric]) for row in report.catalogue.rows[1:] if row.name != RANDOM]
        known = [difference_of(name, gap) for name, gap in gaps if gap.low is not None]
        if (plot := difference_plot(known)) is not None:
            yield metric, plot
