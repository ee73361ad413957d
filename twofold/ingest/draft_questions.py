"""Questions that a drafted recipe leaves open, each with the guess and the option that answers it."""

import shlex
from dataclasses import dataclass
from typing import Final

from twofold.ingest.draft_split import ENOUGH_USERS, choose_split, count_judged, interval_of
from twofold.ingest.inspect_log import LogProfile
from twofold.ingest.table_profile import printable
from twofold.ingest.time_zones import quiet_hour_hint, zone_of_quiet_hour
from twofold.recipe.split import LastEvents, TemporalSplit

_AGAIN: Final = 0.2
"""Share of relevant events on items seen on an earlier day, above which items are recommended again."""
_RARE, _FREQUENT = 0.02, 0.6


@dataclass(frozen=True)
class DraftQuestion:
    """A question, the guess that the recipe holds, and the option of `twofold recipe new` that answers otherwise."""

    text: str
    option: str


def recommends_again(seen: LogProfile) -> bool:
    """Returns whether items that a user has seen are recommended again: as answered, else by the share of repeats."""
    if seen.answers.repeats is not None:
        return seen.answers.repeats
    return seen.events.met_before >= _AGAIN


def questions(seen: LogProfile) -> list[DraftQuestion]:
    """Returns what the user should decide, the most important first; nothing that the user has answered."""
    return [*_of_positives(seen), *_of_kinds(seen), *_of_repeats(seen), *_of_time_zone(seen), *_of_split(seen)]


def _of_positives(seen: LogProfile) -> list[DraftQuestion]:
    share, rule = seen.events.positives / seen.events.rows, printable(seen.roles.signals.positive)
    if seen.answers.positive is not None or seen.roles.signals.kinds is not None:
        return []
    if rule == "TRUE" and share == 1:
        text = "Does every event show interest? No column tells liked items from seen ones, so all are positive."
    elif share > _FREQUENT and "quantity" not in seen.roles.taken_as.values():
        text = f"Is {share:.1%} of the events really positive? {rule}. A stricter rule tells users apart better."
    elif share < _RARE:
        text = f"Is only {share:.2%} of the events positive? {rule}. A weaker rule leaves more to train on."
    else:
        return []
    return [DraftQuestion(text, '--positive "RULE"')]


def _of_kinds(seen: LogProfile) -> list[DraftQuestion]:
    kinds, relevant = seen.roles.signals.kinds, seen.roles.signals.relevant
    if kinds is None:
        return []
    weights = ",".join(f"{printable(kind)}={weight:g}" for kind, weight in kinds.weights.items())
    found = [DraftQuestion(f"How much does each kind of event count in training? {weights}.", f'--weights "{weights}"')]
    if kinds.unknown:
        left = ", ".join(map(printable, kinds.unknown))
        with_first = f"{weights},{printable(kinds.unknown[0])}=1"
        text = f"Do these kinds of event show interest? They are not used: {left}."
        found.append(DraftQuestion(text, f'--weights "{with_first}"'))
    if seen.answers.relevant is None and kinds.relevant_choices:
        target = printable(relevant) if relevant else "all of them, since too few users have stronger ones"
        others = [rule for rule in (*kinds.relevant_choices, kinds.positive) if rule != relevant]
        text = f"Which kinds should the recommendations lead to? The report asks for {target}."
        found.append(DraftQuestion(text, f"--relevant {_for_shell(printable(others[0]))}"))
    return found


def _for_shell(rule: str) -> str:
    """Returns a rule as one argument of a command line.

    >>> print(_for_shell("event = 'bought'"), _for_shell('"what happened" IS NULL'))
    "event = 'bought'" '"what happened" IS NULL'
    """
    return shlex.quote(rule) if set(rule) & set('"$`\\') else f'"{rule}"'


def _of_repeats(seen: LogProfile) -> list[DraftQuestion]:
    share = seen.events.met_before
    if seen.answers.repeats is not None or not share >= _AGAIN / 4:
        return []
    is_again = recommends_again(seen)
    text = (
        f"May items that a user has seen be recommended again? Guessed {'yes' if is_again else 'no'}: {share:.0%} of "
        f"the relevant events are on items seen on an earlier day."
    )
    return [DraftQuestion(text, "--no-repeats" if is_again else "--repeats")]


def _of_time_zone(seen: LogProfile) -> list[DraftQuestion]:
    if not seen.roles.has_clock or seen.answers.time_zone is not None or seen.events.hours < 2:
        return []
    why = seen.zone_reason or quiet_hour_hint(seen.events.quiet_hour)
    if not why:
        return []
    text = f"In which time zone do your users live? Guessed {seen.time_zone}: {why}."
    example = zone_of_quiet_hour(seen.events.quiet_hour) or "Europe/Berlin"
    return [DraftQuestion(text, f"--time-zone {example if example != seen.time_zone else 'UTC'}")]


def _of_split(seen: LogProfile) -> list[DraftQuestion]:
    events, users = seen.events, count_judged(seen.events, seen.answers.test_days)
    if seen.answers.test_days is not None or users is None:
        return []
    split, reason = choose_split(events)
    few = ""
    if users < ENOUGH_USERS:
        few = f" With about {users:,} users, differences below {interval_of(users):.3f} in recall are noise."
    if not events.days or not few:
        return []
    span = events.days[-1].number - events.days[0].number + 1
    days = min(max(2, span // 5), 28)
    if isinstance(split, TemporalSplit) and days <= (width := (split.test.end - split.test.first).days):
        days = min(2 * width, (span - 1) // 2) if (span - 1) // 2 > width else max(1, width // 2)
    longer = f"--test-days {days}"
    if isinstance(split, LastEvents):
        return [DraftQuestion(f"Are users to be tested by their last event? Guessed yes: {reason}.{few}", longer)]
    return [DraftQuestion(f"Is the test window right? {reason}.{few}", longer)]
