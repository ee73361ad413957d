"""Ranks as a naive sort gives them, nobody's positives, nothing of validation; and what they do to a model."""

import numpy as np
import pytest
import torch

from tests import worlds
from tests.dataset.prepared import FEATURES, LAST_TRAIN_MS, random_events, write_prepared
from twofold.dataset.batches import item_batches
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import load_dataset
from twofold.errors import DataError, RunError
from twofold.explain.probes import probe_vectors
from twofold.model.retriever import item_vectors, user_vectors
from twofold.model.two_tower import build_two_tower
from twofold.model.weights import encode
from twofold.pipeline import run as pipeline
from twofold.recipe.retriever import TwoTower
from twofold.recipe.train import HardNegatives, SampledSoftmax, Train
from twofold.train.hard_negatives import MINED, with_hard_negatives
from twofold.train.loop import fit
from twofold.train.negatives import HardNegativePool
from twofold.train.objective import build_objective

ASKED = TwoTower.model_validate({"kind": "two_tower", "dim": 8, "score": {"kind": "negative_distance"}})
SAMPLED = SampledSoftmax(kind="sampled_softmax", negatives=32)


def built(folder, events):
    write_prepared(folder / "prepare", events)
    build_dataset(folder / "prepare", FEATURES, folder / "dataset", time_zone="Asia/Shanghai")
    return load_dataset(folder / "dataset")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return built(tmp_path_factory.mktemp("mined"), random_events(0))


def mined_of(dataset, folder, *, skip=2, top=9, is_begun=False):
    torch.manual_seed(0)
    model = build_two_tower(ASKED, dataset.features, dataset.vectors)
    settings = Train(loss=SAMPLED, hard_negatives=HardNegatives(skip=skip, top=top))
    objective = build_objective(settings, dataset)
    return with_hard_negatives(objective, model, is_begun=is_begun, folder=folder), model


def test_the_ranks_are_those_of_a_sort_without_the_users_positives(dataset, tmp_path):
    objective, model = mined_of(dataset, tmp_path)
    mined, rows = objective.hard_pool, dataset.examples["train"]
    assert mined.user_rows.tolist() == sorted(set(rows.user_rows[rows.label].tolist()))
    catalogue = item_vectors(
        model, dataset, max(int(at) for at, label in zip(rows.at, rows.label, strict=True) if label)
    )
    short = 0
    for user, found, count in zip(mined.user_rows, mined.item_rows, mined.counts, strict=True):
        last = max(int(at) for at, of in zip(rows.at, rows.user_rows, strict=True) if of == user)
        (asking,) = user_vectors(model, dataset, np.array([user]), np.array([last]))
        liked = {int(item) for item in rows.item_rows[(rows.user_rows == user) & rows.label]}
        events = slice(*dataset.positives.offsets[user : user + 2])
        pairs = zip(dataset.positives.item_rows[events], dataset.positives.at[events], strict=True)
        liked |= {int(item) for item, at in pairs if at < last}
        scores = -((catalogue[: dataset.items.num_known] - asking) ** 2).sum(axis=1)
        order = [int(item) for item in np.argsort(-scores, kind="stable") if int(item) not in liked]
        expected = order[2:9]
        short += len(expected) < 7
        assert found.tolist() == expected + [-1] * (7 - len(expected))
        assert count == len(expected)
    assert short > 0  # of the 17 items some users like so many that fewer are left
    assert dataset.items.num_known < len(dataset.items)


def test_nothing_of_validation_is_looked_at(dataset, tmp_path):
    flipped = [
        event if event.at < LAST_TRAIN_MS else event.__class__(event.user, event.item, event.at, not event.liked, 1.0)
        for event in random_events(0)
    ]
    other = built(tmp_path, flipped)
    assert len(other.positives.at) != len(dataset.positives.at)
    files = []
    for each, name in ((dataset, "a"), (other, "b")):
        (tmp_path / name).mkdir()
        mined_of(each, tmp_path / name)
        files.append((tmp_path / name / MINED).read_bytes())
    assert files[0] == files[1]


def test_a_line_draws_from_its_own_users_ranks_each_as_likely():
    mined = HardNegativePool(
        np.array([3, 5, 9]), np.array([[7, 8, -1], [-1, -1, -1], [1, 2, 3]], np.int32), np.array([2, 0, 3])
    )
    torch.manual_seed(0)
    drawn, counts = mined.draw(torch.tensor([9, 3, 5, 9]), 3000)
    assert counts.tolist() == [3, 2, 0, 3]
    assert set(drawn[2].tolist()) == {-1}
    for line, items in ((0, [1, 2, 3]), (1, [7, 8]), (3, [1, 2, 3])):
        found = np.bincount(drawn[line].numpy(), minlength=9)
        assert found.sum() == found[items].sum()
        assert found[items] == pytest.approx(3000 / len(items), rel=0.1)


def test_mined_in_every_epoch_and_read_from_the_file_after_a_resume(dataset, tmp_path):
    first, _ = mined_of(dataset, tmp_path)
    written = (tmp_path / MINED).stat().st_mtime_ns
    for is_begun in (True, True):
        again, _ = mined_of(dataset, tmp_path, is_begun=is_begun)
        np.testing.assert_array_equal(again.hard_pool.item_rows, first.hard_pool.item_rows)
        assert (tmp_path / MINED).stat().st_mtime_ns == written
    mined_of(dataset, tmp_path)
    assert (tmp_path / MINED).stat().st_mtime_ns > written
    (tmp_path / MINED).unlink()
    with pytest.raises(
        RunError, match=r"hard_negatives.npy is missing, from which the killed training drew. Delete .* and"
    ):
        mined_of(dataset, tmp_path, is_begun=True)


def test_ranks_beyond_the_catalogue_are_refused(dataset, tmp_path):
    with pytest.raises(DataError, match=r"hard_negatives.top is 18, and the training window has 17 items. Lower it"):
        mined_of(dataset, tmp_path, top=18)


# --- what they do -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("languages")
    recipe = worlds.languages(folder / "log", num_items=256, num_languages=4)
    job = pipeline.Job(recipe, folder / "run")
    return recipe, load_dataset(pipeline.build_dataset(job, pipeline.prepare(job)).folder)


@pytest.mark.slow
@pytest.mark.parametrize(("easy", "is_collapsed"), [(100, False), (0, True)])
def test_hard_negatives_alone_trip_the_alarm_of_collapse_and_mixed_ones_do_not(world, easy, is_collapsed, tmp_path):
    recipe, dataset = world
    config = TwoTower.model_validate({"kind": "two_tower", "dim": 16, "score": {"kind": "dot"}})
    hard = HardNegatives(skip=0, top=8, easy_per_hard=easy)
    settings = recipe.train.model_copy(update={"loss": SAMPLED, "hard_negatives": hard})
    models, epochs = [], iter(range(100))

    def build():
        models.append(build_two_tower(config, dataset.features, dataset.vectors))
        return models[-1]

    fit(build, dataset, settings, validate=lambda model: float(next(epochs)), out=tmp_path)
    assert not (tmp_path / MINED).exists()
    vectors = encode(models[-1].item, item_batches(dataset, int(dataset.events.at.max())))
    alarming = {probe.name for probe in probe_vectors(vectors) if probe.is_alarming}
    assert alarming == ({"near_pairs"} if is_collapsed else set())
