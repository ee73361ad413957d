"""Choice of item neighbors whose exact scores are added to what is served with `retriever.kind: best`."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest

from twofold.evaluate.baseline_results import PeerChoice, PeerTuning
from twofold.evaluate.peers import Interactions
from twofold.item_neighbors import ItemNeighbors
from twofold.pipeline import best_model
from twofold.pipeline.best_model import NEIGHBORS
from twofold.pipeline.served_model import Served
from twofold.topk import Products

TUNED, QUALITY = {"shrink": 30.0}, 0.5
LOG = Interactions(*np.zeros((4, 1), np.int64), num_users=1, num_items=2)
NEAR = ItemNeighbors(np.array([[1], [0]], np.int32), np.ones((2, 1), np.float32))


@pytest.mark.parametrize(
    ("of_tuned", "of_undamped", "chosen"),
    [
        ([0.02, 0.02, 0.02, 0.02], [0.03, 0.03, 0.03, 0.03], best_model.UNDAMPED),
        ([0.03, 0.03, 0.03, 0.03], [0.02, 0.02, 0.02, 0.02], TUNED),
        ([0.004, 0.004, 0.004, 0.004], [0.003, 0.003, 0.003, 0.003], None),  # less than a hundredth of .5
        ([0.2, -0.15, 0.2, -0.15], [0.02, 0.02, 0.02, 0.02], best_model.UNDAMPED),  # .025 with a standard error of .09
        ([0.2, -0.15, 0.2, -0.15], [0.15, -0.2, 0.15, -0.2], None),
    ],
)
def test_the_better_of_two_tables_is_served_if_it_gains_beyond_its_error(of_tuned, of_undamped, chosen, monkeypatch):
    """Gains of four users by the neighbors with tuned constants and by those that nothing dampens."""
    scores = Products(np.full((4, 1), QUALITY, np.float32), np.ones((2, 1), np.float32))
    gains = iter((of_tuned, of_undamped))

    def with_next_gains(window, before, added, metrics):
        values = before.queries + np.float32(next(gains))[:, None]
        return float(values.mean()), 0.8, Products(values, before.items)

    monkeypatch.setattr(best_model, "_of_users", lambda window, scores, metrics: scores.queries[:, 0].astype(float))
    monkeypatch.setattr(best_model, "_best_addition", with_next_gains)
    monkeypatch.setattr(best_model, "fit_neighbors", lambda constants, positives: NEAR)
    monkeypatch.setattr(best_model, "newest_positives", lambda *given: np.zeros((4, 3), np.int32))
    tuning = PeerTuning("validation", 4, ("", ""), (PeerChoice("item-kNN", TUNED, ()),), with_peers=True)
    window = SimpleNamespace(user_rows=None, query_at=None, includes_seen=False)
    found = inspect.unwrap(best_model._with_additions)(window, (QUALITY, Served("sum"), scores), tuning, LOG, None)
    assert len(found) == (chosen is not None)
    for quality, served, _ in found:
        assert served.name == f"sum + {NEIGHBORS}"
        assert served.neighbors == {**chosen, "weight": 0.8}
        assert quality == pytest.approx(QUALITY + max(np.mean(of_tuned), np.mean(of_undamped)), abs=0.006)
