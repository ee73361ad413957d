"""A position knows what came before it and nothing else, however it is batched, padded or cut."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import twofold
from tests.worlds import FIRST_MS, TEST, pauses, walks, world_recipe
from twofold.model.encoder import Encoder, Layers, Sequence
from twofold.model.onnx_export import export_user_tower
from twofold.model.sequence import TIMES, SequenceEncoder
from twofold.pipeline.job import report_of
from twofold.recipe.load import dump_recipe
from twofold.serve.onnx_models import load_user_tower

HOUR_S, DAY_S = 3600, 24 * 3600
EDGES = [math.exp(third / 3) - 0.5 for third in range(-2, 65)]  # of buckets, each at the nearest whole second
BLOCK = Sequence("seen", rows=9, dim=8, length=6, num_layers=2, num_heads=2, dropout=0.3)


def encoder(dim=8, *, length=6, num_layers=2, num_heads=2, is_timed=False):
    torch.manual_seed(0)
    made = SequenceEncoder(
        dim, length=length, num_layers=num_layers, num_heads=num_heads, dropout=0.0, is_timed=is_timed
    ).double()
    for name, parameter in made.named_parameters():
        if name.endswith("by_time"):
            torch.nn.init.normal_(parameter)
    return made


def events(lines=3, length=6, dim=8):
    return torch.randn(lines, length, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_a_position_answers_for_the_events_before_it_alone():
    model, read = encoder(), events()
    whole = model(read)
    assert whole.shape == (3, 7, 8)
    for count in range(7):
        torch.testing.assert_close(model(read[:, :count])[:, count], whole[:, count])
        changed = read.clone()
        changed[:, count:] += 1  # padding, or the future
        assert torch.equal(model(changed)[:, : count + 1], whole[:, : count + 1])
    before = model(torch.cat([read[:, :2] + 1, read[:, 2:]], dim=1))
    assert not torch.allclose(before[:, 3:], whole[:, 3:])


@pytest.mark.parametrize("is_timed", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_one_place_of_each_sequence_is_that_of_the_whole_pass(is_timed, num_layers):
    model, read = encoder(is_timed=is_timed, num_layers=num_layers), events()
    ages = torch.tensor([[900, 70, 9, 3, 1, 0]] * 3) if is_timed else None
    places = torch.tensor([0, 3, 6])
    torch.testing.assert_close(model.at(places, read, ages), model(read, ages)[torch.arange(3), places])


def test_order_matters():
    model, read = encoder(), events()
    assert not torch.allclose(model(read)[:, -1], model(read[:, [1, 0, 2, 3, 4, 5]])[:, -1])


def test_positions_are_distances():
    """Attention reads differences of angles: without the start vector, shifting all events changes nothing."""
    model, read = encoder(), events(length=4)
    layer, cosines, sines = model.layers[0], model.cosines, model.sines
    first, later = (layer(read, cosines[part], sines[part]) for part in (slice(0, 4), slice(3, 7)))
    torch.testing.assert_close(first, later)


@pytest.mark.parametrize("moments", [None, [5, 60, 60 + DAY_S, 61 + DAY_S]], ids=["order", "time"])
def test_one_layer_equals_a_loop_written_from_the_definition(moments):
    """`moments` are those of the three events and of the request, in seconds."""
    model, read = encoder(dim=4, num_layers=1, num_heads=1, is_timed=bool(moments)), events(lines=1, length=3, dim=4)[0]
    layer = model.layers[0]

    def of_time(position, place):
        """Returns the bias for the time from an event until the next one; the start vector has none."""
        if not moments:
            return 0
        passed = moments[position] - moments[place - 1]
        return layer.by_time[0, 1 + sum(passed >= edge for edge in EDGES) if place else 0]

    def scaled(vector, norm):
        return vector / (vector.square().mean() + torch.finfo(vector.dtype).eps).sqrt() * norm.weight

    def turned(vector, position):
        angles = [position, position / math.sqrt(10_000)]
        pairs = [complex(vector[i], vector[2 + i]) * complex(math.cos(a), math.sin(a)) for i, a in enumerate(angles)]
        return torch.tensor([pair.real for pair in pairs] + [pair.imag for pair in pairs], dtype=torch.float64)

    vectors = torch.cat([model.start[None], read]).detach()
    parts = [layer.attend(scaled(vector, layer.before_attention)).detach().split(4) for vector in vectors]
    for position, own in enumerate(parts):
        query = turned(own[0], position)
        scores = torch.stack(
            [
                query @ turned(key, place) / 2 + of_time(position, place)
                for place, (_, key, _, _) in enumerate(parts[: position + 1])
            ]
        )
        seen = sum(share * part[2] for share, part in zip(scores.softmax(0), parts, strict=False))
        inner = vectors[position] + layer.attended(seen * torch.nn.functional.silu(own[3]))
        gate, values = layer.feed(scaled(inner, layer.before_feed)).split(8)
        outer = inner + layer.fed(torch.nn.functional.silu(gate) * values)
        expected = scaled(outer, model.norm)
        ages = torch.tensor([[moments[-1] - moment for moment in moments[:-1]]]) if moments else None
        torch.testing.assert_close(model(read[None], ages)[0, position], expected)


def test_buckets_of_times_are_three_to_a_factor_of_e():
    model = SequenceEncoder(4, length=9, num_layers=1, num_heads=1, dropout=0.0, is_timed=True)
    edges = [round(math.exp(third / 3)) for third in range(2, 64)]
    seconds = torch.tensor([0, 1, 2**31 - 1, *edges, *(edge - 1 for edge in edges)], dtype=torch.int32)
    buckets = model._buckets(seconds[:, None])
    assert buckets[:, :, 0].unique().tolist() == [0]  # of the start nothing is known
    assert buckets[:, 1, 1].tolist() == [1 + sum(second >= edge for edge in EDGES) for second in seconds.tolist()]
    assert buckets[:3, 1, 1].tolist() == [1, 5, TIMES - 1]


def test_a_timed_encoder_begins_as_one_of_order_alone():
    torch.manual_seed(0)
    plain = SequenceEncoder(8, length=6, num_layers=2, num_heads=2, dropout=0.0)
    torch.manual_seed(0)
    timed = SequenceEncoder(8, length=6, num_layers=2, num_heads=2, dropout=0.0, is_timed=True)
    ages = torch.arange(6, 0, -1).repeat(3, 1) * HOUR_S
    torch.testing.assert_close(timed(events().float(), ages), plain(events().float()))
    assert {name for name, _ in timed.named_parameters()} - {name for name, _ in plain.named_parameters()} == {
        f"layers.{layer}.by_time" for layer in range(2)
    }
    timed(events().float(), ages).sum().backward()
    assert all((layer.by_time.grad != 0).sum() > 2 for layer in timed.layers)


def test_the_future_and_the_time_of_day_change_nothing():
    """Ages count from the last position; what was known earlier must not depend on when that is."""
    model, read = encoder(is_timed=True), events()
    ages = torch.tensor([[9 * DAY_S, 8 * DAY_S, 8 * DAY_S - 50, 3 * DAY_S, HOUR_S, 1]]).repeat(3, 1)
    whole = model(read, ages)
    torch.testing.assert_close(model(read, ages + 40 * DAY_S)[:, :6], whole[:, :6])
    assert not torch.allclose(model(read, ages + 40 * DAY_S)[:, 6], whole[:, 6])
    for count in range(6):
        ages_then = torch.where(torch.arange(6) < count, ages - ages[:, count, None], 0)
        torch.testing.assert_close(model(read, ages_then)[:, count], whole[:, count])


@pytest.mark.slow
def test_eight_layers_still_learn_what_two_do():
    """The last event but one is the answer. Plain SASRec collapses at this depth."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    block = Sequence("seen", rows=9, dim=16, length=6, num_layers=8, num_heads=2, dropout=0.0)
    tower = Encoder((block,), Layers(9, unit_length=False))
    optimizer = torch.optim.Adam(tower.parameters(), lr=3e-3)
    for _ in range(150):
        rows = torch.randint(1, 9, (64, 6), generator=generator)
        loss = torch.nn.functional.cross_entropy(tower({"seen": rows}), rows[:, -2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rows = torch.randint(1, 9, (200, 6), generator=generator)
    assert (tower({"seen": rows}).argmax(dim=1) == rows[:, -2]).float().mean() > 0.95


def test_whole_sequences_with_places_answer_as_each_history_alone():
    torch.manual_seed(0)
    tower = Encoder((BLOCK,), Layers(8)).eval()
    rows = torch.tensor([[3, 1, 4, 1, 0, 0], [5, 8, 2, 6, 5, 3]])
    requests = [(0, 0), (0, 2), (0, 4), (1, 1), (1, 6)]
    places = torch.tensor([line * 7 + count for line, count in requests])
    together = tower({"seen": rows, "seen.places": places})
    for vector, (line, count) in zip(together, requests, strict=True):
        alone = torch.zeros(1, 6, dtype=torch.int64)
        alone[0, :count] = rows[line, :count]
        torch.testing.assert_close(tower({"seen": alone})[0], vector)


@pytest.mark.slow
def test_a_served_graph_reads_times_as_the_tower_does(tmp_path):
    torch.manual_seed(0)
    block = replace(BLOCK, is_timed=True)
    tower = Encoder((block,), Layers(8)).eval()
    for layer in tower.readers["seen"].layers:
        torch.nn.init.normal_(layer.by_time)
    export_user_tower(tower, tmp_path / "tower.onnx")
    served = load_user_tower(tmp_path / "tower.onnx")
    assert served.inputs == ("seen", "seen.ages")
    draw = np.random.default_rng(0)
    counts = draw.integers(7, size=400)
    held = np.arange(6) < counts[:, None]
    ages = -np.sort(-draw.integers(2**31, size=(400, 6)) // 2 ** draw.integers(31, size=(400, 6)), axis=1) * held
    edges = np.ceil(EDGES[2:-1])
    ages[:60] = (-np.sort(-draw.choice([*edges, *(edges - 1)], (60, 6)), axis=1) * held[:60]).astype(int)
    inputs = {"seen": (draw.integers(1, 9, (400, 6)) * held).astype(np.int32), "seen.ages": ages.astype(np.int32)}
    with torch.inference_mode():
        judged = tower({name: torch.from_numpy(values) for name, values in inputs.items()}).numpy()
    np.testing.assert_allclose(served.vectors(inputs), judged, atol=1e-5)
    one = {name: values[5:6] for name, values in inputs.items()}
    np.testing.assert_allclose(served.vectors(one), judged[5:6], atol=1e-5)
    assert not np.allclose(served.vectors({**inputs, "seen.ages": inputs["seen.ages"] // 2}), judged, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("is_timed", [True, False])
def test_what_only_the_time_since_the_last_event_tells(is_timed):
    """The answer is the last event, or 8 more where it was a day ago and not an hour."""
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    tower = Encoder((replace(BLOCK, dim=16, dropout=0.0, is_timed=is_timed),), Layers(17, unit_length=False))
    optimizer = torch.optim.Adam(tower.parameters(), lr=1e-2)

    def drawn(lines):
        rows = torch.randint(1, 9, (lines, 6), generator=draw)
        is_old = torch.randint(2, (lines, 7), generator=draw)
        gaps = torch.where(is_old == 1, DAY_S, HOUR_S)[:, :6].flip(1).cumsum(1).flip(1)
        return {"seen": rows, "seen.ages": gaps}, rows[:, -1] + 8 * is_old[:, 5]

    for _ in range(120):
        inputs, wanted = drawn(64)
        loss = torch.nn.functional.cross_entropy(tower(inputs), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    inputs, wanted = drawn(400)
    right = float((tower(inputs).argmax(dim=1) == wanted).float().mean())
    assert right > 0.95 if is_timed else right < 0.6


def test_an_empty_history_has_an_answer_of_its_own():
    torch.manual_seed(0)
    tower = Encoder((BLOCK,), Layers(8)).eval()
    nothing = tower({"seen": torch.zeros(2, 6, dtype=torch.int64)})
    assert nothing.isfinite().all()
    assert torch.equal(nothing[0], nothing[1])


@pytest.mark.parametrize("shared", [False, True])
def test_a_lent_table_is_read_and_trained_but_saved_once(shared):
    torch.manual_seed(0)
    table = torch.nn.Embedding(9, 8, padding_idx=0)
    tower = Encoder((BLOCK,), Layers(8), shared_tables={"seen": table} if shared else None)
    assert any("tables" in name for name in tower.state_dict()) != shared
    tower({"seen": torch.tensor([[1, 2, 0, 0, 0, 0]])}).sum().backward()
    assert (table.weight.grad is not None) == shared
    if shared:
        assert table.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist() == [1, 2]


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """The world of walks, by a user tower that reads histories in each of these ways."""
    data = walks(tmp_path_factory.mktemp("world")).data.model_dump()

    def judged(loss="full_softmax", **feature):
        features = {"user": [feature], "item": [{"kind": "id"}]}
        train = {"epochs": 40, "batch_size": 256, "learning_rate": 0.01, "loss": {"kind": loss}}
        recipe = world_recipe(data, {"features": features, "train": train})
        job = twofold.run(recipe, runs=tmp_path_factory.mktemp("runs"))
        return job, report_of(job.folder).metrics_of("model")["catalogue/hit_rate@1"]

    return judged


@pytest.mark.slow
def test_order_is_learnt_from_all_positions_and_a_set_does_not_know_it(walked):
    _, by_mean = walked(kind="history", events="positives", max_length=20)
    job, by_sequence = walked(kind="sequence", max_length=20, dropout=0.1)
    assert by_mean < 0.7
    assert by_sequence > 0.9
    served = twofold.load(job.folder)
    forwards, backwards = (served.recommend_for_history(list(walk), k=1) for walk in (range(20, 29), range(28, 19, -1)))
    assert (forwards["item_id"].to_pylist(), backwards["item_id"].to_pylist()) == ([29], [19])


@pytest.mark.slow
def test_items_of_the_batch_as_negatives_serve_it_too(walked):
    _, hit_rate = walked("in_batch_softmax", kind="sequence", max_length=20, dropout=0.1)
    assert hit_rate > 0.9


@pytest.fixture(scope="module")
def paused(tmp_path_factory):
    """The world of pauses, by a sequence tower: a run's folder. In a process of its own, where no shape is checked:
    840 steps take half a minute there, and five with the checks.
    """
    data = pauses(tmp_path_factory.mktemp("world")).data.model_dump()

    def judged(*, epochs, **feature):
        features = {
            "user": [{"kind": "sequence", "max_length": 4, "num_layers": 1, "dropout": 0.0, **feature}],
            "item": [{"kind": "id"}],
        }
        train = {"epochs": epochs, "batch_size": 128, "learning_rate": 0.01, "loss": {"kind": "full_softmax"}}
        runs = tmp_path_factory.mktemp("runs")
        (runs / "recipe.yaml").write_text(dump_recipe(world_recipe(data, {"features": features, "train": train})))
        options = [str(runs / "recipe.yaml"), "--runs", str(runs), "--run", "it"]
        subprocess.run([sys.executable, "-m", "twofold", "run", *options], check=True, capture_output=True)
        return runs / "it"

    return judged


@pytest.mark.slow
def test_a_pause_is_learnt_by_its_length_and_order_alone_does_not_know_it(paused):
    by_order = report_of(paused(epochs=5))
    assert by_order.metrics_of("model")["catalogue/hit_rate@1"] < 0.65
    folder = paused(epochs=15, time_bias=True)
    by_time = report_of(folder)
    assert by_time.metrics_of("model")["catalogue/hit_rate@1"] > 0.9
    assert (by_order.track, by_time.track) == ("time_free", "query_time")
    served = twofold.load(folder)
    users = served.bundle.users.ids
    last = served.bundle.positives.at[served.bundle.positives.offsets[1:] - 1].max()
    assert last < FIRST_MS + TEST * DAY_S * 1000 + HOUR_S * 500
    soon, later = (
        served.recommend(users, k=1, at=int(last) + pause, exclude_seen=False)["item_id"].to_numpy()
        for pause in (HOUR_S * 500, 22 * HOUR_S * 1000)
    )
    assert (soon < 30).mean() > 0.9  # places' first items are for who comes within the hour
    assert (later >= 30).mean() > 0.9
