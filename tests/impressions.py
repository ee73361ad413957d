"""Impressions of worlds with watch times, drawn at random."""

import numpy as np

from tests.worlds import DAY_MS, TEST, TRAIN_DAYS, VALIDATION


def drawn_impressions(draw: np.random.Generator, users: int, items: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns users, items and times (ms of the world) of 20 different items a user and day, until the test day."""
    lines = []
    for user in range(users):
        for day in (*TRAIN_DAYS, VALIDATION, TEST):
            shown = draw.choice(items, size=20, replace=False)
            moments = day * DAY_MS + draw.choice(DAY_MS, size=20, replace=False)
            lines += [(user, int(item), int(at)) for item, at in zip(shown, moments, strict=True)]
    user_column, item_column, at_column = (np.array(column) for column in zip(*lines, strict=True))
    return user_column, item_column, at_column
