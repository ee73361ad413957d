"""Sections of a run's page that show its report: the page stands alone and escapes what it shows."""

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.browser import Browser
from tests.evaluate.test_evaluate_window import report_of, usual_constants, world
from tests.worlds import world_recipe
from twofold.evaluate.baseline_results import LeftOut
from twofold.evaluate.calibration import Seconds, evaluate_head
from twofold.evaluate.evaluate_window import AllowedItems, EvaluationOptions
from twofold.evaluate.results import load_report, write_report
from twofold.evaluate.sampled import Negatives, draw_negatives
from twofold.evaluate.slices import Slicing
from twofold.evaluate.summary_text import format_difference, format_estimate
from twofold.evaluate.watch_time import Watched
from twofold.page.run_page import RunPage, run_page
from twofold.render.numbers import format_decimal

DATA = {"kind": "table", "events": "/events.parquet"}


def report_page(report, **parts):
    """Returns the page of a run of which only the report exists."""
    recipe = world_recipe(DATA, parts)
    nothing = {"comment": None, "base": None, "gap": None, "probes": None, "map": None, "picture": None}
    empty = {"changes": (), "windows": (), "funnel": (), "curves": ()}
    return run_page(RunPage(recipe=recipe, digest="ab" * 32, report=report, **nothing, **empty))


class Page(HTMLParser):
    """Tags and the text between them; an unclosed tag is a mistake."""

    VOID = frozenset({"meta", "circle", "path"})

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
    return report_of(*world(), options=EvaluationOptions(tuning=usual_constants()))


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
    assert 'id="heads"' not in report_page(report)
    write_report(with_heads, tmp_path)
    assert load_report(tmp_path / "report.json") == with_heads
    assert with_heads.metrics_of("model")["heads/long/ratio"] == pytest.approx(1.6)


def test_the_page_shows_tiles_rows_bounds_and_facts(report):
    page = Page(report_page(report))
    for row in report.catalogue.rows:
        assert format_estimate(row.metrics[report.primary_metric]) in page.text
    for text in (
        "Recall@5",
        "NDCG@5",
        "AUC on shown items",
        "Not measured yet: run twofold explain.",
        "model's way from random to perfect",
        "perfect order",
        "2 × a processor, 8 GiB",
        report.tie_rule,
        "150 users evaluated",
    ):
        assert text in page.text


def test_the_page_asks_nobody_for_anything(report):
    page = Page(report_page(report))
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "img", "iframe")]
    assert not [attrs for _, attrs in page.tags if {"src", "href"} & attrs.keys() and attrs["href"][:1] != "#"]
    policy = [attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    assert "url(" not in report_page(report)


def test_every_entry_of_the_index_has_its_section(report):
    page = Page(report_page(report))
    targets = {attrs["href"][1:] for tag, attrs in page.tags if tag == "a"}
    assert targets == {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {"top", "catalogue", "impressions", "in-batch", "run"} <= targets
    assert not {"gap", "probes", "map", "training"} & targets  # the run does not have them


def test_names_are_escaped(report):
    hostile = "<script>alert(1)</script>"
    planted = replace(report, facts=replace(report.facts, commit="&lt;b&gt;"))
    page = Page(report_page(planted, name="world", about=hostile))
    assert "script" not in [tag for tag, _ in page.tags]
    assert hostile in page.text
    assert "&lt;b&gt;" in page.text


def tile(page, title):
    """The text of one tile."""
    start = page.index(f'<span class="what">{title}')
    return page[page.rindex("<div", 0, start) : page.index("</div>", start)]


def test_a_tile_names_the_best_peer_and_the_outcome(report):
    best = max(report.catalogue.rows[2:], key=lambda row: row.metrics["catalogue/recall@5"].value)
    better = tile(report_page(report), "Recall@5")
    assert 'class="tile better"' in better
    assert f"best peer: {best.name} " in better
    assert f"better than {best.name}: difference {format_difference(best.model_minus['catalogue/recall@5'])}." in better


def test_a_model_below_a_peer_is_not_shown_as_good():
    window, truth, before = world()
    shown = tile(report_page(report_of(window, -truth, before)), "Recall@5")
    assert 'class="tile worse"' in shown
    assert "100 % worse than " in shown


def test_the_plot_shows_differences_without_the_random_row(report):
    page = report_page(report)
    plot = page[page.index("<figure") : page.index("</figure>")]
    names = [row.name for row in report.catalogue.rows[2:]]
    assert plot.count('class="dot"') == len(names)
    assert all(name in plot for name in names)
    assert "random" not in plot
    for row in report.catalogue.rows[2:]:
        assert format_difference(row.model_minus["catalogue/recall@5"]) in plot


def test_sampled_ranking_has_its_own_section(report):
    window, truth, before = world()
    popular = np.bincount(before.item_rows, minlength=window.num_items).astype(np.float64)
    drawn = (Negatives("popularity", 0, draw_negatives(window, 20, seed=0, weights=popular)),)
    sampled = report_of(window, truth, before, options=EvaluationOptions(sampled=drawn))
    text = Page(report_page(sampled)).text
    assert "popularity-20 Each positive is ranked among" in text
    assert sampled.sampled[0].candidates in text
    assert 'id="sampled"' not in report_page(report)


def test_what_limits_the_comparison_is_said_at_the_top(report):
    limited = replace(report, left_out=(LeftOut("iALS", "as a baseline it is limited to 3 positives"),))
    page = Page(report_page(limited)).text
    assert "Not run: iALS (as a baseline it is limited to 3 positives)." in page
    assert "Not run" not in report_page(report)
    few = "Only 7 users could be evaluated: rely on the intervals, not on the values."
    assert few in report_page(report_of(*world(users=7)))
    assert "could be evaluated" not in report_page(report)


def test_allowed_items_are_named(report):
    rule = AllowedItems("number < 30", np.arange(60) < 30)
    page = Page(report_page(report_of(*world(), options=EvaluationOptions(allowed_items=rule)))).text
    assert "The recipe allows only items where number < 30 : 30 of 60 at the time of the window" in page
    assert 'id="allowed"' not in report_page(report)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 760, 420])
def test_a_browser_draws_the_page_and_cuts_nothing_off(browser: Browser, report, tmp_path, width):
    (tmp_path / "run.html").write_text(report_page(report), encoding="utf-8")
    browser.resize(width)
    browser.open((tmp_path / "run.html").as_uri())
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.querySelectorAll('.tile').length") == 4
    boxes = "[...document.querySelectorAll('.box')].filter(box => box.checkVisibility())"
    assert browser.run(f"{boxes}.filter(box => box.scrollWidth > box.clientWidth + 1).map(box => box.innerText)") == []
    assert browser.requested == [(tmp_path / "run.html").as_uri()]


def test_the_page_shows_slices_and_watch_time():
    window, truth, before = world()
    rows = window.candidates
    seconds = np.tile(np.arange(1, 61, dtype=np.float32), 10)
    watched = Watched(rows, watch_s=seconds / 2, length_s=seconds[::-1].copy(), gain=seconds.astype(float))
    thirds = Slicing("part", np.minimum(window.relevant.lines % 6, 2) // 2, ("other users", "<most> users"))
    report = report_of(window, truth, before, options=EvaluationOptions(slicings=(thirds,), watched=watched))
    text = Page(report_page(report)).text
    for shown in ("part: <most> users", "part: other users", "XAUC", "The model by length of the item"):
        assert shown in text
    assert "<most> users 100 users" in text  # the plot has groups of 100 users or more
    assert "other users 50 users" not in text
    assert "WTG@5" not in text  # every list has 4 impressions
    assert report.watch_time.by_length[0].first_s == 1
    assert "watch_time/xauc" in report.metrics_of("model")


def test_a_part_of_the_model_is_no_peer_and_a_missing_peer_never_looks_like_success():
    window, truth, before = world()
    variants = {"retriever alone": lambda users: truth[users].copy()}
    options = EvaluationOptions(tuning=usual_constants(), others=variants)
    report = report_of(window, truth, before, options=options)
    page = report_page(report)
    assert page.count('class="tile better"') == 3
    assert "best peer: retriever alone" not in page
    missing = report_page(replace(report, left_out=(LeftOut("EASE", "the catalogue is large"),)))
    assert 'class="tile better"' not in missing
    text = Page(missing).text
    assert "Not run: EASE (the catalogue is large). So nothing here is better than every peer." in text
    assert text.count(" Not run: EASE. ") == 3
    peers = tuple(LeftOut(f"peer {number}", "the catalogue is large") for number in range(4))
    text = Page(report_page(replace(report, left_out=(*peers, LeftOut("iALS", "the recipe leaves it out"))))).text
    assert "Not run: peer 0, peer 1, peer 2, peer 3 (the catalogue is large); iALS (the recipe leaves it out)." in text
    assert text.count(" Not run: 5 peers. ") == 3


def test_the_page_says_which_model_its_numbers_are_of(report):
    assert "The model of all numbers here: two towers." in Page(report_page(report)).text
    chosen = replace(report, facts=replace(report.facts, served="two towers + iALS"))
    expected = "The model of all numbers here: two towers + iALS, the best on the validation window."
    assert expected in Page(report_page(chosen)).text


def test_the_page_shows_how_the_peers_were_tuned(report):
    text = Page(report_page(report)).text
    assert "chosen on the validation window (150 users), by the geometric mean of Recall@5 and NDCG@5" in text
    assert len(report.tuning.choices) == 7
    for choice in report.tuning.choices:
        (chosen,) = (trial for trial in choice.trials if trial.constants == choice.constants)
        row = [choice.name, choice.in_text, format_decimal(chosen.recall), format_decimal(chosen.ndcg)]
        assert " ".join([*row, str(len(choice.trials)), choice.remarks]).strip() in text
        assert all(trial.in_text in text for trial in choice.trials)
    text = Page(report_page(report_of(*world()))).text
    assert "There is no validation window to choose the hyperparameters on" in text
    assert "EASE l2 500 1 Not tuned" not in text
    assert "EASE l2 500 0 Not tuned: there is no validation window" in text
