"""The features of a drafted recipe: histories, times, counters, and columns of the items and users."""

import re
from typing import Final

from twofold.ingest.column_names import COUNTS, GROUPS, TITLE, normalized_name
from twofold.ingest.draft_data import names_of, our_name
from twofold.ingest.draft_yaml import scalar, with_comment
from twofold.ingest.inspect_log import LogProfile
from twofold.ingest.table_profile import Column, TableProfile, look_of, printable, shown_values, words
from twofold.recipe.split import LastEvents, TemporalSplit
from twofold.render.numbers import plural

_MOST_FEATURES: Final = 12
_SHORTEST_VECTOR: Final = 8
_UNIQUE: Final = "almost unique per row"
_MOST_COMPONENTS: Final = 64  # of long vectors, by PCA


def draft_features(seen: LogProfile, split: TemporalSplit | LastEvents) -> list[str]:
    """Returns the lines of the section `features`."""
    events, vectors = seen.events, _vectors(seen.items)
    lines = ["features:"]
    if vectors:
        lines.append("  vectors:")
        for column in vectors:
            parts = f"{{pca: {_MOST_COMPONENTS}}}" if (column.length or 0) > _MOST_COMPONENTS else "{}"
            lines += with_comment(f"    {column.name}: {parts}", f"vectors of {column.length} numbers per item")
    lines += with_comment(
        "  user:", "there is no user-id embedding, so new users work too: a user is the mean of their history"
    )
    lines += with_comment("    - {kind: history, events: positives, max_length: 100}", "mean of the last 100")
    for column in vectors:
        lines.append(f"    - {{kind: history, events: positives, max_length: 100, vectors: {column.name}}}")
    if events.positives < events.rows and seen.roles.signals.negative != "FALSE":
        lines += with_comment("    - {kind: history, events: negatives, max_length: 100}", "seen and not positive")
    span = events.days[-1].number - events.days[0].number + 1 if events.days else 0
    if span >= 3 and events.hours > 1:
        lines.append("    - {kind: time, part: hour}")
    if span >= 14:
        lines.append("    - {kind: time, part: weekday}")
    lines += _columns_as_features(seen, seen.users, names={"positives", "negatives", "hour", "weekday"})
    lines += ["  item:", *with_comment("    - {kind: id, unknown_rate: 0.1}", "trains a vector for unknown items")]
    lines += _of_times(seen, split)
    lines += [f"    - {{kind: vector, vectors: {column.name}}}" for column in vectors]
    lines += _columns_as_features(seen, seen.items, names={"id", "age", *(column.name for column in vectors)})
    if seen.varying:
        names = ", ".join(map(printable, seen.varying[:8]))
        lines += with_comment(
            "    ", f"not used, some items have several values: {names}; --items FILE can name one each"
        )
    if seen.items is None:
        lines += with_comment(
            "    ", "items without events cannot be found by id alone; --items FILE adds item features"
        )
    return lines


def recent_hours(seen: LogProfile, split: TemporalSplit | LastEvents) -> tuple[int, int] | None:
    """Returns two spans over which the recent events of an item are counted; `None` if the log has no true times, or
    if the split is of kind last_n, which refuses item features that depend on the time.

    A day and three days, or a week and a month if the log covers more than half a year: there the popularity of items
    changes more slowly, and a day has few events.
    """
    days = seen.events.days
    if not seen.roles.has_clock or isinstance(split, LastEvents) or len(days) < 3:
        return None
    return (24, 72) if days[-1].number - days[0].number < 183 else (168, 720)


def _of_times(seen: LogProfile, split: TemporalSplit | LastEvents) -> list[str]:
    """Returns the item features that depend on the time, which need requests of one time."""
    lines: list[str] = []
    has_upload = seen.items and "uploaded_at" in {our_name(seen.data, name) for name in names_of(seen.items)}
    if has_upload and not isinstance(split, LastEvents):
        lines += with_comment("    - {kind: age}", "time since uploaded_at")
    hours = recent_hours(seen, split) or ()
    for each in hours:
        counter = f"    - {{kind: counter, key: item_id, statistic: events, hours: {each}}}"
        lines += with_comment(counter, f"popularity in the last {'day' if each == 24 else plural(each // 24, 'day')}")
    name, rule = counted_rate(seen)
    for each in hours[1:] if rule == seen.roles.signals.relevant or seen.events.positives < seen.events.rows else ():
        lines.append(f"    - {{kind: counter, key: item_id, statistic: {name}, hours: {each}}}")
    return lines


def counted_rate(seen: LogProfile) -> tuple[str, str]:
    """Returns the name and the rule of the rate that counters count: of relevant events, or of positive ones."""
    relevant = seen.roles.signals.relevant
    return ("positive_rate", seen.roles.signals.positive) if relevant is None else ("relevant_rate", relevant)


def _vectors(items: TableProfile | None) -> list[Column]:
    """Returns the list columns of the items that hold vectors of one length."""
    return [
        column
        for column in (items.columns if items else ())
        if column.type.startswith(("FLOAT[", "DOUBLE["))
        and (column.length or 0) >= _SHORTEST_VECTOR
        and re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", column.name)
    ]


def _columns_as_features(seen: LogProfile, table: TableProfile | None, *, names: set[str]) -> list[str]:
    """Returns one line per usable column of a side table, and the unused columns by reason. `names` are taken."""
    if table is None:
        return []
    lines: list[str] = []
    titled: list[str] = []
    left_out: dict[str, list[str]] = {}
    for column in table.columns:
        name = our_name(seen.data, column.name)
        if name in ("item_id", "user_id", "uploaded_at") or (table is seen.items and column in _vectors(table)):
            continue
        kind, remark = _feature_kind(column, table.rows, is_item=table is seen.items)
        if kind is None or name in names or len(lines) == _MOST_FEATURES:
            reason = (
                remark
                if kind is None
                else "same name as another feature"
                if name in names
                else f"more than {_MOST_FEATURES} columns"
            )
            left_out.setdefault(reason, []).append(printable(name))
            if reason == _UNIQUE and table is seen.items and normalized_name(column.name) in TITLE:
                titled.append(f'    # - {{kind: bag, column: {scalar(name)}, sep: " "}}')
            continue
        head, _, rest = kind.partition(",")
        lines += with_comment(f"    - {{kind: {head}, column: {scalar(name)}{',' + rest if rest else ''}}}", remark)
    for reason, columns in left_out.items():
        more = f" and {len(columns) - 8} more" if len(columns) > 8 else ""
        lines += with_comment("    ", f"not used, {reason}: {', '.join(columns[:8])}{more}")
    for line in titled:
        lines += with_comment(line, "remove the first # to add the words of the title")
    return lines


def _feature_kind(column: Column, rows: int, *, is_item: bool) -> tuple[str | None, str]:
    """Returns the feature kind with its settings, and a comment; `None` means no feature."""
    about = f"about {plural(column.distinct, 'value')}"
    named = words(column.name)
    if column.kind == "list":
        return _kind_of_list(column, is_item=is_item)
    if column.distinct < 2 or column.nulls > 0.9:
        return None, "almost always the same or missing"
    if set(named) & COUNTS and column.kind in ("integer", "fraction"):
        return None, "counts of events, which include the future"
    if column.kind == "other" or look_of(column).startswith(("timestamp", "day")):
        return None, "times or nested values"
    is_number = column.kind in ("integer", "fraction")
    is_named = bool({re.sub(r"\d+$", "", word) for word in named} & GROUPS)
    if is_number and not (column.is_whole and (is_named or column.distinct <= 20)):
        is_large = (column.low or 0) >= 0 and (column.high or 0) >= 100
        return f"number, scale: {'log' if is_large else 'standard'}", shown_values(column)
    if column.separator is not None and is_item:
        return f'bag, sep: "{column.separator}"', f"the values of a text: {shown_values(column)}"
    if column.distinct * 2 > max(rows, 40):
        return None, _UNIQUE
    return "category", f"{about}: {shown_values(column)}"


def _kind_of_list(column: Column, *, is_item: bool) -> tuple[str | None, str]:
    is_vector = column.type.startswith(("FLOAT[", "DOUBLE["))
    if not is_vector:
        return ("bag", "a list of values") if is_item else (None, "lists, which only items have")
    if is_item or not column.length or column.length < 2:
        return None, "lists of numbers that are no vectors of one length"
    return f"profile, length: {column.length}", "a vector of the user"
