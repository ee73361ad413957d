"""The benchmark of several test days on a small world: windows that move by days, pooled tables, the page."""

import importlib.util
import json
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import worlds
from tests.small_peers import shrink_ials
from twofold.recipe.load import dump_recipe, load_recipe
from twofold.tables import DAY_MS

ROOT = Path(__file__).parents[1]
DAYS = (date(2024, 1, 5), date(2024, 1, 6))


def loaded(path):
    spec = importlib.util.spec_from_file_location(f"tested_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_windows_move_to_the_test_day_and_the_rest_of_the_recipe_stays():
    quality = loaded(ROOT / "benchmarks" / "quality.py")
    path = quality.RECIPES["kuairand-ranked"]
    shipped = load_recipe(path)
    moved = load_recipe(path, overrides=quality.settings_of(shipped, date(2022, 5, 2), 1))
    split = moved.prepare.split
    assert (split.train.first, split.train.end) == (shipped.prepare.split.train.first, date(2022, 5, 1))
    assert (split.validation.first, split.validation.end) == (date(2022, 5, 1), date(2022, 5, 2))
    assert (split.test.first, split.test.end) == (date(2022, 5, 2), date(2022, 5, 3))
    assert (moved.train.seed, moved.ranker.seed) == (1, 1)
    day = quality.SHIPPED_DAY
    assert load_recipe(path, overrides=quality.settings_of(shipped, day, 0)).prepare == shipped.prepare


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Results of the benchmark on two days of a world with a like of every user on each of them."""
    folder = tmp_path_factory.mktemp("quality")
    recipe = worlds.checkerboard(folder / "log", num_users=48, num_items=64)
    log = pq.read_table(folder / "log" / "events.parquet")
    is_test = pa.compute.greater_equal(log["at"], worlds.FIRST_MS + worlds.TEST * DAY_MS)
    further = log.filter(is_test)
    earlier = further.set_column(2, "at", pa.compute.subtract(further["at"], DAY_MS))
    earlier = earlier.set_column(1, "item_id", pa.compute.bit_wise_and(pa.compute.add(further["item_id"], 6), 63))
    pq.write_table(pa.concat_tables([log, earlier]), folder / "log" / "events.parquet")
    quality = loaded(ROOT / "benchmarks" / "quality.py")
    for name in quality.RECIPES:
        text = dump_recipe(recipe.model_copy(update={"name": name})).replace("epochs: 10", "epochs: 1")
        (folder / f"{name}.yaml").write_text(text)
    quality.RECIPES = {name: folder / f"{name}.yaml" for name in quality.RECIPES}
    quality.SAVED = folder / "quality.json"
    quality.SHIPPED_DAY = DAYS[-1]
    quality.METRICS = ("catalogue/recall@5", "catalogue/ndcg@5")
    with pytest.MonkeyPatch.context() as monkeypatch:
        shrink_ials(monkeypatch)
        return quality, quality.main(DAYS, seeds=1, runs=folder / "runs")


def test_every_day_is_a_run_of_its_own_and_all_are_pooled(found):
    quality, saved = found
    assert json.loads(quality.SAVED.read_text()) == json.loads(json.dumps(saved))
    assert saved["users"] == {"2024-01-05": saved["users"]["2024-01-05"], "2024-01-06": saved["users"]["2024-01-06"]}
    pooled = saved["pooled"][0]
    assert pooled["requests"] == sum(saved["users"].values()) > pooled["users"]
    cells = {(line["day"], line["row"]): line for line in saved["lines"] if line["metric"] == "catalogue/recall@5"}
    for line in pooled["lines"]:
        if line["metric"] == "catalogue/recall@5":
            parts = [cells[day, line["row"]]["value"] * users for day, users in saved["users"].items()]
            assert line["value"] == pytest.approx(sum(parts) / pooled["requests"]), line["row"]
            if line["row"] != "model":
                lead, low, high = line["model_minus"]
                assert low <= lead <= high
    rows = {line["row"] for line in pooled["lines"]}
    assert {"model", "random", "popularity", "item-kNN"} <= rows


def test_one_recipe_is_run_again_and_what_is_saved_of_the_other_stays(found, monkeypatch):
    quality, saved = found
    evaluated, names = quality.evaluated, []

    def noted(recipe, folder):
        names.append(recipe.name)
        return evaluated(recipe, folder)  # every stage is found unchanged

    monkeypatch.setattr(quality, "evaluated", noted)
    again = quality.main(DAYS, seeds=1, runs=quality.SAVED.parent / "runs", only="kuairand-ranked")
    assert set(names) == {"kuairand-ranked"}
    for part in ("lines", "pooled"):
        first, second = (sorted(json.dumps(each) for each in results[part]) for results in (saved, again))
        assert second == first
    assert json.loads(quality.SAVED.read_text()) == json.loads(json.dumps(again))


def test_the_table_of_days_has_every_row_with_its_interval_and_difference(found):
    quality, saved = found
    first, second = quality.days_table(saved, "kuairand").split("\n\n")
    assert first.startswith(
        "| recall@5 | 5 January | 6 January | all days [95 %] | model − row, all days, least seed |"
    )
    assert second.startswith("| ndcg@5 |")
    rows = first.splitlines()[2:]
    assert rows[0].startswith("| model, seed 0 | ")
    assert all(row.count("[") == (1 if row.startswith("| model") else 2) for row in rows)
    assert all(row.count(" ± ") == (0 if row.startswith("| model") else 2) for row in rows)


def test_the_page_of_results_shows_several_days_and_what_each_day_chose(found):
    _, saved = found
    page = loaded(ROOT / "docs" / "make_results.py")
    tables = {"days of kuairand": "| one |", "days of kuairand-ranked": "| two |"}
    order = {"day": "2024-01-06", "seed": 0, "retriever_share": 0.25, "shares": [[0.0, 0.1], [0.25, 0.3], [1.0, 0.2]]}
    text = page._several_days(saved | {"orders": [order]}, tables)
    assert "| 2024-01-06 | 0 | 0.25 | .3000 | .1000 | .2000 |" in text
    assert text.index("| one |") < text.index("### Retriever and ranker") < text.index("| two |")
    assert "## KuaiRand-Pure, 2 test days" in text
    assert f"{saved['pooled'][0]['requests']:,} requests of {saved['pooled'][0]['users']:,} users" in text
    assert "| 8 May | some parts of the design, as docs/log.md says: it is no fresh test day |" in text
    changes = saved["pooled"][0]["order_changes"]
    assert ("Rows whose order changes between the days: " in text) == bool(changes)


@pytest.mark.slow
def test_a_drafted_recipe_is_run_and_the_results_of_other_logs_are_kept(tmp_path):
    worlds.checkerboard(tmp_path / "board", num_users=64, num_items=64)
    drafts = loaded(ROOT / "benchmarks" / "drafts.py")
    drafts.SAVED = tmp_path / "drafts.json"
    log = drafts.Log("board", (("--log", "events.parquet"),))
    found = drafts.main([log, drafts.Log("absent", log.files)], data=tmp_path, runs=tmp_path / "runs")
    again = drafts.main([drafts.Log("absent", log.files)], data=tmp_path, runs=tmp_path / "runs")
    assert json.loads(json.dumps(found)) == again
    (result,) = found["logs"].values()
    assert result["served"] in result["quality"]
    head, _, first, second = drafts.table(found).splitlines()
    assert head.startswith("| log | users, items | served | metric | model [95 %] | best baseline |")
    assert first.startswith(f"| board | {result['users']:,}, 64 | {drafts._short_name(result['served'])} | recall@")
    assert second.startswith("|  |  |  | ndcg@")
