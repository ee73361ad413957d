"""Batches of one language: what they hold, what negatives are counted by, what folds, what is refused."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import worlds
from tests.dataset.prepared import FEATURES, random_events, write_prepared
from twofold.dataset.batch_order import Order
from twofold.dataset.batches import epoch_batches
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import load_dataset
from twofold.dataset.example_blocks import BLOCK_ROWS, ExampleBlocks, number_groups
from twofold.dataset.examples import ROW, Examples
from twofold.errors import DataError
from twofold.evaluate.catalogue import evaluate_catalogue
from twofold.evaluate.window import evaluation_window
from twofold.model.two_tower import build_two_tower
from twofold.pipeline import run as pipeline
from twofold.pipeline.adapters import catalogue_scores
from twofold.recipe.features import reads_time
from twofold.recipe.train import Bce, InBatchSoftmax, Train
from twofold.tables import DAY_MS
from twofold.train.batch_groups import group_by_columns, group_by_span, sequences_of_a_batch
from twofold.train.loop import fit
from twofold.train.objective import build_objective, draw_columns


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grouped")
    write_prepared(folder / "prepare", random_events(0))
    build_dataset(folder / "prepare", FEATURES, folder / "dataset", time_zone="Asia/Shanghai")
    return load_dataset(folder / "dataset")


@pytest.fixture(scope="module")
def values(dataset):
    """Column → the value of each training row, read naively from the prepared tables."""
    prepared, rows = dataset.folder.parent / "prepare", dataset.examples["train"]
    items = {line["item_id"]: line for line in pq.read_table(prepared / "items.parquet").to_pylist()}
    users = {line["user_id"]: line for line in pq.read_table(prepared / "users.parquet").to_pylist()}
    of_items = [items[dataset.items.ids[int(row)].as_py()] for row in rows.item_rows]
    of_users = [users[dataset.users.ids[int(row)].as_py()] for row in rows.user_rows]
    return {
        "language": [line["language"] for line in of_items],
        "creator": [line["creator"] for line in of_items],
        "years": [line["years"] for line in of_users],
    }


def groups_of(dataset, columns, *, block_rows=BLOCK_ROWS, batch_size):
    """Returns the group of every training row, and checks how many rows each group has."""
    examples = ExampleBlocks(dataset.examples["train"], block_rows=block_rows)
    groups = group_by_columns(dataset, columns, examples, batch_size=batch_size)
    found = groups.of(np.arange(len(examples.rows)))
    assert np.bincount(found).tolist() == groups.counts.tolist()
    return found


@pytest.mark.parametrize("columns", [("language",), ("years",), ("language", "creator")])
def test_a_group_is_the_rows_of_one_value_of_each_column(dataset, values, columns):
    groups = groups_of(dataset, columns, batch_size=2)
    assert groups.tolist() == groups_of(dataset, columns, block_rows=70, batch_size=2).tolist()
    wanted = list(zip(*(values[column] for column in columns), strict=True))
    assert len(set(wanted)) == groups.max() + 1 > 3  # None is one of them, and no group is too small for 2
    assert len(set(zip(wanted, groups.tolist(), strict=True))) == len(set(wanted))


def test_items_come_before_users_where_both_have_the_column(dataset, values):
    groups = groups_of(dataset, ("language",), batch_size=2)
    assert groups.max() + 1 == len(set(values["language"])) == 4  # users speak four, none of them unknown
    assert group_by_columns(dataset, (), ExampleBlocks(dataset.examples["train"]), batch_size=2) is None


def test_groups_under_a_batch_stand_together_or_join_the_smallest_that_fills_one(dataset, values):
    counts = sorted(values["years"].count(value) for value in set(values["years"]))
    middle = len(counts) // 2
    assert counts[middle] > counts[middle - 1]
    groups = groups_of(dataset, ("years",), batch_size=counts[middle])
    found = sorted(np.bincount(groups))
    assert found == sorted([sum(counts[:middle]), *counts[middle:]])
    # The smallest group alone does not fill a batch that the next one fills.
    assert counts[1] > counts[0]
    groups = groups_of(dataset, ("years",), batch_size=counts[1])
    assert sorted(np.bincount(groups)) == sorted([counts[0] + counts[1], *counts[2:]])


def test_a_batch_holds_one_language_and_is_corrected_by_its_share_of_it(dataset, values):
    settings = Train(
        loss=InBatchSoftmax(kind="in_batch_softmax", uniform_negatives=30), batch_size=8, group_by=("language",)
    )
    objective = build_objective(settings, dataset)
    rows = dataset.examples["train"]
    language = dict(zip(rows.item_rows.tolist(), values["language"], strict=True))
    seen, crossing = set(), 0
    for batch in epoch_batches(dataset, rows, objective.order, seed=(0, 0), first=0):
        (own,) = {language[row] for row in batch.item_rows.tolist()}
        seen.add(own)
        positives = [row for row in rows.item_rows[objective.examples].tolist() if language[row] == own]
        expected = [np.log(positives.count(row) / len(positives)) for row in batch.item_rows.tolist()]
        found = objective.in_batch.log(batch.item_rows, group=batch.group)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))
        drawn = draw_columns(objective, batch).item_rows[8:].tolist()
        crossing += sum(language[row] != own for row in drawn)
    assert seen == set(values["language"])
    assert crossing > 100  # what is drawn uniformly is of any language


def test_what_leaves_nothing_to_group_is_refused(dataset, values):
    lines = np.flatnonzero(np.array([value == "language 1" for value in values["language"]]))
    examples = ExampleBlocks(dataset.examples["train"].take(lines))
    alone = replace(dataset, examples={"train": examples.rows})
    with pytest.raises(
        DataError, match=rf"group_by: language has a single value in the {len(lines)} training examples"
    ):
        group_by_columns(alone, ("language",), examples, batch_size=2)
    refusal = r"of the 4 groups of language, fewer than two fill a batch of 1,000 rows.*Lower train.batch_size"
    with pytest.raises(DataError, match=refusal):
        groups_of(dataset, ("language",), batch_size=1000)


def last_epoch(recipe, dataset, out, **changes):
    """Returns the model of a training's last epoch."""
    models, epochs = [], iter(range(1000))

    def build():
        models.append(build_two_tower(recipe.retriever, dataset.features, dataset.vectors))
        return models[-1]

    settings = recipe.train.model_copy(update=changes)
    fit(build, dataset, settings, validate=lambda model: float(next(epochs)), out=out)
    return models[-1]


# --- time -------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=60), st.integers(1, 12))
def test_spans_of_time_are_joined_until_they_are_large_enough(at, least):
    span = 10**8
    records = np.zeros(len(at), ROW)
    records["at"] = at
    found = group_by_span(ExampleBlocks(Examples(records, {}), block_rows=7), span, min_examples=least)
    groups, spans = found.of(np.arange(len(at))), np.array(at) // span
    assert np.bincount(groups).tolist() == found.counts.tolist()
    assert all(len(set(groups[spans == each].tolist())) == 1 for each in spans)  # a span is never divided
    order = np.argsort(at, kind="stable")
    assert (np.diff(groups[order]) >= 0).all()
    assert groups.min() == 0
    assert len(set(groups.tolist())) == groups.max() + 1
    assert groups.max() == 0 or np.bincount(groups).min() >= least


def test_batches_are_of_one_day_where_an_item_changes_with_time(dataset):
    rows = dataset.examples["train"]
    assert any(map(reads_time, dataset.features.features.item))
    objective = build_objective(Train(batch_size=4), dataset)
    days = [
        {(int(at) // DAY_MS) for at in batch.at}
        for batch in epoch_batches(dataset, rows, objective.order, seed=(0, 0), first=0)
    ]
    assert len(days) > 10
    assert len(set.union(*days)) > 3
    assert len(objective.order.groups) > 3
    for settings in (
        Train(batch_size=4, group_by_time="none"),
        Train(batch_size=4, loss=Bce(kind="bce")),  # no item stands beside another's query
    ):
        assert build_objective(settings, dataset).order.groups is None
    hours = build_objective(Train(batch_size=4, group_by_time="hour"), dataset).order.groups
    both = build_objective(Train(batch_size=2, group_by_time="day", group_by=("language",)), dataset).order.groups
    assert len(hours) >= len(objective.order.groups)
    assert len(both) > 4


@pytest.mark.parametrize(("span", "uniform"), [("day", 512), ("none", 0)])
def test_age_is_learned_where_items_are_compared_as_of_one_day(fresh_world, span, uniform, tmp_path):
    """Only age tells which items the day of test likes. In mixed batches all items have the age of their own likes, so
    that what is learned of it hangs on the initial weights.
    """
    recipe, dataset = fresh_world
    window, last = evaluation_window(dataset, "test"), []
    for seed in range(3):
        changes = {
            "loss": InBatchSoftmax(kind="in_batch_softmax", uniform_negatives=uniform),
            **{"group_by_time": span, "epochs": 4, "learning_rate": 0.003, "seed": seed},
        }
        model = last_epoch(recipe, dataset, tmp_path, **changes)
        found = evaluate_catalogue(window, catalogue_scores(model, dataset, window), ks=(20,))
        last.append(found.mean("catalogue/recall@20"))
    assert (min(last) > 0.75) == (span == "day"), last


@pytest.fixture(scope="module")
def fresh_world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fresh")
    recipe = worlds.fresh(folder / "log")
    job = pipeline.Job(recipe, folder / "run")
    return recipe, load_dataset(pipeline.build_dataset(job, pipeline.prepare(job)).folder)


# --- folding ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("languages")
    recipe = worlds.languages(folder / "log")
    job = pipeline.Job(recipe, folder / "run")
    return recipe, load_dataset(pipeline.build_dataset(job, pipeline.prepare(job)).folder)


@pytest.mark.parametrize(
    ("columns", "uniform", "folds"),
    [(("language",), 0, True), (("language",), 128, False), ((), 0, False)],
    ids=["grouped", "grouped and mixed", "shuffled"],
)
def test_languages_that_never_meet_fold_and_uniform_negatives_heal_it(world, columns, uniform, folds, tmp_path):
    recipe, dataset = world
    loss = InBatchSoftmax(kind="in_batch_softmax", uniform_negatives=uniform)
    share = share_of_other_languages(last_epoch(recipe, dataset, tmp_path, loss=loss, group_by=columns), dataset, k=10)
    # Of the items that a user has not met, half or more are of the other language: that is chance.
    assert 0.25 < share < 0.6 if folds else share < 0.02


def share_of_other_languages(model, dataset, *, k):
    """Returns the share of items in another language among the first k recommendations of all users."""
    window = evaluation_window(dataset, "test")
    scores = catalogue_scores(model, dataset, window)(slice(0, len(window.user_rows)))
    best = np.argsort(-scores, axis=1)[:, :k]
    users, items = np.asarray(dataset.users.ids)[window.user_rows], np.asarray(dataset.items.ids)
    return float((worlds.spoken(items[best]) != worlds.spoken(users)[:, None]).mean())


# --- sequences that examples share ------------------------------------------------------------------------------------


def order_of(counts, *, max_run, batch_size, groups=None):
    """Returns the order of examples of users with these numbers of examples."""
    records = np.zeros(sum(counts), ROW)
    records["user_rows"] = np.repeat(np.arange(len(counts)), counts)
    examples = ExampleBlocks(Examples(records, {}))
    return Order(examples, len(records), batch_size, groups, max_run=max_run)


def test_sequences_of_a_batch_are_counted_by_hand():
    # Users of 1, 4 and 5 examples read one sequence each, one of 11 may read 4: 1 to 5 examples, 5, and what is left.
    assert sequences_of_a_batch(order_of([1, 4, 5, 11], max_run=5, batch_size=21)) == 1 + 1 + 1 + 4 + 1
    assert sequences_of_a_batch(order_of([1, 4, 5, 11], max_run=5, batch_size=7)) == -(-7 // 3) + 1
    assert sequences_of_a_batch(order_of([1] * 40, max_run=5, batch_size=10)) == 10  # not more than examples
    assert sequences_of_a_batch(order_of([5] * 8, max_run=1, batch_size=10)) is None
    halves = number_groups([np.arange(20)], lambda indices: indices % 2)
    divided = order_of([5] * 4, max_run=5, batch_size=5, groups=halves)
    assert sequences_of_a_batch(divided) == 8 // 4 + 1  # each user is in both groups


def test_batches_hold_about_as_many_sequences_as_are_counted():
    counts = np.random.default_rng(0).geometric(0.05, 600).tolist()
    order = order_of(counts, max_run=20, batch_size=256)
    (blocks,) = order.epoch((0, 0))
    users = order.examples.rows.user_rows[blocks.indices]
    mean = (1 + (np.diff(users, axis=1) != 0).sum(axis=1)).mean()
    found = sequences_of_a_batch(order)
    assert found is not None
    assert mean <= found < 1.4 * mean
