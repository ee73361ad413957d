"""Which ids have a row of their own: as counted by hand, in one shard and in twelve, and the same in training, in the
exported graph and in the service.
"""

from collections import Counter

import numpy as np
import onnxruntime
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from tests.dataset.prepared import WINDOWS, random_events, write_prepared
from tests.worlds import checkerboard
from twofold.dataset import examples
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import load_dataset
from twofold.dataset.features import load_features
from twofold.dataset.sequences import sequence_inputs
from twofold.dataset.tower_inputs import queries_at, user_inputs
from twofold.errors import DataError
from twofold.model.onnx_export import export_user_tower
from twofold.model.two_tower import build_two_tower
from twofold.recipe.features import Features, SequenceFeature
from twofold.recipe.retriever import TwoTower
from twofold.recipe.schema import Recipe
from twofold.tables import DAY_MS

EVENTS = random_events(0)
TAUGHT = [e for e in EVENTS if WINDOWS["train"][0] <= e.at < WINDOWS["train"][1] and e.item < 17]
USER = [
    {"kind": "history", "events": "positives", "max_length": 5},
    {"kind": "history", "events": "positives", "max_length": 6, "pool": "windows", "share_item_embedding": True},
    {"kind": "sequence", "max_length": 7},
    {"kind": "id"},
]
LIMITS = {"min_count": 12, "max_age_days": 1}


def features_with(**limits):
    return Features.model_validate({"user": USER, "item": [{"kind": "id"}], **limits})


def kept(ids, *, min_count, max_age_days):
    """Returns the ids that keep their row, counted by hand."""
    counts, newest = Counter(ids), {}
    for id_, event in zip(ids, TAUGHT, strict=True):
        newest[id_] = max(newest.get(id_, 0), event.at)
    oldest = max(newest.values()) - max_age_days * DAY_MS
    return sorted(id_ for id_ in counts if counts[id_] >= min_count and newest[id_] >= oldest)


def built(folder, features, shards=3):
    write_prepared(folder / "prepare", EVENTS, shards=shards)
    facts = build_dataset(folder / "prepare", features, folder / "dataset", time_zone="UTC")
    return load_dataset(folder / "dataset"), facts


def table_rows(dataset, ids):
    return dataset.features.id_table("item", dataset.features.features.item[0]).rows(
        (dataset.items.rows_of(ids) + 1).astype(np.int32)
    )


@pytest.fixture(scope="module", params=[0, 2], ids=["unknown", "shared"])
def limited(request, tmp_path_factory):
    limits = {"item_ids": {**LIMITS, "shared_rows": request.param}, "user_ids": {"min_count": 18}}
    return request.param, *built(tmp_path_factory.mktemp("limited"), features_with(**limits))


def test_frequent_and_recent_items_have_rows_and_the_others_none_or_shared_ones(limited):
    shared_rows, dataset, facts = limited
    own = kept([e.item for e in TAUGHT], **LIMITS)
    others = sorted({e.item for e in TAUGHT} - set(own))
    assert 0 < len(own) < 17
    assert len(others) > 2
    assert table_rows(dataset, own).tolist() == list(range(1, len(own) + 1))
    expected = [1 + len(own) + number % shared_rows if shared_rows else 0 for number in range(len(others))]
    assert table_rows(dataset, others).tolist() == expected
    assert table_rows(dataset, [17, 21]).tolist() == [0, 0]  # cold items
    assert dataset.items.num_known == 17  # cold is what training never met, whether or not it has a row
    assert dataset.item_arrays.inputs["id"].tolist() == table_rows(dataset, dataset.items.ids).tolist()
    reads = f"share {shared_rows} rows" if shared_rows else "read the unknown row"
    assert facts["notes"][0] == (
        f"{len(others)} of 17 items have no row of their own (fewer than 12 training examples, or none in the last 1 "
        f"day of training): they {reads}"
    )


def test_users_without_a_row_read_the_unknown_one(limited):
    _, dataset, facts = limited
    own = kept([e.user for e in TAUGHT], min_count=18, max_age_days=365)
    assert 0 < len(own) < 12
    rows = dict(zip(dataset.users.ids.to_pylist(), dataset.user_arrays.attributes["id"].tolist(), strict=False))
    assert [rows[user] for user in own] == list(range(1, len(own) + 1))
    assert {rows[user] for user in rows.keys() - set(own)} == {0}
    assert f"{12 - len(own)} of 12 users have no row of their own" in facts["notes"][1]


def test_one_shard_and_twelve_give_every_id_the_same_row(tmp_path):
    features = features_with(item_ids={**LIMITS, "shared_rows": 3}, user_ids={"min_count": 18, "shared_rows": 2})
    one, many = (built(tmp_path / str(shards), features, shards=shards) for shards in (1, 12))
    assert one[0].items.ids == many[0].items.ids
    assert one[1]["notes"] == many[1]["notes"]
    assert table_rows(one[0], range(22)).tolist() == table_rows(many[0], range(22)).tolist()
    user_rows = [
        dict(zip(dataset.users.ids.to_pylist(), dataset.user_arrays.attributes["id"].tolist(), strict=False))
        for dataset, _ in (one, many)
    ]
    assert user_rows[0] == user_rows[1]


def test_counts_are_the_same_in_pieces_of_any_size(tmp_path, monkeypatch):
    write_prepared(tmp_path, EVENTS, shards=5)
    found = []
    for size in (2**18, 7):
        monkeypatch.setattr(examples, "BATCH_ROWS", size)
        counts = examples.count_ids(tmp_path, ["rows/split=train"], "item_id", pa.int64())
        found.append({line["id"]: (line["examples"], line["last"]) for line in counts.to_pylist()})
    items = {e.item for e in TAUGHT}
    by_hand = {item: [e.at for e in TAUGHT if e.item == item] for item in items}
    assert found[0] == found[1] == {item: (len(times), max(times)) for item, times in by_hand.items()}


def test_histories_and_the_exported_graph_read_the_same_rows(limited, tmp_path):
    shared_rows, dataset, _ = limited
    model = build_two_tower(TwoTower(dim=8, kind="two_tower"), dataset.features, {})
    own, known = dataset.features.own_ids["item"], dataset.items.num_known
    for table in (model.item.tables["id"], model.user.tables["positives"]):
        assert table.num_embeddings == 1 + own + shared_rows
    assert (model.item.tables["id"].padding_idx is None) == (shared_rows == 0)  # examples train the unknown row
    rows = dataset.examples["train"]
    user_rows, at = np.array(rows.user_rows[-40:]), np.array(rows.at[-40:])
    queries = queries_at(dataset.features, dataset.positives, dataset.negatives, user_rows=user_rows, at=at)
    inputs = user_inputs(dataset.features, dataset.user_arrays, queries)
    assert ((queries.positives > own) & (queries.positives <= known)).any()
    expected = [
        [row if row <= own else (1 + own + (row - own - 1) % shared_rows if shared_rows and row <= known else 0)
         for row in history] for history in queries.positives[:, -5:].tolist()
    ]  # fmt: skip
    assert inputs["positives"].tolist() == expected
    without = tuple(each for each in dataset.features.features.user if not isinstance(each, SequenceFeature))
    state = dataset.features.with_features(dataset.features.features.model_copy(update={"user": without}))
    model = build_two_tower(TwoTower(dim=8, kind="two_tower"), state, {})  # a sequence takes five seconds to export
    export_user_tower(model.eval().user, tmp_path / "user_tower.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "user_tower.onnx")
    (served,) = session.run(["vector"], {name: inputs[name] for name in (each.name for each in session.get_inputs())})
    trained = model.user({name: torch.from_numpy(values) for name, values in inputs.items()}).detach()
    np.testing.assert_allclose(served, trained.numpy(), rtol=1e-5, atol=1e-6)


def test_a_sequence_leaves_out_items_without_a_row(limited):
    shared_rows, dataset, _ = limited
    batch = dataset.examples["train"].take(np.arange(len(dataset.examples["train"]))[-30:])
    inputs = sequence_inputs(dataset.features, dataset.positives, batch)
    rows = inputs["positives_sequence"]
    holes = (rows[:, :-1] == 0) & (rows[:, 1:] != 0)
    assert not holes.any()
    assert (rows > dataset.features.own_ids["item"]).any() == (shared_rows > 0)


def test_what_was_saved_is_what_is_loaded(limited):
    _, dataset, _ = limited
    loaded = load_features(dataset.folder / "features")
    assert loaded.own_ids == dataset.features.own_ids
    assert loaded.id_table("user", dataset.features.features.user[3]) == dataset.features.id_table(
        "user", dataset.features.features.user[3]
    )


def test_buckets_are_counted(tmp_path):
    features = Features.model_validate({"user": USER[:1], "item": [{"kind": "id", "num_buckets": 10}]})
    _, facts = built(tmp_path, features)
    # 17 items in 10 rows: seven rows have two.
    assert facts["notes"] == ["14 of 17 items share a row of num_buckets: 10"]
    _, facts = built(tmp_path / "each", features_with())
    assert facts["notes"] == []


def test_limits_that_leave_no_row_or_that_nothing_reads_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"features.item_ids leaves none of 17 ids a row: the most frequent has \d+ tr"):
        built(tmp_path, features_with(item_ids={"min_count": 1000}))
    recipe = checkerboard(tmp_path / "log").model_dump()
    with pytest.raises(ValidationError, match=r"features.user_ids limits the rows of a table that no feature reads"):
        Recipe.model_validate(recipe | {"features": recipe["features"] | {"user_ids": {"min_count": 2}}})
    ials = {"features": recipe["features"] | {"item_ids": {"min_count": 2}}, "retriever": {"kind": "ials"}}
    with pytest.raises(ValidationError, match="a retriever of kind ials has a vector for each item"):
        Recipe.model_validate(recipe | ials)
