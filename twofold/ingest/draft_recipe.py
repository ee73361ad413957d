"""What was seen of a log → a commented recipe that runs. Pure: the looking is done by `prepare/look.py`.

Every number the recipe rests on stands beside the line that rests on it, so that a reader can disagree.
"""

import os
import re
import textwrap
from pathlib import Path
from statistics import median
from typing import Final

from twofold.ingest.column_roles import Column, TableProfile, look_of, printable, shown_values
from twofold.ingest.seen import EPOCH, EventFacts, LogProfile, choose_split, events_within, names_of, our_name
from twofold.ingest.spellings import COUNTS, GROUPS, words
from twofold.recipe.prepare import LastEvents, Window
from twofold.recipe.retriever import Cosine, TwoTower
from twofold.recipe.train import Train
from twofold.render.numbers import plural

_WIDTH: Final = 118
_MOST_FEATURES: Final = 12


# --- the text ---------------------------------------------------------------------------------------------------------


def draft_recipe(seen: LogProfile, *, name: str, folder: Path | None) -> str:
    """A recipe as YAML. Paths are relative to the `folder` it will lie in, or absolute without one."""
    lines = [
        *_header(seen, name),
        *_data(seen, folder),
        "",
        *_prepare(seen),
        "",
        *_features(seen),
        "",
        *_model(),
    ]
    return "\n".join(lines) + "\n"


def recipe_name(log: Path) -> str:
    """The log's name as a recipe may be called."""
    return re.sub(r"[^a-z0-9_.=,-]+", "-", log.stem.lower()).strip("-_.=,")[:100] or "log"


def facts_of(seen: LogProfile) -> list[tuple[str, str]]:
    """What was counted, as a heading and a sentence each."""
    events, about = seen.events, "" if seen.events.compared >= seen.events.rows else "about "
    scale = events.rows / events.compared
    duplicates, repeats = round(events.duplicates * scale), round(events.repeats * scale)
    keyless = seen.log.rows - events.rows
    facts = [
        ("rows", f"{seen.log.rows:,}" + (f"; {keyless:,} lack user, item or time and are dropped" if keyless else "")),
        ("duplicates", f"{about}{duplicates:,} rows say exactly what another says; they are dropped"),
        ("repeats", f"{about}{repeats:,} rows are of a user and an item that met before"),
        (
            "users",
            f"{events.users:,}; half have {plural(events.median_events, 'event')} or fewer, 99.9 % at most "
            f"{events.busiest_events:,}",
        ),
        ("items", f"{events.items:,}; {events.lone_items:,} were met once"),
    ]
    if events.days:
        first, last = events.days[0], events.days[-1]
        daily = round(median(day.events for day in events.days))
        days = f"{first.date} to {last.date} (UTC), {plural(last.number - first.number + 1, 'day')}"
        facts.append(("days", f"{days}; {daily:,} rows on a usual one"))
    share = events.positives / events.rows
    return [*facts, ("positive", f"{share:.1%} of the rows: {printable(seen.roles.positive)}")]


def _header(seen: LogProfile, name: str) -> list[str]:
    said = [f"#   {heading:<11}{sentence}" for heading, sentence in facts_of(seen)]
    about = f"Drafted by `twofold recipe new` from {printable(seen.log.path.name)}."
    return [
        f"# {about} What it saw:",
        *said,
        "# The lines with a comment are those to think about; docs/recipe.md has all there is.",
        f"name: {name}",
        f"about: {scalar(about)}",
        "",
    ]


def _data(seen: LogProfile, folder: Path | None) -> list[str]:
    lines = ["data:", "  kind: table"]
    for table, field in ((seen.log, "events"), (seen.items, "items"), (seen.users, "users")):
        if table is not None:
            lines.append(f"  {field}: {scalar(_path(table.path, folder))}")
    if seen.data.columns:
        lines += _said("  columns:", "our name: the name in your files")
        lines += [f"    {ours}: {scalar(theirs)}" for ours, theirs in seen.data.columns.items()]
    if seen.roles.at_unit is not None:
        unit = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}[seen.roles.at_unit]
        reads = f"the time is a whole number of {unit}" if seen.roles.has_clock else "an order, not a time"
        lines += _said(f"  at_unit: {seen.data.at_unit}", reads)
    return lines


def _prepare(seen: LogProfile) -> list[str]:
    roles, events = seen.roles, seen.events
    lines = ["prepare:"]
    if roles.has_clock:
        lines += _said("  utc_offset_h: 0", "days begin at midnight UTC; in Beijing: 8, in New York: -5")
    if roles.derive:
        lines.append("  derive:")
        for ours, rule in roles.derive.items():
            lines += _said(f"    {ours}: {scalar(rule)}", "seconds; prepare.labels knows what to make of them")
    share = events.positives / events.rows
    lines += _said(f"  positive: {scalar(roles.positive)}", f"{roles.reason}; {share:.1%} of the rows")
    if any(part.startswith("watch time") for part in roles.taken_as.values()):
        lines += _said("  # weight: LEAST(SQRT(watch_s), 8)", "without the first #: long watches teach more")
    return [*lines, *_filters(events), *_split(events)]


def _filters(events: EventFacts) -> list[str]:
    # A filter that would take half of the items, or users most of whom have little, is no help.
    item_events = 2 if events.lone_items * 2 < events.items else 1
    user_events = 2 if events.median_events >= 4 else 1
    return [
        *_said("  filters:", "who teaches; everyone is judged"),
        *_said(
            f"    - {{kind: items, min_events: {item_events}}}",
            f"{events.lone_items:,} of {events.items:,} items were met once",
        ),
        *_said(
            f"    - {{kind: users, min_events: {user_events}, min_positives: 1, max_percentile: 99.9}}",
            f"half of the users have {plural(events.median_events, 'event')} or fewer, one in 1,000 more than "
            f"{events.busiest_events:,}",
        ),
    ]


def _split(events: EventFacts) -> list[str]:
    split, reason = choose_split(events)
    lines = _said("  split:", reason)
    if isinstance(split, LastEvents):
        lines.append(f"    kind: {split.kind}")
        lines += _said(f"    test: {split.test}", "each user's last event is judged: it looks into the future")
        return [*lines, f"    validation: {split.validation}"]
    lines += _said(f"    kind: {split.kind}", "the day of `end` is not in the window")
    for name in ("train", "validation", "test"):
        window: Window = getattr(split, name)
        first, end = ((day - EPOCH).days for day in (window.first, window.end))
        num = sum(day.events for day in events_within(events, first, end))
        lines += _said(f"    {name}: {{first: {window.first}, end: {window.end}}}", f"{num:,} events")
    return lines


def _features(seen: LogProfile) -> list[str]:
    events = seen.events
    lines = ["features:", *_said("  user:", "no id of users: it serves those it never saw, by what they did")]
    lines += _said("    - {kind: history, events: positives, max_length: 100}", "the mean of the last so many")
    if events.positives < events.rows:
        lines += _said("    - {kind: history, events: negatives, max_length: 100}", "what was met and is not positive")
    span = events.days[-1].number - events.days[0].number + 1 if events.days else 0
    if span >= 3 and events.hours > 1:
        lines.append("    - {kind: time, part: hour}")
    if span >= 14:
        lines.append("    - {kind: time, part: weekday}")
    lines += _columns_as_features(seen, seen.users, names={"positives", "negatives", "hour", "weekday"})
    lines += ["  item:", "    - {kind: id}"]
    if seen.items and "uploaded_at" in {our_name(seen.data, name) for name in names_of(seen.items)}:
        lines += _said("    - {kind: age}", "time since uploaded_at")
    lines += _columns_as_features(seen, seen.items, names={"id", "age"})
    if seen.items is None:
        lines += _said(
            "    ", "no item without events can be found by id alone; --items FILE adds what is known of items"
        )
    return lines


def _model() -> list[str]:
    tower, score, train = TwoTower(kind="two_tower"), Cosine(kind="cosine"), Train()
    return [
        "retriever:",
        f"  kind: {tower.kind}",
        *_said(f"  dim: {tower.dim}", "numbers in a vector: 128 where there are many events an item"),
        *_said(
            f"  score: {{kind: {score.kind}, temperature: {score.temperature:g}}}",
            "a smaller temperature is harder on what is nearly right",
        ),
        "train:",
        *_said(f"  epochs: {train.epochs}", "times through the positives; the best one is kept"),
        *_said(f"  batch_size: {train.batch_size}", "4096 trains a large log faster"),
        f"  learning_rate: {train.learning_rate:g}",
        f"  seed: {train.seed}",
        *_said("recommend_k: 50", "recommendations written for every user"),
    ]


# --- features of items and users --------------------------------------------------------------------------------------


def _columns_as_features(seen: LogProfile, table: TableProfile | None, *, names: set[str]) -> list[str]:
    """A line a usable column of a side table, and one for those left out and why. `names` are taken."""
    if table is None:
        return []
    lines: list[str] = []
    left_out: dict[str, list[str]] = {}
    for column in table.columns:
        name = our_name(seen.data, column.name)
        if name in ("item_id", "user_id", "uploaded_at"):
            continue
        kind, remark = _feature_kind(column, table.rows)
        if kind is None or name in names or len(lines) == _MOST_FEATURES:
            reason = remark if kind is None else "called as another feature" if name in names else "more of the same"
            left_out.setdefault(reason, []).append(printable(name))
            continue
        scale = ", scale: log" if (column.low or 0) >= 0 and (column.high or 0) >= 100 else ", scale: standard"
        rest = scale if kind == "number" else ""
        lines += _said(f"    - {{kind: {kind}, column: {scalar(name)}{rest}}}", remark)
    for reason, columns in left_out.items():
        more = f" and {len(columns) - 8} more" if len(columns) > 8 else ""
        lines += _said("    ", f"left out, {reason}: {', '.join(columns[:8])}{more}")
    return lines


def _feature_kind(column: Column, rows: int) -> tuple[str | None, str]:
    """bag, category, number, or None, and why."""
    about = f"about {plural(column.distinct, 'value')}"
    named = words(column.name)
    if column.kind == "list":
        is_vector = column.type.startswith(("FLOAT[", "DOUBLE["))
        return (
            (None, "lists of numbers; features.vectors reads those of items")
            if is_vector
            else ("bag", "a list of values")
        )
    if column.distinct < 2 or column.nulls > 0.9:
        return None, "nearly always the same or missing"
    if set(named) & COUNTS and column.kind in ("integer", "fraction"):
        return None, "they count what happened, the future too"
    if column.kind == "other" or look_of(column).startswith(("moment", "day")):
        return None, "times and nested values"
    is_number = column.kind in ("integer", "fraction")
    is_named = bool({re.sub(r"\d+$", "", word) for word in named} & GROUPS)
    if is_number and not (column.is_whole and (is_named or column.distinct <= 20)):
        return "number", shown_values(column)
    if column.distinct * 2 > max(rows, 40):
        return None, "nearly another value in each row"
    if column.lists >= 0.2:
        return "category", f"{about}; as a list column it could be kind: bag"
    return "category", f"{about}: {shown_values(column)}"


# --- YAML -------------------------------------------------------------------------------------------------------------


def scalar(text: str) -> str:
    """Text as a YAML scalar that reads back as the same text, wherever it stands."""
    is_plain = re.fullmatch(r"[A-Za-z_./][\w./ >=<+*-]*", text, re.ASCII) and text == text.strip()
    if is_plain and not re.fullmatch(r"(?i:true|false|null|yes|no|on|off|y|n)|\W+|\.(?i:inf|nan)", text):
        return text
    escaped = (f"\\{c}" if c in '"\\' else c if c.isprintable() else f"\\U{ord(c):08X}" for c in text)
    return f'"{"".join(escaped)}"'


def _said(line: str, remark: str) -> list[str]:
    """A line with its comment: beside it where it fits, else above."""
    beside = f"{line:<52}  # {remark}"
    if len(beside) <= _WIDTH and line.strip():
        return [beside]
    indent = line[: len(line) - len(line.lstrip())] + "# "
    above = textwrap.wrap(remark, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    return [*above, line] if line.strip() else above


def _path(path: Path, folder: Path | None) -> str:
    """Relative where both lie in one tree; absolute where nothing but the root is shared."""
    whole = os.path.abspath(path)
    if folder is None or os.path.commonpath([whole, os.path.abspath(folder)]) == os.path.sep:
        return whole
    return os.path.relpath(whole, folder)
