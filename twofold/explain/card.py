"""A run folder → its card: one page of HTML and one of Markdown that say what was done and how good it is.

Everything is read from the files that the stages left; what a run does not have is said to be missing. The card lies
beside the stages, not in one: it is written anew whenever something is added, a comment too.
"""

import base64
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
from jinja2 import Environment, StrictUndefined

from twofold.bundle import atomic_file, find_stage
from twofold.explain.card_drawing import Curve, Drawing, curves_of, drawing_of
from twofold.recipe.load import Difference, dump_recipe, load_recipe, recipe_differences, recipe_digest
from twofold.recipe.preparation import TemporalSplit
from twofold.recipe.schema import Recipe

Json = Any
COMMENT: Final = "comment.md"
BASE: Final = "base.yaml"
_SPLITS: Final = ("train", "validation", "test")
_METRICS: Final = ("catalogue/ndcg@10", "impressions/auc")


@dataclass(frozen=True)
class Part:
    """One window of the data: its days, if the split has days, and what preparation left in it."""

    name: str
    days: str
    rows: int
    users: int
    items: int
    positive_share: float


@dataclass(frozen=True)
class Card:
    """What a card states. None: the run does not have it."""

    recipe: Recipe
    digest: str
    comment: str | None
    base: str | None
    differences: tuple[Difference, ...]
    parts: tuple[Part, ...]
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
    """Writes card.html and card.md into a run folder, from whatever its stages have left there."""
    card = read_card(run)
    for name in ("card.html", "card.md"):
        with atomic_file(run / name) as partial:
            partial.write_text(_render(name, card), encoding="utf-8")


def write_comment(run: Path, text: str) -> None:
    """Keeps a person's words on the run; an empty text takes them back. The card shows them once it is written anew."""
    if not text.strip():
        (run / COMMENT).unlink(missing_ok=True)
        return
    with atomic_file(run / COMMENT) as partial:
        partial.write_text(text.strip() + "\n", encoding="utf-8")


def keep_base(run: Path, base: Recipe | None) -> None:
    """Keeps what a run's recipe departs from, and writes its card anew."""
    if base is None:
        (run / BASE).unlink(missing_ok=True)
    else:
        with atomic_file(run / BASE) as partial:
            partial.write_text(dump_recipe(base), encoding="utf-8")
    write_card(run)


def read_card(run: Path) -> Card:
    """What the run folder has to say."""
    recipe = load_recipe(run / "recipe.yaml")
    base = load_recipe(run / BASE) if (run / BASE).is_file() else None
    prepared, explained = _facts(run, "prepare"), _facts(run, "explain")
    report = _report(run)
    picture, log = run / "explain" / "map.png", run / "train" / "training_log.parquet"
    comment = run / COMMENT
    return Card(
        recipe=recipe,
        digest=recipe_digest(recipe),
        comment=comment.read_text(encoding="utf-8").strip() if comment.is_file() else None,
        base=base.name if base else None,
        differences=tuple(recipe_differences(base, recipe)) if base else (),
        parts=_parts(recipe, prepared),
        funnel=tuple(prepared["funnel"]) if prepared else (),
        model=drawing_of(report["facts"].get("model", ()), _score(recipe)) if report else None,
        curves=curves_of(pq.read_table(log)) if log.is_file() else (),
        report=report,
        metrics=_metrics(report) if report else (),
        sampled=tuple(report["sampled"]) if report else (),
        gap=explained.get("gap"),
        probes=tuple(sorted(explained.get("probes", ()), key=lambda probe: not probe["is_alarming"])),
        map=explained.get("map"),
        picture=_as_url(picture) if picture.is_file() else None,
    )


def _facts(run: Path, stage: str) -> Json:
    found = find_stage(run, stage)
    return dict(found.facts) if found else {}


def _report(run: Path) -> Json | None:
    path = run / "evaluate" / "report.json"
    return json.loads(path.read_text(encoding="utf-8")) if find_stage(run, "evaluate") and path.is_file() else None


def _metrics(report: Json) -> tuple[str, ...]:
    """The headline, and two more where the run has them."""
    known = report["catalogue"]["rows"][0]["metrics"] | report["impressions"]["rows"][0]["metrics"]
    return (report["headline"], *(name for name in _METRICS if name in known and name != report["headline"]))


def _parts(recipe: Recipe, prepared: Json) -> tuple[Part, ...]:
    """The windows with their days; last events have none."""
    split = recipe.prepare.split
    parts = []
    for name, left in prepared.get("splits", {}).items():
        window = getattr(split, name) if isinstance(split, TemporalSplit) and name in _SPLITS else None
        days = f"{window.first} to {window.end}, its end excluded" if window else "–"
        parts.append(Part(name, days, left["rows"], left["users"], left["items"], left["positive_share"]))
    return tuple(parts)


def _score(recipe: Recipe) -> str:
    asked = recipe.retriever.model_dump(mode="json")
    score = asked.get("score")
    if score is None:
        return f"inner product, {asked['kind']}"
    settings = ", ".join(f"{name} {value}" for name, value in score.items() if name != "kind")
    return f"{score['kind'].replace('_', ' ')}{f', {settings}' if settings else ''}"


def _as_url(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


# --- words ------------------------------------------------------------------------------------------------------------


def _render(name: str, card: Card) -> str:
    environment = Environment(
        autoescape=name.endswith(".html"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"short": _short, "ratio": _ratio, "md": _markdown, "said": _said}
    environment.filters |= {"figure": _figure, "signed": _signed}
    source = (files("twofold.explain") / f"{name}.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(card=card, rows=_rows(card), alarms=_alarms(card))


def _alarms(card: Card) -> list[str]:
    return [probe["name"] for probe in card.probes if probe["is_alarming"]]


def _rows(card: Card) -> list[tuple[str, list[Json], Json]]:
    """(name, an estimate a metric, the model minus this row on the headline); the model first, chance last."""
    if card.report is None:
        return []
    impressions = {row["name"]: row for row in card.report["impressions"]["rows"]}
    rows: list[tuple[str, list[Json], Json]] = []
    for row in card.report["catalogue"]["rows"]:
        known = row["metrics"] | impressions.get(row["name"], {}).get("metrics", {})
        minus = row["model_minus"].get(card.report["headline"])
        rows.append((row["name"], [known.get(metric) for metric in card.metrics], minus))
    bounds = card.report["impressions"]["bounds"]
    if any(metric in bounds for metric in card.metrics):
        known = {name: {"value": each["chance"], "low": None, "high": None} for name, each in bounds.items()}
        rows.append(("chance", [known.get(metric) for metric in card.metrics], None))
    return rows


def _figure(value: float | None) -> str:
    """Three decimals, without a leading zero; a dash where there is no number."""
    if value is None:
        return "–"
    text = f"{abs(value):,.3f}".removeprefix("0") if abs(value) < 1000 else f"{abs(value):,.0f}"
    return f"−{text}" if value < 0 and float(text.replace(",", "")) else text


def _signed(value: float | None) -> str:
    """A difference, with its sign."""
    return f"+{_figure(value)}" if value is not None and value > 0 else _figure(value)


def _short(estimate: Json) -> str:
    """An interval in brackets, where there is one."""
    if not estimate or estimate["low"] is None:
        return ""
    return f"[{_figure(estimate['low'])}, {_figure(estimate['high'])}]"


def _ratio(positive_share: float) -> str:
    """Positives to negatives.

    >>> _ratio(0.25)
    '1 : 3.00'
    """
    return f"1 : {(1 - positive_share) / positive_share:,.2f}" if positive_share > 0 else "no positive"


def _said(value: Json) -> str:
    """A setting as the recipe's file would have it, on one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _markdown(value: Json) -> str:
    """Untrusted text as Markdown that shows it and means nothing by it."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_{}[]()#+!|~" else letter for letter in str(value))
    return " ".join(escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").split())
