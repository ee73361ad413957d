"""Influence of the history on a list: the scores of items with each item of the history left out in turn."""

from typing import Final

import numpy as np
from jaxtyping import Float32, Int64

from twofold.index.live import Snapshot
from twofold.serve.bundle import Bundle
from twofold.serve.given_items import retriever_scores
from twofold.serve.two_stage import encode_users
from twofold.serve.user_state import UserState, queries_of

MAX_LEFT_OUT: Final = 50  # newest items of the history: as many as an explained reply lists


def scores_without(
    bundle: Bundle, items: Snapshot, state: UserState, item_rows: Int64[np.ndarray, "k"]
) -> tuple[Int64[np.ndarray, "_"], Float32[np.ndarray, "_ k"]]:
    """Returns the rows that were left out, newest first, and the retriever's scores of the items: first those of the
    whole history, then those without each of the rows. Items that were added to the catalogue since carry nothing.
    """
    liked_or_not = {*state.positives.tolist(), *state.negatives.tolist()}
    newest = [row for row in dict.fromkeys(state.seen[::-1].tolist()) if row in liked_or_not][:MAX_LEFT_OUT]
    states = [state, *(_without(state, row) for row in newest)]
    users = encode_users(bundle, queries_of(bundle, states))
    return np.array(newest, np.int64), retriever_scores(bundle, items, users, item_rows)


def _without(state: UserState, row: int) -> UserState:
    """Returns the state without the events of an item; it still counts as seen."""
    kept = state.positives != row
    return state._replace(
        positives=state.positives[kept],
        positives_at=state.positives_at[kept],
        negatives=state.negatives[state.negatives != row],
    )
