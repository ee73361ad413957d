"""YAML text of a drafted recipe: scalars that read back unchanged, and lines with comments."""

import re
import textwrap
from typing import Final

from twofold.recipe.yaml_files import is_text

_WIDTH: Final = 118


def scalar(text: str) -> str:
    """Returns a text as a YAML scalar that parses to the same text."""
    is_plain = re.fullmatch(r"[A-Za-z_./][\w./ >=<+*-]*", text, re.ASCII) and text == text.strip() and is_text(text)
    if is_plain and not re.fullmatch(r"(?i:true|false|null|yes|no|on|off|y|n)|\W+|\.(?i:inf|nan)", text):
        return text
    escaped = (f"\\{c}" if c in '"\\' else c if c.isprintable() else f"\\U{ord(c):08X}" for c in text)
    return f'"{"".join(escaped)}"'


def with_comment(line: str, remark: str) -> list[str]:
    """Returns a line with its comment: beside it if it fits, else above; an empty remark is no comment."""
    if not remark:
        return [line]
    beside = f"{line:<52}  # {remark}"
    if len(beside) <= _WIDTH and line.strip():
        return [beside]
    indent = line[: len(line) - len(line.lstrip())] + "# "
    above = textwrap.wrap(remark, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    return [*above, line] if line.strip() else above
