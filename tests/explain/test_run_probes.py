"""Groups, lists and probes of a run, and the files that a whole run writes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests import worlds
from tests.dataset.prepared import FEATURES, random_events, write_prepared
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import item_attributes, load_dataset
from twofold.evaluate.window import evaluation_window
from twofold.explain.diversity import read_lists
from twofold.explain.gap import SCORE, STALE, measure_gap
from twofold.explain.run_probes import groupings_of, probe_records, probe_run
from twofold.index.item_index import build_index
from twofold.model.retriever import item_vectors, load_model
from twofold.model.two_tower import build_two_tower
from twofold.pipeline import run as pipeline
from twofold.pipeline.adapters import ServedIndex, gap_case
from twofold.recipe.retriever import TwoTower
from twofold.recipe.train import Train
from twofold.run_folder import locked, open_stage


@pytest.fixture
def run(explained):
    return explained


def test_groups_are_the_categories_of_the_item_tower_and_the_first_of_its_tags(run):
    arrays = load_dataset(run.folder / "dataset")
    creators, tags = groupings_of(arrays, item_attributes(run.folder / "dataset"))
    assert (creators.name, tags.name) == ("creator", "tags")
    ids = np.asarray(arrays.items.ids)
    assert len(set(zip(creators.group.tolist(), (ids * 7 % 5).tolist(), strict=True))) == 5
    assert ((tags.group == -1) == (ids % 3 == 0)).all()  # every third item has no tag
    assert len(set(zip(tags.group.tolist(), (ids * 5 % 3).tolist(), strict=True)) - {(-1, 0)}) == 2


def test_lists_are_read_best_first_for_every_user(run):
    arrays = load_dataset(run.folder / "dataset")
    path = run.folder / "recommend" / "recommendations.parquet"
    lists = read_lists(path, arrays)
    table = pq.read_table(path).filter(pa.compute.equal(pq.read_table(path)["user_id"], 5))
    user = int(arrays.users.rows_of([5])[0])
    own = lists.values[lists.offsets[user] : lists.offsets[user + 1]]
    expected = table.sort_by("rank")["item_id"].to_pylist()
    assert [arrays.items.ids[int(row)].as_py() for row in own] == expected


def test_a_run_leaves_its_probes_and_its_gap(run):
    probes = json.loads((run.folder / "explain" / "probes.json").read_text())
    names = [probe["name"] for probe in probes]
    assert len(set(names)) == len(names)
    wanted = {"effective_rank", "near_pairs", "hub_skew", "coverage", "top_tenth", "overlap", "cold_items", "new_items"}
    wanted |= {f"{group}/{name}" for group in ("creator", "tags") for name in ("folding", "off_group", "top_share")}
    assert set(names) == wanted
    for probe in probes:
        assert probe["meaning"]
        if probe["alarm_above"] is not None or probe["alarm_below"] is not None:
            assert probe["source"]
            assert probe["next_step"]
    lists = {probe["name"]: probe for probe in probes if probe["popularity"] is not None}
    assert {"coverage", "top_tenth", "overlap", "creator/off_group"} <= lists.keys()
    gap = json.loads((run.folder / "explain" / "gap.json").read_text())
    assert gap["batch_size"] == 16
    steps = [*gap["exam"], *gap["serving"]]
    assert sum(step["change"] for step in steps) == pytest.approx(gap["served"] - gap["in_batch"])
    # The bundle stores the model's own vectors and its score.
    assert {step["cause"]: step["change"] for step in steps}[SCORE] == 0
    assert gap["faults"] == []
    assert gap["verdict"][0].startswith("Serving agrees with the model: the service finds ")
    assert gap["about_exam"].startswith("A batch of 16 is a different exam, not a fault: ")


def test_a_collapsed_model_raises_warnings(run):
    arrays = load_dataset(run.folder / "dataset")
    lists = read_lists(run.folder / "recommend" / "recommendations.parquet", arrays)
    point = np.ones((len(arrays.items), 16), np.float32)
    point += np.random.default_rng(0).normal(scale=1e-3, size=point.shape).astype(np.float32)
    attributes = item_attributes(run.folder / "dataset")
    records = probe_records(probe_run(arrays, point, lists, attributes=attributes))
    assert {"effective_rank", "near_pairs"} <= {each["name"] for each in records if each["is_alarming"]}


def test_the_index_is_compared_with_what_the_model_computes_as_of_its_time(tmp_path):
    """Items have ages and counters here, so that an index of a later time holds other vectors, which are not stale."""
    write_prepared(tmp_path / "prepare", random_events(0))
    build_dataset(tmp_path / "prepare", FEATURES, tmp_path / "dataset", time_zone="Asia/Shanghai")
    arrays = load_dataset(tmp_path / "dataset")
    torch.manual_seed(0)
    model = build_two_tower(TwoTower(kind="two_tower", dim=8), arrays.features, arrays.vectors)
    window, at = evaluation_window(arrays, "test"), int(arrays.events.at.max()) + 1
    index = build_index(item_vectors(model, arrays, at), score=model.score)
    for as_of in (at, int(window.query_at.min())):
        served = ServedIndex(index, arrays.items, as_of)
        case = gap_case(model, arrays, window, served=served, settings=Train(batch_size=8))
        assert np.allclose(case.stored.items, case.later.items, atol=1e-6) == (as_of == at)
        assert not np.allclose(case.rescored.items, case.stored.items, atol=1e-6)
        if as_of == at:
            assert {step.cause: step.change for step in measure_gap(case, batch_size=8, k=2).serving}[STALE] == 0


@pytest.mark.slow  # a training
@pytest.mark.parametrize(("score", "named"), [("cosine", False), ("dot", True)])
def test_a_model_of_cosines_whose_index_compares_inner_products_is_named(score, named, tmp_path):
    train = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01, "seed": 0}
    recipe = worlds.world_recipe(worlds.languages(tmp_path / "log").data.model_dump(), {"train": train})
    job = pipeline.Job(recipe, tmp_path / "run")
    with locked(job.folder):
        _, dataset, retriever, _ = pipeline.up_to_training(job)
    arrays = load_dataset(dataset.folder, recipe.features)
    window, model = evaluation_window(arrays, "test"), load_model(recipe.retriever, arrays, retriever.folder)
    vectors = item_vectors(model, arrays, int(window.query_at.min()))
    # Training with cosine does not constrain the lengths.
    lengths = np.random.default_rng(0).lognormal(sigma=1.5, size=(len(vectors), 1)).astype(np.float32)
    index = build_index(vectors * lengths if named else vectors, score=score)
    served = ServedIndex(index, arrays.items, int(window.query_at.min()))
    case = gap_case(model, arrays, window, served=served, settings=recipe.train)
    found = measure_gap(case, batch_size=16, k=2)
    assert (SCORE in found.faults) == named
    change = {step.cause: step.change for step in found.serving}
    assert change[SCORE] < -0.2 if named else change[SCORE] == 0
    assert change[STALE] == pytest.approx(0, abs=0.01)


def test_explaining_twice_writes_the_same_files(run, tmp_path):
    again = pipeline.Job(run.recipe, Path(shutil.copytree(run.folder, tmp_path / "again")))
    shutil.rmtree(again.folder / "explain")
    pipeline.explain(again, *(open_stage(again.folder, name) for name in ("dataset", "train", "index", "recommend")))
    for name in ("gap.json", "probes.json", "map.html", "map.parquet"):
        assert (again.folder / "explain" / name).read_bytes() == (run.folder / "explain" / name).read_bytes()


@pytest.mark.slow  # two whole runs
@pytest.mark.parametrize("uniform", [0, 128], ids=["batches of one language", "and negatives of all"])
def test_languages_never_compared_in_training_raise_a_warning_though_no_tower_reads_them(uniform, tmp_path):
    plain = worlds.languages(tmp_path / "log")
    loss = {"kind": "in_batch_softmax", "uniform_negatives": uniform}
    train = plain.train.model_dump() | {"group_by": ["language"], "loss": loss}
    job = pipeline.run(worlds.world_recipe(plain.data.model_dump(), {"train": train}), runs=tmp_path)
    probes = {probe["name"]: probe for probe in json.loads((job.folder / "explain" / "probes.json").read_text())}
    assert probes["language/folding"]["is_alarming"] == (uniform == 0)
    if uniform == 0:  # the folded lists leave the user's language more often than the likes do
        assert probes["language/off_group"]["is_alarming"] is True
