"""Models of `impressions.py`: a factorization machine of ids, trees on counts, and the sum of both.

All of them predict `long_view` of an impression from what is known at a cut: labels of the days before it, and, of any
day, which item was shown to whom and when. They are fitted on the days before the cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

# --- columns that read no label ---------------------------------------------------------------------------------------

LENGTHS_S: Final = [5, 8, 11, 15, 20, 30, 45, 60, 90, 150]
AGES_DAYS: Final = [0, 0.5, 1, 2, 3, 5, 8, 12, 20, 40]
FULL: Final = ("tab", "hour", "age_days")
"""Columns that the early part of the log lacks."""
CATEGORIES: Final = ("upload_type", "video_type", "tag")


def with_exposures(log: pd.DataFrame) -> pd.DataFrame:
    """Adds what was shown before each impression: to the user, and of the item to all. `log` is in order of time."""
    hours, found = log["hours"].to_numpy(), {}
    everything = pd.Series(0, log.index)
    for hours_back in (3, 24, 72):
        found[f"item_shown_{hours_back}h"] = _shown_within(log["item_id"], hours, hours_back)
    found["item_share_24h"] = found["item_shown_24h"] / np.maximum(_shown_within(everything, hours, 24), 1)
    found["author_shown_24h"] = _shown_within(log["author_id"], hours, 24)
    found["item_hours_known"] = hours - log.groupby("item_id")["hours"].transform("min").to_numpy()
    gap, found["user_shown"] = _before(log, ["user_id"])
    found["user_gap"], found["user_shown_1h"] = gap, _shown_within(log["user_id"], hours, 1)
    session = pd.Series(np.isnan(gap) | (gap > 0.5), log.index).groupby(log["user_id"]).cumsum()
    found["session_shown"] = log.groupby(["user_id", session]).cumcount().to_numpy()
    for name, keys in (("item", ["item_id"]), ("author", ["author_id"]), ("tag", ["tag"]), ("music", ["music_id"])):
        found[f"own_{name}_gap"], found[f"own_{name}_shown"] = _before(log, ["user_id", *keys])
    return log.assign(**found)


def _shown_within(keys: pd.Series, hours: np.ndarray, hours_back: float) -> np.ndarray:
    """Returns the number of earlier rows of the same key within some hours."""
    codes = pd.factorize(keys)[0]
    order = np.lexsort((np.arange(len(codes)), codes))
    at = codes[order] * 1e6 + hours[order]
    counts = np.empty(len(codes), np.int64)
    counts[order] = np.arange(len(codes)) - np.searchsorted(at, at - hours_back)
    return counts


def _before(log: pd.DataFrame, keys: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the hours since the last row with the same keys, NaN at the first, and the number of rows before."""
    groups = log.groupby(keys, dropna=False)
    return groups["hours"].diff().to_numpy(), groups.cumcount().to_numpy()


# --- factorization machine --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """Settings of the factorization machine (Rendle, ICDM 2010), chosen on 27 and 28 April."""

    dim: int = 16
    epochs: int = 3
    learning_rate: float = 0.004
    decay: float = 0.01
    """Factor of the squared weights that an impression reads."""
    batch_size: int = 4096


def machine_fields(log: pd.DataFrame, *, is_full: bool) -> np.ndarray:
    """Returns the fields of each impression as rows of one table of weights. Without `is_full`, the fields that the
    early part of the log lacks are left out.
    """
    early = log["is_estimated"].to_numpy()
    fields = [log[name] for name in ("user_id", "item_id", "author_id", "tag")]
    fields += [np.digitize(log["length_s"].fillna(0), LENGTHS_S)]
    fields += [
        np.minimum(log["own_item_shown"], 3) + 4 * (log["own_item_gap"] > 72),
        np.minimum(log["own_author_shown"], 3),
    ]
    if is_full:
        fields += [log["tab"].fillna(-1), np.where(early, 24, log["hour"])]
        fields += [np.where(early, len(AGES_DAYS) + 1, np.digitize(log["age_days"].fillna(-9), AGES_DAYS))]
    codes = [pd.factorize(np.asarray(field), use_na_sentinel=False)[0] for field in fields]
    offsets = np.cumsum([0, *(int(each.max()) + 1 for each in codes)])
    return np.stack([each + offset for each, offset in zip(codes, offsets[:-1], strict=True)], axis=1)


def machine_scores(
    fields: np.ndarray, labels: np.ndarray, train: np.ndarray, rows: np.ndarray, *, seed: int, config: Machine
) -> np.ndarray:
    """Fits the machine on the rows `train` and returns the log-odds of `rows`."""
    torch.manual_seed(seed)
    table = torch.nn.Embedding(int(fields.max()) + 1, config.dim + 1)
    torch.nn.init.normal_(table.weight, std=0.01)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([table.weight, bias], lr=config.learning_rate)
    inputs, targets = torch.from_numpy(fields[train]), torch.from_numpy(labels[train].astype(np.float32))
    steps = config.epochs * -(-len(inputs) // config.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)

    def odds(read: torch.Tensor) -> torch.Tensor:
        vectors, weights = read[:, :, 1:], read[:, :, 0].sum(dim=1)
        products = vectors.sum(dim=1).square().sum(dim=1) - vectors.square().sum(dim=(1, 2))
        return bias + weights + products / 2

    for _ in range(config.epochs):
        for batch in torch.randperm(len(inputs)).split(config.batch_size):
            read = table(inputs[batch])
            loss = functional.binary_cross_entropy_with_logits(odds(read), targets[batch])
            loss = loss + config.decay * read.square().sum(dim=(1, 2)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        parts = torch.from_numpy(fields[rows]).split(2**16)
        return torch.cat([odds(table(part)) for part in parts]).numpy()


# --- trees ------------------------------------------------------------------------------------------------------------

TREES: Final = 200
SETTINGS: Final[dict[str, Any]] = {
    "objective": "binary",
    "learning_rate": 0.03,
    "num_leaves": 15,
    "min_data_in_leaf": 100,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 5,
    "verbose": -1,
    "deterministic": True,
}


def rate_columns(log: pd.DataFrame, rows: np.ndarray, cut: int, users: pd.DataFrame) -> pd.DataFrame:
    """Returns the columns of the trees for `rows`: rates of labels of the days before `cut`, exposures and facts."""
    past, chosen = log[log["day"] < cut], log.loc[rows]
    mean, found = past["long_view"].mean(), {}
    own = {f"user_{key}": ["user_id", key] for key in ("item_id", "author_id", "tag", "upload_type")}
    for key in ("item_id", "author_id", "tag", "music_id"):
        found |= _rates(past, chosen, [key], f"{key}", prior=mean, weight=20)
    for days in (2, 5):
        found |= _rates(past[past["day"] >= cut - days], chosen, ["item_id"], f"item_{days}d", prior=mean, weight=20)
    found |= _rates(past, chosen, ["item_id"], "item_liked", prior=0.02, weight=50, label="liked")
    found |= _rates(past, chosen, ["user_id"], "user", prior=mean, weight=5)
    # What the user adds to the rate of the item.
    item_rate = past.groupby("item_id")["long_view"].transform("mean")
    beyond = past.assign(beyond=past["long_view"] - item_rate)
    for name, keys in {"user": ["user_id"], **own}.items():
        found |= _rates(beyond, chosen, keys, f"{name}_beyond", prior=0.0, weight=3, label="beyond")
    watched = past[past["long_view"] == 1]
    length = np.log1p(watched["length_s"]).groupby(watched["user_id"]).mean()
    found["length_beyond"] = np.log1p(chosen["length_s"].to_numpy()) - chosen["user_id"].map(length).to_numpy()
    facts = [name for name in chosen.columns if name.startswith(("item_s", "item_h", "author_s", "user_s", "user_g"))]
    facts += [name for name in chosen.columns if name.startswith(("own_", "session_"))]
    columns = chosen[[*facts, *FULL, *CATEGORIES, "length_s"]].reset_index(drop=True)
    return pd.concat([pd.DataFrame(found), columns, users.loc[chosen["user_id"]].reset_index(drop=True)], axis=1)


def _rates(
    past: pd.DataFrame,
    rows: pd.DataFrame,
    keys: list[str],
    name: str,
    *,
    prior: float,
    weight: float,
    label: str = "long_view",
) -> dict[str, np.ndarray]:
    """Returns the number of past rows with the keys of each row, and the mean of their label, drawn to the prior."""
    sums = past.groupby(keys)[label].agg(["sum", "size"]).reset_index()
    of_row = rows[keys].merge(sums, on=keys, how="left")[["sum", "size"]].fillna(0.0).to_numpy()
    return {f"{name}_count": of_row[:, 1], f"{name}_rate": (of_row[:, 0] + weight * prior) / (of_row[:, 1] + weight)}


def tree_scores(
    log: pd.DataFrame, rows: np.ndarray, cut: int, users: pd.DataFrame, *, is_full: bool, seeds: Sequence[int]
) -> np.ndarray:
    """Fits trees on the last four days before the cut, and returns the log-odds of `rows`.

    A training row reads labels up to four or seven days before the cut, so that trees know rates as old as those of
    the test. Without `is_full`, trees read no column that the early part of the log lacks.
    """
    import lightgbm

    days = log["day"].to_numpy()
    train = np.flatnonzero((days >= cut - 4) & (days < cut))
    tables = [rate_columns(log, train, cut - back, users) for back in (4, 7)]
    table, wanted = pd.concat(tables), rate_columns(log, rows, cut, users)
    labels = np.tile(log["long_view"].to_numpy()[train], len(tables))
    timed = {*FULL, "user_gap", "user_shown_1h", "session_shown"}
    names = [name for name in table.columns if is_full or name not in timed]
    fitted = (
        lightgbm.train(SETTINGS | {"seed": seed}, lightgbm.Dataset(table[names], labels), TREES) for seed in seeds
    )
    return np.sum([trees.predict(wanted[names], raw_score=True) for trees in fitted], axis=0)
