"""Ranks users' own impressions by long view, on the public protocol of KuaiRand-Pure for April 2022.

    pip install 'lightgbm>=4.5'
    python benchmarks/impressions.py            # writes impressions.json beside this file

The protocol (TikTok TechJam 2026, problem 2): all impressions from 29 April to 8 May, Beijing time. GAUC: the AUC of
each user with long views and others, weighted by the number of long views. NDCG@5 over all users, 0 without a long
view. The headline is the mean of both. Training days 8 to 21 April, validation 22 to 28 April.

*Strict* models are fitted on the days up to 21 April. *Refit* models are fitted on all days before the test; they were
chosen on 27 and 28 April, fitted before that. *Day by day* models are fitted again before each test day, so that they
read labels of earlier test days.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import torch
from impressions_models import CATEGORIES, FULL, Machine, machine_fields, machine_scores, tree_scores, with_exposures

from twofold.environment import commit, hardware
from twofold.run_folder import write_json

HERE = Path(__file__).parent
DATA = HERE.parent / "data" / "kuairand-pure"
ZERO = pd.Timestamp("2022-04-09", tz="Asia/Shanghai").value // 10**6
STRICT_CUT, TEST_DAY, LAST_DAY = 13, 20, 29  # days since 9 April: 22 April, 29 April, 8 May
SEEDS = (0, 1, 2)
DISCOUNTS = 1 / np.log2(np.arange(2, 7))  # of the first five places
BEST_GAINS = np.concatenate([[np.inf], np.cumsum(DISCOUNTS)])  # by the number of long views; without one, NDCG is 0
PUBLISHED = {  # row: GAUC, NDCG@5, mean
    "item popularity, published": (0.6308, 0.5121, 0.5715),
    "factorization machine, official baseline": (0.6610, 0.5282, 0.5946),
    "factorization machine, pairs, rewatch, author recency, watch time, published": (0.6702, 0.5333, 0.6017),
    "transformer and two factorization machines, best published": (0.6724, 0.5344, 0.6034),
}


def read_log(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the impressions in order of time, with facts of their items, and the users' attributes as numbers."""
    log = duckdb.sql(
        f"""
        SELECT events.user_id, events.item_id, "at", at_is_estimated AS is_estimated, CAST(tab AS DOUBLE) AS tab,
            CAST(COALESCE(long_view, false) AS INT) AS long_view, CAST(COALESCE(liked, false) AS INT) AS liked,
            "date", items.author_id, items.music_id, items.length_s, COALESCE(items.tags[1], '') AS tag,
            items.upload_type, items.video_type, ("at" - items.uploaded_at) / 86400e3 AS age_days
        FROM '{folder}/events.parquet' AS events JOIN '{folder}/items.parquet' AS items USING (item_id)
        """
    ).df()
    log = log.sort_values("at", kind="stable", ignore_index=True)
    log["hours"] = (log["at"] - ZERO) / 3600e3
    log["hour"] = (log["hours"] % 24).astype(int)
    dated = pd.to_datetime(log["date"].astype("Int64").astype("string"), format="%Y%m%d")
    day = (dated - pd.Timestamp("2022-04-09")).dt.days
    log["day"] = day.fillna(log["hours"] // 24).astype(int)
    for name in CATEGORIES:
        log[name] = log[name].astype("category").cat.codes
    users = duckdb.sql(f"FROM '{folder}/users.parquet'").df().set_index("user_id")
    numbers = users.apply(
        lambda each: each if pd.api.types.is_numeric_dtype(each) else each.astype("category").cat.codes
    )
    return log, numbers


def quality(user: np.ndarray, label: np.ndarray, score: np.ndarray) -> dict[str, float]:
    """Returns GAUC, NDCG@5 and their mean. Ties have rank and half wins by chance.

    >>> quality(np.array([1, 1, 2, 2]), np.array([1, 0, 0, 1]), np.array([2.0, 1.0, 2.0, 1.0]))["gauc"]
    0.5
    """
    table = pd.DataFrame({"user": user, "label": label, "score": score})
    table["chance"] = np.random.default_rng(0).random(len(table))
    table["rank"] = table.groupby("user")["score"].rank(method="average")
    table = table.sort_values(["user", "score", "chance"], ascending=[True, False, True])
    table["place"] = table.groupby("user").cumcount()
    users = table.groupby("user").agg(shown=("label", "size"), liked=("label", "sum"))
    rank_sum = table[table["label"] == 1].groupby("user")["rank"].sum()
    both = users[(users["liked"] > 0) & (users["liked"] < users["shown"])]
    wins = rank_sum.loc[both.index] - both["liked"] * (both["liked"] + 1) / 2
    auc = wins / (both["liked"] * (both["shown"] - both["liked"]))
    gauc = float(np.average(auc, weights=both["liked"]))
    top = table[table["place"] < 5]
    gain = (top["label"] * DISCOUNTS[top["place"]]).groupby(top["user"]).sum()
    ndcg = float((gain.loc[users.index] / BEST_GAINS[np.minimum(users["liked"], 5)]).mean())
    return {"gauc": gauc, "ndcg@5": ndcg, "mean": (gauc + ndcg) / 2}


def quality_by_chance(user: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Returns the expectation of `quality` for scores drawn at random."""
    users = pd.DataFrame({"user": user, "label": label}).groupby("user")["label"].agg(["sum", "size"])
    gain = users["sum"] / users["size"] * BEST_GAINS[np.minimum(users["size"], 5)]
    ndcg = float((gain / BEST_GAINS[np.minimum(users["sum"], 5)]).mean())
    return {"gauc": 0.5, "ndcg@5": ndcg, "mean": (0.5 + ndcg) / 2}


class Table:
    """The rows of the table, each printed when it is known."""

    def __init__(self, log: pd.DataFrame) -> None:
        self.test = np.flatnonzero(log["day"] >= TEST_DAY)
        self._user, self._label = (log[name].to_numpy()[self.test] for name in ("user_id", "long_view"))
        self.rows = {"random, expected": quality_by_chance(self._user, self._label)}

    def add(self, name: str, score: np.ndarray, seconds: float | None = None) -> None:
        """Adds a row: scores of the test impressions, and the processor seconds that its training took."""
        found = quality(self._user, self._label, score)
        self.rows[name] = found if seconds is None else found | {"processor_s": round(seconds, 1)}
        print(f"{name:<60}" + "  ".join(f"{key} {value:.4f}" for key, value in self.rows[name].items()), flush=True)


def timed(work: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """Returns the result and the processor seconds of `work`."""
    start = time.process_time()
    return work(), time.process_time() - start


def standard(scores: np.ndarray) -> np.ndarray:
    """Returns scores in units of their standard deviation."""
    return (scores - scores.mean()) / scores.std()


def add_models(
    table: Table, log: pd.DataFrame, users: pd.DataFrame, name: str, cut: int, *, is_full: bool
) -> np.ndarray:
    """Adds the factorization machine, the trees and their sum, fitted on the days before a cut; returns the sum."""
    fields, labels = machine_fields(log, is_full=is_full), log["long_view"].to_numpy()
    train = np.flatnonzero(log["day"] < cut)
    machine, machine_s = timed(
        lambda: np.sum(
            [machine_scores(fields, labels, train, table.test, seed=seed, config=Machine()) for seed in SEEDS], axis=0
        )
    )
    table.add(f"{name}: factorization machine", machine, machine_s)
    trees, trees_s = timed(lambda: tree_scores(log, table.test, cut, users, is_full=is_full, seeds=SEEDS))
    table.add(f"{name}: trees", trees, trees_s)
    both = standard(machine) + standard(trees)
    table.add(f"{name}: sum of both", both, machine_s + trees_s)
    return both


def day_by_day(table: Table, log: pd.DataFrame, users: pd.DataFrame, refit: np.ndarray) -> np.ndarray:
    """Returns the sum of both models, fitted again before each test day, one seed, for the order within a day.

    Between the days of a user the scores `refit` decide. The level of a user, learnt anew each day, misleads: after a
    day with long views it ranks the next days higher, where fewer of the user's long views are left.
    """
    fields, labels, days = machine_fields(log, is_full=True), log["long_view"].to_numpy(), log["day"].to_numpy()
    scores = np.empty(len(log))
    for day in range(TEST_DAY, LAST_DAY + 1):
        rows, train = np.flatnonzero(days == day), np.flatnonzero(days < day)
        machine = machine_scores(fields, labels, train, rows, seed=0, config=Machine())
        trees = tree_scores(log, rows, day, users, is_full=True, seeds=SEEDS[:1])
        scores[rows] = standard(machine) + standard(trees)
    test = log.loc[table.test, ["user_id", "day"]].assign(own=scores[table.test], refit=refit)
    level = test.groupby(["user_id", "day"])[["own", "refit"]].transform("mean")
    return (test["own"] - level["own"] + level["refit"]).to_numpy()


def main() -> None:
    """Fits and judges all rows, and writes the table."""
    torch.set_num_threads(1)
    log, users = read_log(DATA)
    log = with_exposures(log)
    table = Table(log)
    table.add("oracle", log["long_view"].to_numpy()[table.test].astype(float))
    past = log[log["day"] < TEST_DAY]
    sums = past.groupby("item_id")["long_view"].agg(["sum", "size"])
    rate = (sums["sum"] + 20 * past["long_view"].mean()) / (sums["size"] + 20)
    rated = log["item_id"].map(rate).fillna(past["long_view"].mean()).to_numpy()
    table.add("refit: long-view rate of the item", rated[table.test])
    add_models(table, log, users, "strict", STRICT_CUT, is_full=False)
    refit = add_models(table, log, users, "refit", TEST_DAY, is_full=True)
    add_models(table, log, users, f"refit without {', '.join(FULL)}", TEST_DAY, is_full=False)
    scores, seconds = timed(lambda: day_by_day(table, log, users, refit))
    table.add("day by day: sum of both", scores, seconds)
    facts: dict[str, Any] = {"impressions": len(table.test), "users": int(log["user_id"].iloc[table.test].nunique())}
    written = {"commit": commit(), "hardware": hardware(), **facts, "rows": table.rows, "published": PUBLISHED}
    write_json(HERE / "impressions.json", written)


if __name__ == "__main__":
    main()
