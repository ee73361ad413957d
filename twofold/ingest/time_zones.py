"""The time zone of a log, guessed from the offsets in its times."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from twofold.ingest.inspect_table import engine
from twofold.prepare.duckdb_connection import quote_name, scan_sql
from twofold.prepare.sources import SourceTable

ZONES: Final = (
    *("Europe/Berlin", "Europe/London", "Europe/Athens", "Europe/Moscow", "Europe/Istanbul"),
    *("Asia/Kolkata", "Asia/Shanghai", "Asia/Tokyo", "Asia/Jakarta", "Asia/Dubai", "Asia/Karachi", "Asia/Dhaka"),
    *("Asia/Tehran", "Asia/Kathmandu", "Asia/Yangon", "Asia/Tashkent", "Africa/Lagos", "Africa/Nairobi"),
    *("America/New_York", "America/Chicago", "America/Denver", "America/Los_Angeles", "America/Sao_Paulo"),
    *("America/Phoenix", "America/Bogota", "America/Halifax", "America/Caracas", "America/St_Johns"),
    *("Australia/Sydney", "Australia/Perth", "Australia/Adelaide", "Pacific/Auckland"),
)
"""Zones that are compared with the offsets of a log; of several with the same offsets, the first is guessed."""
_ROWS: Final = 5000
_ENOUGH: Final = 0.99


def guess_time_zone(events: SourceTable, column: str) -> tuple[str, str]:
    """Returns a time zone and the reason; UTC and an empty reason if the times of `column` have no offset.

    Only texts have offsets: those of a CSV file, and text columns. Timestamps of Parquet are in UTC.
    """
    if events.kind == "csv":
        scan = scan_sql(events.files, "csv", has_partitions=bool(events.partitions), text_options="all_varchar = true")
    elif events.own.get(column) == "VARCHAR":
        scan = events.files_sql
    else:
        return "UTC", ""
    with engine(events.files) as query:
        sample = f"SELECT {quote_name(column)} FROM {scan} USING SAMPLE reservoir({_ROWS} ROWS) REPEATABLE (0)"
        times = [time for (text,) in query(sample) if (time := _time_of(text)) is not None]
    offsets = Counter(time.utcoffset() for time in times)
    if not set(offsets) - {timedelta(0)}:
        return "UTC", ""
    listed = ", ".join(sorted({time.isoformat()[-6:] for time in times})[:4])
    for zone in ZONES:
        rules = ZoneInfo(zone)
        fitting = sum(time.astimezone(rules).utcoffset() == time.utcoffset() for time in times)
        if fitting >= _ENOUGH * len(times):
            return zone, f"the offsets of the times are {listed}"
    return "UTC", f"the offsets of the times, {listed}, are those of no single zone"


def _time_of(text: str | None) -> datetime | None:
    """Returns the time of a text with an offset; `None` if it has none."""
    try:
        time = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return time if time.utcoffset() is not None else None


def quiet_hour_hint(hour: int | None) -> str:
    """Says which offset the quiet hours of a log suggest, if nights are quiet; empty if there are none.

    >>> quiet_hour_hint(19)
    'the quietest hours begin at 19:00 UTC; if they are the night from 1 to 7, your users live at about UTC+6'
    """
    offset = _quiet_offset(hour)
    if offset == 0:
        return ""
    now = datetime(2024, 1, 1, hour or 0, tzinfo=UTC)
    return (
        f"the quietest hours begin at {now:%H:%M} UTC; if they are the night from 1 to 7, your users live at about "
        f"UTC{offset:+d}"
    )


def zone_of_quiet_hour(hour: int | None) -> str | None:
    """Returns one of `ZONES` in which the quiet hours are the night; `None` if there is none.

    >>> zone_of_quiet_hour(6), zone_of_quiet_hour(0), zone_of_quiet_hour(None)
    ('America/New_York', 'Europe/Berlin', None)
    """
    offset = timedelta(hours=_quiet_offset(hour))
    winter = datetime(2024, 1, 1, tzinfo=UTC)
    return next((zone for zone in ZONES if offset and winter.astimezone(ZoneInfo(zone)).utcoffset() == offset), None)


def _quiet_offset(hour: int | None) -> int:
    """Returns the offset from UTC, in hours, at which quiet hours begin at 1 at night; 0 if there are none."""
    return 0 if hour is None else (1 - hour + 11) % 24 - 11
