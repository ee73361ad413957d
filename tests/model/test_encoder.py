import torch

from twofold.model.encoder import Encoder, Lookup, Number, Pool, mean_of_rows

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


def test_vectors_have_unit_length_and_a_line_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    encoder = Encoder(BLOCKS, hidden=(8,), dim=5)
    together = encoder(INPUTS)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(2))
    alone = encoder({name: values[:1] for name, values in INPUTS.items()})
    torch.testing.assert_close(alone, together[:1])


def test_row_zero_is_zero_and_is_not_trained():
    torch.manual_seed(0)
    encoder = Encoder(BLOCKS, hidden=(), dim=3)
    optimiser = torch.optim.Adam(encoder.parameters(), lr=0.1, fused=True)
    encoder(INPUTS).sum().backward()
    optimiser.step()
    assert encoder.tables["history"].weight[0].tolist() == [0.0] * 4
    assert encoder.tables["maker"].weight[0].tolist() == [0.0] * 2
