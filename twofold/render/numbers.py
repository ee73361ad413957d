"""Formatting of numbers and metric names for sentences, tables and pages."""

from collections.abc import Mapping
from typing import Final

_ACRONYMS: Final = ("auc", "xauc", "ndcg", "dcg", "mrr", "map", "wtg", "mae", "rmse")


def format_decimal(value: float | None) -> str:
    """Returns three decimals, or four digits for larger numbers; a dash for `None`.

    >>> format_decimal(0.3864), format_decimal(-0.0126), format_decimal(1.0), format_decimal(None)
    ('0.386', '−0.013', '1.000', '–')
    >>> format_decimal(57.7512), format_decimal(18633.2)
    ('57.75', '18,633')
    """
    if value is None:
        return "–"
    size = abs(value)
    text = f"{size:,.{max(0, 3 - (size >= 10) - (size >= 100) - (size >= 1000))}f}"
    return f"−{text}" if value < 0 and text.strip(".0") else text


def format_signed(value: float | None) -> str:
    """Returns a difference with its sign, if it is not rounded to 0.

    >>> format_signed(0.0214), format_signed(-0.0126), format_signed(0.0001)
    ('+0.021', '−0.013', '0.000')
    """
    text = format_decimal(value)
    return f"+{text}" if value is not None and value > 0 and text.strip(".0") else text


def format_significant(value: float | None) -> str:
    """Returns three significant digits, for quantities of any size, such as a learning rate.

    >>> format_significant(0.00002), format_significant(0.0021349), format_significant(8.5023), format_significant(0.0)
    ('2e-05', '0.00213', '8.5', '0')
    >>> format_significant(25123.0), format_significant(-0.5)
    ('25,123', '−0.5')
    """
    if value is None:
        return "–"
    size = abs(value)
    text = f"{size:,.0f}" if size >= 1000 else f"{size:.3g}"
    return f"−{text}" if value < 0 else text


def format_interval(low: float | None, high: float | None) -> str:
    """Returns an interval; an empty text if `low` is `None`.

    >>> format_interval(0.37, 0.4011)
    '[0.370, 0.401]'
    """
    return "" if low is None else f"[{format_decimal(low)}, {format_decimal(high)}]"


def percent(share: float | None) -> str:
    """Returns a share in percent, with one decimal below ten percent.

    >>> percent(0.9512), percent(0.0412), percent(None)
    ('95 %', '4.1 %', '–')
    """
    if share is None:
        return "–"
    return f"{100 * share:.1f} %" if abs(share) < 0.1 else f"{100 * share:.0f} %"


def probability(p: float | None) -> str:
    """Returns a p-value.

    >>> probability(0.0314), probability(0.00002)
    ('0.031', '<0.001')
    """
    return "<0.001" if p is not None and p < 0.0005 else format_decimal(p)


def ratio(positive_share: float) -> str:
    """Returns the ratio of positives to negatives.

    >>> ratio(0.25)
    '1 : 3.00'
    """
    return f"1 : {(1 - positive_share) / positive_share:,.2f}" if positive_share > 0 else "–"


def plural(number: int, noun: str) -> str:
    """Returns a number with its noun: 1 user, 2 users."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def skipped_text(skipped: Mapping[str, int]) -> str:
    """Returns numbers of users with the reasons for which they were skipped.

    >>> skipped_text({"no positive": 3, "no impression": 0}), skipped_text({})
    ('3 users with no positive', 'none')
    """
    reasons = [f"{plural(number, 'user')} with {reason}" for reason, number in skipped.items() if number]
    return "; ".join(reasons) or "none"


def in_full(metric: str) -> str:
    """Returns the full name of a metric, with its protocol.

    >>> in_full("catalogue/hit_rate@10")
    'catalogue hit rate@10'
    """
    return metric.replace("/", " ").replace("_", " ")


def in_title(metric: str) -> str:
    """Returns the name of a metric as a heading, without its protocol.

    >>> in_title("catalogue/recall@100"), in_title("catalogue/ndcg@10"), in_title("catalogue/hit_rate@5")
    ('Recall@100', 'NDCG@10', 'Hit rate@5')
    >>> in_title("watch_time/dcg_wtg_ln@5")
    'DCG WTG ln@5'
    """
    words = [word.upper() if word.partition("@")[0] in _ACRONYMS else word for word in in_short(metric).split()]
    return " ".join([words[0][:1].upper() + words[0][1:], *words[1:]])


def in_short(metric: str) -> str:
    """Returns the name of a metric without its protocol, for tables of one protocol.

    >>> in_short("catalogue/hit_rate@10")
    'hit rate@10'
    """
    return in_full(metric.partition("/")[2])
