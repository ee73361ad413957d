"""Drafting of a commented recipe from the profile of a log.

Each line has the number that it is based on beside it, so that a reader can decide otherwise.
"""

import os
import re
import textwrap
from pathlib import Path
from statistics import median
from typing import Final

from twofold.ingest.column_roles import COUNTS, GROUPS
from twofold.ingest.draft_model import model_lines
from twofold.ingest.draft_split import choose_split, events_within
from twofold.ingest.inspect_log import LogProfile, names_of, our_name
from twofold.ingest.log_profile import (
    EPOCH,
    Column,
    EventFacts,
    TableProfile,
    look_of,
    printable,
    shown_values,
    words,
)
from twofold.recipe.prepare import LastEvents, Window
from twofold.recipe.yaml_files import is_text
from twofold.render.numbers import plural

_WIDTH: Final = 118
_MOST_FEATURES: Final = 12


# --- the text ---------------------------------------------------------------------------------------------------------


def draft_recipe(seen: LogProfile, *, name: str, folder: Path | None) -> str:
    """Returns a recipe as YAML. Paths are relative to the recipe's `folder`; `None` means absolute paths."""
    lines = [
        *_header(seen, name),
        *_data(seen, folder),
        "",
        *_prepare(seen),
        "",
        *_features(seen),
        "",
        *(line for written, remark in model_lines(seen.events) for line in _with_comment(written, remark)),
    ]
    return "\n".join(lines) + "\n"


def recipe_name(log: Path) -> str:
    """Returns a recipe name made from the log's file name."""
    return re.sub(r"[^a-z0-9_.=,-]+", "-", log.stem.lower()).strip("-_.=,")[:100] or "log"


def facts_of(seen: LogProfile) -> list[tuple[str, str]]:
    """Returns the counts, each as a heading and a sentence."""
    events, about = seen.events, "" if seen.events.compared >= seen.events.rows else "about "
    scale = events.rows / events.compared
    duplicates, repeats = round(events.duplicates * scale), round(events.repeats * scale)
    keyless = seen.log.rows - events.rows
    facts = [
        ("rows", f"{seen.log.rows:,}" + (f"; {keyless:,} lack user, item or time and are dropped" if keyless else "")),
        ("duplicates", f"{about}{duplicates:,} rows equal another row; they are dropped"),
        ("repeats", f"{about}{repeats:,} rows repeat the user and item of an earlier row"),
        (
            "users",
            f"{events.users:,}; half have {plural(events.median_events, 'event')} or fewer, 99.9 % at most "
            f"{events.busiest_events:,}",
        ),
        ("items", f"{events.items:,}; {events.lone_items:,} have one event"),
    ]
    if events.days:
        first, last = events.days[0], events.days[-1]
        daily = round(median(day.events for day in events.days))
        days = f"{first.date} to {last.date} ({seen.time_zone}), {plural(last.number - first.number + 1, 'day')}"
        facts.append(("days", f"{days}; {daily:,} rows on a median day"))
    share = events.positives / events.rows
    return [*facts, ("positive", f"{share:.1%} of the rows: {printable(seen.roles.positive)}")]


def _header(seen: LogProfile, name: str) -> list[str]:
    facts = [f"#   {heading:<11}{sentence}" for heading, sentence in facts_of(seen)]
    about = f"Drafted by `twofold recipe new` from {printable(seen.log.path.name)}."
    return [
        f"# {about} What it found:",
        *facts,
        "# Check the lines with a comment; docs/recipe.md describes every key.",
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
        lines += _with_comment("  columns:", "our name: the name in your files")
        lines += [f"    {ours}: {scalar(theirs)}" for ours, theirs in seen.data.columns.items()]
    if seen.roles.at_unit is not None:
        unit = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}[seen.roles.at_unit]
        reads = f"the time is a whole number of {unit}" if seen.roles.has_clock else "an order, not a time"
        lines += _with_comment(f"  at_unit: {seen.data.at_unit}", reads)
    if seen.data.uploaded_at_unit is not None:
        lines += _with_comment(f"  uploaded_at_unit: {seen.data.uploaded_at_unit}", "unit of the items' uploaded_at")
    return lines


def _prepare(seen: LogProfile) -> list[str]:
    roles, events = seen.roles, seen.events
    lines = ["prepare:"]
    if roles.has_clock:
        example = "" if seen.time_zone != "UTC" else "; write your users' zone, such as Asia/Kolkata or Europe/Berlin"
        lines += _with_comment(f"  time_zone: {seen.time_zone}", f"days begin at its midnight{example}")
    if roles.derive:
        lines.append("  derive:")
        for ours, rule in roles.derive.items():
            lines += _with_comment(f"    {ours}: {scalar(rule)}", "seconds; prepare.labels can read them")
    share = events.positives / events.rows
    lines += _with_comment(f"  positive: {scalar(roles.positive)}", f"{roles.reason}; {share:.1%} of the rows")
    if any(part.startswith("watch time") for part in roles.taken_as.values()):
        lines += _with_comment(
            "  # weight: LEAST(SQRT(watch_s), 8)", "remove the first # to give long watches more weight"
        )
    return [*lines, *_counters(seen), *_filters(events), *_split(events)]


def _counters(seen: LogProfile) -> list[str]:
    if _recent_hours(seen) is None:
        return []
    return [
        *_with_comment("  counters:", "events of each item by the hour, for the features of kind counter"),
        f"    item_id: {{rates: {{positive_rate: {scalar(seen.roles.positive)}}}}}",
    ]


def _recent_hours(seen: LogProfile) -> tuple[int, int] | None:
    """Returns two spans over which the recent events of an item are counted; `None` if the log has no true times, or
    if the split is of kind last_n, which refuses item features that depend on the time.

    A day and three days, or a week and a month if the log covers more than half a year: there the popularity of items
    changes more slowly, and a day has few events.
    """
    days = seen.events.days
    is_by_days = not isinstance(choose_split(seen.events)[0], LastEvents)
    if not seen.roles.has_clock or not is_by_days or len(days) < 3:
        return None
    return (24, 72) if days[-1].number - days[0].number < 183 else (168, 720)


def _filters(events: EventFacts) -> list[str]:
    # A filter that would drop half of the items, or most users, does not help.
    item_events = 2 if events.lone_items * 2 < events.items else 1
    user_events = 2 if events.median_events >= 4 else 1
    return [
        *_with_comment("  filters:", "drops rows from training only; evaluation keeps all users"),
        *_with_comment(
            f"    - {{kind: items, min_events: {item_events}}}",
            f"{events.lone_items:,} of {events.items:,} items have one event",
        ),
        *_with_comment(
            f"    - {{kind: users, min_events: {user_events}, min_positives: 1, max_percentile: 99.9}}",
            f"half of the users have {plural(events.median_events, 'event')} or fewer, one in 1,000 more than "
            f"{events.busiest_events:,}",
        ),
    ]


def _split(events: EventFacts) -> list[str]:
    split, reason = choose_split(events)
    lines = _with_comment("  split:", reason)
    if isinstance(split, LastEvents):
        lines.append(f"    kind: {split.kind}")
        lines += _with_comment(
            f"    test: {split.test}",
            "each user's last event; this leaks the future: other users' later events are trained on",
        )
        return [*lines, f"    validation: {split.validation}"]
    lines += _with_comment(f"    kind: {split.kind}", "the day of `end` is not in the window")
    for name in ("train", "validation", "test"):
        window: Window = getattr(split, name)
        first, end = ((day - EPOCH).days for day in (window.first, window.end))
        num = sum(day.events for day in events_within(events, first, end))
        lines += _with_comment(f"    {name}: {{first: {window.first}, end: {window.end}}}", f"{num:,} events")
    return lines


def _features(seen: LogProfile) -> list[str]:
    events = seen.events
    lines = [
        "features:",
        *_with_comment(
            "  user:", "there is no user-id embedding, so new users work too: a user is the mean of their history"
        ),
    ]
    lines += _with_comment("    - {kind: history, events: positives, max_length: 100}", "mean of the last 100")
    if events.positives < events.rows:
        lines += _with_comment("    - {kind: history, events: negatives, max_length: 100}", "seen and not positive")
    span = events.days[-1].number - events.days[0].number + 1 if events.days else 0
    if span >= 3 and events.hours > 1:
        lines.append("    - {kind: time, part: hour}")
    if span >= 14:
        lines.append("    - {kind: time, part: weekday}")
    lines += _columns_as_features(seen, seen.users, names={"positives", "negatives", "hour", "weekday"})
    lines += ["  item:", *_with_comment("    - {kind: id, unknown_rate: 0.1}", "trains a vector for unknown items")]
    recent_hours = _recent_hours(seen) or ()
    is_by_days = not isinstance(choose_split(events)[0], LastEvents)  # item ages need requests of one time
    if is_by_days and seen.items and "uploaded_at" in {our_name(seen.data, name) for name in names_of(seen.items)}:
        lines += _with_comment("    - {kind: age}", "time since uploaded_at")
    for hours in recent_hours:
        counter = f"    - {{kind: counter, key: item_id, statistic: events, hours: {hours}}}"
        lines += _with_comment(counter, f"popularity in the last {plural(hours // 24, 'day')}")
    for hours in recent_hours[1:] if events.positives < events.rows else ():
        lines.append(f"    - {{kind: counter, key: item_id, statistic: positive_rate, hours: {hours}}}")
    lines += _columns_as_features(seen, seen.items, names={"id", "age"})
    if seen.items is None:
        lines += _with_comment(
            "    ", "items without events cannot be found by id alone; --items FILE adds item features"
        )
    return lines


# --- features of items and users --------------------------------------------------------------------------------------


def _columns_as_features(seen: LogProfile, table: TableProfile | None, *, names: set[str]) -> list[str]:
    """Returns one line per usable column of a side table, and the unused columns by reason. `names` are taken."""
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
            reason = (
                remark
                if kind is None
                else "same name as another feature"
                if name in names
                else f"more than {_MOST_FEATURES} columns"
            )
            left_out.setdefault(reason, []).append(printable(name))
            continue
        scale = ", scale: log" if (column.low or 0) >= 0 and (column.high or 0) >= 100 else ", scale: standard"
        rest = scale if kind == "number" else ""
        lines += _with_comment(f"    - {{kind: {kind}, column: {scalar(name)}{rest}}}", remark)
    for reason, columns in left_out.items():
        more = f" and {len(columns) - 8} more" if len(columns) > 8 else ""
        lines += _with_comment("    ", f"not used, {reason}: {', '.join(columns[:8])}{more}")
    return lines


def _feature_kind(column: Column, rows: int) -> tuple[str | None, str]:
    """Returns the feature kind and a comment; `None` means no feature."""
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
        return None, "almost always the same or missing"
    if set(named) & COUNTS and column.kind in ("integer", "fraction"):
        return None, "counts of events, which include the future"
    if column.kind == "other" or look_of(column).startswith(("timestamp", "day")):
        return None, "times or nested values"
    is_number = column.kind in ("integer", "fraction")
    is_named = bool({re.sub(r"\d+$", "", word) for word in named} & GROUPS)
    if is_number and not (column.is_whole and (is_named or column.distinct <= 20)):
        return "number", shown_values(column)
    if column.distinct * 2 > max(rows, 40):
        return None, "almost unique per row"
    if column.lists >= 0.2:
        return "category", f"{about}; as a list column it could be kind: bag"
    return "category", f"{about}: {shown_values(column)}"


# --- YAML -------------------------------------------------------------------------------------------------------------


def scalar(text: str) -> str:
    """Returns a text as a YAML scalar that parses to the same text."""
    is_plain = re.fullmatch(r"[A-Za-z_./][\w./ >=<+*-]*", text, re.ASCII) and text == text.strip() and is_text(text)
    if is_plain and not re.fullmatch(r"(?i:true|false|null|yes|no|on|off|y|n)|\W+|\.(?i:inf|nan)", text):
        return text
    escaped = (f"\\{c}" if c in '"\\' else c if c.isprintable() else f"\\U{ord(c):08X}" for c in text)
    return f'"{"".join(escaped)}"'


def _with_comment(line: str, remark: str) -> list[str]:
    """Returns a line with its comment: beside it if it fits, else above."""
    if not remark:
        return [line]
    beside = f"{line:<52}  # {remark}"
    if len(beside) <= _WIDTH and line.strip():
        return [beside]
    indent = line[: len(line) - len(line.lstrip())] + "# "
    above = textwrap.wrap(remark, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    return [*above, line] if line.strip() else above


def _path(path: Path, folder: Path | None) -> str:
    """Returns a path relative to the folder, or absolute if they share only the root."""
    whole = os.path.abspath(path)
    if folder is None or os.path.commonpath([whole, os.path.abspath(folder)]) == os.path.sep:
        return whole
    return os.path.relpath(whole, folder)
