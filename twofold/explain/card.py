"""The card of a run: one page, in HTML and in Markdown, with what was done and how good the result is.

Everything is read from the files of the stages; the card names what a run does not have. It is stored beside the
stages, not in one, and is written again whenever a stage or a comment is added.
"""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from twofold.explain.card_charts import Curve, Drawing, drawing_of, training_curves
from twofold.recipe.diff import recipe_differences, recipe_digest
from twofold.recipe.load import dump_recipe, load_recipe
from twofold.recipe.prepare import TemporalSplit
from twofold.recipe.schema import Recipe
from twofold.render.html import fill_page, setting
from twofold.run_folder import atomic_file, find_stage
from twofold.tables import Json

COMMENT: Final = "comment.md"
BASE: Final = "base.yaml"
_SPLITS: Final = ("train", "validation", "test")
_METRICS: Final = ("catalogue/ndcg@10", "impressions/auc")


@dataclass(frozen=True)
class Window:
    """One window of the data: its days, if the split has days, and the numbers that preparation kept in it."""

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
class Card:
    """Content of a card. `None` means that the run does not have it."""

    recipe: Recipe
    digest: str
    comment: str | None
    base: str | None
    changes: tuple[Change, ...]
    windows: tuple[Window, ...]
    funnel: tuple[Json, ...]
    model: Drawing | None
    curves: tuple[Curve, ...]
    report: Json | None
    metrics: tuple[str, ...]
    sampled: tuple[Json, ...]
    gap: Json | None
    probes: tuple[Json, ...]
    map: Json | None
    picture: str | None
    """The map as a data URL."""


def write_card(run: Path) -> None:
    """Writes card.html and card.md into a run folder, from the stages that are finished."""
    card = read_card(run)
    for name in ("card.html", "card.md"):
        with atomic_file(run / name) as partial:
            partial.write_text(_render(name, card), encoding="utf-8")


def write_comment(run: Path, text: str) -> None:
    """Stores a comment on the run; an empty text removes it. The card shows it when it is written again."""
    if not text.strip():
        (run / COMMENT).unlink(missing_ok=True)
        return
    with atomic_file(run / COMMENT) as partial:
        partial.write_text(text.strip() + "\n", encoding="utf-8")


def keep_base(run: Path, base: Recipe | None) -> None:
    """Stores the base of a run's recipe and writes the card again; `None` means that the recipe has no base."""
    if base is None:
        (run / BASE).unlink(missing_ok=True)
    else:
        with atomic_file(run / BASE) as partial:
            partial.write_text(dump_recipe(base), encoding="utf-8")
    write_card(run)


def read_card(run: Path) -> Card:
    """Reads the content of a run's card from its folder."""
    recipe = load_recipe(run / "recipe.yaml")
    base = load_recipe(run / BASE) if (run / BASE).is_file() else None
    prepared, explained = _facts(run, "prepare"), _facts(run, "explain")
    report = _report(run)
    picture = run / "explain" / "map.png"
    comment = run / COMMENT
    return Card(
        recipe=recipe,
        digest=recipe_digest(recipe),
        comment=comment.read_text(encoding="utf-8").strip() if comment.is_file() else None,
        base=base.name if base else None,
        changes=_changes(base, recipe) if base else (),
        windows=_windows(recipe, prepared),
        funnel=tuple(prepared["funnel"]) if prepared else (),
        model=drawing_of(report["facts"].get("model", ()), _score(recipe)) if report else None,
        curves=training_curves(run / "train"),
        report=report,
        metrics=_metrics(report) if report else (),
        sampled=tuple(report["sampled"]) if report else (),
        gap=explained.get("gap"),
        probes=tuple(sorted(explained.get("probes", ()), key=lambda probe: not probe["is_alarming"])),
        map=explained.get("map"),
        picture=_as_url(picture) if picture.is_file() else None,
    )


def _facts(run: Path, stage: str) -> Json:
    finished = find_stage(run, stage)
    return dict(finished.facts) if finished else {}


def _report(run: Path) -> Json | None:
    path = run / "evaluate" / "report.json"
    return json.loads(path.read_text(encoding="utf-8")) if find_stage(run, "evaluate") and path.is_file() else None


def _metrics(report: Json) -> tuple[str, ...]:
    """Returns the primary metric, and two more where the run has them."""
    known = report["catalogue"]["rows"][0]["metrics"] | report["impressions"]["rows"][0]["metrics"]
    return (
        report["primary_metric"],
        *(name for name in _METRICS if name in known and name != report["primary_metric"]),
    )


def _changes(base: Recipe, recipe: Recipe) -> tuple[Change, ...]:
    """Returns the differences from the base, without the name, which is the card's title."""
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
    """Returns the windows with their days; a split by last events has none."""
    split = recipe.prepare.split
    windows = []
    for name, kept in prepared.get("splits", {}).items():
        period = getattr(split, name) if isinstance(split, TemporalSplit) and name in _SPLITS else None
        days = f"{period.first} to {period.end}, end excluded" if period else "–"
        windows.append(Window(name, days, kept["rows"], kept["users"], kept["items"], kept["positive_share"]))
    return tuple(windows)


def _score(recipe: Recipe) -> str:
    config = recipe.retriever.model_dump(mode="json")
    score = config.get("score")
    if score is None:
        return f"inner product, {config['kind']}"
    settings = ", ".join(f"{name} {value}" for name, value in score.items() if name != "kind")
    return f"{score['kind'].replace('_', ' ')}{f', {settings}' if settings else ''}"


def _as_url(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _render(name: str, card: Card) -> str:
    warnings = [probe["name"] for probe in card.probes if probe["is_alarming"]]
    values = {"card": card, "rows": _rows(card), "warnings": warnings}
    return fill_page("twofold.explain", f"{name}.j2", values)


def _rows(card: Card) -> list[tuple[str, list[Json], Json]]:
    """Returns (name, one estimate per metric, model minus this row on the primary metric); model first, chance last."""
    if card.report is None:
        return []
    impressions = {row["name"]: row for row in card.report["impressions"]["rows"]}
    rows: list[tuple[str, list[Json], Json]] = []
    for row in card.report["catalogue"]["rows"]:
        known = row["metrics"] | impressions.get(row["name"], {}).get("metrics", {})
        minus = row["model_minus"].get(card.report["primary_metric"])
        rows.append((row["name"], [known.get(metric) for metric in card.metrics], minus))
    bounds = card.report["impressions"]["bounds"]
    if any(metric in bounds for metric in card.metrics):
        known = {name: {"value": each["chance"], "low": None, "high": None} for name, each in bounds.items()}
        rows.append(("chance", [known.get(metric) for metric in card.metrics], None))
    return rows
