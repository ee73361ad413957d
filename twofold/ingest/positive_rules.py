"""Rules of a drafted recipe about an event: what is positive, negative and relevant, its weight, seconds watched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from twofold.ingest.column_names import (
    LIKED,
    QUANTITY,
    RATING,
    SEEN,
    SHARE,
    TO_SECONDS,
    WATCH,
    is_length,
    is_watch_time,
    normalized_name,
)
from twofold.ingest.event_kinds import EventKinds, find_kinds
from twofold.ingest.table_profile import Column, is_flag, rule_name, words
from twofold.tables import LONG_VIEW_MS

_LONG_S: Final = LONG_VIEW_MS // 1000
SHORT_S: Final = 120
"""Median length up to which items are short videos: 18 s of a song of 210 s say little."""
_MOST_POSITIVE: Final = 0.6  # of the ratings
_FEWEST_POSITIVE: Final = 0.1
_ENOUGH: Final = 0.8  # share of the length that must be watched, for items longer than SHORT_S
_SCALES: Final = {"": ("s", 1.0), " / 1000": ("ms", 1e-3), " / 1000000": ("us", 1e-6), " * 60": ("min", 60.0)}
"""SQL that converts to seconds → name of the unit, and its length in seconds."""


@dataclass(frozen=True)
class Signals:
    """The rules about events, and where they come from."""

    derive: Mapping[str, str]
    positive: str
    reason: str
    """Reason for the rule `positive`, as a comment in the recipe."""
    kinds: EventKinds | None = None
    """Kinds of event; `None` means that the log has no column of them."""
    relevant: str | None = None
    """Rule of the events that the report asks for; `None` means the positive ones."""
    rating: str | None = None
    """Column of ratings, as a rule writes it, if the rule is a threshold on it alone."""
    typical_length_s: float | None = None
    """Median length of an item in seconds."""

    @property
    def negative(self) -> str | None:
        """Rule of negative events; `None` means all that are not positive."""
        return self.kinds.negative if self.kinds else None

    @property
    def weight(self) -> str | None:
        """Weight of an event in training; `None` means 1."""
        return self.kinds.weight if self.kinds else None


@dataclass(frozen=True)
class _Watched:
    """Rules of watch time and length in seconds, the roles of the columns that they read, and their medians."""

    seconds: Mapping[str, str]
    taken_as: Mapping[str, str]
    medians: Mapping[str, float]


def find_signals(
    columns: Sequence[Column], item_columns: Sequence[Column], weights: Mapping[str, float]
) -> tuple[Signals, dict[str, str]]:
    """Returns the rules that follow from the other columns of a log, and the roles of the columns that they read.

    `item_columns` are those of the items, which may hold the lengths; `weights` are the user's, by kind of event.
    """
    watched = _find_watched(columns, item_columns)
    derive = {ours: rule for ours, rule in watched.seconds.items() if ours != rule}
    length = watched.medians.get("length_s")
    found = find_kinds(columns, weights)
    if found is not None:
        column, kinds = found
        reason = "every kind of event that shows interest trains, by its weight"
        signals = Signals(derive, kinds.positive, reason, kinds=kinds, typical_length_s=length)
        return signals, {**watched.taken_as, column.name: "kind of event"}
    positive, reason, liked = _positive(columns, watched)
    ratings = [rule_name(column.name) for column in columns if liked.get(column.name) == "rating"]
    rating = ratings[0] if len(liked) == 1 and ratings and not watched.seconds else None
    signals = Signals(derive, positive, reason, rating=rating, typical_length_s=length)
    return signals, {**watched.taken_as, **liked}


def with_threshold(signals: Signals, counts: Sequence[tuple[float, int]]) -> Signals:
    """Returns the rules with a threshold that fits the distribution of the ratings.

    It is the lowest value from four fifths of the highest on that at most 60 % of the ratings reach: in one log 4 of 5
    stars are half of all ratings, in another four fifths. Where less than 10 % reach it, lower values are taken, down
    to three fifths of the highest. `counts` are the values and how often each occurs.
    """
    total = sum(count for _, count in counts)
    values = sorted(value for value, _ in counts)
    share_from = {value: sum(count for other, count in counts if other >= value) / total for value in values}
    high = [value for value in values if value >= 0.8 * values[-1]]
    threshold = next((value for value in high if share_from[value] <= _MOST_POSITIVE), values[-1])
    lower = [value for value in values if 0.6 * values[-1] <= value < threshold]
    while lower and share_from[threshold] < _FEWEST_POSITIVE:
        threshold = lower.pop()
    reason = f"{share_from[threshold]:.0%} of the ratings are {threshold:g} or more"
    return replace(signals, positive=f"{signals.rating} >= {threshold:g}", reason=reason)


def _find_watched(columns: Sequence[Column], item_columns: Sequence[Column]) -> _Watched:
    lengths = [column for column in (*columns, *item_columns) if is_length(column.name)]
    watches = [column for column in columns if is_watch_time(column.name)]
    watches.sort(key=lambda column: normalized_name(column.name) not in WATCH)  # watch_ms before play_ms
    of_items = {column.name for column in item_columns if is_length(column.name)}
    if not watches and of_items:
        # A duration in the log is the time played where the items have a length, unless both have it under one name.
        watches = [column for column in columns if is_length(column.name) and column.name not in of_items]
        lengths = [column for column in item_columns if column.name in of_items]
    own = {name: [c for c in columns if c.name.lower() == name] for name in ("watch_s", "length_s")}
    watch = _as_seconds("watch_s", [*own["watch_s"], *watches])
    if watch is None:
        return _Watched({}, {}, {})
    length = _as_seconds("length_s", [*own["length_s"], *(c for c in lengths if c.name != watch[0].name)])
    found = {"watch_s": watch, **({"length_s": length} if length else {})}
    called = {"watch_s": "watch time", "length_s": "length"}
    return _Watched(
        {ours: f"{written}{scale}" for ours, (_, written, scale) in found.items()},
        {column.name: f"{called[ours]} ({_SCALES[scale][0]})" for ours, (column, _, scale) in found.items()},
        {ours: column.median * _SCALES[scale][1] for ours, (column, _, scale) in found.items() if column.median},
    )


def _as_seconds(ours: str, columns: Sequence[Column]) -> tuple[Column, str, str] | None:
    """Returns the first column that holds times, its name in a rule, and the SQL that converts it to seconds."""
    for column in columns:
        written = ours if column.name.lower() == ours else rule_name(column.name)
        is_number = column.kind in ("integer", "fraction") and column.high is not None and column.high > 1
        if written and is_number:
            named = [TO_SECONDS[word] for word in words(column.name) if word in TO_SECONDS]
            # Nobody watches for five and a half hours: larger numbers are milliseconds, but for some broken ones.
            return column, written, named[-1] if named else " / 1000" if (column.high_99 or 0) > 20_000 else ""
    return None


def _positive(columns: Sequence[Column], watched: _Watched) -> tuple[str, str, dict[str, str]]:
    """Returns the rule of positive events, its reason, and the roles of the columns that it reads."""
    usable = [(column, written) for column in columns if (written := rule_name(column.name)) is not None]
    rules: list[tuple[str, str]] = []
    taken_as: dict[str, str] = {}
    for column, written in usable:
        name, high = normalized_name(column.name), column.high or 0
        if is_flag(column) and name in LIKED | RATING:  # a rating of true or false is a thumb up or down
            rules.append((written, ""))
            taken_as[column.name] = "positive flag"
        elif name in RATING and column.kind in ("integer", "fraction") and high > 1:
            rules.append((f"{written} >= {0.8 * high:g}", f"at least four fifths of the highest rating, {high:g}"))
            taken_as[column.name] = "rating"
    has_long_view = any(normalized_name(column.name) == "longview" for column in columns)
    rules += [] if has_long_view else _watched_enough(watched)
    if not rules:
        rules, taken_as = _weaker(usable)
    if not rules:
        return "TRUE", "no column tells liked items from seen ones, so every event is positive", {}
    reasons = dict.fromkeys(reason for _, reason in rules if reason)
    return (
        " OR ".join(rule for rule, _ in rules),
        "; ".join(reasons) or "what users do with items that they like",
        taken_as,
    )


def _watched_enough(watched: _Watched) -> list[tuple[str, str]]:
    """Returns the rule of an item that was watched long enough: a long view of short videos, else four fifths."""
    if not watched.seconds:
        return []
    watch, length = watched.medians.get("watch_s", 0.0), watched.medians.get("length_s", 0.0)
    if "length_s" not in watched.seconds:
        if watch <= SHORT_S / 2:
            return [(f"watch_s >= {_LONG_S}", f"watched for {_LONG_S} s: lengths are not known")]
        reason = "the longer half of the events: lengths are not known, and the items are no short videos"
        return [(f"watch_s >= {watch:.0f}", reason)]
    if length <= SHORT_S:
        rule = f"watch_s >= LEAST(length_s, {_LONG_S}) AND length_s > 0"
        return [(rule, f"long view: to the end, or {_LONG_S} s of what is longer")]
    reason = f"{_ENOUGH:.0%} of the length: half of the items are longer than {length:.0f} s"
    return [(f"watch_s >= {_ENOUGH:g} * length_s AND length_s > 0", reason)]


def _weaker(usable: Sequence[tuple[Column, str]]) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Returns the rules where no better signal exists: the share watched, a quantity, or that an item was opened."""
    for column, written in usable:
        if normalized_name(column.name) in SHARE and column.kind in ("integer", "fraction") and (column.low or 0) >= 0:
            enough = 80 if (column.high or 0) > 20 else 0.8
            return [(f"{written} >= {enough}", "four fifths were watched")], {column.name: "share watched"}
    for column, written in usable:
        if normalized_name(column.name) in QUANTITY and column.low is not None and column.low < 0:
            return [(f"{written} > 0", "a quantity below 0 is a return")], {column.name: "quantity"}
    flags = [
        (column, written) for column, written in usable if is_flag(column) and normalized_name(column.name) in SEEN
    ]
    rules = [(written, "the only signal of interest") for _, written in flags]
    return rules, {column.name: "positive flag" for column, _ in flags}
