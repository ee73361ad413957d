"""Arrays equal the prepared tables, in shards and pieces of any size; unsorted files are refused; later events change
neither what is fitted nor a feature of the past.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dataset.prepared import FEATURES, LAST_TRAIN_MS, WINDOWS, random_events, write_prepared
from twofold.dataset import build as arrays
from twofold.dataset import examples as rows
from twofold.dataset.batches import gather_batch
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import load_dataset
from twofold.errors import DataError, RunError
from twofold.pipeline import run as pipeline


def built(folder, events, features=FEATURES, **layout):
    folder.mkdir(parents=True, exist_ok=True)
    write_prepared(folder / "prepare", events, **layout)
    facts = build_dataset(folder / "prepare", features, folder / "dataset", time_zone="Asia/Shanghai")
    return load_dataset(folder / "dataset"), facts


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return built(tmp_path_factory.mktemp("built"), random_events(0))


# --- rows and histories -----------------------------------------------------------------------------------------------


def test_users_are_in_the_order_of_the_shards_and_idle_ones_last(dataset):
    arrays, facts = dataset
    shards = [[], [], []]
    for user in range(12):  # two more of the users table do nothing
        shards[user * 5 % 3].append(f"user {user}")
    assert arrays.users.ids.to_pylist() == [*(u for shard in shards for u in sorted(shard)), "user 12", "user 13"]
    assert (arrays.users.num_known, facts["users"], facts["items"], facts["cold_items"]) == (12, 14, 22, 5)


def test_every_row_and_event_comes_back_under_its_id(dataset):
    arrays, facts = dataset
    events = random_events(0)
    owner = np.repeat(np.arange(14), np.diff(arrays.events.offsets))
    found = zip(
        arrays.users.ids_of(owner).to_pylist(),
        arrays.items.ids_of(arrays.events.item_rows).to_pylist(),
        arrays.events.at.tolist(),
        strict=True,
    )
    assert sorted(found) == sorted((e.user, e.item, e.at) for e in events)
    assert facts["last_event_at"] == max(e.at for e in events)
    liked = sorted((e.user, e.at) for e in events if e.liked)
    owner = np.repeat(np.arange(14), np.diff(arrays.positives.offsets))
    assert sorted(zip(arrays.users.ids_of(owner).to_pylist(), arrays.positives.at.tolist(), strict=True)) == liked
    for split, (first, end) in WINDOWS.items():
        window = arrays.examples[split]
        expected = [e for e in events if first <= e.at < end and (split != "train" or e.item < 17)]
        assert len(window) == facts["rows"][split] == len(expected)
        found = zip(
            arrays.users.ids_of(window.user_rows).to_pylist(), window.at.tolist(), window.watch_s.tolist(), strict=True
        )
        assert sorted(found) == sorted((e.user, e.at, e.watch_s) for e in expected)
        assert window.target.tolist() == window.label.tolist()
        assert np.isnan(window.length_s).all()
        before = arrays.positives.before(window.user_rows, window.at)
        assert window.positives_before.tolist() == before.tolist()


def test_pieces_of_any_size_give_the_same_arrays(tmp_path, dataset, monkeypatch):
    for module in (rows, arrays):
        monkeypatch.setattr(module, "BATCH_ROWS", 5)
    small, facts = built(tmp_path, random_events(0))
    assert facts == dataset[1]
    for one, other in zip(contents(small), contents(dataset[0]), strict=True):
        assert one == other


def contents(built):
    """Yields everything in a dataset as text or bytes."""
    for split in WINDOWS:
        yield built.examples[split].records.tobytes()
        yield {name: values.tobytes() for name, values in built.examples[split].counter_values.items()}
    for histories in (built.events, built.positives, built.negatives):
        yield from (part.tobytes() for part in (histories.item_rows, histories.at, histories.offsets))


def test_one_shard_or_three_hold_the_same_users(tmp_path, dataset):
    whole, _ = built(tmp_path, random_events(0), shards=1)
    parts, _ = dataset
    assert whole.users.ids.to_pylist()[:3] == ["user 0", "user 1", "user 10"]
    for user in ("user 3", "user 11"):
        histories = []
        for found in (whole, parts):
            (row,) = found.users.rows_of([user])
            histories.append(found.events.item_rows[found.events.offsets[row] : found.events.offsets[row + 1]].tolist())
        assert histories[0] == histories[1]


def test_a_window_without_files_has_no_rows(tmp_path):
    early = [event for event in random_events(0) if event.at < WINDOWS["test"][0]]
    assert len(built(tmp_path, early)[0].examples["test"]) == 0


@pytest.mark.parametrize(
    ("lost", "order"),
    [
        ("events", lambda table: pa.concat_tables([table.slice(1), table.slice(0, 1)])),  # a user's part torn off
        ("rows/split=train", lambda table: table.sort_by([("user_id", "descending"), ("at", "ascending")])),
        ("events", lambda table: table.sort_by([("user_id", "ascending"), ("at", "descending")])),
    ],
)
def test_files_whose_order_was_lost_are_refused(tmp_path, lost, order):
    changed = write_prepared(tmp_path / "prepare", random_events(0))
    path = changed / lost / "shard=1.parquet"
    pq.write_table(order(pq.read_table(path)), path)
    message = rf"{lost}/shard=1.parquet is not sorted by user and time: row \d+ .*delete {changed} and run"
    with pytest.raises(DataError, match=message):
        build_dataset(changed, FEATURES, tmp_path / "dataset", time_zone="UTC")


def test_a_user_in_two_shards_is_refused(tmp_path):
    changed = write_prepared(tmp_path / "prepare", random_events(0))
    shutil.copyfile(changed / "events" / "shard=0.parquet", changed / "events" / "shard=10.parquet")
    with pytest.raises(DataError, match="shard=10.parquet is not sorted by user and time: row 1 "):
        build_dataset(changed, FEATURES, tmp_path / "dataset", time_zone="UTC")


def test_what_preparation_writes_is_read(checkerboard, tmp_path):
    outcomes = {"like": "liked", "half": "CASE WHEN liked THEN 0.5 WHEN user_id = 0 THEN 0 END"}
    changed_prepare = checkerboard.prepare.model_copy(update={"outcomes": outcomes})
    job = pipeline.Job(checkerboard.model_copy(update={"prepare": changed_prepare}), tmp_path / "run")
    prepared = pipeline.prepare(job).folder
    build_dataset(prepared, checkerboard.features, tmp_path / "dataset", time_zone="UTC")
    whole = load_dataset(tmp_path / "dataset")
    found, users = whole.examples["train"], whole.users.ids_of(whole.examples["train"].user_rows).to_numpy()
    shards = sorted((prepared / "rows" / "split=train").glob("*.parquet"))
    assert len(found) == sum(len(pq.read_table(path)) for path in shards)
    np.testing.assert_array_equal(found.outcomes["like"], found.label)
    expected = np.where(found.label, 0.5, np.where(users == 0, 0, np.nan))
    np.testing.assert_array_equal(found.take(np.arange(len(found))).outcomes["half"], expected)


# --- time -------------------------------------------------------------------------------------------------------------


def test_all_that_is_fitted_is_blind_to_validation_and_test(tmp_path):
    events = random_events(0)
    later = [event for event in random_events(7) if event.at >= LAST_TRAIN_MS]
    changed = [event for event in events if event.at < LAST_TRAIN_MS] + later
    built(tmp_path / "one", events)
    built(tmp_path / "other", changed)
    one, other = (files_of(tmp_path / which / "dataset" / "features") for which in ("one", "other"))
    assert "pca.look.npz" in one
    assert "centroids.look.3.npy" in one
    assert one == other


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@settings(max_examples=6)
@given(seed=st.integers(1, 99), half_hours=st.integers(10 * 48, 14 * 48))
def test_rewriting_the_future_changes_no_feature_of_the_past(tmp_path_factory, seed, half_hours):
    """All events from a moment on are replaced by others: rows before it keep every input of both towers, byte by byte.

    The moment lies behind the training window, so that what is fitted is the same.
    """
    moment = half_hours * 1_800_000
    events = random_events(0)
    rewritten = [e for e in events if e.at < moment] + [e for e in random_events(seed) if e.at >= moment]
    folder = tmp_path_factory.mktemp("shift")
    one, other = (built(folder / name, each)[0] for name, each in (("one", events), ("other", rewritten)))
    for split in WINDOWS:
        before, after = (inputs_before(dataset, split, moment) for dataset in (one, other))
        assert before == after


def inputs_before(dataset, split, moment):
    lines = np.flatnonzero(dataset.examples[split].at < moment)
    batch = gather_batch(dataset, dataset.examples[split], lines)
    return [{name: values.numpy().tobytes() for name, values in side.items()} for side in (batch.user, batch.item)]


# --- folders of other versions ----------------------------------------------------------------------------------------


def test_a_dataset_of_an_earlier_version_is_refused_with_what_to_do(tmp_path):
    built(tmp_path, random_events(0))
    path = tmp_path / "dataset" / "features" / "features.json"
    saved = json.loads(path.read_text())
    of_a_sequence = {"kind": "sequence", "events": "negatives"}
    earlier = {
        "it has no own_ids": {name: value for name, value in saved.items() if name != "own_ids"},
        "user.0.events: was removed — a sequence holds positives: ": saved
        | {"features": saved["features"] | {"user": [of_a_sequence]}},
    }
    for difference, content in earlier.items():
        path.write_text(json.dumps(content))
        with pytest.raises(RunError) as refused:
            load_dataset(tmp_path / "dataset")
        said = str(refused.value)
        assert said.startswith(f"{path} was written by another version of twofold: {difference}")
        assert said.endswith(
            f"Delete {tmp_path / 'dataset'} and run `twofold run` with its recipe again: it makes dataset/ anew."
        )
