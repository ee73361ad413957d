"""Settings of the documentation site: `make docs-site` builds it with Sphinx into build/site."""

import re
from typing import Any

project = "twofold"
author = "The twofold authors"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["images"]
html_theme = "furo"
html_title = "twofold"
html_copy_source = False
html_show_sphinx = False
myst_heading_anchors = 3
autodoc_member_order = "bysource"
suppress_warnings = ["misc.highlighting_failure"]  # the nginx lexer fails on JSON in quotes
autodoc_typehints = "none"  # shapes in annotations are strings that no reference resolves


def markdown_to_rst(app: Any, kind: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Rewrites the Markdown of a docstring (code, fenced blocks, tables) as reStructuredText, in place."""
    text = re.sub(
        r"```python\n(.*?)```",
        lambda found: ".. code-block:: python\n\n" + re.sub(r"(?m)^", "   ", found[1]),
        "\n".join(lines),
        flags=re.DOTALL,
    )
    text = re.sub(r"(?<![`:])`([^`\n]+)`(?!`)", r"``\1``", text)
    text = re.sub(r"\*(?=\w)", r"\\*", text)
    text = re.sub(r"(?m)^\|[-|]+\|\n", "", text)  # a table becomes a list
    text = re.sub(r"(?m)^\| (.*) \|$", lambda found: "- " + found[1].replace(" | ", ": "), text)
    lines[:] = text.splitlines()


def setup(app: Any) -> None:
    """Registers the hook with Sphinx."""
    app.connect("autodoc-process-docstring", markdown_to_rst)
