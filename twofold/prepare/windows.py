"""SQL of the windows of a split: which events are usable, and the window of each."""

from collections.abc import Sequence
from typing import assert_never

from twofold.prepare.duckdb_connection import quote_name
from twofold.prepare.funnel import HAS_KEYS
from twofold.prepare.hashing import PRIME, hash_sql
from twofold.prepare.sources import Source
from twofold.recipe.prepare import Prepare
from twofold.recipe.split import LastDays, LastEvents, TemporalSplit
from twofold.tables import SPLITS, Split


def kept_sql(prepare: Prepare, source: Source, columns: Sequence[str]) -> str:
    """Returns the condition for usable events: one with an estimated time is used in training only, and one of an item
    of `new_items` only in the test window.

    With `last_n`, order alone decides the windows, and an estimated time is in the right order. A user whose other
    events would not fill the windows keeps no event of a new item, because it would be a training event.
    """
    usable = f'"_tf_is_taken" AND {HAS_KEYS}'
    hashed = hash_sql({"item_id": source.events.columns["item_id"]}, seed=2)  # 0 cuts shards, 1 samples users
    is_new = "FALSE" if prepare.new_items is None else f"{hashed} < {int(prepare.new_items * PRIME)}"
    if isinstance(prepare.split, LastEvents):
        if prepare.new_items is None:
            return usable
        test, both = prepare.split.test, prepare.split.test + prepare.split.validation
        others = f'COUNT(CASE WHEN NOT {is_new} THEN 1 END) OVER (PARTITION BY "user_id", {usable})'
        from_end = _from_end_sql(prepare.split.ties, columns, among=f"({usable})")
        return f"{usable} AND NOT ({is_new} AND ({others} <= {both} OR {from_end} > {test}))"
    evaluated = " OR ".join(f"({_window_sql(prepare, name)})" for name in SPLITS[1:])
    kept = f'{usable} AND NOT ("_tf_is_estimated" AND ({evaluated}))'
    bounds = prepare.bounds_ms("test")
    assert bounds is not None
    return kept if prepare.new_items is None else f'{kept} AND NOT ("at" < {bounds[0]} AND {is_new})'


def split_sql(prepare: Prepare, columns: Sequence[str]) -> str:
    """Returns the index of an event's window in SPLITS; NULL means outside all windows.

    `columns` are those that the rules read of an event.
    """
    match prepare.split:
        case TemporalSplit():
            cases = " ".join(f"WHEN {_window_sql(prepare, split)} THEN {index}" for index, split in enumerate(SPLITS))
            return f'CAST(CASE WHEN NOT "_tf_is_kept" THEN NULL {cases} END AS TINYINT)'
        case LastEvents(test=test, validation=validation, ties=ties):
            from_end = _from_end_sql(ties, columns, among='"_tf_is_kept"')
            events = 'COUNT(*) OVER (PARTITION BY "user_id", "_tf_is_kept")'
            return f"""CAST(CASE WHEN NOT "_tf_is_kept" THEN NULL WHEN {events} <= {test + validation} THEN 0
                WHEN {from_end} <= {test} THEN 2 WHEN {from_end} <= {test + validation} THEN 1 ELSE 0 END AS TINYINT)"""
        case LastDays():
            raise AssertionError("windows of last_days get their dates before a plan is made")
        case _:
            assert_never(prepare.split)


def _from_end_sql(ties: str, columns: Sequence[str], *, among: str) -> str:
    """Returns the place of an event from the end of its user's events with the same value of the condition `among`.

    All columns that a rule reads order events of one time, so that the order of the files decides nothing.
    """
    by = (ties, "item_id", *(name for name in columns if name not in ("user_id", "at", ties, "item_id")))
    order = ", ".join(f"{quote_name(name)} DESC NULLS LAST" for name in by)
    return f'ROW_NUMBER() OVER (PARTITION BY "user_id", {among} ORDER BY "at" DESC, {order})'


def _window_sql(prepare: Prepare, name: Split) -> str:
    """Returns the condition that an event is in a window of days: first included, end excluded."""
    bounds = prepare.bounds_ms(name)
    assert bounds is not None
    return f'"at" >= {bounds[0]} AND "at" < {bounds[1]}'
