"""The page stands alone, escapes what it shows, and the terminal shows the same numbers."""

import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from tests.evaluate.test_evaluate_window import report_of, world
from twofold.evaluate.calibration import Seconds, evaluate_head
from twofold.evaluate.evaluate_window import EvaluationOptions
from twofold.evaluate.report_page import plot_of, report_lines, report_page, write_report
from twofold.evaluate.results import load_report
from twofold.evaluate.sampled import Negatives, draw_negatives
from twofold.evaluate.slices import Slicing
from twofold.evaluate.summary_text import format_estimate
from twofold.evaluate.watch_time import Watched


class Page(HTMLParser):
    """Tags and the text between them; an unclosed tag is a mistake."""

    VOID = frozenset({"meta", "line", "circle"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def report():
    return report_of(*world())


def test_heads_are_shown_where_there_are_any(report, tmp_path):
    said, outcome = np.linspace(0.1, 0.7, 40, dtype=np.float32), np.tile(np.float32([0, 1, 0, 0]), 10)
    seconds = Seconds(impressions=30, mae=3.25, xauc=0.612, mae_of_length=4.5, xauc_of_length=0.578)
    heads = (evaluate_head("long", said, outcome), replace(evaluate_head("watch", said, said), seconds=seconds))
    with_heads = report_of(*world(), options=EvaluationOptions(heads=heads))
    page = Page(report_page(with_heads))
    assert "Each head of the ranker predicts an outcome of an impression." in page.text
    # The mean prediction is .4, and a quarter of the outcomes are true.
    assert "long 0.400 0.250 1.600 : 1" in page.text
    assert "watch 0.400 0.400 1.000 : 1 0.000" in page.text
    assert (
        "mean absolute error 3.250 s, XAUC over all pairs 0.612. From the item's length alone: error 4.500 s"
        in page.text
    )
    assert all(sentence in page.text for sentence in with_heads.verdict[-2:])
    assert "<h2>Heads</h2>" not in report_page(report)
    write_report(with_heads, tmp_path)
    assert load_report(tmp_path / "report.json") == with_heads
    assert with_heads.metrics_of("model")["heads/long/ratio"] == pytest.approx(1.6)


def test_the_page_shows_verdict_rows_bounds_and_facts(report):
    page = Page(report_page(report))
    for sentence in report.verdict:
        assert sentence in page.text
    for row in report.catalogue.rows:
        assert format_estimate(row.metrics[report.primary_metric]) in page.text
    for text in (
        "headroom gained",
        "perfect order",
        "the log",
        "2 × a processor, 8 GiB",
        report.tie_rule,
        "150 users evaluated",
    ):
        assert text in page.text


def test_the_page_asks_nobody_for_anything(report):
    page = Page(report_page(report))
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "img", "iframe")]
    assert not [attrs for _, attrs in page.tags if {"src", "href"} & attrs.keys()]
    policy = [attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert "url(" not in report_page(report)


def test_names_are_escaped(report):
    planted = replace(report, facts=replace(report.facts, recipe="<script>alert(1)</script>", commit="&lt;b&gt;"))
    page = Page(report_page(planted))
    assert "script" not in [tag for tag, _ in page.tags]
    assert "<script>alert(1)</script>" in page.text
    assert "&lt;b&gt;" in page.text


def test_a_model_below_a_baseline_is_not_shown_as_good(report):
    assert "✓ The model is significantly better than every baseline" in report_page(report)
    assert "✗ The model is not significantly better than every baseline" in report_page(
        replace(report, beats_all=False)
    )


def test_the_plot_keeps_order_and_holds_every_interval(report):
    plot = plot_of(report)
    by_value = sorted(plot.dots, key=lambda dot: dot.x)
    names = sorted(report.catalogue.rows, key=lambda row: row.metrics[report.primary_metric].value)
    assert [dot.name for dot in by_value] == [row.name for row in names]
    assert all(plot.ticks[0][0] <= dot.low <= dot.x <= dot.high <= plot.ticks[-1][0] for dot in plot.dots)


def test_the_terminal_shows_the_same_numbers(report):
    console = Console(file=StringIO(), width=200)
    for table in report_lines(report):
        console.print(table)
    text = console.file.getvalue()
    for row in report.catalogue.rows:
        assert format_estimate(row.metrics[report.primary_metric]) in text
    assert "headroom gained" in text
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
    page, shown = Page(report_page(report)), " ".join(console.file.getvalue().split())
    for section in report.sampled:
        assert f"Sampled: {section.name}" in page.text
        for text in (section.candidates, format_estimate(section.rows[1].metrics["sampled/ndcg@10"])):
            assert text in shown
        assert section.candidates in page.text
    write_report(report, tmp_path)
    assert load_report(tmp_path / "report.json").sampled == report.sampled


@pytest.mark.slow
def test_a_browser_draws_the_page(report, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    write_report(report, tmp_path)
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        *quiet,
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    drawn = subprocess.run(
        [*command, "--dump-dom", (tmp_path / "report.html").as_uri()], capture_output=True, text=True, timeout=120
    )
    assert drawn.stdout.count("<circle") == len(report.catalogue.rows)
    assert report.verdict[0] in drawn.stdout


def test_the_page_shows_slices_and_watch_time():
    window, truth, before = world()
    rows = window.candidates
    seconds = np.tile(np.arange(1, 61, dtype=np.float32), 10)
    watched = Watched(rows, watch_s=seconds / 2, length_s=seconds[::-1].copy(), gain=seconds.astype(float))
    halves = Slicing("half", window.relevant.lines % 2, ("even users", "<odd users>"))
    report = report_of(window, truth, before, options=EvaluationOptions(slicings=(halves,), watched=watched))
    text = Page(report_page(report)).text
    for shown in ("half: even users", "half: <odd users>", "under 100", "xauc", "wtg@5"):
        assert shown in text
    assert report.watch_time.by_length[0].first_s == 1
    assert "watch_time/xauc" in report.metrics_of("model")
