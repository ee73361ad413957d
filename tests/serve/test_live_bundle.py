"""Lists of a live bundle, alone and in a batch, and its trial request."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.serve.tiny import EVENTS, ITEMS, best, replace_part, scores_of, write_run, write_tower
from twofold.errors import RunError
from twofold.serve.bundle import USER_TOWER
from twofold.serve.live_bundle import LiveBundle, nearest, open_live_bundle
from twofold.serve.onnx_models import load_user_tower
from twofold.serve.user_state import user_state_of


@pytest.fixture(scope="module")
def live_bundle(tmp_path_factory: pytest.TempPathFactory) -> LiveBundle:
    return open_live_bundle(write_run(tmp_path_factory.mktemp("runs") / "tiny"))


def test_a_user_gets_the_same_list_alone_and_in_a_batch(live_bundle: LiveBundle) -> None:
    states = [user_state_of(live_bundle.bundle, row, ()) for row in range(len(EVENTS))]
    together = nearest(live_bundle, states, 4)
    assert [ITEMS[row] for row in together.item_rows[0]] == best(scores_of(["a", "cold"], ["b"]), k=4)
    for state, rows, scores in zip(states, together.item_rows, together.scores, strict=True):
        alone = nearest(live_bundle, [state], 4)
        assert alone.item_rows[0].tolist() == rows.tolist()
        assert alone.scores[0].tolist() == scores.tolist()


def test_a_vector_does_not_depend_on_the_other_users_of_a_batch(tmp_path: Path) -> None:
    """ONNX Runtime multiplies a single row with another kernel, whose sums differ in the last bits."""
    draw = np.random.default_rng(0)
    matrices = {name: draw.standard_normal((96, 96)).astype(np.float32) for name in ("first", "second")}
    nodes = [
        helper.make_node("MatMul", ["features", "first"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "second"], ["vector"]),
    ]
    graph = helper.make_graph(
        nodes,
        "user_tower",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 96])],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", 96])],
        [numpy_helper.from_array(value, name) for name, value in matrices.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "t.onnx")
    tower = load_user_tower(tmp_path / "t.onnx")
    features = draw.standard_normal((40, 96)).astype(np.float32)
    together = tower.vectors({"features": features})
    for size in (1, 2, 3, 16):
        parts = [tower.vectors({"features": features[first : first + size]}) for first in range(0, 40, size)]
        assert np.concatenate(parts).tolist() == together.tolist()


def test_a_bundle_whose_trial_request_fails_is_refused(tmp_path: Path) -> None:
    """A graph whose table has too few rows can be loaded, but fails when an input is beyond the table."""
    run = write_run(tmp_path / "tiny")
    replace_part(run, USER_TOWER, lambda path: write_tower(path, hours=3))
    with pytest.raises(RunError, match=r"the bundle of .*tiny can be opened, but a trial request fails: .*Gather"):
        open_live_bundle(run)


def test_a_bundle_that_is_moved_away_while_it_is_opened_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file is looked at next: a swap would else be answered by 500."""
    run, stat, looked, moved_at = write_run(tmp_path / "tiny"), os.stat, 0, 0

    def look(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        nonlocal looked
        if str(path).startswith(str(run)):
            looked += 1
            if looked == moved_at:
                run.rename(tmp_path / "away")
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", look)
    open_live_bundle(run)
    assert looked > 20
    for number in range(1, looked, 3):
        looked, moved_at = 0, number
        with pytest.raises(RunError, match="tiny"):
            open_live_bundle(run)
        (tmp_path / "away").rename(run)
