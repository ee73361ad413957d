"""Evaluation report as tables for the terminal."""

from typing import Final

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from twofold.evaluate.days import days_table
from twofold.evaluate.results import MODEL, Report, SampledSection, Section
from twofold.evaluate.significance import Estimate
from twofold.evaluate.summary_text import format_difference, format_estimate
from twofold.render.numbers import format_decimal, in_short, percent, plural

SAMPLED_METRICS: Final = ("sampled/hit_rate@10", "sampled/ndcg@10", "sampled/mrr")
SAMPLED_NOTE: Final = "only for comparison with papers; the summary above is about the whole catalogue"


def _shown_metrics(report: Report) -> list[str]:
    """Returns the catalogue metrics of the main table; the page hides the others in a section to open."""
    k = report.primary_metric.partition("@")[2]
    names = ["recall@10", f"recall@{k}", f"hit_rate@{k}", "ndcg@10", "mrr@10", "map@10"]
    names = list(dict.fromkeys(f"catalogue/{name}" for name in names))
    return [name for name in names if name in report.catalogue.rows[0].metrics]


def report_lines(report: Report) -> list[Text | Table]:
    """Returns the summary, then the catalogue, impressions, in-batch and sampled tables, for the terminal.

    The table of impressions is left out if no user could be judged; the summary says why.
    """
    verdict = Text("\n".join(report.verdict))
    sampled = (_sampled_table(section) for section in report.sampled)
    impressions = [_impressions_table(report)] if report.impressions.users_judged else []
    tables = [_catalogue_table(report), *impressions, _batch_table(report), *sampled]
    return [verdict, Text(), *tables, *([] if report.days is None else [days_table(report.days)])]


def _catalogue_table(report: Report) -> Table:
    table = _table(f"catalogue · {report.window} window · {_counts_text(report.catalogue)}", "")
    # Two metrics fit into a terminal of 80 columns; the page has them all.
    metrics = [metric for metric in _shown_metrics(report) if metric in (report.primary_metric, "catalogue/ndcg@10")]
    table.add_column("")
    for metric in metrics:
        table.add_column(in_short(metric), justify="right")
    table.add_column(f"model − row, @{report.primary_metric.partition('@')[2]}", justify="right")
    for row in report.catalogue.rows:
        cells = [_cell(row.metrics[metric], with_interval=metric == report.primary_metric) for metric in metrics]
        gap = row.model_minus.get(report.primary_metric)
        table.add_row(
            Text(row.name),
            *cells,
            Text(format_difference(gap)) if gap else "",
            style="bold" if row.name == MODEL else "",
        )
    return table


def _impressions_table(report: Report) -> Table:
    section = report.impressions
    table = _table(f"impressions · {_counts_text(section)}", "")
    metrics = list(section.bounds)
    table.add_column("")
    for metric in metrics:
        table.add_column(in_short(metric), justify="right")
    for row in section.rows:
        cells = [_cell(row.metrics[metric], with_interval=False) for metric in metrics]
        table.add_row(Text(row.name), *cells, style="bold" if row.name == MODEL else "")
    table.add_section()
    table.add_row("random order", *(format_decimal(section.bounds[metric].chance) for metric in metrics), style="dim")
    table.add_row("perfect order", *(format_decimal(section.bounds[metric].best) for metric in metrics), style="dim")
    ways = (percent(section.bounds[metric].headroom) for metric in metrics)
    table.add_row("model's way from random to perfect", *ways)
    return table


def _batch_table(report: Report) -> Table:
    batch = report.in_batch
    table = _table(f"in-batch · batch {batch.batch_size:,} · {plural(batch.pairs, 'pair')}", batch.sentence)
    for heading in ("hit rate@k of the same pairs, k", "in a batch", "uniform items", "catalogue"):
        table.add_column(heading, justify="right")
    for line in batch.lines:
        table.add_row(str(line.k), *map(format_estimate, (line.in_batch, line.uniform, line.catalogue)))
    return table


def _sampled_table(section: SampledSection) -> Table:
    users = plural(section.users_judged, "user")
    table = _table(f"sampled · {users} · each positive among {section.candidates}", SAMPLED_NOTE)
    table.add_column("")
    for metric in SAMPLED_METRICS:
        table.add_column(in_short(metric), justify="right")
    for row in section.rows:
        cells = [_cell(row.metrics[metric]) for metric in SAMPLED_METRICS]
        table.add_row(Text(row.name), *cells, style="bold" if row.name == MODEL else "")
    return table


def _table(title: str, caption: str) -> Table:
    # Text, not str: rich reads [.370, .401] in a str as markup.
    table = Table(title=Text(title), caption=Text(caption) if caption else None, box=SIMPLE_HEAD)
    table.title_justify = table.caption_justify = "left"
    return table


def _cell(estimate: Estimate, *, with_interval: bool = True) -> Text:
    return Text(format_estimate(estimate) if with_interval else format_decimal(estimate.value))


def _counts_text(section: Section) -> str:
    return f"{plural(section.users_judged, 'user')}, {plural(section.num_items, 'item')}"
