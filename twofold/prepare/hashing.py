"""Engine-independent sampling: a hash in integer arithmetic, because HASH() differs between SQL engines.

All products stay below 2^63. The arithmetic is modulo the prime 2^31 - 1, as in Lehmer generators (Park & Miller 1988).
"""

from collections.abc import Mapping
from typing import Final

PRIME: Final = 2**31 - 1


def hash_sql(columns: Mapping[str, str], *, seed: int) -> str:
    """Returns an integer in [0, 2^31 - 1) computed from columns (name → BIGINT or VARCHAR) and a seed."""
    number = f"CAST({seed % PRIME} AS BIGINT)"  # constants are 32 bits wide, and their products would overflow
    for name, type_ in columns.items():
        number = f"(({_number_sql(name, type_)} * 48271 + {number} * 69621) % {PRIME})"
    # A product at the end: a sum of multiples alone would follow the pattern of neighboring ids.
    return f"(({number} + 69621) * ({number} + 16807) % {PRIME})"


def shard_sql(user_type: str, shards: int) -> str:
    """Returns the number of a user's shard, from 0 to `shards` - 1."""
    return f"{hash_sql({'user_id': user_type}, seed=0)} % {shards}"


def _number_sql(name: str, type_: str) -> str:
    if type_ == "BIGINT":
        return f'ABS("{name}" % {PRIME})'
    # The first 24 bits of MD5, digit by digit: engines share no function from hexadecimal to a number.
    digits = (
        f"STRPOS('0123456789abcdef', SUBSTR(MD5(\"{name}\"), {digit_index + 1}, 1)) - 1" for digit_index in range(6)
    )
    number = " + ".join(f"{16**digit_index} * ({digit})" for digit_index, digit in enumerate(digits))
    return f"CAST({number} AS BIGINT)"
