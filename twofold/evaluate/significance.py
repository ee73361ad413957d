"""Confidence intervals of means over users: the bootstrap, and its paired form for two models.

Users are the unit: two recommendations to one user are not independent, so whole users are drawn (Efron 1979). The
number of times that a draw contains a user is an independent Poisson variable of mean 1: the limit of drawing with
replacement, with the mean taken over the drawn users (Chamandy et al., 2012), in a quarter of the time. The weights of
all draws are one matrix, so all intervals of a report are one matrix product on the *same* draws.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import scipy.stats
from jaxtyping import Float32, Float64, Shaped

from twofold.ragged import chunks

LEVEL: Final = 0.95
RESAMPLES: Final = 1000
SEED: Final = 0
MIN_SEEDS: Final = 3  # least number of seeds for a claim
CHUNK_ELEMENTS: Final = 2**24  # weights in memory at a time: 64 MiB, for any number of users
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Intervals:
    """Means over the users that have a value, with percentile intervals, one per metric.

    NaN means that no user has a value.
    """

    value: Float64[np.ndarray, "_"]
    low: Float64[np.ndarray, "_"]
    high: Float64[np.ndarray, "_"]


def bootstrap(values: Float64[np.ndarray, "users _"], *, seed: int = 0, resamples: int = RESAMPLES) -> Intervals:
    """Returns the mean of each column and its 95 % interval; NaN entries are users that the metric skips.

    The same seed and number of users give the same draws, so columns of one call, and calls with one seed, are paired:
    the interval of a - b tells whether a is better than b on the users that have a value in both. A draw in which no
    user has a value (possible with few users) is left out of the percentiles.
    """
    users, metrics = values.shape
    known = ~np.isnan(values)
    # Most metrics skip the same users, so each pattern of known users is multiplied once (unique(axis=1) takes 1 s).
    _, first, pattern_of = np.unique([column.tobytes() for column in known.T], return_index=True, return_inverse=True)
    value = _divide(np.where(known, values, 0).sum(axis=0), known.sum(axis=0))
    # Single precision halves the time. Summing deviations from the mean keeps every digit of a large mean.
    deviations = np.where(known, values - value, 0).astype(np.float32)
    columns = np.concatenate([deviations, known[:, first].astype(np.float32)], axis=1)
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, metrics))
    for part in chunks(resamples, max(1, CHUNK_ELEMENTS // max(users, 1))):
        sums = _weights(rng, part.stop - part.start, users) @ columns
        means[part] = value + _divide(sums[:, :metrics], sums[:, metrics:][:, pattern_of])
    low, high = np.full(metrics, np.nan), np.full(metrics, np.nan)
    some = known.any(axis=0)
    tail = (1 - LEVEL) / 2
    quantile = (
        np.nanquantile if np.isnan(means[:, some]).any() else np.quantile
    )  # nanquantile is slow: it works column by column
    low[some], high[some] = quantile(means[:, some], [tail, 1 - tail], axis=0)
    return Intervals(value, low, high)


def _weights(rng: np.random.Generator, draws: int, users: int) -> Float32[np.ndarray, "_ users"]:
    """Draws the number of times that each draw contains each user: Poisson variables, by inversion at 2^16 points.

    This is 10 times faster than `rng.poisson`.
    """
    at_most = scipy.stats.poisson.cdf(np.arange(9), 1)
    count_at = np.searchsorted(at_most, (np.arange(2**16) + 0.5) / 2**16).astype(np.float32)
    weights = np.empty((draws, users), np.float32)
    for row in weights:
        points = rng.bit_generator.random_raw(-(-users // 4)).view(np.uint16)  # four from each 64 bits
        np.take(count_at, points[:users], out=row, mode="clip")
    return weights


def _divide(sums: Shaped[np.ndarray, "*batch"], counts: Shaped[np.ndarray, "*batch"]) -> Float64[np.ndarray, "*batch"]:
    quotient: Float64[np.ndarray, "*batch"] = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return quotient


def paired_p_values(differences: Float64[np.ndarray, "users _"]) -> Float64[np.ndarray, "_"]:
    """Returns the two-sided p-value of each column's mean difference, by the paired t test; NaN for fewer than 2 users.

    With hundreds of users the test agrees with the bootstrap and with randomization (Smucker, Allan, Carterette, CIKM
    2007). NaN entries are skipped users. A column without any difference has p = 1.
    """
    known = ~np.isnan(differences)
    count = known.sum(axis=0)
    mean = _divide(np.where(known, differences, 0).sum(axis=0), count)
    squares = (np.where(known, differences - mean, 0) ** 2).sum(axis=0)
    error = np.sqrt(_divide(squares, count * np.maximum(count - 1, 0)))
    # A zero error means that all users differ by the same amount: p = 0, or p = 1 if that amount is 0.
    size = np.divide(np.abs(mean), error, out=np.where(np.abs(mean) > 0, np.inf, 0.0), where=error > 0)
    p: Float64[np.ndarray, " _"] = 2 * scipy.stats.t.sf(size, np.maximum(count - 1, 1))
    return np.where(count > 1, p, np.nan)


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


@dataclass(frozen=True)
class SeedClaim:
    """A comparison of two models over several seeds of each.

    `is_significant` says whether the interval of the mean difference, over users and seeds, excludes 0 and the
    difference of every pair of seeds has the same sign. `None` means fewer than `MIN_SEEDS` pairs, from which nothing
    may be claimed.
    """

    difference: float
    low: float
    high: float
    per_seed: tuple[float, ...]
    std: float
    """Standard deviation over the pairs of seeds."""
    is_significant: bool | None


def across_seeds(a: Float64[np.ndarray, "_ users"], b: Float64[np.ndarray, "_ users"], *, seed: int = 0) -> SeedClaim:
    """Compares a with b on one metric; row i of both contains the users' values under the i-th seed."""
    differences = a - b
    per_seed = np.array([_mean_of_known(values) for values in differences])
    drawn = bootstrap(differences.mean(axis=0)[:, None], seed=seed)
    low, high = float(drawn.low[0]), float(drawn.high[0])
    one_side = (low > 0 and (per_seed > 0).all()) or (high < 0 and (per_seed < 0).all())
    return SeedClaim(
        difference=float(drawn.value[0]),
        low=low,
        high=high,
        per_seed=tuple(per_seed.tolist()),
        std=float(per_seed.std(ddof=1)) if len(per_seed) > 1 else float("nan"),
        is_significant=bool(one_side) if len(per_seed) >= MIN_SEEDS else None,
    )


def _mean_of_known(values: Float64[np.ndarray, "users"]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


@dataclass(frozen=True)
class Estimate:
    """A mean over users and its 95 % bootstrap interval.

    `None` means that no user has a value, or that the number is no mean over users and has no interval.
    """

    value: float | None
    low: float | None
    high: float | None


def estimates(drawn: Intervals) -> list[Estimate]:
    """Returns one estimate per column."""
    numbers = zip(drawn.value, drawn.low, drawn.high, strict=True)
    return [Estimate(*map(json_number, each)) for each in numbers]


def estimates_of(columns: Mapping[Name, Float64[np.ndarray, "users"]]) -> dict[Name, Estimate]:
    """Returns an estimate per name, all from the same draws of users."""
    drawn = bootstrap(np.stack(list(columns.values()), axis=1), seed=SEED)
    return dict(zip(columns, estimates(drawn), strict=True))


def means_of(columns: Mapping[str, Float64[np.ndarray, "users"]]) -> dict[str, float | None]:
    """Returns the mean per name over the users that have a value."""
    return {name: None if np.isnan(each).all() else float(np.nanmean(each)) for name, each in columns.items()}


def json_number(value: float) -> float | None:
    """Returns `None` for NaN, which JSON does not have."""
    return None if np.isnan(value) else float(value)
