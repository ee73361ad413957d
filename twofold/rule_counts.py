"""Inputs of rules: counts of the items that were placed into lists, and when users saw items."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from twofold.ragged import Ragged
from twofold.recipe.rerank import Limit, Quota
from twofold.tables import HOUR_MS


@dataclass(frozen=True)
class Meetings:
    """Events of each query's user before the request."""

    rows: Ragged
    """Item rows of each user, in any order."""
    at: Int64[np.ndarray, "length"]
    """Time of each event, UTC ms."""
    query_at: Int64[np.ndarray, "queries"]
    """Time of each request, UTC ms."""

    def hours_since(self, item_rows: Int64[np.ndarray, "queries k"]) -> Float64[np.ndarray, "queries k"]:
        """Returns the hours from the last event of each item to the request; infinity where there is no event."""
        width = int(max(self.rows.values.max(initial=0), item_rows.max(initial=0))) + 2
        keys = self.rows.lines * width + self.rows.values
        order = np.lexsort((self.at, keys))
        wanted = np.arange(len(item_rows))[:, None] * width + np.maximum(item_rows, 0)
        last = np.searchsorted(keys, wanted, side="right", sorter=order) - 1
        if not len(keys):
            return np.full(item_rows.shape, np.inf)
        event = order[np.maximum(last, 0)]
        is_met = (last >= 0) & (keys[event] == wanted) & (item_rows >= 0)
        return np.asarray(np.where(is_met, (self.query_at[:, None] - self.at[event]) / HOUR_MS, np.inf))


class LimitCounts:
    """Numbers of the last items with each value, under one limit."""

    def __init__(self, rule: Limit, codes: Int32[np.ndarray, "queries k _"]) -> None:
        """Starts with no item placed. `codes` are the values of every candidate, -1 for none."""
        values, local = np.unique(np.append(codes.ravel(), -1), return_inverse=True)  # -1 is always the first
        self._local = local[:-1].reshape(codes.shape)
        self._flat = self._local.reshape(len(codes), -1)
        self._counts = np.zeros((len(codes), len(values)), np.int64)
        self._rule, self._lists = rule, np.arange(len(codes))
        self._last: list[Int64[np.ndarray, "queries _"]] = []

    def is_full(self) -> Bool[np.ndarray, "queries k"]:
        """Returns the candidates with a value that the last places hold as often as the limit allows."""
        is_full = np.take_along_axis(self._counts >= self._rule.at_most, self._flat, axis=1)
        return np.asarray(is_full.reshape(self._local.shape).any(axis=2))

    def place(self, chosen: Int64[np.ndarray, "queries"], is_filled: Bool[np.ndarray, "queries"]) -> None:
        """Counts the values of the candidates just placed, and takes off those of the place that leaves the window."""
        self._last.append(np.where(is_filled[:, None], self._local[self._lists, chosen], 0))
        self._add(self._last[-1], 1)
        if len(self._last) >= self._rule.window:
            self._add(self._last.pop(0), -1)
        self._counts[:, 0] = 0  # items without a value are not limited

    def _add(self, values: Int64[np.ndarray, "queries _"], count: int) -> None:
        if values.shape[1] == 1:
            self._counts[self._lists, values[:, 0]] += count
        else:  # a list may hold a value twice
            np.add.at(self._counts, (self._lists[:, None], values), count)


class QuotaCounts:
    """Number of placed items that satisfy the condition of one quota."""

    def __init__(self, rule: Quota, flags: Bool[np.ndarray, "queries k"]) -> None:
        """Starts with no item placed. `flags` say which candidates satisfy the condition."""
        self.flags, self.first = flags, rule.first
        self._missing = np.full(len(flags), rule.at_least)
        self._lists = np.arange(len(flags))

    @property
    def most_missing(self) -> int:
        """Number of items that a list still needs, at most."""
        return max(int(self._missing.max(initial=0)), 0)

    def missing(self, free: Bool[np.ndarray, "queries k"]) -> Int64[np.ndarray, "queries"]:
        """Returns how many items each list still needs, at most as many as are left."""
        return np.asarray(np.minimum(np.maximum(self._missing, 0), (self.flags & free).sum(axis=1)))

    def place(self, chosen: Int64[np.ndarray, "queries"], is_filled: Bool[np.ndarray, "queries"]) -> None:
        """Counts the placed candidates that satisfy the condition."""
        self._missing = self._missing - (is_filled & self.flags[self._lists, chosen])
