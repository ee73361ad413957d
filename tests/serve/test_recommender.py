"""Recommendations of a tiny bundle whose scores can be computed by hand, and damaged or mixed bundles."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.serve.tiny import (
    EVENTS,
    HOUR_MS,
    ITEMS,
    NOON,
    VECTORS,
    best,
    replace_part,
    scores_of,
    write_run,
    write_tower,
)
from twofold.dataset.mapped_vocabulary import save_mapped
from twofold.dataset.vocabulary import Vocabulary
from twofold.errors import RequestError, RunError
from twofold.serve import Recommender, load
from twofold.serve.bundle import CONTEXT, USER_TOWER
from twofold.serve.live_bundle import open_live_bundle


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def recommender(run: Path) -> Recommender:
    return load(run)


def of_user(table: pa.Table, user: int | None) -> list[str]:
    return [row["item_id"] for row in table.to_pylist() if row["user_id"] == user]


def facts(table: pa.Table) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in table.schema.metadata.items()}


# --- recommendations --------------------------------------------------------------------------------------------------


def test_the_best_unseen_items_with_score_and_rank(recommender: Recommender) -> None:
    table = recommender.recommend([10], k=3)
    expected = scores_of(["a", "cold"], ["b"])
    assert table.column_names == ["user_id", "item_id", "score", "rank"]
    assert of_user(table, 10) == best(expected, without="a b cold", k=3)
    assert table["rank"].to_pylist() == [1, 2, 3]
    assert table["score"].to_pylist() == pytest.approx([expected[item] for item in of_user(table, 10)], abs=1e-5)
    assert facts(table) == {"lists": 1, "short_lists": 0, "unknown_items": 0, "at": NOON, "as_of": NOON}


def test_the_last_events_of_a_long_history_are_read_and_all_are_excluded(recommender: Recommender) -> None:
    table = recommender.recommend([20])
    assert of_user(table, 20) == best(scores_of(["e", "d", "c", "f"], []), without="c d e f")
    assert of_user(recommender.recommend([20], exclude_seen=False), 20) == best(scores_of(["e", "d", "c", "f"], []))


def test_a_user_without_history_gets_items_by_the_hour_and_one_who_has_seen_all_gets_none(
    recommender: Recommender,
) -> None:
    table = recommender.recommend([40, 30], k=7)
    assert of_user(table, 30) == best(scores_of([], []))
    assert of_user(table, 40) == []
    assert facts(table)["short_lists"] == 1


def test_a_request_time_in_the_past_reads_strictly_earlier_events_only(recommender: Recommender) -> None:
    table = recommender.recommend([10], at=2 * HOUR_MS)
    assert of_user(table, 10) == best(scores_of(["a"], [], hour=2), without="a")


def test_filter_and_candidates_restrict_the_list(recommender: Recommender) -> None:
    scores = scores_of([], [])
    assert of_user(recommender.recommend([30], where="colour = 'red'"), 30) == best(scores, without="b c e")
    assert of_user(recommender.recommend([30], items=["b", "d", "none"]), 30) == best(scores, without="a c e f cold")
    both = recommender.recommend([30], items=["b", "d", "none"], where="length_s > 15")
    assert of_user(both, 30) == ["d"]
    assert facts(both) == {"lists": 1, "short_lists": 1, "unknown_items": 1, "at": NOON, "as_of": NOON}


def test_items_outside_the_rule_of_a_bundle_are_never_recommended(tmp_path: Path) -> None:
    context = {"as_of": NOON, "where": "colour = 'red'", "include_seen": False}
    write_run(tmp_path / "red")
    replace_part(tmp_path / "red", CONTEXT, lambda path: path.write_text(json.dumps(context)))
    reds = load(tmp_path / "red")
    scores = scores_of([], [])
    assert of_user(reds.recommend([30]), 30) == best(scores, without="b c e")
    assert of_user(reds.recommend([30], where="length_s > 15"), 30) == best(scores, without="a b c e")
    assert of_user(reds.recommend([30], items=["b", "d"]), 30) == ["d"]
    assert "b" not in of_user(reds.recommend_for_history(["d"]), None)


def test_no_filter_undoes_the_rule_of_a_bundle(tmp_path: Path) -> None:
    write_run(tmp_path / "red")
    context = {"as_of": NOON, "where": "colour = 'red'", "include_seen": False}
    replace_part(tmp_path / "red", CONTEXT, lambda path: path.write_text(json.dumps(context)))
    live_bundle, filters = open_live_bundle(tmp_path / "red"), load(tmp_path / "red").bundle.filters
    assert live_bundle.rule(None) == "colour = 'red'"
    joined = live_bundle.rule("length_s > 15 OR TRUE")
    assert joined is not None
    assert filters.eligible(joined).count == filters.eligible("colour = 'red'").count
    for evil in ("TRUE) OR (TRUE", "TRUE) OR TRUE OR (TRUE"):
        with pytest.raises(RequestError, match="The filter cannot be used"):
            live_bundle.rule(evil)
        with pytest.raises(RequestError, match="The filter cannot be used"):
            load(tmp_path / "red").recommend([30], where=evil)


def test_a_batch_has_the_lists_of_its_users_alone_in_the_order_of_the_request(recommender: Recommender) -> None:
    users = [40, 20, 10, 30, 20]
    together = recommender.recommend(users, where="length_s < 32")
    alone = pa.concat_tables([recommender.recommend([user], where="length_s < 32") for user in users])
    assert together.to_pylist() == alone.to_pylist()
    assert recommender.recommend(pa.array(users), where="length_s < 32").equals(together)
    assert recommender.recommend([]).num_rows == 0


def test_an_id_given_as_text_is_read_as_a_number(recommender: Recommender) -> None:
    assert recommender.recommend(["10"]).equals(recommender.recommend([10]))


def test_a_posted_history_is_answered_as_that_of_a_known_user(recommender: Recommender) -> None:
    posted = recommender.recommend_for_history(["a", "cold"], negatives=["b"])
    known = recommender.recommend([10])
    assert posted["user_id"].null_count == len(posted)
    assert posted.drop_columns("user_id").to_pylist() == known.drop_columns("user_id").to_pylist()
    again = recommender.recommend_for_history(["a"], exclude_seen=False, where="colour IS NOT NULL", k=2)
    assert of_user(again, None) == best(scores_of(["a"], []), without="c", k=2)


def test_unknown_items_of_a_history_are_skipped_and_counted(recommender: Recommender) -> None:
    table = recommender.recommend_for_history(["a", "none", "nothing"], negatives=["b", "never"], k=2)
    assert of_user(table, None) == best(scores_of(["a"], ["b"]), without="a b", k=2)
    assert facts(table)["unknown_items"] == 3
    assert facts(recommender.recommend_for_history([]))["unknown_items"] == 0


def test_all_users_are_written_all_or_nothing(recommender: Recommender, tmp_path: Path) -> None:
    path = tmp_path / "recommendations.parquet"
    rows = recommender.recommend_all(3, path)
    written = pq.read_table(path)
    assert written.to_pylist() == recommender.recommend(list(EVENTS), k=3).to_pylist()
    assert rows == len(written) == sum(min(3, len(ITEMS) - len({e[0] for e in events})) for events in EVENTS.values())
    assert recommender.recommend_all(3, path, where="colour = 'blue'", exclude_seen=False) == 2 * len(EVENTS)
    with pytest.raises(RequestError):
        recommender.recommend_all(0, tmp_path / "other.parquet")
    assert [file.name for file in tmp_path.iterdir()] == ["recommendations.parquet"]


# --- invalid requests -------------------------------------------------------------------------------------------------


def test_an_unknown_user_is_named_with_an_alternative(recommender: Recommender) -> None:
    message = r"user 11 is not among the 4 users of this run's log. .*--history ID,ID,ID, or recommend_for_history"
    with pytest.raises(RequestError, match=message):
        recommender.recommend([10, 11])
    with pytest.raises(RequestError, match=r"users 1, 2, 3, 4, x and 3 more are not among"):
        recommender.recommend([1, 2, 3, 4, "x", 6, 7, 8])


def test_a_history_of_unknown_items_only_is_refused(recommender: Recommender) -> None:
    with pytest.raises(RequestError, match=r"history: items u, v are not among the 7 items .*ids look like a, b, c"):
        recommender.recommend_for_history(["u", "v"])
    with pytest.raises(RequestError, match=r"items: item z is not among"):
        recommender.recommend([10], items=["z"])


def test_a_text_in_place_of_a_list_is_refused(recommender: Recommender) -> None:
    with pytest.raises(RequestError, match=r"users must be a list of ids, not the text '10': write \['10'\]"):
        recommender.recommend("10")
    with pytest.raises(RequestError, match="history must be a list of ids"):
        recommender.recommend_for_history("a")


def test_k_and_filters_that_make_no_sense_are_refused(recommender: Recommender) -> None:
    with pytest.raises(RequestError, match="k must be at least 1, not 0"):
        recommender.recommend([10], k=0)
    with pytest.raises(RequestError, match=r"filter reads `color`, which does not exist \(nearest: `colour`\)"):
        recommender.recommend([10], where="color = 'red'")
    assert recommender.recommend([30], k=10**9).num_rows == len(ITEMS)


# --- invalid bundles --------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "copied")
    return tmp_path / "copied"


PARTS = [USER_TOWER, "item_vectors.npy", "events.offsets.npy", "items.ids.arrow", "features/features.json"]


@pytest.mark.parametrize("name", PARTS)
def test_a_damaged_part_is_refused(copied: Path, name: str) -> None:
    path = copied / "index" / name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(RunError, match=rf"{name} is damaged: .*run `twofold run` again"):
        load(copied)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(RunError, match=rf"{name} is damaged"):
        load(copied)
    path.unlink()
    with pytest.raises(RunError, match=rf"{name} is missing, though the manifest lists it"):
        load(copied)


def write_items(path: Path, ids: list[str]) -> None:
    save_mapped(Vocabulary(pa.array(ids), 6), path.parent, "items")


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        (
            USER_TOWER,
            lambda path: path.write_bytes(b"no graph"),
            "is not a graph with one output that onnx",
        ),
        (USER_TOWER, lambda path: write_tower(path, dim=3), "user vectors have 3 dimensions, item vectors 5"),
        (
            USER_TOWER,
            lambda path: write_tower(path, last_input="weekday"),
            r"the graphs read .*'weekday'.*the features are",
        ),
        (
            "item_vectors.npy",
            lambda path: np.save(path, VECTORS[:6]),
            r"shape \(6, 5\), but index.json states 7 x 5",
        ),
        ("items.ids.arrow", lambda path: write_items(path, ITEMS[:6]), "7 item vectors for 6 items"),
        ("items.ids.arrow", lambda path: write_items(path, ITEMS[::-1]), "list different items"),
        (
            "items.hashes.npy",
            lambda path: np.save(path, np.load(path)[1:]),
            "items.ids.arrow has 7 ids, but there are 6 hashes and 7 rows",
        ),
        ("items.ids.arrow", lambda path: path.write_bytes(b"ARROW1"), "cannot be read: .*Delete .*run `twofold run`"),
        ("users.parquet", lambda path: Vocabulary(pa.array([1]), 1).save(path), "histories of other users or items"),
        ("users.parquet", lambda path: path.write_bytes(b"PAR1"), "cannot be read: .*Delete .*run `twofold run` again"),
        ("context.json", lambda path: path.write_text("{}"), "cannot be read: .*as_of"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(copied: Path, name: str, write: Any, message: str) -> None:
    replace_part(copied, name, write)
    with pytest.raises(RunError, match=message):
        load(copied)


def test_a_folder_without_a_bundle_is_refused(tmp_path: Path, copied: Path) -> None:
    with pytest.raises(RunError, match="there is no run folder"):
        load(tmp_path / "nowhere")
    os.replace(copied / "index", copied / "index.partial")
    with pytest.raises(RunError, match=r"no complete index/ stage \(it was begun and not finished\)"):
        load(copied)


def test_items_that_were_met_are_recommended_again_if_the_bundle_says_so(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "again")
    context = {"as_of": NOON, "where": None, "include_seen": True}
    replace_part(tmp_path / "again", CONTEXT, lambda path: path.write_text(json.dumps(context)))
    again, plain = load(tmp_path / "again"), load(run)
    assert of_user(again.recommend([20], k=4), 20) == of_user(plain.recommend([20], k=4, exclude_seen=False), 20)
    assert of_user(again.recommend([20], k=4, exclude_seen=True), 20) == of_user(plain.recommend([20], k=4), 20)


def test_vectors_similar_items_and_reasons_are_tables(run: Path) -> None:
    recommender = load(run)
    assert "7 items" in repr(recommender)
    items = recommender.item_vectors()
    assert items["item_id"].to_pylist() == ITEMS
    vectors = np.array(items["vector"].to_pylist(), np.float32)
    assert len(recommender.user_vectors()) == len(EVENTS)
    assert recommender.user_vectors([20])["user_id"].to_pylist() == [20]
    similar = recommender.similar("a", k=3)
    order = np.argsort(-(vectors[1:] @ vectors[0]) / np.linalg.norm(vectors[1:], axis=1))[:3] + 1
    assert similar["item_id"].to_pylist() == [ITEMS[row] for row in order]
    with pytest.raises(RequestError, match="item: item zebra is not among"):
        recommender.similar("zebra")
    explained = recommender.explain(20, k=2)
    assert set(explained["because"][0].as_py()) <= {"c", "d", "e", "f"}
    assert explained["similarity"][0].as_py() == sorted(explained["similarity"][0].as_py(), reverse=True)
