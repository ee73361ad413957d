"""`prepare.new_items`: a share of the items has no event before the test window, in any file that training reads."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import worlds
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import load_dataset
from twofold.evaluate.new_items import find_new_items
from twofold.evaluate.window import evaluation_window
from twofold.prepare.run_plan import prepare

TEST_MS = worlds.FIRST_MS + worlds.TEST * worlds.DAY_MS
COUNTERS = {"item_id": {"rates": {"like": "liked"}}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One log, prepared with and without new items."""
    out = {}
    for share in (None, 0.25):
        folder = tmp_path_factory.mktemp("prepared")
        log = worlds.checkerboard(folder / "log", num_users=60, num_items=40)
        parts = {"prepare": log.prepare.model_dump() | {"new_items": share, "counters": COUNTERS}}
        recipe = worlds.world_recipe(log.data.model_dump(), parts)
        facts = prepare(recipe, folder / "prepare")
        build_dataset(folder / "prepare", recipe.features, folder / "dataset", time_zone="UTC")
        out[share] = folder, facts
    return out


def events(folder):
    table = pq.read_table(folder / "prepare" / "events").to_pandas()
    return set(zip(table.user_id, table.item_id, table["at"], strict=True))


def new_items(folders):
    (whole, _), (held_out, _) = folders[None], folders[0.25]
    return {item for _, item, at in events(whole) - events(held_out)}


def test_events_of_the_share_are_removed_before_the_test_window_and_kept_in_it(folders):
    (whole, _), (held_out, _) = folders[None], folders[0.25]
    chosen, removed = new_items(folders), events(whole) - events(held_out)
    assert 4 <= len(chosen) <= 16
    assert removed == {event for event in events(whole) if event[1] in chosen and event[2] < TEST_MS}
    assert {item for _, item, at in events(held_out) if at >= TEST_MS} & chosen
    assert not events(held_out) - events(whole)


def test_they_train_nothing_and_count_nothing(folders):
    folder, chosen = folders[0.25][0], new_items(folders)
    for split in ("train", "validation"):
        rows = pq.read_table(folder / "prepare" / "rows" / f"split={split}", columns=["item_id"])
        assert not set(rows["item_id"].to_pylist()) & chosen
    hours = pq.read_table(folder / "prepare" / "counters" / "by=item_id.parquet").to_pandas()
    hours = hours[hours.hour < TEST_MS // worlds.HOUR_MS]
    assert not set(hours.key) & chosen
    assert len(hours)


def test_the_report_takes_them_for_its_new_items(folders):
    folder, chosen = folders[0.25][0], new_items(folders)
    arrays = load_dataset(folder / "dataset")
    flags = find_new_items(arrays, evaluation_window(arrays, "test"))
    ids = np.asarray(arrays.items.ids)
    assert chosen <= set(ids[flags].tolist())
    assert not flags[: arrays.items.num_known].any()
    seen_before = {item for _, item, at in events(folder) if at < TEST_MS}
    assert not set(ids[flags].tolist()) & seen_before


def test_the_funnel_names_the_step_and_its_rows_add_up(folders):
    facts = folders[0.25][1]
    lines = {line["name"]: line for line in facts["funnel"]}
    step = lines["25 % of the items only in the test window"]
    assert step["removed"] == len(events(folders[None][0])) - len(events(folders[0.25][0])) > 0
    assert not any("only in the test window" in line["name"] for line in folders[None][1]["funnel"])


def test_with_last_events_each_user_keeps_them_as_test_events_alone(tmp_path):
    split = {"kind": "last_n", "test": 1, "validation": 1}
    out = {}
    for share in (None, 0.25):
        log = worlds.checkerboard(tmp_path / f"log {share}", num_users=60, num_items=40)
        parts = {"prepare": {"positive": "TRUE", "split": split, "new_items": share}}
        prepare(worlds.world_recipe(log.data.model_dump(), parts), tmp_path / f"{share}")
        rows = pq.read_table(tmp_path / f"{share}" / "rows").to_pandas()
        out[share] = {name: rows[rows.split == name] for name in ("train", "validation", "test")}
    kept = {name: set(rows.item_id) for name, rows in out[0.25].items()}
    chosen = set(out[None]["train"].item_id) - kept["train"]
    assert 4 <= len(chosen) <= 16
    assert not chosen & kept["validation"]
    assert chosen & kept["test"]
    tests = [rows["test"].set_index("user_id").item_id for rows in out.values()]
    assert tests[0].loc[tests[1].index].equals(tests[1])
    assert len(tests[1]) > 50


def test_a_user_of_few_other_events_keeps_no_event_of_a_new_item(tmp_path):
    """A user of at most two other events has no windows, so that all that is left would train."""
    events = pa.table(
        {
            "user_id": [user for user in range(40) for _ in range(3)],
            "item_id": [item for user in range(40) for item in (user, user + 40, user + 80)],
            "at": [worlds.FIRST_MS + 1000 * n for n in range(120)],
        }
    )
    pq.write_table(events, tmp_path / "events.parquet")
    parts = {"prepare": {"positive": "TRUE", "split": {"kind": "last_n"}, "new_items": 0.5}}
    prepare(worlds.world_recipe({"kind": "table", "events": tmp_path / "events.parquet"}, parts), tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "rows").to_pandas()
    of_user = rows.groupby("user_id").size()
    assert set(rows[rows.split == "test"].user_id) == set(of_user[of_user == 3].index)
    assert 0 < len(of_user[of_user == 3]) < len(of_user) < 40
