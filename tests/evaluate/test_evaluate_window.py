"""The whole report of a small world: rows, bounds, words, and what a window must have."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from rich.table import Table

from tests.small_peers import shrink_ials
from twofold.errors import DataError, RunError
from twofold.evaluate import peer_tuning
from twofold.evaluate.baseline_results import Headline, LeftOut
from twofold.evaluate.evaluate_window import AllowedItems, EvaluationOptions, evaluate_window
from twofold.evaluate.headline_metrics import deciding_metrics, primary_k
from twofold.evaluate.peer_tuning import tune_peers
from twofold.evaluate.peers import Interactions
from twofold.evaluate.report_tables import report_lines
from twofold.evaluate.results import load_report, write_report
from twofold.evaluate.scores import FIRST_STAGE
from twofold.evaluate.significance import Estimate
from twofold.evaluate.summary_text import badge_sentence, summary_sentences
from twofold.evaluate.window import EvaluationWindow
from twofold.ragged import Ragged
from twofold.render.numbers import format_decimal

FACTS = {
    "recipe": "world",
    "recipe_digest": "ab" * 32,
    "commit": "1234567",
    "hardware": "2 × a processor, 8 GiB",
    "precision": "float32",
    "versions": {"twofold": "0.1.0"},
    "seconds": {"prepare": 1.0},
    "funnel": [
        {
            "name": "the log",
            "scope": "log",
            "rows": 8,
            "users": 3,
            "items": 4,
            "positives": 2,
            "positive_share": 0.25,
            "removed": 0,
        }
    ],
    "not for the report": 1,
}


def world(*, users=150, num_items=60, seed=0):
    """Users whose relevant item is known to `truth`; what they liked before is noise."""
    rng = np.random.default_rng(seed)
    items = np.argsort(rng.random((users, num_items)), axis=1)
    seen, relevant, other = items[:, :5], items[:, 5:7], items[:, 7:9]
    candidates = np.concatenate([relevant, other], axis=1)
    window = EvaluationWindow(
        name="test",
        user_rows=np.arange(users),
        query_at=np.full(users, 10 * 86_400_000),
        seen=Ragged(seen.reshape(-1), np.arange(users + 1) * 5),
        relevant=Ragged(relevant.reshape(-1), np.arange(users + 1) * 2),
        candidates=Ragged(candidates.reshape(-1), np.arange(users + 1) * 4),
        labels=np.tile([True, True, False, False], users),
        num_items=num_items,
        is_cold=np.arange(num_items) < 6,
        track="query_time",
    )
    truth = rng.random((users, num_items)).astype(np.float32)
    np.put_along_axis(truth, relevant, 2 + truth[:, :2], axis=1)
    times = np.full(users * 5, 9 * 86_400_000)
    until = np.full(users, 10 * 86_400_000)
    before = Interactions(np.repeat(np.arange(users), 5), seen.reshape(-1), times, until, users, num_items)
    return window, truth, before


def tuned(**kwargs):
    """Returns constants chosen on a world whose users had seen two items fewer, which are then to be found."""
    window, _, before = world(**kwargs)
    metrics = deciding_metrics(window.num_items)
    with pytest.MonkeyPatch.context() as monkeypatch:
        shrink_ials(monkeypatch)
        return tune_peers(replace(window, name="validation"), before, metrics=metrics)


@cache
def usual_constants():
    """Returns `tuned` constants, chosen once a process."""
    return tuned(seed=1)


def report_of(window, scores, before, **kwargs):
    judged = evaluate_window(window, lambda users: scores[users].copy(), before, batch_size=32, facts=FACTS, **kwargs)
    return judged.report


@pytest.fixture(scope="module")
def report():
    return report_of(*world(), options=EvaluationOptions(tuning=usual_constants()))


BASELINES = (
    "random",
    "popularity",
    "popularity of the last days",
    "item-kNN",
    "item-kNN with recency",
    "EASE",
    "EASE with recency",
    "iALS",
    "iALS with recency",
)


def test_a_model_that_knows_is_above_every_row(report):
    assert report.beats_all
    assert [row.name for row in report.catalogue.rows] == ["model", *BASELINES]
    assert report.baselines == BASELINES
    assert report.primary_metric == "catalogue/recall@5"
    assert report.metrics_of("model")["catalogue/recall@5"] == 1
    assert report.metrics_of("model")["impressions/auc"] == 1
    assert "in_batch/hit_rate@10" in report.metrics_of("model")
    recall, ndcg = report.headlines
    assert (recall.metric, ndcg.metric) == ("catalogue/recall@5", "catalogue/ndcg@5")
    values = {row.name: row.metrics["catalogue/ndcg@5"].value for row in report.catalogue.rows[1:]}
    assert ndcg.baseline == max(values, key=values.get)
    assert report.badge == (
        f"Recall@5: better than the best baseline, {recall.baseline}. "
        f"NDCG@5: better than the best baseline, {ndcg.baseline}."
    )
    text = "\n".join(str(part) for part in report_lines(report))
    assert text.startswith("Recall@5 1.000 [1.000, 1.000]: ")


def test_every_difference_is_model_minus_row_on_the_same_users(report):
    model, *others = report.catalogue.rows
    assert not model.model_minus
    for row in others:
        for metric, gap in row.model_minus.items():
            assert gap.value == pytest.approx(model.metrics[metric].value - row.metrics[metric].value)
            assert gap.low <= gap.value <= gap.high


def test_bounds_and_headroom_stand_beside_the_impressions(report):
    for bounds in report.impressions.bounds.values():
        assert 0 < bounds.chance < bounds.best <= 1
    mrr = report.impressions.bounds["impressions/mrr"]
    value = report.metrics_of("model")["impressions/mrr"]
    assert mrr.best < 1  # a mean over all positives, of which one alone can be first
    assert mrr.headroom == pytest.approx((value - mrr.chance) / (mrr.best - mrr.chance))
    assert not report.catalogue.bounds


def test_what_was_judged_is_stated(report):
    window, _, _ = world()
    assert (report.catalogue.num_items, report.catalogue.users_judged, report.track) == (60, 150, "query_time")
    assert report.cold_items == 6
    assert report.cold_relevant_share == pytest.approx((window.relevant.values < 6).mean())
    assert report.in_batch.batch_size == 32
    assert [line.k for line in report.in_batch.lines] == [1, 5, 10, 20]
    assert report.in_batch.sentence.startswith("A batch of 32 is a smaller and different exam: its ")


def test_a_random_model_is_not_significantly_different():
    window, truth, before = world()
    noise = np.random.default_rng(9).random(truth.shape).astype(np.float32)
    report = report_of(window, noise, before, options=EvaluationOptions(tuning=usual_constants()))
    assert not report.beats_all
    assert "not significantly different from" in report.badge
    assert all(": not significantly different from the best baseline, " in each for each in report.verdict[:2])


def test_parts_and_variants_of_the_model_are_no_baselines():
    window, truth, before = world()
    variants = {name: (lambda users: truth[users].copy()) for name in (FIRST_STAGE, "both stages without ids")}
    report = report_of(window, truth, before, options=EvaluationOptions(tuning=usual_constants(), others=variants))
    assert report.catalogue.rows[-1].name == "both stages without ids"
    assert report.baselines == BASELINES
    assert report.beats_all  # though the model is not better than its own first stage, which is as good
    assert not any("stage" in sentence or "retriever" in sentence for sentence in (report.badge, *report.verdict))


def headline(metric, value, best, gap):
    return Headline(metric, Estimate(value, value - 0.01, value + 0.01), "EASE", Estimate(best, None, None), gap)


def test_the_words_of_a_comparison(report):
    def words(*gap, value=0.386, best=0.353):
        compared = headline("catalogue/hit_rate@10", value, best, Estimate(*gap))
        sentences = summary_sentences([compared], report.catalogue, report.impressions, baselines=["EASE"], left_out=[])
        return badge_sentence([compared], []), sentences[0]

    assert words(0.033, 0.02, 0.05) == (
        "Hit rate@10: better than the best baseline, EASE.",
        "Hit rate@10 0.386 [0.376, 0.396]: 9.3 % better than the best baseline, EASE 0.353 (difference +0.033 "
        "[0.020, 0.050]).",
    )
    assert words(-0.033, -0.05, -0.02) == (
        "Hit rate@10: worse than the best baseline, EASE.",
        "Hit rate@10 0.386 [0.376, 0.396]: 9.3 % worse than the best baseline, EASE 0.353 (difference −0.033 "
        "[−0.050, −0.020]).",
    )
    same = "Hit rate@10 0.386 [0.376, 0.396]: not significantly different from the best baseline, EASE 0.353 ("
    assert words(0.004, -0.01, 0.02)[1] == same + "difference +0.004 [−0.010, 0.020])."
    assert words(0.0, 0.0, 0.0)[1] == same + "difference 0.000 [0.000, 0.000])."
    # A baseline that finds nothing has no percentage.
    assert ": better than the best baseline, EASE 0.000 " in words(0.386, 0.37, 0.4, best=0.0)[1]


def test_a_group_of_items_has_a_baseline():
    window, truth, before = world()
    report = report_of(window, truth, before, options=EvaluationOptions(groups={"language": np.arange(60) % 3}))
    assert report.baselines[3] == "popularity, own language"


def test_a_missing_baseline_is_named_and_is_never_a_green_badge(monkeypatch):
    window, truth, before = world()
    monkeypatch.setattr(peer_tuning, "EASE_MAX_ITEMS", 59)
    report = report_of(window, truth, before, options=EvaluationOptions(tuning=tuned(seed=1)))
    reason = "its cost is cubic in the number of items, so it is limited to 59 items"
    assert report.left_out == (LeftOut("EASE", reason), LeftOut("EASE with recency", reason))
    assert all(each.is_better for each in report.headlines)
    assert not report.beats_all
    assert report.badge.endswith(". Not run: EASE, EASE with recency.")
    assert f"Not run: EASE ({reason})." in report.verdict
    assert f"Not run: EASE ({reason})." in "\n".join(str(part) for part in report_lines(report))


def test_the_largest_log_that_ials_is_fitted_to_has_a_limit(monkeypatch):
    window, truth, before = world()
    monkeypatch.setattr(peer_tuning, "IALS_MAX_POSITIVES", 3)
    report = report_of(window, truth, before)
    assert LeftOut("iALS", "as a baseline it is limited to 3 positives") in report.left_out


def test_without_a_validation_window_no_recency_is_run_and_the_constants_are_fixed():
    report = report_of(*world())
    names = [f"{name} with recency" for name in ("item-kNN", "EASE", "iALS")]
    assert [each.name for each in report.left_out] == names
    assert not report.beats_all
    assert report.tuning.constants_of("EASE") == {"l2": 500}


def test_allowed_items_are_evaluated_on_the_same_users_beside_their_ceiling():
    window, truth, before = world()
    allowed = np.arange(60) < 30
    report = report_of(
        window, truth, before, options=EvaluationOptions(allowed_items=AllowedItems("number < 30", allowed))
    )
    section = report.filtered
    ceiling = np.array([allowed[own].mean() for own in window.relevant.values.reshape(-1, 2)]).mean()
    assert (section.where, section.items, section.ceiling.value) == ("number < 30", 30, pytest.approx(ceiling))
    line = next(line for line in section.lines if line.metric == "catalogue_filtered/recall@5")
    # The truth finds all that may be found.
    assert (line.whole.value, line.filtered.value) == (1, pytest.approx(ceiling))
    assert line.minus.value == pytest.approx(ceiling - 1)
    assert report.metrics_of("model")["catalogue_filtered/recall@5"] == line.filtered.value
    held = f"which contain {format_decimal(ceiling)} of the relevant items: "
    words = f"index.where: number < 30 allows 30 of 60 items, {held}"
    assert report.verdict[-1].startswith(words + f"catalogue recall@5 is {format_decimal(ceiling)} [")


def test_a_window_of_few_users_says_so():
    report = report_of(*world(users=7))
    assert any(sentence.startswith("Only 7 users could be evaluated") for sentence in report.verdict)


def test_one_user_one_item():
    window = EvaluationWindow(
        name="test",
        user_rows=np.array([0]),
        query_at=np.array([5]),
        seen=Ragged(np.zeros(0, np.int64), np.array([0, 0])),
        relevant=Ragged(np.array([0]), np.array([0, 1])),
        candidates=Ragged(np.array([0]), np.array([0, 1])),
        labels=np.array([True]),
        num_items=1,
        is_cold=np.array([True]),
        track="time_free",
    )
    nothing = Interactions(*(np.zeros(0, np.int64) for _ in range(3)), np.array([5]), 1, 1)
    report = report_of(window, np.zeros((1, 1), np.float32), nothing)
    assert report.metrics_of("model")["catalogue/recall@1"] == 1
    assert report.impressions.users_judged == 0
    assert "impressions/auc" not in report.metrics_of("model")
    assert "AUC on shown items: undefined, because no user has both a positive" in report.verdict[-1]
    titles = [str(part.title) for part in report_lines(report) if isinstance(part, Table)]
    assert [title.partition(" ·")[0] for title in titles] == ["catalogue", "in-batch"]


def test_a_window_in_which_all_positives_were_seen_is_refused():
    window, truth, before = world(users=3)
    nothing = replace(window, relevant=Ragged(np.zeros(0, np.int64), np.zeros(4, np.int64)))
    with pytest.raises(DataError, match="the 3 users of window 'test' have no positive"):
        report_of(nothing, truth, before)


def test_the_same_seed_gives_the_same_report(report):
    assert report_of(*world(), options=EvaluationOptions(tuning=tuned(seed=1))) == report


def test_the_file_is_the_report(report, tmp_path):
    write_report(report, tmp_path)
    assert load_report(tmp_path / "report.json") == report


def test_a_damaged_or_missing_report_is_named(report, tmp_path):
    write_report(report, tmp_path)
    path = tmp_path / "report.json"
    content = json.loads(path.read_text())
    del content["catalogue"]["num_items"]
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"report\.json is not a report: catalogue\.num_items: .*Delete its folder"):
        load_report(path)
    path.write_text("{")
    with pytest.raises(RunError, match=r"report\.json is not a report: the file: .*again"):
        load_report(path)
    path.unlink()
    with pytest.raises(RunError, match=r"there is no report .*report\.json.*`twofold run`"):
        load_report(path)


def test_the_headline_of_a_small_catalogue_is_no_free_gift():
    assert [primary_k(items) for items in (1, 9, 50, 60, 300, 999, 1000, 10**6)] == [1, 1, 5, 5, 20, 50, 100, 100]


def test_metrics_of_lists_shorter_than_k_are_not_given_and_the_page_says_why(report):
    reason = "half of the lists have at most 4 items"
    assert report.impressions.absent == dict.fromkeys((5, 10, 50, 100), reason)
    assert set(report.impressions.bounds) == {"impressions/auc", "impressions/mrr", "impressions/map"}
    assert not {name for name in report.metrics_of("model") if name.startswith("impressions/") and "@" in name}
    assert report.catalogue.absent == dict.fromkeys((100, 200, 500), "half of the users have at most 55 unseen items")
    assert "catalogue/recall@50" in report.metrics_of("model")


def test_a_reason_survives_the_file(report, tmp_path):
    write_report(report, tmp_path)
    assert load_report(tmp_path / "report.json").impressions.absent == report.impressions.absent
