"""Tables of a report for the terminal: they show the same numbers as report.json."""

from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from tests.evaluate.test_evaluate_window import report_of, world
from twofold.evaluate.evaluate_window import EvaluationOptions
from twofold.evaluate.report_tables import report_lines
from twofold.evaluate.results import load_report, write_report
from twofold.evaluate.sampled import Negatives, draw_negatives
from twofold.evaluate.summary_text import format_estimate


@pytest.fixture(scope="module")
def report():
    return report_of(*world())


def test_the_terminal_shows_the_same_numbers(report):
    console = Console(file=StringIO(), width=200)
    for table in report_lines(report):
        console.print(table)
    text = console.file.getvalue()
    for row in report.catalogue.rows:
        assert format_estimate(row.metrics[report.primary_metric]) in text
    assert "model's way from random to perfect" in text
    assert report.verdict[0] in text


def test_sampled_judging_has_tables_of_its_own(tmp_path):
    window, truth, before = world()
    popular = np.bincount(before.item_rows, minlength=window.num_items).astype(np.float64)
    drawn = tuple(
        Negatives(draw, 0, draw_negatives(window, 20, seed=0, weights=weights))
        for draw, weights in (("popularity", popular), ("uniform", None))
    )
    report = report_of(window, truth, before, options=EvaluationOptions(sampled=drawn))
    assert [section.name for section in report.sampled] == ["popularity-20", "uniform-20"]
    assert [row.name for row in report.sampled[0].rows] == [row.name for row in report.catalogue.rows]
    metrics = report.metrics_of("popularity")
    assert metrics["sampled/popularity-20/hit_rate@10"] < metrics["sampled/uniform-20/hit_rate@10"]
    console = Console(file=StringIO(), width=200)
    for table in report_lines(report):
        console.print(table)
    shown = " ".join(console.file.getvalue().split())
    for section in report.sampled:
        for text in (section.candidates, format_estimate(section.rows[1].metrics["sampled/ndcg@10"])):
            assert text in shown
    write_report(report, tmp_path)
    assert load_report(tmp_path / "report.json").sampled == report.sampled
