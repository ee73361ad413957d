"""Where is it better, and where worse? Recall over groups of users and of items, and over the days of a window."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from twofold.evaluate.results import FEW_USERS, Day, DaySection, SliceLine, SliceSection, estimates, number
from twofold.evaluate.significance import bootstrap, holm, paired_p_values
from twofold.ragged import Ragged
from twofold.tables import DAY_MS, HOUR_MS


@dataclass(frozen=True)
class Slicing:
    """One way to cut what there was to find into groups: entry i is the group of pair i of `window.relevant`.

    -1 belongs to no group. A property of users gives all pairs of a user one group.
    """

    name: str
    group: Int64[np.ndarray, "pairs"]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        assert self.group.max(initial=-1) < len(self.names), f"slicing {self.name}: a group without a name"


def slice_recall(
    ranks: Int64[np.ndarray, "pairs"], relevant: Ragged, slicing: Slicing, *, k: int
) -> Float64[np.ndarray, "users groups"]:
    """Of what a user was to find in each group, the share that stands among the first k; NaN where there was nothing.

    The ranking is of the whole catalogue: a slice cuts what was to be found, never the candidates.
    """
    shape = (len(relevant.sizes), len(slicing.names))
    cell = relevant.lines * shape[1] + slicing.group
    kept = slicing.group >= 0
    wanted = np.bincount(cell[kept], minlength=shape[0] * shape[1]).reshape(shape)
    found = np.bincount(cell[kept & (ranks > 0) & (ranks <= k)], minlength=shape[0] * shape[1]).reshape(shape)
    recall: Float64[np.ndarray, "users groups"] = found / np.where(wanted > 0, wanted, np.nan)
    return recall


def evaluate_slices(
    ranks: Int64[np.ndarray, "pairs"],
    base_ranks: Int64[np.ndarray, "pairs"],
    *,
    relevant: Ragged,
    slicings: Sequence[Slicing],
    k: int,
    base: str,
) -> SliceSection:
    """One model against the one called `base` on every group, by recall@k; p-values after Holm over all of them.

    A group that nobody falls into is left out, and one of fewer than 100 users is marked.
    """
    parts = [
        (each, slice_recall(ranks, relevant, each, k=k), slice_recall(base_ranks, relevant, each, k=k))
        for each in slicings
    ]
    if not parts:
        return SliceSection(f"recall@{k}", base, ())
    ours, theirs = (np.concatenate([part[place] for part in parts], axis=1) for place in (1, 2))
    ours_e, theirs_e, gap = (estimates(bootstrap(values)) for values in (ours, theirs, ours - theirs))
    p_values = holm(paired_p_values(ours - theirs))
    names = [(each.name, name) for each in slicings for name in each.names]
    users = (~np.isnan(ours)).sum(axis=0)
    lines = tuple(
        SliceLine(
            by,
            name,
            int(users[at]),
            ours_e[at],
            theirs_e[at],
            gap[at],
            number(p_values[at]),
            bool(users[at] < FEW_USERS),
        )
        for at, (by, name) in enumerate(names)
        if users[at]
    )
    return SliceSection(f"recall@{k}", base, lines)


def evaluate_days(
    values: Mapping[str, Float64[np.ndarray, "users"]],
    query_at: Int64[np.ndarray, "users"],
    *,
    metric: str,
    utc_offset_h: int = 0,
) -> DaySection:
    """Rows on each day of the window, a user counting on the day it is asked; mean and spread over days, and whether
    the order of the rows is another on some day. Days on which nobody is judged are left out.
    """
    day = (query_at + utc_offset_h * HOUR_MS) // DAY_MS
    judged = ~np.isnan(np.stack(list(values.values()))).any(axis=0)
    days = []
    for each in np.unique(day[judged]):
        users = judged & (day == each)
        means = {name: float(value[users].mean()) for name, value in values.items()}
        days.append(Day(str(np.datetime64(int(each), "D")), int(users.sum()), means))
    table = np.array([list(each.values.values()) for each in days]).reshape(len(days), len(values))
    orders = {tuple(np.argsort(-line, kind="stable").tolist()) for line in table}
    spread = table.std(axis=0, ddof=1) if len(days) > 1 else np.full(len(values), np.nan)
    return DaySection(
        metric=metric,
        days=tuple(days),
        mean=dict(zip(values, table.mean(axis=0).tolist() if len(days) else [], strict=False)),
        std={name: number(value) for name, value in zip(values, spread, strict=True)},
        order_changes=len(orders) > 1,
    )
