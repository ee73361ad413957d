"""Users and items with hidden tastes, from which the logs of this folder draw who meets and likes what."""

from dataclasses import dataclass

import numpy as np

DAY_S = 86_400
FIRST_S = 1_709_251_200  # 1 March 2024, 00:00 UTC


@dataclass(frozen=True)
class Taste:
    """Tastes: the group of each item, the favorite group of each user, and the popularity of the items."""

    user_group: np.ndarray
    item_group: np.ndarray
    popularity: np.ndarray
    draw: np.random.Generator

    def meet(self, users: np.ndarray, *, faithful: float = 0.7) -> np.ndarray:
        """Returns an item for each of the users: mostly of the favorite group, by popularity."""
        items = self.draw.choice(len(self.item_group), size=len(users), p=self.popularity)
        is_faithful = self.draw.random(len(users)) < faithful
        for group in np.unique(self.user_group):
            members = np.flatnonzero(self.item_group == group)
            weights = self.popularity[members] / self.popularity[members].sum()
            chosen = np.flatnonzero(is_faithful & (self.user_group[users] == group))
            items[chosen] = self.draw.choice(members, size=len(chosen), p=weights)
        return items

    def is_liked(self, users: np.ndarray, items: np.ndarray, *, noise: float = 0.1) -> np.ndarray:
        """Returns whether each item is of its user's favorite group, some at random."""
        return (self.user_group[users] == self.item_group[items]) ^ (self.draw.random(len(users)) < noise)


def tastes(seed: int, *, users: int, items: int, groups: int = 8) -> Taste:
    """Draws tastes; the popularity of items falls as in most catalogues (Zipf's law with exponent .8)."""
    draw = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, items + 1) ** 0.8
    return Taste(
        draw.integers(groups, size=users), draw.integers(groups, size=items), popularity / popularity.sum(), draw
    )


def moments(draw: np.random.Generator, events: int, *, days: int, offset_h: float = 0.0) -> np.ndarray:
    """Returns times in seconds UTC in rising order: few from 1 to 7 at local time, and most in the evening."""
    rhythm = np.array([3, 1, 1, 1, 1, 1, 1, 3, 5, 5, 5, 5, 6, 6, 6, 6, 7, 8, 9, 10, 10, 9, 7, 5], float)
    hour = draw.choice(24, size=events, p=rhythm / rhythm.sum())
    local = draw.integers(days, size=events) * DAY_S + hour * 3600 + draw.integers(3600, size=events)
    return np.sort(FIRST_S + (local - round(offset_h * 3600)) % (days * DAY_S))
