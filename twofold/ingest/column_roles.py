"""The role of each column of a log: user, item, time, and signals of interest, guessed from names and values.

A role needs both a usual name and fitting values: a column called `time` with the values 0, 1 and 2 is no time. Where
several columns fit equally well, the user is asked to choose. `inspect_log.py` reads the values.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from twofold.errors import DataError
from twofold.ingest.log_profile import (
    Column,
    TableProfile,
    Unit,
    is_flag,
    look_of,
    printable,
    rule_name,
    shown_values,
    timestamp_unit,
    words,
)
from twofold.recipe.messages import did_you_mean
from twofold.tables import LONG_VIEW_MS

_LONG_S: Final = LONG_VIEW_MS // 1000

# --- usual names ------------------------------------------------------------------------------------------------------


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_THINGS: Final = _set(
    "video movie film photo product business article news book track song show episode clip content post doc document "
    "note ad recipe game app course job poi place venue listing gmap offer"
)
# The three required roles: sets from the most to the least likely names; names within a set are equally likely.
USER: Final = (
    _set("userid uid"),
    _set("user memberid customerid visitorid reviewerid accountid viewerid listenerid profileid"),
    _set("member customer visitor reviewer account viewer sessionid session deviceid"),
)
ITEM: Final = (
    _set("itemid iid"),
    _set("item asin vid isbn sku") | {f"{thing}id" for thing in _THINGS},
    _set("parentasin") | _THINGS,
)
TIME: Final = (
    _set("at ts time timestamp datetime unixtime eventtime eventtimestamp eventts eventat"),
    _set(
        "date createdat eventdate watchedat viewedat playedat clickedat ratedat purchasedat listenedat reviewtime "
        "unixreviewtime interactiontime starttime begintime logtime requesttime servertime"
    ),
)
# Signals that an item was liked; that it was seen or opened; ratings; the column with the kind of event.
LIKED: Final = _set(
    "like liked love loved upvote upvoted thumbsup share shared forward forwarded follow followed favorite favorited "
    "favourite fav collect collected save saved bookmark bookmarked download downloaded longview purchase purchased "
    "buy bought order ordered transaction addtocart cart subscribe subscribed finish finished label"
)
SEEN: Final = _set("click clicked view viewed play played open opened watched valid validread")
RATING: Final = _set("rating ratings stars star overall score userrating reviewrating")
EVENT: Final = _set("event eventtype eventname action actiontype behavior behaviortype behaviour interaction type")
WATCH: Final = _set(
    "playtime playduration playedtime playingtime played watch watched watchtime watchduration watchingtime dwell "
    "dwelltime viewtime viewduration viewingtime listen listened listentime timespent staytime"
)
LENGTH: Final = _set("duration length runtime") | {
    f"{thing}{word}" for thing in _THINGS | {"item", "media", "total"} for word in ("duration", "length")
}
SHARE: Final = _set("watchratio watchfraction watchpercent watchpct playedratiopct playratio completion")
# For an items file: the upload time; single words in names of event counts, and in names of groups.
UPLOADED: Final = _set(
    "uploadedat uploadtime uploaddt uploaddate createdat createtime publishedat publishtime publishdate pubtime "
    "releasedate releasedat releasetime postedat"
)
COUNTS: Final = _set(
    "cnt count counts num views likes clicks plays play shows show shares comments downloads popularity popular ctr "
    "avg average mean votes vote rating ratings score rank sales hot stay progress complete"
)
GROUPS: Final = _set(
    "id type category categories genre genres lang language city country region brand author artist creator channel "
    "publisher music status code tag tab level label group cluster class kind gender occupation zip feat"
)
# Unit words in a name, and the SQL that converts to seconds.
TO_SECONDS: Final = {
    **dict.fromkeys(("us", "usec", "micros", "microseconds"), " / 1000000"),
    **dict.fromkeys(("ms", "msec", "millis", "milliseconds"), " / 1000"),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), ""),
    **dict.fromkeys(("min", "mins", "minutes"), " * 60"),
}


def normalized_name(name: str) -> str:
    """Joins the words of a name, without the `is` of a flag and the unit of a number, as in the sets above."""
    kept = [word for word in words(name) if word not in TO_SECONDS]
    return "".join(kept[1:] if kept[:1] == ["is"] else kept)


# --- roles ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Roles:
    """The columns with a role in the recipe, and the rules that follow from them."""

    user: str
    item: str
    time: str
    at_unit: Unit | None
    """Unit of a time given as whole numbers; `None` means timestamps."""
    has_clock: bool
    """`False` means that `time` gives only the order of events, no days and hours."""
    derive: Mapping[str, str]
    positive: str
    reason: str
    """Reason for the rule `positive`, as a comment in the recipe."""
    taken_as: Mapping[str, str]
    """Column → its role, for columns that have one."""


@dataclass(frozen=True)
class GivenColumns:
    """The columns that the user names; `None` means that the column is guessed."""

    user: str | None = None
    item: str | None = None
    time: str | None = None


def guess_roles(log: TableProfile, given_columns: GivenColumns = GivenColumns()) -> Roles:  # noqa: B008 - frozen
    """Guesses the columns of user, item and time, and the signals that an event has.

    DataError if one of the three is missing, could be several columns, or has a type that no recipe reads.
    """
    user = _find_column(log, "user", given_columns.user, USER, _could_be_id)
    item = _find_column(log, "item", given_columns.item, ITEM, _could_be_id, taken=(user.name,))
    time = _find_column(log, "time", given_columns.time, TIME, _could_be_time, taken=(user.name, item.name))
    if len({user.name, item.name, time.name}) < 3:
        raise DataError(
            f"{log.path}: user, item and time are {user.name}, {item.name} and {time.name}; "
            f"name three different columns: --user COL --item COL --time COL"
        )
    for column, role in ((user, "user"), (item, "item")):
        if column.kind not in ("integer", "text"):
            raise _refused(log, column, role, "as whole numbers or as text", "BIGINT")
    unit = timestamp_unit(time) if time.kind == "integer" else None
    if time.kind not in ("integer", "timestamp"):
        wanted = "BIGINT" if time.kind == "fraction" else "TIMESTAMP"
        raise _refused(log, time, "time", "as timestamps or as whole numbers", wanted)
    has_clock = time.kind == "timestamp" or unit is not None
    time_as = f"time ({unit})" if unit else "time" if has_clock else "time (order only)"
    others = [column for column in log.columns if column.name not in (user.name, item.name, time.name)]
    seconds, watched = _watched(others)
    positive, reason, liked = _positive(others, seconds)
    return Roles(
        user=user.name,
        item=item.name,
        time=time.name,
        at_unit=None if time.kind == "timestamp" else unit or "ms",
        has_clock=has_clock,
        derive={ours: rule for ours, rule in seconds.items() if ours != rule},
        positive=positive,
        reason=reason,
        taken_as={user.name: "user", item.name: "item", time.name: time_as} | watched | liked,
    )


def guess_key(table: TableProfile, role: Literal["user", "item"]) -> str | None:
    """Guesses the key column of an items or users file, independently of its name in the log."""
    tiers = (*(ITEM if role == "item" else USER), frozenset({"id"}))
    found = _likeliest([column for column in table.columns if _could_be_id(column)], tiers)
    return found[0].name if len(found) == 1 else None


def _likeliest(columns: Sequence[Column], tiers: Sequence[frozenset[str]]) -> list[Column]:
    """Returns the columns whose name is in the first set that has any; none if no set has one."""
    found = (
        [column for column in columns if tier & {normalized_name(column.name), "".join(words(column.name))}]
        for tier in tiers
    )
    return next((some for some in found if some), [])


def _find_column(
    log: TableProfile,
    role: str,
    named: str | None,
    tiers: Sequence[frozenset[str]],
    could_be: Callable[[Column], bool],
    *,
    taken: tuple[str, ...] = (),
) -> Column:
    columns = {column.name: column for column in log.columns}
    if named is not None:
        if named not in columns:
            raise DataError(
                f"--{role} {named}: {log.path} has no such column ({did_you_mean(named, columns)}its columns: "
                f"{', '.join(map(printable, columns))})"
            )
        return columns[named]
    free = [column for column in log.columns if column.name not in taken and not is_flag(column)]
    able = [column for column in log.columns if column.name not in taken and could_be(column)]
    found = _likeliest(able, tiers) or (able if role == "time" and len(able) == 1 else [])
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{log.path}: which column is the {role}? Equally likely are\n{_listed(found)}\n"
            f"Choose one: --{role} {_shell(found[0].name)}"
        )
    left = f"Choose one: --{role} COL. Columns:\n{_listed(free)}\n" if free else ""
    orders = (
        "A log without times needs a column of whole numbers that rise from event to event. " if role == "time" else ""
    )
    raise DataError(
        f"{log.path}: could not find the {role} column: no column looks like the {role} of an event by both its name "
        f"and its values. {left}{orders}"
        "A recipe needs a user, an item and a time."
    )


def _could_be_id(column: Column) -> bool:
    is_id = column.kind in ("integer", "text") or column.kind == "fraction" and column.is_whole
    return is_id and column.nulls <= 0.5 and column.distinct > 0


def _could_be_time(column: Column) -> bool:
    if column.nulls > 0.5 or column.distinct == 0:
        return False
    return column.kind in ("timestamp", "day") or column.dates >= 0.99 or timestamp_unit(column) is not None


def _refused(log: TableProfile, column: Column, role: str, wanted: str, type_: str) -> DataError:
    # Seconds with a fraction are kept to the millisecond; the unit of the resulting whole number follows from its size.
    quoted = '"' + printable(column.name).replace('"', '""') + '"'
    scale = 1000 if role == "time" and timestamp_unit(column) == "s" else 1
    value = f"{quoted} * {scale}" if scale > 1 else quoted
    return DataError(
        f"{log.path}: the {role}, {printable(column.name)}, is {column.type}; a recipe reads it {wanted}. "
        f"In DuckDB:\n  COPY (SELECT * REPLACE (CAST({value} AS {type_}) AS {quoted}) "
        f"FROM '{log.path}') TO '{log.path.stem}-converted.parquet';\nthen --log {log.path.stem}-converted.parquet"
    )


def _listed(columns: Sequence[Column], most: int = 12) -> str:
    shown = [
        f"  {printable(c.name)}  {c.type}, about {c.distinct:,} values, {look_of(c)}, {shown_values(c)}"
        for c in columns[:most]
    ]
    return "\n".join(shown + [f"  and {len(columns) - most} more"] * (len(columns) > most))


def _shell(name: str) -> str:
    return printable(name) if re.fullmatch(r"[\w.-]+", name) else "'" + printable(name).replace("'", "'\\''") + "'"


# --- what else is known of an event -----------------------------------------------------------------------------------


def _watched(columns: Sequence[Column]) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the rules of watch time and length in seconds, and the roles of the columns that they read."""
    seconds: dict[str, str] = {}
    taken_as: dict[str, str] = {}
    for name, called, ours in (("watch time", WATCH, "watch_s"), ("length", LENGTH, "length_s")):
        # Our own name comes first, in any case: then nothing needs to be derived.
        for column in sorted(columns, key=lambda column: column.name.lower() != ours):
            written = ours if column.name.lower() == ours else rule_name(column.name)
            is_number = column.kind in ("integer", "fraction") and column.high is not None and column.high > 1
            if written and is_number and (normalized_name(column.name) in called) and (seconds or ours == "watch_s"):
                named = [TO_SECONDS[word] for word in words(column.name) if word in TO_SECONDS]
                # No one watches for 28 hours: larger numbers are milliseconds.
                scale = named[-1] if named else " / 1000" if (column.high or 0) > 100_000 else ""
                seconds[ours] = f"{written}{scale}"
                unit = {"": "s", " / 1000": "ms", " / 1000000": "us", " * 60": "min"}[scale]
                taken_as[column.name] = f"{name} ({unit})"
                break
    return seconds, taken_as


def _positive(columns: Sequence[Column], seconds: Mapping[str, str]) -> tuple[str, str, dict[str, str]]:
    """Returns the rule of positive events, its reason, and the roles of the columns that it reads."""
    usable = [(column, written) for column in columns if (written := rule_name(column.name)) is not None]
    rules: list[tuple[str, str]] = []
    taken_as: dict[str, str] = {}
    for column, written in usable:
        name, high = normalized_name(column.name), column.high or 0
        if is_flag(column) and name in LIKED:
            rules.append((written, ""))
            taken_as[column.name] = "positive flag"
        elif name in RATING and column.kind in ("integer", "fraction") and high > 1:
            rules.append((f"{written} >= {0.8 * high:g}", f"at least four fifths of the highest rating, {high:g}"))
            taken_as[column.name] = "rating"
        elif name in EVENT and (
            wanted := [v for v in column.most_frequent if v.isprintable() and normalized_name(v) in LIKED]
        ):
            listed = ", ".join("'" + value.replace("'", "''") + "'" for value in wanted)
            rules.append((f"{written} IN ({listed})", "kinds of event that show more interest than a view"))
            taken_as[column.name] = "kind of event"
    has_long_view = any(normalized_name(column.name) == "longview" for column in columns)
    rules += [] if has_long_view else _long_view(seconds)
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


def _long_view(seconds: Mapping[str, str]) -> list[tuple[str, str]]:
    if "length_s" in seconds:
        rule = f"watch_s >= LEAST(length_s, {_LONG_S}) AND length_s > 0"
        return [(rule, f"long view: to the end, or {_LONG_S} s of what is longer")]
    return [(f"watch_s >= {_LONG_S}", f"watched for {_LONG_S} s: lengths are not known")] if seconds else []


def _weaker(usable: Sequence[tuple[Column, str]]) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Returns the rules where no better signal exists: the share watched, or that an item was opened."""
    for column, written in usable:
        if normalized_name(column.name) in SHARE and column.kind in ("integer", "fraction") and (column.low or 0) >= 0:
            enough = 80 if (column.high or 0) > 20 else 0.8
            return [(f"{written} >= {enough}", "four fifths were watched")], {column.name: "share watched"}
    flags = [
        (column, written) for column, written in usable if is_flag(column) and normalized_name(column.name) in SEEN
    ]
    rules = [(written, "the only signal of interest") for _, written in flags]
    return rules, {column.name: "positive flag" for column, _ in flags}
