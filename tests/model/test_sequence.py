"""A position knows what came before it and nothing else, however it is batched, padded or cut."""

import math

import pytest
import torch

import twofold
from tests.worlds import walks, world_recipe
from twofold.model.encoder import Encoder, Layers, Sequence
from twofold.model.sequence import SequenceEncoder
from twofold.pipeline import report_of

BLOCK = Sequence("seen", rows=9, dim=8, length=6, depth=2, heads=2, dropout=0.3)


def encoder(dim=8, *, length=6, depth=2, heads=2):
    torch.manual_seed(0)
    return SequenceEncoder(dim, length=length, depth=depth, heads=heads, dropout=0.0).double()


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


def test_order_matters():
    model, read = encoder(), events()
    assert not torch.allclose(model(read)[:, -1], model(read[:, [1, 0, 2, 3, 4, 5]])[:, -1])


def test_positions_are_distances():
    """Without the start vector, moving all events along changes nothing: attention reads angles' differences."""
    model, read = encoder(), events(length=4)
    layer, cosines, sines = model.layers[0], model.cosines, model.sines
    first, later = (layer(read, cosines[part], sines[part]) for part in (slice(0, 4), slice(3, 7)))
    torch.testing.assert_close(first, later)


def test_one_layer_equals_a_loop_written_from_the_definition():
    model, read = encoder(dim=4, depth=1, heads=1), events(lines=1, length=3, dim=4)[0]
    layer = model.layers[0]

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
            [query @ turned(key, place) / 2 for place, (_, key, _, _) in enumerate(parts[: position + 1])]
        )
        seen = sum(share * part[2] for share, part in zip(scores.softmax(0), parts, strict=False))
        inner = vectors[position] + layer.attended(seen * torch.nn.functional.silu(own[3]))
        gate, values = layer.feed(scaled(inner, layer.before_feed)).split(8)
        outer = inner + layer.fed(torch.nn.functional.silu(gate) * values)
        expected = scaled(outer, model.norm)
        torch.testing.assert_close(model(read[None])[0, position], expected)


@pytest.mark.slow
def test_eight_layers_still_learn_what_two_do():
    """The last event but one is the answer. Plain SASRec collapses at this depth."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    block = Sequence("seen", rows=9, dim=16, length=6, depth=8, heads=2, dropout=0.0)
    tower = Encoder((block,), Layers(9, unit_length=False))
    optimiser = torch.optim.Adam(tower.parameters(), lr=3e-3)
    for _ in range(150):
        rows = torch.randint(1, 9, (64, 6), generator=generator)
        loss = torch.nn.functional.cross_entropy(tower({"seen": rows}), rows[:, -2])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    rows = torch.randint(1, 9, (200, 6), generator=generator)
    assert (tower({"seen": rows}).argmax(dim=1) == rows[:, -2]).float().mean() > 0.95


def test_whole_sequences_with_places_answer_as_each_history_alone():
    torch.manual_seed(0)
    tower = Encoder((BLOCK,), Layers(8)).eval()
    rows = torch.tensor([[3, 1, 4, 1, 0, 0], [5, 8, 2, 6, 5, 3]])
    asked = [(0, 0), (0, 2), (0, 4), (1, 1), (1, 6)]
    places = torch.tensor([line * 7 + count for line, count in asked])
    together = tower({"seen": rows, "seen.places": places})
    for vector, (line, count) in zip(together, asked, strict=True):
        alone = torch.zeros(1, 6, dtype=torch.int64)
        alone[0, :count] = rows[line, :count]
        torch.testing.assert_close(tower({"seen": alone})[0], vector)


def test_an_empty_history_has_an_answer_of_its_own():
    torch.manual_seed(0)
    tower = Encoder((BLOCK,), Layers(8)).eval()
    nothing = tower({"seen": torch.zeros(2, 6, dtype=torch.int64)})
    assert nothing.isfinite().all()
    assert torch.equal(nothing[0], nothing[1])


@pytest.mark.parametrize("lent", [False, True])
def test_a_lent_table_is_read_and_trained_but_saved_once(lent):
    torch.manual_seed(0)
    table = torch.nn.Embedding(9, 8, padding_idx=0)
    tower = Encoder((BLOCK,), Layers(8), lent={"seen": table} if lent else None)
    assert any("tables" in name for name in tower.state_dict()) != lent
    tower({"seen": torch.tensor([[1, 2, 0, 0, 0, 0]])}).sum().backward()
    assert (table.weight.grad is not None) == lent
    if lent:
        assert table.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist() == [1, 2]


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """The world of walks, by a user tower that reads histories in each of these ways."""
    data = walks(tmp_path_factory.mktemp("world")).data.model_dump()

    def judged(loss="full_softmax", **feature):
        features = {"user": [{"of": "positives", **feature}], "item": [{"kind": "id"}]}
        train = {"epochs": 40, "batch_size": 256, "learning_rate": 0.01, "loss": {"kind": loss}}
        recipe = world_recipe(data, {"features": features, "train": train})
        job = twofold.run(recipe, runs=tmp_path_factory.mktemp("runs"))
        return job, report_of(job.folder).metrics_of("model")["catalogue/hit_rate@1"]

    return judged


@pytest.mark.slow
def test_order_is_learnt_from_all_positions_and_a_set_does_not_know_it(walked):
    _, by_mean = walked(kind="history", last=20)
    _, by_attention = walked(kind="history", last=20, pool="attention", table="shared")
    job, by_sequence = walked(kind="sequence", last=20, dropout=0.1)
    assert max(by_mean, by_attention) < 0.7
    assert by_sequence > 0.9
    served = twofold.load(job.folder)
    forwards, backwards = (served.recommend_for_history(list(walk), k=1) for walk in (range(20, 29), range(28, 19, -1)))
    assert (forwards["item_id"].to_pylist(), backwards["item_id"].to_pylist()) == ([29], [19])


@pytest.mark.slow
def test_items_of_the_batch_as_negatives_serve_it_too(walked):
    _, hit_rate = walked("in_batch_softmax", kind="sequence", last=20, dropout=0.1)
    assert hit_rate > 0.9
