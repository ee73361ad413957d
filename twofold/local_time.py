"""Local time: day, hour and weekday of UTC timestamps in an IANA time zone, by the offset of the zone at each moment.

The offsets come from `zoneinfo`, as a table of the moments at which the offset changes. NumPy looks a timestamp up in
this table, SQL compares it with the table's moments: no engine needs a tz database of its own, and all agree. Local
milliseconds are UTC milliseconds plus the offset, so `local // DAY_MS` is the local day, counted from 1970-01-01.
"""

from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

import numpy as np
from jaxtyping import Int64

from twofold.tables import DAY_MS

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# Outside these years the offset is that of the nearest one: no log is so old, and another unit is refused elsewhere.
_FIRST_YEAR, _END_YEAR = 1900, 2200
_NOT_PORTABLE: Final = frozenset({"localtime", "posixrules", "Factory"})  # other zones on other machines, or none


def check_time_zone(name: str) -> str:
    """Returns the name of an IANA time zone; raises ValueError if there is none of that name."""
    try:
        if name in _NOT_PORTABLE or name.startswith(("posix/", "right/")):
            raise ValueError(name)
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        from difflib import get_close_matches

        near = get_close_matches(name.title(), available_timezones() - _NOT_PORTABLE, cutoff=0.5)
        nearest = f"nearest: {', '.join(near)}; " if near else ""
        raise ValueError(
            f"{name[:80]!r} is not an IANA time zone; {nearest}write a name such as Asia/Kolkata, Europe/Berlin or UTC"
        ) from None
    return name


def local_ms(at: Int64[np.ndarray, "..."], time_zone: str) -> Int64[np.ndarray, "..."]:
    """Returns local milliseconds: UTC milliseconds plus the offset of the zone at each of these moments."""
    if not at.size:
        return at
    since, offsets = _changes_between(int(at.min()), int(at.max()), time_zone)
    return np.asarray(at + offsets[np.searchsorted(since, at, side="right")])


def local_ms_sql(column: str, time_zone: str, *, first_ms: int, last_ms: int) -> str:
    """Returns the SQL of `local_ms` for a column whose values lie from `first_ms` to `last_ms`."""
    since, offsets = _changes_between(first_ms, last_ms, time_zone)
    sql = str(offsets[0])
    if len(since):
        cases = (f"WHEN {column} >= {at} THEN {offset}" for at, offset in zip(since[::-1], offsets[:0:-1], strict=True))
        sql = f"CASE {' '.join(cases)} ELSE {offsets[0]} END"
    return f"({column} + {sql})"


def midnight_ms(day: date, time_zone: str) -> int:
    """Returns the first moment of a local day, in UTC milliseconds: midnight, or the change of offset that skips it."""
    return int(datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(time_zone)).timestamp()) * 1000


def midnights_before(at: Int64[np.ndarray, "examples"], time_zone: str) -> Int64[np.ndarray, "examples"]:
    """Returns, for each timestamp, the first moment of its local day, in UTC milliseconds."""
    days, places = np.unique(local_ms(at, time_zone) // DAY_MS, return_inverse=True)
    first = [midnight_ms(_EPOCH.date() + timedelta(days=day), time_zone) for day in days.tolist()]
    return np.array(first, np.int64)[places]


def _changes_between(first_ms: int, last_ms: int, time_zone: str) -> tuple[np.ndarray, np.ndarray]:
    years = np.array([first_ms, last_ms], "datetime64[ms]").astype("datetime64[Y]").astype(int) + 1970
    first, last = np.clip(years, _FIRST_YEAR, _END_YEAR - 1).tolist()
    return _offset_changes(time_zone, first, last + 1)


@lru_cache(maxsize=64)  # a service asks for the current year with every request
def _offset_changes(time_zone: str, first_year: int, end_year: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the moments at which the offset changes, and the offsets: before the first, and from each on; all in ms.

    No zone of the tz database changes twice within a day, so offsets are compared day by day, and a change is then
    found by bisection, to the second.
    """
    zone = ZoneInfo(time_zone)

    def offset_ms(second: int) -> int:
        offset = (_EPOCH + timedelta(seconds=second)).astimezone(zone).utcoffset()
        return int((offset or timedelta()).total_seconds()) * 1000

    first, end = (int((datetime(year, 1, 1, tzinfo=UTC) - _EPOCH).total_seconds()) for year in (first_year, end_year))
    days = [(second, offset_ms(second)) for second in range(first, end + 1, DAY_MS // 1000)]
    since, offsets = [], [days[0][1]]
    for (before, old), (after, new) in pairwise(days):
        if old != new:
            while after - before > 1:
                middle = (before + after) // 2
                before, after = (middle, after) if offset_ms(middle) == old else (before, middle)
            since.append(after * 1000)
            offsets.append(new)
    return np.array(since, np.int64), np.array(offsets, np.int64)
