"""Confidence intervals of means over users, by Student's t with standard errors clustered by user, and their p-values.

Users are the unit: two recommendations to one user, on one day or on several, are not independent. With hundreds of
users these intervals agree with the bootstrap over users and with randomization (Smucker, Allan, Carterette, CIKM
2007). They need no random draws, and an interval excludes 0 exactly where its p-value is below 0.05.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import scipy.sparse
import scipy.special
from jaxtyping import Bool, Float64, Int64, Shaped

LEVEL: Final = 0.95
MIN_SEEDS: Final = 3  # least number of seeds for a claim
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Intervals:
    """Means over the users that have a value, with intervals, one per metric.

    A value of NaN means that no user has one; the other fields are NaN for fewer than 2 users.
    """

    value: Float64[np.ndarray, "_"]
    low: Float64[np.ndarray, "_"]
    high: Float64[np.ndarray, "_"]
    p_value: Float64[np.ndarray, "_"]
    """Two-sided p-values of a mean of 0. If all values are equal, they are 1 for the value 0 and 0 for any other."""


def mean_intervals(
    values: Float64[np.ndarray, "examples _"], users: Int64[np.ndarray, "examples"] | None = None
) -> Intervals:
    """Returns the mean of each column with its 95 % interval, mean ± t · se; NaN entries are skipped by the metric.

    Row i belongs to user `users[i]`; `None` means that each row is a user of its own. For n rows of G users,
    se² = G / (G − 1) · Σ (sum of a user's deviations from the mean)² / n² (Liang and Zeger, Biometrika 1986), which is
    s² / n for one row per user, and t has G − 1 degrees of freedom.
    """
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    value = _divide(np.where(known, values, 0).sum(axis=0), count)
    deviations = np.where(known, values - value, 0)
    clusters = count
    if users is not None:
        _, number = np.unique(users, return_inverse=True)
        entries = (np.ones(len(users)), (number, np.arange(len(users))))
        sum_of_user = scipy.sparse.csr_matrix(entries, shape=(int(number.max(initial=-1)) + 1, len(users)))
        deviations, clusters = sum_of_user @ deviations, (sum_of_user @ known.astype(np.float64) > 0).sum(axis=0)
    correction = _divide(clusters, clusters - 1.0)  # NaN for a single user
    return _t_intervals(value, correction * _divide((deviations**2).sum(axis=0), count**2), clusters - 1.0)


def _t_intervals(
    value: Float64[np.ndarray, "*batch"],
    variance: Float64[np.ndarray, "*batch"],
    degrees: Shaped[np.ndarray, "*batch"],
) -> Intervals:
    error, degrees = np.sqrt(variance), np.maximum(degrees, 1)
    half = scipy.special.stdtrit(degrees, (1 + LEVEL) / 2) * error  # as scipy.stats.t, in a tenth of its time
    # A zero error means that all users have the same value: p = 0, or p = 1 if that value is 0.
    size = np.divide(np.abs(value), error, out=np.where(np.abs(value) > 0, np.inf, 0.0), where=error > 0)
    p_value = np.where(np.isnan(error), np.nan, 2 * scipy.special.stdtr(degrees, -size))
    return Intervals(value, value - half, value + half, p_value)


def _divide(sums: Shaped[np.ndarray, "*batch"], counts: Shaped[np.ndarray, "*batch"]) -> Float64[np.ndarray, "*batch"]:
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def holm(p_values: Float64[np.ndarray, "length"]) -> Float64[np.ndarray, "length"]:
    """Adjusts p-values for the number of tests (Holm 1979); NaN entries do not count as tests.

    >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
    [0.03, 0.06, 0.06]
    """
    adjusted = np.full(len(p_values), np.nan)
    order = np.argsort(p_values)[: int((~np.isnan(p_values)).sum())]  # NaN sorts last
    remaining = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * remaining), 1)
    return adjusted


def holm_except(
    p_values: Float64[np.ndarray, "length"], exempt: Bool[np.ndarray, "length"]
) -> Float64[np.ndarray, "length"]:
    """Adjusts the p-values that are not `exempt`: a metric that was named beforehand needs no correction."""
    return np.where(exempt, p_values, holm(np.where(exempt, np.nan, p_values)))


@dataclass(frozen=True)
class SeedClaim:
    """A comparison of two models over several seeds of each, with the interval over users and over seeds.

    `None` means fewer than 2 seeds, from which no interval follows.
    """

    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    per_seed: tuple[float, ...]
    """Means over users of the run's seeds."""
    base_per_seed: tuple[float, ...]
    """Means over users of the base's seeds."""


def is_significant(p_value: float | None) -> bool:
    """Returns whether a p-value is below 0.05; `None` means that nothing was tested."""
    return p_value is not None and p_value < 1 - LEVEL


def across_seeds(a: Float64[np.ndarray, "_ users"], b: Float64[np.ndarray, "_ users"]) -> SeedClaim:
    """Compares a with b on one metric; row i of each contains the users' values under the i-th of its seeds.

    Users and seeds are both random effects: the variance of the difference is that of the mean over users plus that of
    the mean over seeds, without their interaction, which both contain (two-way clustering; Owen, Annals of Applied
    Statistics 2007). The seeds of a and of b are independent, so the order of the rows has no effect. The degrees of
    freedom are Satterthwaite's.
    """
    known = ~np.isnan(np.concatenate([a, b])).any(axis=0)
    a, b = a[:, known], b[:, known]
    difference, seeds, users = float(_mean(a) - _mean(b)), min(len(a), len(b)), int(known.sum())
    means = [tuple(each.mean(axis=1).tolist()) if users else (float("nan"),) * len(each) for each in (a, b)]
    if seeds < 2 or users < 2:
        return SeedClaim(difference, None, None, None, *means)
    of_users = (a.mean(axis=0) - b.mean(axis=0)).var(ddof=1) / users
    of_seeds = np.array([each.mean(axis=1).var(ddof=1) / len(each) for each in (a, b)])
    interaction = sum(_residual_variance(each) / each.size for each in (a, b))
    variance = of_users + max(of_seeds.sum() - interaction, 0.0)
    errors = of_users**2 / (users - 1) + sum(of_seeds**2 / (np.array([len(a), len(b)]) - 1))
    degrees = variance**2 / errors if errors > 0 else 1.0
    found = _t_intervals(*(np.array([each]) for each in (difference, variance, degrees)))
    return SeedClaim(difference, float(found.low[0]), float(found.high[0]), float(found.p_value[0]), *means)


def _mean(values: Float64[np.ndarray, "_ users"]) -> float:
    return float(values.mean()) if values.size else float("nan")


def _residual_variance(values: Float64[np.ndarray, "_ users"]) -> float:
    """Returns the variance that neither the seed nor the user explains."""
    seeds, users = values.shape
    rest = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    return float((rest**2).sum() / ((seeds - 1) * (users - 1)))


@dataclass(frozen=True)
class Estimate:
    """A mean over users and its 95 % interval.

    A value of `None` means that no user has one; an interval of `None` that fewer than 2 users have one, or that the
    number is no mean over users.
    """

    value: float | None
    low: float | None
    high: float | None


def estimates(intervals: Intervals) -> list[Estimate]:
    """Returns one estimate per column."""
    numbers = zip(intervals.value, intervals.low, intervals.high, strict=True)
    return [Estimate(*map(json_number, each)) for each in numbers]


def estimates_of(
    columns: Mapping[Name, Float64[np.ndarray, "examples"]], users: Int64[np.ndarray, "examples"] | None = None
) -> dict[Name, Estimate]:
    """Returns an estimate per name; `users` as in `mean_intervals`."""
    found = mean_intervals(np.stack(list(columns.values()), axis=1), users)
    return dict(zip(columns, estimates(found), strict=True))


def means_of(columns: Mapping[str, Float64[np.ndarray, "users"]]) -> dict[str, float | None]:
    """Returns the mean per name over the users that have a value."""
    return {name: None if np.isnan(each).all() else float(np.nanmean(each)) for name, each in columns.items()}


def json_number(value: float) -> float | None:
    """Returns `None` for NaN, which JSON does not have."""
    return None if np.isnan(value) else float(value)
