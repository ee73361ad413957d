"""Evaluation windows: relevant pairs, seen items and candidates, of days and of each user's last events."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from tests.prepare.tables import JUDGED, TEST, TRAIN, log_of, prepared
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import load_dataset
from twofold.dataset.vocabulary import Vocabulary
from twofold.evaluate.baselines import own_again, positives_before
from twofold.evaluate.evaluate_window import evaluation_options
from twofold.evaluate.evaluation_setup import digests_of
from twofold.evaluate.peers import Recency
from twofold.evaluate.slices import slicings_of
from twofold.evaluate.watch_time import watched_rows
from twofold.evaluate.window import (
    EvaluationWindow,
    PerUser,
    evaluation_window,
    smaller_window,
    without_short_lists,
)
from twofold.ragged import Ragged
from twofold.recipe.features import Features

FEATURES = Features.model_validate({"user": [{"kind": "history", "events": "positives"}], "item": [{"kind": "id"}]})


def test_a_window_of_too_many_scores_keeps_some_users_who_have_something_to_find() -> None:
    users, items = 50, 10
    labels = np.arange(users) % 3 == 0
    window = EvaluationWindow(
        name="validation",
        user_rows=np.arange(users) + 100,
        query_at=np.arange(users) + 1000,
        seen=Ragged(np.arange(users) % items, np.arange(users + 1)),
        relevant=Ragged(np.arange(users // 2) % items, np.repeat(np.arange(users // 2 + 1), 2)[: users + 1]),
        candidates=Ragged(np.arange(users) % items, np.arange(users + 1)),
        labels=labels,
        num_items=items,
        is_cold=np.zeros(items, bool),
        track="query_time",
    )
    assert smaller_window(window, most_scores=users * items) is window
    small = smaller_window(window, most_scores=12 * items + 3)
    kept = small.user_rows - 100
    assert len(kept) == 12
    assert len(set(kept.tolist())) == 12
    assert (small.relevant.sizes == 1).all()
    assert small.query_at.tolist() == (kept + 1000).tolist()
    assert small.seen.values.tolist() == small.candidates.values.tolist() == (kept % items).tolist()
    assert small.relevant.values.tolist() == window.relevant.of(kept).values.tolist()
    assert small.labels.tolist() == labels[kept].tolist()
    again = smaller_window(window, most_scores=12 * items)
    assert again.user_rows.tolist() == small.user_rows.tolist()
    # Where all who have something to find fit, they alone are kept.
    assert len(smaller_window(window, most_scores=users * items - 1).user_rows) == users // 2


def test_a_user_is_judged_by_the_last_event_and_knows_all_before_it(tmp_path: Path) -> None:
    # User 1 meets items 0 to 4, user 2 items 4 to 1, later; users 8 and 9, who meet item 100 twice, only teach.
    rows = [(1, item, TRAIN + item, True) for item in range(5)]
    rows += [(2, 4 - place, TRAIN + 100 + place, True) for place in range(4)]
    out = prepared(tmp_path, log_of(rows), split={"kind": "last_n"})
    (tmp_path / "dataset").mkdir()
    build_dataset(out, FEATURES, tmp_path / "dataset", time_zone="UTC")
    arrays = load_dataset(tmp_path / "dataset")
    window = evaluation_window(arrays, "test")
    users, items = arrays.users.ids, arrays.items.ids

    def listed(ragged, line):
        return {items[int(row)].as_py() for row in ragged.values[ragged.offsets[line] : ragged.offsets[line + 1]]}

    assert [users[int(row)].as_py() for row in window.user_rows] == [1, 2]
    assert [listed(window.relevant, line) for line in (0, 1)] == [{4}, {1}]
    assert [listed(window.seen, line) for line in (0, 1)] == [{0, 1, 2, 3}, {4, 3, 2}]
    assert window.track == "time_free"
    # What the baselines may learn from: of a judged user what came before the question, of all others everything.
    known = positives_before(arrays, window, first_at=None)
    found = {
        (users[int(user)].as_py(), items[int(item)].as_py())
        for user, item in zip(known.user_rows, known.item_rows, strict=True)
    }
    assert found == {(1, item) for item in range(4)} | {(2, item) for item in (4, 3, 2)} | {
        (user, 100) for user, *_ in JUDGED
    }
    # The last days are counted back from each user's own question: when user 1 asks, user 2 has liked nothing yet.
    assert known.until[window.user_rows].tolist() == window.query_at.tolist()
    recent = Recency(known, 1).scores(window.user_rows)[:, items_of(arrays, range(5))]
    np.testing.assert_allclose(recent, np.log1p([[1, 1, 1, 1, 0], [1, 1, 2, 2, 1]]), rtol=1e-6)
    before_both = Recency(positives_before(arrays, window, first_at=TRAIN + 2), 1).scores(window.user_rows)
    np.testing.assert_allclose(before_both[:, items_of(arrays, range(5))], np.log1p([[1, 1, 0, 0, 0]] * 2), rtol=1e-6)
    everything = positives_before(arrays, window, first_at=np.iinfo(np.int64).max)
    assert len(everything.at) == len(rows) + len(JUDGED)


def items_of(arrays, ids):
    """Returns the rows of items."""
    return arrays.items.rows_of(pa.array(list(ids), arrays.items.ids.type))


def three_kinds(tmp_path):
    """User 1 meets items 0 to 9 in training, item i being i + 1 seconds long and watched by the half; 8 and 9 teach.

    On the day of test users 1 and 2, who is new, like items 10 and 11, which are new.
    """
    seconds = [float(item + 1) for item in range(10)]
    rows = [(1, item, TRAIN + item, True) for item in range(10)]
    rows += [(user, item, TEST + item, True) for user in (1, 2) for item in (10, 11)]
    rows += [(9, 0, TRAIN, True)]
    length = seconds + [20.0, 40.0] * 2 + [1.0]
    log = log_of(rows, watch_s=[each / 2 for each in length], length_s=length)
    out = prepared(tmp_path, log)
    (tmp_path / "dataset").mkdir()
    build_dataset(out, FEATURES, tmp_path / "dataset", time_zone="UTC")
    arrays = load_dataset(tmp_path / "dataset")
    return arrays, evaluation_window(arrays, "test")


def groups(slicing):
    return [slicing.names[group] if group >= 0 else None for group in slicing.group]


def test_slices_of_users_and_items_are_those_of_the_log(tmp_path):
    arrays, window = three_kinds(tmp_path)
    users = [arrays.users.ids[int(row)].as_py() for row in window.user_rows[window.relevant.lines]]
    tables = [
        pa.table({"user_id": [9, 8, 2, 1], "city": ["b", "b", "b", "a"], "born": [1, 2, 3, 4]}),
        pa.table({"item_id": [10, 11], "language": ["hi", "en"], "tags": [["x"], ["y"]]}),
    ]
    found = {
        slicing.name: dict(zip(users, groups(slicing), strict=True))
        for slicing in slicings_of(arrays, window, tables=tables, columns=["city", "born", "tags"])
    }
    assert found["user activity"][1] == "10 to 50 items seen"
    assert found["user activity"][2] == "cold: none seen"
    assert found["item age, days"][1] == "below 1 days"
    assert found["item popularity"][1] == "cold: no training event"
    assert (found["city"][1], found["city"][2]) == ("a", "b")
    assert "tags" not in found
    assert "user.city" not in found
    speaks = pa.table({"user_id": [1, 2, 8], "language": ["hi", "bn", "bn"]})
    of_items, of_users = slicings_of(arrays, window, tables=[tables[1], speaks], columns=["language"])[-2:]
    assert (of_items.name, of_users.name) == ("language", "user.language")
    assert dict(zip(users, groups(of_users), strict=True)) == {1: "hi", 2: "bn"}
    languages = slicings_of(arrays, window, tables=tables, columns=["language"])[-1]
    items = [arrays.items.ids[int(row)].as_py() for row in window.relevant.values]
    known = {"100": None, "10": "hi", "11": "en"}
    assert groups(languages) == [known[str(item)] for item in items]


def test_of_a_declared_column_with_many_values_the_commonest_are_told_apart(tmp_path):
    arrays, window = three_kinds(tmp_path)
    tables = [pa.table({"item_id": list(range(13)), "made": [f"in {each:02}" for each in range(13)]})]
    (*_, last) = slicings_of(arrays, window, tables=tables, columns=[], declared=["made"])
    assert last.names == ("in 10", "in 11", *(f"in {each:02}" for each in range(9)), "other values")
    items = [arrays.items.ids[int(row)].as_py() for row in window.relevant.values]
    assert groups(last) == [f"in {item}" if item in (10, 11) else None for item in items]
    assert "made" not in {each.name for each in slicings_of(arrays, window, tables=tables, columns=["made"])}
    options = evaluation_options(arrays, window, tables=tables, with_target=False, columns=["made"])
    known = [int(item) if int(item) < 13 else -1 for item in arrays.items.ids.to_pylist()]
    assert options.groups["made"].tolist() == known


def test_watched_rows_are_those_of_known_length_with_gains_of_training(tmp_path):
    arrays, window = three_kinds(tmp_path)
    watched = watched_rows(arrays, window, with_target=False)
    assert watched.target is None
    lists = [watched.length_s[first:end].tolist() for first, end in itertools.pairwise(watched.item_rows.offsets)]
    ids = [arrays.users.ids[int(row)].as_py() for row in window.user_rows]
    assert dict(zip(ids, lists, strict=True)) == {1: [20, 40], 2: [20, 40], 8: [], 9: []}
    assert watched.watch_s.tolist() == [10, 20, 10, 20]


def test_a_log_without_watch_times_has_nothing_watched(tmp_path):
    out = prepared(tmp_path, log_of([(1, 0, TRAIN, True), (2, 1, TRAIN, True)]))
    (tmp_path / "dataset").mkdir()
    build_dataset(out, FEATURES, tmp_path / "dataset", time_zone="UTC")
    arrays = load_dataset(tmp_path / "dataset")
    assert watched_rows(arrays, evaluation_window(arrays, "test"), with_target=False) is None


def renumbered(arrays, window):
    """Returns a data set and its window with users, items and lists in the opposite order."""
    order = np.arange(len(window.user_rows))[::-1]
    lists = {name: getattr(window, name).of(order) for name in ("seen", "relevant", "candidates")}
    own = {name: Ragged(len(arrays.items) - 1 - each.values, each.offsets) for name, each in lists.items()}
    turned = replace(
        window,
        user_rows=len(arrays.users) - 1 - window.user_rows[order],
        query_at=window.query_at[order],
        labels=Ragged(window.labels, window.candidates.offsets).of(order).values,
        **own,
    )
    ids = {name: Vocabulary(getattr(arrays, name).ids[::-1], num_known=0) for name in ("users", "items")}
    return replace(arrays, **ids), turned


def test_what_is_evaluated_has_one_digest_however_rows_are_numbered(tmp_path):
    arrays, window = three_kinds(tmp_path)
    window = replace(window, labels=np.arange(len(window.labels)) % 3 == 0)
    assert digests_of(*renumbered(arrays, window)) == digests_of(arrays, window)


def test_each_digest_follows_what_it_is_of(tmp_path):
    arrays, window = three_kinds(tmp_path)

    def changed(own=arrays, **parts):
        before, after = digests_of(arrays, window), digests_of(own, replace(window, **parts))
        return {name for name in ("relevant", "ranked", "impressions") if getattr(before, name) != getattr(after, name)}

    assert changed() == set()
    nothing = Ragged(np.zeros(0, np.int64), np.zeros_like(window.relevant.offsets))
    assert changed(relevant=nothing) == {"relevant"}
    assert changed(seen=nothing) == {"ranked"}
    assert changed(labels=~window.labels) == {"impressions"}
    shifted = Ragged((window.candidates.values + 1) % window.num_items, window.candidates.offsets)
    assert changed(candidates=shifted) == {"impressions"}
    texts = Vocabulary(arrays.items.ids.cast(pa.string()), num_known=arrays.items.num_known)
    assert changed(replace(arrays, items=texts)) == {
        "ranked",
        "impressions",
    }  # ids of another type are in another order


def test_metrics_at_a_k_that_most_lists_do_not_reach_are_left_out_with_the_reason():
    values = {"auc": np.array([0.5, 0.7, 0.6, np.nan]), "ndcg@2": np.ones(4), "ndcg@5": np.ones(4)}
    values = {name: np.where(np.isnan(values["auc"]), np.nan, value) for name, value in values.items()}
    found = PerUser(values, 3, {})
    short = without_short_lists(found, np.array([2, 3, 9, 90]))
    assert list(short.values) == ["auc", "ndcg@2"]
    assert short.absent == {5: "half of the lists have at most 3 items"}
    assert without_short_lists(found, np.array([1, 1, 9, 90])).absent[5] == "half of the lists have at most 1 item"
    assert without_short_lists(found, np.array([5, 5, 9, 1])).absent == {}  # the last user is not evaluated
    nobody = PerUser({"ndcg@5": np.array([np.nan])}, 0, {})
    assert without_short_lists(nobody, np.array([1])) is nobody


def test_items_that_were_met_are_ranked_again_if_the_recipe_says_so(tmp_path):
    rows = [(1, 0, TRAIN, True), (1, 1, TRAIN, True), (1, 1, TRAIN + 1, True), (2, 2, TRAIN, True)]
    rows += [(1, 0, TEST, True), (1, 2, TEST, True)]
    out = prepared(tmp_path, log_of(rows))
    (tmp_path / "dataset").mkdir()
    build_dataset(out, FEATURES, tmp_path / "dataset", time_zone="UTC")
    arrays = load_dataset(tmp_path / "dataset")
    line = int(arrays.users.rows_of([1])[0])
    new, again = (evaluation_window(arrays, "test", includes_seen=each) for each in (False, True))
    at = np.flatnonzero(new.user_rows == line)
    assert [set(window.relevant.of(at).values.tolist()) for window in (new, again)] == [
        set(items_of(arrays, [2]).tolist()),
        set(items_of(arrays, [0, 2]).tolist()),
    ]
    assert len(again.seen.values) == 0
    scores = own_again(positives_before(arrays, again, first_at=TEST), again.user_rows)(slice(0, len(again.user_rows)))
    best = np.argsort(-scores[int(at[0])])[:2]
    assert best.tolist() == items_of(arrays, [1, 0]).tolist()  # item 1 was liked twice
