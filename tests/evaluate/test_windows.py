"""Who is judged by what, where each user's last events are the window."""

from pathlib import Path

import numpy as np

from tests.prepare.tables import JUDGED, TRAIN, log_of, prepared
from twofold.dataset.arrays import build_dataset, load_dataset
from twofold.evaluate.windows import judged_window, positives_before
from twofold.recipe.features import Features

FEATURES = Features.model_validate({"user": [{"kind": "history", "of": "positives"}], "item": [{"kind": "id"}]})


def test_a_user_is_judged_by_the_last_event_and_knows_all_before_it(tmp_path: Path) -> None:
    # User 1 meets items 0 to 4, user 2 items 4 to 1, later; users 8 and 9, who meet item 100 twice, only teach.
    rows = [(1, item, TRAIN + item, True) for item in range(5)]
    rows += [(2, 4 - place, TRAIN + 100 + place, True) for place in range(4)]
    out = prepared(tmp_path, log_of(rows), split={"kind": "last_n"})
    (tmp_path / "dataset").mkdir()
    build_dataset(out, FEATURES, tmp_path / "dataset", utc_offset_h=0)
    arrays = load_dataset(tmp_path / "dataset")
    window = judged_window(arrays, "test")
    users, items = arrays.users.ids, arrays.items.ids

    def listed(ragged, line):
        return {items[int(row)].as_py() for row in ragged.values[ragged.offsets[line] : ragged.offsets[line + 1]]}

    assert [users[int(row)].as_py() for row in window.user_rows] == [1, 2]
    assert [listed(window.relevant, line) for line in (0, 1)] == [{4}, {1}]
    assert [listed(window.seen, line) for line in (0, 1)] == [{0, 1, 2, 3}, {4, 3, 2}]
    assert window.track == "time_free"
    # What the baselines may learn from: of a judged user what came before the question, of all others everything.
    known = positives_before(arrays, window, first_at=None)
    found = {
        (users[int(user)].as_py(), items[int(item)].as_py())
        for user, item in zip(known.user_rows, known.item_rows, strict=True)
    }
    assert found == {(1, item) for item in range(4)} | {(2, item) for item in (4, 3, 2)} | {
        (user, 100) for user, *_ in JUDGED
    }
    everything = positives_before(arrays, window, first_at=np.iinfo(np.int64).max)
    assert len(everything.at) == len(rows) + len(JUDGED)
