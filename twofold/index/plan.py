"""How a search goes about it: decided from how many items are eligible, before anything is searched.

| eligible | search |
|---|---|
| few, up to an eighth | `pool`: those rows alone, exact; a hot filter's stand end to end |
| more, and the index has lists | `lists`: so deep that, among what is found, enough are eligible; counted afterwards |
| at least a half, for a few queries | `flat`: everything, that deep, exact; counted afterwards |
| else | `bitmap`: everything, a bit asked at each item, exact; for many queries, a copy of those rows |

Where the count afterwards finds too few, as under a filter that keeps what this query is far from, the line is searched
again with care: `pool`, `bitmap`, or all by `flat`. An approximate search that is told the filter instead, and trusts
full lists, finds .2 to .6 of the right items under such filters; HNSW finds a handful.
"""

from dataclasses import dataclass
from math import ceil
from typing import Final, Literal

from twofold.index.eligible import Eligible
from twofold.index.lists import Lists

MANY: Final = 16  # lines, from which on the eligible vectors are copied first: a product of matrices wants no bitmap
DEEPER: Final = 1.25  # times those to be passed over if the eligible were spread evenly: the nearest rarely are


@dataclass(frozen=True)
class Plan:
    """What is scanned, how many candidates a line are taken from it, and in how many lists they are looked for."""

    how: Literal["pool", "flat", "bitmap", "lists"]
    depth: int
    reach: int
    """How many items are scanned or, with lists, could be: from `depth` = `reach` on, nothing has been left out."""
    probes: int = 0
    trusts: bool = False
    """That the eligible are spread evenly, or that lists are good enough: what it finds is looked at with doubt."""


def plan_search(
    items: int,
    wanted: int,
    *,
    lines: int = 1,
    eligible: Eligible | None = None,
    lists: Lists | None = None,
    careful: bool = False,
) -> Plan:
    """The plan for lines that need `wanted` candidates each; a `careful` one takes nothing on trust."""
    if eligible is not None and eligible.pool is not None:
        held = len(eligible.pool)
        return Plan("pool", min(wanted + held - eligible.count, held), held)
    share = 1.0 if eligible is None else eligible.count / items
    depth = ceil(wanted * (1 + DEEPER * (1 - share) / share))
    probes = None if lists is None or careful else lists.probes(depth)
    if probes is not None:
        return Plan("lists", min(depth, items), items + 1, probes, trusts=True)
    if eligible is None or (share >= 1 / 2 and lines < MANY and not careful):
        return Plan("flat", min(depth, items), items, trusts=eligible is not None)
    return Plan("bitmap", min(wanted, eligible.count), eligible.count)
