import pytest
import torch

from twofold.model.encoder import Encoder, Layers, Lookup, Number, Pool, _pooled, mean_of_rows

BLOCKS = (Pool("history", 6, 4), Lookup("maker", 3, 2), Number("length"))
INPUTS = {
    "history": torch.tensor([[0, 2, 3], [0, 0, 0]]),
    "maker": torch.tensor([1, 0]),
    "length": torch.tensor([0.5, 0.0]),
}


def test_mean_leaves_padding_out_and_is_zero_when_empty():
    table = torch.arange(12.0).reshape(6, 2)
    found = mean_of_rows(table, torch.tensor([[0, 2, 3], [0, 0, 0], [5, 5, 0]]))
    assert found.tolist() == [[5.0, 6.0], [0.0, 0.0], [10.0, 11.0]]


def test_windows_are_the_means_of_the_newest_and_concat_keeps_each():
    table = torch.arange(12.0).reshape(6, 2) * torch.tensor([[0.0]] + [[1.0]] * 5)
    rows = torch.tensor([[0, 1, 2, 3, 5], [0, 0, 0, 0, 4]])
    windows = Pool("history", 6, 2, "windows", 5)
    assert windows.windows == (1, 3)
    expected = [[10.0, 11.0, (4 + 6 + 10) / 3, (5 + 7 + 11) / 3], [8.0, 9.0, 8.0, 9.0]]
    torch.testing.assert_close(_pooled(windows, table, rows), torch.tensor(expected))
    concat = Pool("history", 6, 2, "concat", 5)
    assert _pooled(concat, table, rows)[1].tolist() == [0.0] * 8 + [8.0, 9.0]
    assert (windows.width, concat.width) == (4, 10)


def test_given_vectors_are_read_but_neither_trained_nor_saved():
    torch.manual_seed(0)
    given = torch.cat([torch.zeros(1, 3), torch.randn(5, 3)])
    blocks = (Pool("look", 6, 3, "mean", 2, vectors="look"), Pool("last", 6, 3, "concat", 2, vectors="look"))
    encoder = Encoder(blocks, Layers(4), fixed_tables={"look": given})
    rows = torch.tensor([[1, 5], [0, 2]], dtype=torch.int32)
    flat = torch.cat([(given[1] + given[5]) / 2, given[1], given[5]])
    expected = torch.nn.functional.normalize(encoder.layers(flat[None]))
    torch.testing.assert_close(encoder({"look": rows, "last": rows})[:1], expected)
    assert {name for name, _ in encoder.named_parameters()} == set(encoder.state_dict())
    assert not any("look" in name for name in encoder.state_dict())


def test_numbers_go_in_as_they_are_or_through_a_layer_of_their_own():
    torch.manual_seed(0)
    encoder = Encoder((Number("age"), Number("rate", hidden_dim=3), Number("shares", 2)), Layers(4))
    inputs = {"age": torch.tensor([2.0]), "rate": torch.tensor([0.5]), "shares": torch.tensor([[0.25, 0.75]])}
    rate = torch.relu(encoder.readers["rate"][0](torch.tensor([0.5])))
    flat = torch.cat([torch.tensor([2.0]), rate, torch.tensor([0.25, 0.75])])
    torch.testing.assert_close(encoder(inputs), torch.nn.functional.normalize(encoder.layers(flat[None])))


def test_vectors_have_unit_length_and_a_line_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    encoder = Encoder(BLOCKS, Layers(5, (8,)))
    together = encoder(INPUTS)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(2))
    alone = encoder({name: values[:1] for name, values in INPUTS.items()})
    torch.testing.assert_close(alone, together[:1])


@pytest.mark.parametrize("unit_length", [True, False])
def test_normalized_outputs_are_those_of_the_formula(unit_length):
    torch.manual_seed(0)
    encoder = Encoder(BLOCKS, Layers(5, (8,), dropout=0.5, batch_norm=True, unit_length=unit_length))
    first, _, _, last, batch_norm = encoder.layers
    flat = torch.randn(6, first.in_features)
    outputs = last(first(flat).relu())
    expected = (outputs - outputs.mean(dim=0)) / (outputs.var(dim=0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(batch_norm(outputs), expected)
    lengths = encoder(INPUTS).norm(dim=1)
    assert torch.allclose(lengths, torch.ones(2)) == unit_length
    encoder.eval()
    together, alone = encoder(INPUTS), encoder({name: values[1:] for name, values in INPUTS.items()})
    torch.testing.assert_close(alone, together[1:])  # what a line is served does not depend on its batch


def test_dropped_ids_are_read_as_the_unknown_which_is_trained_then():
    torch.manual_seed(0)
    encoder = Encoder((Lookup("id", 5, 3, dropout=0.4, single_from=1),), Layers(2))
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.1)
    ids = torch.arange(1, 5, dtype=torch.int32).repeat(2000)
    found = encoder._embed(encoder.feature_blocks[0], encoder._with_unknown({"id": ids}))
    is_unknown = (found == encoder.tables["id"].weight[0]).all(dim=1)
    assert abs(is_unknown.float().mean() - 0.4) < 4 * (0.4 * 0.6 / 8000) ** 0.5
    assert torch.equal(found[~is_unknown], encoder.tables["id"](ids)[~is_unknown])
    encoder({"id": ids}).sum().backward()
    optimizer.step()
    assert encoder.tables["id"].weight[0].abs().min() > 0
    encoder.eval()
    assert torch.equal(encoder._embed(encoder.feature_blocks[0], {"id": ids}), encoder.tables["id"](ids))


def test_what_is_fitted_on_one_item_alone_is_unknown_together_with_its_id():
    """Makers 3 and 4 and tag 2 belong to one item; maker 1 and tag 1 are shared, and stay."""
    torch.manual_seed(0)
    blocks = (
        Lookup("id", 9, 3, dropout=0.5, single_from=1),
        Lookup("maker", 5, 3, single_from=3),
        Lookup("hour", 5, 3),
        Pool("tags", 3, 3, single_from=2),
    )
    encoder = Encoder(blocks, Layers(2))
    inputs = {
        "id": torch.arange(1, 5, dtype=torch.int32).repeat(500),
        "maker": torch.tensor([1, 3, 4, 0], dtype=torch.int32).repeat(500),
        "hour": torch.tensor([4, 4, 4, 4], dtype=torch.int32).repeat(500),
        "tags": torch.tensor([[1, 2], [2, 0], [1, 1], [0, 0]], dtype=torch.int32).repeat(500, 1),
    }
    masked = encoder._with_unknown(inputs)
    is_new = masked["id"] == 0
    assert 0.4 < is_new.float().mean() < 0.6
    single = inputs["maker"] >= 3
    assert torch.equal(masked["maker"], torch.where(is_new & single, 0, inputs["maker"]))
    assert torch.equal(masked["tags"], torch.where(is_new[:, None] & (inputs["tags"] == 2), 0, inputs["tags"]))
    assert torch.equal(masked["hour"], inputs["hour"])
    # The unknown maker is trained as the unknown id is; the unknown hour never occurs, and padding stays zero.
    encoder(inputs).sum().backward()
    gradients = {name: table.weight.grad[0].abs().max() for name, table in encoder.tables.items()}
    assert gradients["id"] > 0
    assert gradients["maker"] > 0
    assert gradients["hour"] == gradients["tags"] == 0
    encoder.eval()
    torch.testing.assert_close(encoder(inputs), encoder(inputs))


def test_without_unknown_rate_nothing_is_masked_and_row_zero_stays_zero():
    encoder = Encoder((Lookup("id", 9, 3, single_from=1), Lookup("maker", 5, 3, single_from=3)), Layers(2))
    inputs = {"id": torch.arange(1, 9), "maker": torch.full((8,), 4)}
    encoder(inputs).sum().backward()
    for table in encoder.tables.values():
        assert table.weight.grad[0].abs().max() == 0


def test_row_zero_is_zero_and_is_not_trained():
    torch.manual_seed(0)
    encoder = Encoder(BLOCKS, Layers(3))
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.1, fused=True)
    encoder(INPUTS).sum().backward()
    optimizer.step()
    assert encoder.tables["history"].weight[0].tolist() == [0.0] * 4
    assert encoder.tables["maker"].weight[0].tolist() == [0.0] * 2


@pytest.mark.parametrize("name", ["type", "training", "keys", "a.b", "", "genre/sub"])
def test_a_feature_may_have_any_name(name):
    encoder = Encoder(
        (Lookup(name, 5, 3), Number("length", hidden_dim=2), Number(f"{name}.x", hidden_dim=2)), Layers(2)
    )
    inputs = {name: torch.tensor([1, 2]), "length": torch.ones(2), f"{name}.x": torch.ones(2)}
    assert encoder(inputs).shape == (2, 2)
    assert sum(weight.shape == (5, 3) for weight in encoder.state_dict().values()) == 1
