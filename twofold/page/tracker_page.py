"""The tracker as one HTML file that opens from disk: sort, filter, pin, edit comments, compare two runs.

Names, comments and recipes are untrusted text: the template escapes all of it, the program of the page is fixed, and
its content security policy allows no other script and no request.
"""

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final
from urllib.parse import quote

import pyarrow.parquet as pq

from twofold.evaluate.significance import Estimate
from twofold.page.model_drawing import Drawing
from twofold.page.run_page import PAGE as RUN_PAGE
from twofold.page.tracker import METRICS, TrackedGroup, Tracker, change_text, read_tracker, tracker_table
from twofold.render.html import fill_page
from twofold.run_folder import atomic_file
from twofold.runs import is_smaller_better

_PROTOCOLS: Final = {"impressions": "shown", "catalogue": "all items", "watch_time": "shown"}


def write_tracker(folders: Sequence[Path], page: Path, *, table: Path | None = None) -> Tracker:
    """Writes the page, and the same rows as Parquet if `table` is given; returns what was read.

    The names of runs lead to their pages, by paths from the folder of the page. RequestError if there is no evaluated
    run.
    """
    tracker = read_tracker(folders)
    page.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(page) as partial:
        partial.write_text(tracker_page(tracker, links=_links(tracker, page.parent)), encoding="utf-8")
    if table is not None:
        table.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(table) as partial:
            pq.write_table(tracker_table(tracker), partial, compression="zstd")
    return tracker


def _links(tracker: Tracker, folder: Path) -> dict[str, str]:
    """Returns, by the name of the run, the address of its page as seen from a folder."""
    pages = {run.name: run.folder / RUN_PAGE for run in tracker.runs}
    return {
        name: quote(Path(os.path.relpath(path, folder)).as_posix()) for name, path in pages.items() if path.is_file()
    }


def tracker_page(tracker: Tracker, *, links: Mapping[str, str] | None = None) -> str:
    """Returns the page as one HTML file; equal drawings are stored once. `links` are addresses by the names of runs."""
    script = (files("twofold.page") / "tracker.js").read_text(encoding="utf-8")
    runs = tracker.runs
    drawings = {run.drawings: f"drawing-{number}" for number, run in enumerate(runs)}
    values = {
        "groups": tracker.groups,
        "unreadable": tracker.unreadable,
        "metrics_of": _metrics_of,
        "probes_of": _probes_of,
        "windows": list(dict.fromkeys(name for run in runs for name in run.windows)),
        "drawings": drawings,
        "links": links or {},
        "heading": _heading,
        "change_text": change_text,
        "outcome": _outcome,
        "thumbnail": _thumbnail,
        "script": script,
        "digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    return fill_page(("twofold.page",), "tracker.html.j2", values)


def _metrics_of(group: TrackedGroup) -> list[str]:
    """Returns the metrics that a run of the group has."""
    return [metric for metric in METRICS if any(metric in run.metrics for run in group.runs)]


def _probes_of(group: TrackedGroup) -> list[str]:
    """Returns the probes of variety that a run of the group has."""
    return list(dict.fromkeys(each.name for run in group.runs for each in run.variety))


def _heading(metric: str) -> tuple[str, str]:
    """Returns the name of a metric and the items that are ranked.

    >>> _heading("impressions/recall@5")
    ('recall@5', 'shown')
    """
    protocol, _, name = metric.partition("/")
    return name.replace("_", " "), _PROTOCOLS[protocol]


def _outcome(metric: str, minus: Estimate | None) -> str:
    """Returns `better` or `worse` if the interval of a difference excludes 0, else an empty text."""
    if minus is None or minus.low is None or minus.high is None or minus.low <= 0 <= minus.high:
        return ""
    return "better" if (minus.low > 0) != is_smaller_better(metric) else "worse"


def _thumbnail(drawings: tuple[Drawing, ...]) -> list[Mapping[str, float | int | str]]:
    """Returns the boxes of a small picture of the first stage: inputs and layers of each tower, bottom to top."""
    boxes: list[Mapping[str, float | str]] = []
    for column, tower in enumerate(drawings[0].towers[:2] if drawings else ()):
        parts = [*(("block", part) for part in tower.inputs), *(("layer", part) for part in tower.layers)]
        height = 34 / max(len(parts), 1)
        boxes += [
            {"x": 2 + 29 * column, "y": round(2 + number * height, 1), "height": round(height * 0.8, 1), "kind": kind}
            for number, (kind, _) in enumerate(parts)
        ]
    return boxes
