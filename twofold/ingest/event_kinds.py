"""Rules for logs whose events are of several kinds, named in a text column: view, cart, purchase."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from twofold.errors import RequestError
from twofold.ingest.column_names import EVENT, LIKED, name_set, normalized_name
from twofold.ingest.table_profile import Column, printable, rule_name
from twofold.recipe.messages import did_you_mean

MOST_KINDS: Final = 20
"""Number of values above which a column of texts holds no kinds of event."""


# Kinds by the interest that they show, each group with its weight in training.
_TAKEN: Final = name_set(
    "purchase purchased buy bought order ordered transaction sale sold paid pay payment conversion convert subscribe "
    "subscribed rent rented book booked hire hired apply applied download downloaded install checkoutcomplete"
)
_INTENDED: Final = LIKED - _TAKEN | name_set(
    "addtobasket basket addbasket checkout begincheckout wish wishlist addtowishlist heart star complete completed "
    "fullplay repeat replay comment commented addtoplaylist addtolist"
)
_SEEN: Final = name_set(
    "view viewed viewitem itemview pv pageview productview detail detailview viewcontent click clicked clickitem open "
    "opened visit visited read play played listen listened watch watched stream streamed start started preview"
)
_REJECTED: Final = name_set(
    "skip skipped dislike disliked hide hidden notinterested downvote downvoted thumbsdown report reported unlike "
    "block blocked return returned refund refunded dismiss dismissed reject rejected decline declined"
)
_WEIGHTS: Final = ((10.0, _TAKEN), (4.0, _INTENDED), (1.0, _SEEN))


@dataclass(frozen=True)
class EventKinds:
    """The kinds of event of a log, and what follows from them."""

    column: str
    """Name of the column, as a rule writes it."""
    weights: Mapping[str, float]
    """Weight in training of each kind that shows interest, the highest first."""
    rejected: tuple[str, ...]
    """Kinds that show that an item was not liked."""
    unknown: tuple[str, ...]
    """Kinds that neither train nor count."""

    @property
    def positive(self) -> str:
        """Rule of the events that train."""
        return _is_one_of(self.column, tuple(self.weights))

    @property
    def negative(self) -> str:
        """Rule of the negative history: a view without a purchase is no dislike, so only explicit ones count."""
        return _is_one_of(self.column, self.rejected) if self.rejected else "FALSE"

    @property
    def weight(self) -> str | None:
        """Weight of an event in training; `None` if all kinds have one weight."""
        by_weight: dict[float, list[str]] = {}
        for kind, weight in self.weights.items():
            by_weight.setdefault(weight, []).append(kind)
        if len(by_weight) < 2:
            return None
        *others, last = by_weight
        cases = " ".join(f"WHEN {_is_one_of(self.column, tuple(by_weight[each]))} THEN {each:g}" for each in others)
        return f"CASE {cases} ELSE {last:g} END"

    @property
    def relevant_choices(self) -> tuple[str, ...]:
        """Rules of the events that the report asks for: the strongest kinds, then also those of the next weight."""
        levels = sorted(set(self.weights.values()), reverse=True)
        kinds = [tuple(kind for kind, weight in self.weights.items() if weight >= level) for level in levels[:-1]]
        return tuple(_is_one_of(self.column, each) for each in kinds)


def find_kinds(columns: Sequence[Column], weights: Mapping[str, float]) -> tuple[Column, EventKinds] | None:
    """Finds the column of kinds of event, by its name or its values; `None` if there is none.

    `weights` are those that the user gives, by kind; other kinds then do not train. RequestError for a kind that the
    column does not have.
    """
    for column in columns:
        written, kinds = rule_name(column.name), [kind for kind in column.most_frequent if kind.isprintable()]
        if column.kind != "text" or written is None or not 2 <= column.distinct <= MOST_KINDS:
            continue
        by_weight = {kind: weight for weight, names in _WEIGHTS for kind in kinds if normalized_name(kind) in names}
        rejected = tuple(kind for kind in kinds if normalized_name(kind) in _REJECTED)
        is_named = normalized_name(column.name) in EVENT
        if not by_weight or not (is_named or len(by_weight) >= 2 and 2 * len(by_weight) >= len(kinds)):
            continue
        chosen = _chosen(kinds, weights, column) if weights else by_weight
        left = tuple(kind for kind in kinds if kind not in chosen and kind not in rejected)
        return column, EventKinds(written, chosen, tuple(k for k in rejected if k not in chosen), left)
    if weights:
        raise RequestError(
            f"--weights names {', '.join(weights)}, and no text column of the log holds kinds of event. Leave it out, "
            f"or write a rule with --positive."
        )
    return None


def parse_weights(text: str) -> dict[str, float]:
    """Reads `view=1,cart=4`; RequestError if it is something else.

    >>> parse_weights("view=1, cart=4")
    {'view': 1.0, 'cart': 4.0}
    """
    weights = {}
    for part in text.split(","):
        kind, sign, number = part.rpartition("=")
        try:
            weights[kind.strip()] = float(number)
        except ValueError:
            sign = ""
        if not sign or not kind.strip() or not 0 < weights[kind.strip()] < float("inf"):
            raise RequestError(f"--weights {text}: {part!r} is no weight. Write KIND=NUMBER,…, such as view=1,cart=4.")
    return weights


def _chosen(kinds: Sequence[str], weights: Mapping[str, float], column: Column) -> dict[str, float]:
    for kind in weights:
        if kind not in kinds:
            raise RequestError(
                f"--weights: {printable(column.name)} has no kind {kind} ({did_you_mean(kind, kinds)}its kinds: "
                f"{', '.join(map(printable, kinds))})."
            )
    return dict(sorted(weights.items(), key=lambda pair: -pair[1]))


def _is_one_of(column: str, kinds: tuple[str, ...]) -> str:
    listed = ["'" + kind.replace("'", "''") + "'" for kind in kinds]
    return f"{column} = {listed[0]}" if len(listed) == 1 else f"{column} IN ({', '.join(listed)})"
