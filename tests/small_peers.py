"""Small constants of the peers, for runs whose test is not about how they are tuned."""

from dataclasses import replace

import pytest


def shrink_ials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tunes iALS of 16 dimensions along one grid: by default it takes longer than all else in the run of a world.

    The whole search is a matter of evaluate/test_peer_tuning.py.
    """
    from twofold.evaluate import baselines, peer_tuning
    from twofold.pipeline import best_model, served_model

    kinds = tuple(
        replace(kind, start={**kind.start, "dim": 16.0}, grid=kind.grid[:1]) if kind.name == "iALS" else kind
        for kind in peer_tuning.PEER_KINDS
    )
    for module in (peer_tuning, baselines, best_model, served_model):
        monkeypatch.setattr(module, "PEER_KINDS", kinds)
