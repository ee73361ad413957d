"""Files of `retriever.kind: best` after a kill, and models that it does not compare with `last_n`."""

import pytest

from tests import worlds
from tests.pipeline.test_best_model import best, partners
from tests.worlds import world_recipe
from twofold.evaluate import peer_tuning
from twofold.evaluate.baseline_results import load_tuning
from twofold.evaluate.peer_tuning import RECENT_POPULARITY
from twofold.model.history_additions import ADDITIONS
from twofold.model.retriever import WEIGHTS
from twofold.pipeline import run as pipeline
from twofold.pipeline import served_model, train
from twofold.pipeline.job import Job
from twofold.pipeline.served_model import TOWERS, TOWERS_FACTS
from twofold.recipe.prepare import LastEvents

pytestmark = pytest.mark.usefixtures("small_ials")


class KilledError(Exception):
    """A kill directly after the peers were written."""


def killed_once(monkeypatch):
    """Ends the next attempt after `save_served` has written its files, and no later one."""
    kills, save = iter([True]), train.save_served

    def save_and_die(*given):
        save(*given)
        if next(kills, False):
            raise KilledError

    monkeypatch.setattr(train, "save_served", save_and_die)


def files_of(folder):
    timed = ("manifest.json", TOWERS_FACTS)
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in timed]
    return {path.relative_to(folder): path.read_bytes() for path in paths if path.suffix != ".parquet"}


@pytest.mark.parametrize("ensemble", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_run_killed_after_peers_were_written_chooses_as_an_uninterrupted_one(ensemble, tmp_path, monkeypatch):
    """Once neighbors are added to vectors that hold no pairs, once a peer takes the place of towers that learned
    nothing.
    """
    monkeypatch.setattr(peer_tuning, "IALS_MAX_POSITIVES", 10)
    if ensemble == 1:
        monkeypatch.setattr(served_model, "MAX_RANK", 4)
        recipe = best(world_recipe(partners(tmp_path / "log"), {}), epochs=1)
    else:
        recipe = best(worlds.popularity_only(tmp_path / "log"), epochs=1, learning_rate=1e-9)
        retriever = recipe.retriever.model_copy(update={"ensemble": ensemble})
        recipe = recipe.model_copy(update={"retriever": retriever})
    _, _, whole, _ = pipeline.up_to_training(Job(recipe, tmp_path / "whole"))
    killed_once(monkeypatch)
    with pytest.raises(KilledError):
        pipeline.up_to_training(Job(recipe, tmp_path / "cut"))
    _, _, resumed, _ = pipeline.up_to_training(Job(recipe, tmp_path / "cut"))
    assert (whole.folder / ADDITIONS).exists() == (ensemble == 1)
    assert bool(list(whole.folder.rglob(WEIGHTS))) == (TOWERS in whole.facts["served"])
    assert ensemble == 1 or TOWERS not in whole.facts["served"]
    assert resumed.facts["best"] == whole.facts["best"]
    assert resumed.facts["quality"] == whole.facts["quality"]
    assert files_of(resumed.folder) == files_of(whole.folder)


def test_towers_are_not_trained_again_after_a_kill_in_the_comparison(tmp_path, monkeypatch):
    recipe, trained = best(worlds.popularity_only(tmp_path / "log"), epochs=1), []
    fit, choose = train.fit, train.choose_served

    def die(*given, **named):
        raise KilledError

    monkeypatch.setattr(train, "fit", lambda *given, **named: trained.append(named["out"]) or fit(*given, **named))
    monkeypatch.setattr(train, "choose_served", die)
    with pytest.raises(KilledError):
        pipeline.up_to_training(Job(recipe, tmp_path / "cut"))
    monkeypatch.setattr(train, "choose_served", choose)
    _, _, resumed, _ = pipeline.up_to_training(Job(recipe, tmp_path / "cut"))
    assert len(trained) == 1
    _, _, whole, _ = pipeline.up_to_training(Job(recipe, tmp_path / "whole"))
    assert {name: resumed.facts[name] for name in ("best", "quality", "best_epoch")} == {
        name: whole.facts[name] for name in ("best", "quality", "best_epoch")
    }
    assert files_of(resumed.folder) == files_of(whole.folder)


def test_with_last_n_no_model_with_recent_popularity_is_compared(tmp_path):
    recipe = best(worlds.walks(tmp_path / "log"), epochs=1)
    split = LastEvents(kind="last_n", test=1, validation=1)
    recipe = recipe.model_copy(update={"prepare": recipe.prepare.model_copy(update={"split": split})})
    _, _, trained, _ = pipeline.up_to_training(Job(recipe, tmp_path))
    quality = trained.facts["quality"]
    assert {TOWERS, "item-kNN", "EASE"} <= set(quality)
    assert not [name for name in quality if "recency" in name or RECENT_POPULARITY in name]
    assert all(peer["recency"] is None and peer["kind"] != RECENT_POPULARITY for peer in trained.facts["best"]["peers"])
    tuned = load_tuning(trained.folder)  # for the baselines of the report, which count as of each request
    assert any("recency" in choice.name for choice in tuned.choices)
