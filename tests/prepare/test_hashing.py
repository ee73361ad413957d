"""Hashes that Python can repeat, that spread evenly and that do not follow the pattern of the ids."""

import hashlib

import duckdb
import numpy as np
import pytest

from twofold.prepare.hashing import PRIME, hash_sql, shard_sql


def hashed(values: list[int] | list[str], type_: str, *, seed: int = 0) -> list[int]:
    sql = hash_sql({"user_id": type_}, seed=seed)
    rows = ", ".join(f"(CAST({value!r} AS {type_}))" for value in values)
    return [row[0] for row in duckdb.execute(f'SELECT {sql} FROM (VALUES {rows}) AS "t"("user_id")').fetchall()]


def by_hand(number: int, seed: int) -> int:
    mixed = (number * 48271 + seed * 69621) % PRIME
    return (mixed + 69621) * (mixed + 16807) % PRIME


def test_a_hash_is_arithmetic_that_any_engine_repeats() -> None:
    ids = [0, 1, -17, 2**62, -(2**63)]
    assert hashed(ids, "BIGINT", seed=5) == [by_hand(abs(int(np.fmod(user, PRIME))), 5) for user in ids]
    digits = hashlib.md5(b"ada", usedforsecurity=False).hexdigest()[:6]
    number = sum(16**place * int(digit, 16) for place, digit in enumerate(digits))
    assert hashed(["ada"], "VARCHAR", seed=5) == [by_hand(number, 5)]


@pytest.mark.parametrize("seed", [2**31 - 1, 2**31 - 2, 10**9])
def test_the_largest_seeds_and_ids_overflow_nothing(seed: int) -> None:
    ids = [PRIME - 1, PRIME, -(2**63)]
    assert hashed(ids, "BIGINT", seed=seed) == [by_hand(abs(int(np.fmod(user, PRIME))), seed % PRIME) for user in ids]


@pytest.mark.parametrize("step", [1, 2, 1000, 2**20])
def test_ids_at_even_distances_spread_evenly(step: int) -> None:
    """The number of ids in each of 20 parts, of 20,000 in all, has a standard deviation of about sqrt(1000)."""
    values = hashed([place * step for place in range(20_000)], "BIGINT", seed=3)
    counts = np.bincount(np.asarray(values) * 20 // PRIME, minlength=20)
    assert np.abs(counts - 1000).max() < 6 * 1000**0.5
    near = np.corrcoef(values[:-1], values[1:])[0, 1]
    assert abs(near) < 6 / 20_000**0.5


def test_another_seed_is_another_draw() -> None:
    first, second = (np.asarray(hashed(list(range(10_000)), "BIGINT", seed=seed)) < PRIME * 0.3 for seed in (1, 2))
    assert abs((first & second).mean() - 0.09) < 6 * (0.09 * 0.91 / 10_000) ** 0.5


@pytest.mark.parametrize(("type_", "ids"), [("BIGINT", "range"), ("VARCHAR", "'user ' || range")])
def test_shards_part_the_users_evenly(type_: str, ids: str) -> None:
    users = f"(SELECT CAST({ids} AS {type_}) AS user_id FROM range(-500, 2500))"
    counts = [
        duckdb.execute(f"SELECT COUNT(*) FROM {users} WHERE {shard_sql(type_, 3)} = {shard}").fetchall()[0][0]
        for shard in range(3)
    ]
    assert sum(counts) == 3000
    assert min(counts) > 900
