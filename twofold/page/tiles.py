"""Tiles that open the page of a run: metrics, each against the best peer, and the number of warnings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from twofold.evaluate.results import Report, Row
from twofold.evaluate.significance import Estimate
from twofold.render.numbers import format_decimal, format_interval, format_signed, in_title, percent, plural
from twofold.render.plots import Difference, Outcome
from twofold.tables import Json

RANDOM: Final = "random"
_LONGEST_LIST: Final = 3  # number of warnings, or of peers that were not run, that a tile names


@dataclass(frozen=True)
class Tile:
    """A number with its title, what it is compared with, and one sentence on the comparison."""

    title: str
    value: str
    interval: str
    peer: str
    sentence: str
    outcome: Outcome


def main_metrics(report: Report) -> tuple[str, ...]:
    """Returns the two metrics of the full ranking that open the page: recall and NDCG."""
    return tuple(each.metric for each in report.headlines)


def metric_tiles(report: Report) -> Iterator[Tile]:
    """Yields a tile for each main metric of the full ranking, AUC on shown items, and the watch time of lists."""
    for metric in main_metrics(report):
        yield _tile(report, report.catalogue.rows, metric, in_title(metric))
    yield _tile(report, report.impressions.rows, "impressions/auc", "AUC on shown items")
    if report.list_watch is not None:
        metric = f"list_watch/seconds@{report.list_watch.k}"
        yield _tile(report, report.list_watch.rows, metric, f"Expected seconds of an item, first {report.list_watch.k}")


def _tile(report: Report, rows: Sequence[Row], metric: str, title: str) -> Tile:
    """Returns the tile of a metric; it is never one of success while a peer was not run."""
    own, names = rows[0].metrics[metric], [name for name in report.baselines if name != RANDOM]
    peers = [row for row in rows if row.name in names and row.metrics[metric].value is not None]
    interval = format_interval(own.low, own.high)
    if own.value is None or not peers:
        return Tile(title, format_decimal(own.value), interval, "", "No user of the test window has a value.", "")
    best = max(peers, key=lambda row: row.metrics[metric].value or 0.0)
    peer = f"best peer: {best.name} {format_decimal(best.metrics[metric].value)}"
    sentence, outcome = _comparison_sentence(best.name, best.metrics[metric], best.model_minus[metric])
    if report.left_out:
        names = [each.name for each in report.left_out]
        sentence += f" Not run: {', '.join(names) if len(names) <= _LONGEST_LIST else plural(len(names), 'peer')}."
        outcome = "" if outcome == "better" else outcome
    return Tile(title, format_decimal(own.value), interval, peer, sentence, outcome)


def _comparison_sentence(name: str, peer: Estimate, minus: Estimate) -> tuple[str, Outcome]:
    """Says whether the model differs significantly from a peer, and by how much; with the outcome."""
    if minus.value is None or minus.low is None or minus.high is None:
        return f"Too few users to compare with {name}.", ""
    size = f"difference {format_signed(minus.value)} {format_interval(minus.low, minus.high)}"
    outcome = Difference(name, minus.value, minus.low, minus.high).outcome
    share = f"{percent(abs(minus.value / peer.value))} " if peer.value else ""
    if outcome:
        return f"{share}{outcome} than {name}: {size}.", outcome
    return f"No significant difference from {name}: {size}.", outcome


def warnings_tile(probes: Sequence[Json] | None, *, faults: Sequence[str] = ()) -> Tile:
    """Returns the tile of the warnings: probes beyond their thresholds and faults of serving.

    `None` means that the run has no stage `explain`.
    """
    if probes is None:
        return Tile("Warnings", "–", "", "", "Not measured yet: run twofold explain.", "")
    names = [*faults, *(probe["name"].replace("_", " ") for probe in probes if probe["is_alarming"])]
    scope = f"of {plural(len(probes), 'probe')} and the serving check"
    if not names:
        return Tile("Warnings", "0", "", scope, "No probe raises a warning, and serving loses nothing.", "better")
    more = f" and {len(names) - _LONGEST_LIST} more" if len(names) > _LONGEST_LIST else ""
    sentence = f"{', '.join(names[:_LONGEST_LIST])}{more}."
    return Tile("Warnings", str(len(names)), "", scope, sentence[:1].upper() + sentence[1:], "worse")
