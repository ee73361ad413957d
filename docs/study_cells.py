"""Lines and cells that the tables of docs/studies.md share."""

from collections.abc import Sequence

from study_rows import Saved

from twofold.render.numbers import format_interval, format_signed


def head(third: str, columns: Sequence[str]) -> list[str]:
    """Returns the first two lines of a table; `third` is the name of its third column."""
    return [f"| experiment | recipe | {third} | {' | '.join(columns)} |", f"|---|---|---|{'---|' * len(columns)}"]


def line(row: Saved, name: str, third: str, cells: Sequence[str]) -> str:
    """Returns the line of an experiment."""
    return f"| {name} | `{row['recipes'][0][:12]}` | {third} | {' | '.join(cells)} |"


def difference(row: Saved, minus: Sequence[float] | None) -> list[str]:
    """Returns the difference of a row from the experiment it is compared with, and its interval; empty if none."""
    if minus is None:
        return []
    value, low, high = minus
    return [f"− {row['against']} {format_signed(value)} {format_interval(low, high)}".strip()]
