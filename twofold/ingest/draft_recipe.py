"""Drafting of a commented recipe from the profile of a log.

Each line has the number that it is based on beside it, so that a reader can decide otherwise.
"""

import os
import re
from collections.abc import Mapping
from datetime import timedelta
from math import log2
from pathlib import Path

from twofold.cost_plan import epoch_seconds
from twofold.errors import RecipeError
from twofold.ingest.column_names import IMAGE, LINK, SUBTITLE, TITLE, normalized_name
from twofold.ingest.draft_data import our_name
from twofold.ingest.draft_features import counted_rate, draft_features, recent_hours
from twofold.ingest.draft_questions import recommends_again
from twofold.ingest.draft_split import choose_split, events_within, users_within
from twofold.ingest.draft_yaml import scalar, with_comment
from twofold.ingest.inspect_log import LogProfile, check_draft, log_facts, profile_log
from twofold.ingest.table_profile import EPOCH, EventFacts, printable
from twofold.prepare.frames import Frame, table_path
from twofold.progress import duration
from twofold.recipe.load import load_recipe
from twofold.recipe.retriever import Cosine, TwoTower
from twofold.recipe.schema import Recipe
from twofold.recipe.split import LastEvents, TemporalSplit, Window
from twofold.recipe.train import Train
from twofold.render.numbers import plural

# --- the text ---------------------------------------------------------------------------------------------------------


def draft_recipe(seen: LogProfile, *, name: str, folder: Path | None) -> str:
    """Returns a recipe as YAML. Paths are relative to the recipe's `folder`; `None` means absolute paths."""
    split, reason = choose_split(seen.events, seen.answers.test_days)
    lines = [
        *_header(seen, name),
        *_data(seen, folder),
        "",
        *_prepare(seen, split, reason),
        "",
        *draft_features(seen, split),
        *_index(seen),
        *_page(seen),
        "",
        *(line for written, remark in _model_lines(seen.events) for line in with_comment(written, remark)),
    ]
    return "\n".join(lines) + "\n"


def write_draft(tables: Mapping[str, Frame | None], out: Path, *, overwrite: bool) -> Recipe:
    """Drafts a recipe from tables by their options (`--log`), which may be in memory, writes it and returns it."""
    if out.exists() and not overwrite:
        raise RecipeError(f"{out} exists. Pass overwrite=True, or another file as out.")
    names = {"--log": "events", "--items": "items", "--users": "users"}
    folder = out.parent / out.stem
    paths = {each: None if t is None else table_path(t, names[each], folder) for each, t in tables.items()}
    log = paths["--log"]
    assert log is not None, "a log is a table"
    save_draft(profile_log(log, items=paths["--items"], users=paths["--users"]), out, name=recipe_name(out))
    return load_recipe(out)


def save_draft(seen: LogProfile, out: Path, *, name: str) -> None:
    """Writes the drafted recipe to a file, once it has been checked."""
    text = draft_recipe(seen, name=name, folder=out.parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    check_draft(text, out.parent)
    out.write_text(text, encoding="utf-8")


def recipe_name(log: Path) -> str:
    """Returns a recipe name made from the log's file name."""
    return re.sub(r"[^a-z0-9_.=,-]+", "-", log.stem.lower()).strip("-_.=,")[:100] or "log"


def _header(seen: LogProfile, name: str) -> list[str]:
    facts = [f"#   {heading:<11}{sentence}" for heading, sentence in log_facts(seen)]
    about = f"Drafted by `twofold recipe new` from {printable(seen.log.path.name)}."
    return [
        f"# {about} What it found:",
        *facts,
        "# Check the lines with a comment; docs/recipe.md describes every key.",
        f"name: {scalar(name)}",
        f"about: {scalar(about)}",
        "",
    ]


def _data(seen: LogProfile, folder: Path | None) -> list[str]:
    lines = ["data:", "  kind: table"]
    for table, field in ((seen.log, "events"), (seen.items, "items"), (seen.users, "users")):
        if table is not None and not table.is_of_log:
            lines.append(f"  {field}: {scalar(_path(table.path, folder))}")
    for field, names in (("item", seen.data.item_columns), ("user", seen.data.user_columns)):
        if names:
            written = f"  {field}_columns: [{', '.join(map(scalar, names))}]"
            lines += with_comment(written, f"columns of the events with one value per {field}")
    if seen.data.columns:
        lines += with_comment("  columns:", "our name: the name in your files")
        lines += [f"    {ours}: {scalar(theirs)}" for ours, theirs in seen.data.columns.items()]
    if seen.data.decimal_comma:
        lines += with_comment(f"  decimal_comma: [{', '.join(seen.data.decimal_comma)}]", "13,27 is a number there")
    if seen.roles.at_unit is not None:
        unit = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}[seen.roles.at_unit]
        reads = f"the time is a whole number of {unit}" if seen.roles.has_clock else "an order, not a time"
        lines += with_comment(f"  at_unit: {seen.data.at_unit}", reads)
    if seen.data.uploaded_at_unit is not None:
        lines += with_comment(f"  uploaded_at_unit: {seen.data.uploaded_at_unit}", "unit of the items' uploaded_at")
    return lines


def _prepare(seen: LogProfile, split: TemporalSplit | LastEvents, reason: str) -> list[str]:
    roles, events, signals = seen.roles, seen.events, seen.roles.signals
    lines = ["prepare:"]
    if roles.has_clock:
        example = seen.zone_reason or "write your users' zone, such as Asia/Kolkata or Europe/Berlin"
        lines += with_comment(f"  time_zone: {seen.time_zone}", f"days begin at its midnight; {example}")
    if signals.derive:
        lines.append("  derive:")
        for ours, rule in signals.derive.items():
            lines += with_comment(f"    {ours}: {scalar(rule)}", "seconds; prepare.labels can read them")
    share = events.positives / events.rows
    lines += with_comment(f"  positive: {scalar(signals.positive)}", f"{signals.reason}; {share:.1%} of the rows")
    if signals.relevant is not None:
        lines += with_comment(f"  relevant: {scalar(signals.relevant)}", "what the report asks for")
    if signals.negative is not None:
        lines += with_comment(f"  negative: {scalar(signals.negative)}", "no event is a dislike unless one is logged")
    if signals.weight is not None:
        lines += with_comment(f"  weight: {scalar(signals.weight)}", "change the weights as you see fit")
    elif any(part.startswith("watch time") for part in roles.taken_as.values()):
        lines += with_comment(
            "  # weight: LEAST(SQRT(watch_s), 8)", "remove the first # to give long watches more weight"
        )
    return [*lines, *_counters(seen, split), *_filters(events), *_split(events, split, reason)]


def _counters(seen: LogProfile, split: TemporalSplit | LastEvents) -> list[str]:
    if recent_hours(seen, split) is None:
        return []
    name, rule = counted_rate(seen)
    return [
        *with_comment("  counters:", "events of each item by the hour, for the features of kind counter"),
        f"    item_id: {{rates: {{{name}: {scalar(rule)}}}}}",
    ]


def _filters(events: EventFacts) -> list[str]:
    # A filter that would drop half of the items, or most users, does not help.
    item_events = 2 if events.lone_items * 2 < events.items else 1
    user_events = 2 if events.median_events >= 4 else 1
    return [
        *with_comment("  filters:", "drops rows from training only; evaluation keeps all users"),
        *with_comment(
            f"    - {{kind: items, min_events: {item_events}}}",
            f"{events.lone_items:,} of {events.items:,} items have one event",
        ),
        *with_comment(
            f"    - {{kind: users, min_events: {user_events}, max_percentile: 99.9}}",
            f"half of the users have {plural(events.median_events, 'event')} or fewer, one in 1,000 more than "
            f"{events.busiest_events:,}",
        ),
    ]


def _split(events: EventFacts, split: TemporalSplit | LastEvents, reason: str) -> list[str]:
    lines = with_comment("  split:", reason)
    if isinstance(split, LastEvents):
        lines.append(f"    kind: {split.kind}")
        lines += with_comment(
            f"    test: {split.test}",
            "each user's last event; this leaks the future: other users' later events are trained on",
        )
        return [*lines, f"    validation: {split.validation}"]
    lines += with_comment("    kind: last_days", "counted back from the log's end, also when it has grown")
    for name in ("test", "validation"):
        window: Window = getattr(split, name)
        first, end = ((day - EPOCH).days for day in (window.first, window.end))
        num = sum(day.events for day in events_within(events, first, end))
        users = users_within(events, first, end) if name == "test" else None
        judged = "" if users is None else f", about {plural(users, 'user')} to evaluate"
        days = f"{window.first} to {window.end - timedelta(days=1)}" if end - first > 1 else f"{window.first}"
        lines += with_comment(f"    {name}: {end - first}", f"days: {days}; {num:,} events{judged}")
    if split.test.end <= events.days[-1].date:
        lines += with_comment("    skip: 1", "the last day is incomplete; 0 if yours ends at midnight")
    return lines


def _index(seen: LogProfile) -> list[str]:
    if not recommends_again(seen):
        return []
    share = f"{seen.events.met_before:.0%} of what is asked for had been seen on an earlier day"
    return ["", "index:", *with_comment("  include_seen: true", f"items that were seen are recommended again: {share}")]


def _page(seen: LogProfile) -> list[str]:
    """Returns the columns of the items that the live page shows, by their usual names."""
    columns = [column for column in (seen.items.columns if seen.items else ()) if column.kind in ("text", "list")]
    lines = []
    for field, usual in (("title", TITLE), ("subtitle", SUBTITLE), ("image", IMAGE), ("link", LINK)):
        found = next((each.name for each in columns if normalized_name(each.name) in usual), None)
        if found is not None:
            lines.append(f"  {field}: {scalar(our_name(seen.data, found))}")
    return ["", *with_comment("page:", "columns that the page of twofold serve shows"), *lines] if lines else []


def _model_lines(events: EventFacts) -> list[tuple[str, str]]:
    """Returns the lines of the sections `retriever` and `train`, each with its reason; an empty text means none."""
    tower, score, train = TwoTower(kind="best"), Cosine(kind="cosine"), Train()
    tables = 2 * tower.dim * events.items  # of ids, and of the history
    epochs, pass_time = _epochs(events.positives), duration(epoch_seconds(float(events.positives), float(tables)))
    patience = min(3, epochs - 1)
    return [
        ("retriever:", ""),
        (
            f"  kind: {tower.kind}",
            "the towers, iALS, EASE or item-kNN, or a weighted sum of them: what is best on validation",
        ),
        ("  # ensemble: 2", "remove the first # to add the scores of two pairs of towers: better, twice the time"),
        (f"  dim: {tower.dim}", "vector dimension; 128 if there are many events per item"),
        (
            f"  score: {{kind: {score.kind}, temperature: {score.temperature:g}}}",
            "a lower temperature puts more weight on hard negatives",
        ),
        ("train:", ""),
        (
            f"  epochs: {epochs}",
            f"at most so many passes over the positives, about {pass_time} each",
        ),
        (
            f"  patience: {patience}",
            f"training stops after {plural(patience, 'epoch')} without a better one, the best is kept",
        ),
        (f"  batch_size: {_batch_size(events.positives)}", "small logs need small batches, and more steps"),
        (f"  learning_rate: {train.learning_rate:g}", ""),
        ("  refit: true", "a second fit, for what is served, learns from the validation window too"),
        (f"  seed: {train.seed}", ""),
        ("recommend_k: 50", "number of recommendations written per user"),
    ]


def _batch_size(positives: int) -> int:
    """Returns the power of two nearest to a 500th of the positives; the shipped log was better with 512 than 1,024.

    >>> [_batch_size(positives) for positives in (1_000, 280_000, 10**9)]
    [128, 512, 4096]
    """
    return int(min(max(2 ** round(log2(max(positives, 1) / 500)), 128), 4096))


def _epochs(positives: int) -> int:
    """Returns 30, or as many passes as show 60 million examples, an hour on one core; at least 2.

    >>> [_epochs(positives) for positives in (1_000, 3_000_000, 10**9)]
    [30, 20, 2]
    """
    return int(min(max(60_000_000 // max(positives, 1), 2), 30))


def _path(path: Path, folder: Path | None) -> str:
    """Returns a path relative to the folder, or absolute if they share only the root."""
    whole = os.path.abspath(path)
    if folder is None or os.path.commonpath([whole, os.path.abspath(folder)]) == os.path.sep:
        return whole
    return os.path.relpath(whole, folder)
