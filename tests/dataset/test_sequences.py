"""Many lines in one sequence read what each would read alone; every line is learnt from once an epoch."""

from dataclasses import replace

import numpy as np
import pytest

from tests.dataset.prepared import random_events, write_prepared
from twofold.dataset.batch_order import Order
from twofold.dataset.batches import epoch_batches, gather_batch, query_batches
from twofold.dataset.build import build_dataset
from twofold.dataset.dataset import load_dataset
from twofold.dataset.example_blocks import ExampleBlocks
from twofold.dataset.sequences import sequence_inputs, sequence_order
from twofold.recipe.features import Features

NAME = "positives_sequence"
FEATURES = Features.model_validate(
    {
        "user": [
            {"kind": "sequence", "max_length": 6},
            {
                "kind": "history",
                "events": "positives",
                "max_length": 3,
                "pool": "windows",
                "share_item_embedding": True,
            },
            {"kind": "id"},
        ],
        "item": [{"kind": "id"}],
    }
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    write_prepared(folder / "prepare", random_events(0))
    build_dataset(folder / "prepare", FEATURES, folder / "dataset", time_zone="Asia/Shanghai")
    return load_dataset(folder / "dataset")


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timed")
    write_prepared(folder / "prepare", random_events(0))
    tree = FEATURES.model_dump(mode="json")
    tree["user"][0] |= {"time_bias": True, "max_length": 9}
    build_dataset(folder / "prepare", Features.model_validate(tree), folder / "dataset", time_zone="Asia/Shanghai")
    return load_dataset(folder / "dataset")


def with_sequence(dataset, **fields):
    """Returns the data set with a sequence feature that has these fields."""
    sequence, *others = dataset.features.features.user
    user = (sequence.model_copy(update=fields), *others)
    features = dataset.features.features.model_copy(update={"user": user})
    return replace(dataset, features=dataset.features.with_features(features))


def read(inputs):
    """Returns for each example the events before its place in the sequence."""
    rows, places = np.asarray(inputs[NAME]), np.asarray(inputs[f"{NAME}.places"])
    width = rows.shape[1] + 1
    return [rows[place // width, : place % width].tolist() for place in places]


def alone(dataset, rows):
    """Returns for each example the inputs of a request at its time."""
    found = []
    for inputs in query_batches(dataset, np.asarray(rows.user_rows), np.asarray(rows.at)):
        found += [[row for row in line if row] for line in inputs[NAME].tolist()]
    return found


def test_lines_that_stand_alone_read_what_a_request_reads(dataset):
    rows = dataset.examples["train"]
    shuffled = rows.take(np.random.default_rng(0).permutation(len(rows)))
    for line in range(60):
        chosen = shuffled.take(np.array([line]))
        assert read(sequence_inputs(dataset.features, dataset.positives, chosen)) == alone(dataset, chosen)


def test_lines_of_one_user_share_a_sequence_and_read_its_newest_part(dataset):
    rows = dataset.examples["train"]
    chosen, num_users = rows.take(np.arange(len(rows))), len(np.unique(rows.user_rows))
    long = with_sequence(dataset, max_length=40, share_item_embedding=False)
    inputs = gather_batch(long, rows, np.arange(len(rows))).user
    assert read(inputs) == alone(long, chosen)  # 40 hold every history
    assert len(inputs[NAME]) == num_users
    inputs = gather_batch(dataset, rows, np.arange(len(rows))).user
    cut, by_itself = read(inputs), alone(dataset, chosen)
    for part, whole in zip(cut, by_itself, strict=True):
        assert part == whole[len(whole) - len(part) :]
    assert max(map(len, cut)) == 6
    assert any(len(part) < len(whole) for part, whole in zip(cut, by_itself, strict=True))
    assert len(inputs[NAME]) > num_users


@pytest.mark.parametrize("labels", [{True}, {True, False}], ids=["likes", "all"])
def test_lines_read_the_times_that_a_request_at_their_moment_reads(timed, labels):
    rows = timed.examples["train"]
    lines = np.flatnonzero(np.isin(rows.label, list(labels)))
    chosen, inputs = rows.take(lines), gather_batch(timed, rows, lines).user
    (alone,) = query_batches(timed, np.asarray(chosen.user_rows), np.asarray(chosen.at))
    taken, ages = (np.pad(inputs[part].numpy(), ((0, 0), (0, 1))) for part in (NAME, f"{NAME}.ages"))
    shown = 0
    for line, place in enumerate(inputs[f"{NAME}.places"].tolist()):
        sequence, count = divmod(place, taken.shape[1])
        known = int((alone[NAME][line] != 0).sum())
        assert taken[sequence, :count].tolist() == alone[NAME][line, known - count : known].tolist()
        asked_ages = ages[sequence, :count] - ages[sequence, count]  # until the next event came, or the request
        assert asked_ages.tolist() == alone[f"{NAME}.ages"][line, known - count : known].tolist()
        assert not alone[f"{NAME}.ages"][line, known:].any()
        shown += len(np.unique(asked_ages)) > 2
    assert shown > 20
    if labels == {True}:  # its own events: they tell one another's moments
        assert len(taken) < len(lines) / 4


def test_an_epoch_holds_every_line_once_and_a_users_lines_together_and_in_order(dataset):
    user_rows = np.repeat([0, 1, 2, 5], [3, 40, 1, 17])
    seen = set()
    for epoch in range(5):
        order = sequence_order(user_rows, max_run=10, batch_size=8, draw=np.random.default_rng(epoch))
        assert sorted(order.tolist()) == list(range(61))
        jumps = np.flatnonzero(np.diff(order) != 1)
        lengths = np.diff(np.concatenate([[-1], jumps, [60]]))
        assert lengths.max() <= 20  # two of 10 may meet by chance
        seen.add(tuple(order[:8].tolist()))
    assert len(seen) == 5


def test_sequences_of_a_batch_are_of_about_equal_length():
    draw = np.random.default_rng(0)
    user_rows = np.repeat(np.arange(3000), draw.integers(1, 60, 3000))
    order = sequence_order(user_rows, max_run=50, batch_size=500, draw=draw)
    padded = taken = 0
    for batch in order[: len(order) // 500 * 500].reshape(-1, 500):
        starts = np.flatnonzero(np.diff(batch, prepend=-5) != 1)
        lengths = np.diff(np.append(starts, 500))
        padded, taken = padded + len(lengths) * lengths.max(), taken + 500
    assert padded / taken < 1.35  # every batch begins and ends within a sequence; shuffled it is 2


def test_batches_of_an_epoch_follow_the_order(dataset):
    rows = dataset.examples["train"]
    examples = ExampleBlocks(rows, "positive events")
    order = Order(examples, len(examples.indices(0)), 20, max_run=6)
    batches = list(epoch_batches(dataset, rows, order, seed=(0, 0), first=0))
    assert len(batches) == len(order) == order.num_examples // 20
    (made,) = order.epoch((0, 0))
    for batch, indices in zip(batches, made.indices, strict=True):
        assert batch.item_rows.tolist() == rows.item_rows[indices].tolist()
        assert len(batch.user[NAME]) < 20


def test_users_the_training_window_does_not_hold_share_row_0(dataset):
    held = np.unique(dataset.examples["train"].user_rows)
    ids = dataset.user_arrays.attributes["id"]
    assert sorted(ids[held].tolist()) == list(range(1, len(held) + 1))
    assert np.delete(ids, held).tolist() == [0] * (len(dataset.users) + 1 - len(held))
